//! One event as others are told of it: for programs, whole; for people, in some lines.
//!
//! Owns: the id of a message, what is said in it, how text of people is made harmless. Must not know: mark-up, ways.

use proto::json::{AuditRow, utc};
use proto::types::AuditEvent;
use serde::Serialize;
use uuid::Uuid;

use crate::rules::notify::Severity;

/// The longest text in a line for people, in characters.
const TEXT_MAX_CHARS: usize = 300;

/// The same for each try, and for each database: consumers drop repeats by it. It has no full stop, which the signature separates by.
pub(super) fn id(timeline: Uuid, position: u64) -> String {
    format!("msg_{}_{position}", timeline.simple())
}

/// As the Standard Webhooks specification recommends it; `data` is what `audit tail -o json` prints.
#[derive(Serialize)]
struct Whole {
    r#type: &'static str,
    timestamp: String,
    severity: &'static str,
    data: AuditRow,
}

/// The whole event, for programs.
pub(super) fn whole(event: &AuditEvent) -> Vec<u8> {
    let whole = Whole {
        r#type: event.kind.as_str(),
        timestamp: utc(event.time),
        severity: Severity::of(event).as_str(),
        data: event.clone().into(),
    };
    serde_json::to_vec(&whole).expect("texts and numbers are JSON")
}

/// The same for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Summary {
    /// One line.
    pub(super) title: String,
    /// What there is to say, by name.
    pub(super) facts: Vec<(&'static str, String)>,
    /// Where more is to be seen, and something can be done by whoever signs in; None: there is no console.
    pub(super) link: Option<String>,
}

/// What people are told of an event. `console`: `https://HOST[:PORT]`.
pub(super) fn summary(event: &AuditEvent, console: Option<&str>) -> Summary {
    let whom = match (event.subject.as_str(), event.resource.as_str()) {
        ("", "") => harmless(&event.host),
        (subject, "") => harmless(subject),
        ("", resource) => harmless(resource),
        (subject, resource) => format!("{} → {}", harmless(subject), harmless(resource)),
    };
    let title = match whom.is_empty() {
        true => event.kind.to_string(),
        false => format!("{}: {whom}", event.kind),
    };
    let connection = event.connection.as_ref().map(|connection| {
        format!(
            "{}[{}] {} {}:{}",
            connection.command, connection.pid, connection.protocol, connection.address, connection.port
        )
    });
    let facts = [
        ("severity", Severity::of(event).to_string()),
        ("time", utc(event.time)),
        ("by", event.actor.clone()),
        ("host", event.host.clone()),
        ("why", event.reason.clone()),
        ("until", event.expires.map(utc).unwrap_or_default()),
        ("connection", connection.unwrap_or_default()),
        ("comment", event.comment.clone()),
        ("request", event.request.clone()),
        ("grant", event.grant.clone()),
        ("event", event.position.to_string()),
    ];
    let facts = facts.into_iter().filter(|(_, text)| !text.is_empty());
    let link = console.map(|origin| match event.request.parse::<proto::types::RequestId>() {
        Ok(request) => format!("{origin}/requests/{request}"),
        Err(_) => format!("{origin}/"),
    });
    Summary { title, facts: facts.map(|(name, text)| (name, harmless(&text))).collect(), link }
}

/// One line of what somebody wrote: nothing in it breaks a line, hides, or turns the direction of writing.
fn harmless(text: &str) -> String {
    let is_hidden = |char: char| {
        char.is_control()
            || matches!(char, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
    };
    let shown: String =
        text.chars().take(TEXT_MAX_CHARS).map(|char| if is_hidden(char) { ' ' } else { char }).collect();
    if text.chars().nth(TEXT_MAX_CHARS).is_some() { shown + "…" } else { shown }
}

#[cfg(test)]
pub(super) mod tests {
    use proto::types::{EventId, EventKind, Timestamp};

    use super::*;

    pub(crate) const REQUEST: &str = "019aac20-1f4e-7d22-8c55-0a9b8c7d6e5f";

    pub(crate) fn asked(comment: &str) -> AuditEvent {
        let id = EventId { host: None, epoch: Uuid::from_u128(7), sequence: 41 };
        let time = Timestamp::from_unix_ms(1_795_000_000_123).expect("in range");
        AuditEvent {
            position: 41,
            subject: "user:alice".to_owned(),
            resource: "db-prod".to_owned(),
            request: REQUEST.to_owned(),
            actor: "user:alice".to_owned(),
            credential: "session".to_owned(),
            comment: comment.to_owned(),
            ..AuditEvent::new(id, EventKind::RequestCreated, time)
        }
    }

    #[test]
    fn programs_get_what_tail_prints() {
        let body = whole(&asked("slow query"));
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body["type"], "request.created");
        assert_eq!(body["timestamp"], "2026-11-18T11:06:40.123Z");
        assert_eq!(body["severity"], "low");
        let row = serde_json::to_value(AuditRow::from(asked("slow query"))).expect("JSON");
        assert_eq!(body["data"], row);
        let id = id(Uuid::from_u128(7), 41);
        assert_eq!(id, "msg_00000000000000000000000000000007_41");
        assert!(!id.contains('.'));
    }

    #[test]
    fn people_get_lines_that_are_lines() {
        let long = "x".repeat(TEXT_MAX_CHARS + 1);
        let summary =
            summary(&asked(&format!("a\r\nBcc: b\u{202e}\u{0}{long}")), Some("https://console.test"));
        assert_eq!(summary.title, "request.created: user:alice → db-prod");
        assert_eq!(
            summary.link.as_deref(),
            Some(format!("https://console.test/requests/{REQUEST}").as_str())
        );
        let comment = &summary.facts.iter().find(|(name, _)| *name == "comment").expect("is there").1;
        assert!(comment.starts_with("a  Bcc: b  x") && comment.ends_with('…'), "{comment}");
        let all: String = summary.facts.iter().map(|(_, text)| text.as_str()).collect();
        assert!(!all.chars().any(char::is_control));
    }

    #[test]
    fn a_link_leads_to_the_console_alone() {
        let mut event = asked("");
        event.request = "../evil".to_owned();
        assert_eq!(
            summary(&event, Some("https://console.test")).link.as_deref(),
            Some("https://console.test/")
        );
        assert_eq!(summary(&event, None).link, None);
    }
}
