//! Load: one operation, repeated for a while, counted and timed.
//!
//! Owns: what exactly an operation does. Where both ends are in one thread, nothing waits for a scheduler: that thread's
//! processor time is the whole cost of the operation, whatever else runs on the machine.

use std::fmt::{self, Display};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::time::{ClockId, clock_gettime};

/// What is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Make a socket, connect, accept at the other end, close both. One thread.
    Connections,
    /// Connect to a server, wait for its first byte, close.
    Served,
    /// Send 64 bytes on one connection, wait for 64 bytes.
    RoundTrips,
    /// Send as much as goes on one connection. Counted in bytes.
    Bulk,
    /// Send 64 bytes from an unconnected UDP socket, receive them. One thread.
    Datagrams,
    /// Make a socket, have its connection refused with EPERM, close it. One thread.
    Denials,
}

impl Operation {
    const ALL: [Self; 6] =
        [Self::Connections, Self::Served, Self::RoundTrips, Self::Bulk, Self::Datagrams, Self::Denials];

    fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Served => "served",
            Self::RoundTrips => "round-trips",
            Self::Bulk => "bulk",
            Self::Datagrams => "datagrams",
            Self::Denials => "denials",
        }
    }
}

impl Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Operation {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|known| known.as_str() == text);
        known.with_context(|| format!("there is no operation `{text}`"))
    }
}

/// What was done in one slice of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Operations, or bytes.
    pub count: u64,
    /// How long it took.
    pub wall_ns: u64,
    /// Processor time of the thread that did it, in user space and in the kernel.
    pub thread_ns: u64,
}

/// Repeats the operation for `time`. Servers are expected where the operation needs one: see [`super::worker`].
pub fn run(operation: Operation, to: SocketAddr, time: Duration) -> Result<Slice> {
    match operation {
        Operation::Connections => connections(to, time),
        Operation::Served => served(to, time),
        Operation::RoundTrips => round_trips(to, time),
        Operation::Bulk => bulk(to, time),
        Operation::Datagrams => datagrams(to, time),
        Operation::Denials => denials(to, time),
    }
    .with_context(|| format!("{operation} to {to}"))
}

/// What is not counted at the beginning: pages, caches and branch predictors get to know what is coming.
const WARM_UP: u32 = 3;

fn repeat(time: Duration, mut operation: impl FnMut() -> Result<u64>) -> Result<Slice> {
    for _ in 0..WARM_UP {
        operation()?;
    }
    let (began, thread_began) = (Instant::now(), thread_time()?);
    let mut count = 0;
    loop {
        count += operation()?;
        let wall = began.elapsed();
        if wall >= time {
            let thread_ns = thread_time()?.saturating_sub(thread_began).as_nanos() as u64;
            return Ok(Slice { count, wall_ns: wall.as_nanos() as u64, thread_ns });
        }
    }
}

fn thread_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

fn connections(to: SocketAddr, time: Duration) -> Result<Slice> {
    let listener = TcpListener::bind(to)?;
    repeat(time, || {
        let client = TcpStream::connect(to)?;
        let (server, _) = listener.accept()?;
        reset_on_close(&client)?;
        drop(client);
        drop(server);
        Ok(1)
    })
}

/// Closes with RST: otherwise tens of thousands of connections would stay behind in TIME_WAIT.
pub(super) fn reset_on_close(stream: &TcpStream) -> Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    Ok(setsockopt(stream, sockopt::Linger, &linger)?)
}

fn served(to: SocketAddr, time: Duration) -> Result<Slice> {
    repeat(time, || {
        let mut stream = TcpStream::connect(to)?;
        stream.read_exact(&mut [0])?;
        reset_on_close(&stream)?;
        Ok(1)
    })
}

fn round_trips(to: SocketAddr, time: Duration) -> Result<Slice> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    let mut buffer = [0; 64];
    let slice = repeat(time, || {
        stream.write_all(&buffer)?;
        stream.read_exact(&mut buffer)?;
        Ok(1)
    });
    reset_on_close(&stream)?;
    slice
}

fn bulk(to: SocketAddr, time: Duration) -> Result<Slice> {
    let mut stream = TcpStream::connect(to)?;
    let buffer = vec![0; 128 * 1024];
    // Until the windows are open.
    for _ in 0..64 {
        stream.write_all(&buffer)?;
    }
    let slice = repeat(time, || {
        stream.write_all(&buffer)?;
        Ok(buffer.len() as u64)
    });
    reset_on_close(&stream)?;
    slice
}

fn datagrams(to: SocketAddr, time: Duration) -> Result<Slice> {
    let receiver = UdpSocket::bind(to)?;
    let sender = udp_socket(to)?;
    let mut buffer = [0; 64];
    repeat(time, || {
        sender.send_to(&buffer, to)?;
        receiver.recv(&mut buffer)?;
        Ok(1)
    })
}

/// An unconnected socket for destinations of this family.
pub(super) fn udp_socket(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, 0))
}

fn denials(to: SocketAddr, time: Duration) -> Result<Slice> {
    repeat(time, || match TcpStream::connect(to) {
        Err(error) if error.raw_os_error() == Some(Errno::EPERM as i32) => Ok(1),
        other => bail!("expected EPERM, found {other:?}"),
    })
}
