//! Incidents as people and programs see them.

use proto::types::{Incident, Timestamp};
use serde::Serialize;

use super::text::cut;
use super::{Row, View, utc};

/// How much of a reason fits a line of a table.
const TEXT_SHOWN_MAX: usize = 60;

/// An incident.
#[derive(Serialize)]
#[allow(missing_docs, reason = "as in access.proto; an absent part was left out")]
pub struct IncidentRow {
    pub id: String,
    pub state: &'static str,
    pub opened: String,
    pub until: String,
    pub by: String,
    pub reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed_by: Option<String>,
    #[serde(skip)]
    ends: Timestamp,
}

impl From<Incident> for IncidentRow {
    fn from(incident: Incident) -> Self {
        let (closed, closed_by) = incident.closed.unzip();
        Self {
            id: incident.id.to_string(),
            state: match (&closed, &closed_by) {
                (None, _) => "open",
                (Some(_), Some(Some(_))) => "closed",
                (Some(_), _) => "over",
            },
            opened: utc(incident.opened),
            until: utc(incident.until),
            by: incident.by.to_string(),
            reason: incident.reason,
            closed: closed.map(utc),
            closed_by: closed_by.flatten().map(|by| by.to_string()),
            ends: incident.until,
        }
    }
}

impl Row for IncidentRow {
    const HEADER: &'static [&'static str] = &["ID", "STATE", "LEFT", "UNTIL", "BY", "REASON"];

    fn cells(&self, view: &View) -> Vec<String> {
        let left = if self.closed.is_none() { view.until(self.ends) } else { String::new() };
        vec![
            self.id.clone(),
            self.state.to_owned(),
            left,
            view.clock(self.ends),
            self.by.clone(),
            cut(&self.reason, TEXT_SHOWN_MAX),
        ]
    }
}
