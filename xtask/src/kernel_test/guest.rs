//! One machine: qemu started, listened to, and ended in time.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::report::{End, Report};
use crate::sh;

/// How long a machine may run. Thirty tests take a minute or two without KVM.
const LIFE_MAX: Duration = Duration::from_secs(30 * 60);

/// How long a machine may say nothing: each test ends with a line. The longest puts up twenty gates,
/// each of which takes an old kernel's verifier seconds where the processor is software.
const SILENCE_MAX: Duration = Duration::from_secs(600);

/// How long a real processor may take to the first line. Where the kernel's virtual machines are
/// themselves emulated, guests are known to hang as soon as they run.
const KVM_START_MAX: Duration = Duration::from_secs(20);

/// For the tests, and all that lies in memory instead of on a disk: up to 400 MiB, of which the kernel holds a second copy while
/// it unpacks it. A gate takes some 30 MiB of the kernel's memory, and tests run side by side.
const MEMORY_MIB: u32 = 2048;

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accelerator {
    /// The processor.
    Kvm,
    /// Software. One thread: a guest has one processor, and the other one of ours is used by
    /// another guest.
    Tcg,
}

impl Accelerator {
    /// What might work; whether it does is seen when a guest runs.
    pub(super) fn probe() -> Self {
        let usable = File::options().read(true).write(true).open("/dev/kvm").is_ok();
        if usable { Self::Kvm } else { Self::Tcg }
    }

    fn argument(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg,thread=single",
        }
    }

    fn start_max(self) -> Duration {
        match self {
            Self::Kvm => KVM_START_MAX,
            Self::Tcg => SILENCE_MAX,
        }
    }
}

/// What a machine is made of, and where it writes.
pub(super) struct Machine<'a> {
    pub(super) kernel: &'a Path,
    pub(super) initramfs: &'a Path,
    /// More for the kernel's command line.
    pub(super) append: &'a str,
    /// What the tests print is kept here, beside what the kernel prints.
    pub(super) log: &'a Path,
    pub(super) console: &'a Path,
}

/// Boots it, and listens until it is off.
pub(super) fn run(machine: &Machine<'_>, accelerator: Accelerator) -> Result<(Report, End)> {
    let mut log =
        File::create(machine.log).with_context(|| format!("cannot write {}", machine.log.display()))?;
    let complaints = log.try_clone().context("cannot duplicate a file")?;
    let mut qemu = command(machine, accelerator).stderr(complaints).spawn().context("cannot start qemu")?;
    let lines = listen(qemu.stdout.take().context("qemu has an output")?);
    let mut report = Report::default();
    let start = Instant::now();
    let end = loop {
        let patience = if report.kernel.is_some() { SILENCE_MAX } else { accelerator.start_max() };
        let left = LIFE_MAX.saturating_sub(start.elapsed());
        match lines.recv_timeout(patience.min(left)) {
            Ok(line) => {
                log.write_all(&line).context("cannot write what the tests print")?;
                report.read(&String::from_utf8_lossy(&line));
            }
            Err(RecvTimeoutError::Disconnected) => break End::Off,
            Err(RecvTimeoutError::Timeout) if patience < left => {
                break End::Stopped(format!("nothing was heard for {} s", patience.as_secs()));
            }
            Err(RecvTimeoutError::Timeout) => {
                break End::Stopped(format!("it ran for {} s", LIFE_MAX.as_secs()));
            }
        }
    };
    stop(qemu)?;
    Ok((report, end))
}

fn command(machine: &Machine<'_>, accelerator: Accelerator) -> Command {
    let mut qemu = sh::command("qemu-system-x86_64");
    qemu.args(["-accel", accelerator.argument(), "-cpu", "max", "-smp", "1"])
        .args(["-m", &MEMORY_MIB.to_string()])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(machine.kernel)
        .arg("-initrd")
        .arg(machine.initramfs)
        // A kernel that has once gone wrong proves nothing any more. Warnings and worse on the console.
        .args(["-append", &format!("console=ttyS0 loglevel=5 panic=-1 oops=panic {}", machine.append)])
        .arg("-serial")
        .arg(format!("file:{}", machine.console.display()))
        .args(["-serial", "stdio"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    qemu
}

/// Lines, with their ends, as they come; the channel closes with the output.
fn listen(output: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut output = BufReader::new(output);
        loop {
            let mut line = Vec::new();
            match output.read_until(b'\n', &mut line) {
                Ok(length) if length > 0 && sender.send(line).is_ok() => {}
                _ => break,
            }
        }
    });
    receiver
}

fn stop(mut qemu: Child) -> Result<()> {
    // It has closed its output, or is to be ended; in both cases there is nothing to wait for.
    let _ = qemu.kill();
    qemu.wait().context("cannot wait for qemu")?;
    Ok(())
}
