//! The numbering of an agent's audit events: which are new, which are repeats, and where a number is missing.
//!
//! Owns: what an agent may say in the record. Must not know: where events are kept.
//!
//! Invariant: what is accepted continues what is stored, event by event. A number is missing only where the event at the
//! end of the hole says itself that these numbers were lost from the spool.

use proto::types::{AuditEvent, EventKind, HostName};
use uuid::Uuid;

use super::Refusal;

/// How many events one batch may have.
pub const BATCH_MAX_EVENTS: usize = 512;

/// The greatest sequence number that can be kept: SQL integers have a sign. At a million events a second it is reached
/// after 292,000 years.
const SEQUENCE_MAX: u64 = i64::MAX as u64;

/// Which epoch a batch is about. All of its events belong to it and to this host.
pub fn epoch(host: &HostName, events: &[AuditEvent]) -> Result<Uuid, Refusal> {
    let refuse = |index, field, problem: String| Err(Refusal::BadEvent { index, field, problem });
    let Some(first) = events.first() else {
        return refuse(0, "id", "is missing: a batch is never empty".to_owned());
    };
    if events.len() > BATCH_MAX_EVENTS {
        return refuse(BATCH_MAX_EVENTS, "id", format!("is one more than the {BATCH_MAX_EVENTS} of a batch"));
    }
    for (index, event) in events.iter().enumerate() {
        if event.id.host.as_ref() != Some(host) {
            return refuse(index, "id.source", format!("`{}` is not this session's host", event.id.source()));
        }
        if event.id.epoch != first.id.epoch {
            return refuse(index, "id.epoch", format!("{} is not the batch's", event.id.epoch));
        }
        if event.host != host.as_str() {
            return refuse(index, "host", "is not this session's host".to_owned());
        }
        if !event.credential.is_empty() {
            return refuse(index, "credential", "is not for an agent to say".to_owned());
        }
        if !is_of_an_agent(event.kind) {
            return refuse(index, "kind", format!("{} is not for an agent to say", event.kind));
        }
    }
    Ok(first.id.epoch)
}

fn is_of_an_agent(kind: EventKind) -> bool {
    match kind {
        EventKind::ConnectionAllowed
        | EventKind::ConnectionDenied
        | EventKind::ConnectionWouldDeny
        | EventKind::ConnectionClosed
        | EventKind::AgentStarted
        | EventKind::AgentDetached
        | EventKind::AuditGap
        | EventKind::GrantReceipt
        | EventKind::HostDrift
        | EventKind::GateTampering
        | EventKind::WorkloadEntered
        | EventKind::RunStarted
        | EventKind::RunEnded
        | EventKind::RunRefused => true,
        EventKind::RunPassIssued
        | EventKind::RequestCreated
        | EventKind::RequestApproved
        | EventKind::RequestDenied
        | EventKind::RequestWithdrawn
        | EventKind::RequestLapsed
        | EventKind::ApprovalGiven
        | EventKind::PolicyApplied
        | EventKind::GrantIssued
        | EventKind::GrantActive
        | EventKind::GrantEnding
        | EventKind::GrantEnded
        | EventKind::GrantExtended
        | EventKind::GrantScheduled
        | EventKind::BreakGlassUsed
        | EventKind::BreakGlassReviewed
        | EventKind::FreezeBegan
        | EventKind::FreezeEnded
        | EventKind::IncidentOpened
        | EventKind::IncidentClosed
        | EventKind::ResourceAdded
        | EventKind::ResourceChanged
        | EventKind::ResourceRemoved
        | EventKind::SubjectAdded
        | EventKind::HostAdded
        | EventKind::HostJoined
        | EventKind::HostRenewed
        | EventKind::HostRevoked
        | EventKind::HostKeyCopied
        | EventKind::HostDisagrees
        | EventKind::TokenIssued
        | EventKind::AgentConnected
        | EventKind::AgentDisconnected
        | EventKind::AgentStateChanged
        | EventKind::SubjectSignedIn
        | EventKind::SubjectSignedOut
        | EventKind::SubjectBound
        | EventKind::SubjectUnbound
        | EventKind::SubjectDisabled
        | EventKind::SubjectEnabled
        | EventKind::SignInRefused
        | EventKind::CallRefused
        | EventKind::NotificationFailed
        | EventKind::GrantExpiring
        | EventKind::DraftOpened
        | EventKind::ClockStepped => false,
    }
}

/// The events that continue `stored`, the last sequence number kept (0: none); the others are repeats.
pub fn continuation(stored: u64, events: Vec<AuditEvent>) -> Result<Vec<AuditEvent>, Refusal> {
    let mut expected = stored.saturating_add(1);
    let mut new = Vec::with_capacity(events.len());
    let mut before = 0;
    for (index, event) in events.into_iter().enumerate() {
        let got = event.id.sequence;
        if got <= before {
            let problem = format!("{got} comes after {before}");
            return Err(Refusal::BadEvent { index, field: "id.sequence", problem });
        }
        if got > SEQUENCE_MAX {
            let problem = format!("{got} is above {SEQUENCE_MAX}");
            return Err(Refusal::BadEvent { index, field: "id.sequence", problem });
        }
        before = got;
        if got < expected {
            continue;
        }
        if got > expected && !declares(&event, expected) {
            let problem = format!("expected {expected}, got {got}");
            return Err(Refusal::BadEvent { index, field: "id.sequence", problem });
        }
        expected = got.saturating_add(1);
        new.push(event);
    }
    Ok(new)
}

/// Whether the event says that all numbers from `first` up to its own were lost. It may stand behind them, or take the
/// number of the last of them.
fn declares(event: &AuditEvent, first: u64) -> bool {
    let own = event.id.sequence;
    let lost = event.gap.as_ref().and_then(|gap| gap.sequences);
    lost.is_some_and(|(from, to)| from <= first && (to == own || to.checked_add(1) == Some(own)))
}

#[cfg(test)]
mod tests {
    use proto::types::{EventId, Gap, Timestamp};

    use super::*;

    const EPOCH: Uuid = Uuid::from_u128(7);

    fn host() -> HostName {
        "db-7".parse().expect("valid")
    }

    fn event(sequence: u64) -> AuditEvent {
        let time = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
        AuditEvent::new(EventId { host: Some(host()), epoch: EPOCH, sequence }, EventKind::AgentStarted, time)
    }

    fn gap(sequence: u64, lost: (u64, u64)) -> AuditEvent {
        let gap = Gap { place: "spool".to_owned(), lost: lost.1 - lost.0 + 1, sequences: Some(lost) };
        AuditEvent { kind: EventKind::AuditGap, gap: Some(gap), ..event(sequence) }
    }

    #[track_caller]
    fn check(stored: u64, events: Vec<AuditEvent>, expected: Result<&[u64], &str>) {
        let new = continuation(stored, events).map_err(|refusal| refusal.to_string());
        let new: Result<Vec<u64>, String> =
            new.map(|new| new.iter().map(|event| event.id.sequence).collect());
        assert_eq!(new, expected.map(<[u64]>::to_vec).map_err(str::to_owned));
    }

    #[test]
    fn numbers_continue_without_holes() {
        check(0, vec![event(1), event(2)], Ok(&[1, 2]));
        check(0, vec![event(2)], Err("audit.events[0].id.sequence: expected 1, got 2"));
        check(4, vec![event(5)], Ok(&[5]));
        check(4, vec![event(3), event(4), event(5)], Ok(&[5]));
        check(4, vec![event(2), event(3)], Ok(&[]));
        check(4, vec![event(6)], Err("audit.events[0].id.sequence: expected 5, got 6"));
        check(4, vec![event(5), event(7)], Err("audit.events[1].id.sequence: expected 6, got 7"));
        check(4, vec![event(5), event(5)], Err("audit.events[1].id.sequence: 5 comes after 5"));
        check(4, vec![event(2), event(1)], Err("audit.events[1].id.sequence: 1 comes after 2"));
    }

    #[test]
    fn a_hole_is_accepted_only_where_it_is_declared() {
        check(4, vec![gap(8, (5, 7)), event(9)], Ok(&[8, 9]));
        check(4, vec![gap(8, (5, 6))], Err("audit.events[0].id.sequence: expected 5, got 8"));
        check(4, vec![gap(8, (6, 7))], Err("audit.events[0].id.sequence: expected 5, got 8"));
        check(4, vec![gap(8, (5, 9))], Err("audit.events[0].id.sequence: expected 5, got 8"));
        check(0, vec![gap(3, (1, 2))], Ok(&[3]));
        check(0, vec![gap(3, (1, 3)), event(4)], Ok(&[3, 4]));
        // What was stored without the agent hearing of it is lost from its spool only.
        check(4, vec![gap(8, (2, 8))], Ok(&[8]));
        check(8, vec![gap(8, (2, 8))], Ok(&[]));
    }

    #[track_caller]
    fn check_batch(events: Vec<AuditEvent>, expected: Result<(), &str>) {
        let epoch = epoch(&host(), &events).map_err(|refusal| refusal.to_string());
        assert_eq!(epoch, expected.map(|()| EPOCH).map_err(|problem| format!("audit.events{problem}")));
    }

    #[test]
    fn agents_speak_of_their_host_only() {
        check_batch(vec![event(1), gap(4, (2, 3))], Ok(()));
        check_batch(Vec::new(), Err("[0].id: is missing: a batch is never empty"));
        let mut foreign = event(2);
        foreign.id.host = "db-8".parse().ok();
        check_batch(vec![event(1), foreign.clone()], Err("[1].id.source: `db-8` is not this session's host"));
        foreign.id.host = None;
        check_batch(vec![foreign], Err("[0].id.source: `control-plane` is not this session's host"));
        let elsewhere = AuditEvent { host: "db-8".to_owned(), ..event(1) };
        check_batch(vec![elsewhere], Err("[0].host: is not this session's host"));
        let forged = AuditEvent { kind: EventKind::RequestApproved, ..event(1) };
        check_batch(vec![forged], Err("[0].kind: request.approved is not for an agent to say"));
        let mut later = event(2);
        later.id.epoch = Uuid::from_u128(8);
        let problem = "[1].id.epoch: 00000000-0000-0000-0000-000000000008 is not the batch's";
        check_batch(vec![event(1), later], Err(problem));
    }
}
