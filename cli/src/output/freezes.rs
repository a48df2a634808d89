//! Freezes as people and programs see them.

use proto::types::{Freeze, Frozen, Timestamp};
use serde::Serialize;

use super::text::{cut, words};
use super::{Row, View, utc};

/// How much of a reason fits a line of a table.
const TEXT_SHOWN_MAX: usize = 60;

/// A freeze.
#[derive(Serialize)]
#[allow(missing_docs, reason = "as in access.proto; an absent part was left out")]
pub struct FreezeRow {
    pub id: String,
    pub state: &'static str,
    pub all: bool,
    pub resources: Vec<String>,
    pub began: String,
    pub until: String,
    pub by: String,
    pub reason: String,
    pub keep_live: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_by: Option<String>,
    /// How many live grants have ended when it began; only then that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grants_ended: Option<u32>,
    #[serde(skip)]
    lifts: Timestamp,
}

impl FreezeRow {
    /// `grants_ended`: how many live grants have ended by it; None: that is not known any more.
    pub fn new(freeze: Freeze, grants_ended: Option<u32>) -> Self {
        let (ended, ended_by) = freeze.ended.unzip();
        Self {
            id: freeze.id.to_string(),
            state: match (&ended, &ended_by) {
                (None, _) => "holds",
                (Some(_), Some(Some(_))) => "thawed",
                (Some(_), _) => "over",
            },
            all: freeze.what == Frozen::All,
            resources: match freeze.what {
                Frozen::All => Vec::new(),
                Frozen::These(names) => names.iter().map(ToString::to_string).collect(),
            },
            began: utc(freeze.began),
            until: utc(freeze.until),
            by: freeze.by.to_string(),
            reason: freeze.reason.to_string(),
            keep_live: freeze.keep_live,
            ended: ended.map(utc),
            ended_by: ended_by.flatten().map(|by| by.to_string()),
            grants_ended,
            lifts: freeze.until,
        }
    }
}

impl From<Freeze> for FreezeRow {
    fn from(freeze: Freeze) -> Self {
        Self::new(freeze, None)
    }
}

impl Row for FreezeRow {
    const HEADER: &'static [&'static str] = &["ID", "STATE", "LEFT", "UNTIL", "RESOURCES", "BY", "REASON"];

    fn cells(&self, view: &View) -> Vec<String> {
        let left = if self.ended.is_none() { view.until(self.lifts) } else { String::new() };
        vec![
            self.id.clone(),
            self.state.to_owned(),
            left,
            view.clock(self.lifts),
            if self.all { "all".to_owned() } else { words(&self.resources) },
            self.by.clone(),
            cut(&self.reason, TEXT_SHOWN_MAX),
        ]
    }
}
