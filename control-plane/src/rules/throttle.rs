//! Refused calls in the record: each is counted, but nobody can flood the record with them.
//!
//! Owns: which refusals get a line of their own. Must not know: where lines are written.

use std::collections::HashMap;
use std::time::Duration;

use proto::types::Timestamp;

/// One line in this time for each caller and what it was refused; what comes in between is counted in the next line.
const PAUSE: Duration = Duration::from_secs(1);

/// Who was refused what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// As audit events name callers; empty: nobody that is known.
    pub caller: String,
    /// One word for why.
    pub reason: &'static str,
    /// The method, or what else was asked for.
    pub what: &'static str,
}

/// The refusals of the last second.
#[derive(Debug, Default)]
pub struct Throttle {
    /// Bounded by the known callers times the methods and reasons: unknown callers share one name.
    recent: HashMap<Key, Recent>,
}

#[derive(Debug)]
struct Recent {
    written: Timestamp,
    suppressed: u64,
}

impl Throttle {
    /// A refusal at `now`: whether it gets a line, and how many others this line stands for.
    pub fn note(&mut self, key: Key, now: Timestamp) -> Option<u64> {
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

    /// A refusal at `now` that may wait for its line: it gets one with the next [`Throttle::due`], or stands in that of others.
    pub fn count(&mut self, key: Key, now: Timestamp) {
        self.recent.entry(key).or_insert(Recent { written: now, suppressed: 0 }).suppressed += 1;
    }

    /// The refusals that were only counted and are due for a line, each with how many others its line stands for; what has
    /// been quiet is forgotten.
    pub fn due(&mut self, now: Timestamp) -> Vec<(Key, u64)> {
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
        let key = |caller: &str| Key { caller: caller.to_owned(), reason: "permission_denied", what: "Tail" };
        let mut throttle = Throttle::default();
        assert_eq!(throttle.note(key("user:eve"), at(0)), Some(0));
        assert_eq!(throttle.note(key("user:eve"), at(1)), None);
        assert_eq!(throttle.note(key("user:bob"), at(2)), Some(0));
        assert_eq!(throttle.due(at(999)), Vec::new());
        assert_eq!(throttle.note(key("user:eve"), at(1000)), Some(1));
        assert_eq!(throttle.note(key("user:eve"), at(1500)), None);
        assert_eq!(throttle.note(key("user:eve"), at(1600)), None);
        assert_eq!(
            throttle.due(at(2500)),
            [(key("user:eve"), 1)],
            "a line for one, that stands for one other"
        );
        assert!(throttle.recent.is_empty());
        assert_eq!(throttle.note(key("user:eve"), at(2600)), Some(0));
        assert_eq!(throttle.note(key("user:eve"), at(0)), Some(0), "the clock was set back");
    }

    #[test]
    fn what_is_counted_gets_its_line() {
        let at = |ms: i64| Timestamp::from_unix_ms(1_795_000_000_000 + ms).expect("in range");
        let key = || Key { caller: String::new(), reason: "unauthenticated", what: "connection" };
        let mut throttle = Throttle::default();
        (0..3).for_each(|ms| throttle.count(key(), at(ms)));
        assert_eq!(throttle.due(at(999)), Vec::new());
        assert_eq!(throttle.due(at(1000)), [(key(), 2)], "a line for one, that stands for two others");
        assert!(throttle.recent.is_empty());
    }
}
