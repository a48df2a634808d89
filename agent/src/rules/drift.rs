//! What the maps hold beside what was written to them: somebody has changed them behind the agent's back.
//!
//! Owns: which parts are looked at, what a difference is, and what is not to be trusted after one. Must not know: how maps
//! are read or written.
//!
//! Invariant, property-tested: whatever was changed, after [`distrust`] and a reconciliation the maps mean what is wanted, and
//! nothing that refers to a slot which the change may have opened counts any more.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};

use agent_ebpf::abi::{GrantRef, PORT_CLASSES_MAX, ResourceEntry, map, protocol};

use super::plan::{AddressPrefix, Entries, Write};

/// A part of the maps that is read in one go: some milliseconds' work at the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named after their maps")]
pub enum Part {
    Ports { first: u32, count: u32 },
    Resources,
    Peers,
    UnixSockets,
    Subjects,
    Grants,
    Slots,
}

impl Part {
    /// Those that are a whole map.
    const MAPS: [Self; 6] =
        [Self::Resources, Self::Peers, Self::UnixSockets, Self::Subjects, Self::Grants, Self::Slots];

    /// How many there are.
    pub const COUNT: usize = protocol::ALL.len() + Self::MAPS.len();

    /// All of them: one after the other they are all that the agent writes.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(Self::nth)
    }

    /// They go round.
    pub fn nth(index: usize) -> Self {
        const PROTOCOLS: usize = protocol::ALL.len();
        const COUNT: u32 = PORT_CLASSES_MAX / PROTOCOLS as u32;
        match index % Self::COUNT {
            place @ 0..PROTOCOLS => Self::Ports { first: place as u32 * COUNT, count: COUNT },
            place => Self::MAPS[place - PROTOCOLS],
        }
    }

    /// The map that it is of.
    pub fn map(self) -> &'static str {
        match self {
            Self::Ports { .. } => map::PORT_CLASSES,
            Self::Resources => map::RESOURCES,
            Self::Peers => map::PEERS,
            Self::UnixSockets => map::UNIX_SOCKETS,
            Self::Subjects => map::SUBJECTS,
            Self::Grants => map::GRANTS,
            Self::Slots => map::SLOTS,
        }
    }
}

/// How the elements of one map differ from what was written there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// Which map.
    pub map: &'static str,
    /// Elements that nobody of ours has written.
    pub added: usize,
    /// Elements that hold something else.
    pub changed: usize,
    /// Elements that are gone.
    pub removed: usize,
    /// One of them, for people.
    pub example: String,
    /// It may have let somebody through, or kept somebody out.
    pub is_grave: bool,
}

impl Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [(self.added, "added"), (self.changed, "changed"), (self.removed, "removed")];
        let counts: Vec<String> = kinds
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        write!(f, "map {}: {} ({})", self.map, counts.join(", "), self.example)
    }
}

/// How `read`, which holds this part only or more, differs from `known`. None: not at all.
pub fn drift(part: Part, known: &Entries, read: &Entries) -> Option<Drift> {
    let map = part.map();
    match part {
        Part::Ports { first, count } => {
            let range = first..first.saturating_add(count);
            let known = known.ports.range(range.clone()).map(|(index, class)| (*index, *class));
            let read = read.ports.range(range).map(|(index, class)| (*index, *class));
            compare(map, known, read, |index| format!("port {index}"))
        }
        Part::Resources => compare(map, prefixes(known), prefixes(read), |(class, prefix)| {
            let address = std::net::Ipv6Addr::from(prefix.address).to_canonical();
            format!("{address} and {} bits of class {class}", prefix.bits)
        }),
        Part::Peers => compare(map, peers(known), peers(read), |(resource, prefix)| {
            let address = std::net::Ipv6Addr::from(prefix.address).to_canonical();
            format!("{address} and {} bits for resource {resource}", prefix.bits)
        }),
        Part::UnixSockets => compare(map, pairs(&known.unix_sockets), pairs(&read.unix_sockets), |key| {
            format!("the path of key {key:#x}")
        }),
        Part::Subjects => {
            compare(map, pairs(&known.cgroups), pairs(&read.cgroups), |id| format!("cgroup {id}"))
        }
        Part::Grants => compare(map, pairs(&known.grants), pairs(&read.grants), |key| {
            format!("subject {} to resource {}", key.subject, key.resource)
        }),
        Part::Slots => {
            let name = |(word, slot)| format!("{word} of slot {slot}");
            let counts = |((word, _), _): &((Word, u32), u128)| *word != Word::Name;
            let is_grave = !words(known).filter(counts).eq(words(read).filter(counts));
            compare(map, words(known), words(read), name).map(|drift| Drift { is_grave, ..drift })
        }
    }
}

/// How the cgroups that are exempt from the LSM tier differ.
pub fn exempt_drift(known: &BTreeSet<u64>, read: &BTreeSet<u64>) -> Option<Drift> {
    compare(map::EXEMPT_CGROUPS, members(known), members(read), |id| format!("cgroup {id}"))
}

fn prefixes(entries: &Entries) -> impl Iterator<Item = ((u32, AddressPrefix), ResourceEntry)> {
    entries
        .classes
        .iter()
        .flat_map(|(class, prefixes)| prefixes.iter().map(|(prefix, entry)| ((*class, *prefix), *entry)))
}

fn peers(entries: &Entries) -> impl Iterator<Item = ((u32, AddressPrefix), ())> {
    let peers = entries.peers.iter();
    peers.flat_map(|(resource, prefixes)| prefixes.iter().map(|prefix| ((*resource, *prefix), ())))
}

fn pairs<K: Copy, V: Copy>(entries: &BTreeMap<K, V>) -> impl Iterator<Item = (K, V)> {
    entries.iter().map(|(key, value)| (*key, *value))
}

/// What the agent writes to slots; 0 is nothing. What matters least comes last.
fn words(entries: &Entries) -> impl Iterator<Item = ((Word, u32), u128)> {
    let of = |word, values: &BTreeMap<u32, u64>| -> Vec<_> {
        pairs(values).map(|(slot, value)| ((word, slot), u128::from(value))).collect()
    };
    let words = [
        of(Word::Epoch, &entries.epochs),
        of(Word::Deadline, &entries.deadlines),
        of(Word::IdleLimit, &entries.idle_limits),
    ];
    let names = pairs(&entries.names).map(|(slot, name)| ((Word::Name, slot), u128::from_ne_bytes(name)));
    words.into_iter().flatten().chain(names).filter(|(_, value)| *value != 0)
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Word {
    Epoch,
    Deadline,
    IdleLimit,
    /// Opens nothing.
    Name,
}

impl Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Epoch => "epoch",
            Self::Deadline => "deadline",
            Self::IdleLimit => "idle limit",
            Self::Name => "name",
        })
    }
}

fn members(ids: &BTreeSet<u64>) -> impl Iterator<Item = (u64, ())> {
    ids.iter().map(|id| (*id, ()))
}

/// Both sides come in order.
fn compare<K: Copy + Ord, V: PartialEq>(
    map: &'static str,
    known: impl Iterator<Item = (K, V)>,
    read: impl Iterator<Item = (K, V)>,
    name: impl Fn(K) -> String,
) -> Option<Drift> {
    let mut drift = Drift { map, added: 0, changed: 0, removed: 0, example: String::new(), is_grave: true };
    let (mut known, mut read) = (known.peekable(), read.peekable());
    loop {
        let order = match (known.peek(), read.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((ours, _)), Some((theirs, _))) => ours.cmp(theirs),
        };
        let ours = if order.is_le() { known.next() } else { None };
        let theirs = if order.is_ge() { read.next() } else { None };
        let (key, place) = match (ours, theirs) {
            (Some((_, ours)), Some((_, theirs))) if ours == theirs => continue,
            (Some((key, _)), Some(_)) => (key, &mut drift.changed),
            (Some((key, _)), None) => (key, &mut drift.removed),
            (None, Some((key, _))) => (key, &mut drift.added),
            (None, None) => break,
        };
        *place += 1;
        if drift.example.is_empty() {
            drift.example = name(key);
        }
    }
    (drift.added + drift.changed + drift.removed > 0).then_some(drift)
}

/// What must be written before anything else, when the maps hold `read` and should hold `known`: every slot by which the change
/// may have let somebody through gets an epoch that nothing refers to, and no deadline is later than it was. This may also end
/// what was let through rightly by the same slot: the two cannot be told apart.
///
/// Of peers nothing is kept that could be doubted: each of their packets is judged anew.
///
/// There are `slots_max` slots; what refers to another lets nobody through.
pub fn distrust(known: &Entries, read: &Entries, slots_max: u32) -> Vec<Write> {
    let mut doubtful: BTreeSet<u32> = BTreeSet::new();
    let differing = |known: &BTreeMap<u32, u64>, read: &BTreeMap<u32, u64>| -> Vec<u32> {
        let slots: BTreeSet<u32> = known.keys().chain(read.keys()).copied().collect();
        let value = |entries: &BTreeMap<u32, u64>, slot: &u32| entries.get(slot).copied().unwrap_or(0);
        slots.into_iter().filter(|slot| value(known, slot) != value(read, slot)).collect()
    };
    doubtful.extend(differing(&known.epochs, &read.epochs));
    // A longer limit, or none, may have kept alive what had ended.
    doubtful.extend(differing(&known.idle_limits, &read.idle_limits));
    // References that were changed, made or taken away: what was let through by either slot is not to be told apart.
    let keys: BTreeSet<_> = known.grants.keys().chain(read.grants.keys()).collect();
    for key in keys {
        let (ours, theirs) = (known.grants.get(key), read.grants.get(key));
        if ours != theirs {
            doubtful.extend(ours.into_iter().chain(theirs).map(|reference| reference.slot));
        }
    }
    // Whoever was made a subject may have used all that it was granted.
    let posing: BTreeSet<u32> = read
        .cgroups
        .iter()
        .filter(|(id, subject)| known.cgroups.get(id) != Some(subject))
        .map(|(_, subject)| *subject)
        .collect();
    let of_posing = known.grants.iter().filter(|(key, _)| posing.contains(&key.subject));
    doubtful.extend(of_posing.map(|(_, reference)| reference.slot));

    let mut writes: Vec<Write> = doubtful
        .into_iter()
        .filter(|slot| *slot < slots_max)
        .map(|slot| Write::SetEpoch { slot, epoch: unused_epoch(slot, known, read) })
        .collect();
    writes.extend(differing(&known.deadlines, &read.deadlines).into_iter().filter_map(|slot| {
        let deadline = |entries: &Entries| entries.deadlines.get(&slot).copied().unwrap_or(0);
        let deadline_boot_ns = deadline(known);
        (deadline(read) > deadline_boot_ns).then_some(Write::SetDeadline { slot, deadline_boot_ns })
    }));
    writes
}

/// One that nothing refers to, and as far as can be below the next that something does: it is raised from there, one by one.
fn unused_epoch(slot: u32, known: &Entries, read: &Entries) -> u64 {
    let of = |entries: &Entries| entries.epochs.get(&slot).copied().unwrap_or(0);
    let ours = of(known);
    let refers = |reference: &&GrantRef| reference.slot == slot;
    let referred = read.grants.values().filter(refers).map(|reference| reference.epoch);
    // The last one stands for what never counts.
    let used: BTreeSet<u64> = referred.chain([0, ours, of(read), u64::MAX]).collect();
    let gaps = used.iter().zip(used.iter().skip(1)).filter(|(before, after)| *after - *before > 1);
    // Up to ours, each has been used at some time.
    let widest = gaps.max_by_key(|(before, after)| (**before >= ours, *after - *before));
    widest.map_or(ours, |(before, _)| *before).wrapping_add(1)
}

#[cfg(test)]
mod tests;
