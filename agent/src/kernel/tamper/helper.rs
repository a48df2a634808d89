//! A process that is not the agent, and asks for what must be refused: the agent's own program, copied to another file.
//!
//! Owns: both ends of the conversation. Must not know: what follows from an answer.
//!
//! Invariant: what is asked leaves everything as it was even where it is not refused.

use std::fmt::{self, Display};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use agent_ebpf::abi::Tampering;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::super::sys;

/// The verb by which the agent's program is told to be the helper.
pub const HELPER_VERB: &str = "tamper-helper";

/// How long an answer may take, in milliseconds.
const ANSWER_TIMEOUT_MS: u16 = 1000;

/// Something that only the agent may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// A descriptor of the map with this id.
    Map(u32),
    /// The same of a program.
    Program(u32),
    /// The same of a link.
    Link(u32),
    /// What is pinned there.
    Pin(PathBuf),
    /// To remove a directory, which is not empty.
    RemoveDirectory(PathBuf),
    /// To make one in this one; it is removed at once.
    MakeDirectory(PathBuf),
    /// To send the process the signal that is none.
    Signal(u32),
    /// To read a byte of its memory where none is.
    Trace(u32),
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// EPERM.
    Refused,
    /// Anything else.
    Not(Errno),
    /// It succeeded.
    Done,
}

impl Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("by nothing of ours"),
            Self::Not(errno) => write!(f, "{}", errno.desc()),
            Self::Done => f.write_str("it was done"),
        }
    }
}

impl Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(id) => write!(f, "map {id}"),
            Self::Program(id) => write!(f, "program {id}"),
            Self::Link(id) => write!(f, "link {id}"),
            Self::Pin(path) => write!(f, "pin {}", path.display()),
            Self::RemoveDirectory(path) => write!(f, "rmdir {}", path.display()),
            Self::MakeDirectory(path) => write!(f, "mkdir {}", path.display()),
            Self::Signal(pid) => write!(f, "signal {pid}"),
            Self::Trace(pid) => write!(f, "trace {pid}"),
        }
    }
}

impl Question {
    /// As what it is counted.
    pub(super) fn tampering(&self) -> Tampering {
        match self {
            Self::Map(_) => Tampering::OpenMap,
            Self::Program(_) => Tampering::OpenProgram,
            Self::Link(_) => Tampering::OpenLink,
            Self::Pin(_) => Tampering::OpenPin,
            Self::RemoveDirectory(_) => Tampering::RemovePin,
            Self::MakeDirectory(_) => Tampering::AddPin,
            Self::Signal(_) => Tampering::Signal,
            Self::Trace(_) => Tampering::Trace,
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let (verb, rest) = line.split_once(' ')?;
        let number = || rest.parse().ok();
        Some(match verb {
            "map" => Self::Map(number()?),
            "program" => Self::Program(number()?),
            "link" => Self::Link(number()?),
            "pin" => Self::Pin(rest.into()),
            "rmdir" => Self::RemoveDirectory(rest.into()),
            "mkdir" => Self::MakeDirectory(rest.into()),
            "signal" => Self::Signal(number()?),
            "trace" => Self::Trace(number()?),
            _ => return None,
        })
    }

    fn attempt(&self) -> io::Result<()> {
        let process = |pid: u32| Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX));
        match self {
            Self::Map(id) => sys::map_by_id(*id).map(drop),
            Self::Program(id) => sys::program_by_id(*id).map(drop),
            Self::Link(id) => sys::link_by_id(*id).map(drop),
            Self::Pin(path) => sys::open_pin(path).map(drop),
            Self::RemoveDirectory(path) => fs::remove_dir(path),
            Self::MakeDirectory(path) => {
                let path = path.join("tamper-helper");
                fs::create_dir(&path)?;
                fs::remove_dir(&path)
            }
            Self::Signal(pid) => kill(process(*pid), None).map_err(Into::into),
            Self::Trace(pid) => sys::read_memory(process(*pid)),
        }
    }
}

/// Answers questions until there are no more.
pub fn serve() -> io::Result<()> {
    let mut stdout = io::stdout();
    for line in io::stdin().lock().lines() {
        let line = line?;
        let question = Question::parse(&line).ok_or_else(|| io::Error::other(format!("asked `{line}`")))?;
        let errno = match question.attempt() {
            Ok(()) => 0,
            Err(error) => error.raw_os_error().unwrap_or(Errno::EIO as i32),
        };
        writeln!(stdout, "{errno}")?;
        stdout.flush()?;
    }
    Ok(())
}

/// The helper, as the agent has it: started when it is needed, and again if it has gone.
#[derive(Default)]
pub(super) struct Helper {
    running: Option<Running>,
}

struct Running {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Helper {
    /// Its process id.
    pub(super) fn pid(&mut self) -> Result<u32, String> {
        if let Some(running) = &mut self.running
            && running.child.try_wait().is_ok_and(|status| status.is_none())
        {
            return Ok(running.child.id());
        }
        self.running = None;
        let running = Running::start().map_err(|error| {
            format!("nothing can be proven: no helper can be started that is not the agent: {error}")
        })?;
        let pid = running.child.id();
        self.running = Some(running);
        Ok(pid)
    }

    /// Has it try.
    pub(super) fn ask(&mut self, question: &Question) -> Result<Answer, String> {
        let running = self.running.as_mut().ok_or("there is no helper")?;
        let answer = running.ask(question);
        if answer.is_err() {
            self.running = None;
        }
        answer.map_err(|error| format!("nothing is proven: the helper does not answer: {error}"))
    }
}

impl Running {
    fn start() -> io::Result<Self> {
        let mut written = sys::memory_file(c"portcullis-tamper-helper")?;
        io::copy(&mut File::open("/proc/self/exe")?, &mut written)?;
        let copy = File::open(format!("/proc/self/fd/{}", written.as_raw_fd()))?;
        // The kernel runs no file that somebody can write to.
        drop(written);
        let mut child = Command::new(format!("/proc/self/fd/{}", copy.as_raw_fd()))
            .arg(HELPER_VERB)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let pipe = || io::Error::other("no pipe to the helper");
        let stdin = child.stdin.take().ok_or_else(pipe)?;
        let stdout = BufReader::new(child.stdout.take().ok_or_else(pipe)?);
        Ok(Self { child, stdin, stdout })
    }

    fn ask(&mut self, question: &Question) -> io::Result<Answer> {
        writeln!(self.stdin, "{question}")?;
        let mut ready = [PollFd::new(self.stdout.get_ref().as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::from(ANSWER_TIMEOUT_MS))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        match line.trim_end().parse().map_err(io::Error::other)? {
            0 => Ok(Answer::Done),
            errno if errno == Errno::EPERM as i32 => Ok(Answer::Refused),
            errno => Ok(Answer::Not(Errno::from_raw(errno))),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_back() {
        let questions = [
            Question::Map(1),
            Question::Program(2),
            Question::Link(3),
            Question::Pin("/sys/fs/bpf/a b".into()),
            Question::RemoveDirectory("/sys/fs/bpf/c".into()),
            Question::MakeDirectory("/sys/fs/bpf/d".into()),
            Question::Signal(4),
            Question::Trace(5),
        ];
        for question in questions {
            assert_eq!(Question::parse(&question.to_string()), Some(question));
        }
        assert_eq!(Question::parse("map"), None);
        assert_eq!(Question::parse("kill 1"), None);
    }
}
