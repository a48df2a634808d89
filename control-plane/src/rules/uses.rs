//! What events say of the use of grants: which hosts and ports, when, how often.
//!
//! Owns: what of a batch of events is kept for reports, and how many places are told apart. Must not know: storage, what reports
//! conclude.
//!
//! Invariant: what is kept of one grant on one host is bounded, whatever its agent sends.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::types::{AuditEvent, EndReason, EventKind, GrantId, Timestamp};

/// How many places of a grant are told apart on one host. What goes beyond that is one place without a name.
pub const PLACES_MAX: usize = 64;

/// The longest name of a place. What is longer, or no text, has none.
const PLACE_MAX_BYTES: usize = 256;

/// The place of all those that are not told apart.
pub const OTHERS: &str = "";

const HOUR_MS: i64 = 3_600_000;

/// What was let through to one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// When it was first used, by the host's clock.
    pub first: Timestamp,
    /// When it was last used, or known to be open.
    pub last: Timestamp,
    /// How many verdicts; 0: only an end is known.
    pub connections: u64,
}

impl Use {
    fn add(&mut self, other: Self) {
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        self.connections = self.connections.saturating_add(other.connections);
    }
}

/// What a host says of a grant that it lets nobody through by any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receipts {
    /// How many said that a process had ended: the grant may have gone on for others.
    pub exits: u64,
    /// How many said anything else.
    pub ends: u64,
    /// When somebody was last let through; None: nobody was.
    pub admitted: Option<Timestamp>,
}

/// What a batch of one host's events says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// By grant and place.
    pub uses: BTreeMap<(GrantId, String), Use>,
    /// By grant.
    pub receipts: BTreeMap<GrantId, Receipts>,
    /// The hours in which verdicts were lost, by their beginning.
    pub gap_hours: BTreeSet<i64>,
}

impl Seen {
    /// Reads the events of one host.
    pub fn of(events: &[AuditEvent]) -> Self {
        let mut seen = Self::default();
        for event in events {
            seen.add(event);
        }
        seen
    }

    fn add(&mut self, event: &AuditEvent) {
        if let Some(gap) = &event.gap
            && ["kernel.allow", "spool"].contains(&gap.place.as_str())
        {
            self.gap_hours.insert(event.time.unix_ms() / HOUR_MS * HOUR_MS);
        }
        // What is about no grant, or about what is none, is no use of one.
        let Ok(grant) = event.grant.parse::<GrantId>() else { return };
        match (event.kind, &event.connection, &event.closed, &event.receipt) {
            (EventKind::ConnectionAllowed, Some(connection), ..) => {
                let place = place(&connection.protocol, connection.port, &connection.path);
                self.note(grant, place, Use { first: event.time, last: event.time, connections: 1 });
            }
            (EventKind::ConnectionClosed, _, Some(closed), _) => {
                let place = place(&closed.protocol, closed.port, "");
                let first = before(event.time, Duration::from_nanos(closed.duration_ns));
                self.note(grant, place, Use { first, last: event.time, connections: 0 });
            }
            (EventKind::GrantReceipt, _, _, Some(receipt)) => {
                let known = self.receipts.entry(grant).or_default();
                match event.reason == EndReason::TaskExit.as_str() {
                    true => known.exits += 1,
                    false => known.ends += 1,
                }
                known.admitted = known.admitted.max(receipt.last_admitted);
            }
            _ => {}
        }
    }

    fn note(&mut self, grant: GrantId, place: String, seen: Use) {
        self.uses.entry((grant, place)).and_modify(|known| known.add(seen)).or_insert(seen);
    }

    /// Every grant that something is said of.
    pub fn grants(&self) -> BTreeSet<GrantId> {
        self.uses.keys().map(|(grant, _)| *grant).chain(self.receipts.keys().copied()).collect()
    }

    /// Leaves out the grants that the host never had, and puts together what goes beyond the places that are told apart. `known`: those
    /// that it has or had, each with its places so far.
    pub fn bounded(self, mut known: BTreeMap<GrantId, BTreeSet<String>>) -> Self {
        let mut uses: BTreeMap<(GrantId, String), Use> = BTreeMap::new();
        let receipts = self.receipts.into_iter().filter(|(grant, _)| known.contains_key(grant)).collect();
        for ((grant, place), seen) in self.uses {
            let Some(places) = known.get_mut(&grant) else { continue };
            let place = match places.contains(&place) || places.len() < PLACES_MAX {
                true => place,
                false => OTHERS.to_owned(),
            };
            places.insert(place.clone());
            uses.entry((grant, place)).and_modify(|known| known.add(seen)).or_insert(seen);
        }
        Self { uses, receipts, gap_hours: self.gap_hours }
    }
}

/// As reports name where a connection went.
fn place(protocol: &str, port: u16, path: &str) -> String {
    let place = match path.is_empty() {
        true => format!("{protocol}/{port}"),
        false => path.to_owned(),
    };
    // Whatever the agent sent: PostgreSQL takes no NUL, and nobody wants to read the others.
    let is_name = place.len() <= PLACE_MAX_BYTES && !place.chars().any(char::is_control);
    if is_name { place } else { OTHERS.to_owned() }
}

/// A moment before another one; 1970 is the beginning of time.
fn before(time: Timestamp, duration: Duration) -> Timestamp {
    let ms = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    let unix_ms = time.unix_ms().saturating_sub(ms).max(0);
    Timestamp::from_unix_ms(unix_ms).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use proto::types::{Closed, Connection, EventId, Gap, Receipt};
    use uuid::Uuid;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_unix_ms(1_795_000_000_000 + second * 1000).expect("in range")
    }

    fn event(kind: EventKind, grant: GrantId, second: i64) -> AuditEvent {
        let id = EventId { host: Some("db-7".parse().expect("valid")), epoch: Uuid::nil(), sequence: 1 };
        AuditEvent { grant: grant.to_string(), ..AuditEvent::new(id, kind, at(second)) }
    }

    fn allowed(grant: GrantId, second: i64, port: u16) -> AuditEvent {
        let connection = Connection { protocol: "tcp".into(), port, ..Connection::default() };
        AuditEvent { connection: Some(connection), ..event(EventKind::ConnectionAllowed, grant, second) }
    }

    fn receipt(grant: GrantId, second: i64, reason: &str, admitted: Option<i64>) -> AuditEvent {
        let receipt = Receipt { last_admitted: admitted.map(at), ..Receipt::default() };
        AuditEvent {
            receipt: Some(receipt),
            reason: reason.into(),
            ..event(EventKind::GrantReceipt, grant, second)
        }
    }

    #[test]
    fn what_a_batch_says() {
        let [grant, other] = [GrantId::new(), GrantId::new()];
        let closed =
            Closed { protocol: "tcp".into(), port: 1, duration_ns: 9_000_000_000, ..Closed::default() };
        let gap = Gap { place: "kernel.allow".into(), lost: 1, sequences: None };
        let denied = Gap { place: "kernel.deny".into(), ..gap.clone() };
        let seen = Seen::of(&[
            allowed(grant, 5, 1),
            allowed(grant, 3, 1),
            allowed(grant, 7, 2),
            AuditEvent { closed: Some(closed), ..event(EventKind::ConnectionClosed, grant, 10) },
            receipt(grant, 20, "time", Some(9)),
            receipt(other, 21, "task_exit", None),
            AuditEvent { grant: String::new(), ..allowed(grant, 5, 3) },
            AuditEvent { grant: "x".into(), ..allowed(grant, 5, 3) },
            AuditEvent { gap: Some(gap), ..event(EventKind::AuditGap, grant, 30) },
            AuditEvent { gap: Some(denied), ..event(EventKind::AuditGap, grant, 9000) },
        ]);
        let used = |first, last, connections| Use { first: at(first), last: at(last), connections };
        assert_eq!(
            seen.uses,
            BTreeMap::from([
                ((grant, "tcp/1".to_owned()), used(1, 10, 2)),
                ((grant, "tcp/2".to_owned()), used(7, 7, 1)),
            ])
        );
        let receipts =
            |exits, ends, admitted: Option<i64>| Receipts { exits, ends, admitted: admitted.map(at) };
        assert_eq!(
            seen.receipts,
            BTreeMap::from([(grant, receipts(0, 1, Some(9))), (other, receipts(1, 0, None))])
        );
        assert_eq!(seen.gap_hours.len(), 1);
        assert!(seen.gap_hours.iter().all(|hour| hour % HOUR_MS == 0));

        // What a host never had, it cannot use.
        let bounded = seen.bounded(BTreeMap::from([(other, BTreeSet::new())]));
        assert!(bounded.uses.is_empty());
        assert_eq!(bounded.receipts.len(), 1);
    }

    #[test]
    fn places_are_bounded() {
        let grant = GrantId::new();
        let events: Vec<AuditEvent> = (1..=1000).map(|port| allowed(grant, i64::from(port), port)).collect();
        let first = Seen::of(&events[..40]).bounded(BTreeMap::from([(grant, BTreeSet::new())]));
        assert_eq!(first.uses.len(), 40);
        let known: BTreeSet<String> = first.uses.keys().map(|(_, place)| place.clone()).collect();
        let then = Seen::of(&events).bounded(BTreeMap::from([(grant, known)]));
        assert_eq!(then.uses.len(), PLACES_MAX + 1);
        let count: u64 = then.uses.values().map(|seen| seen.connections).sum();
        assert_eq!(count, 1000, "none is lost");
        assert!(then.uses.contains_key(&(grant, OTHERS.to_owned())));
    }

    #[test]
    fn wild_values_are_kept_within_bounds() {
        assert_eq!(before(at(0), Duration::from_nanos(u64::MAX)).unix_ms(), 0);
        assert_eq!(place("tcp", 0, &"/x".repeat(300)), OTHERS);
        assert_eq!(place("unix", 0, "/a\0b"), OTHERS);
    }
}
