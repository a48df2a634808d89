//! Which process is at the other end of a connection.
//!
//! Owns: that a process which was looked at is still the same one afterwards. Must not know: what it wants.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};

use crate::observe;

/// A process that connected.
#[derive(Debug)]
pub struct Peer {
    /// Its id, in the agent's pid namespace.
    pub pid: i32,
    /// Its user when it connected.
    pub uid: u32,
    /// Stands for it and no other, whatever becomes of the id.
    pidfd: OwnedFd,
}

impl Peer {
    /// Who connected.
    pub fn of(stream: &impl AsFd) -> io::Result<Self> {
        let credentials = getsockopt(stream, sockopt::PeerCredentials)?;
        let (pid, uid) = (credentials.pid(), credentials.uid());
        if pid <= 0 {
            return Err(io::Error::other("the process is in a pid namespace that the agent does not see"));
        }
        // Linux before 6.5 does not give the process itself, and its id could be another one's by now: of the same user at least,
        // who could have had that one connect as well.
        let pidfd = match getsockopt(stream, sockopt::PeerPidfd) {
            Ok(pidfd) => pidfd,
            Err(_) => {
                let pidfd = open(pid)?;
                let is_same = observe::process(pid).is_some_and(|process| process.uid == uid);
                if !is_same {
                    return Err(io::Error::other("the process is another one than connected"));
                }
                pidfd
            }
        };
        let peer = Self { pid, uid, pidfd };
        match peer.is_there() {
            true => Ok(peer),
            false => Err(io::Error::other("the process has ended")),
        }
    }

    /// Whether it has not ended. If so, its id is its own, and was since it connected.
    pub fn is_there(&self) -> bool {
        let mut polled = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut polled, PollTimeout::ZERO), Ok(0))
    }

    /// The same process, to be watched by somebody else.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { pid: self.pid, uid: self.uid, pidfd: self.pidfd.try_clone()? })
    }
}

fn open(pid: i32) -> io::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(Pid::from_raw(pid).as_raw());
    let pid = pid.ok_or_else(|| io::Error::other("0 is no process"))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_peer_is_known_until_it_ends() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let peer = Peer::of(&ours).expect("it is us");
        assert_eq!(peer.pid, i32::try_from(std::process::id()).expect("small"));
        assert!(peer.is_there());
        let mut child = std::process::Command::new("true").spawn().expect("started");
        let pid = i32::try_from(child.id()).expect("small");
        let peer = Peer { pid, uid: peer.uid, pidfd: open(pid).expect("it is there") };
        child.wait().expect("it ends");
        assert!(!peer.is_there());
    }
}
