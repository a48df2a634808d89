//! Audit events as people see them. What collectors see is [`proto::json`].

use std::fmt::Write;

use std::time::Duration;

use proto::types::{AuditEvent, Change, Closed, Connection, Credential, EventKind, Gap, Receipt, RunDetails};

use super::escape;
use super::text::View;

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
        | EventKind::GrantExpiring
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
