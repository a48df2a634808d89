//! Nanoseconds of each program, as the kernel itself counts them.
//!
//! Owns: which load shows what. Must not know: which programs there are; whatever ran often enough is a line.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};

use agent::kernel::{ProgramTime, Statistics};
use anyhow::Result;

use super::Effort;
use super::gated::Gated;
use super::kernel::{DENIED, FREE_FAR, GRANTED_FAR};
use super::load::Operation;
use super::place::Place;
use super::report::{Row, Table, Target};
use super::series::{Spread, ratios};
use super::worker::{ECHO, GREETING, OWN};

/// What the load meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Met {
    Unprotected,
    Granted,
    Denied,
}

/// A load. Servers are outside the gate, so that only packets of the side that connects are counted.
const LOADS: [(Operation, Met, u16); 7] = [
    (Operation::Served, Met::Unprotected, FREE_FAR + GREETING),
    (Operation::Served, Met::Granted, GRANTED_FAR + GREETING),
    (Operation::Denials, Met::Denied, DENIED),
    (Operation::Datagrams, Met::Unprotected, FREE_FAR + OWN),
    (Operation::Datagrams, Met::Granted, GRANTED_FAR + OWN),
    (Operation::RoundTrips, Met::Unprotected, FREE_FAR + ECHO),
    (Operation::RoundTrips, Met::Granted, GRANTED_FAR + ECHO),
];

/// Measures every program under every load, over IPv4 and IPv6.
pub fn costs(gated: &Gated, place: &mut Place, effort: Effort) -> Result<Table> {
    let statistics = Statistics::collect(&gated.sandbox.pin_dir())?;
    let mut found: BTreeMap<(String, Met, Operation, &str), Vec<f64>> = BTreeMap::new();
    for _ in 0..effort.rounds {
        for (operation, met, port) in LOADS {
            for (family, to) in both(place, port) {
                for (name, mean_ns) in spent(&statistics, place, operation, to, effort)? {
                    found.entry((name, met, operation, family)).or_default().push(mean_ns);
                }
            }
        }
    }
    let (floor, least) =
        floor(found.iter().map(|((program, ..), values)| (program.as_str(), values.as_slice())));
    let rows = found.iter().filter_map(|((program, met, operation, family), values)| {
        let with = match met {
            Met::Unprotected => "unprotected",
            Met::Granted => "granted",
            Met::Denied => "denied",
        };
        let net: Vec<f64> = values.iter().map(|value| value - floor).collect();
        let row = Row::new(program, format!("{with}, {operation}, {family}"), Spread::of(&net)?);
        Some(Row { target: target(program, *met), ..row })
    });
    let rows = rows.collect();
    let title = format!(
        "Nanoseconds per run of each program (BPF statistics, less the {floor:.0} ns that {least} shows, which returns at once)"
    );
    Ok(Table { title, rows })
}

/// What the kernel's own readings of the clock take, and the program it was seen at: the one that does least.
fn floor<'a>(all: impl Iterator<Item = (&'a str, &'a [f64])>) -> (f64, &'a str) {
    let medians = all.filter_map(|(program, values)| Some((Spread::of(values)?.median, program)));
    medians.min_by(|(a, _), (b, _)| a.total_cmp(b)).unwrap_or((0.0, "nothing"))
}

/// A verdict with its record, a packet, and whatever is not protected.
fn target(program: &str, met: Met) -> Option<Target> {
    let judges = ["connect", "sendmsg", "egress", "ingress"].iter().any(|name| program.starts_with(name));
    match (program, met) {
        _ if !judges => None,
        (_, Met::Unprotected) => Some(Target::AtMost(30.0)),
        ("egress" | "ingress", _) => Some(Target::AtMost(150.0)),
        _ => Some(Target::AtMost(300.0)),
    }
}

fn both(place: &Place, port: u16) -> [(&'static str, SocketAddr); 2] {
    [("IPv4", place.at(port)), ("IPv6", SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port))]
}

/// What each program took on average for one run during one slice; those that hardly ran are left out.
fn spent(
    statistics: &Statistics,
    place: &mut Place,
    operation: Operation,
    to: SocketAddr,
    effort: Effort,
) -> Result<Vec<(String, f64)>> {
    let before = statistics.read()?;
    let slice = place.worker.repeat(operation, to, effort.slice)?;
    let after = statistics.read()?;
    let earlier = |time: &ProgramTime| before.iter().find(|before| before.id == time.id);
    Ok(after
        .iter()
        .filter_map(|time| {
            let earlier = earlier(time)?;
            let runs = time.runs.saturating_sub(earlier.runs);
            let mean_ns = time.run_time_ns.saturating_sub(earlier.run_time_ns) as f64 / runs as f64;
            (runs >= slice.count.max(1)).then(|| (time.name.clone(), mean_ns))
        })
        .collect())
}

/// Whether a verdict costs more where there are many grants: two gates, taken in turn.
pub fn growth(few: (&Gated, &mut Place), many: (&Gated, &mut Place), effort: Effort) -> Result<Table> {
    let loads = [(Operation::Served, GRANTED_FAR + GREETING), (Operation::Datagrams, GRANTED_FAR + OWN)];
    let mut found: BTreeMap<(Operation, String), [Vec<f64>; 2]> = BTreeMap::new();
    let mut gates = [few, many];
    for _ in 0..effort.rounds {
        for (operation, port) in loads {
            for (index, (gated, place)) in gates.iter_mut().enumerate() {
                let statistics = Statistics::collect(&gated.sandbox.pin_dir())?;
                let to = place.at(port);
                for (name, mean_ns) in spent(&statistics, place, operation, to, effort)? {
                    found.entry((operation, name)).or_default()[index].push(mean_ns);
                }
            }
        }
    }
    let rows = found.iter().filter_map(|((operation, program), [few, many])| {
        let row = Row::new(program, format!("granted, {operation}"), Spread::of(many)?);
        Some(Row { ratio: Spread::of(&ratios(many, few)), target: Some(Target::RatioAtMost(1.1)), ..row })
    });
    Ok(Table {
        title: format!("Nanoseconds with {} grants, and their ratio to those with 10", effort.many_grants),
        rows: rows.collect(),
    })
}
