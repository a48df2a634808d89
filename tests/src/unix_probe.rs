//! Unix sockets at a path: processes in cgroups that try to reach one, and servers that count what arrives.
//!
//! The test binary is its own probe, as for [`probe`](crate::probe): started with [`FLAG`] it makes one attempt.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use agent::clock::now_boot_ns;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::process::{in_cgroup, output, wait_for};
use crate::sandbox::Cgroup;

/// The first argument of a probe.
pub const FLAG: &str = "--as-unix-probe";

/// How to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// Connect, send the marker, close.
    Stream,
    /// The same with sequenced packets.
    Packets,
    /// Send the marker to the path, unconnected.
    SendTo,
    /// Connect, then send a datagram.
    Datagram,
    /// [`Attempt::Stream`] from a mount namespace of one's own.
    StreamInNewNamespace,
    /// Connect, print `connected`, then write a byte every millisecond until that fails, and print with which error.
    Writes,
    /// The same with sequenced packets.
    WritesPackets,
    /// The same with datagrams, connected.
    WritesDatagrams,
    /// As [`Attempt::Writes`], out of a pipe, by `splice`.
    Splices,
    /// Connect, print `connected`, then read until nothing comes for three seconds, and print when the last byte came:
    /// `heard NANOSECONDS`, on the boot clock.
    Reads,
}

impl Attempt {
    const ALL: [Self; 10] = [
        Self::Stream,
        Self::Packets,
        Self::SendTo,
        Self::Datagram,
        Self::StreamInNewNamespace,
        Self::Writes,
        Self::WritesPackets,
        Self::WritesDatagrams,
        Self::Splices,
        Self::Reads,
    ];

    fn name(self) -> String {
        format!("{self:?}")
    }

    /// Of its socket.
    pub fn kind(self) -> Type {
        match self {
            Self::Packets | Self::WritesPackets => Type::SEQPACKET,
            Self::SendTo | Self::Datagram | Self::WritesDatagrams => Type::DGRAM,
            Self::Stream | Self::StreamInNewNamespace | Self::Writes | Self::Splices | Self::Reads => {
                Type::STREAM
            }
        }
    }
}

/// The command of a probe within `cgroup`.
pub fn command(cgroup: &Cgroup, attempt: Attempt, path: &Path, marker: &str) -> Result<Command> {
    let mut command = in_cgroup(cgroup, std::env::current_exe().context("this program's path")?);
    command.args([FLAG, &attempt.name()]).arg(path).arg(marker);
    Ok(command)
}

/// Makes one attempt from within `cgroup`. Gives `ok`, or the name of the error (`EPERM`).
pub fn run(cgroup: &Cgroup, attempt: Attempt, path: &Path, marker: &str) -> Result<String> {
    Ok(output(&mut command(cgroup, attempt, path, marker)?)?.trim().to_owned())
}

/// Does what a probe does, and ends the process, if it was started as one.
pub fn run_if_asked() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [flag, attempt, path, marker] = arguments.as_slice() else { return };
    if flag != FLAG {
        return;
    }
    let known = Attempt::ALL.into_iter().find(|known| known.name() == *attempt);
    let result = known.context("unknown attempt").and_then(|known| act(known, Path::new(path), marker));
    std::process::exit(match result {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(io::stderr(), "probe: {error:#}");
            1
        }
    });
}

fn act(attempt: Attempt, path: &Path, marker: &str) -> Result<()> {
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, attempt.kind(), None)?;
    let send = |socket: &Socket| socket.send(marker.as_bytes()).map(drop);
    let said = match attempt {
        Attempt::StreamInNewNamespace => {
            unshare(CloneFlags::CLONE_NEWNS)?;
            named(socket.connect(&address).and_then(|()| send(&socket)))
        }
        Attempt::Stream | Attempt::Packets | Attempt::Datagram => {
            named(socket.connect(&address).and_then(|()| send(&socket)))
        }
        Attempt::SendTo => named(socket.send_to(marker.as_bytes(), &address).map(drop)),
        Attempt::Writes | Attempt::WritesPackets | Attempt::WritesDatagrams => {
            named(writes(&socket, &address, |socket| socket.send(b"x").map(drop)))
        }
        Attempt::Splices => {
            let (reader, writer) = io::pipe()?;
            named(writes(&socket, &address, |socket| {
                (&writer).write_all(b"x")?;
                let length = 1;
                rustix::pipe::splice(
                    &reader,
                    None,
                    socket.as_fd(),
                    None,
                    length,
                    rustix::pipe::SpliceFlags::empty(),
                )?;
                Ok(())
            }))
        }
        Attempt::Reads => reads(socket, &address)?,
    };
    say(&said)?;
    Ok(())
}

fn say(text: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{text}").and_then(|()| io::stdout().flush())
}

fn writes(
    socket: &Socket,
    address: &SockAddr,
    mut write: impl FnMut(&Socket) -> io::Result<()>,
) -> io::Result<()> {
    socket.connect(address)?;
    say("connected")?;
    loop {
        write(socket)?;
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn reads(mut socket: Socket, address: &SockAddr) -> Result<String> {
    socket.connect(address)?;
    say("connected")?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    let (mut last_boot_ns, mut room) = (0, [0; 4096]);
    while let Ok(1..) = socket.read(&mut room) {
        last_boot_ns = now_boot_ns();
    }
    Ok(format!("heard {last_boot_ns}"))
}

fn named(result: io::Result<()>) -> String {
    match result.map_err(|error| error.raw_os_error().map(Errno::from_raw)) {
        Ok(()) => "ok".to_owned(),
        Err(Some(errno)) => format!("{errno:?}"),
        Err(None) => "no error number".to_owned(),
    }
}

/// A server at a path. Dropped, it ends, and leaves what lies at the path.
pub struct UnixServer {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    text: Mutex<Vec<u8>>,
    arrived: AtomicU64,
    last_boot_ns: AtomicU64,
    /// What the last write to whoever connected failed with; 0: none did.
    refused: AtomicU64,
    ends: AtomicBool,
}

impl UnixServer {
    /// Binds to `path`, in the place of what is there. It answers stream connections with a byte every millisecond.
    pub fn start(kind: Type, path: &Path) -> Result<Self> {
        let _ = std::fs::remove_file(path);
        let socket = Socket::new(Domain::UNIX, kind, None)?;
        socket.bind(&SockAddr::unix(path)?).with_context(|| format!("cannot bind to {}", path.display()))?;
        Self::serve(socket, kind, path)
    }

    /// The same, bound to a relative path, which other processes know as `path`.
    pub fn start_relative(path: &Path) -> Result<Self> {
        let (directory, name) = (path.parent().context("has one")?, path.file_name().context("has one")?);
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // A thread's own: others of this process may be in the middle of something.
        let bound = std::thread::scope(|scope| {
            let bind = || -> Result<()> {
                unshare(CloneFlags::CLONE_FS)?;
                std::env::set_current_dir(directory)?;
                Ok(socket.bind(&SockAddr::unix(name)?)?)
            };
            scope.spawn(bind).join()
        });
        bound.map_err(|_| anyhow::anyhow!("the thread panicked"))??;
        Self::serve(socket, Type::STREAM, path)
    }

    fn serve(socket: Socket, kind: Type, path: &Path) -> Result<Self> {
        if kind != Type::DGRAM {
            socket.listen(64)?;
        }
        socket.set_nonblocking(true)?;
        let shared = Arc::new(Shared::default());
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.serve(socket, kind)
        });
        Ok(Self { path: path.to_owned(), shared, thread: Some(thread) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes so far.
    pub fn arrived(&self) -> u64 {
        self.shared.arrived.load(Ordering::Acquire)
    }

    /// When the last of them came, on the boot clock.
    pub fn last_boot_ns(&self) -> u64 {
        self.shared.last_boot_ns.load(Ordering::Acquire)
    }

    /// Whether its last write to whoever connected was refused with EPERM.
    pub fn is_refused(&self) -> bool {
        self.shared.refused.load(Ordering::Acquire) == Errno::EPERM as u64
    }

    /// Whether a marker has arrived, or does soon.
    pub fn has_received(&self, marker: &str) -> bool {
        wait_for("the marker", Duration::from_secs(5), || Ok(self.holds(marker).then_some(()))).is_ok()
    }

    /// Whether a marker has arrived.
    pub fn holds(&self, marker: &str) -> bool {
        let text = self.shared.text.lock().unwrap_or_else(PoisonError::into_inner);
        text.windows(marker.len()).any(|window| window == marker.as_bytes())
    }
}

impl Drop for UnixServer {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn serve(&self, mut socket: Socket, kind: Type) {
        let mut connections: Vec<Socket> = Vec::new();
        while !self.ends.load(Ordering::Acquire) {
            if kind == Type::DGRAM {
                self.hear(&mut socket);
            } else if let Ok((connection, _)) = socket.accept()
                && connection.set_nonblocking(true).is_ok()
            {
                connections.push(connection);
            }
            connections.retain_mut(|connection| self.hear(connection));
            for connection in connections.iter().filter(|_| kind == Type::STREAM) {
                match connection.send(b"y") {
                    Ok(_) => self.refused.store(0, Ordering::Release),
                    // Nobody reads what it says.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => {
                        let number = error.raw_os_error().unwrap_or(-1);
                        self.refused.store(number as u64, Ordering::Release);
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Returns whether the other side is still there.
    fn hear(&self, socket: &mut Socket) -> bool {
        let mut room = [0; 4096];
        loop {
            match socket.read(&mut room) {
                Ok(0) => return false,
                Ok(length) => {
                    let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
                    text.extend_from_slice(&room[..length]);
                    self.arrived.fetch_add(length as u64, Ordering::AcqRel);
                    self.last_boot_ns.store(now_boot_ns(), Ordering::Release);
                }
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }
}

/// Whether an attempt gets a marker through to the server: `Ok` means that it arrived, `Err` that the caller was told EPERM and
/// nothing arrived; anything else is an error.
pub fn reaches(cgroup: &Cgroup, attempt: Attempt, path: &Path, server: &UnixServer) -> Result<bool> {
    let marker = format!("{attempt:?} {}", proto::types::GrantId::new());
    let result = run(cgroup, attempt, path, &marker)?;
    match result.as_str() {
        "ok" if server.has_received(&marker) => Ok(true),
        "EPERM" if !server.holds(&marker) => Ok(false),
        _ => bail!("{attempt:?} from {} to {}: {result}", cgroup.path, path.display()),
    }
}
