//! When the time of a grant begins.
//!
//! Owns: what a role's clock means for a grant that is approved now. Must not know: who activates, storage.

use std::time::Duration;

use policy::model::ClockStart;
use proto::types::{Grant, GrantState, Timestamp};

use super::Refusal;

/// When it begins, and what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// Now.
    Now {
        /// Its deadline.
        until: Timestamp,
    },
    /// By itself, then.
    Then {
        /// Later than now.
        begins: Timestamp,
        /// Its deadline.
        until: Timestamp,
    },
    /// When somebody activates it.
    WhenActivated {
        /// Until then; after that it has lapsed.
        by: Timestamp,
        /// How long it lives from there.
        duration: Duration,
    },
}

impl Begin {
    /// Of a grant for so long that is approved now. `patience`: how long it waits to be activated.
    pub fn of(
        clock: ClockStart,
        duration: Duration,
        patience: Duration,
        now: Timestamp,
    ) -> Result<Self, Refusal> {
        let begins = match clock {
            ClockStart::Approval => now,
            ClockStart::Activation => return Ok(Self::WhenActivated { by: now.plus(patience), duration }),
            ClockStart::At(begins) => begins,
        };
        let until = begins.plus(duration);
        match begins > now {
            _ if until <= now => Err(Refusal::TimeOver { begins, until }),
            true => Ok(Self::Then { begins, until }),
            false => Ok(Self::Now { until }),
        }
    }
}

/// How long a grant lives that is activated now.
pub fn activated(grant: &Grant, now: Timestamp) -> Result<Duration, Refusal> {
    let not_now = || Refusal::NotLive { grant: grant.id, state: grant.state };
    match (grant.state, grant.begins, grant.duration) {
        (GrantState::Scheduled, None, Some(duration)) if now < grant.expires => Ok(duration),
        (GrantState::Scheduled, Some(begins), _) => Err(Refusal::BeginsByItself { grant: grant.id, begins }),
        _ => Err(not_now()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks() {
        let at = |minute: u64| {
            let begin = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
            begin.plus(Duration::from_secs(60 * minute))
        };
        let (duration, patience) = (Duration::from_secs(600), Duration::from_secs(3600));
        let begin = |clock, minute| Begin::of(clock, duration, patience, at(minute));
        assert_eq!(begin(ClockStart::Approval, 1), Ok(Begin::Now { until: at(11) }));
        assert_eq!(begin(ClockStart::Activation, 1), Ok(Begin::WhenActivated { by: at(61), duration }));
        let then = ClockStart::At(at(5));
        assert_eq!(begin(then, 1), Ok(Begin::Then { begins: at(5), until: at(15) }));
        assert_eq!(begin(then, 5), Ok(Begin::Now { until: at(15) }));
        assert_eq!(begin(then, 14), Ok(Begin::Now { until: at(15) }), "what is left of it");
        assert_eq!(begin(then, 15), Err(Refusal::TimeOver { begins: at(5), until: at(15) }));
    }
}
