//! The agent of this host: its socket, and what is said there to run a command as a subject.
//!
//! Owns: frames, time limits, that it is root who listens. Must not know: the control plane.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use proto::types::{
    Challenge, FRAME_MAX_BYTES, FromAgent, GrantId, HostName, Invalid, RunId, RunPass, ToAgent,
};

use crate::error::{Error, Problem};

/// Where it listens, unless it is told otherwise.
pub(crate) const SOCKET: &str = "/run/portcullis-agent/runs.sock";

/// For one answer. The agent's loop may be writing to a disk.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A connection to it.
pub(crate) struct Agent {
    stream: UnixStream,
    /// Of the host, as the control plane knows it.
    pub(crate) host: HostName,
    /// What a pass must be for.
    pub(crate) challenge: Challenge,
}

impl Agent {
    /// Connects, and hears what a pass must be for.
    pub(crate) fn connect(path: &Path) -> Result<Self, Error> {
        let what = "connect to the agent";
        let stream = open(path).map_err(|source| Error::NoAgent { path: path.to_owned(), source })?;
        match read(&stream).map_err(broken(what))? {
            FromAgent::Challenge { host, challenge } => Ok(Self { stream, host, challenge }),
            other => Err(unexpected(what, other)),
        }
    }

    /// Opens a run for whom the pass names. It is there for as long as this connection is, or something is in it.
    pub(crate) fn open(&mut self, pass: RunPass) -> Result<RunId, Error> {
        let what = "open a run";
        match self.ask(what, ToAgent::Open(pass))? {
            FromAgent::Opened(run) => Ok(run),
            other => Err(unexpected(what, other)),
        }
    }

    /// Puts this process into a run that its parent has opened.
    ///
    /// With a grant of one action what this process executes next is held, and ended if it is something else.
    pub(crate) fn enter(&mut self, run: RunId, command: String, grant: Option<GrantId>) -> Result<(), Error> {
        let what = "let the command into the run";
        match self.ask(what, ToAgent::Enter { run, command, grant })? {
            FromAgent::Entered => Ok(()),
            other => Err(unexpected(what, other)),
        }
    }

    /// How many processes are left of a run whose command has ended.
    pub(crate) fn finish(&mut self) -> Result<u32, Error> {
        let what = "end the run";
        match self.ask(what, ToAgent::Finish)? {
            FromAgent::Finished(processes) => Ok(processes),
            other => Err(unexpected(what, other)),
        }
    }

    fn ask(&mut self, what: &str, message: ToAgent) -> Result<FromAgent, Error> {
        let frame = message.encode();
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX).to_be_bytes();
        // One that was refused may be closed before it has heard us; what it said counts.
        let written = self.stream.write_all(&[&length[..], &frame].concat());
        read(&self.stream).map_err(|problem| match written {
            Err(error) => broken(what)(Problem(error.to_string())),
            Ok(()) => broken(what)(problem),
        })
    }
}

fn open(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    // Whoever else listens there could ask for passes in our name.
    let uid = getsockopt(&stream, sockopt::PeerCredentials)?.uid();
    if uid != 0 {
        return Err(io::Error::other(format!("it is user {uid} who listens there, and not root")));
    }
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.set_write_timeout(Some(ANSWER_LIMIT))?;
    Ok(stream)
}

fn read(mut stream: &UnixStream) -> Result<FromAgent, Problem> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Problem("the agent has closed the connection".to_owned()),
        io::ErrorKind::WouldBlock => Problem("the agent does not answer".to_owned()),
        _ => Problem(error.to_string()),
    };
    let mut length = [0; 4];
    stream.read_exact(&mut length).map_err(failed)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > FRAME_MAX_BYTES {
        return Err(Problem(format!("an answer of {length} bytes is none of an agent")));
    }
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame).map_err(failed)?;
    FromAgent::decode(&frame).map_err(|error: Invalid| error.into())
}

fn broken(what: &str) -> impl Fn(Problem) -> Error {
    let what = what.to_owned();
    move |source| Error::Agent { what: what.clone(), source }
}

fn unexpected(what: &str, answer: FromAgent) -> Error {
    let what = what.to_owned();
    match answer {
        FromAgent::Refused { message, .. } => Error::AgentRefused { what, source: Problem(message) },
        _ => Error::Agent { what, source: Problem("the agent answered something else".to_owned()) },
    }
}
