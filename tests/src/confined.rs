//! A program to which the kernel refuses a call, as the filters of systemd and of container runtimes do.
//!
//! Started with [`FLAG`] the test binary has the call refused to itself, and then becomes the program.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use nix::errno::Errno;

use crate::raw;

/// The first argument of such a program.
pub const FLAG: &str = "--confined";

/// The command of a program whose every `openat2` fails with `error`.
pub fn without_openat2(program: impl AsRef<OsStr>, error: Errno) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("this program's path")?);
    command.arg(FLAG).arg((error as i32).to_string()).arg(program);
    Ok(command)
}

/// Becomes another program, or ends the process, if it was started for that.
pub fn run_if_asked() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|flag| flag == FLAG) {
        let error = become_confined(arguments);
        complain(&format!("confined: {error}"));
        std::process::exit(1);
    }
}

/// Comes back only if it cannot.
fn become_confined(mut arguments: impl Iterator<Item = OsString>) -> io::Error {
    let error = arguments.next().and_then(|error| error.to_str()?.parse().ok());
    let (Some(error), Some(program)) = (error, arguments.next()) else {
        return io::Error::other("the number of an error and a program are expected");
    };
    match raw::refuse_call(libc::SYS_openat2, error) {
        Ok(()) => Command::new(program).args(arguments).exec(),
        Err(error) => error,
    }
}

#[allow(clippy::print_stderr, reason = "goes to the log that a failing test shows")]
fn complain(text: &str) {
    eprintln!("{text}");
}
