//! Both sides' rules in random histories: several hosts, a network that loses and delays, crashes, clocks that are set, maps,
//! disks and a database that fail. No root, no clock, no chance but the seed.
//!
//! `PORTCULLIS_SIM_SEED` is the first seed, `PORTCULLIS_SIM_HISTORIES` how many histories there are. One that fails is made
//! short, printed and written to `sim/failures`, where it stays and is run first from then on.
//!
//! Real: the agent's grants, plan, digest, numbering, queue, reports and memory, the kernel's verdict, the control plane's
//! lives, placement, sessions and numbering, and every message through its wire type. Modelled: the order of effects in the
//! agent's loop ([`host`]), the files of its spool ([`disk`]), the tables of the database ([`central`]), streams ([`world`]).

mod central;
mod disk;
mod faults;
mod history;
mod host;
mod invariants;
mod world;

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use faults::Broken;
use history::{History, keep, kept};

/// How many histories there are, unless somebody asks for more.
const HISTORIES: u64 = 10_000;
/// Within how many histories a broken rule is noticed.
const NOTICED_WITHIN: u64 = 600;

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")),
        Err(_) => default,
    }
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Runs histories of all seeds from `first` on, on all processors. Gives the least seed of those that failed first.
fn failing(first: u64, count: u64, broken: Broken) -> Option<u64> {
    let next = AtomicU64::new(first);
    let (found, has_failed) = (AtomicU64::new(u64::MAX), AtomicBool::new(false));
    let work = || {
        while !has_failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed - first >= count {
                break;
            }
            if History::draw(seed).run(broken).is_err() {
                found.fetch_min(seed, Ordering::Relaxed);
                has_failed.store(true, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    Some(found.into_inner()).filter(|seed| *seed != u64::MAX)
}

#[test]
fn histories() {
    // Those that failed once come first.
    for (name, history) in kept().expect("the kept histories can be read") {
        if let Err(failure) = history.run(Broken::Nothing) {
            panic!("{name} fails again, after event {}: {}", failure.after, failure.problem);
        }
    }
    let first = number("PORTCULLIS_SIM_SEED", 1);
    let count = number("PORTCULLIS_SIM_HISTORIES", HISTORIES);
    let began = Instant::now();
    let failed = failing(first, count, Broken::Nothing);
    if let Some(seed) = failed {
        let (history, failure) = History::draw(seed).shrink(Broken::Nothing);
        let text = history.text(failure.as_ref());
        let path = keep(&history, failure.as_ref()).map(|path| path.display().to_string());
        panic!("seed {seed} fails; kept as {path:?}:\n{text}");
    }
    let rate = count as f64 / began.elapsed().as_secs_f64();
    say(&format!("{count} histories from seed {first} on, {rate:.0} in a second"));
}

/// Each rule that is broken on purpose is noticed: none of what is checked is empty.
#[test]
fn broken_rules_are_noticed() {
    for broken in Broken::ALL {
        let Some(seed) = failing(1, NOTICED_WITHIN, broken) else {
            panic!("{broken:?} is not noticed within {NOTICED_WITHIN} histories");
        };
        let failure = History::draw(seed).run(broken).expect_err("it has failed");
        say(&format!("{broken:?}: seed {seed}, {}", failure.problem));
    }
}

#[test]
fn the_same_history_leads_to_the_same_world() {
    for seed in [1, 7, 1000] {
        let run = || {
            History::draw(seed).run(Broken::Nothing).map(|world| {
                let kernels: Vec<_> = world.hosts.into_iter().map(|host| host.kernel.entries).collect();
                (world.now_ns, kernels, world.central.db.log, world.central.db.received)
            })
        };
        assert_eq!(run(), run(), "seed {seed}");
    }
}

#[test]
fn histories_are_read_as_they_are_written() {
    let history = History::draw(42);
    let read = History::parse(&history.text(None)).expect("it is one");
    assert_eq!(read.events, history.events);
    assert_eq!(History::parse("jump 1"), Err("Some(\"jump\") is no event".to_owned()));
    assert_eq!(History::parse("wait"), Err("a number is missing".to_owned()));
}
