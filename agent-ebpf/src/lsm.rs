//! The kernel programs of the LSM tier: an object of its own, for the gate must load where these do not. It shares the gate's
//! maps by their pins. Built for the BPF target only, as `main.rs` is.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(target_arch = "bpf", allow(internal_features, reason = "see `record::count`"))]
#![cfg_attr(
    target_arch = "bpf",
    allow(unsafe_code, reason = "the kernel's interface is raw pointers and helpers")
)]

#[cfg(target_arch = "bpf")]
#[allow(dead_code, reason = "most of it is for the gate's programs")]
mod context;
#[cfg(target_arch = "bpf")]
#[path = "lsm/file_receive.rs"]
mod file_receive;
#[cfg(target_arch = "bpf")]
#[allow(dead_code, reason = "most of it is for the gate's programs")]
mod grants;
#[cfg(target_arch = "bpf")]
#[allow(dead_code, reason = "most of them are for the gate's programs")]
mod maps;
#[cfg(target_arch = "bpf")]
#[allow(dead_code, reason = "most of it is for the gate's programs")]
mod record;
#[cfg(target_arch = "bpf")]
#[allow(dead_code, reason = "some of it is for other programs")]
mod resources;
#[cfg(target_arch = "bpf")]
#[path = "lsm/socket_create.rs"]
mod socket_create;
#[cfg(target_arch = "bpf")]
#[path = "lsm/socket_sendmsg.rs"]
mod socket_sendmsg;
#[cfg(target_arch = "bpf")]
#[allow(dead_code, reason = "some of it is for the gate's programs")]
mod subjects;
#[cfg(target_arch = "bpf")]
#[allow(dead_code, reason = "some of it is for the gate's programs")]
mod task;
#[cfg(target_arch = "bpf")]
#[path = "lsm/unix_may_send.rs"]
mod unix_may_send;
#[cfg(target_arch = "bpf")]
#[path = "lsm/unix_paths.rs"]
mod unix_paths;
#[cfg(target_arch = "bpf")]
#[path = "lsm/unix_stream_connect.rs"]
mod unix_stream_connect;

/// What a program returns to let a call go on.
#[cfg(target_arch = "bpf")]
const GO_ON: i32 = 0;
/// What it returns to have the caller get EPERM.
#[cfg(target_arch = "bpf")]
const REFUSE: i32 = -1;

/// Which field of the kernel's `struct socket` is its `struct sock *`, in units of 8 bytes. It has been this one since before
/// Linux 5.10; where it is another, the verifier sees that what is read is no socket, and does not load the program.
#[cfg(target_arch = "bpf")]
const SK: usize = 3;

/// The kernel's inner socket of a socket. None: it has none.
///
/// # Safety
/// `socket` is a `struct socket *` of the kernel's.
#[cfg(target_arch = "bpf")]
#[inline(always)]
unsafe fn inner(socket: *const core::ffi::c_void) -> Option<*mut aya_ebpf::bindings::bpf_sock> {
    // SAFETY: the verifier permits this read only if there is a `struct sock *` there. Volatile, so that it is one read.
    let sk = unsafe { socket.cast::<*mut aya_ebpf::bindings::bpf_sock>().add(SK).read_volatile() };
    (!sk.is_null()).then_some(sk)
}

/// The helpers we call include some that the kernel gives to GPL-compatible programs only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves that nothing gets here; the linker drops it.
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
