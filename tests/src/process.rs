//! Processes that end with whoever started them.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cleanup;
use crate::sandbox::Cgroup;

/// How long a process may take to end after it was asked to, before it is made to.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// A process in the background. Dropped, it is killed.
pub struct Background {
    /// None: it has ended, and its pid may be another's.
    cleanup: Option<cleanup::Entry>,
    name: String,
    child: Child,
    log: PathBuf,
}

impl Background {
    /// Starts it, with its output in `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let pid = Pid::from_raw(child.id() as i32);
        let cleanup = cleanup::register(move || {
            let _ = kill(pid, Signal::SIGKILL);
        });
        Ok(Self { cleanup: Some(cleanup), name: name.to_owned(), child, log: log.to_owned() })
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid(), signal).with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// How it ended; None: it has not.
    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.child.try_wait()?;
        if status.is_some()
            && let Some(entry) = self.cleanup.take()
        {
            entry.is_gone();
        }
        Ok(status)
    }

    /// Fails, with its log, if it has ended.
    pub fn ensure_running(&mut self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status}):\n{}", self.name, self.log()),
        }
    }

    /// Asks it to end, and waits.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait()
    }

    /// Waits until it ends; fails, with its log, if it does not.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + END_TIMEOUT;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} does not end:\n{}", self.name, self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        drop(self.cleanup.take());
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        drop(self.cleanup.take());
        // It was killed, or has ended by itself.
        let _ = self.child.wait();
    }
}

/// A command that first moves itself into the cgroup, and then becomes `program`.
pub fn in_cgroup(cgroup: &Cgroup, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", r#"echo 0 > "$0/cgroup.procs" && exec "$@""#])
        .arg(&cgroup.directory)
        .arg(program)
        // Not this process's group: a signal typed at the terminal is for the test runner, which cleans up.
        .process_group(0);
    command
}

/// Runs it and gives back what it wrote to standard output. Fails, with all it wrote, if it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}\n{stdout}{stderr}", output.status);
    }
    Ok(stdout)
}

/// Waits until `ready` gives something; fails, saying `what`, after `timeout`.
pub fn wait_for<T>(what: &str, timeout: Duration, mut ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        let look = Instant::now();
        if let Some(value) = ready()? {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("waited {timeout:?} in vain: {what}");
        }
        // What is waited for may need the processor on which it is looked for.
        std::thread::sleep(look.elapsed().max(Duration::from_millis(10)));
    }
}
