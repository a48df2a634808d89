//! How long to wait before trying again.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// A control plane that restarts is back within a second: the first try comes soon.
const FIRST: Duration = Duration::from_millis(250);
/// Long enough not to burden a control plane that a thousand collectors wait for, short enough not to be noticed by people.
const LONGEST: Duration = Duration::from_secs(10);

/// Waits that double from one failure to the next, each shortened by a random part of up to a half, so that many who lost
/// the same control plane do not come back at the same moment.
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { next: FIRST }
    }

    /// The next wait.
    pub(crate) fn step(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(LONGEST);
        // A fresh `RandomState` hashes nothing to a random number: enough to spread, and no dependency.
        let random = (RandomState::new().build_hasher().finish() % 1000) as u32;
        wait - wait * random / 2000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_longest() {
        let mut backoff = Backoff::new();
        let mut bound = FIRST;
        for _ in 0..20 {
            let wait = backoff.step();
            assert!(wait <= bound && wait >= bound / 2, "{wait:?} of {bound:?}");
            bound = (bound * 2).min(LONGEST);
        }
        assert_eq!(bound, LONGEST);
    }
}
