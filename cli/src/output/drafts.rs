//! Drafts of requests as people and programs see them.

use proto::types::{Draft, Timestamp};
use serde::Serialize;

use super::{Row, View, utc};

/// A draft.
#[derive(Serialize)]
#[allow(missing_docs, reason = "as in access.proto")]
pub struct DraftRow {
    pub id: String,
    pub subject: String,
    pub resource: String,
    pub host: String,
    pub first: String,
    pub last: String,
    pub attempts: u64,
    pub lapses: String,
    #[serde(skip)]
    seen: Timestamp,
    #[serde(skip)]
    until: Timestamp,
}

impl From<Draft> for DraftRow {
    fn from(draft: Draft) -> Self {
        Self {
            id: draft.id.to_string(),
            subject: draft.subject.to_string(),
            resource: draft.resource.to_string(),
            host: draft.host.to_string(),
            first: utc(draft.first),
            last: utc(draft.last),
            attempts: draft.attempts,
            lapses: utc(draft.lapses),
            seen: draft.last,
            until: draft.lapses,
        }
    }
}

impl Row for DraftRow {
    const HEADER: &'static [&'static str] =
        &["ID", "SUBJECT", "RESOURCE", "HOST", "ATTEMPTS", "LAST", "LAPSES IN"];

    fn cells(&self, view: &View) -> Vec<String> {
        vec![
            self.id.clone(),
            self.subject.clone(),
            self.resource.clone(),
            self.host.clone(),
            self.attempts.to_string(),
            view.clock(self.seen),
            view.until(self.until),
        ]
    }
}
