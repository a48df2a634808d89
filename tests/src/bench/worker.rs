//! Workers, which make load from a cgroup and network namespace of their own, and servers that answer them.
//!
//! Both are this program, started with another first argument, and end with their standard input. A worker reads one
//! line for each slice of load, `OPERATION ADDRESS MILLISECONDS` or `flood ADDRESS MILLISECONDS RATE`, and answers with
//! one line.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::load::{self, Operation, Slice};
use crate::cleanup;

const AS_WORKER: &str = "--as-worker";
const AS_SERVER: &str = "--as-server";

// Ports of a server, counted from the first one.

/// Free: workers listen there themselves, TCP and UDP.
pub const OWN: u16 = 0;
/// Says one byte.
pub const GREETING: u16 = 1;
/// Says what it hears.
pub const ECHO: u16 = 2;
/// Hears.
pub const SINK: u16 = 3;
/// UDP; never reads.
pub const DEAF: u16 = 4;

/// Does what a worker or server does, and ends the process, if it was started as one.
pub fn run_if_asked() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [AS_WORKER] => work(),
        [AS_SERVER, addresses @ ..] => serve(addresses),
        _ => return,
    };
    std::process::exit(match result {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(io::stderr(), "worker: {error:#}");
            1
        }
    });
}

fn work() -> Result<()> {
    say("ready")?;
    for line in io::stdin().lines() {
        let line = line?;
        match obey(&line) {
            Ok(Slice { count, wall_ns, thread_ns }) => say(&format!("{count} {wall_ns} {thread_ns}"))?,
            Err(error) => say(&format!("error: {error:#}"))?,
        }
    }
    Ok(())
}

fn say(line: &str) -> Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("nobody listens")
}

fn obey(line: &str) -> Result<Slice> {
    let words: Vec<&str> = line.split(' ').collect();
    let time = |text: &str| Ok::<_, anyhow::Error>(Duration::from_millis(text.parse()?));
    match words.as_slice() {
        ["flood", to, milliseconds, rate] => flood(to.parse()?, time(milliseconds)?, rate.parse()?),
        [operation, to, milliseconds] => load::run(operation.parse()?, to.parse()?, time(milliseconds)?),
        _ => bail!("cannot make sense of {line:?}"),
    }
}

/// Sends datagrams from one thread for each processor, `rate` a second in all; 0: as fast as they go. Counts those that
/// were sent and those that were refused: each is a verdict.
fn flood(to: SocketAddr, time: Duration, rate: u64) -> Result<Slice> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let rate = rate / threads as u64;
    let began = Instant::now();
    let senders: Vec<_> = (0..threads).map(|_| thread::spawn(move || send(to, began, time, rate))).collect();
    let mut count = 0;
    for sender in senders {
        count += sender.join().map_err(|_| anyhow::anyhow!("a sender panicked"))??;
    }
    Ok(Slice { count, wall_ns: began.elapsed().as_nanos() as u64, thread_ns: 0 })
}

fn send(to: SocketAddr, began: Instant, time: Duration, rate: u64) -> Result<u64> {
    const BURST: u64 = 64;
    let socket = load::udp_socket(to)?;
    let mut count = 0;
    while began.elapsed() < time {
        if rate > 0 && count as u128 * 1_000_000_000 > began.elapsed().as_nanos() * u128::from(rate) {
            thread::sleep(Duration::from_micros(50));
            continue;
        }
        for _ in 0..BURST {
            match socket.send_to(&[0; 16], to) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(Errno::EPERM as i32) => {}
                Err(error) => return Err(error.into()),
            }
        }
        count += BURST;
    }
    Ok(count)
}

/// Serves at these addresses, each with the port to count from, and at ::1 with the same ports.
fn serve(addresses: &[&str]) -> Result<()> {
    for address in addresses {
        let v4: SocketAddr = address.parse()?;
        for at in [v4, SocketAddr::new(Ipv6Addr::LOCALHOST.into(), v4.port())] {
            let listen = |offset| TcpListener::bind(SocketAddr::new(at.ip(), at.port() + offset));
            let (greeting, echo, sink) = (listen(GREETING)?, listen(ECHO)?, listen(SINK)?);
            let deaf = UdpSocket::bind(SocketAddr::new(at.ip(), at.port() + DEAF))?;
            thread::spawn(move || greet(&greeting));
            thread::spawn(move || each(&echo, repeat_back));
            thread::spawn(move || each(&sink, swallow));
            // It stays open, and fills up.
            std::mem::forget(deaf);
        }
    }
    say("ready")?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn greet(listener: &TcpListener) {
    /// The client closes first, with RST: whoever closed first otherwise would be left with a connection in TIME_WAIT.
    const OPEN_MAX: usize = 64;
    let mut open = VecDeque::new();
    while let Ok((mut stream, _)) = listener.accept() {
        let _ = stream.write_all(b"!");
        open.push_back(stream);
        if open.len() > OPEN_MAX {
            open.pop_front();
        }
    }
}

fn each(listener: &TcpListener, serve: fn(TcpStream) -> io::Result<()>) {
    while let Ok((stream, _)) = listener.accept() {
        // Clients come one by one; that one is reset is how it ends.
        let _ = serve(stream);
    }
}

fn repeat_back(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 64];
    loop {
        stream.read_exact(&mut buffer)?;
        stream.write_all(&buffer)?;
    }
}

fn swallow(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    while stream.read(&mut buffer)? > 0 {}
    Ok(())
}

/// A worker or server, seen from who started it. Dropped, it is killed.
pub struct Worker {
    _cleanup: cleanup::Entry,
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts a worker: `prefix` is a command that becomes the worker.
    pub fn start(prefix: Command) -> Result<Self> {
        Self::spawn(prefix, &[AS_WORKER.to_owned()])
    }

    /// Starts a server that counts its ports from those of each address.
    pub fn serve(prefix: Command, addresses: &[SocketAddr]) -> Result<Self> {
        let addresses = addresses.iter().map(ToString::to_string);
        Self::spawn(prefix, &[AS_SERVER.to_owned()].into_iter().chain(addresses).collect::<Vec<_>>())
    }

    fn spawn(mut command: Command, arguments: &[String]) -> Result<Self> {
        command.arg(std::env::current_exe().context("this program's path")?).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let pid = Pid::from_raw(child.id() as i32);
        let cleanup = cleanup::register(move || {
            let _ = kill(pid, Signal::SIGKILL);
        });
        let to = child.stdin.take().context("its input is a pipe")?;
        let from = BufReader::new(child.stdout.take().context("its output is a pipe")?);
        let mut worker = Self { _cleanup: cleanup, child, to, from };
        let first = worker.hear().with_context(|| format!("cannot start {command:?}"))?;
        match first.as_str() {
            "ready" => Ok(worker),
            other => bail!("a worker began with {other:?}"),
        }
    }

    /// Its process id, which is also the way into its network namespace.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it repeat an operation for a while.
    pub fn repeat(&mut self, operation: Operation, to: SocketAddr, time: Duration) -> Result<Slice> {
        self.ask(&format!("{operation} {to} {}", time.as_millis()))
    }

    /// Has it send datagrams: see [`flood`].
    pub fn flood(&mut self, to: SocketAddr, time: Duration, rate: u64) -> Result<Slice> {
        self.ask(&format!("flood {to} {} {rate}", time.as_millis()))
    }

    fn ask(&mut self, line: &str) -> Result<Slice> {
        writeln!(self.to, "{line}").context("a worker has ended")?;
        let answer = self.hear()?;
        let numbers: Vec<u64> = answer.split(' ').filter_map(|word| word.parse().ok()).collect();
        match numbers.as_slice() {
            [count, wall_ns, thread_ns] => {
                Ok(Slice { count: *count, wall_ns: *wall_ns, thread_ns: *thread_ns })
            }
            _ => bail!("{line}: {answer}"),
        }
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        match self.from.read_line(&mut line)? {
            0 => bail!("a worker has ended: {}", self.child.wait()?),
            _ => Ok(line.trim().to_owned()),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
