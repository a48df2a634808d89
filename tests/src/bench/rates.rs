//! Rates, latency and throughput: without the gate, with it, and with what somebody would pick in its place.

use std::collections::BTreeMap;

use anyhow::Result;

use super::Effort;
use super::kernel::{CHECKED, DENIED, FREE, GRANTED, PROXIED};
use super::load::{Operation, Slice};
use super::place::Place;
use super::report::{Row, Table, Target};
use super::series::{Spread, ratios};
use super::worker::{ECHO, GREETING, OWN, SINK};

/// Somebody to compare.
pub struct Contender<'a> {
    /// What it is called.
    pub name: &'static str,
    /// Index into the places.
    pub place: usize,
    /// Where ports are counted from.
    pub port: u16,
    /// Least ratio that is promised: of bulk, and of the rest.
    pub promised: Option<(f64, f64)>,
    /// Operations that it does not have.
    pub lacks: &'a [Operation],
}

/// All of them; the first is what the others are compared with.
pub const CONTENDERS: [Contender<'static>; 7] = [
    Contender { name: "nothing", place: 0, port: FREE, promised: None, lacks: &[] },
    // What the kernel takes for calling any programs in these places: no gate that has one there can be faster.
    Contender { name: "programs that do nothing", place: 4, port: FREE, promised: None, lacks: &[] },
    Contender {
        name: "gate, unprotected port",
        place: 1,
        port: FREE,
        promised: Some((0.98, 0.98)),
        lacks: &[],
    },
    Contender {
        name: "gate, granted, audited",
        place: 1,
        port: GRANTED,
        promised: Some((0.98, 0.95)),
        lacks: &[],
    },
    Contender {
        name: "gate, each write judged",
        place: 5,
        port: CHECKED,
        promised: None,
        // It sees TCP only.
        lacks: &[Operation::Datagrams],
    },
    Contender { name: "nftables cgroup rule", place: 2, port: GRANTED, promised: None, lacks: &[] },
    Contender {
        name: "HAProxy",
        place: 3,
        port: PROXIED,
        promised: None,
        lacks: &[Operation::Connections, Operation::Datagrams],
    },
];

const OPERATIONS: [(Operation, u16); 5] = [
    (Operation::Connections, OWN),
    (Operation::Served, GREETING),
    (Operation::RoundTrips, ECHO),
    (Operation::Bulk, SINK),
    (Operation::Datagrams, OWN),
];

/// What is told of an operation.
struct Figure {
    what: &'static str,
    operation: Operation,
    value: fn(&Slice) -> f64,
    /// Less is better: the ratio is turned around, so that it always says how fast.
    is_time: bool,
}

const FIGURES: [Figure; 7] = [
    Figure { what: "connections/s", operation: Operation::Connections, value: per_second, is_time: false },
    Figure {
        what: "connections/s of processor time",
        operation: Operation::Connections,
        value: per_processor_second,
        is_time: false,
    },
    Figure { what: "connections served/s", operation: Operation::Served, value: per_second, is_time: false },
    Figure {
        what: "64-byte round trip, µs",
        operation: Operation::RoundTrips,
        value: microseconds,
        is_time: true,
    },
    Figure {
        what: "bulk TCP, MB/s",
        operation: Operation::Bulk,
        value: megabytes_per_second,
        is_time: false,
    },
    Figure { what: "datagrams/s", operation: Operation::Datagrams, value: per_second, is_time: false },
    Figure {
        what: "datagrams/s of processor time",
        operation: Operation::Datagrams,
        value: per_processor_second,
        is_time: false,
    },
];

fn per_second(slice: &Slice) -> f64 {
    slice.count as f64 * 1e9 / slice.wall_ns as f64
}

fn per_processor_second(slice: &Slice) -> f64 {
    slice.count as f64 * 1e9 / slice.thread_ns as f64
}

fn microseconds(slice: &Slice) -> f64 {
    slice.wall_ns as f64 / slice.count as f64 / 1e3
}

fn megabytes_per_second(slice: &Slice) -> f64 {
    slice.count as f64 * 1e3 / slice.wall_ns as f64
}

/// Measures all contenders in turn, each round beginning with another one.
pub fn compare(places: &mut [Place], effort: Effort) -> Result<Table> {
    let mut slices: BTreeMap<(Operation, usize), Vec<Slice>> = BTreeMap::new();
    for round in 0..effort.rounds {
        for (operation, offset) in OPERATIONS {
            for turn in 0..CONTENDERS.len() {
                let index = (round + turn) % CONTENDERS.len();
                let contender = &CONTENDERS[index];
                let Some(place) = places.get_mut(contender.place) else { continue };
                if contender.lacks.contains(&operation) {
                    continue;
                }
                let to = place.at(contender.port + offset);
                let slice = place.worker.repeat(operation, to, effort.slice)?;
                slices.entry((operation, index)).or_default().push(slice);
            }
        }
    }
    let mut rows = Vec::new();
    for figure in &FIGURES {
        let of = |index: usize| -> Vec<f64> {
            let slices = slices.get(&(figure.operation, index));
            slices.into_iter().flatten().map(figure.value).collect()
        };
        let base = of(0);
        for (index, contender) in CONTENDERS.iter().enumerate() {
            let values = of(index);
            let Some(value) = Spread::of(&values) else { continue };
            let speeds = if figure.is_time { ratios(&base, &values) } else { ratios(&values, &base) };
            let least = contender.promised.map(|(bulk, other)| match figure.operation {
                Operation::Bulk => bulk,
                _ => other,
            });
            rows.push(Row {
                ratio: (index > 0).then(|| Spread::of(&speeds)).flatten(),
                target: least.map(Target::RatioAtLeast),
                ..Row::new(figure.what, contender.name, value)
            });
        }
    }
    Ok(Table { title: "Rates, and how fast that is compared with nothing".to_owned(), rows })
}

/// Compares a refused connection with one that succeeds, by the processor time of the thread that asks for it.
pub fn denial(place: &mut Place, effort: Effort) -> Result<Table> {
    let (mut denied, mut granted) = (Vec::new(), Vec::new());
    let (refused_at, let_through_at) = (place.at(DENIED), place.at(GRANTED + OWN));
    for _ in 0..effort.rounds {
        let slice = place.worker.repeat(Operation::Denials, refused_at, effort.slice)?;
        denied.push(slice.thread_ns as f64 / slice.count as f64 / 1e3);
        let slice = place.worker.repeat(Operation::Connections, let_through_at, effort.slice)?;
        granted.push(slice.thread_ns as f64 / slice.count as f64 / 1e3);
    }
    let row = |with: &str, values: &[f64]| Some(Row::new("connection, µs", with, Spread::of(values)?));
    let refused = row("refused: socket, connect, close", &denied).map(|row| Row {
        ratio: Spread::of(&ratios(&denied, &granted)),
        target: Some(Target::RatioAtMost(1.0)),
        ..row
    });
    let let_through = row("let through: both ends", &granted);
    Ok(Table {
        title: "What a refusal takes, and its ratio to a connection that succeeds".to_owned(),
        rows: refused.into_iter().chain(let_through).collect(),
    })
}
