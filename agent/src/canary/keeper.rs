//! Keeping the canary alive in its cgroup, and carrying questions and answers.
//!
//! Owns: the process, its cgroup, time limits. Must not know: when it is asked, what an answer means.
//!
//! Invariants: one question at a time; a canary that does not answer in time, or says what it may not, is ended, told as gone,
//! and followed by another.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::{Attempt, Passage, Passages, Try};

/// Name of its cgroup, below the root.
pub const CGROUP: &str = "portcullis-canary";

/// How long an answer may take, beside what a grant lasts.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Before another one is started.
const PAUSE: Duration = Duration::from_secs(1);
/// How long it may take to end when it is to.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// Lines of one answer.
const LINES_MAX: usize = 64;

/// What it can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// To try what must fail, and what needs no grant.
    Deny,
    /// To connect by the grant that ends then.
    Pass {
        /// `CLOCK_BOOTTIME` in nanoseconds.
        deadline_boot_ns: u64,
    },
}

/// What it tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is there.
    Ready {
        /// What must be protected.
        port: u16,
        /// What must not.
        free_port: u16,
        /// Id of the cgroup that it is in, or why it is in none of its own.
        cgroup: Result<u64, String>,
    },
    /// The answer to [`Ask::Deny`].
    Tried(Vec<Try>),
    /// The answer to [`Ask::Pass`].
    Passed(Passages),
    /// It is not there any more, and why. Another one is on its way.
    Gone(String),
}

/// Keeps a canary for as long as somebody can ask; then ends it, and takes its cgroup away. `program` is the agent's own.
pub async fn keep(
    program: PathBuf,
    cgroup_root: PathBuf,
    mut asks: mpsc::Receiver<Ask>,
    told: mpsc::Sender<Told>,
) {
    loop {
        let result = live(&program, &cgroup_root, &mut asks, &told).await;
        let Err(error) = result else { break };
        tracing::warn!(%error, "the canary is gone");
        if told.send(Told::Gone(error.to_string())).await.is_err() {
            break;
        }
        sleep(PAUSE).await;
        if asks.is_closed() {
            break;
        }
    }
    remove_cgroup(&cgroup_root);
}

/// Takes its cgroup away. One that is in use, by the canary of another gate, stays.
pub fn remove_cgroup(cgroup_root: &Path) {
    let _ = fs::remove_dir(cgroup_root.join(CGROUP));
}

/// One canary's life. `Ok`: nobody can ask any more.
async fn live(
    program: &Path,
    cgroup_root: &Path,
    asks: &mut mpsc::Receiver<Ask>,
    told: &mpsc::Sender<Told>,
) -> io::Result<()> {
    let cgroup = cgroup_root.join(CGROUP);
    let made = match fs::create_dir(&cgroup) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(format!("cannot make {}: {error}", cgroup.display()))
        }
        _ => Ok(()),
    };
    let mut canary = Canary::start(program, &cgroup)?;
    let ready = canary.ready(&cgroup, made).await?;
    if told.send(ready).await.is_err() {
        return canary.end().await;
    }
    while let Some(ask) = asks.recv().await {
        let answer = canary.answer(ask).await?;
        if told.send(answer).await.is_err() {
            break;
        }
    }
    canary.end().await
}

struct Canary {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Canary {
    fn start(program: &Path, cgroup: &Path) -> io::Result<Self> {
        let mut child = Command::new(program)
            .arg("canary")
            .arg(cgroup)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let pipe = || io::Error::other("no pipe to the canary");
        let stdin = child.stdin.take().ok_or_else(pipe)?;
        let stdout = child.stdout.take().ok_or_else(pipe)?;
        Ok(Self { child, stdin, lines: BufReader::new(stdout).lines() })
    }

    async fn line(&mut self) -> io::Result<String> {
        let line = timeout(ANSWER_TIMEOUT, self.lines.next_line()).await;
        let line = line.map_err(|_| io::Error::other("the canary does not answer"))??;
        line.ok_or_else(|| io::Error::other("the canary has ended"))
    }

    async fn ready(&mut self, cgroup: &Path, made: Result<(), String>) -> io::Result<Told> {
        let line = self.line().await?;
        let mut words = line.splitn(4, ' ');
        let (Some("ready"), Some(port), Some(free_port), Some(place)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(nonsense(&line));
        };
        let port_of = |text: &str| text.parse().map_err(|_| nonsense(&line));
        let entered = match place.strip_prefix("outside ") {
            Some(error) => Err(format!("cannot enter {}: {error}", cgroup.display())),
            // While it is in there nobody can take it away and make another.
            None => fs::metadata(cgroup).map(|metadata| metadata.ino()).map_err(|error| error.to_string()),
        };
        let cgroup = made.and(entered);
        Ok(Told::Ready { port: port_of(port)?, free_port: port_of(free_port)?, cgroup })
    }

    async fn answer(&mut self, ask: Ask) -> io::Result<Told> {
        let question = match ask {
            Ask::Deny => "deny\n".to_owned(),
            Ask::Pass { deadline_boot_ns } => format!("pass {deadline_boot_ns}\n"),
        };
        self.stdin.write_all(question.as_bytes()).await?;
        let mut lines = Vec::new();
        loop {
            match self.line().await? {
                line if line == "end" => break,
                line if lines.len() < LINES_MAX => lines.push(line),
                line => return Err(nonsense(&line)),
            }
        }
        match ask {
            Ask::Deny => lines.iter().map(|line| parse_try(line)).collect::<io::Result<_>>().map(Told::Tried),
            Ask::Pass { .. } => parse_passages(&lines).map(Told::Passed),
        }
    }

    /// Lets it end by itself; if it does not, dropping it does.
    async fn end(mut self) -> io::Result<()> {
        drop(self.stdin);
        let _ = timeout(END_TIMEOUT, self.child.wait()).await;
        let _ = self.child.kill().await;
        Ok(())
    }
}

fn nonsense(line: &str) -> io::Error {
    io::Error::other(format!("the canary says `{}`", line.chars().take(80).collect::<String>()))
}

fn parse_try(line: &str) -> io::Result<Try> {
    let words: Vec<&str> = line.split(' ').collect();
    let ["tried", name, cookie, errno] = words.as_slice() else { return Err(nonsense(line)) };
    let attempt = Attempt::ALL.into_iter().find(|attempt| attempt.as_str() == *name);
    match (attempt, cookie.parse(), errno.parse()) {
        (Some(attempt), Ok(cookie), Ok(errno)) => Ok(Try { attempt, cookie, errno }),
        _ => Err(nonsense(line)),
    }
}

fn parse_passages(lines: &[String]) -> io::Result<Passages> {
    let [tcp, udp] = lines else { return Err(io::Error::other("the canary told of other connections")) };
    Ok(Passages { tcp: parse_passage("tcp", tcp)?, udp: parse_passage("udp", udp)? })
}

fn parse_passage(name: &str, line: &str) -> io::Result<Passage> {
    let words: Vec<&str> = line.split(' ').collect();
    let ["passed", kind, numbers @ ..] = words.as_slice() else { return Err(nonsense(line)) };
    let numbers: Result<Vec<u64>, _> = numbers.iter().map(|word| word.parse()).collect();
    match numbers.as_deref() {
        Ok([cookie, errno, last_arrival_boot_ns, closed, refused]) if *kind == name => Ok(Passage {
            cookie: *cookie,
            errno: i32::try_from(*errno).map_err(|_| nonsense(line))?,
            last_arrival_boot_ns: *last_arrival_boot_ns,
            closed: *closed == 1,
            refused: *refused == 1,
        }),
        _ => Err(nonsense(line)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_back() {
        let tried = Try { attempt: Attempt::Wire, cookie: 7, errno: 1 };
        assert_eq!(parse_try("tried wire 7 1").ok(), Some(tried));
        let lines = ["passed tcp 7 0 99 1 0".to_owned(), "passed udp 8 1 0 0 1".to_owned()];
        let tcp = Passage { cookie: 7, errno: 0, last_arrival_boot_ns: 99, closed: true, refused: false };
        let udp = Passage { cookie: 8, errno: 1, last_arrival_boot_ns: 0, closed: false, refused: true };
        assert_eq!(parse_passages(&lines).ok(), Some(Passages { tcp, udp }));
        for line in ["", "tried", "tried wire 7", "tried else 7 1", "tried wire x 1", "tried wire 7 1 1"] {
            assert!(parse_try(line).is_err(), "{line}");
        }
        assert!(parse_passages(&lines[..1]).is_err());
        assert!(parse_passage("udp", &lines[0]).is_err());
    }
}
