//! Processes in cgroups that ask for sockets, lend them, and are handed them.
//!
//! The test binary is its own probe, as for [`probe`](crate::probe): started with [`FLAG`] it does what it is asked, and says
//! what came of it: `ok`, or the name of the error.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use socket2::{Domain, Protocol, Socket, Type};

use crate::process::{in_cgroup, output};
use crate::sandbox::Cgroup;

/// The first argument of a probe.
pub const FLAG: &str = "--as-socket-probe";

/// What a receiver says that was sent a file and got none.
pub const KEPT_FROM_IT: &str = "truncated";

/// Asks for a socket from within `cgroup`.
pub fn ask(cgroup: &Cgroup, family: u8, kind: Type, protocol: i32) -> Result<String> {
    run(cgroup, &["ask", &family.to_string(), &i32::from(kind).to_string(), &protocol.to_string()])
}

/// Is handed the lender's connection within `cgroup`, by a message on a unix socket.
pub fn receive(cgroup: &Cgroup, lender: &Lender) -> Result<String> {
    run(cgroup, &["receive", &lender.path.display().to_string()])
}

/// Takes the lender's connection within `cgroup`, as a debugger could.
pub fn take(cgroup: &Cgroup, lender: &Lender) -> Result<String> {
    run(cgroup, &["take", &lender.child.id().to_string(), &lender.number])
}

/// Is handed the lender's socket, which leads nowhere yet, and connects it to `to` from within `cgroup`.
pub fn connect(cgroup: &Cgroup, lender: &Lender, to: SocketAddr) -> Result<String> {
    run(cgroup, &["connect", &to.to_string(), &lender.path.display().to_string()])
}

fn run(cgroup: &Cgroup, arguments: &[&str]) -> Result<String> {
    Ok(output(command(cgroup)?.args(arguments))?.trim().to_owned())
}

fn command(cgroup: &Cgroup) -> Result<Command> {
    let mut command = in_cgroup(cgroup, std::env::current_exe().context("this program's path")?);
    command.arg(FLAG);
    Ok(command)
}

/// A process that has a socket, and hands it to whoever asks. Dropped, it ends.
pub struct Lender {
    child: Child,
    path: PathBuf,
    /// Of its descriptor.
    number: String,
}

impl Lender {
    /// Connects to `to` from within `cgroup`. Who wants the connection is to ask at `path`.
    pub fn start(cgroup: &Cgroup, to: SocketAddr, path: PathBuf) -> Result<Self> {
        Self::start_with(cgroup, &["lend", &to.to_string()], path)
    }

    /// The same, to a unix socket.
    pub fn start_unix(cgroup: &Cgroup, to: &Path, path: PathBuf) -> Result<Self> {
        Self::start_with(cgroup, &["lend-unix", &to.display().to_string()], path)
    }

    /// The same of a TCP socket that is not connected.
    pub fn start_unconnected(cgroup: &Cgroup, path: PathBuf) -> Result<Self> {
        Self::start_with(cgroup, &["lend-unconnected"], path)
    }

    fn start_with(cgroup: &Cgroup, arguments: &[&str], path: PathBuf) -> Result<Self> {
        let mut command = command(cgroup)?;
        command.args(arguments).arg(&path);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("the lender's output")?).read_line(&mut line)?;
        let number = line.strip_prefix("lends ").map(|number| number.trim().to_owned());
        match number {
            Some(number) => Ok(Self { child, path, number }),
            None => bail!("the lender says {line:?} and {}", child.wait()?),
        }
    }
}

impl Drop for Lender {
    fn drop(&mut self) {
        // It ends with its input.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Does what a probe does, and ends the process, if it was started as one.
pub fn run_if_asked() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((FLAG, rest)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) else {
        return;
    };
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    std::process::exit(match act(&rest) {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(io::stderr(), "probe: {error:#}");
            1
        }
    });
}

fn act(arguments: &[&str]) -> Result<()> {
    let result = match *arguments {
        ["ask", family, kind, protocol] => {
            let (domain, kind) = (Domain::from(family.parse::<i32>()?), Type::from(kind.parse::<i32>()?));
            named(Socket::new(domain, kind, Some(Protocol::from(protocol.parse::<i32>()?))).map(drop))
        }
        ["receive", path] => match received(Path::new(path))? {
            Some(_) => "ok".to_owned(),
            None => KEPT_FROM_IT.to_owned(),
        },
        ["connect", to, path] => {
            let socket = received(Path::new(path))?.context("the lender's socket was kept from it")?;
            named(Socket::from(socket).connect(&to.parse::<SocketAddr>()?.into()))
        }
        ["take", pid, number] => {
            let pid = Pid::from_raw(pid.parse()?).context("a process id is not 0")?;
            let process = pidfd_open(pid, PidfdFlags::empty())?;
            named(
                pidfd_getfd(process, number.parse()?, PidfdGetfdFlags::empty()).map(drop).map_err(Into::into),
            )
        }
        ["lend", to, path] => {
            let connection = TcpStream::connect(to).context("the lender cannot connect")?;
            return lend(connection.into(), Path::new(path));
        }
        ["lend-unix", to, path] => {
            let connection = UnixStream::connect(to).context("the lender cannot connect")?;
            return lend(connection.into(), Path::new(path));
        }
        ["lend-unconnected", path] => {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).context("the lender has no socket")?;
            return lend(socket.into(), Path::new(path));
        }
        _ => bail!("a socket probe does not know {arguments:?}"),
    };
    writeln!(io::stdout(), "{result}")?;
    Ok(())
}

fn named(result: io::Result<()>) -> String {
    match result.map_err(|error| error.raw_os_error().map(Errno::from_raw)) {
        Ok(()) => "ok".to_owned(),
        Err(Some(errno)) => format!("{errno:?}"),
        Err(None) => "no error number".to_owned(),
    }
}

/// The file that whoever listens at `path` hands over. None: it was kept from us.
pub fn received(path: &Path) -> Result<Option<OwnedFd>> {
    let stream = UnixStream::connect(path)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; 1];
    let message = recvmsg(&stream, &mut [IoSliceMut::new(&mut text)], &mut ancillary, RecvFlags::empty())?;
    let file = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    match file {
        Some(file) => Ok(Some(file)),
        None if message.flags.contains(rustix::net::ReturnFlags::CTRUNC) => Ok(None),
        None => bail!("the lender sent no file"),
    }
}

fn lend(socket: OwnedFd, path: &Path) -> Result<()> {
    let listener = UnixListener::bind(path)?;
    let number = socket.as_raw_fd();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            if let Err(error) = stream.map_err(anyhow::Error::from).and_then(|stream| hand(&stream, &socket))
            {
                let _ = writeln!(io::stderr(), "lender: {error:#}");
            }
        }
    });
    writeln!(io::stdout(), "lends {number}")?;
    io::stdin().lock().read_line(&mut String::new())?;
    Ok(())
}

/// Hands a file over.
pub fn hand(stream: &UnixStream, socket: &OwnedFd) -> Result<()> {
    let files = [socket.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&files)) {
        bail!("there is no room for one descriptor");
    }
    sendmsg(stream, &[IoSlice::new(b"x")], &mut ancillary, SendFlags::empty())?;
    Ok(())
}
