//! The canary itself: a process that tries, and tells.
//!
//! Owns: the attempts, and the lines in which they are asked for and told. Must not know: what an outcome means.
//!
//! It never decides anything, and ends when its standard input does.

use std::fs::{self, File};
use std::io::{self, BufRead, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Socket, Type};

use super::{ADDRESS4, ADDRESS6, Attempt, Passage, Passages, Try};
use crate::clock::now_boot_ns;

/// Long enough for an answer from this machine; a closed gate answers at once.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(100);
/// Between two bytes of a connection under a grant.
const PACE: Duration = Duration::from_millis(10);
/// How long after the end of a grant its connections are watched.
const WATCHED_NS: u64 = 3_000_000_000;
/// How often a port is looked for that both TCP and UDP have free.
const PORT_TRIES: usize = 16;

/// `IPPROTO_UDPLITE`.
const UDP_LITE: i32 = 136;

/// Enters `cgroup`, and does what the lines of standard input ask for.
///
/// # Errors
/// If it cannot listen, or nobody listens to it.
pub fn serve(cgroup: &Path) -> io::Result<()> {
    let place = match enter(cgroup) {
        Ok(()) => "inside".to_owned(),
        Err(error) => format!("outside {error}"),
    };
    let canary = Canary::listen()?;
    let mut out = io::stdout();
    writeln!(out, "ready {} {} {place}", canary.port()?, canary.free.local_addr()?.port())?;
    out.flush()?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("deny", _) => canary.try_all(&mut out)?,
            ("pass", deadline) => canary.pass(deadline.parse().unwrap_or(0), &mut out)?,
            _ => return Err(io::Error::other(format!("not understood: {line}"))),
        }
        out.flush()?;
    }
    Ok(())
}

/// Moves this process into the cgroup. A container has a cgroup namespace of its own, from which the kernel lets nobody move
/// out: then it is left first, for the host's.
fn enter(cgroup: &Path) -> io::Result<()> {
    let enter = || fs::write(cgroup.join("cgroup.procs"), "0");
    match enter() {
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) && cgroup.is_dir() => {
            setns(File::open("/proc/1/ns/cgroup")?, CloneFlags::CLONE_NEWCGROUP)?;
            enter()
        }
        result => result,
    }
}

/// What it listens on.
struct Canary {
    /// Protected.
    tcp: TcpListener,
    /// Protected, on the same port.
    udp: UdpSocket,
    /// Not protected.
    free: TcpListener,
}

impl Canary {
    fn listen() -> io::Result<Self> {
        let any = (ADDRESS4, 0);
        let mut failed = io::Error::other("not tried");
        for _ in 0..PORT_TRIES {
            let tcp = TcpListener::bind(any)?;
            match UdpSocket::bind(tcp.local_addr()?) {
                Ok(udp) => {
                    let canary = Self { tcp, udp, free: TcpListener::bind(any)? };
                    canary.tcp.set_nonblocking(true)?;
                    canary.udp.set_nonblocking(true)?;
                    canary.free.set_nonblocking(true)?;
                    return Ok(canary);
                }
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    fn port(&self) -> io::Result<u16> {
        Ok(self.tcp.local_addr()?.port())
    }

    /// Everything that needs no grant; a line for each.
    fn try_all(&self, out: &mut impl Write) -> io::Result<()> {
        let mut tries = try_shut(self.port()?);
        tries.push(tried(Attempt::Free, |cookie| self.reach_free(cookie)));
        for Try { attempt, cookie, errno } in tries {
            writeln!(out, "tried {} {cookie} {errno}", attempt.as_str())?;
        }
        writeln!(out, "end")
    }

    /// A byte to the port that nobody protects, and it arrives.
    fn reach_free(&self, cookie: &mut u64) -> io::Result<()> {
        let mut stream = TcpStream::from(connect(self.free.local_addr()?, cookie)?);
        stream.write_all(b"x")?;
        let mut accepted = accept(&self.free)?;
        accepted.set_nonblocking(false)?;
        accepted.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        accepted.read_exact(&mut [0])
    }

    /// Connects while there is a grant, and sends until there is none; a line for each connection.
    fn pass(&self, deadline_boot_ns: u64, out: &mut impl Write) -> io::Result<()> {
        let passages = self.watch(deadline_boot_ns)?;
        for (name, passage) in [("tcp", passages.tcp), ("udp", passages.udp)] {
            let Passage { cookie, errno, last_arrival_boot_ns, closed, refused } = passage;
            writeln!(
                out,
                "passed {name} {cookie} {errno} {last_arrival_boot_ns} {} {}",
                u8::from(closed),
                u8::from(refused)
            )?;
        }
        writeln!(out, "end")
    }

    fn watch(&self, deadline_boot_ns: u64) -> io::Result<Passages> {
        let to = SocketAddr::from((ADDRESS4, self.port()?));
        let mut passages = Passages::default();
        // What earlier ones left behind.
        while self.udp.recv(&mut [0; 16]).is_ok() {}
        while self.tcp.accept().is_ok() {}

        let stream = connect(to, &mut passages.tcp.cookie).and_then(|socket| {
            let accepted = accept(&self.tcp)?;
            accepted.set_nonblocking(true)?;
            socket.set_nonblocking(true)?;
            Ok((socket, accepted))
        });
        passages.tcp.errno = errno_of(&stream);
        let mut stream = stream.ok();
        let datagrams = datagram_socket(Domain::IPV4, 0, &mut passages.udp.cookie)
            .and_then(|socket| socket.connect(&to.into()).map(|()| socket));
        passages.udp.errno = errno_of(&datagrams);
        let mut datagrams = datagrams.ok();

        let give_up_boot_ns = deadline_boot_ns.saturating_add(WATCHED_NS);
        while (stream.is_some() || datagrams.is_some()) && now_boot_ns() < give_up_boot_ns {
            if let Some((from, to)) = &stream
                && step_tcp(from, to, &mut passages.tcp)
            {
                stream = None;
            }
            if let Some(socket) = &datagrams
                && self.step_udp(socket, now_boot_ns() >= deadline_boot_ns, &mut passages.udp)
            {
                datagrams = None;
            }
            std::thread::sleep(PACE);
        }
        Ok(passages)
    }

    /// One datagram. Returns whether the socket is done with.
    fn step_udp(&self, socket: &Socket, is_over: bool, passage: &mut Passage) -> bool {
        let sent = socket.send(b"x");
        while self.udp.recv(&mut [0; 16]).is_ok() {
            passage.last_arrival_boot_ns = now_boot_ns();
        }
        match sent {
            Err(error) if is_over && !is_try_again(&error) => {
                passage.closed = true;
                passage.refused = error.raw_os_error() == Some(Errno::EPERM as i32);
                true
            }
            _ => false,
        }
    }
}

/// Everything that must be denied, tried by this very process. Somebody need not listen on the port.
pub fn try_shut(port: u16) -> Vec<Try> {
    let four = SocketAddr::from((ADDRESS4, port));
    let six = SocketAddr::from((ADDRESS6, port));
    let mapped = SocketAddr::new(IpAddr::V6(ADDRESS4.to_ipv6_mapped()), port);
    let send = |from: SocketAddr, to: SocketAddr, cookie: &mut u64| {
        let socket = datagram_socket(Domain::for_address(to), 0, cookie)?;
        socket.bind(&from.into())?;
        socket.send_to(&[], &to.into()).map(drop)
    };
    vec![
        tried(Attempt::Tcp4, |cookie| connect(four, cookie).map(drop)),
        tried(Attempt::Tcp6, |cookie| connect(six, cookie).map(drop)),
        tried(Attempt::TcpMapped, |cookie| connect(mapped, cookie).map(drop)),
        tried(Attempt::Udp4, |cookie| send((Ipv4Addr::UNSPECIFIED, 0).into(), four, cookie)),
        tried(Attempt::Udp6, |cookie| send((Ipv6Addr::UNSPECIFIED, 0).into(), six, cookie)),
        tried(Attempt::UdpConnect, |cookie| datagram_socket(Domain::IPV4, 0, cookie)?.connect(&four.into())),
        tried(Attempt::Wire, |cookie| {
            let socket = datagram_socket(Domain::IPV4, UDP_LITE, cookie)?;
            socket.connect(&four.into())?;
            socket.send(&[]).map(drop)
        }),
    ]
}

/// `try_it` notes the cookie of its socket.
fn tried(attempt: Attempt, try_it: impl FnOnce(&mut u64) -> io::Result<()>) -> Try {
    let mut cookie = 0;
    let result = try_it(&mut cookie);
    Try { attempt, cookie, errno: errno_of(&result) }
}

/// One byte. Returns whether both ends know that it is over.
fn step_tcp(from: &Socket, mut to: &TcpStream, passage: &mut Passage) -> bool {
    let sent = from.send(b"x");
    let mut buffer = [0; 64];
    let received = loop {
        match to.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(_) => passage.last_arrival_boot_ns = now_boot_ns(),
            Err(error) => break Err(error),
        }
    };
    let sender_knows = sent.is_err_and(|error| !is_try_again(&error));
    let receiver_knows = received.is_ok() || received.is_err_and(|error| !is_try_again(&error));
    passage.closed = sender_knows && receiver_knows;
    passage.closed
}

fn is_try_again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn connect(to: SocketAddr, cookie: &mut u64) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    *cookie = socket.cookie()?;
    socket.connect_timeout(&to.into(), ANSWER_TIMEOUT)?;
    Ok(socket)
}

fn datagram_socket(domain: Domain, protocol: i32, cookie: &mut u64) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol.into()))?;
    *cookie = socket.cookie()?;
    Ok(socket)
}

/// The connection that has just been made. It is there at once: both ends are here.
fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    for _ in 0..ANSWER_TIMEOUT.as_millis() {
        match listener.accept() {
            Err(error) if is_try_again(&error) => std::thread::sleep(Duration::from_millis(1)),
            result => return result.map(|(stream, _)| stream),
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// 0: no error.
fn errno_of<T>(result: &io::Result<T>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(Errno::ETIMEDOUT as i32),
    }
}
