//! Warnings that a grant is about to end.
//!
//! Owns: how long before the end its holder is warned, and whom that is spared. Must not know: what was warned of already, storage.

use std::time::Duration;

use proto::types::Timestamp;

/// One warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warning {
    /// So long before the end. A grant that was shorter from the beginning has no such warning.
    pub ahead: Duration,
    /// As the record has it.
    pub name: &'static str,
}

/// The last first: who comes late, as after the control plane was away, is warned once, by the one that fits.
pub const WARNINGS: [Warning; 2] = [
    Warning { ahead: Duration::from_secs(60), name: "1m" },
    Warning { ahead: Duration::from_secs(5 * 60), name: "5m" },
];

impl Warning {
    /// When it is due for a grant that ends then.
    pub fn due(self, expires: Timestamp) -> Timestamp {
        let due = expires.unix_ms().saturating_sub(self.ahead_ms()).max(0);
        // Earlier than a moment in range, and not before 1970.
        Timestamp::from_unix_ms(due).unwrap_or(expires)
    }

    /// The same in milliseconds.
    pub fn ahead_ms(self) -> i64 {
        i64::try_from(self.ahead.as_millis()).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_comes_before_the_end() {
        let at = |seconds: i64| Timestamp::from_unix_ms(seconds * 1000).expect("in range");
        assert_eq!(WARNINGS.map(|warning| warning.due(at(1000))), [at(940), at(700)]);
        assert_eq!(WARNINGS[1].due(at(10)), at(0));
        assert!(WARNINGS.is_sorted_by_key(|warning| warning.ahead));
    }
}
