//! The only reads of clocks. Everybody else is told what time it is.
//!
//! Owns: the steady clock of this process, and the wall clock. Must not know: how the steady one goes, where it begins after a restart.
//!
//! All that lasts for a time is kept by the steady clock ([`now`]). What somebody else has dated, or dates by what we say (claims of
//! tokens, certificates, signatures), is compared with the wall clock ([`wall`]).

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use proto::types::Timestamp;

use crate::rules::steady::{self, Anchor, Steady};

/// Where the kernel says which boot it is.
pub const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Both clocks are read between two looks at the boot clock that are no further apart: who was held up in between reads again.
const AT_ONCE: Duration = Duration::from_millis(10);

/// How often, at most: on a machine so busy a difference of some more is not what is wrong.
const TRIES_MAX: usize = 5;

/// One for the process, whatever is served in it.
static CLOCK: Mutex<Option<Running>> = Mutex::new(None);

struct Running {
    steady: Steady,
    /// A record has said where. Until then it goes on from the wall clock, as for tools that serve nobody.
    has_begun: bool,
}

/// All clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The steady clock.
    pub now: Timestamp,
    /// The wall clock.
    pub wall: Timestamp,
    /// `CLOCK_BOOTTIME`: since the machine was started, suspended or not.
    pub boot: Duration,
}

impl Reading {
    /// To go on from after a restart.
    pub fn anchor(&self, boot_id: &str) -> Anchor {
        Anchor { boot_id: boot_id.to_owned(), boot: self.boot, steady: self.now, wall: self.wall }
    }

    /// What the steady clock says at a moment that somebody else has dated.
    pub fn dated(&self, date: Timestamp) -> Timestamp {
        steady::dated(date, self.wall, self.now)
    }

    /// A moment that the steady clock does not reach before the wall clock, if that is not set, has reached this date.
    pub fn not_before(&self, date: Timestamp) -> Timestamp {
        steady::not_before(date, self.wall, self.now)
    }
}

/// Now, by the steady clock.
pub fn now() -> Timestamp {
    read().now
}

/// All clocks.
pub fn read() -> Reading {
    // Nothing that holds the lock can panic half way through a change.
    let mut clock = CLOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let (boot, wall) = boot_and_wall();
    let running =
        clock.get_or_insert_with(|| Running { steady: Steady::begin(wall, boot), has_begun: false });
    let now = running.steady.read(boot, wall);
    Reading { now, wall: (UNIX_EPOCH + wall).into(), boot }
}

/// The boot clock and the wall clock, of a moment at which the steady one may not have begun: it says what the wall clock does.
pub fn peek() -> Reading {
    let (boot, wall) = boot_and_wall();
    let wall = (UNIX_EPOCH + wall).into();
    Reading { now: wall, wall, boot }
}

/// Has the steady clock say `at` for the moment at which the boot clock said `boot`. One that has begun goes on as it is: nothing that was
/// told what time it is is told an earlier one.
pub fn begin(at: Timestamp, boot: Duration) {
    let mut clock = CLOCK.lock().unwrap_or_else(PoisonError::into_inner);
    if clock.as_ref().is_some_and(|running| running.has_begun) {
        return;
    }
    let at = Duration::from_millis(at.unix_ms().unsigned_abs());
    *clock = Some(Running { steady: Steady::begin(at, boot), has_begun: true });
}

/// Now, by the wall clock.
pub fn wall() -> Timestamp {
    system_now().into()
}

/// The same, as certificates are dated.
pub fn system_now() -> SystemTime {
    SystemTime::now()
}

/// By which it is known whether the machine was started again: the kernel makes one for each time.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string(BOOT_ID)?.trim().to_owned())
}

/// `CLOCK_BOOTTIME`, and the wall clock as time since 1970.
fn boot_and_wall() -> (Duration, Duration) {
    let mut first = boot();
    let mut wall = since_1970();
    for _ in 0..TRIES_MAX {
        let then = boot();
        if then.saturating_sub(first) < AT_ONCE {
            break;
        }
        (first, wall) = (then, since_1970());
    }
    (first, wall)
}

fn boot() -> Duration {
    // The clock exists since Linux 2.6.39, and reading an existing clock cannot fail.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

fn since_1970() -> Duration {
    system_now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_and_begins_once() {
        let first = read();
        begin(first.now, first.boot);
        let second = read();
        assert!(second.now >= first.now && second.boot >= first.boot);
        // A second control plane in this process moves nobody's time.
        begin(first.now.plus(Duration::from_secs(3600)), second.boot);
        assert!(now() < first.now.plus(Duration::from_secs(3000)));
        assert_eq!(boot_id().expect("every kernel has one").len(), 36);
    }
}
