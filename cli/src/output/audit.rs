//! Audit events as collectors and people see them. The JSON form is described in docs/audit-events.md.

use std::fmt::Write;

use std::time::Duration;

use proto::types::{AuditEvent, Change, Closed, Connection, Credential, EventKind, Gap, Receipt, RunDetails};
use serde::Serialize;

use super::text::View;
use super::{escape, utc};

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

/// One event as one line for people, without its line feed.
pub fn line(event: &AuditEvent, view: &View) -> String {
    let mut parts = vec![view.clock(event.time), format!("{:<19}", event.kind.as_str()), whom(event)];
    parts.push(event.reason.clone());
    parts.push(place(event));
    if let Some(gap) = &event.gap {
        parts.push(lost(gap));
    }
    if let Some(closed) = &event.closed {
        parts.push(carried(closed));
    }
    if let Some(receipt) = &event.receipt {
        parts.push(ended(receipt, view));
    }
    let changed = |Change { setting, was, is }: &Change| format!("{setting} {was} → {is}");
    parts.extend(event.changes.iter().map(changed));
    if let Some(expires) = event.expires {
        parts.push(format!("until {}", view.clock(expires)));
    }
    parts.push(by_whom(event));
    match event.kind {
        EventKind::RequestCreated
        | EventKind::RequestApproved
        | EventKind::RequestDenied
        | EventKind::RequestWithdrawn
        | EventKind::RequestLapsed
        | EventKind::ApprovalGiven => {
            parts.push(format!("request {}", event.request));
        }
        EventKind::GrantIssued
        | EventKind::GrantActive
        | EventKind::GrantEnding
        | EventKind::GrantEnded
        | EventKind::GrantReceipt => {
            parts.push(format!("grant {}", event.grant));
        }
        EventKind::RunStarted | EventKind::RunEnded | EventKind::RunRefused => {
            let run = event.run.as_ref().and_then(|run| run.id);
            parts.extend(run.map(|id| format!("run {id}")));
        }
        _ => {}
    }
    if !event.comment.is_empty() {
        parts.push(format!("“{}”", event.comment));
    }
    parts.retain(|part| !part.is_empty());
    escape(parts.join("  ").trim_end())
}

/// Who caused it, unless that is said already. Static tokens are marked: where people sign in, they are the exception.
fn by_whom(event: &AuditEvent) -> String {
    let actor = match event.actor.as_str() {
        "" => String::new(),
        actor if actor == event.subject => String::new(),
        actor => format!("by {actor}"),
    };
    let mark = if event.credential == Credential::Token.as_str() { " (static token)" } else { "" };
    format!("{actor}{mark}").trim_start().to_owned()
}

/// Who reaches for what.
fn whom(event: &AuditEvent) -> String {
    let is_of_a_process = match &event.connection {
        Some(connection) => connection.peer.is_empty(),
        None => event.closed.is_some(),
    };
    let subject = match event.subject.as_str() {
        "" if is_of_a_process => "no subject",
        subject => subject,
    };
    match (subject, event.resource.as_str()) {
        (subject, "") => subject.to_owned(),
        ("", resource) => resource.to_owned(),
        (subject, resource) => format!("{subject} → {resource}"),
    }
}

/// Which process, what address and which host.
fn place(event: &AuditEvent) -> String {
    let mut text = String::new();
    if let Some(connection) = &event.connection {
        let Connection { command, pid, protocol, address, port, path, peer, .. } = connection;
        let command = if command.is_empty() { "process" } else { command };
        let who = if peer.is_empty() { format!("{command}[{pid}]") } else { format!("peer {peer}") };
        let destination = if path.is_empty() { destination(address, *port) } else { path.clone() };
        let _ = write!(text, "{who} {protocol} {destination} ");
    }
    if let Some(Closed { pid, protocol, address, port, .. }) = &event.closed {
        let _ = write!(text, "process[{pid}] {protocol} {} ", destination(address, *port));
    }
    if let Some(RunDetails { pid, uid, .. }) = event.run.as_ref().filter(|run| run.pid > 0) {
        let _ = write!(text, "process[{pid}] of user {uid} ");
    }
    if !event.host.is_empty() {
        let _ = write!(text, "on {}", event.host);
    }
    text.trim_end().to_owned()
}

/// Empty: it leads nowhere, as a socket of a family without ports does.
fn destination(address: &str, port: u16) -> String {
    if address.is_empty() {
        return String::new();
    }
    let (open, close) = if address.contains(':') { ("[", "]") } else { ("", "") };
    format!("{open}{address}{close}:{port}")
}

/// How long a connection lasted, and what it carried as far as that was counted.
fn carried(closed: &Closed) -> String {
    let mut text = format!("{:.1} s", Duration::from_nanos(closed.duration_ns).as_secs_f64());
    if let Some(sent) = closed.bytes_sent {
        let _ = write!(text, ", {sent} B sent");
    }
    if let Some(received) = closed.bytes_received {
        let _ = write!(text, ", {received} B received");
    }
    text
}

fn lost(gap: &Gap) -> String {
    let mut text = format!("{} lost in {}", gap.lost, gap.place);
    if let Some((first, last)) = gap.sequences {
        let _ = write!(text, ", sequence {first} to {last}");
    }
    text
}

fn ended(receipt: &Receipt, view: &View) -> String {
    let mut text = format!("{} closed", receipt.closed);
    if receipt.unconfirmed > 0 {
        let _ = write!(text, ", {} unconfirmed", receipt.unconfirmed);
    }
    if let Some(last) = receipt.last_admitted {
        let _ = write!(text, ", last admitted {}", view.clock(last));
    }
    text
}
