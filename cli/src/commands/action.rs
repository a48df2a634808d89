//! The one thing that a grant may be used for: from a file, or from a command as it would be run.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use proto::types::{Action, ArgumentPattern, Invalid};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::error::{Error, Problem};

/// The largest file that describes an action, in bytes.
const FILE_MAX_BYTES: u64 = 64 * 1024;

/// An action as people write it down, in TOML.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    executable: String,
    sha256: String,
    arguments: Vec<String>,
}

/// Reads one from a file.
pub(super) fn read(path: &Path) -> Result<Action, Error> {
    let what = "action";
    let failed = |source| Error::ReadFile { what, path: path.to_owned(), source };
    let mut text = String::new();
    File::open(path).map_err(failed)?.take(FILE_MAX_BYTES).read_to_string(&mut text).map_err(failed)?;
    parse(&text).map_err(|source| Error::BadFile { what, path: path.to_owned(), source })
}

fn parse(text: &str) -> Result<Action, Problem> {
    let written: Written = toml::from_str(text).map_err(|error| Problem(error.message().to_owned()))?;
    let problem = |error: Invalid| Problem(error.to_string());
    let sha256 = from_hex(&written.sha256).ok_or_else(|| {
        Problem("sha256 is not 64 hexadecimal digits, as `sha256sum` prints them".to_owned())
    })?;
    let arguments = written.arguments.iter().map(|text| text.parse()).collect::<Result<_, _>>();
    Ok(Action {
        executable: written.executable.parse().map_err(problem)?,
        sha256,
        arguments: arguments.map_err(problem)?,
    })
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, index) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(text.get(index..index + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// Where a command really lies: what the kernel will say that runs.
pub(super) fn executable(program: &OsString) -> Result<PathBuf, Error> {
    let failed = |source| Error::Start { command: program.clone(), source };
    if !Path::new(program).is_absolute() {
        let problem = "for one action it is named by its whole path, such as /usr/bin/rsync";
        return Err(Error::Usage(format!("cannot run `{}`: {problem}", program.to_string_lossy())));
    }
    let path = fs::canonicalize(program).map_err(failed)?;
    let mut first = [0; 2];
    let count = File::open(&path).and_then(|mut file| file.read(&mut first)).map_err(failed)?;
    if first.get(..count) == Some(b"#!") {
        let problem = "it is a script: what runs is its interpreter, which reads it later, and nothing would be said of what it \
                       contains; name the interpreter, with the script as an argument, if that is enough";
        return Err(Error::Usage(format!("cannot run `{}` for one action: {problem}", path.display())));
    }
    Ok(path)
}

/// The action that a command is: this executable as it is now, with exactly these arguments.
pub(super) fn of(executable: &Path, arguments: &[OsString]) -> Result<Action, Error> {
    let usage = |problem: String| Error::Usage(format!("cannot ask for exactly this command: {problem}"));
    let failed = |source| Error::ReadFile { what: "executable", path: executable.to_owned(), source };
    let text = |text: &std::ffi::OsStr| {
        text.to_str()
            .map(str::to_owned)
            .ok_or_else(|| usage(format!("`{}` is no text", text.to_string_lossy())))
    };
    let arguments = arguments
        .iter()
        .map(|argument| ArgumentPattern::exactly(&text(argument)?).map_err(|error| usage(error.to_string())));
    let path = text(executable.as_os_str())?.parse().map_err(|error: Invalid| usage(error.to_string()))?;
    Ok(Action {
        executable: path,
        sha256: hash(executable).map_err(failed)?,
        arguments: arguments.collect::<Result<_, _>>()?,
    })
}

fn hash(path: &Path) -> io::Result<[u8; 32]> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().into()),
            count => hash.update(buffer.get(..count).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files() {
        let sha256 = "ab".repeat(32);
        let good = format!("executable = \"/bin/a\"\nsha256 = \"{sha256}\"\narguments = [\"-c\", \"*\"]");
        let action = parse(&good).expect("valid");
        assert_eq!(
            (action.executable.as_str(), action.sha256, action.arguments.len()),
            ("/bin/a", [0xab; 32], 2)
        );
        let check = |text: &str, part: &str| {
            let problem = parse(text).expect_err(part).to_string();
            assert!(problem.contains(part), "{problem}");
        };
        check("", "missing field");
        check(&format!("{good}\nuser = 1"), "unknown field");
        check(&good.replace(&sha256, &"xy".repeat(32)), "64 hexadecimal digits");
        check(&good.replace("/bin/a", "a"), "not an absolute path");
        check(&good.replace("*", "\\\\x"), "backslash");
    }

    #[test]
    fn commands() {
        let of_command = |program: &str| executable(&program.into()).map_err(|error| error.to_string());
        let env = of_command("/usr/bin/env").expect("there");
        assert!(of_command("env").expect_err("no path").contains("whole path"));
        let dir = tempfile::tempdir().expect("a folder");
        let script = dir.path().join("script");
        fs::write(&script, "#!/bin/sh\n").expect("written");
        assert!(of_command(script.to_str().expect("text")).expect_err("a script").contains("it is a script"));
        let action = of(&env, &["*".into()]).expect("it can be read");
        assert!(action.arguments[0].matches(b"*") && !action.arguments[0].matches(b"a"));
        assert_eq!(action.sha256, hash(&env).expect("readable"));
    }
}
