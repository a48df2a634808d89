//! What was seen: a row for each technique, and the file they are written to when asked.

use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::technique::{Granted, Kept, Stop, Technique, Tier, Unprotected, WithCheck};

/// Names the file that the rows are written to, one JSON object a line. `cargo xtask bypass-table` reads it.
const VARIABLE: &str = "PORTCULLIS_BYPASS_TABLE";

static ROWS: Mutex<Vec<Row>> = Mutex::new(Vec::new());

/// What came of one way.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Seen {
    /// It was not tried.
    NotTried,
    /// Nothing arrived; what the caller was told.
    Stopped(String),
    /// It arrived; what the caller was told.
    Through(String),
}

impl Seen {
    pub(crate) fn of(arrived: bool, said: &str) -> Self {
        match arrived {
            true => Self::Through(said.to_owned()),
            false => Self::Stopped(said.to_owned()),
        }
    }

    pub(crate) fn arrived(&self) -> bool {
        matches!(self, Self::Through(_))
    }

    /// It may have arrived since.
    pub(crate) fn recheck(&mut self, arrived: bool) {
        if let Self::Stopped(said) = self
            && arrived
        {
            *self = Self::Through(format!("later; {said}"));
        }
    }

    pub(crate) fn said(&self) -> &str {
        match self {
            Self::NotTried => "",
            Self::Stopped(said) | Self::Through(said) => said,
        }
    }
}

/// One technique on one kernel.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    kernel: String,
    technique: &'static str,
    needs: &'static str,
    /// What stops it, or why nothing does.
    stop: &'static str,
    /// Whether it must not get through without a grant: `stopped`, `lent` or `reported`.
    expected: &'static str,
    /// Whether it is a part of the LSM tier that stops it.
    tier: bool,
    /// Why it cannot be tried on this kernel.
    skipped: Option<&'static str>,
    pub(crate) ungranted: Seen,
    pub(crate) granted: Seen,
    /// Why a grant does not open it.
    granted_note: Option<&'static str>,
    pub(crate) unprotected: Seen,
    unprotected_note: Option<&'static str>,
    /// After the end of the grant, on a socket kept from before; `not_tried` where there is none to keep.
    pub(crate) kept: Seen,
    /// Without a grant, where each write is judged; `not_tried` where nothing is lent.
    pub(crate) checked: Seen,
    /// Why the check does not stop it.
    checked_note: Option<&'static str>,
    /// How the grant ended.
    ended_by: Option<&'static str>,
}

impl Row {
    /// `tier` is the part of the LSM tier that is there and stops it.
    pub(crate) fn new(technique: &Technique, tier: Option<Tier>) -> Self {
        let (expected, stop) = match (tier, technique.stop) {
            (Some(tier), _) => ("stopped", tier.hook()),
            (None, Stop::By(by)) => ("stopped", by),
            (None, Stop::Lent { why, .. }) => ("lent", why),
            (None, Stop::Nothing(why)) => ("reported", why),
        };
        Self {
            kernel: kernel_release(),
            technique: technique.name,
            needs: technique.needs.as_str(),
            stop,
            expected,
            tier: tier.is_some(),
            skipped: None,
            ungranted: Seen::NotTried,
            granted: Seen::NotTried,
            granted_note: match (tier, technique.granted) {
                (Some(tier), _) => Some(tier.why()),
                (None, Granted::Arrives) => None,
                (None, Granted::Refused(why) | Granted::Either(why)) => Some(why),
            },
            unprotected: Seen::NotTried,
            unprotected_note: match technique.unprotected_with(tier) {
                Unprotected::Arrives => None,
                Unprotected::NotTried(why) => Some(why),
            },
            kept: Seen::NotTried,
            checked: Seen::NotTried,
            checked_note: match technique.stop {
                Stop::Lent { with_check: WithCheck::NotSeen(why), .. } => Some(why),
                _ => None,
            },
            ended_by: match technique.kept {
                Kept::No => None,
                Kept::Revoked | Kept::Unread => Some("revocation"),
                Kept::Expired => Some("deadline"),
            },
        }
    }

    pub(crate) fn skipped(technique: &Technique, reason: &'static str) -> Self {
        Self { skipped: Some(reason), ..Self::new(technique, None) }
    }
}

/// What `uname -r` says.
pub(crate) fn kernel_release() -> String {
    let name = rustix::system::uname();
    name.release().to_string_lossy().into_owned()
}

/// Remembers a row.
pub(crate) fn add(row: Row) {
    ROWS.lock().expect("no holder panics").push(row);
}

/// Writes all rows, in the order of the techniques, if that was asked for.
pub(crate) fn write_if_asked(techniques: &[&Technique]) -> Result<()> {
    let Some(path) = std::env::var_os(VARIABLE).map(PathBuf::from) else { return Ok(()) };
    let rows = ROWS.lock().expect("no holder panics");
    let mut text = String::new();
    for technique in techniques {
        for row in rows.iter().filter(|row| row.technique == technique.name) {
            text += &serde_json::to_string(row)?;
            text.push('\n');
        }
    }
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}
