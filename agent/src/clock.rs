//! The only reads of clocks.

use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};
use proto::types::Timestamp;

/// `CLOCK_BOOTTIME` in nanoseconds, as the kernel programs compare it.
pub fn now_boot_ns() -> u64 {
    // The clock exists since Linux 2.6.39, and reading an existing clock cannot fail; 0 would make deadlines come too
    // early, never too late.
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The wall clock, by which certificates are dated.
pub fn now_wall() -> SystemTime {
    SystemTime::now()
}

/// Both clocks at one moment, to put kernel times on the wall clock.
#[derive(Clone, Copy, Debug)]
pub struct Instants {
    boot_ns: u64,
    wall: Timestamp,
}

impl Instants {
    /// This moment.
    pub fn now() -> Self {
        Self { boot_ns: now_boot_ns(), wall: now_wall().into() }
    }

    /// The wall clock at this moment.
    pub fn wall(self) -> Timestamp {
        self.wall
    }

    /// What the wall clock showed, by its present setting, when the boot clock showed `boot_ns`.
    pub fn wall_at(self, boot_ns: u64) -> Timestamp {
        let ago_ms = i64::try_from(self.boot_ns.saturating_sub(boot_ns) / 1_000_000).unwrap_or(i64::MAX);
        Timestamp::from_unix_ms(self.wall.unix_ms().saturating_sub(ago_ms)).unwrap_or(self.wall)
    }
}
