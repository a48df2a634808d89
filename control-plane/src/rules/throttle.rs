//! Refused calls in the record: each is counted, but nobody can flood the record with them.
//!
//! Owns: which refusals get a line of their own. Must not know: where lines are written.

use std::collections::HashMap;
use std::time::Duration;

use proto::types::Timestamp;

use super::actor::Actor;
use super::calls::Method;

/// One line in this time for each caller, method and reason; what comes in between is counted in the next line.
const PAUSE: Duration = Duration::from_secs(1);

/// Who was refused what, and why.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Refused {
    /// Who; None: nobody that the record could name.
    pub actor: Option<Actor>,
    /// What.
    pub method: Method,
    /// Why, as one word of a closed list.
    pub reason: &'static str,
}

/// The refusals of the last second.
#[derive(Debug, Default)]
pub struct Throttle {
    /// Bounded by the known callers times the methods times the reasons: unknown callers share one name.
    recent: HashMap<Refused, Recent>,
}

#[derive(Debug)]
struct Recent {
    written: Timestamp,
    suppressed: u64,
}

impl Throttle {
    /// A refusal at `now`: whether it gets a line, and how many others this line stands for.
    pub fn note(&mut self, key: Refused, now: Timestamp) -> Option<u64> {
        let recent = self.recent.get_mut(&key);
        match recent {
            Some(recent) if !is_over(recent.written, now) => {
                recent.suppressed += 1;
                None
            }
            Some(recent) => {
                recent.written = now;
                Some(std::mem::take(&mut recent.suppressed))
            }
            None => {
                self.recent.insert(key, Recent { written: now, suppressed: 0 });
                Some(0)
            }
        }
    }

    /// The refusals that were only counted and are due for a line, each with how many others its line stands for; what has
    /// been quiet is forgotten.
    pub fn due(&mut self, now: Timestamp) -> Vec<(Refused, u64)> {
        let over = self.recent.extract_if(|_, recent| is_over(recent.written, now));
        over.filter_map(|(key, recent)| Some((key, recent.suppressed.checked_sub(1)?))).collect()
    }
}

/// A clock that was set back does not silence anybody for longer.
fn is_over(written: Timestamp, now: Timestamp) -> bool {
    now < written || now.since(written) >= PAUSE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_and_none_forgotten() {
        let at = |ms: i64| Timestamp::from_unix_ms(1_795_000_000_000 + ms).expect("in range");
        let key = |host: &str| Refused {
            actor: host.parse().ok().map(Actor::Host),
            method: Method::Tail,
            reason: "permission_denied",
        };
        let mut throttle = Throttle::default();
        assert_eq!(throttle.note(key("eve-1"), at(0)), Some(0));
        assert_eq!(throttle.note(key("eve-1"), at(1)), None);
        assert_eq!(throttle.note(key("bob-1"), at(2)), Some(0));
        assert_eq!(throttle.due(at(999)), Vec::new());
        assert_eq!(throttle.note(key("eve-1"), at(1000)), Some(1));
        assert_eq!(throttle.note(key("eve-1"), at(1500)), None);
        assert_eq!(throttle.note(key("eve-1"), at(1600)), None);
        assert_eq!(throttle.due(at(2500)), [(key("eve-1"), 1)], "a line for one, that stands for one other");
        assert!(throttle.recent.is_empty());
        assert_eq!(throttle.note(key("eve-1"), at(2600)), Some(0));
        assert_eq!(throttle.note(key("eve-1"), at(0)), Some(0), "the clock was set back");
    }
}
