//! Benchmarks: what one control plane can carry ([`fleet`]), what asking and deciding cost it ([`access`]), what an agent takes for itself ([`agent`]), and what the gate costs,
//! side by side with having none and with what somebody would pick in its place.
//!
//! Owns: making load, measuring it, telling what came of it. Timing is never asserted: figures are for people to read.
//!
//! Everything runs in cgroups and network namespaces of its own, and the gate is attached at such a cgroup, not at the root:
//! the machine's other processes never meet it, and "with" and "without" can alternate within milliseconds.

pub mod access;
pub mod agent;
pub mod fleet;
pub mod gated;
pub mod hooks;
pub mod kernel;
pub mod load;
pub mod machine;
pub mod place;
pub mod pooler;
pub mod rates;
pub mod report;
pub mod series;
pub mod verdicts;
pub mod worker;

use std::time::Duration;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// How often each figure is taken, all contenders in turn.
    pub rounds: usize,
    /// How long it is taken each time.
    pub slice: Duration,
    /// The same two for PostgreSQL: rounds, and connections in each.
    pub database: (usize, u32),
    /// How long verdicts are made at a constant rate, and as fast as possible.
    pub flood: Duration,
    /// What "many grants" means.
    pub many_grants: u32,
}

impl Effort {
    /// For figures that are kept: some three minutes.
    pub const FULL: Self = Self {
        rounds: 60,
        slice: Duration::from_millis(25),
        database: (12, 60),
        flood: Duration::from_secs(5),
        many_grants: 50_000,
    };

    /// For a look while something is being changed: some twenty seconds.
    pub const QUICK: Self = Self {
        rounds: 10,
        slice: Duration::from_millis(10),
        database: (3, 20),
        flood: Duration::from_secs(1),
        many_grants: 50_000,
    };

    /// For seeing that everything still works.
    pub const SMOKE: Self = Self {
        rounds: 1,
        slice: Duration::from_millis(2),
        database: (1, 3),
        flood: Duration::from_millis(50),
        many_grants: 500,
    };
}
