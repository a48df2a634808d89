//! Notifications: which event is for whom, how bad it is, and when what did not arrive is tried again.
//!
//! Owns: severities; what a target asked for; pauses between tries, and when it is given up. Must not know: how messages look or
//! travel, where they wait.
//!
//! Invariant: that a notification has failed is never told to the target that failed, and a failure to tell of a failure is told to
//! nobody: it is on record, and that is the end of it. Else two targets that are away would keep each other busy for ever.

use std::fmt::{self, Display};
use std::str::FromStr;
use std::time::Duration;

use proto::types::{AuditEvent, EventKind, ProviderName, Timestamp};

/// The pause after the first failure. Each one after it is twice as long.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// The longest pause: a target that is back hears of everything within so long.
const PAUSE_MAX: Duration = Duration::from_secs(60 * 60);

/// How often one message is tried at most, however long it may wait.
pub const TRIES_MAX: u32 = 200;

/// How bad what happened is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It is as it should be.
    Info,
    /// Somebody may want to know.
    Low,
    /// Somebody should look at it.
    Medium,
    /// The gate itself, or the record, is concerned.
    High,
}

impl Severity {
    /// All of them, the least first.
    pub const ALL: [Self; 4] = [Self::Info, Self::Low, Self::Medium, Self::High];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }

    /// Of an event.
    pub fn of(event: &AuditEvent) -> Self {
        match event.kind {
            EventKind::AgentStateChanged if event.reason == "enforcing" => Self::Low,
            kind => Self::of_kind(kind),
        }
    }

    fn of_kind(kind: EventKind) -> Self {
        match kind {
            EventKind::ConnectionAllowed
            | EventKind::ConnectionClosed
            | EventKind::GrantReceipt
            | EventKind::GrantActive
            | EventKind::SubjectSignedIn
            | EventKind::SubjectSignedOut
            | EventKind::HostRenewed
            | EventKind::AgentStarted
            | EventKind::AgentConnected
            | EventKind::RunPassIssued
            | EventKind::RunStarted
            | EventKind::RunEnded => Self::Info,
            EventKind::RequestCreated
            | EventKind::RequestApproved
            | EventKind::RequestDenied
            | EventKind::RequestWithdrawn
            | EventKind::RequestLapsed
            | EventKind::ApprovalGiven
            | EventKind::GrantIssued
            | EventKind::GrantScheduled
            | EventKind::GrantExtended
            | EventKind::BreakGlassReviewed
            | EventKind::GrantExpiring
            | EventKind::DraftOpened
            | EventKind::GrantEnding
            | EventKind::GrantEnded
            | EventKind::ConnectionWouldDeny
            | EventKind::ResourceAdded
            | EventKind::SubjectAdded
            | EventKind::SubjectBound
            | EventKind::SubjectEnabled
            | EventKind::HostAdded
            | EventKind::HostJoined
            | EventKind::TokenIssued
            | EventKind::AgentDisconnected => Self::Low,
            EventKind::ConnectionDenied
            | EventKind::PolicyApplied
            | EventKind::FreezeBegan
            | EventKind::FreezeEnded
            | EventKind::IncidentOpened
            | EventKind::IncidentClosed
            | EventKind::ResourceChanged
            | EventKind::ResourceRemoved
            | EventKind::SubjectUnbound
            | EventKind::SubjectDisabled
            | EventKind::HostRevoked
            | EventKind::HostDisagrees
            | EventKind::WorkloadEntered
            | EventKind::RunRefused
            | EventKind::CallRefused
            | EventKind::SignInRefused
            | EventKind::NotificationFailed
            | EventKind::ClockStepped => Self::Medium,
            EventKind::BreakGlassUsed
            | EventKind::HostKeyCopied
            | EventKind::HostDrift
            | EventKind::GateTampering
            | EventKind::AgentDetached
            | EventKind::AgentStateChanged
            | EventKind::AuditGap => Self::High,
        }
    }
}

impl Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Severity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|severity| severity.as_str() == text);
        known.ok_or_else(|| format!("is not one of {}", Self::ALL.map(Self::as_str).join(", ")))
    }
}

/// Some kinds of events: `*`, `grant.*` or `grant.ended`. Means one kind at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    fn matches(&self, kind: EventKind) -> bool {
        match self.0.strip_suffix('*') {
            // With the dot, so that `grant.*` is not about what only begins with the same letters.
            Some(start) => kind.as_str().starts_with(start),
            None => kind.as_str() == self.0,
        }
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pattern = Self(text.to_owned());
        let is_shaped = text == "*" || text.strip_suffix('*').is_none_or(|start| start.ends_with('.'));
        match is_shaped && EventKind::ALL.iter().any(|kind| pattern.matches(*kind)) {
            true => Ok(pattern),
            false => {
                Err("is neither an event of docs/audit-events.md, nor such as `grant.*`, nor `*`".to_owned())
            }
        }
    }
}

/// What a target wants to hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// The target's name.
    pub target: ProviderName,
    /// Events of any of these kinds,
    pub events: Vec<Pattern>,
    /// and at least so bad.
    pub severity: Severity,
    /// How many messages may wait; then the oldest are given up.
    pub waiting_max: u32,
    /// How long one waits at most before it is given up.
    pub patience: Duration,
}

impl Subscription {
    /// Whether an event that came about so is for this target.
    pub fn wants(&self, event: &AuditEvent, origin: &Origin) -> bool {
        let is_heard = match origin {
            Origin::Itself => true,
            Origin::FailureOf(target) => *target != self.target,
            Origin::FailureToTellOfFailure => false,
        };
        is_heard
            && Severity::of(event) >= self.severity
            && self.events.iter().any(|pattern| pattern.matches(event.kind))
    }
}

/// How an event came about, as far as notifications are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// By something else.
    Itself,
    /// This target could not be told of something.
    FailureOf(ProviderName),
    /// A target could not be told that another one could not be told.
    FailureToTellOfFailure,
}

/// What becomes of a message that did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is tried again then.
    TryAt(Timestamp),
    /// It is not tried again.
    GiveUp,
}

/// What becomes of a message that was made at `made` and has failed `tries` times by `now`. `jitter`, any number, spreads tries that
/// would come at once.
pub fn after_failure(tries: u32, made: Timestamp, patience: Duration, now: Timestamp, jitter: u32) -> Next {
    let doubled = PAUSE_MIN.saturating_mul(2_u32.saturating_pow(tries.saturating_sub(1)));
    // Between a half of it and all of it.
    let half = doubled.min(PAUSE_MAX) / 2;
    let next = now.plus(half + half.mul_f64(f64::from(jitter) / f64::from(u32::MAX)));
    match tries < TRIES_MAX && next < made.plus(patience) {
        true => Next::TryAt(next),
        false => Next::GiveUp,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};
    use proto::types::EventId;
    use uuid::Uuid;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_ms(seconds * 1000).expect("in range")
    }

    fn event(kind: EventKind) -> AuditEvent {
        let id = EventId { host: None, epoch: Uuid::from_u128(7), sequence: 1 };
        AuditEvent::new(id, kind, at(0))
    }

    fn subscription(events: &[&str], severity: Severity) -> Subscription {
        Subscription {
            target: "ops".parse().expect("valid"),
            events: events.iter().map(|text| text.parse().expect("a pattern")).collect(),
            severity,
            waiting_max: 10,
            patience: DAY,
        }
    }

    #[track_caller]
    fn check(events: &[&str], severity: Severity, kind: EventKind, expected: bool) {
        let wants = subscription(events, severity).wants(&event(kind), &Origin::Itself);
        assert_eq!(wants, expected, "{events:?} {severity} {kind}");
    }

    #[test]
    fn a_target_hears_what_it_asked_for() {
        check(&["*"], Severity::Info, EventKind::ConnectionAllowed, true);
        check(&["grant.*"], Severity::Info, EventKind::GrantEnded, true);
        check(&["grant.*"], Severity::Info, EventKind::RequestCreated, false);
        check(&["grant.ended", "request.created"], Severity::Info, EventKind::RequestCreated, true);
        check(&["grant.ended"], Severity::Info, EventKind::GrantEnding, false);
        check(&["*"], Severity::High, EventKind::RequestCreated, false);
        check(&["*"], Severity::High, EventKind::GateTampering, true);
        let mut changed = event(EventKind::AgentStateChanged);
        let high = subscription(&["*"], Severity::High);
        changed.reason = "degraded".to_owned();
        assert!(high.wants(&changed, &Origin::Itself));
        changed.reason = "enforcing".to_owned();
        assert!(!high.wants(&changed, &Origin::Itself));
    }

    #[test]
    fn what_is_no_pattern_is_told() {
        for text in ["", "**", "gr*", "grant", "grants.*", "grant.*.*", "conn", "CONN.*", "*.ended"] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
        for kind in EventKind::ALL {
            assert!(kind.as_str().parse::<Pattern>().is_ok(), "{kind}");
        }
        assert_eq!("bad".parse::<Severity>(), Err("is not one of info, low, medium, high".to_owned()));
    }

    #[test]
    fn failures_do_not_go_round() {
        let all = subscription(&["*"], Severity::Info);
        let failed = event(EventKind::NotificationFailed);
        let other = "other".parse().expect("valid");
        assert!(all.wants(&failed, &Origin::FailureOf(other)));
        assert!(!all.wants(&failed, &Origin::FailureOf(all.target.clone())));
        assert!(!all.wants(&failed, &Origin::FailureToTellOfFailure));
    }

    #[test]
    fn pauses_grow_until_it_is_given_up() {
        let made = at(1000);
        let next = |tries, now, jitter| after_failure(tries, made, DAY, now, jitter);
        assert_eq!(next(1, made, u32::MAX), Next::TryAt(at(1001)));
        assert_eq!(next(2, made, u32::MAX), Next::TryAt(at(1002)));
        assert_eq!(next(5, made, 0), Next::TryAt(at(1008)));
        assert_eq!(next(40, made, u32::MAX), Next::TryAt(at(1000 + 3600)));
        assert_eq!(next(u32::MAX, made, u32::MAX), Next::GiveUp);
        assert_eq!(next(20, made.plus(DAY), 0), Next::GiveUp);
        assert_eq!(next(20, at(1000 + 86_400 - 1800), 0), Next::GiveUp, "it would come too late");
    }

    proptest! {
        /// Whatever happens, a message is tried again later than now, within its patience, or not at all.
        #[test]
        fn a_try_lies_ahead(tries in any::<u32>(), now in 0_i64..1_000_000_000, made in 0_i64..1_000_000_000, jitter in any::<u32>()) {
            let (now, made) = (at(now), at(made));
            if let Next::TryAt(next) = after_failure(tries, made, DAY, now, jitter) {
                assert!(next > now && next < made.plus(DAY) && tries < TRIES_MAX);
            }
        }
    }
}
