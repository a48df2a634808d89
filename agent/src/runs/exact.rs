//! Holding a process at the moment in which it has become another program, and has not begun to run.
//!
//! Owns: tracing it, on a thread of its own, as the kernel wants it; reading what it has become. Must not know: what it should be.
//!
//! From before it is told to go on, the process is traced, and nobody else can trace it; should the agent end, the kernel ends it
//! (`PTRACE_O_EXITKILL`). When it has executed something it is stopped: its memory is new, shared with nobody, and it has one
//! thread. What is read then is what it is. It goes on, untraced, only after a yes.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Event, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use proto::types::RunRefusal;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use super::Refused;
use crate::rules::exact::Found;

/// How long a process has to execute something after it was let go on.
const EXEC_LIMIT: Duration = Duration::from_secs(10);
/// How long the agent's loop may take for its answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How often it is looked whether the process has got there.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// The largest executable that is read, in bytes.
const EXECUTABLE_MAX_BYTES: u64 = 512 * 1024 * 1024;
/// The largest arguments and environment that are read, in bytes each.
const TEXT_MAX_BYTES: u64 = 256 * 1024;

/// A process that is traced.
pub(super) struct Held {
    /// What it has become, once it has.
    found: oneshot::Receiver<Result<Found, Refused>>,
    /// Whether it may go on.
    answer: mpsc::Sender<bool>,
    /// What came of that.
    ended: oneshot::Receiver<Result<(), Refused>>,
}

impl Held {
    /// Traces a process that waits. When this returns, nothing that it executes begins to run without a yes.
    pub(super) async fn take(pid: i32) -> Result<Self, Refused> {
        let (seized, is_seized) = oneshot::channel();
        let (find, found) = oneshot::channel();
        let (answer, answered) = mpsc::channel();
        let (end, ended) = oneshot::channel();
        // The kernel takes orders for a tracee from one thread only.
        let work = move || {
            let pid = Pid::from_raw(pid);
            let options = Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_EXITKILL;
            if let Err(error) = ptrace::seize(pid, options) {
                let _ = seized.send(Err(failed("trace the process", error)));
                return;
            }
            let _ = seized.send(Ok(()));
            let mut has_ended = false;
            let outcome = hold(pid, find, &answered, &mut has_ended);
            // Once its end was told, its number may be another's.
            if outcome.is_err() && !has_ended {
                let _ = ptrace::kill(pid);
                let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
                // It is not ours to bury; but as long as it is traced, its parent does not hear of it.
                let _ = waitpid(pid, Some(WaitPidFlag::__WALL));
            }
            let _ = end.send(outcome);
        };
        let started = thread::Builder::new().name("exact-run".to_owned()).spawn(work);
        started.map_err(|error| failed("start a thread", error))?;
        is_seized.await.unwrap_or_else(|_| Err(RunRefusal::Failed.into()))?;
        Ok(Self { found, answer, ended })
    }

    /// Waits until it has become something.
    pub(super) async fn found(&mut self) -> Result<Found, Refused> {
        (&mut self.found).await.unwrap_or_else(|_| Err(RunRefusal::Gone.into()))
    }

    /// Lets it go on, or ends it.
    pub(super) async fn answer(self, may_go_on: bool) -> Result<(), Refused> {
        let _ = self.answer.send(may_go_on);
        self.ended.await.unwrap_or_else(|_| Err(RunRefusal::Gone.into()))
    }
}

fn failed(what: &str, error: impl std::fmt::Display) -> Refused {
    Refused::new(RunRefusal::Failed, format_args!("cannot {what}: {error}"))
}

fn hold(
    pid: Pid,
    find: oneshot::Sender<Result<Found, Refused>>,
    answered: &mpsc::Receiver<bool>,
    has_ended: &mut bool,
) -> Result<(), Refused> {
    let found = wait_for_exec(pid, has_ended)
        .and_then(|()| look(pid.as_raw()).map_err(|error| failed("look at it", error)));
    let is_found = found.is_ok();
    let _ = find.send(found);
    // Whoever asked is gone, or does not answer: that is a no.
    match is_found && answered.recv_timeout(ANSWER_LIMIT).unwrap_or(false) {
        true => ptrace::detach(pid, None).map_err(|error| failed("let it go on", error)),
        false => Err(RunRefusal::Gone.into()),
    }
}

/// Until it has executed something, and is stopped there. `has_ended`: the kernel has told that it is no more.
fn wait_for_exec(pid: Pid, has_ended: &mut bool) -> Result<(), Refused> {
    let deadline = Instant::now() + EXEC_LIMIT;
    loop {
        match waitpid(pid, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::PtraceEvent(_, _, event)) if event == Event::PTRACE_EVENT_EXEC as i32 => {
                return Ok(());
            }
            // Somebody else stopped it, or the kernel tells of that: it goes on.
            Ok(WaitStatus::PtraceEvent(..)) => {
                ptrace::cont(pid, None).map_err(|error| failed("let it go on", error))?;
            }
            Ok(WaitStatus::Stopped(_, signal)) => {
                ptrace::cont(pid, Some(signal)).map_err(|error| failed("let it go on", error))?;
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => {
                if Instant::now() > deadline {
                    return Err(Refused::new(RunRefusal::Gone, "it has not executed anything in time"));
                }
                thread::sleep(LOOK_EVERY);
            }
            Ok(_) | Err(_) => {
                *has_ended = true;
                return Err(RunRefusal::Gone.into());
            }
        }
    }
}

/// What a process that is stopped is.
fn look(pid: i32) -> io::Result<Found> {
    let of = |name: &str| PathBuf::from(format!("/proc/{pid}/{name}"));
    let executable = fs::read_link(of("exe"))?;
    let executable = executable.to_str().ok_or_else(|| io::Error::other("its path is no text"))?.to_owned();
    // The file that runs, whatever lies at its path.
    let mut file = File::open(of("exe"))?;
    let metadata = file.metadata()?;
    if metadata.len() > EXECUTABLE_MAX_BYTES {
        return Err(io::Error::other(format!("its executable has {} bytes", metadata.len())));
    }
    let is_roots = belongs_to_root(Path::new(&executable), (metadata.dev(), metadata.ino()));
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hash.update(buffer.get(..count).unwrap_or_default()),
        }
    }
    Ok(Found {
        executable,
        sha256: hash.finalize().into(),
        is_roots,
        is_at_home: is_at_home(pid),
        arguments: words(&of("cmdline"))?,
        environment: words(&of("environ"))?,
    })
}

/// Texts that each end with a byte 0.
fn words(path: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(TEXT_MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > TEXT_MAX_BYTES {
        return Err(io::Error::other("its arguments or its environment are too long"));
    }
    // What ends otherwise was cut.
    match bytes.pop() {
        None => Ok(Vec::new()),
        Some(0) => Ok(bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()),
        Some(_) => Err(io::Error::other("its arguments or its environment do not end")),
    }
}

/// Whether that file is found at the path from home, through directories that nobody but root can change, none of which is
/// a link; and nobody but root can change the file.
fn belongs_to_root(path: &Path, identity: (u64, u64)) -> bool {
    let mut place = PathBuf::from(format!("/proc/{}/root", home()));
    let is_roots = |place: &Path| {
        fs::symlink_metadata(place).ok().filter(|found| found.uid() == 0 && found.mode() & 0o022 == 0)
    };
    let Some(mut last) = is_roots(&place.join("")) else { return false };
    for part in path.components().skip(1) {
        if !last.is_dir() {
            return false;
        }
        place.push(part);
        let Some(found) = is_roots(&place) else { return false };
        last = found;
    }
    last.is_file() && (last.dev(), last.ino()) == identity
}

/// Whose view of files, processes and users counts: that of the host's first process, which an agent in a unit or a container of its own
/// does not share; or the agent's own, where that process cannot be looked at. Nobody but root puts a process into either.
fn home() -> &'static str {
    match fs::metadata("/proc/1/root/") {
        Ok(_) => "1",
        Err(_) => "self",
    }
}

/// Whether it is in the namespaces of home, those of the network and of cgroups left out, with the same root.
fn is_at_home(pid: i32) -> bool {
    let of = |process: &str, name: &str| {
        fs::metadata(format!("/proc/{process}/{name}")).ok().map(|found| (found.dev(), found.ino()))
    };
    let (pid, home) = (pid.to_string(), home());
    let mut names = ["ns/mnt", "ns/user", "ns/pid", "ns/ipc", "ns/uts", "root/"].into_iter();
    names.all(|name| of(&pid, name).is_some_and(|found| of(home, name) == Some(found)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_roots_and_what_is_not() {
        let of = |path: &str| {
            let metadata = fs::metadata(path).expect("there");
            belongs_to_root(Path::new(path), (metadata.dev(), metadata.ino()))
        };
        // `/usr/bin/env` is a file of root's everywhere; what lies where everybody can write is not.
        assert!(of("/usr/bin/env"));
        assert!(is_at_home(i32::try_from(std::process::id()).expect("small")));
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("env");
        fs::copy("/usr/bin/env", &file).expect("copied");
        assert!(!of(file.to_str().expect("text")));
        assert!(!belongs_to_root(Path::new("/usr/bin/env"), (0, 0)));
        assert!(!belongs_to_root(Path::new("/usr/bin/env/x"), (0, 0)));
    }

    #[test]
    fn words_end() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("words");
        let of = |bytes: &[u8]| {
            fs::write(&path, bytes).expect("written");
            words(&path).ok()
        };
        assert_eq!(of(b""), Some(vec![]));
        assert_eq!(of(b"a\0\0b\0"), Some(vec![b"a".to_vec(), b"".to_vec(), b"b".to_vec()]));
        assert_eq!(of(b"a\0b"), None);
        assert_eq!(of(&vec![b'a'; 300 * 1024]), None);
    }
}
