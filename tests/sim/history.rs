//! Histories: drawn from a seed, run, shrunk, written down, and read again.
//!
//! Owns: what is run in which order, and the files of those that failed. Must not know: what is checked.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::faults::{Broken, Draw, Event};
use crate::invariants::{check, converge};
use crate::world::World;

/// How many events a history has at least, and how many more at most.
const EVENTS: (u32, u32) = (20, 80);
/// How often a failing history is run again to make it shorter.
const SHRINK_MAX: usize = 600;

/// What happens, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct History {
    /// What it was drawn from.
    pub(crate) seed: u64,
    pub(crate) events: Vec<Event>,
}

/// What was not true, and after which event; one more than there are: when nothing went wrong any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) after: usize,
    pub(crate) problem: String,
}

impl History {
    pub(crate) fn draw(seed: u64) -> Self {
        let mut draw = Draw(seed);
        let count = EVENTS.0 + draw.below(EVENTS.1);
        Self { seed, events: (0..count).map(|_| Event::draw(&mut draw)).collect() }
    }

    /// Lets it happen, and then lets everything come to its end.
    pub(crate) fn run(&self, broken: Broken) -> Result<World, Failure> {
        let mut world = World::new(broken);
        let failed = |after| move |problem| Failure { after, problem };
        for (index, event) in self.events.iter().enumerate() {
            world.happen(*event);
            check(&world).map_err(failed(index + 1))?;
        }
        converge(&mut world).map_err(failed(self.events.len() + 1))?;
        Ok(world)
    }

    /// The shortest history that can be found that still fails, by leaving out what is not needed; and how it fails.
    pub(crate) fn shrink(mut self, broken: Broken) -> (Self, Option<Failure>) {
        let mut failure = self.run(broken).err();
        let (mut runs, mut size) = (0, self.events.len());
        while size > 0 && runs < SHRINK_MAX {
            let mut start = 0;
            while start < self.events.len() && runs < SHRINK_MAX {
                let mut shorter = self.clone();
                shorter.events.drain(start..(start + size).min(self.events.len()));
                runs += 1;
                match shorter.run(broken).err() {
                    Some(same) => (self, failure) = (shorter, Some(same)),
                    None => start += size,
                }
            }
            size /= 2;
        }
        (self, failure)
    }

    /// As it is kept: an event a line.
    pub(crate) fn text(&self, failure: Option<&Failure>) -> String {
        let mut text = format!("# seed {}\n", self.seed);
        if let Some(Failure { after, problem }) = failure {
            let _ = writeln!(text, "# after event {after}: {problem}");
        }
        for event in &self.events {
            let _ = writeln!(text, "{event}");
        }
        text
    }

    /// From its text. Lines that begin with `#` are for people.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
        Ok(Self { seed: 0, events: lines.map(str::parse).collect::<Result<_, _>>()? })
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sim/failures")
}

/// Those that have failed once, by the names of their files.
pub(crate) fn kept() -> io::Result<Vec<(String, History)>> {
    let mut kept = Vec::new();
    for entry in fs::read_dir(folder())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "txt") {
            let history = History::parse(&fs::read_to_string(&path)?).map_err(io::Error::other)?;
            kept.push((path.display().to_string(), history));
        }
    }
    kept.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(kept)
}

/// Writes down one that has failed.
pub(crate) fn keep(history: &History, failure: Option<&Failure>) -> io::Result<PathBuf> {
    let path = folder().join(format!("seed-{}.txt", history.seed));
    fs::write(&path, history.text(failure))?;
    Ok(path)
}
