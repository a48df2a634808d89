//! Moments and durations.

use std::fmt::{self, Display};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Invalid;

/// A moment on the wall clock, in whole milliseconds since 1970 (UTC).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    unix_ms: i64,
}

/// The year 9999, the last that RFC 3339 can write.
const UNIX_MS_MAX: i64 = 253_402_300_799_999;

impl Timestamp {
    /// `unix_ms` must lie in the years 1970 to 9999.
    pub fn from_unix_ms(unix_ms: i64) -> Result<Self, Invalid> {
        if !(0..=UNIX_MS_MAX).contains(&unix_ms) {
            return Err(Invalid::new("", format_args!("{unix_ms} ms is outside the years 1970 to 9999")));
        }
        Ok(Self { unix_ms })
    }

    /// Milliseconds since 1970 (UTC).
    pub fn unix_ms(self) -> i64 {
        self.unix_ms
    }

    /// This moment plus `duration`; the year 9999 is the end of time.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        let added = i64::try_from(duration.as_millis()).unwrap_or(UNIX_MS_MAX);
        Self { unix_ms: self.unix_ms.saturating_add(added).min(UNIX_MS_MAX) }
    }

    /// How long it is from `earlier` to this moment; zero if it is not later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.unix_ms - earlier.unix_ms).unwrap_or(0))
    }
}

impl From<SystemTime> for Timestamp {
    /// A clock outside 1970 to 9999 counts as the nearer of the two.
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self { unix_ms: 0 }.plus(since)
    }
}

impl Display for Timestamp {
    /// Milliseconds with their unit; people see times through the CLI, which knows their time zone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.unix_ms)
    }
}

impl TryFrom<prost_types::Timestamp> for Timestamp {
    type Error = Invalid;

    fn try_from(wire: prost_types::Timestamp) -> Result<Self, Invalid> {
        let unix_ms =
            wire.seconds.checked_mul(1000).and_then(|ms| ms.checked_add(i64::from(wire.nanos / 1_000_000)));
        Self::from_unix_ms(unix_ms.unwrap_or(i64::MAX))
    }
}

impl From<Timestamp> for prost_types::Timestamp {
    fn from(time: Timestamp) -> Self {
        Self { seconds: time.unix_ms / 1000, nanos: (time.unix_ms % 1000) as i32 * 1_000_000 }
    }
}

/// A time that must be there.
pub(crate) fn required(field: &str, wire: Option<prost_types::Timestamp>) -> Result<Timestamp, Invalid> {
    wire.ok_or_else(|| Invalid::missing(field))?.try_into().map_err(|error: Invalid| error.within(field))
}

/// A time that may be absent.
pub(crate) fn optional(
    field: &str,
    wire: Option<prost_types::Timestamp>,
) -> Result<Option<Timestamp>, Invalid> {
    wire.map(|wire| required(field, Some(wire))).transpose()
}

/// A duration that is there and not negative.
pub fn duration_from_wire(field: &str, wire: Option<prost_types::Duration>) -> Result<Duration, Invalid> {
    let wire = wire.ok_or_else(|| Invalid::missing(field))?;
    Duration::try_from(wire)
        .map_err(|_| Invalid::new(field, format_args!("{} s is negative or too long", wire.seconds)))
}

/// As the wire carries it; what is longer than it can carry becomes its longest.
pub fn duration_to_wire(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: duration.subsec_nanos() as i32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_the_wire() {
        for unix_ms in [0, 1, 999, 1000, 1_795_000_000_123, UNIX_MS_MAX] {
            let time = Timestamp::from_unix_ms(unix_ms).expect("in range");
            assert_eq!(Timestamp::try_from(prost_types::Timestamp::from(time)), Ok(time));
        }
    }

    #[test]
    fn wild_times_are_refused() {
        for seconds in [i64::MIN, -1, i64::MAX, UNIX_MS_MAX / 1000 + 1] {
            assert!(Timestamp::try_from(prost_types::Timestamp { seconds, nanos: 0 }).is_err(), "{seconds}");
        }
        assert!(duration_from_wire("d", Some(prost_types::Duration { seconds: -1, nanos: 0 })).is_err());
        assert!(duration_from_wire("d", None).is_err());
    }

    #[test]
    fn arithmetic_stops_at_the_ends() {
        let now = Timestamp::from_unix_ms(1000).expect("in range");
        assert_eq!(now.plus(Duration::MAX).unix_ms(), UNIX_MS_MAX);
        assert_eq!(now.since(now.plus(Duration::from_secs(1))), Duration::ZERO);
        assert_eq!(now.plus(Duration::from_secs(1)).since(now), Duration::from_secs(1));
    }
}
