//! Somebody with root who is not the agent: this program, copied to another file, and what he tries.
//!
//! Started with [`FLAG`] it does one thing and says how that ended: `ok`, or the name of the error.

use std::fs::{self, File};
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use agent::kernel::{Demand, Gate, Settings};
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::process::output;
use crate::tampering::{self, Does};

/// The first argument of such a process.
pub const FLAG: &str = "--as-stranger";

/// A copy of this program.
pub struct Stranger {
    program: PathBuf,
}

impl Stranger {
    /// Makes it in this directory.
    pub fn new(directory: &Path) -> Result<Self> {
        let program = directory.join("stranger");
        copy_to(&program)?;
        Ok(Self { program })
    }

    /// Has it try something.
    pub fn tries(&self, what: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        Ok(output(command.arg(FLAG).args(what).stdin(Stdio::null()))?.trim().to_owned())
    }
}

/// Copies this program to a file, in one step as an upgrade does.
pub fn copy_to(program: &Path) -> Result<()> {
    let beside = program.with_extension("new");
    fs::copy("/proc/self/exe", &beside).context("this program can be copied")?;
    fs::rename(&beside, program)?;
    Ok(())
}

/// An agent with a gate and the tamper tier, that does what it is told.
pub struct Holder {
    child: Child,
    stdin: ChildStdin,
    stdout: io::BufReader<ChildStdout>,
}

impl Holder {
    /// Starts it from this file.
    pub fn start(program: &Path, pin_dir: &Path) -> Result<Self> {
        let mut child = Command::new(program)
            .args([FLAG, "hold"])
            .arg(pin_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().context("its input")?;
        let stdout = io::BufReader::new(child.stdout.take().context("its output")?);
        Ok(Self { child, stdin, stdout })
    }

    /// What it says next.
    pub fn says(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Has it look at its gate. What it found comes back.
    pub fn inspect(&mut self) -> Result<String> {
        writeln!(self.stdin, "inspect")?;
        self.says()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it.
    pub fn end(mut self) -> Result<()> {
        drop(self.stdin);
        self.child.wait()?;
        Ok(())
    }
}

/// Does what a stranger does, and ends the process, if it was started as one; as the agent's helper, too.
pub fn run_if_asked() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        [agent::kernel::HELPER_VERB] => agent::kernel::serve_tamper_helper().map_err(Into::into),
        [FLAG, "hold", pin_dir] => hold(Path::new(pin_dir)),
        [FLAG, rest @ ..] => act(rest).and_then(|said| Ok(writeln!(io::stdout(), "{said}")?)),
        _ => return,
    };
    std::process::exit(match result {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(io::stderr(), "stranger: {error:#}");
            1
        }
    });
}

fn hold(pin_dir: &Path) -> Result<()> {
    let mut gate = match raise(pin_dir) {
        Ok(gate) => gate,
        Err(error) => {
            writeln!(io::stdout(), "{error:#}")?;
            return Ok(());
        }
    };
    let missing = |gate: &mut Gate| {
        let missing = gate.missing().into_iter().filter(|missing| missing.part.contains("tamper"));
        missing
            .map(|missing| format!("without {}: {}", missing.part, missing.why))
            .collect::<Vec<_>>()
            .join("; ")
    };
    let mut stdout = io::stdout();
    writeln!(stdout, "up {}", missing(&mut gate))?;
    stdout.flush()?;
    for line in io::stdin().lock().lines() {
        line?;
        let faults: Vec<String> = gate.inspect().into_iter().map(|fault| fault.text).collect();
        writeln!(stdout, "{} {}", faults.join("; "), missing(&mut gate))?;
        stdout.flush()?;
    }
    Ok(())
}

fn raise(pin_dir: &Path) -> Result<Gate> {
    let settings = Settings { tamper: Demand::Prefer, ..Settings::new(pin_dir.to_owned()) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let root = agent::observe::cgroup_root()?;
    Ok(runtime.block_on(async { Gate::raise(&settings, &root) })?.0)
}

fn act(what: &[&str]) -> Result<String> {
    let result = match *what {
        ["open-map", id] => tampering::map_by_id(id.parse()?).map(drop),
        ["open-program", id] => tampering::program_by_id(id.parse()?).map(drop),
        ["open-link", id] => tampering::link_by_id(id.parse()?).map(drop),
        ["open-pin", path] => tampering::open(Path::new(path)).map(drop),
        ["detach", path] => tampering::open(Path::new(path)).and_then(|link| tampering::detach(&link)),
        ["detach-by-id", id] => tampering::link_by_id(id.parse()?).and_then(|link| tampering::detach(&link)),
        ["replace", path] => replace(Path::new(path)),
        ["detach-held", socket] => detach_held(socket),
        ["read", path] => fs::read(path).map(drop),
        ["unlink", path] => fs::remove_file(path),
        ["rmdir", path] => fs::remove_dir(path),
        ["mkdir", path] => fs::create_dir(path),
        ["rename", from, to] => fs::rename(from, to),
        ["pin", path] => tampering::connect4_program(Does::Nothing)
            .and_then(|program| tampering::pin(&program, Path::new(path))),
        ["unmount", path] => umount2(path, MntFlags::empty()).map_err(Into::into),
        ["unmount-lazily", path] => umount2(path, MntFlags::MNT_DETACH).map_err(Into::into),
        ["signal", pid, signal] => {
            let signal = match signal.parse::<i32>()? {
                0 => None,
                number => Some(Signal::try_from(number)?),
            };
            kill(Pid::from_raw(pid.parse()?), signal).map_err(Into::into)
        }
        ["trace", pid] => {
            let pid = Pid::from_raw(pid.parse()?);
            ptrace::seize(pid, ptrace::Options::empty()).map_err(Into::into)
        }
        ["memory", pid] => read_memory(pid),
        ["take", pid, number] => take(pid, number),
        ["look", pid] => look(pid),
        ["own", directory] => return own(Path::new(directory)),
        ["lower", pin_dir] => {
            agent::kernel::lower(Path::new(pin_dir))?;
            Ok(())
        }
        ["lift", pin_dir] => {
            let lifted = agent::kernel::lift_tamper(Path::new(pin_dir), std::time::Duration::from_secs(60));
            return Ok(lifted.map_or_else(|error| format!("{error}"), |_| "ok".to_owned()));
        }
        ["raise", pin_dir] => {
            return Ok(match raise(Path::new(pin_dir)) {
                Ok(_) => "ok".to_owned(),
                Err(error) => format!("{error:#}"),
            });
        }
        _ => bail!("a stranger does not know {what:?}"),
    };
    Ok(named(result))
}

fn named(result: io::Result<()>) -> String {
    match result.map_err(|error| error.raw_os_error().map(Errno::from_raw)) {
        Ok(()) => "ok".to_owned(),
        Err(Some(errno)) => format!("{errno:?}"),
        Err(None) => "no error number".to_owned(),
    }
}

fn replace(path: &Path) -> io::Result<()> {
    let (link, program) = (tampering::open(path)?, tampering::connect4_program(Does::Nothing)?);
    tampering::replace(&link, &program)
}

/// Detaches a link by a descriptor that the test hands over, which has had it from before.
fn detach_held(path: &str) -> io::Result<()> {
    let link = crate::socket_probe::received(Path::new(path)).map_err(io::Error::other)?;
    tampering::detach(&link.ok_or(io::ErrorKind::NotFound)?)
}

fn read_memory(pid: &str) -> io::Result<()> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let first = maps.split('-').next().and_then(|address| u64::from_str_radix(address, 16).ok());
    let mut memory = File::open(format!("/proc/{pid}/mem"))?;
    memory.seek(SeekFrom::Start(first.unwrap_or(0)))?;
    memory.read_exact(&mut [0; 4])
}

fn take(pid: &str, number: &str) -> io::Result<()> {
    let number = number.parse().map_err(io::Error::other)?;
    let pid = rustix::process::Pid::from_raw(pid.parse().map_err(io::Error::other)?);
    let process = pidfd_open(pid.ok_or(io::ErrorKind::InvalidInput)?, PidfdFlags::empty())?;
    Ok(pidfd_getfd(process, number, PidfdGetfdFlags::empty()).map(drop)?)
}

/// What tools for monitoring read.
fn look(pid: &str) -> io::Result<()> {
    for name in ["status", "stat", "cmdline", "maps", "limits", "cgroup"] {
        fs::read_to_string(format!("/proc/{pid}/{name}"))?;
    }
    fs::read_link(format!("/proc/{pid}/exe"))?;
    fs::read_dir(format!("/proc/{pid}/fd"))?.try_for_each(|entry| entry.map(drop))
}

/// Everything that is the stranger's own business.
fn own(directory: &Path) -> Result<String> {
    let bpffs = directory.join("own");
    fs::create_dir(&bpffs)?;
    mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>).context("mount")?;
    fs::create_dir(bpffs.join("a")).context("mkdir")?;
    let program = tampering::connect4_program(Does::Nothing).context("load")?;
    let pin = bpffs.join("a/program");
    tampering::pin(&program, &pin).context("pin")?;
    let opened = tampering::open(&pin).context("open")?;
    fs::rename(&pin, bpffs.join("a/other")).context("rename")?;
    let cgroup = agent::observe::cgroup_root()?.join(format!("portcullis-test-{}-own", std::process::id()));
    fs::create_dir(&cgroup)?;
    let link = tampering::attach_connect4(&program, &cgroup).context("attach")?;
    tampering::pin(&link, &bpffs.join("a/link")).context("pin a link")?;
    let link = tampering::open(&bpffs.join("a/link")).context("open a link")?;
    tampering::replace(&link, &opened).context("replace")?;
    tampering::detach(&link).context("detach")?;
    drop(link);
    fs::remove_dir(&cgroup)?;
    for name in ["a/other", "a/link"] {
        fs::remove_file(bpffs.join(name)).context("unlink")?;
    }
    fs::remove_dir(bpffs.join("a")).context("rmdir")?;
    umount2(&bpffs, MntFlags::empty()).context("unmount")?;
    fs::remove_dir(&bpffs)?;
    let mut child = Command::new("/proc/self/exe").args([FLAG, "hold", "/"]).stdin(Stdio::piped()).spawn()?;
    kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).context("kill")?;
    child.wait()?;
    Ok("ok".to_owned())
}
