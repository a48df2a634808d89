//! Drafts: what was denied, as the beginning of a request.
//!
//! Owns: which attempts one is opened for, how many there may be, how long one waits, what its person is told. Must not know: storage,
//! callers' roles.
//!
//! Invariant: a draft is no request. Nothing approves it; its subject makes a request of it, which is judged as any other.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::types::{AuditEvent, Draft, DraftId, EventKind, NewRequest};

use super::Refusal;

/// How long a draft waits to be completed, from the first attempt on.
pub const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// How many one subject has at most: a program that tries everything fills no list but its own.
pub const OF_ONE_SUBJECT_MAX: u64 = 100;

/// How many there are at most.
pub const MAX: u64 = 10_000;

/// Why an attempt was denied that a grant would let through.
const CURABLE: [&str; 3] = ["no_live_grant", "expired", "revoked"];

/// Who was denied what for want of a grant, by their names, and how often. The host is the one that says so.
pub fn attempts(events: &[AuditEvent]) -> BTreeMap<(String, String), u64> {
    let mut found = BTreeMap::new();
    for event in events {
        let is_known = !event.subject.is_empty() && !event.resource.is_empty();
        let is_curable = CURABLE.contains(&event.reason.as_str());
        if event.kind == EventKind::ConnectionDenied && is_known && is_curable {
            *found.entry((event.subject.clone(), event.resource.clone())).or_default() += 1;
        }
    }
    found
}

/// Whether there is room for another one, where there are so many.
pub fn has_room(of_subject: u64, all: u64) -> bool {
    of_subject < OF_ONE_SUBJECT_MAX && all < MAX
}

/// How its subject makes a request of it, as the record says it.
pub fn told(id: DraftId) -> String {
    format!("complete it with: portcullis request --draft {id} --for 30m --reason TEXT")
}

/// That a wish is what the draft is of.
pub fn fits(draft: &Draft, new: &NewRequest) -> Result<(), Refusal> {
    match new.resource == draft.resource && *new.hosts == [draft.host.clone()] {
        true => Ok(()),
        false => Err(Refusal::OtherThanDraft {
            draft: draft.id,
            resource: draft.resource.clone(),
            host: draft.host.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use proto::types::{EventId, Timestamp};
    use uuid::Uuid;

    use super::*;

    fn event(kind: EventKind, subject: &str, resource: &str) -> AuditEvent {
        let id = EventId { host: "db-7".parse().ok(), epoch: Uuid::from_u128(7), sequence: 1 };
        let time = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
        let (subject, resource) = (subject.to_owned(), resource.to_owned());
        let reason = "no_live_grant".to_owned();
        AuditEvent { subject, resource, reason, ..AuditEvent::new(id, kind, time) }
    }

    #[test]
    fn only_denials_of_somebody_to_something_count() {
        let events = [
            event(EventKind::ConnectionDenied, "user:alice", "db"),
            event(EventKind::ConnectionDenied, "user:alice", "cache"),
            event(EventKind::ConnectionDenied, "user:alice", "db"),
            event(EventKind::ConnectionDenied, "", "db"),
            event(EventKind::ConnectionDenied, "user:alice", ""),
            event(EventKind::ConnectionAllowed, "user:alice", "db"),
            event(EventKind::ConnectionWouldDeny, "user:alice", "db"),
            AuditEvent {
                reason: "audit_unavailable".to_owned(),
                ..event(EventKind::ConnectionDenied, "user:alice", "db")
            },
        ];
        let found: Vec<_> = attempts(&events).into_iter().collect();
        let of = |resource: &str, times| (("user:alice".to_owned(), resource.to_owned()), times);
        assert_eq!(found, [of("cache", 1), of("db", 2)]);
    }

    #[test]
    fn there_is_room_for_so_many() {
        assert!(has_room(99, 9_999));
        assert!(!has_room(100, 100));
        assert!(!has_room(0, 10_000));
    }
}
