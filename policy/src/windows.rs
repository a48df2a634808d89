//! When windows are open: in hours of a week with a time zone, or once.
//!
//! Owns: overnight windows, changes of the clock. Must not know: what windows are for, what time it is.
//!
//! A weekly window opens when the clocks of its zone first reach `from`, and closes when they first reach `to`. A time that
//! a change of the clock leaves out is reached at that change; one that comes twice is reached the first time.

use jiff::civil::{Date, Weekday};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Span, Timestamp as Instant};
use proto::types::Timestamp;

use crate::names::WindowName;

/// Minutes of a day.
pub(crate) const DAY_MINUTES: u16 = 24 * 60;

/// Hours of some days of the week.
#[derive(Clone, Debug, PartialEq)]
pub struct Weekly {
    /// Its name.
    pub name: WindowName,
    /// The days on which it opens.
    pub days: Vec<Weekday>,
    /// When it opens, in minutes of the day, 0..1440.
    pub from: u16,
    /// When it closes, 1..=1440; not after `from`: on the next day. Never equal to `from`.
    pub to: u16,
    /// Whose clocks count.
    pub zone: TimeZone,
}

impl Weekly {
    /// Whether it is open at `now`.
    pub fn is_open(&self, now: Timestamp) -> bool {
        let Ok(now) = Instant::from_millisecond(now.unix_ms()) else {
            return false;
        };
        let today = now.to_zoned(self.zone.clone()).date();
        // What opened yesterday can still be open. The day before covers a change of the clock at midnight.
        (0..=2).any(|back| {
            let day = today.checked_sub(Span::new().days(back));
            day.ok().filter(|day| self.days.contains(&day.weekday())).is_some_and(|day| self.covers(day, now))
        })
    }

    /// When it opens next after `now`, within the week.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        let today = now.to_zoned(self.zone.clone()).date();
        let days = (0..=8).filter_map(|ahead| today.checked_add(Span::new().days(ahead)).ok());
        let days = days.filter(|day| self.days.contains(&day.weekday()));
        days.filter_map(|day| self.reached(day, self.from)).find(|opens| *opens > now)
    }

    fn covers(&self, day: Date, now: Instant) -> bool {
        let last = match self.to > self.from {
            true => Some(day),
            false => day.tomorrow().ok(),
        };
        let opens = self.reached(day, self.from);
        let closes = last.and_then(|last| self.reached(last, self.to));
        opens.zip(closes).is_some_and(|(opens, closes)| opens <= now && now < closes)
    }

    /// When the clocks first reach that minute of that day. None: beyond the end of the calendar.
    fn reached(&self, day: Date, minute: u16) -> Option<Instant> {
        let (day, minute) = match minute {
            DAY_MINUTES => (day.tomorrow().ok()?, 0),
            _ => (day, minute),
        };
        let clock = day.at(i8::try_from(minute / 60).ok()?, i8::try_from(minute % 60).ok()?, 0, 0);
        match self.zone.to_ambiguous_timestamp(clock).offset() {
            AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(clock).ok(),
            AmbiguousOffset::Fold { before, .. } => before.to_timestamp(clock).ok(),
            AmbiguousOffset::Gap { after, .. } => {
                let before_change = after.to_timestamp(clock).ok()?;
                self.zone.following(before_change).next().map(|change| change.timestamp())
            }
        }
    }
}

/// A stretch of time that is planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maintenance {
    /// Its name; no weekly window has the same.
    pub name: WindowName,
    /// When it opens.
    pub from: Timestamp,
    /// When it closes; later than `from`.
    pub to: Timestamp,
}

impl Maintenance {
    /// Whether it is open at `now`.
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.from <= now && now < self.to
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        let instant: Instant = text.parse().expect("valid");
        Timestamp::from_unix_ms(instant.as_millisecond()).expect("in range")
    }

    fn window(days: &[Weekday], from: u16, to: u16, zone: &str) -> Weekly {
        let zone = jiff::tz::TimeZoneDatabase::bundled().get(zone).expect("known");
        Weekly { name: "w".parse().expect("valid"), days: days.to_vec(), from, to, zone }
    }

    const ALL: [Weekday; 7] = [
        Weekday::Monday,
        Weekday::Tuesday,
        Weekday::Wednesday,
        Weekday::Thursday,
        Weekday::Friday,
        Weekday::Saturday,
        Weekday::Sunday,
    ];

    #[track_caller]
    fn check(window: &Weekly, cases: &[(&str, bool)]) {
        for (time, open) in cases {
            assert_eq!(window.is_open(at(time)), *open, "{time}");
        }
    }

    #[test]
    fn office_hours_follow_the_zone() {
        // Berlin is at +01:00 until 2026-03-29, then at +02:00.
        let office = window(&ALL[..5], 9 * 60, 17 * 60, "Europe/Berlin");
        check(
            &office,
            &[
                ("2026-03-27T07:59:59Z", false),
                ("2026-03-27T08:00:00Z", true),
                ("2026-03-27T15:59:59Z", true),
                ("2026-03-27T16:00:00Z", false),
                ("2026-03-28T10:00:00Z", false),
                ("2026-03-30T07:00:00Z", true),
                ("2026-03-30T15:00:00Z", false),
            ],
        );
    }

    #[test]
    fn overnight_belongs_to_the_day_on_which_it_opens() {
        let night = window(&[Weekday::Friday], 22 * 60, 6 * 60, "UTC");
        check(
            &night,
            &[
                ("2026-11-27T05:00:00Z", false),
                ("2026-11-27T21:59:00Z", false),
                ("2026-11-27T22:00:00Z", true),
                ("2026-11-28T05:59:59Z", true),
                ("2026-11-28T06:00:00Z", false),
                ("2026-11-28T23:00:00Z", false),
            ],
        );
        let whole = window(&[Weekday::Friday], 0, DAY_MINUTES, "UTC");
        check(&whole, &[("2026-11-27T23:59:59Z", true), ("2026-11-28T00:00:00Z", false)]);
    }

    /// On 2026-03-29 Berlin's clocks go from 01:59:59 to 03:00:00 (01:00 UTC).
    #[test]
    fn spring() {
        let from = window(&[Weekday::Sunday], 150, 240, "Europe/Berlin");
        check(
            &from,
            &[
                ("2026-03-29T00:59:59Z", false),
                ("2026-03-29T01:00:00Z", true),
                ("2026-03-29T02:00:00Z", false),
            ],
        );
        let to = window(&[Weekday::Sunday], 60, 150, "Europe/Berlin");
        check(
            &to,
            &[
                ("2026-03-29T00:00:00Z", true),
                ("2026-03-29T00:59:59Z", true),
                ("2026-03-29T01:00:00Z", false),
            ],
        );
        let inside = window(&[Weekday::Sunday], 125, 175, "Europe/Berlin");
        check(&inside, &[("2026-03-29T00:59:59Z", false), ("2026-03-29T01:00:00Z", false)]);
        let overnight = window(&[Weekday::Saturday], 22 * 60, 6 * 60, "Europe/Berlin");
        check(
            &overnight,
            &[
                ("2026-03-28T21:00:00Z", true),
                ("2026-03-29T03:59:59Z", true),
                ("2026-03-29T04:00:00Z", false),
            ],
        );
    }

    /// On 2026-10-25 Berlin's clocks go from 02:59:59 back to 02:00:00 (01:00 UTC).
    #[test]
    fn autumn() {
        let from = window(&[Weekday::Sunday], 150, 240, "Europe/Berlin");
        check(
            &from,
            &[
                ("2026-10-25T00:29:59Z", false),
                ("2026-10-25T00:30:00Z", true),
                ("2026-10-25T01:15:00Z", true),
                ("2026-10-25T02:59:59Z", true),
                ("2026-10-25T03:00:00Z", false),
            ],
        );
        let to = window(&[Weekday::Sunday], 60, 150, "Europe/Berlin");
        check(
            &to,
            &[
                ("2026-10-25T00:29:59Z", true),
                ("2026-10-25T00:30:00Z", false),
                ("2026-10-25T01:15:00Z", false),
            ],
        );
    }

    proptest! {
        /// Where no clock changes, a window is what arithmetic says.
        #[test]
        fn utc_is_arithmetic(from in 0u16..1440, length in 1u16..=1440, day in 0usize..7, minute in 0i64..60 * 24 * 21) {
            let to = match from + length { end if end > 1440 => end - 1440, end => end };
            prop_assume!(to != from);
            let window = window(&ALL[day..=day], from, to, "UTC");
            // 2026-11-02 is a Monday.
            let monday = at("2026-11-02T00:00:00Z").unix_ms();
            let now = Timestamp::from_unix_ms(monday + minute * 60_000).expect("in range");
            let length = i64::from(if to > from { to - from } else { 1440 - from + to });
            let since = (minute - (day as i64) * 1440 - i64::from(from)).rem_euclid(7 * 1440);
            prop_assert_eq!(window.is_open(now), since < length);
        }

        /// A window and the one that fills the rest of each day are never open together, and one of them always is, whatever
        /// clocks do.
        #[test]
        fn halves_of_a_day(from in 0u16..1440, to in 0u16..1440, hour in 0i64..24 * 366, zone in 0usize..4) {
            prop_assume!(from != to);
            let zone = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"][zone];
            let to_first = if to == 0 { DAY_MINUTES } else { to };
            let to_second = if from == 0 { DAY_MINUTES } else { from };
            prop_assume!(from != to_first && to % 1440 != to_second % 1440);
            let (one, other) = (window(&ALL, from, to_first, zone), window(&ALL, to, to_second, zone));
            let now = Timestamp::from_unix_ms(at("2026-01-01T00:00:00Z").unix_ms() + hour * 3_600_000).expect("in range");
            prop_assert_ne!(one.is_open(now), other.is_open(now));
        }
    }
}
