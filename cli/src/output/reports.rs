//! Reports, as people, programs and spreadsheets see them.

use std::io::{self, Write};

use proto::types::{GrantUse, Request, ReviewedAccess, RoleUse, Timestamp, Vote};
use serde::Serialize;

use super::rows::{RequestRow, VotePart};
use super::text::{cut, escape, exact, words};
use super::{Row, View, json, table, utc};
use crate::args::Format;

/// How much of a text fits a line of a table.
const TEXT_SHOWN_MAX: usize = 100;

/// One grant, against what was used of it.
#[derive(Serialize)]
#[allow(missing_docs, reason = "as in report.proto; an absent part was left out")]
pub struct GrantUseRow {
    pub grant: String,
    pub request: String,
    pub subject: String,
    pub resource: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    pub usage: &'static str,
    pub hosts: u32,
    pub hosts_used: u32,
    pub hosts_unused: Vec<String>,
    pub ports: Vec<String>,
    pub ports_used: Vec<String>,
    pub since: String,
    pub until: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_used: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used: Option<String>,
    pub granted_s: u64,
    pub used_s: u64,
    pub connections: u64,
    pub notes: Vec<String>,
}

impl From<GrantUse> for GrantUseRow {
    fn from(grant: GrantUse) -> Self {
        let used = grant.used;
        Self {
            grant: grant.grant.to_string(),
            request: grant.request.to_string(),
            subject: grant.subject.to_string(),
            resource: grant.resource.to_string(),
            role: grant.role.map(|role| role.to_string()),
            usage: grant.usage.as_str(),
            hosts: grant.hosts,
            hosts_used: grant.hosts_used,
            hosts_unused: grant.hosts_unused.iter().map(ToString::to_string).collect(),
            ports: grant.ports,
            ports_used: grant.ports_used,
            since: utc(grant.since),
            until: utc(grant.until),
            first_used: used.map(|(first, _)| utc(first)),
            last_used: used.map(|(_, last)| utc(last)),
            granted_s: grant.until.since(grant.since).as_secs(),
            used_s: used.map(|(first, last)| last.since(first).as_secs()).unwrap_or_default(),
            connections: grant.connections,
            notes: grant.notes,
        }
    }
}

impl Row for GrantUseRow {
    const HEADER: &'static [&'static str] = &[
        "GRANT",
        "SUBJECT",
        "RESOURCE",
        "ROLE",
        "USAGE",
        "HOSTS",
        "PORTS-USED",
        "TIME",
        "CONNECTIONS",
        "NOTES",
    ];

    fn cells(&self, _: &View) -> Vec<String> {
        let time = |seconds| exact(std::time::Duration::from_secs(seconds));
        vec![
            self.grant.clone(),
            self.subject.clone(),
            self.resource.clone(),
            self.role.clone().unwrap_or_default(),
            self.usage.to_owned(),
            format!("{}/{}", self.hosts_used, self.hosts),
            words(&self.ports_used),
            format!("{}/{}", time(self.used_s), time(self.granted_s)),
            self.connections.to_string(),
            cut(&self.notes.join("; "), TEXT_SHOWN_MAX),
        ]
    }
}

/// A role, against what was used of it.
#[derive(Serialize)]
#[allow(missing_docs, reason = "as in report.proto; an absent part was left out")]
pub struct RoleRow {
    pub role: String,
    pub grants: u64,
    pub unused: u64,
    pub unknown: u64,
    pub subjects: Vec<String>,
    pub other_subjects: u32,
    pub longest_s: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maximum_s: Option<u64>,
    pub resources_unused: Vec<String>,
    pub hosts_unused: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub suggestion: String,
    pub notes: Vec<String>,
}

impl From<RoleUse> for RoleRow {
    fn from(role: RoleUse) -> Self {
        Self {
            role: role.role.to_string(),
            grants: role.grants,
            unused: role.unused,
            unknown: role.unknown,
            subjects: role.subjects.iter().map(ToString::to_string).collect(),
            other_subjects: role.other_subjects,
            longest_s: role.longest.as_secs(),
            maximum_s: role.maximum.map(|maximum| maximum.as_secs()),
            resources_unused: role.resources_unused.iter().map(ToString::to_string).collect(),
            hosts_unused: role.hosts_unused.iter().map(ToString::to_string).collect(),
            suggestion: role.suggestion,
            notes: role.notes,
        }
    }
}

impl Row for RoleRow {
    const HEADER: &'static [&'static str] =
        &["ROLE", "GRANTS", "UNUSED", "UNKNOWN", "SUBJECTS", "LONGEST", "MAXIMUM", "NARROWER"];

    fn cells(&self, _: &View) -> Vec<String> {
        let time = |seconds| exact(std::time::Duration::from_secs(seconds));
        let others =
            if self.other_subjects > 0 { format!(",+{}", self.other_subjects) } else { String::new() };
        vec![
            self.role.clone(),
            self.grants.to_string(),
            self.unused.to_string(),
            self.unknown.to_string(),
            format!("{}{others}", words(&self.subjects)),
            time(self.longest_s),
            self.maximum_s.map(time).unwrap_or_default(),
            cut(&self.notes.join("; "), TEXT_SHOWN_MAX),
        ]
    }
}

/// A request that waits.
#[derive(Serialize)]
#[allow(missing_docs, reason = "as of a request")]
pub struct WaitingRow {
    pub waited_for: Vec<String>,
    #[serde(flatten)]
    pub request: RequestRow,
    #[serde(skip)]
    created: Timestamp,
    #[serde(skip)]
    others: u32,
    #[serde(skip)]
    until: Option<Timestamp>,
}

impl From<Request> for WaitingRow {
    fn from(request: Request) -> Self {
        let waiting = request.waiting.as_ref();
        let approvers = waiting.into_iter().flat_map(|it| it.approvers.iter().map(ToString::to_string));
        let hooks = waiting.into_iter().flat_map(|it| it.hooks.iter().map(|hook| format!("hook:{hook}")));
        Self {
            waited_for: approvers.chain(hooks).collect(),
            created: request.created,
            others: waiting.map(|waiting| waiting.others).unwrap_or_default(),
            until: waiting.and_then(|waiting| waiting.until).or(request.lapses),
            request: request.into(),
        }
    }
}

impl Row for WaitingRow {
    const HEADER: &'static [&'static str] =
        &["ID", "WAITED", "LEFT", "SUBJECT", "RESOURCE", "ROLE", "FOR", "REASON"];

    fn cells(&self, view: &View) -> Vec<String> {
        let others = if self.others > 0 { format!(",+{}", self.others) } else { String::new() };
        let request = &self.request;
        vec![
            request.id.clone(),
            view.since(self.created),
            self.until.map(|until| view.until(until)).unwrap_or_default(),
            request.subject.clone(),
            request.resource.clone(),
            request.role.clone().unwrap_or_default(),
            format!("{}{others}", words(&self.waited_for)),
            cut(&request.reason, TEXT_SHOWN_MAX),
        ]
    }
}

/// A line of the record.
#[derive(Serialize)]
#[allow(missing_docs, reason = "as in report.proto")]
pub struct EventPart {
    pub position: u64,
    pub id: String,
    pub event: String,
    pub time: String,
}

/// One grant, with all that led to it.
#[derive(Serialize)]
#[allow(missing_docs, reason = "as in report.proto; an absent part was left out")]
pub struct ReviewedRow {
    #[serde(flatten)]
    pub usage: GrantUseRow,
    pub requester: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<u64>,
    pub reason: String,
    pub requested: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approved: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    pub state: String,
    pub approved_by: Vec<String>,
    pub votes: Vec<VotePart>,
    pub host_names: Vec<String>,
    pub extensions: u32,
    pub events: Vec<EventPart>,
    pub more_events: bool,
}

impl From<ReviewedAccess> for ReviewedRow {
    fn from(access: ReviewedAccess) -> Self {
        let yes = access.votes.iter().filter(|vote| vote.yes);
        Self {
            requester: access.requester.to_string(),
            policy: access.policy,
            reason: access.reason,
            requested: utc(access.requested),
            approved: access.approved.map(utc),
            active: access.active.map(utc),
            ended: access.ended.map(utc),
            state: access.state,
            approved_by: yes.map(|vote: &Vote| vote.by.to_string()).collect(),
            votes: access.votes.iter().map(Into::into).collect(),
            host_names: access.hosts.iter().map(ToString::to_string).collect(),
            extensions: access.extensions,
            events: access
                .events
                .into_iter()
                .map(|event| EventPart {
                    position: event.position,
                    id: event.id,
                    event: event.event,
                    time: utc(event.time),
                })
                .collect(),
            more_events: access.more_events,
            usage: access.usage.into(),
        }
    }
}

impl Row for ReviewedRow {
    const HEADER: &'static [&'static str] = &[
        "GRANT",
        "SUBJECT",
        "RESOURCE",
        "ROLE",
        "SINCE",
        "UNTIL",
        "STATE",
        "USAGE",
        "APPROVED-BY",
        "REASON",
    ];

    fn cells(&self, _: &View) -> Vec<String> {
        let usage = &self.usage;
        vec![
            usage.grant.clone(),
            usage.subject.clone(),
            usage.resource.clone(),
            usage.role.clone().unwrap_or_default(),
            usage.since.clone(),
            usage.until.clone(),
            self.state.replace(' ', ""),
            usage.usage.to_owned(),
            words(&self.approved_by),
            cut(&self.reason, TEXT_SHOWN_MAX),
        ]
    }
}

/// The columns of the review as CSV. New ones come last.
const COLUMNS: [&str; 27] = [
    "grant",
    "request",
    "subject",
    "requester",
    "resource",
    "role",
    "policy",
    "reason",
    "hosts",
    "requested",
    "approved",
    "approved_by",
    "votes",
    "began",
    "active",
    "until",
    "ended",
    "state",
    "extensions",
    "usage",
    "hosts_used",
    "ports_used",
    "first_used",
    "last_used",
    "connections",
    "notes",
    "events",
];

impl ReviewedRow {
    /// One text for each of [`COLUMNS`].
    fn fields(&self) -> [String; COLUMNS.len()] {
        let usage = &self.usage;
        let vote = |vote: &VotePart| {
            let word = if vote.yes { "yes" } else { "no" };
            let comment = if vote.comment.is_empty() { String::new() } else { format!(": {}", vote.comment) };
            format!("{} {word} {}{comment}", vote.by, vote.at)
        };
        let event = |event: &EventPart| format!("{} {} {}", event.position, event.event, event.id);
        let more = self.more_events.then(|| "and others".to_owned());
        let optional = |text: &Option<String>| text.clone().unwrap_or_default();
        [
            usage.grant.clone(),
            usage.request.clone(),
            usage.subject.clone(),
            self.requester.clone(),
            usage.resource.clone(),
            optional(&usage.role),
            self.policy.map(|version| version.to_string()).unwrap_or_default(),
            self.reason.clone(),
            self.host_names.join(" "),
            self.requested.clone(),
            optional(&self.approved),
            self.approved_by.join(" "),
            self.votes.iter().map(vote).collect::<Vec<_>>().join("; "),
            usage.since.clone(),
            optional(&self.active),
            usage.until.clone(),
            optional(&self.ended),
            self.state.clone(),
            self.extensions.to_string(),
            usage.usage.to_owned(),
            format!("{} of {}", usage.hosts_used, usage.hosts),
            usage.ports_used.join(" "),
            optional(&usage.first_used),
            optional(&usage.last_used),
            usage.connections.to_string(),
            usage.notes.join("; "),
            self.events.iter().map(event).chain(more).collect::<Vec<_>>().join("; "),
        ]
    }
}

/// A review that is printed as it comes.
pub enum Review {
    /// A table needs all of its lines for the widths of its columns.
    Table(Vec<ReviewedRow>),
    /// One array; how many are in it already.
    Json(usize),
    /// Whether the heads are there.
    Csv(bool),
}

impl Review {
    /// Nothing is printed yet.
    pub fn begin(format: Format) -> Self {
        match format {
            Format::Table => Self::Table(Vec::new()),
            Format::Json => Self::Json(0),
            Format::Csv => Self::Csv(false),
        }
    }

    /// Some more lines.
    pub fn add(&mut self, out: &mut dyn Write, rows: Vec<ReviewedRow>) -> io::Result<()> {
        match self {
            Self::Table(all) => all.extend(rows),
            Self::Json(count) => {
                for row in rows {
                    out.write_all(if *count == 0 { b"[" } else { b"," })?;
                    json(out, &row)?;
                    *count += 1;
                }
            }
            Self::Csv(has_heads) => {
                let mut csv = csv::Writer::from_writer(out);
                if !*has_heads {
                    csv.write_record(COLUMNS)?;
                    *has_heads = true;
                }
                for row in rows {
                    csv.write_record(row.fields().map(harmless))?;
                }
                csv.flush()?;
            }
        }
        Ok(())
    }

    /// There are no more.
    pub fn end(self, out: &mut dyn Write, view: &View) -> io::Result<()> {
        match self {
            Self::Table(rows) => table(out, &rows, view),
            Self::Json(0) => out.write_all(b"[]\n"),
            Self::Json(_) => out.write_all(b"]\n"),
            Self::Csv(_) => Ok(()),
        }
    }
}

/// What a spreadsheet would take for a formula becomes a text, and what steers a terminal is shown by its code: whoever wrote a reason
/// has no say in either. Lines stay lines.
fn harmless(text: String) -> String {
    let shown = text.split('\n').map(escape).collect::<Vec<_>>().join("\n");
    match text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        true => format!("'{shown}"),
        false => shown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_is_a_formula() {
        for (text, expected) in [
            ("=1+1", "'=1+1"),
            ("+1", "'+1"),
            ("-1", "'-1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\t=1", "'\\t=1"),
            ("\r=1", "'\\r=1"),
            ("slow = \"query\"\nin\u{1b}[2J", "slow = \"query\"\nin\\u{1b}[2J"),
            ("", ""),
        ] {
            assert_eq!(harmless(text.to_owned()), expected);
        }
    }
}
