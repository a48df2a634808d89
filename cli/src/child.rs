//! The process that becomes the command of `portcullis run`: this program once more, a child of the first.
//!
//! Owns: that it is in the run before it becomes the command. Must not know: the control plane.
//!
//! It connects to the agent by itself, so that the kernel says who asks; what it becomes has nothing of that any more, and no
//! thread but one.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use proto::types::{ACTION_PATH, GrantId, RunId, may_be_in_environment};

use crate::agent::Agent;
use crate::error::{self, Error};

/// The first argument of such a process. Nobody types it.
const FLAG: &str = "--enter-run";

/// Stands for no grant of one action.
const NO_GRANT: &str = "-";

/// What shells end with when a command is not there, and when it cannot be run.
const NOT_FOUND: u8 = 127;
const CANNOT_RUN: u8 = 126;

/// A child that will enter the run and then become the command.
pub(crate) fn command(socket: &Path, run: RunId, grant: Option<GrantId>, words: &[OsString]) -> Command {
    // In the child it is the same file as here, whatever has taken its place meanwhile.
    let mut command = Command::new("/proc/self/exe");
    let grant = grant.map_or_else(|| NO_GRANT.to_owned(), |id| id.to_string());
    command.arg0("portcullis").arg(FLAG).arg(socket).arg(run.to_string()).arg(grant).args(words);
    command
}

/// Whether this process was started as such a child.
pub fn is_child(mut args: impl Iterator<Item = OsString>) -> bool {
    args.nth(1).is_some_and(|first| first == FLAG)
}

/// Enters the run and becomes the command. If it returns, that is the exit code, and the error is printed.
///
/// `environment` is this process's own.
pub fn as_child(
    args: impl Iterator<Item = OsString>,
    environment: impl Iterator<Item = (OsString, OsString)>,
    err: &mut dyn Write,
) -> u8 {
    let args: Vec<OsString> = args.skip(2).collect();
    let error = match args.as_slice() {
        [socket, run, grant, program, rest @ ..] => {
            become_command(socket, run, grant, program, rest, environment)
        }
        _ => Error::Usage(format!("`{FLAG}` is not for people")),
    };
    let _ = error::print(err, &error);
    match &error {
        Error::Start { source, .. } if source.kind() == std::io::ErrorKind::NotFound => NOT_FOUND,
        Error::Start { .. } => CANNOT_RUN,
        error => error.kind().exit_code(),
    }
}

/// Why it could not.
fn become_command(
    socket: &OsStr,
    run: &OsStr,
    grant: &OsStr,
    program: &OsStr,
    rest: &[OsString],
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Error {
    let Some(Ok(run)) = run.to_str().map(str::parse::<RunId>) else {
        return Error::Usage(format!("`{}` is no run", run.to_string_lossy()));
    };
    let grant = match grant.to_str() {
        Some(NO_GRANT) => None,
        text => match text.map(str::parse::<GrantId>) {
            Some(Ok(grant)) => Some(grant),
            _ => return Error::Usage(format!("`{}` is no grant", grant.to_string_lossy())),
        },
    };
    let entered = Agent::connect(Path::new(socket))
        .and_then(|mut agent| agent.enter(run, program.to_string_lossy().into_owned(), grant));
    if let Err(error) = entered {
        return error;
    }
    let mut command = Command::new(program);
    command.args(rest);
    if grant.is_some() {
        command.env_clear().env("PATH", ACTION_PATH).envs(environment.filter(is_for_an_action));
    }
    let source = command.exec();
    Error::Start { command: program.to_owned(), source }
}

/// Whether an action may have this in its environment.
fn is_for_an_action((name, value): &(OsString, OsString)) -> bool {
    let entry = [name.as_bytes(), b"=", value.as_bytes()].concat();
    may_be_in_environment(&entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> impl Iterator<Item = OsString> {
        words.iter().map(OsString::from).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn nobody_becomes_a_child_by_accident() {
        assert!(!is_child(words(&["portcullis"])));
        assert!(!is_child(words(&["portcullis", "run", "--", "x", FLAG])));
        assert!(is_child(words(&["portcullis", FLAG])));
        let mut err = Vec::new();
        let mut code = |args: &[&str]| as_child(words(args), std::iter::empty(), &mut err);
        assert_eq!(code(&["portcullis", FLAG]), 2);
        assert_eq!(code(&["portcullis", FLAG, "/absent", "x", "-", "true"]), 2);
        let run = RunId::new().to_string();
        assert_eq!(code(&["portcullis", FLAG, "/absent", &run, "x", "true"]), 2);
        assert_eq!(code(&["portcullis", FLAG, "/absent", &run, "-", "true"]), 1);
        let text = String::from_utf8(err).expect("text");
        assert!(text.contains("cannot reach the agent of this host at `/absent`"), "{text}");
    }
}
