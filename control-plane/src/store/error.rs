//! What can go wrong with the record.

use std::path::PathBuf;

use proto::json::utc;
use proto::status::ErrorKind;
use proto::types::{Fingerprint, HostName, Invalid, Timestamp};

use crate::rules::Refusal;

/// Why something could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The rules say no; nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The database could not do it.
    #[error("cannot {doing} in the database")]
    Sql {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        source: sqlx::Error,
    },
    /// A row does not hold what we wrote.
    #[error("the database has a broken {what}")]
    Broken {
        /// Which column.
        what: &'static str,
        /// What is wrong with it.
        source: Invalid,
    },
    /// The control plane is being torn down.
    #[error("the change was abandoned")]
    Abandoned,
    /// There is a database where a new one was to be made.
    #[error("database `{0}` exists already")]
    Exists(String),
    /// There is no database.
    #[error("database `{0}` does not exist")]
    Absent(String),
    /// A PostgreSQL database without our tables.
    #[error("database `{0}` has no tables of a control plane")]
    Empty(String),
    /// A PostgreSQL database that cannot hold every text.
    #[error("database `{database}` is encoded as {encoding}, not as UTF8")]
    Encoding {
        /// Which database.
        database: String,
        /// As what.
        encoding: String,
    },
    /// A file that is no database of ours, or one whose making was broken off.
    #[error("`{0}` is not a complete database of a control plane")]
    Incomplete(String),
    /// Another control plane runs on it.
    #[error("database `{0}` is in use by another control plane")]
    InUse(String),
    /// What only files can have.
    #[error("database `{0}` is no file that could be copied")]
    NoFile(String),
    /// The server of the database does not let us in, or cannot be reached.
    #[error("cannot connect to database `{database}`")]
    Connect {
        /// Which database.
        database: String,
        /// Why not.
        source: sqlx::Error,
    },
    /// A newer control plane has changed the tables.
    #[error(
        "a newer control plane has brought database `{0}` up to date, and this one does not know its tables"
    )]
    Outdated(String),
    /// Another control plane on the database signs by another authority: hosts that join here would be strangers there.
    #[error("another control plane on this database has the authority {theirs}, and this one has {ours}")]
    OtherAuthority {
        /// By which we sign.
        ours: Fingerprint,
        /// By which the other one does.
        theirs: String,
    },
    /// Our wall clock or the server's is wrong.
    #[error(
        "the wall clock of this machine says {}, and that of the server of database `{database}` {}",
        utc(*ours),
        utc(*theirs)
    )]
    ClocksApart {
        /// Which database.
        database: String,
        /// By this machine.
        ours: Timestamp,
        /// By the server.
        theirs: Timestamp,
    },
    /// A newer session of the host has begun, here or elsewhere.
    #[error("a newer session of host `{0}` has begun")]
    Superseded(HostName),
    /// A file could not be made or opened.
    #[error("cannot {doing} `{path}`")]
    File {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The tables could not be made or brought up to date.
    #[error("cannot bring the tables of `{database}` up to date")]
    Migrate {
        /// Of which database.
        database: String,
        /// Why not.
        source: sqlx::migrate::MigrateError,
    },
}

impl StoreError {
    /// Wraps what the database says.
    pub(super) fn sql(doing: &'static str) -> impl Fn(sqlx::Error) -> Self {
        move |source| Self::Sql { doing, source }
    }

    /// Wraps what a row's value breaks.
    pub(super) fn broken(what: &'static str) -> impl Fn(Invalid) -> Self {
        move |source| Self::Broken { what, source }
    }

    /// What sort of error it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(refusal) => refusal.kind(),
            Self::Sql { source, .. } if is_away(source) => ErrorKind::Unavailable,
            Self::Abandoned | Self::Connect { .. } | Self::Outdated(_) => ErrorKind::Unavailable,
            Self::Superseded(_) => ErrorKind::Aborted,
            Self::Sql { .. }
            | Self::Broken { .. }
            | Self::Exists(_)
            | Self::Absent(_)
            | Self::Empty(_)
            | Self::NoFile(_)
            | Self::Encoding { .. }
            | Self::Incomplete(_)
            | Self::InUse(_)
            | Self::OtherAuthority { .. }
            | Self::ClocksApart { .. }
            | Self::File { .. }
            | Self::Migrate { .. } => ErrorKind::Internal,
        }
    }

    /// What to do next; empty: nothing that would help is known.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.hint(),
            Self::Exists(_) => "it was left as it is; choose another one, or use it with `serve`",
            Self::Absent(_) => "make it with `portcullis-control-plane init`",
            Self::NoFile(_) => "back it up with its server, or with pg_dump",
            Self::Empty(_) => "make them with `portcullis-control-plane init`",
            Self::Encoding { .. } => {
                "make another one: CREATE DATABASE … TEMPLATE template0 ENCODING 'UTF8', and name it in `database.url`"
            }
            Self::Connect { source, .. } => match sql_state(source).as_deref() {
                Some("3D000") => {
                    "make it first: CREATE DATABASE … OWNER … TEMPLATE template0 ENCODING 'UTF8'"
                }
                Some("28000" | "28P01") => {
                    "compare the user of `database.url`, `database.password_file`, and the server's pg_hba.conf"
                }
                _ => {
                    "see that the server runs, and that `database.url`, `database.tls` and `database.ca_file` are right"
                }
            },
            Self::Outdated(_) => "run this one from the same version",
            Self::OtherAuthority { .. } => {
                "give all control planes on a database the same folder `authority`: copy that of the first one"
            }
            Self::ClocksApart { .. } => {
                "set the wrong one right (`timedatectl`, `chronyc tracking`), and start again: by a wrong clock everybody's grants would end at the wrong time"
            }
            Self::Incomplete(_) => "if it was left by an interrupted `init`, remove it and run `init` again",
            Self::InUse(_) => "stop the other control plane first",
            Self::Migrate { source: sqlx::migrate::MigrateError::VersionMissing(_), .. } => {
                "a newer control plane has used it: run this one from the same version"
            }
            Self::Sql { .. }
            | Self::Abandoned
            | Self::Superseded(_)
            | Self::Broken { .. }
            | Self::File { .. }
            | Self::Migrate { .. } => "",
        }
    }
}

/// What PostgreSQL calls the error.
fn sql_state(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

/// Whether the database cannot be reached at the moment.
fn is_away(error: &sqlx::Error) -> bool {
    use sqlx::Error;
    match error {
        Error::PoolTimedOut | Error::PoolClosed | Error::Io(_) | Error::Tls(_) => true,
        // SQLite has numbers, none of which is as long: connection, resources, and what an operator does to a server.
        Error::Database(error) => error.code().is_some_and(|code| {
            code.len() == 5 && ["08", "53", "57"].iter().any(|class| code.starts_with(class))
        }),
        _ => false,
    }
}
