//! How many verdicts a second are recorded, and whether each is accounted for.

use std::net::SocketAddr;

use agent_ebpf::abi::Ring;
use anyhow::{Result, bail};

use super::Effort;
use super::gated::Gated;
use super::kernel::{DENIED, GRANTED_FAR};
use super::place::Place;
use super::report::{Row, Table, Target};
use super::series::Spread;
use super::worker::DEAF;

/// What is promised: so many a second, and none lost.
const PROMISED: u64 = 100_000;

/// Makes verdicts at the promised rate, and then as fast as this machine does. Fails if one is neither kept nor lost.
pub fn account(gated: &Gated, place: &mut Place, effort: Effort) -> Result<Table> {
    let mut rows = Vec::new();
    let doors =
        [("denied", Ring::Deny, place.at(DENIED)), ("granted", Ring::Allow, place.at(GRANTED_FAR + DEAF))];
    for (keep, reader) in [(false, "ring read only"), (true, "events named, numbered, spooled")] {
        gated.keep_events(keep);
        for (met, ring, to) in doors {
            for rate in [PROMISED, 0] {
                let run = run(gated, place, ring, to, effort, rate)?;
                rows.extend(run.rows(&format!("{met}, {reader}"), rate > 0));
            }
        }
    }
    gated.keep_events(true);
    Ok(Table { title: "Verdicts a second, and what became of their records".to_owned(), rows })
}

struct Run {
    per_second: f64,
    attempted: u64,
    kept: u64,
    lost: u64,
}

fn run(
    gated: &Gated,
    place: &mut Place,
    ring: Ring,
    to: SocketAddr,
    effort: Effort,
    rate: u64,
) -> Result<Run> {
    let (kept_before, lost_before) = gated.accounted(ring, 0)?;
    let slice = place.worker.flood(to, effort.flood, rate)?;
    let (kept, lost) = gated.accounted(ring, kept_before + lost_before + slice.count)?;
    let (kept, lost) = (kept - kept_before, lost - lost_before);
    if kept + lost != slice.count {
        bail!("{} verdicts were made, but {kept} records were kept and {lost} lost", slice.count);
    }
    let per_second = slice.count as f64 * 1e9 / slice.wall_ns as f64;
    Ok(Run { per_second, attempted: slice.count, kept, lost })
}

impl Run {
    fn rows(&self, with: &str, is_paced: bool) -> [Row; 2] {
        let one = |value: f64| Spread { low: value, median: value, high: value };
        let Self { attempted, kept, lost, .. } = self;
        let pace = if is_paced { "paced" } else { "as fast as possible" };
        let rate = Row::new(format!("verdicts/s, {pace}"), with, one(self.per_second));
        let account = format!("{with}: {attempted} = {kept} kept + {lost} lost");
        let losses = Row::new(format!("lost, {pace}"), account, one(*lost as f64));
        match is_paced {
            // The pace is kept within what a sleep is late.
            true => [
                Row { target: Some(Target::AtLeast(PROMISED as f64 * 0.99)), ..rate },
                Row { target: Some(Target::AtMost(0.0)), ..losses },
            ],
            false => [rate, losses],
        }
    }
}
