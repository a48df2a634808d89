//! Audit events as programs see them: one flat JSON object each, described in docs/audit-events.md.
//!
//! Owns: the names of its fields, and which are left out. Must not know: where it goes.

use serde::Serialize;

use crate::types::{AuditEvent, Change, Closed, Connection, Gap, Receipt, RunDetails, Timestamp};

/// One event as one flat object. Fields that do not apply are left out.
#[derive(Serialize)]
#[allow(missing_docs, reason = "docs/audit-events.md says it")]
pub struct AuditRow {
    pub position: u64,
    pub id: String,
    pub event: &'static str,
    pub time: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subject: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub request: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub grant: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub actor: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub credential: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub comment: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<ConnectionPart>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap: Option<GapPart>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipt: Option<ReceiptPart>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed: Option<ClosedPart>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<ChangePart>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<RunPart>,
}

/// The connection attempt of a verdict.
#[derive(Serialize)]
#[allow(missing_docs, reason = "docs/audit-events.md says it")]
pub struct ConnectionPart {
    pub hook: String,
    pub protocol: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub peer: String,
    pub pid: u32,
    pub uid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login_uid: Option<u32>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub login_differs: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub command: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub executable: String,
    pub cgroup_id: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cgroup_path: String,
    pub socket_cookie: u64,
    pub boot_time_ns: u64,
}

/// What was lost.
#[derive(Serialize)]
#[allow(missing_docs, reason = "docs/audit-events.md says it")]
pub struct GapPart {
    pub r#where: String,
    pub lost: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_sequence: Option<u64>,
}

/// What became of the connections of a grant.
#[derive(Serialize)]
#[allow(missing_docs, reason = "docs/audit-events.md says it")]
pub struct ReceiptPart {
    pub closed: u32,
    pub unconfirmed: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_admitted: Option<String>,
}

/// A setting that is another one.
#[derive(Serialize)]
#[allow(missing_docs, reason = "docs/audit-events.md says it")]
pub struct ChangePart {
    pub setting: String,
    pub was: String,
    pub is: String,
}

impl From<Change> for ChangePart {
    fn from(change: Change) -> Self {
        Self { setting: change.setting, was: change.was, is: change.is }
    }
}

/// A run, or somebody who wanted one.
#[derive(Serialize)]
#[allow(missing_docs, reason = "docs/audit-events.md says it")]
pub struct RunPart {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login_uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_id: Option<u64>,
}

impl From<RunDetails> for RunPart {
    fn from(run: RunDetails) -> Self {
        let has_process = run.pid > 0;
        Self {
            id: run.id.map(|id| id.to_string()),
            pid: has_process.then_some(run.pid),
            uid: has_process.then_some(run.uid),
            login_uid: run.login_uid,
            cgroup_id: Some(run.cgroup_id).filter(|id| *id > 0),
        }
    }
}

/// A connection that has ended.
#[derive(Serialize)]
#[allow(missing_docs, reason = "docs/audit-events.md says it")]
pub struct ClosedPart {
    pub protocol: String,
    pub address: String,
    pub port: u16,
    pub pid: u32,
    pub socket_cookie: u64,
    pub boot_time_ns: u64,
    pub duration_ns: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_sent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_received: Option<u64>,
}

impl From<Closed> for ClosedPart {
    fn from(closed: Closed) -> Self {
        Self {
            protocol: closed.protocol,
            address: closed.address,
            port: closed.port,
            pid: closed.pid,
            socket_cookie: closed.socket_cookie,
            boot_time_ns: closed.boot_time_ns,
            duration_ns: closed.duration_ns,
            bytes_sent: closed.bytes_sent,
            bytes_received: closed.bytes_received,
        }
    }
}

impl From<Receipt> for ReceiptPart {
    fn from(receipt: Receipt) -> Self {
        Self {
            closed: receipt.closed,
            unconfirmed: receipt.unconfirmed,
            last_admitted: receipt.last_admitted.map(utc),
        }
    }
}

impl From<AuditEvent> for AuditRow {
    fn from(event: AuditEvent) -> Self {
        Self {
            position: event.position,
            id: event.id.to_string(),
            event: event.kind.as_str(),
            time: utc(event.time),
            host: event.host,
            subject: event.subject,
            resource: event.resource,
            request: event.request,
            grant: event.grant,
            actor: event.actor,
            credential: event.credential,
            reason: event.reason,
            comment: event.comment,
            expires: event.expires.map(utc),
            connection: event.connection.map(Into::into),
            gap: event.gap.map(Into::into),
            receipt: event.receipt.map(Into::into),
            closed: event.closed.map(Into::into),
            changes: event.changes.into_iter().map(Into::into).collect(),
            run: event.run.map(Into::into),
        }
    }
}

impl From<Connection> for ConnectionPart {
    fn from(connection: Connection) -> Self {
        Self {
            hook: connection.hook,
            protocol: connection.protocol,
            address: connection.address,
            port: Some(connection.port).filter(|port| *port > 0),
            path: connection.path,
            peer: connection.peer,
            pid: connection.pid,
            uid: connection.uid,
            login_uid: connection.login_uid,
            login_differs: connection.login_differs,
            command: connection.command,
            executable: connection.executable,
            cgroup_id: connection.cgroup_id,
            cgroup_path: connection.cgroup_path,
            socket_cookie: connection.socket_cookie,
            boot_time_ns: connection.boot_time_ns,
        }
    }
}

impl From<Gap> for GapPart {
    fn from(gap: Gap) -> Self {
        let (first_sequence, last_sequence) = gap.sequences.unzip();
        Self { r#where: gap.place, lost: gap.lost, first_sequence, last_sequence }
    }
}

/// RFC 3339 in UTC, always with milliseconds, so that texts sort as times do.
pub fn utc(time: Timestamp) -> String {
    // A timestamp lies in the years 1970 to 9999, which jiff knows.
    let moment = jiff::Timestamp::from_millisecond(time.unix_ms()).unwrap_or(jiff::Timestamp::MAX);
    format!("{moment:.3}")
}
