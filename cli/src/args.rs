//! The command line: global arguments, the list of verbs, and what turns a word into a checked value.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, ValueEnum};
use proto::types::{Invalid, Outage, Reason, SubjectRole, Timestamp};

use crate::commands::Command;
use crate::connect::Server;
use crate::error;

const AFTER_HELP: &str = "\
Examples:
  portcullis login --token-file alice.token
  portcullis request db-prod --for 30m --reason 'slow query, INC-42' --wait && psql -h db-prod
  portcullis audit tail --follow -o json | my-collector

Names:
  A subject is `user:NAME` or `workload:NAME`. A duration is a number with its
  unit, such as 90s, 30m, 8h or 1h30m. An id of a request or a grant is the UUID
  that `requests` and `grants` show.
";

/// Just-in-time access to protected ports
///
/// A connection to a protected port is denied in the kernel of the host, unless a live grant lets its subject through. Ask for
/// a grant with `request`, decide about one with `approve` and `deny`, and read what happened with `audit tail`.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, max_term_width = 110, arg_required_else_help = true)]
#[command(after_help = format!("{AFTER_HELP}\n{}", error::exit_code_help()), color = clap::ColorChoice::Never)]
pub struct Arguments {
    /// What holds for every verb.
    #[command(flatten)]
    pub global: Global,
    /// The verb.
    #[command(subcommand)]
    pub command: Command,
}

/// Arguments that every verb takes.
#[derive(Args, Debug)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// How results are printed: a table for people (columns two spaces apart, no colours), or JSON
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub output: Format,

    /// Where the control plane listens: `https://HOST:PORT` or `unix:/PATH`
    ///
    /// Without it: the server of the last `login`, else https://127.0.0.1:7400.
    #[arg(long, global = true, value_name = "URL", env = "PORTCULLIS_SERVER", hide_env_values = true)]
    pub server: Option<Server>,

    /// File with the token to sign in with; `-` reads standard input
    ///
    /// Without it: the token of the last `login`, if it was for the same server.
    #[arg(long, global = true, value_name = "FILE", env = "PORTCULLIS_TOKEN_FILE", hide_env_values = true)]
    pub token_file: Option<PathBuf>,

    /// File with the token of a job, which signs in by itself for this call; `-` reads standard input
    ///
    /// A CI job's, or that of a pod: a JWT of an issuer that the control plane knows. Or the token itself in
    /// PORTCULLIS_WORKLOAD_TOKEN. On GitHub Actions neither is needed: with the permission `id-token: write` one is asked for
    /// there, for the audience in PORTCULLIS_WORKLOAD_AUDIENCE (else `portcullis`).
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "PORTCULLIS_WORKLOAD_TOKEN_FILE",
        hide_env_values = true,
        conflicts_with = "token_file"
    )]
    pub workload_token_file: Option<PathBuf>,

    /// File with the authority that has signed the control plane's certificate (PEM)
    ///
    /// Without it: that of the last `login`, if it was for the same server, else the authorities of this system. The control
    /// plane's own one is `ca.pem` in its folder `authority`.
    #[arg(long, global = true, value_name = "FILE", env = "PORTCULLIS_CA_FILE", hide_env_values = true)]
    pub ca_file: Option<PathBuf>,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For spreadsheets: of `report review` alone.
    Csv,
}

/// A value by its own rule; clap names the argument and the value, so the problem alone is told.
pub(crate) fn checked<T: FromStr<Err = Invalid>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: Invalid| error.problem)
}

/// An approver's remark: may be empty.
pub(crate) fn comment(text: &str) -> Result<String, String> {
    Reason::optional("comment", text).map_err(|error| error.problem)
}

/// A duration in whole seconds, at least one.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let refuse = |problem: &dyn Display| format!("{problem}: write a number and its unit, such as 30m");
    let duration = humantime::parse_duration(text).map_err(|error| refuse(&error))?;
    match duration.is_zero() || duration.subsec_nanos() != 0 {
        true => Err(refuse(&"a duration is 1 s or more, in whole seconds")),
        false => Ok(duration),
    }
}

/// What becomes of live grants in an outage: `hold`, `cut`, or `shrink:` and a duration.
pub(crate) fn outage(text: &str) -> Result<Outage, String> {
    let seconds = match text.strip_prefix("shrink:") {
        Some(time) => Some(duration(time)?.as_secs()),
        None => None,
    };
    let text = seconds.map_or_else(|| text.to_owned(), |seconds| format!("shrink:{seconds}s"));
    checked(&text)
}

/// Roles, which `--help` lists.
pub(crate) fn role() -> impl TypedValueParser<Value = SubjectRole> {
    PossibleValuesParser::new(SubjectRole::ALL.map(SubjectRole::as_str))
        .try_map(|text| text.parse::<SubjectRole>())
}

/// A moment of the past, as people name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// So long ago.
    Ago(Duration),
    /// Then.
    At(Timestamp),
}

impl Since {
    /// Which moment it is. What lies before 1970 is 1970.
    pub fn moment(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Ago(duration) => {
                let ms = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
                let unix_ms = now.unix_ms().saturating_sub(ms).max(0);
                Timestamp::from_unix_ms(unix_ms).unwrap_or(now)
            }
            Self::At(moment) => moment,
        }
    }
}

/// Reads how long ago it is, a day, or a moment.
pub(crate) fn since(text: &str) -> Result<Since, String> {
    match duration(text) {
        Ok(duration) => Ok(Since::Ago(duration)),
        Err(_) => {
            moment_or_day(text).map(Since::At).map_err(|error| format!("{error}; or a duration, such as 30d"))
        }
    }
}

/// Reads a day, which begins at midnight in UTC, or a moment.
pub(crate) fn moment_or_day(text: &str) -> Result<Timestamp, String> {
    match text.len() <= "2026-10-01".len() {
        true => moment(&format!("{text}T00:00:00Z")),
        false => moment(text),
    }
    .map_err(|_| "write a day or a moment in UTC, such as 2026-10-01 or 2026-10-01T08:00:00Z".to_owned())
}

/// Reads a moment: RFC 3339.
pub(crate) fn moment(text: &str) -> Result<Timestamp, String> {
    let time: jiff::Timestamp = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    Timestamp::from_unix_ms(time.as_millisecond()).map_err(|error| error.problem)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn moments_of_the_past() {
        let now = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
        let shown = |text: &str| since(text).map(|since| since.moment(now).unix_ms());
        assert_eq!(shown("1d"), Ok(1_795_000_000_000 - 86_400_000));
        assert_eq!(shown("9999y"), Ok(0));
        assert_eq!(shown("2026-10-01"), Ok(1_790_812_800_000));
        assert_eq!(shown("2026-10-01T00:00:01Z"), Ok(1_790_812_801_000));
        for bad in ["", "0", "soon", "2026-13-01", "2026-10-01T25:00:00Z", "-1d"] {
            assert!(since(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("30m"), Ok(Duration::from_secs(1800)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        for bad in ["", "0", "0s", "1500ms", "30", "-5m", "soon"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
