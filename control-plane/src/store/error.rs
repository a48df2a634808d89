//! What can go wrong with the record.

use std::path::PathBuf;

use proto::status::ErrorKind;
use proto::types::Invalid;

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
    Exists(PathBuf),
    /// There is no database.
    #[error("database `{0}` does not exist")]
    Absent(PathBuf),
    /// A file that is no database of ours, or one whose making was broken off.
    #[error("`{0}` is not a complete database of a control plane")]
    Incomplete(PathBuf),
    /// Another control plane runs on it.
    #[error("database `{0}` is in use by another control plane")]
    InUse(PathBuf),
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
    #[error("cannot bring the tables of `{path}` up to date")]
    Migrate {
        /// Of which database.
        path: PathBuf,
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
            Self::Sql { source: sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed, .. } => {
                ErrorKind::Unavailable
            }
            Self::Abandoned => ErrorKind::Unavailable,
            Self::Sql { .. }
            | Self::Broken { .. }
            | Self::Exists(_)
            | Self::Absent(_)
            | Self::Incomplete(_)
            | Self::InUse(_)
            | Self::File { .. }
            | Self::Migrate { .. } => ErrorKind::Internal,
        }
    }

    /// What to do next; empty: nothing that would help is known.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.hint(),
            Self::Exists(_) => "it was left as it is; choose another path, or use it with `serve`",
            Self::Absent(_) => "make it with `portcullis-control-plane init`",
            Self::Incomplete(_) => "if it was left by an interrupted `init`, remove it and run `init` again",
            Self::InUse(_) => "stop the other control plane first",
            Self::Sql { .. }
            | Self::Abandoned
            | Self::Broken { .. }
            | Self::File { .. }
            | Self::Migrate { .. } => "",
        }
    }
}
