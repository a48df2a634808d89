//! The steady clock: it goes on evenly, whatever is done to the wall clock.
//!
//! Owns: how it goes, where it begins when a control plane starts, what is noticed of the wall clock. Must not know: how clocks are read,
//! where anchors are kept.
//!
//! Invariants: it never goes back; of any time that the boot clock counts it counts 99 to 101 %. It is drawn towards the wall clock: where
//! that goes right, a difference of an hour is gone after 100 hours. So no step of the wall clock makes what is to last for a time, as a
//! grant, last more than 1 % longer or shorter, and a step that put right what was wrong is taken up all the same.
//!
//! After a restart on the same boot the boot clock says how long it has been. After another boot nobody can but the wall clock, which is
//! believed as long as it is not behind what the record has seen: what has run out has run out. Where the wall clock is a day and more
//! behind, how long anything would have had is not known, and it ends.

use std::time::{Duration, UNIX_EPOCH};

use proto::types::Timestamp;

/// It is drawn towards the wall clock by one part in so many of the time that passes.
const DRAWN_BY: i128 = 100;

/// Time is counted in parts of a nanosecond, so many in each, so that what it is drawn by is a whole number however short the time is.
const PARTS_PER_NS: i128 = DRAWN_BY;

const NS_PER_MS: i128 = 1_000_000;

/// How far the wall clock may be from where it was last seen, when a control plane starts: beyond that it is not a step but another time.
const OFF_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What machines' clocks may differ by without anything being wrong with one of them.
pub const AGREED: Duration = Duration::from_secs(60);

/// A change of the wall clock that is a step: what daemons that keep clocks right do little by little is less.
const STEP_MIN: Duration = Duration::from_secs(2);

/// How often it is written down where the clock is, so that the record knows about what time it was.
const KEEP_EVERY: Duration = Duration::from_secs(60 * 60);

/// The same while it is drawn to where the wall clock is: so that a restart loses a second of that at most.
const KEEP_EVERY_APART: Duration = Duration::from_secs(60);

/// How far apart the clocks are then.
const APART_MIN: Duration = Duration::from_secs(1);

/// How often it is told that the clocks are apart by more than [`AGREED`].
const TELL_EVERY: Duration = Duration::from_secs(60 * 60);

/// The clock.
#[derive(Clone, Copy, Debug)]
pub struct Steady {
    /// What it said last: since 1970, in parts of a nanosecond.
    parts: i128,
    /// The boot clock at that moment.
    boot: Duration,
}

impl Steady {
    /// It says `at`, since 1970, when the boot clock says `boot`.
    pub fn begin(at: Duration, boot: Duration) -> Self {
        Self { parts: parts(at), boot }
    }

    /// What it says when the boot clock says `boot` and the wall clock `wall`, since 1970.
    pub fn read(&mut self, boot: Duration, wall: Duration) -> Timestamp {
        let passed = boot.saturating_sub(self.boot);
        let alone = self.parts.saturating_add(parts(passed));
        let drawn_max = parts(passed) / DRAWN_BY;
        self.parts = alone + parts(wall).saturating_sub(alone).clamp(-drawn_max, drawn_max);
        self.boot = self.boot.max(boot);
        let ms = u64::try_from(self.parts / (PARTS_PER_NS * NS_PER_MS)).unwrap_or(0);
        (UNIX_EPOCH + Duration::from_millis(ms)).into()
    }
}

fn parts(time: Duration) -> i128 {
    i128::try_from(time.as_nanos()).unwrap_or(i128::MAX).saturating_mul(PARTS_PER_NS)
}

/// Where the clock was at a moment of a boot of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// Which boot.
    pub boot_id: String,
    /// The moment, by its boot clock.
    pub boot: Duration,
    /// What the steady clock said.
    pub steady: Timestamp,
    /// What the wall clock said.
    pub wall: Timestamp,
}

/// Where the clock of a control plane begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// There.
    pub at: Timestamp,
    /// By how many milliseconds the wall clock was ahead of the steady one when that was last told; negative: behind.
    pub known_ms: i64,
    /// By how many milliseconds the wall clock is further than anybody can have been away, and so begins anew; negative: so far back that
    /// nobody can say how long anything would have had. None: all goes on.
    pub lost_ms: Option<i64>,
}

impl Start {
    /// Whether what lasts for a time ends now.
    pub fn ends_all(&self) -> bool {
        self.lost_ms.is_some_and(|lost_ms| lost_ms < 0)
    }
}

/// Where the clock begins when the boot clock says `boot` and the wall clock `wall`. `same`: the anchor of this boot, if there is one;
/// `newest`: the latest moment of any anchor.
pub fn start(boot: Duration, wall: Timestamp, same: Option<&Anchor>, newest: Option<Timestamp>) -> Start {
    let begin = |at, known_ms| Start { at, known_ms, lost_ms: None };
    // A boot clock that is behind its own past is another one's.
    let same = same.filter(|anchor| anchor.boot <= boot);
    let (at, known_ms) = match (same, newest) {
        (Some(anchor), _) => (anchor.steady.plus(boot - anchor.boot), apart_ms(anchor.wall, anchor.steady)),
        (None, Some(newest)) if wall < newest => {
            let behind_ms = apart_ms(wall, newest);
            // Another machine's clock may have been so far ahead without being wrong.
            (newest, if is_within(behind_ms, AGREED) { behind_ms } else { 0 })
        }
        (None, _) => return begin(wall, 0),
    };
    let off_ms = apart_ms(wall, at);
    match is_within(off_ms, OFF_MAX) {
        true => begin(at, known_ms),
        false => Start { at: wall, known_ms: 0, lost_ms: Some(off_ms) },
    }
}

/// Whether our wall clock, `before` and `after` another machine's was asked, was far from that.
pub fn is_far(theirs: Timestamp, before: Timestamp, after: Timestamp) -> bool {
    theirs.plus(AGREED) < before || theirs > after.plus(AGREED)
}

/// What the steady clock says at a moment that the wall clock dates so.
pub fn dated(date: Timestamp, wall: Timestamp, now: Timestamp) -> Timestamp {
    let moment = now.unix_ms().saturating_add(apart_ms(date, wall));
    Timestamp::from_unix_ms(moment).unwrap_or(now)
}

/// A moment that the steady clock, going as fast as it may, reaches no earlier than the wall clock this date.
pub fn not_before(date: Timestamp, wall: Timestamp, now: Timestamp) -> Timestamp {
    let left = date.since(wall);
    now.plus(left + left / 50 + Duration::from_millis(2))
}

/// How the wall clock was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// By so many milliseconds; negative: back.
    pub by_ms: i64,
}

impl Step {
    /// As one word, for the record.
    pub fn word(self) -> &'static str {
        if self.by_ms < 0 { "back" } else { "forward" }
    }

    /// By how much, in words.
    pub fn length(self) -> String {
        length(self.by_ms)
    }
}

/// A difference in words, in whole seconds.
fn length(ms: i64) -> String {
    humantime::format_duration(Duration::from_secs((ms.unsigned_abs() + 500) / 1000)).to_string()
}

/// What is noticed of the wall clock, and when the clock is written down.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    /// When it was last looked.
    looked: Timestamp,
    /// By how many milliseconds the wall clock was ahead then.
    apart_ms: i64,
    kept: Timestamp,
    /// When it was last told that they are apart.
    told: Option<Timestamp>,
}

/// What follows from a look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// The wall clock was set.
    pub step: Option<Step>,
    /// It is to be written down where the clock is.
    pub keeps: bool,
    /// The clocks are apart, and it is time to say so: by how much, and which is ahead.
    pub apart: Option<String>,
}

impl Watch {
    /// Begins with the clock.
    pub fn new(start: &Start) -> Self {
        Self { looked: start.at, apart_ms: start.known_ms, kept: start.at, told: None }
    }

    /// What there is to do now. It is the same again until it was done: see [`Watch::done`].
    pub fn look(&self, now: Timestamp, wall: Timestamp) -> Look {
        let ahead_ms = apart_ms(wall, now);
        let passed = now.since(self.looked);
        let by_ms = ahead_ms.saturating_sub(self.apart_ms);
        // The steady clock itself comes nearer all the time.
        let is_step = !is_within(by_ms, STEP_MIN + passed / 90);
        let every = if is_within(ahead_ms, APART_MIN) { KEEP_EVERY } else { KEEP_EVERY_APART };
        let is_untold = self.told.is_none_or(|told| now.since(told) >= TELL_EVERY);
        let which = if ahead_ms < 0 { "behind" } else { "ahead of" };
        let apart = || format!("{} {which} it", length(ahead_ms));
        Look {
            step: is_step.then_some(Step { by_ms }),
            keeps: is_step || now.since(self.kept) >= every,
            apart: (is_untold && !is_within(ahead_ms, AGREED)).then(apart),
        }
    }

    /// That was done.
    pub fn done(&mut self, look: &Look, now: Timestamp, wall: Timestamp) {
        (self.looked, self.apart_ms) = (now, apart_ms(wall, now));
        if look.keeps {
            self.kept = now;
        }
        if look.apart.is_some() {
            self.told = Some(now);
        }
    }
}

/// By how many milliseconds `one` is later than `other`.
fn apart_ms(one: Timestamp, other: Timestamp) -> i64 {
    // Both lie in the years 1970 to 9999.
    one.unix_ms() - other.unix_ms()
}

fn is_within(ms: i64, bound: Duration) -> bool {
    u128::from(ms.unsigned_abs()) <= bound.as_millis()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    const BEGIN_MS: i64 = 1_795_000_000_000;
    const HOUR: i64 = 60 * 60 * 1000;
    const DAY: i64 = 24 * HOUR;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_unix_ms(BEGIN_MS + ms).expect("in range")
    }

    fn since_1970(ms: i64) -> Duration {
        Duration::from_millis((BEGIN_MS + ms).unsigned_abs())
    }

    fn hours(hours: u64) -> Duration {
        Duration::from_secs(hours * 3600)
    }

    #[test]
    fn a_step_is_taken_up_slowly() {
        let mut clock = Steady::begin(since_1970(0), hours(7));
        // The wall clock goes right for an hour, and is set forward by one then.
        assert_eq!(clock.read(hours(8), since_1970(HOUR)), at(HOUR));
        let minute = Duration::from_secs(60);
        assert_eq!(clock.read(hours(8) + minute, since_1970(2 * HOUR + 60_000)), at(HOUR + 60_600));
        // Whoever reads it often gets no other time.
        let mut busy = clock;
        for second in 1..=600_u64 {
            let boot = hours(8) + minute + Duration::from_secs(second);
            busy.read(boot, since_1970(2 * HOUR + 60_000) + Duration::from_secs(second));
        }
        let boot = hours(8) + minute * 11;
        let wall = since_1970(2 * HOUR + 660_000);
        assert_eq!(busy.read(boot, wall), clock.read(boot, wall));
        // After a hundred hours it is where the wall clock is.
        let wall = |hours: i64| since_1970((hours + 2) * HOUR);
        assert!(clock.read(hours(8 + 98), wall(98)) < at(100 * HOUR));
        assert_eq!(clock.read(hours(8 + 101), wall(101)), at(103 * HOUR));
    }

    #[test]
    fn a_boot_clock_that_goes_back_moves_nothing() {
        let mut clock = Steady::begin(since_1970(0), hours(7));
        assert_eq!(clock.read(hours(6), since_1970(-HOUR)), at(0));
        assert_eq!(clock.read(hours(7), since_1970(-HOUR)), at(0));
        assert_eq!(clock.read(hours(8), since_1970(HOUR)), at(HOUR));
    }

    proptest! {
        /// Whatever is done to the wall clock, and however often the clock is read.
        #[test]
        fn it_goes_evenly(moments in vec((0_u64..10_000_000_000_000, any::<u64>()), 1..50)) {
            let (mut boot, begin) = (hours(7), since_1970(0));
            let mut clock = Steady::begin(begin, boot);
            let mut before = clock.read(boot, begin);
            let first = before;
            for (passed_ns, wall_ms) in moments {
                let passed = Duration::from_nanos(passed_ns);
                boot += passed;
                let now = clock.read(boot, Duration::from_millis(wall_ms));
                prop_assert!(now >= before);
                let gone = now.since(before);
                let one = Duration::from_millis(1);
                prop_assert!(gone + one >= passed - passed / 100, "{gone:?} of {passed:?}");
                prop_assert!(gone <= passed + passed / 100 + one, "{gone:?} of {passed:?}");
                before = now;
            }
            let (gone, passed) = (before.since(first), boot - hours(7));
            prop_assert!(gone + Duration::from_millis(1) >= passed - passed / 100, "{gone:?} of {passed:?}");
            prop_assert!(gone <= passed + passed / 100 + Duration::from_millis(1), "{gone:?} of {passed:?}");
        }

        /// With a wall clock that goes right from some moment on the difference is gone after a hundred times itself, and stays so.
        #[test]
        fn it_comes_to_where_the_wall_clock_is(off_ms in -1_000_000_000_i64..1_000_000_000, reads in 1_u32..40) {
            let wait = Duration::from_millis(off_ms.unsigned_abs()) * 100;
            let mut clock = Steady::begin(since_1970(off_ms), hours(7));
            for read in 1..=reads {
                let passed = wait / reads * read;
                clock.read(hours(7) + passed, since_1970(0) + passed);
            }
            for seconds in [1, 2, 1000] {
                let passed = wait + Duration::from_secs(seconds);
                let wall = since_1970(0) + passed;
                prop_assert_eq!(clock.read(hours(7) + passed, wall), Timestamp::from(UNIX_EPOCH + wall));
            }
        }

        /// What is kept until a date of the wall clock is not forgotten before that, unless the wall clock is set.
        #[test]
        fn a_date_is_not_reached_early(off_ms in -HOUR..HOUR, left_ms in 0_i64..DAY) {
            let (now, wall) = (at(off_ms), at(0));
            let until = not_before(at(left_ms), wall, now);
            let mut clock = Steady::begin(since_1970(off_ms), hours(7));
            let passed = Duration::from_millis(left_ms.unsigned_abs());
            prop_assert!(clock.read(hours(7) + passed, since_1970(left_ms)) <= until);
        }
    }

    #[test]
    fn dates_of_others_are_put_on_our_clock() {
        assert_eq!(dated(at(-HOUR), at(0), at(5000)), at(5000 - HOUR));
        assert_eq!(dated(at(HOUR), at(2 * HOUR), at(0)), at(-HOUR));
        let epoch = Timestamp::from_unix_ms(0).expect("in range");
        assert_eq!(dated(epoch, at(0), at(-HOUR)), at(-HOUR), "there is nothing before 1970");
    }

    fn anchor(boot_hours: u64, steady_ms: i64, wall_ms: i64) -> Anchor {
        let boot_id = "0b5d0c5e-7c0f-4f0e-9f6d-0a5a5a5a5a5a".to_owned();
        Anchor { boot_id, boot: hours(boot_hours), steady: at(steady_ms), wall: at(wall_ms) }
    }

    #[track_caller]
    fn check_start(
        (boot_hours, wall_ms): (u64, i64),
        same: Option<Anchor>,
        newest_ms: Option<i64>,
        (at_ms, known_ms, lost_ms): (i64, i64, Option<i64>),
    ) {
        let start = start(hours(boot_hours), at(wall_ms), same.as_ref(), newest_ms.map(at));
        assert_eq!(start, Start { at: at(at_ms), known_ms, lost_ms });
    }

    #[test]
    fn on_the_same_boot_it_goes_on() {
        // Three hours later, whatever the wall clock says by now.
        let three = 3 * HOUR;
        for off_ms in [0, 1, -1, HOUR, -HOUR, DAY, -DAY] {
            check_start((10, three + off_ms), Some(anchor(7, 0, 0)), Some(0), (three, 0, None));
        }
        // What was known of the wall clock is known.
        check_start((10, three + HOUR), Some(anchor(7, 0, HOUR)), Some(0), (three, HOUR, None));
        // Another machine's clock is not asked.
        check_start((10, three), Some(anchor(7, 0, 0)), Some(5 * HOUR), (three, 0, None));
        let day = DAY + 1;
        check_start((10, three + day), Some(anchor(7, 0, 0)), Some(0), (three + day, 0, Some(day)));
        check_start((10, three - day), Some(anchor(7, 0, 0)), Some(0), (three - day, 0, Some(-day)));
        // It would be before itself.
        check_start((6, three), Some(anchor(7, 0, 0)), Some(0), (three, 0, None));
    }

    #[test]
    fn on_another_boot_it_is_not_before_what_was_seen() {
        check_start((1, 0), None, None, (0, 0, None));
        check_start((1, 0), None, Some(0), (0, 0, None));
        check_start((1, 400 * DAY), None, Some(0), (400 * DAY, 0, None));
        check_start((1, -30_000), None, Some(0), (0, -30_000, None));
        check_start((1, -HOUR), None, Some(0), (0, 0, None));
        check_start((1, -DAY), None, Some(0), (0, 0, None));
        check_start((1, -DAY - 1), None, Some(0), (-DAY - 1, 0, Some(-DAY - 1)));
    }

    #[test]
    fn only_what_is_behind_ends_all() {
        for (lost_ms, ends) in [(None, false), (Some(2 * DAY), false), (Some(-2 * DAY), true)] {
            assert_eq!(Start { at: at(0), known_ms: 0, lost_ms }.ends_all(), ends);
        }
    }

    #[test]
    fn two_machines_agree_within_a_minute() {
        let far = |theirs: i64| is_far(at(theirs), at(0), at(5000));
        assert!(!far(0) && !far(-60_000) && !far(65_000));
        assert!(far(-60_001) && far(65_001) && far(HOUR) && far(-400 * DAY));
    }

    fn watch() -> Watch {
        Watch::new(&Start { at: at(0), known_ms: 0, lost_ms: None })
    }

    #[track_caller]
    fn check_step(watch: &Watch, now_ms: i64, wall_ms: i64, by_ms: Option<i64>) {
        assert_eq!(watch.look(at(now_ms), at(wall_ms)).step, by_ms.map(|by_ms| Step { by_ms }));
    }

    #[test]
    fn steps_are_noticed_and_nothing_else() {
        let mut watch = watch();
        check_step(&watch, 10_000, 10_000, None);
        check_step(&watch, 10_000, 12_000, None);
        check_step(&watch, 10_000, 13_000, Some(3000));
        check_step(&watch, 10_000, 10_000 - HOUR, Some(-HOUR));
        // It is noticed until it was done, and not again.
        let look = watch.look(at(10_000), at(10_000 + HOUR));
        assert!(look.keeps);
        check_step(&watch, 20_000, 20_000 + HOUR, Some(HOUR));
        watch.done(&look, at(10_000), at(10_000 + HOUR));
        check_step(&watch, 20_000, 20_000 + HOUR, None);
        // That the clock is drawn there is no step, however long nobody looked.
        check_step(&watch, 10_000 + DAY, 10_000 + DAY + HOUR - DAY / 100, None);
        check_step(&watch, 20_000, 20_000, Some(-HOUR));
        assert_eq!(
            (Step { by_ms: HOUR }.word(), Step { by_ms: HOUR }.length()),
            ("forward", "1h".to_owned())
        );
        let back = Step { by_ms: -61_400 };
        assert_eq!((back.word(), back.length()), ("back", "1m 1s".to_owned()));
    }

    #[test]
    fn it_is_written_down_each_hour_and_more_often_while_clocks_are_apart() {
        let mut watch = watch();
        let keeps = |watch: &Watch, now_ms, off_ms| watch.look(at(now_ms), at(now_ms + off_ms)).keeps;
        assert!(!keeps(&watch, HOUR - 1, 0) && keeps(&watch, HOUR, 0));
        assert!(!keeps(&watch, 59_000, 1500) && keeps(&watch, 60_000, 1500));
        let look = watch.look(at(HOUR), at(HOUR));
        watch.done(&look, at(HOUR), at(HOUR));
        assert!(!keeps(&watch, HOUR + 1, 0));
    }

    #[test]
    fn that_clocks_are_apart_is_told_each_hour() {
        let mut watch = watch();
        let apart = |watch: &Watch, now_ms, off_ms| watch.look(at(now_ms), at(now_ms + off_ms)).apart;
        assert_eq!(apart(&watch, 1000, 60_000), None);
        assert_eq!(apart(&watch, 1000, 61_000).as_deref(), Some("1m 1s ahead of it"));
        let look = watch.look(at(1000), at(1000 - HOUR));
        assert_eq!(look.apart.as_deref(), Some("1h behind it"));
        watch.done(&look, at(1000), at(1000 - HOUR));
        assert_eq!(apart(&watch, HOUR, -HOUR), None);
        assert!(apart(&watch, HOUR + 1000, -HOUR).is_some());
    }
}
