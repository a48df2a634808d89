//! The process that tries, and the one that lends it a socket. The test binary is both: see [`run_if_asked`].
//!
//! A probe prints `paused` when its socket is ready and it was told to wait, goes on when it reads a line, prints
//! `done OUTCOME`, and ends, closing its sockets, when its standard input is closed.

use std::fs;
use std::io::{self, BufRead, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use rustix::thread::{CapabilitySet, CapabilitySets};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::scene::Scene;
use crate::technique::{Lent, MPTCP, Needs, Start, Technique};

/// The first argument of a probe; its scene follows.
pub(crate) const PROBE: &str = "--as-bypass-probe";
/// The first argument of a lender; what it lends, where it listens, its cgroup, and the two addresses follow.
pub(crate) const LENDER: &str = "--as-bypass-lender";

/// An account that nobody has.
const UID: u32 = 4242;

/// How long an attempt waits for an answer that may never come. A connection within one machine takes less than this.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);

/// What a technique works with.
pub(crate) struct Probe {
    pub(crate) scene: Scene,
    needs: Needs,
    /// Open until the end of the process.
    kept: Vec<OwnedFd>,
}

impl Probe {
    pub(crate) fn marker(&self) -> Vec<u8> {
        self.scene.marker.clone().into_bytes()
    }

    pub(crate) fn to(&self) -> SocketAddr {
        self.scene.to
    }

    /// Waits for the grant to end, if that is what is tried.
    pub(crate) fn pause(&self) -> io::Result<()> {
        if self.scene.pauses {
            say("paused")?;
            io::stdin().lock().read_line(&mut String::new())?;
        }
        Ok(())
    }

    /// Keeps it open until the end of the process.
    pub(crate) fn keep(&mut self, file: impl Into<OwnedFd>) {
        self.kept.push(file.into());
    }

    /// Connects, waits if asked, sends the marker.
    pub(crate) fn connect_and_send(&mut self, socket: Socket, to: SocketAddr) -> io::Result<()> {
        connect(&socket, &to.into())?;
        self.send(socket)
    }

    /// Waits if asked, sends the marker on a connected socket.
    pub(crate) fn send(&mut self, socket: Socket) -> io::Result<()> {
        self.pause()?;
        let result = socket.send(&self.marker());
        self.keep(socket);
        result.map(drop)
    }

    /// Waits if asked, sends the marker to an address.
    pub(crate) fn send_to(&mut self, socket: Socket, to: SocketAddr, flags: i32) -> io::Result<()> {
        self.pause()?;
        let result = socket.send_to_with_flags(&self.marker(), &to.into(), flags);
        self.keep(socket);
        result.map(drop)
    }

    /// Moves this process into a cgroup.
    pub(crate) fn enter(&self, cgroup: &Path) -> io::Result<()> {
        fs::write(cgroup.join("cgroup.procs"), "0")
    }

    /// Keeps no more privilege than the technique needs.
    pub(crate) fn drop_privileges(&self) -> io::Result<()> {
        let kept = match self.needs {
            Needs::Root => return Ok(()),
            Needs::Nothing => CapabilitySet::empty(),
            Needs::NetRaw => CapabilitySet::NET_RAW,
            Needs::NetAdmin => CapabilitySet::NET_ADMIN,
        };
        become_nobody(kept)
    }

    /// The lender's socket, handed over.
    pub(crate) fn borrow(&self) -> io::Result<OwnedFd> {
        Ok(self.ask_lender()?.0)
    }

    /// The lender's process and the number of its socket there.
    pub(crate) fn lender(&self) -> io::Result<(i32, RawFd)> {
        let (_, pid, number) = self.ask_lender()?;
        Ok((pid, number))
    }

    fn ask_lender(&self) -> io::Result<(OwnedFd, i32, RawFd)> {
        let path = self.scene.lender.as_ref().ok_or_else(|| io::Error::other("there is no lender"))?;
        let stream = UnixStream::connect(path)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut text = [0; 64];
        let message =
            recvmsg(&stream, &mut [IoSliceMut::new(&mut text)], &mut ancillary, RecvFlags::empty())?;
        let file = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        });
        let text = String::from_utf8_lossy(&text[..message.bytes]).into_owned();
        let mut numbers = text.split_whitespace().map_while(|number| number.parse().ok());
        match (file, numbers.next(), numbers.next()) {
            (Some(file), Some(pid), Some(number)) => Ok((file, pid, number)),
            _ => Err(io::Error::other(format!("the lender says {text:?}"))),
        }
    }
}

/// Connects, or gives up.
pub(crate) fn connect(socket: &Socket, to: &SockAddr) -> io::Result<()> {
    socket.connect_timeout(to, CONNECT_TIMEOUT)
}

/// A socket for IP.
pub(crate) fn ip_socket(to: SocketAddr, kind: Type, protocol: i32) -> io::Result<Socket> {
    let protocol = (protocol != 0).then(|| Protocol::from(protocol));
    Socket::new(Domain::for_address(to), kind, protocol)
}

pub(crate) fn tcp_socket(to: SocketAddr) -> io::Result<Socket> {
    ip_socket(to, Type::STREAM, 0)
}

pub(crate) fn udp_socket(to: SocketAddr) -> io::Result<Socket> {
    ip_socket(to, Type::DGRAM, 0)
}

fn become_nobody(capabilities: CapabilitySet) -> io::Result<()> {
    rustix::thread::set_keep_capabilities(true)?;
    setgroups(&[])?;
    let (uid, gid) = (Uid::from_raw(UID), Gid::from_raw(UID));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    let sets = CapabilitySets {
        effective: capabilities,
        permitted: capabilities,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets)?;
    // Changing the account made this process untouchable, also to itself.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)?;
    Ok(())
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush())
}

/// Does what a probe or a lender does, and ends the process, if it was started as one.
pub(crate) fn run_if_asked(techniques: &[&Technique]) {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        [PROBE, scene] => try_technique(scene, techniques),
        [LENDER, lent, path, cgroup, to] => lend(lent, Path::new(path), Path::new(cgroup), to),
        _ => return,
    };
    std::process::exit(match result {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(io::stderr(), "probe: {error:#}");
            1
        }
    });
}

fn try_technique(scene: &str, techniques: &[&Technique]) -> Result<()> {
    let scene = Scene::from_text(scene)?;
    let technique = techniques
        .iter()
        .find(|technique| technique.name == scene.technique)
        .with_context(|| format!("there is no technique `{}`", scene.technique))?;
    if let Some(namespace) = &scene.namespace {
        let file = fs::File::open(namespace).context("cannot open the network namespace")?;
        setns(file, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
    }
    let mut probe = Probe { scene, needs: technique.needs, kept: Vec::new() };
    if technique.start == Start::Sender {
        probe.enter(&probe.scene.cgroup).context("cannot enter the sender's cgroup")?;
        probe.drop_privileges().context("cannot drop privileges")?;
    }
    let result = (technique.run)(&mut probe);
    say(&format!("done {}", name(&result)))?;
    // Sockets stay open: what is queued in them must not be let go with the next grant either.
    io::stdin().lock().read_line(&mut String::new())?;
    Ok(())
}

/// `ok`, the name of an error number, or the error's text.
fn name(result: &io::Result<()>) -> String {
    match result {
        Ok(()) => "ok".to_owned(),
        Err(error) => match error.raw_os_error() {
            Some(number) => format!("{:?}", Errno::from_raw(number)),
            None if error.kind() == io::ErrorKind::TimedOut => "timeout".to_owned(),
            None => error.to_string(),
        },
    }
}

/// Makes a socket in its cgroup and hands it to whoever asks, until standard input is closed.
fn lend(lent: &str, path: &Path, cgroup: &Path, to: &str) -> Result<()> {
    let to: SocketAddr = to.parse()?;
    if !cgroup.as_os_str().is_empty() {
        fs::write(cgroup.join("cgroup.procs"), "0").context("cannot enter the lender's cgroup")?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
    become_nobody(CapabilitySet::empty())?;
    // Whoever has the same account may look into this process, as on a machine without Yama.
    let _ = rustix::process::set_ptracer(rustix::process::PTracer::Any);
    let lent = Lent::ALL.into_iter().find(|known| known.as_str() == lent).context("an unknown socket")?;
    let socket = match lent {
        Lent::Tcp | Lent::TcpConnected => tcp_socket(to)?,
        Lent::MptcpConnected => ip_socket(to, Type::STREAM, MPTCP)?,
        Lent::Udp | Lent::UdpConnected => udp_socket(to)?,
    };
    if !matches!(lent, Lent::Tcp | Lent::Udp) {
        connect(&socket, &to.into()).context("the lender cannot connect")?;
    }
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let sent = stream.map_err(anyhow::Error::from).and_then(|stream| hand_over(&stream, &socket));
            if let Err(error) = sent {
                let _ = writeln!(io::stderr(), "lender: {error:#}");
            }
        }
    });
    say("ready")?;
    io::stdin().lock().read_line(&mut String::new())?;
    Ok(())
}

fn hand_over(stream: &UnixStream, socket: &Socket) -> Result<()> {
    let text = format!("{} {}", std::process::id(), socket.as_raw_fd());
    let files = [socket.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&files)) {
        bail!("there is no room for one descriptor");
    }
    sendmsg(stream, &[IoSlice::new(text.as_bytes())], &mut ancillary, SendFlags::empty())?;
    Ok(())
}

impl Lent {
    const ALL: [Self; 5] =
        [Self::Tcp, Self::TcpConnected, Self::MptcpConnected, Self::Udp, Self::UdpConnected];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::TcpConnected => "tcp-connected",
            Self::MptcpConnected => "mptcp-connected",
            Self::Udp => "udp",
            Self::UdpConnected => "udp-connected",
        }
    }
}

/// An address as it lies in memory, with any family in front.
pub(crate) fn raw_address(family: i32, to: SocketAddr) -> Vec<u8> {
    let mut bytes = (family as u16).to_ne_bytes().to_vec();
    bytes.extend(to.port().to_be_bytes());
    match to {
        SocketAddr::V4(to) => bytes.extend([&to.ip().octets()[..], &[0; 8]].concat()),
        SocketAddr::V6(to) => bytes.extend([&[0; 4][..], &to.ip().octets(), &[0; 4]].concat()),
    }
    bytes
}

/// Undoes a `connect`.
pub(crate) fn disconnect(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut address = [0; 16];
    address[..2].copy_from_slice(&(libc::AF_UNSPEC as u16).to_ne_bytes());
    tests::raw::connect(socket, &address)
}
