//! The command while it runs: an ordinary child in the same session and process group, so that the terminal is its own.
//!
//! Owns: signals, stopping and going on, the exit code. Must not know: what it is run for.

use std::ffi::c_int;
use std::io;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::siginfo::{Cause, Origin};

/// Starts the command, and waits until it has ended. Gives the exit code: its own, or 128 and the number of the signal.
///
/// What is sent to this process while it waits is sent on. What the terminal sends reaches the command by itself, and is not told
/// twice. If the command is stopped, this process stops, too, so that the shell takes over; and they go on together.
pub(super) fn to_the_end(mut command: Command) -> io::Result<u8> {
    // From here on none of these ends this process.
    let told = [SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];
    let mut signals = SignalsInfo::<WithOrigin>::new(told)?;
    let child = Pid::from_raw(i32::try_from(command.spawn()?.id()).map_err(io::Error::other)?);
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(code.to_le_bytes()[0]),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + (signal as i32).to_le_bytes()[0]),
            Ok(WaitStatus::Stopped(..)) => {
                // Returns when this process goes on.
                kill(getpid(), Signal::SIGSTOP)?;
                pass_on(child, Signal::SIGCONT)?;
            }
            Ok(_) | Err(Errno::EINTR) => {
                for origin in signals.wait() {
                    if let Some(signal) = to_pass_on(&origin) {
                        pass_on(child, signal)?;
                    }
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// What a process sent to this one alone.
fn to_pass_on(origin: &Origin) -> Option<Signal> {
    let is_sent = matches!(origin.cause, Cause::Sent(_)) && origin.signal != SIGCHLD;
    is_sent.then(|| signal_of(origin.signal)).flatten()
}

fn signal_of(number: c_int) -> Option<Signal> {
    Signal::try_from(number).ok()
}

/// One that has just ended needs no signal.
fn pass_on(child: Pid, signal: Signal) -> io::Result<()> {
    match kill(child, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
