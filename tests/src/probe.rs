//! A process in a cgroup that tries to get through, and says what came of it.
//!
//! The test binary is its own probe: started with [`FLAG`] it does one attempt and ends.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use proto::types::Protocol;

use crate::listener::StreamServer;
use crate::process::{in_cgroup, output};
use crate::raw;
use crate::sandbox::Cgroup;

/// The first argument of a probe.
pub const FLAG: &str = "--as-probe";

/// How to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// Connect, send the marker, close.
    Tcp,
    /// Send the marker to the address, unconnected.
    UdpSend,
    /// Connect, then send.
    UdpConnect,
    /// Connect every millisecond, and print each attempt: boot clock in nanoseconds when it began, and what came of it.
    TcpEveryMillisecond,
    /// Connect some times every millisecond until standard input is closed; print how often that was refused, of how many.
    TcpFlood,
    /// Connect, print `connected`, then write a byte every millisecond until that fails, and print with which error.
    TcpStream,
    /// The same with a connected UDP socket.
    UdpStream,
    /// Connect, send the marker, read until the other side closes.
    TcpRead,
    /// Connect, send the marker, and be gone without a word: the socket is taken away, and says no farewell.
    TcpVanish,
    /// Connect with a keepalive each second, print `connected`, then read until that fails or the other side closes.
    TcpListen,
    /// The same as [`Attempt::TcpStream`], to a server of its own in a network namespace of its own; prints `arrived N`, how
    /// many bytes the server got, at the end.
    TcpStreamInNewNamespace,
}

impl Attempt {
    const ALL: [Self; 11] = [
        Self::Tcp,
        Self::UdpSend,
        Self::UdpConnect,
        Self::TcpEveryMillisecond,
        Self::TcpFlood,
        Self::TcpStream,
        Self::UdpStream,
        Self::TcpRead,
        Self::TcpVanish,
        Self::TcpListen,
        Self::TcpStreamInNewNamespace,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::UdpSend => "udp-send",
            Self::UdpConnect => "udp-connect",
            Self::TcpEveryMillisecond => "tcp-every-millisecond",
            Self::TcpFlood => "tcp-flood",
            Self::TcpStream => "tcp-stream",
            Self::UdpStream => "udp-stream",
            Self::TcpRead => "tcp-read",
            Self::TcpVanish => "tcp-vanish",
            Self::TcpListen => "tcp-listen",
            Self::TcpStreamInNewNamespace => "tcp-stream-in-new-namespace",
        }
    }
}

/// The command of a probe within `cgroup`. A mapped IPv6 address is used from an IPv6 socket.
pub fn command(cgroup: &Cgroup, attempt: Attempt, to: SocketAddr, marker: &str) -> Result<Command> {
    let program = std::env::current_exe().context("this program's path")?;
    let mut command = in_cgroup(cgroup, program);
    command.args([FLAG, attempt.as_str(), &to.to_string(), marker]);
    Ok(command)
}

/// Makes one attempt from within `cgroup`. Gives `ok`, or the name of the error (`EPERM`).
pub fn run(cgroup: &Cgroup, attempt: Attempt, to: SocketAddr, marker: &str) -> Result<String> {
    Ok(output(&mut command(cgroup, attempt, to, marker)?)?.trim().to_owned())
}

/// Does what a probe does, and ends the process, if it was started as one; as a canary, too.
pub fn run_if_asked() {
    let all: Vec<String> = std::env::args().skip(1).collect();
    if let [verb, cgroup] = all.as_slice()
        && verb == "canary"
    {
        let result = agent::canary::serve(cgroup.as_ref());
        std::process::exit(i32::from(result.is_err()));
    }
    let mut arguments = all.into_iter();
    if arguments.next().as_deref() == Some(FLAG) {
        let result = attempt_from(arguments.collect());
        std::process::exit(match result {
            Ok(()) => 0,
            Err(error) => {
                let _ = writeln!(io::stderr(), "probe: {error:#}");
                1
            }
        });
    }
}

fn attempt_from(arguments: Vec<String>) -> Result<()> {
    let [attempt, to, marker] = arguments.as_slice() else { bail!("three arguments are expected") };
    let attempt =
        Attempt::ALL.into_iter().find(|known| known.as_str() == attempt).context("unknown attempt")?;
    let to: SocketAddr = to.parse()?;
    let mut out = io::stdout();
    match attempt {
        Attempt::Tcp => writeln!(out, "{}", name(tcp(to, marker)))?,
        Attempt::UdpSend => writeln!(out, "{}", name(udp_send(to, marker)))?,
        Attempt::UdpConnect => writeln!(out, "{}", name(udp_connect(to, marker)))?,
        Attempt::TcpRead => writeln!(out, "{}", name(tcp_read(to, marker)))?,
        Attempt::TcpVanish => writeln!(out, "{}", name(tcp_vanish(to, marker)))?,
        Attempt::TcpListen => {
            let mut stream = TcpStream::connect(to)?;
            let every = Duration::from_secs(1);
            let keepalive = socket2::TcpKeepalive::new().with_time(every).with_interval(every);
            socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
            writeln!(out, "connected").and_then(|()| out.flush())?;
            writeln!(out, "{}", name(stream.read_to_end(&mut Vec::new()).map(drop)))?;
        }
        Attempt::TcpEveryMillisecond => loop {
            let began_boot_ns = agent::clock::now_boot_ns();
            let result = name(tcp(to, marker));
            if writeln!(out, "{began_boot_ns} {result}").and_then(|()| out.flush()).is_err() {
                // Nobody listens any more.
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        },
        Attempt::TcpFlood => {
            let (refused, all) = flood(to);
            writeln!(out, "{refused} {all}")?;
        }
        Attempt::TcpStream => {
            let stream = TcpStream::connect(to);
            stream_bytes(&mut out, stream, |stream, byte| stream.write_all(byte))?;
        }
        Attempt::UdpStream => {
            let socket = udp_socket(to).and_then(|socket| socket.connect(to).map(|()| socket));
            stream_bytes(&mut out, socket, |socket, byte| socket.send(byte).map(drop))?;
        }
        Attempt::TcpStreamInNewNamespace => {
            unshare(CloneFlags::CLONE_NEWNET)?;
            output(Command::new("ip").args(["link", "set", "lo", "up"]))?;
            let server = StreamServer::start(Protocol::Tcp, to)?;
            stream_bytes(&mut out, TcpStream::connect(to), |stream, byte| stream.write_all(byte))?;
            writeln!(out, "arrived {}", server.arrived())?;
        }
    }
    Ok(())
}

/// Writes until it cannot, telling how it goes.
fn stream_bytes<S>(
    out: &mut impl Write,
    connected: io::Result<S>,
    mut write: impl FnMut(&mut S, &[u8]) -> io::Result<()>,
) -> Result<()> {
    let result = connected.and_then(|mut connection| {
        writeln!(out, "connected").and_then(|()| out.flush())?;
        loop {
            write(&mut connection, b"x")?;
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    writeln!(out, "{}", name(result)).and_then(|()| out.flush())?;
    Ok(())
}

/// Ends when standard input does.
fn flood(to: SocketAddr) -> (u64, u64) {
    const AT_A_TIME: usize = 4;
    let reader = std::thread::spawn(|| io::stdin().read_to_end(&mut Vec::new()).map(drop));
    let (mut refused, mut all) = (0, 0);
    while !reader.is_finished() {
        for _ in 0..AT_A_TIME {
            let result = TcpStream::connect(to);
            refused += u64::from(result.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied));
            all += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    (refused, all)
}

fn tcp(to: SocketAddr, marker: &str) -> io::Result<()> {
    TcpStream::connect_timeout(&to, Duration::from_secs(5))?.write_all(marker.as_bytes())
}

fn tcp_read(to: SocketAddr, marker: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.write_all(marker.as_bytes())?;
    stream.read_to_end(&mut Vec::new()).map(drop)
}

fn tcp_vanish(to: SocketAddr, marker: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.write_all(marker.as_bytes())?;
    raw::set_option(stream.as_fd(), libc::IPPROTO_TCP, libc::TCP_REPAIR, &1i32.to_ne_bytes())
}

fn udp_send(to: SocketAddr, marker: &str) -> io::Result<()> {
    udp_socket(to)?.send_to(marker.as_bytes(), to).map(drop)
}

fn udp_connect(to: SocketAddr, marker: &str) -> io::Result<()> {
    let socket = udp_socket(to)?;
    socket.connect(to)?;
    socket.send(marker.as_bytes()).map(drop)
}

fn udp_socket(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_broadcast(true)?;
    Ok(socket)
}

fn name(result: io::Result<()>) -> String {
    match result.map_err(|error| error.raw_os_error().map(Errno::from_raw)) {
        Ok(()) => "ok".to_owned(),
        Err(Some(errno)) => format!("{errno:?}"),
        Err(None) => "timeout".to_owned(),
    }
}
