//! The configuration file → a checked [`Config`].
//!
//! Owns: what an operator may write. Must not know: what the rest does with it.

mod providers;

pub use providers::IdentityProvider;

use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

/// What an operator decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where callers find us.
    pub listen: Listen,
    /// The SQLite file.
    pub database: PathBuf,
    /// The longest that a grant may live: whole seconds, at least one.
    pub max_grant_duration: Duration,
    /// Whom people sign in with; at most 16.
    pub identity_providers: Vec<IdentityProvider>,
}

/// Where callers find us. There is no encryption yet, so nothing but this machine can be allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A loopback address. Port 0: whichever is free.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// Long enough for any shift, short enough that a forgotten grant ends within the day.
const MAX_GRANT_DURATION_DEFAULT: Duration = Duration::from_secs(12 * 60 * 60);

/// Above a year, access is not just in time.
const MAX_GRANT_DURATION: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(366 * 24 * 60 * 60);

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    listen: String,
    database: PathBuf,
    max_grant_duration: Option<String>,
    #[serde(default)]
    identity_provider: Vec<providers::Raw>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration `{path}`")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is not TOML, or has a field that is not known or of the wrong kind.
    #[error("configuration `{path}` is not understood")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where, and why.
        source: Box<toml::de::Error>,
    },
    /// A value breaks a rule.
    #[error("configuration `{path}`: {field} = \"{value}\" {problem}")]
    Value {
        /// Which file.
        path: PathBuf,
        /// Which field.
        field: &'static str,
        /// What it was set to.
        value: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Config {
    /// Reads and checks a file, and those that it names. Relative paths are seen from the file's folder.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let config = Self::parse(&text, path)?;
        Ok(Self { database: folder.join(&config.database), ..config })
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let raw: Raw = toml::from_str(text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        let refuse = |field, value: &str, problem: String| ConfigError::Value {
            path: path.to_owned(),
            field,
            value: value.to_owned(),
            problem,
        };
        let listen = raw.listen.parse().map_err(|problem: String| refuse("listen", &raw.listen, problem))?;
        if raw.database.as_os_str().is_empty() {
            return Err(refuse("database", "", "is empty: write the path of the SQLite file".to_owned()));
        }
        let max_grant_duration = match raw.max_grant_duration {
            None => MAX_GRANT_DURATION_DEFAULT,
            Some(text) => duration_between(&text, &MAX_GRANT_DURATION)
                .map_err(|problem| refuse("max_grant_duration", &text, problem))?,
        };
        let identity_providers = providers::check(raw.identity_provider, path)?;
        Ok(Self { listen, database: raw.database, max_grant_duration, identity_providers })
    }
}

/// A duration in whole seconds, within bounds.
fn duration_between(text: &str, bounds: &RangeInclusive<Duration>) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("is not a duration such as `12h` or `30m`: {error}"))?;
    match bounds.contains(&duration) && duration.subsec_nanos() == 0 {
        true => Ok(duration),
        false => {
            let [least, most] = [bounds.start(), bounds.end()].map(|bound| shown(*bound));
            Err(format!("is not a whole number of seconds from {least} to {most}"))
        }
    }
}

/// As people write it: humantime would show 366 days as a year and 18 hours.
fn shown(duration: Duration) -> String {
    const DAY_S: u64 = 24 * 60 * 60;
    match duration.as_secs().checked_rem(DAY_S) {
        Some(0) => format!("{}days", duration.as_secs() / DAY_S),
        _ => humantime::format_duration(duration).to_string(),
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.starts_with('/') {
                true => Ok(Self::Unix(path.into())),
                false => Err("needs an absolute path behind `unix:`".to_owned()),
            };
        }
        let address: SocketAddr =
            text.parse().map_err(|_| "is not `127.0.0.1:PORT`, `[::1]:PORT` or `unix:/PATH`".to_owned())?;
        match address.ip().to_canonical().is_loopback() {
            true => Ok(Self::Tcp(address)),
            false => Err(
                "can be reached from other machines, and this version has no TLS yet: tokens would cross \
                          the network in clear text. Use `127.0.0.1:PORT`, `[::1]:PORT` or `unix:/PATH`"
                    .to_owned(),
            ),
        }
    }
}

impl Display for Listen {
    /// As it is written, and as callers use it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<(&str, u64), &str>) {
        match (Config::parse(text, Path::new("cp.toml")), expected) {
            (Ok(config), Ok((listen, seconds))) => {
                assert_eq!(config.listen.to_string(), listen);
                assert_eq!(config.max_grant_duration.as_secs(), seconds);
            }
            (Err(error), Err(part)) => {
                let source = error.source().map(ToString::to_string).unwrap_or_default();
                let text = format!("{error}: {source}");
                assert!(text.contains(part), "{text}");
            }
            (parsed, expected) => panic!("{parsed:?}, expected {expected:?}"),
        }
    }

    #[track_caller]
    fn check_with(line: &str, expected: Result<(&str, u64), &str>) {
        check(&format!("listen = '127.0.0.1:7400'\ndatabase = 'cp.db'\n{line}"), expected);
    }

    #[track_caller]
    fn check_listen(listen: &str, expected: Result<(), &str>) {
        let text = format!("listen = '{listen}'\ndatabase = 'cp.db'");
        check(&text, expected.map(|()| (listen, 43_200)));
    }

    #[test]
    fn only_this_machine_is_listened_to() {
        check_listen("127.0.0.1:7400", Ok(()));
        check_listen("127.0.0.1:0", Ok(()));
        check_listen("[::1]:7400", Ok(()));
        check_listen("unix:/run/portcullis/control-plane.sock", Ok(()));
        check_listen(
            "0.0.0.0:7400",
            Err("can be reached from other machines, and this version has no TLS yet"),
        );
        check_listen("[::]:7400", Err("can be reached from other machines"));
        check_listen("10.0.0.7:7400", Err("listen = \"10.0.0.7:7400\" can be reached"));
        check_listen("localhost:7400", Err("is not `127.0.0.1:PORT`"));
        check_listen("127.0.0.1:65536", Err("is not `127.0.0.1:PORT`"));
        check_listen("unix:control-plane.sock", Err("needs an absolute path"));
    }

    #[test]
    fn durations_have_bounds() {
        check_with("max_grant_duration = '8h 30m'", Ok(("127.0.0.1:7400", 30_600)));
        check_with("max_grant_duration = '0s'", Err("1s to 366days"));
        check_with("max_grant_duration = '1500ms'", Err("1s to 366days"));
        check_with("max_grant_duration = '367days'", Err("1s to 366days"));
        check_with("max_grant_duration = 'long'", Err("is not a duration such as"));
    }

    #[test]
    fn mistakes_are_named() {
        check_with("max_grant_durations = '8h'", Err("unknown field `max_grant_durations`"));
        check_with("max_grant_duration = 8", Err("expected a string"));
        check("database = 'cp.db'", Err("missing field `listen`"));
        check("listen = '127.0.0.1:7400'\ndatabase = ''", Err("database = \"\" is empty"));
        check("listen", Err("is not understood"));
    }
}
