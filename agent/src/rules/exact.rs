//! Whether what a process has become is the one thing that a grant may be used for.
//!
//! Owns: what is compared. Must not know: how any of it was read.
//!
//! Invariant: whatever is not known to be right is wrong.

use proto::types::{Action, RunRefusal, may_be_in_environment};

/// What a process is, at the moment in which it has become a program and has not begun to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The path of its executable, as the kernel says it.
    pub executable: String,
    /// SHA-256 of its content.
    pub sha256: [u8; 32],
    /// It is the file that the host's first process finds at that path, and nobody but root can write to it, or to what leads there.
    pub is_roots: bool,
    /// It sees the host's own files, processes and users, and its root is theirs.
    pub is_at_home: bool,
    /// Its arguments, its own name first.
    pub arguments: Vec<Vec<u8>>,
    /// Its environment: `NAME=VALUE`.
    pub environment: Vec<Vec<u8>>,
}

/// Why a process is not what the grant is for.
pub fn check(action: &Action, found: &Found) -> Result<(), (RunRefusal, String)> {
    let other = |what: &str| Err((RunRefusal::OtherExecutable, what.to_owned()));
    if !found.is_at_home {
        return other("the process is in namespaces of its own, or below another root");
    }
    if found.executable != action.executable.as_str() {
        let text = format!("it is {}, and not {}", found.executable.escape_debug(), action.executable);
        return Err((RunRefusal::OtherExecutable, text));
    }
    if !found.is_roots {
        return other("others than root can change the file, or what leads to it");
    }
    if found.sha256 != action.sha256 {
        return other("the content of the file is another");
    }
    let Some((name, arguments)) = found.arguments.split_first() else {
        return Err((RunRefusal::OtherArguments, "there are none, not even its own name".to_owned()));
    };
    if name.as_slice() != action.executable.as_str().as_bytes() {
        return Err((RunRefusal::OtherArguments, "it is not called by its path".to_owned()));
    }
    if arguments.len() != action.arguments.len() {
        let text = format!("there are {}, and not {}", arguments.len(), action.arguments.len());
        return Err((RunRefusal::OtherArguments, text));
    }
    let differs = arguments.iter().zip(&action.arguments).position(|(is, wanted)| !wanted.matches(is));
    if let Some(index) = differs {
        return Err((RunRefusal::OtherArguments, format!("the one at {} is another", index + 1)));
    }
    match found.environment.iter().find(|entry| !may_be_in_environment(entry)) {
        None => Ok(()),
        Some(entry) => {
            let name: Vec<u8> = entry.iter().copied().take_while(|byte| *byte != b'=').take(80).collect();
            let name = String::from_utf8_lossy(&name);
            Err((
                RunRefusal::OtherEnvironment,
                format!("`{}` may not be there, or not be that", name.escape_debug()),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action() -> Action {
        let arguments = ["-c", "select *"].map(|text| text.parse().expect("valid")).to_vec();
        Action { executable: "/usr/bin/psql".parse().expect("valid"), sha256: [7; 32], arguments }
    }

    fn found() -> Found {
        let bytes = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect();
        Found {
            executable: "/usr/bin/psql".to_owned(),
            sha256: [7; 32],
            is_roots: true,
            is_at_home: true,
            arguments: bytes(&["/usr/bin/psql", "-c", "select 1"]),
            environment: bytes(&["HOME=/root", &format!("PATH={}", proto::types::ACTION_PATH), "LC_ALL=C"]),
        }
    }

    #[track_caller]
    fn refused(change: impl FnOnce(&mut Found), expected: RunRefusal) {
        let mut found = found();
        change(&mut found);
        assert_eq!(check(&action(), &found).map_err(|(reason, _)| reason), Err(expected));
    }

    #[test]
    fn exactly_what_was_granted_may_begin() {
        use RunRefusal::{OtherArguments, OtherEnvironment, OtherExecutable};
        assert_eq!(check(&action(), &found()), Ok(()));
        refused(|found| found.executable.push('x'), OtherExecutable);
        refused(|found| found.executable.push_str(" (deleted)"), OtherExecutable);
        refused(|found| found.sha256[31] = 0, OtherExecutable);
        refused(|found| found.is_roots = false, OtherExecutable);
        refused(|found| found.is_at_home = false, OtherExecutable);
        refused(|found| found.arguments.clear(), OtherArguments);
        refused(|found| found.arguments[0] = b"psql".to_vec(), OtherArguments);
        refused(|found| found.arguments.push(b"-x".to_vec()), OtherArguments);
        refused(|found| drop(found.arguments.pop()), OtherArguments);
        refused(|found| found.arguments[1] = b"-f".to_vec(), OtherArguments);
        refused(|found| found.arguments[2] = b"drop table a".to_vec(), OtherArguments);
        let with = |entry: &'static [u8]| move |found: &mut Found| found.environment.push(entry.to_vec());
        for entry in [
            &b"LD_PRELOAD=/tmp/x.so"[..],
            b"LD_AUDIT=x",
            b"GCONV_PATH=/tmp",
            b"BASH_ENV=/tmp/x",
            b"PGSERVICEFILE=/tmp/x",
            b"PATH=/tmp",
            b"LC",
            b"",
            b"\xff=1",
            b"HOME",
        ] {
            refused(with(entry), OtherEnvironment);
        }
    }
}
