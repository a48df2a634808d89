//! Actions: what a grant may be used for, once.

use std::fmt::{self, Display};
use std::str::FromStr;

use super::{Invalid, all, quote};
use crate::wire::access as wire;

/// How many arguments an action can have.
const ARGUMENTS_MAX: usize = 64;

/// The longest path, and the longest pattern, in bytes.
const TEXT_MAX_BYTES: usize = 1024;

/// The longest action in all, in bytes: people read it before they say yes.
const ACTION_MAX_BYTES: usize = 8 * 1024;

/// The one thing that a grant may be used for: this program, called like this.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Action {
    /// Absolute and normalized, without symbolic links: what the kernel says that runs.
    pub executable: ExecutablePath,
    /// SHA-256 of the executable's content.
    pub sha256: [u8; 32],
    /// What the arguments must be, the program's own name left out: as many, in this order.
    pub arguments: Vec<ArgumentPattern>,
}

/// The path of an executable: absolute, normalized, at most 1024 bytes, without control characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExecutablePath(String);

impl ExecutablePath {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ExecutablePath {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse =
            |problem: &str| Err(Invalid::new("executable", format_args!("{} {problem}", quote(text))));
        if text.len() > TEXT_MAX_BYTES {
            return refuse("is too long");
        }
        if text.chars().any(char::is_control) {
            return refuse("has a control character");
        }
        let Some(rest) = text.strip_prefix('/') else { return refuse("is not an absolute path") };
        match rest.split('/').any(|part| matches!(part, "" | "." | "..")) {
            true => refuse("is not a normalized path of a file"),
            false => Ok(Self(text.to_owned())),
        }
    }
}

impl Display for ExecutablePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What one argument must be, from its first byte to its last: `*` stands for any bytes, or none; `\*` and `\\` stand for a star and a
/// backslash; everything else stands for itself. At most 1024 bytes, without control characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ArgumentPattern(String);

/// A part of a pattern.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Byte(u8),
    Any,
}

impl ArgumentPattern {
    /// Of this text alone.
    pub fn exactly(text: &str) -> Result<Self, Invalid> {
        text.replace('\\', "\\\\").replace('*', "\\*").parse()
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parts(&self) -> Vec<Part> {
        let mut parts = Vec::with_capacity(self.0.len());
        let mut bytes = self.0.bytes();
        while let Some(byte) = bytes.next() {
            parts.push(match byte {
                b'*' => Part::Any,
                // What comes behind a backslash was checked.
                b'\\' => Part::Byte(bytes.next().unwrap_or(b'\\')),
                byte => Part::Byte(byte),
            });
        }
        parts
    }

    /// Whether it is this, whole.
    pub fn matches(&self, argument: &[u8]) -> bool {
        let parts = self.parts();
        let (mut part, mut at) = (0, 0);
        // Where to go on if what comes behind the last star does not fit: the star takes one byte more.
        let mut retry: Option<(usize, usize)> = None;
        loop {
            match (parts.get(part), argument.get(at)) {
                (Some(Part::Any), _) => {
                    retry = Some((part + 1, at));
                    part += 1;
                }
                (Some(Part::Byte(expected)), Some(found)) if expected == found => {
                    part += 1;
                    at += 1;
                }
                (None, None) => return true,
                _ => match retry {
                    Some((behind, from)) if from < argument.len() => {
                        retry = Some((behind, from + 1));
                        (part, at) = (behind, from + 1);
                    }
                    _ => return false,
                },
            }
        }
    }
}

impl FromStr for ArgumentPattern {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse =
            |problem: &str| Err(Invalid::new("arguments", format_args!("{} {problem}", quote(text))));
        if text.len() > TEXT_MAX_BYTES {
            return refuse("is too long");
        }
        if text.chars().any(char::is_control) {
            return refuse("has a control character");
        }
        let mut chars = text.chars();
        while let Some(char) = chars.next() {
            if char == '\\' && !matches!(chars.next(), Some('*' | '\\')) {
                return refuse("has a backslash before something else than `*` or another one");
            }
        }
        Ok(Self(text.to_owned()))
    }
}

impl Display for ArgumentPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Display for Action {
    /// `/usr/bin/psql "-c" "select 1" (sha256 0123456789ab…)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.executable.as_str())?;
        for argument in &self.arguments {
            write!(f, " \"{argument}\"")?;
        }
        f.write_str(" (sha256 ")?;
        self.sha256.iter().take(6).try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("…)")
    }
}

impl TryFrom<wire::Action> for Action {
    type Error = Invalid;

    fn try_from(wire: wire::Action) -> Result<Self, Invalid> {
        let length: usize = wire.executable.len() + wire.arguments.iter().map(String::len).sum::<usize>();
        if length > ACTION_MAX_BYTES {
            let problem = format_args!("has {length} bytes, at most {ACTION_MAX_BYTES} are possible");
            return Err(Invalid::new("arguments", problem));
        }
        let sha256 = wire.sha256.try_into().map_err(|bytes: Vec<u8>| {
            Invalid::new("sha256", format_args!("has {} bytes, not 32", bytes.len()))
        })?;
        let arguments = all("arguments", wire.arguments, ARGUMENTS_MAX, |text| {
            text.parse().map_err(|error: Invalid| Invalid::new("", error.problem))
        })?;
        Ok(Self { executable: wire.executable.parse()?, sha256, arguments })
    }
}

impl From<Action> for wire::Action {
    fn from(action: Action) -> Self {
        Self {
            executable: action.executable.0,
            sha256: action.sha256.to_vec(),
            arguments: action.arguments.into_iter().map(|argument| argument.0).collect(),
        }
    }
}

/// The only value that `PATH` may have in the environment of an action.
pub const ACTION_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Names that it may have, and those that begin with `LC_`. None of them makes a loader or a shell look elsewhere for what it runs.
const ENVIRONMENT: [&str; 8] = ["COLORTERM", "HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "TERM", "USER"];

/// Whether the environment of an action may have this: `NAME=VALUE`.
pub fn may_be_in_environment(entry: &[u8]) -> bool {
    let Some(entry) = std::str::from_utf8(entry).ok() else { return false };
    match entry.split_once('=') {
        Some(("PATH", value)) => value == ACTION_PATH,
        Some((name, _)) => ENVIRONMENT.contains(&name) || name.starts_with("LC_"),
        None => false,
    }
}

/// None: there is none.
pub(crate) fn optional_action(wire: Option<wire::Action>) -> Result<Option<Action>, Invalid> {
    wire.map(TryInto::try_into).transpose().map_err(|error: Invalid| error.within("action"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, good: &[&str], bad: &[&str]) {
        let parsed: ArgumentPattern = pattern.parse().expect(pattern);
        good.iter().for_each(|text| assert!(parsed.matches(text.as_bytes()), "{pattern} {text}"));
        bad.iter().for_each(|text| assert!(!parsed.matches(text.as_bytes()), "{pattern} {text}"));
    }

    #[test]
    fn a_pattern_is_the_whole_argument() {
        check("", &[""], &["a"]);
        check("abc", &["abc"], &["", "ab", "abcd", "xabc", "ABC", "a*c"]);
        check("*", &["", "anything at all"], &[]);
        check("a*", &["a", "abc"], &["", "ba"]);
        check("*c", &["c", "abc", "cc"], &["", "cb"]);
        check("a*b*c", &["abc", "axbxc", "abbcc", "abcbc"], &["ac", "abcb", "bc", "acb"]);
        check(r"\*", &["*"], &["", "a", r"\*"]);
        check(r"a\\b", &[r"a\b"], &[r"a\\b"]);
        check("select ?[a-z]", &["select ?[a-z]"], &["select ab"]);
        for bad in [r"\", r"\a", r"a\\\", "a\nb", "a\0b"] {
            assert!(bad.parse::<ArgumentPattern>().is_err(), "{bad:?}");
        }
        for text in ["", "*", r"\", r"\*", "plain", "*a*"] {
            let pattern = ArgumentPattern::exactly(text).expect(text);
            assert!(pattern.matches(text.as_bytes()), "{text}");
            assert!(!pattern.matches(format!("{text}x").as_bytes()), "{text}");
        }
    }

    #[test]
    fn actions() {
        let wire = wire::Action {
            executable: "/usr/bin/psql".into(),
            sha256: vec![0xab; 32],
            arguments: vec!["-c".into(), "select *".into()],
        };
        let action = Action::try_from(wire.clone()).expect("valid");
        assert_eq!(action.to_string(), "/usr/bin/psql \"-c\" \"select *\" (sha256 abababababab…)");
        assert_eq!(wire::Action::from(action), wire);
        let check = |change: fn(&mut wire::Action), part: &str| {
            let mut wire = wire.clone();
            change(&mut wire);
            let error = optional_action(Some(wire)).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        };
        check(|wire| wire.executable = "psql".into(), "action.executable: `psql` is not an absolute path");
        for path in ["/", "/usr//bin/psql", "/usr/../psql", "/usr/bin/", "/./a"] {
            assert!(path.parse::<ExecutablePath>().is_err(), "{path}");
        }
        check(|wire| wire.sha256.truncate(31), "action.sha256: has 31 bytes, not 32");
        check(|wire| wire.arguments = vec!["a".into(); 65], "action.arguments: has 65 entries");
        check(|wire| wire.arguments = vec!["a".repeat(1025)], "is too long");
        check(|wire| wire.arguments = vec!["a".repeat(1000); 9], "at most 8192 are possible");
    }

    proptest::proptest! {
        #[test]
        fn a_pattern_of_stars_takes_no_time(argument in "[ab]{0,200}") {
            let pattern: ArgumentPattern = "a*a*a*a*a*a*a*a*a*a*b*c".parse().expect("valid");
            let _ = pattern.matches(argument.as_bytes());
        }

        #[test]
        fn what_is_exact_is_only_itself(text in "[ab*\\\\]{0,8}", other in "[ab*\\\\]{0,8}") {
            let pattern = ArgumentPattern::exactly(&text).expect("valid");
            proptest::prop_assert_eq!(pattern.matches(other.as_bytes()), text == other);
        }
    }
}
