//! The system calls of the bypass suite that no safe crate offers.
//!
//! Owns: all `unsafe` code of the tests. Must not know: what is tried with it. Every function takes slices and descriptors
//! that are borrowed for the call, and gives back what the kernel said.

#![allow(unsafe_code, reason = "socket options, addresses and calls that no crate wraps")]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use io_uring::types::Fd;
use io_uring::{IoUring, opcode, squeue};
use nix::unistd::Pid;
use socket2::SockAddr;

/// The kernel's answer, -1 being an error.
fn checked(result: libc::c_long) -> io::Result<i32> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value as i32),
    }
}

fn length(bytes: &[u8]) -> libc::socklen_t {
    bytes.len() as libc::socklen_t
}

/// `connect` to an address of any family, as it lies in memory.
pub fn connect(socket: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as it is told, and the slice has them.
    let result = unsafe { libc::connect(socket.as_raw_fd(), address.as_ptr().cast(), length(address)) };
    checked(result.into()).map(drop)
}

/// `sendto` an address of any family, as it lies in memory.
pub fn send_to(socket: BorrowedFd<'_>, data: &[u8], flags: i32, address: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes of data and address as it is told, and the slices have them.
    let result = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            data.as_ptr().cast(),
            data.len(),
            flags,
            address.as_ptr().cast(),
            length(address),
        )
    };
    checked(result as libc::c_long).map(drop)
}

/// `setsockopt` with any value.
pub fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as it is told, and the slice has them.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length(value)) };
    checked(result.into()).map(drop)
}

/// `getsockopt` of a number.
pub fn option(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let mut value = 0i32;
    let mut length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `value`, which has as many.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length)
    };
    checked(result.into()).map(|_| value)
}

/// An `ioctl` whose argument is a structure of the caller's, read and written in place.
pub fn ioctl(file: BorrowedFd<'_>, request: u64, argument: &mut [u8; 40]) -> io::Result<()> {
    // SAFETY: the requests used here take an `ifreq`, which is 40 bytes on 64-bit machines and smaller on others.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as _, argument.as_mut_ptr()) };
    checked(result.into()).map(drop)
}

/// `bpf` with an attribute structure of the caller's; gives a new descriptor.
pub fn bpf(command: i32, attributes: &mut [u64]) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads as many bytes as it is told, and the slice has them. Addresses within the structure are of
    // slices that the caller holds for the call. Both commands used here give a descriptor, which nobody else owns.
    unsafe {
        let size = size_of_val(attributes);
        let result = libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size);
        checked(result).map(|number| OwnedFd::from_raw_fd(number))
    }
}

/// `bpf`, as above, for a command that gives nothing back.
pub fn bpf_done(command: i32, attributes: &mut [u64]) -> io::Result<()> {
    // SAFETY: as in `bpf`, but that no descriptor is made.
    unsafe {
        let size = size_of_val(attributes);
        let result = libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size);
        checked(result).map(drop)
    }
}

/// From now on this process, and whatever it becomes, is told `error` when it makes the call with this number. Nothing lifts that.
pub fn refuse_call(number: libc::c_long, error: i32) -> io::Result<()> {
    // The kernel shows the filter a `seccomp_data`, whose first word is the number of the call.
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let number_is = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter { jf: 1, ..statement(number_is, number as u32) },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | error as u32),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    nix::sys::prctl::set_no_new_privs()?;
    // SAFETY: the kernel reads the program and as many of its statements as it says there are, both alive here, and copies them.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    checked(result).map(drop)
}

/// Makes a child that starts in the cgroup, does this, and ends. Waits for it. Only for a process with one thread.
pub fn clone_into(cgroup: BorrowedFd<'_>, child: impl FnOnce()) -> io::Result<()> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let arguments = libc::clone_args {
        flags: CLONE_INTO_CGROUP,
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.as_raw_fd() as u64,
    };
    // SAFETY: without CLONE_VM and with no stack of its own the child is a copy, as of `fork`. The process has one thread,
    // so no lock is held by one that is missing in the child. The child ends here, and runs nothing of its parent's.
    unsafe {
        let size = size_of::<libc::clone_args>();
        match checked(libc::syscall(libc::SYS_clone3, &raw const arguments, size))? {
            0 => {
                child();
                libc::_exit(0)
            }
            pid => nix::sys::wait::waitpid(Pid::from_raw(pid), None).map(drop).map_err(io::Error::from),
        }
    }
}

/// An io_uring that does one thing at a time.
pub struct Ring(IoUring);

impl Ring {
    /// Makes it; with `polled`, a kernel thread takes what is to be done.
    pub fn new(polled: bool) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        if polled {
            builder.setup_sqpoll(50);
        }
        builder.build(4).map(Self)
    }

    /// `connect`.
    pub fn connect(&mut self, socket: BorrowedFd<'_>, address: &SockAddr) -> io::Result<()> {
        let entry = opcode::Connect::new(Fd(socket.as_raw_fd()), address.as_ptr().cast(), address.len());
        self.run(entry.build()).map(drop)
    }

    /// `send`.
    pub fn send(&mut self, socket: BorrowedFd<'_>, data: &[u8]) -> io::Result<()> {
        let entry = opcode::Send::new(Fd(socket.as_raw_fd()), data.as_ptr(), data.len() as u32);
        self.run(entry.build()).map(drop)
    }

    /// `sendmsg` to an address.
    pub fn send_to(
        &mut self,
        socket: BorrowedFd<'_>,
        data: &[u8],
        flags: u32,
        address: &SockAddr,
    ) -> io::Result<()> {
        let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
        // SAFETY: a structure of numbers and pointers, for which all bits 0 is a value.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_name = address.as_ptr().cast_mut().cast();
        message.msg_namelen = address.len();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        let entry = opcode::SendMsg::new(Fd(socket.as_raw_fd()), &raw const message).flags(flags);
        self.run(entry.build()).map(drop)
    }

    /// Does one thing and waits until it is done.
    fn run(&mut self, entry: squeue::Entry) -> io::Result<i32> {
        // SAFETY: the callers' buffers are borrowed until this function returns, which is after the entry was completed.
        unsafe { self.0.submission().push(&entry) }.map_err(io::Error::other)?;
        self.0.submit_and_wait(1)?;
        let entry = self.0.completion().next().ok_or_else(|| io::Error::other("no completion"))?;
        match entry.result() {
            error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
            value => Ok(value),
        }
    }
}
