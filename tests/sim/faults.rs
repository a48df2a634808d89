//! What can happen in a history, each with how often it is drawn, and the rules that can be broken on purpose.
//!
//! Owns: the words of histories. Must not know: what follows from an event.

use std::fmt::{self, Display};
use std::str::{FromStr, SplitWhitespace};

/// Numbers from a seed, the same ones each time (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Draw(pub u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One below `end`.
    pub(crate) fn below(&mut self, end: u32) -> u32 {
        (self.next() % u64::from(end.max(1))) as u32
    }
}

/// Each field is any number: taken as a place among those that there are.
const FIELD_END: u32 = 1000;

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident { $($field:ident),* } = $word:literal, $weight:literal;)*) => {
        /// Something that happens. As text: its word, and its numbers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Event { $($(#[$doc])* $name { $($field: u32),* },)* }

        impl Event {
            /// One, as often as it is meant to happen.
            pub(crate) fn draw(draw: &mut Draw) -> Self {
                let mut place = draw.below(0 $(+ $weight)*);
                $(
                    if place < $weight {
                        return Self::$name { $($field: draw.below(FIELD_END)),* };
                    }
                    place -= $weight;
                )*
                unreachable!("{place} is left of all weights")
            }
        }

        impl Display for Event {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$name { $($field),* } => {
                        f.write_str($word)?;
                        $(write!(f, " {}", $field)?;)*
                        Ok(())
                    })*
                }
            }
        }

        impl FromStr for Event {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let mut words = text.split_whitespace();
                match words.next() {
                    $(Some($word) => Ok(Self::$name { $($field: number(&mut words)?),* }),)*
                    word => Err(format!("{word:?} is no event")),
                }
            }
        }
    };
}

fn number(words: &mut SplitWhitespace<'_>) -> Result<u32, String> {
    let word = words.next().ok_or("a number is missing")?;
    word.parse().map_err(|_| format!("{word} is no number"))
}

events! {
    /// A grant is asked for and approved: for which hosts, which pair, how long, and what may end it before.
    Ask { hosts, pair, seconds, limit } = "ask", 8;
    /// One of the grants is revoked.
    Revoke { which } = "revoke", 5;
    /// A resource gets another rule for outages.
    Outage { resource, limit } = "outage", 1;
    /// An agent begins a session.
    Connect { host } = "connect", 10;
    /// A host and the control plane say all that they have to say.
    Exchange { host } = "exchange", 14;
    /// Some messages from agent to control plane arrive.
    Up { host, count } = "up", 20;
    /// Some messages from control plane to agent arrive.
    Down { host, count } = "down", 20;
    /// The control plane's sessions look whether there is something to tell.
    Push { host } = "push", 12;
    /// An agent's timers: ends, rings, losses, the disk, digest and report.
    Tick { host } = "tick", 12;
    /// An agent loses its session; what it has sent may arrive yet.
    AgentBreaks { host } = "agent-breaks", 3;
    /// The control plane loses a session; what it has sent may arrive yet.
    ControlPlaneBreaks { host } = "control-plane-breaks", 3;
    /// Nothing arrives any more, and nobody is told.
    Cut { host } = "cut", 2;
    /// Messages arrive again.
    Heal { host } = "heal", 4;
    /// An agent's process ends: before its next step, or in the midst of it, after so many effects.
    CrashAgent { host, effects } = "crash-agent", 5;
    /// It is started again.
    StartAgent { host } = "start-agent", 6;
    /// A host boots: its kernel holds nothing, and its boot clock starts anew.
    Reboot { host } = "reboot", 3;
    /// The control plane's process ends; its database stays.
    CrashControlPlane {} = "crash-control-plane", 2;
    /// It is started again.
    StartControlPlane {} = "start-control-plane", 4;
    /// So many of the next commits fail.
    FailCommits { count } = "fail-commits", 2;
    /// The control plane's wall clock is set, by up to an hour back or forth.
    StepClock { seconds } = "step-clock", 2;
    /// The kernel's maps take nothing new.
    FillMaps { host } = "fill-maps", 2;
    /// They do again.
    FreeMaps { host } = "free-maps", 4;
    /// The disk refuses events and what the agent would write down.
    FillDisk { host } = "fill-disk", 1;
    /// It takes them again.
    FreeDisk { host } = "free-disk", 3;
    /// A process of some subject connects to some resource.
    Try { host, pair } = "try", 24;
    /// Many do, faster than anybody reads.
    Flood { host, pair } = "flood", 3;
    /// The cgroup that some grant is bound to becomes empty, or another one takes its place.
    ExitTask { host, again } = "exit-task", 2;
    /// Time goes on: by milliseconds, seconds or minutes.
    Wait { how_long } = "wait", 16;
}

/// Which rule is broken on purpose, to see that it is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// None.
    Nothing,
    /// The kernel gets no deadlines.
    Deadlines,
    /// A set counts as applied without a write.
    Writes,
    /// What was sent counts as stored.
    Spool,
    /// An agent acknowledges a batch as stored that the database did not take.
    Commits,
    /// Removed grants stay in the kernel.
    Removals,
    /// What the memory should know is written after others were told.
    Memory,
    /// What cannot be written down is told all the same.
    Unwritten,
    /// A restart does not know what has run out, nor how long grants of another boot had left.
    Clocks,
    /// The control plane counts as heard all the time.
    Outages,
    /// A restart forgets what the host has ended by itself.
    Ends,
    /// Numbers begin anew with each start of an agent.
    Numbers,
    /// Records leave the kernel before they are on disk.
    Rings,
    /// A restart does not know which records it had kept already.
    Marks,
    /// What the rings lose is not told.
    Losses,
    /// Sessions tell nothing after their first set.
    Changes,
}

impl Broken {
    /// All that are to be noticed.
    pub(crate) const ALL: [Self; 15] = [
        Self::Deadlines,
        Self::Writes,
        Self::Spool,
        Self::Commits,
        Self::Removals,
        Self::Memory,
        Self::Unwritten,
        Self::Clocks,
        Self::Outages,
        Self::Ends,
        Self::Numbers,
        Self::Rings,
        Self::Marks,
        Self::Losses,
        Self::Changes,
    ];
}
