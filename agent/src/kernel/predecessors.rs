//! Gates that agents of other ABI versions, older or newer, left up: what can be learnt from them, and taking them down.
//!
//! Owns: what is read of a foreign version, which is what [`agent_ebpf::abi`] promises to keep alike in all of them. Must not
//! know: what takes their place.
//!
//! Invariant: what is not understood is not used, and what is not used is not trusted: a connection that cannot be read is
//! nobody's.

use std::mem::size_of;

use agent_ebpf::abi::{
    ClosedRecord, ConnectionEntry, GrantSlot, Hook, MovedRecord, Ring, RingCounters, VerdictRecord, map,
};
use agent_ebpf::verdict::Verdict;
use aya::maps::{Map, MapData, MapType, PerCpuArray};

use super::pins::{PinnedLink, Pins};
use super::sys::{self, AttachType, RawMap};
use super::{Kept, KernelError, PinnedRings, Placed, Record, RecordRing, Settings};

/// A gate of another ABI version.
pub(super) struct Predecessor {
    pins: Pins,
    /// Those that attach something; none: it decides nothing any more, and its last records are being read.
    links: Vec<PinnedLink>,
    rings: PinnedRings,
    /// None: no other gate decides beside it.
    pub(super) superseded: Option<Superseded>,
}

/// From when on its records say what the next gate's say too, on the boot clock in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Superseded {
    /// Of connections and datagrams.
    pub(super) calls_boot_ns: u64,
    /// Of packets.
    pub(super) packets_boot_ns: u64,
}

/// A connection that a predecessor let through.
pub(super) struct Inherited {
    /// Of its socket.
    pub(super) cookie: u64,
    /// As the predecessor laid it out: slot and epoch are its own.
    pub(super) entry: ConnectionEntry,
    /// Whether the predecessor would let its next packet through.
    pub(super) alive: bool,
    /// When something was last let through by its slot; 0: not known.
    pub(super) last_admitted_boot_ns: u64,
}

impl Predecessor {
    /// All there are, oldest version first.
    pub(super) fn find(settings: &Settings) -> Result<Vec<Self>, KernelError> {
        let pins = Pins::all(&settings.pin_dir)?;
        pins.into_iter().filter(|pins| pins.version() != settings.abi_version).map(Self::open).collect()
    }

    fn open(pins: Pins) -> Result<Self, KernelError> {
        let links = pins.links()?.into_iter().filter(PinnedLink::is_attached).collect();
        let rings = pins.open_rings()?;
        Ok(Self { pins, links, rings, superseded: None })
    }

    pub(super) fn version(&self) -> u32 {
        self.pins.version()
    }

    /// Whether it decides anything.
    pub(super) fn is_up(&self) -> bool {
        !self.links.is_empty()
    }

    /// The kernel's numbers of its programs.
    pub(super) fn programs(&self) -> impl Iterator<Item = u32> {
        self.links.iter().map(|link| link.program)
    }

    /// The connections that it let through and that are not closed since. None are known of a version that lays them out in
    /// a way that is not understood.
    pub(super) fn connections(&self, now_boot_ns: u64) -> Result<Vec<Inherited>, KernelError> {
        let open = |name, kind| self.pins.open_map(name, kind);
        let connections = open(map::CONNECTIONS, MapType::Hash)?.filter(|map| {
            map.key_bytes == size_of::<u64>() && map.value_bytes >= ConnectionEntry::COMMON_BYTES
        });
        let Some(connections) = connections else {
            tracing::error!(
                version = self.version(),
                "the connections of this ABI version are not understood: they end"
            );
            return Ok(Vec::new());
        };
        let slots = open(map::SLOTS, MapType::Array)?;
        let slots = slots.filter(|map| map.value_bytes >= GrantSlot::COMMON_BYTES);
        let mut found = Vec::new();
        for (cookie, entry) in entries(&connections)? {
            let slot = slots.as_ref().map_or(Ok(None), |slots| read_slot(slots, entry.slot))?;
            // Of one that is not understood nothing counts.
            let [epoch, deadline_boot_ns, last_admitted_boot_ns] = slot.unwrap_or_default();
            let alive = now_boot_ns < deadline_boot_ns && epoch == entry.epoch;
            found.push(Inherited { cookie, entry, alive, last_admitted_boot_ns });
        }
        Ok(found)
    }

    /// Takes its programs down: first those that judge packets by what other programs remembered, then, when none of them
    /// runs any more, the others. Its maps stay until its records are read.
    pub(super) fn lower(&mut self) -> Result<(), KernelError> {
        let of_calls = |link: &PinnedLink| link.place.is_some_and(|place| CALLS.contains(&place.attach_type));
        let (calls, packets): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.links).into_iter().partition(of_calls);
        let result = lower_all(packets).and_then(|()| lower_all(calls));
        if result.is_err() {
            // The rest is up still, and the next attempt goes on with it.
            self.links = self.pins.links()?.into_iter().filter(PinnedLink::is_attached).collect();
        }
        result
    }

    /// Records that nobody has read, oldest first within each ring; none: nothing now.
    pub(super) fn read(&mut self, max: usize) -> Vec<Placed<VerdictRecord>> {
        let superseded = self.superseded;
        let told_twice = |record: &VerdictRecord| {
            superseded.is_some_and(|since| match Hook::from_code(record.hook) {
                Some(Hook::Egress) => record.boot_ns >= since.packets_boot_ns,
                // Of LSM programs the first that refuses is the last that is asked.
                Some(Hook::SocketCreate | Hook::FileReceive | Hook::Tamper)
                    if record.verdict == Verdict::Deny as u8 =>
                {
                    false
                }
                _ => record.boot_ns >= since.calls_boot_ns,
            })
        };
        read_some(&mut self.rings.verdicts, told_twice, max)
    }

    /// The same of connections that have ended.
    pub(super) fn read_closed(&mut self, max: usize) -> Vec<Placed<ClosedRecord>> {
        let superseded = self.superseded;
        // The next gate knows of a connection only after its calls are judged there, but before packets are.
        let told_twice =
            |record: &ClosedRecord| superseded.is_some_and(|since| record.boot_ns >= since.packets_boot_ns);
        read_some(&mut self.rings.closed, told_twice, max)
    }

    /// The same of processes that were moved.
    pub(super) fn read_moved(&mut self, max: usize) -> Vec<Placed<MovedRecord>> {
        let superseded = self.superseded;
        let told_twice =
            |record: &MovedRecord| superseded.is_some_and(|since| record.boot_ns >= since.packets_boot_ns);
        read_some(&mut self.rings.moved, told_twice, max)
    }

    pub(super) fn release(&mut self, kept: impl Fn(u32) -> Kept) {
        self.rings.verdicts.iter_mut().for_each(|ring| ring.release(kept(ring.id())));
        self.rings.closed.iter_mut().for_each(|ring| ring.release(kept(ring.id())));
        self.rings.moved.iter_mut().for_each(|ring| ring.release(kept(ring.id())));
    }

    pub(super) fn skip(&mut self, end: impl Fn(u32) -> Option<u64>) {
        self.rings.pass_over(end);
    }

    /// How many records a ring has lost since it was made; 0 if that version counts in a way that is not understood.
    pub(super) fn lost(&self, ring: Ring) -> Result<u64, KernelError> {
        let counters = self.pins.open_map(map::COUNTERS, MapType::PerCpuArray)?;
        let is_understood =
            |map: &RawMap| map.value_bytes == size_of::<RingCounters>() && (ring as u32) < map.max_entries;
        if !counters.as_ref().is_some_and(is_understood) {
            return Ok(0);
        }
        let read = |error| KernelError::read(map::COUNTERS, error);
        let data = MapData::from_pin(self.pins.map(map::COUNTERS)).map_err(read)?;
        let counters: PerCpuArray<_, RingCounters> = Map::PerCpuArray(data).try_into().map_err(read)?;
        let counters = counters.get(&(ring as u32), 0).map_err(read)?;
        Ok(counters.iter().map(|counters| counters.lost).sum())
    }

    /// Removes what is left of it. Its records must have been read.
    pub(super) fn forget(&self) -> Result<(), KernelError> {
        self.pins.remove().map(drop)
    }
}

/// At most `max` records that are not told twice. What lies there that cannot be a record ends what is read of its ring.
fn read_some<T: Record>(
    rings: &mut [RecordRing<T>],
    told_twice: impl Fn(&T) -> bool,
    max: usize,
) -> Vec<Placed<T>> {
    let mut records = Vec::new();
    for ring in rings {
        while records.len() < max {
            match ring.read() {
                Ok(Some(placed)) if told_twice(&placed.record) => {}
                Ok(Some(placed)) => records.push(placed),
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(%error, "a ring of another ABI version cannot be read to its end");
                    break;
                }
            }
        }
    }
    records
}

fn lower_all(links: Vec<PinnedLink>) -> Result<(), KernelError> {
    links.into_iter().try_for_each(|link| link.lower().map(drop))?;
    sys::wait_for_programs();
    Ok(())
}

/// What is attached to calls and to sockets, and remembers what packets are judged by. Everything else judges.
const CALLS: [AttachType; 7] = [
    AttachType::SOCK_CREATE,
    AttachType::SOCK_OPS,
    AttachType::SOCK_RELEASE,
    AttachType::CONNECT4,
    AttachType::CONNECT6,
    AttachType::SENDMSG4,
    AttachType::SENDMSG6,
];

/// The part of a slot that every version lays out alike: epoch, deadline, and when something was last admitted. None: there is
/// no such slot.
fn read_slot(slots: &RawMap, index: u32) -> Result<Option<[u64; 3]>, KernelError> {
    let value =
        slots.get(&index.to_ne_bytes()).map_err(|source| KernelError::raw_read(map::SLOTS, source))?;
    let words = value.and_then(|bytes| bytes.as_chunks().0.first_chunk::<3>().copied());
    Ok(words.map(|words| words.map(u64::from_ne_bytes)))
}

/// The elements of a map of connections. One that is removed meanwhile may be missing, or come twice.
fn entries(map: &RawMap) -> Result<Vec<(u64, ConnectionEntry)>, KernelError> {
    let read = |source| KernelError::raw_read(map::CONNECTIONS, source);
    let mut found = std::collections::BTreeMap::new();
    let mut last: Option<Vec<u8>> = None;
    // Should keys be removed all the time, the kernel begins again and again.
    for _ in 0..WALK_MAX {
        let Some(key) = map.next_key(last.as_deref()).map_err(read)? else { break };
        let value = map.get(&key).map_err(read)?;
        let cookie = key.as_slice().try_into().map(u64::from_ne_bytes);
        if let (Ok(cookie), Some(entry)) = (cookie, value.as_deref().and_then(parse)) {
            found.insert(cookie, entry);
        }
        last = Some(key);
    }
    Ok(found.into_iter().collect())
}

/// More than any map has entries.
const WALK_MAX: usize = 1 << 22;

/// The part of a connection's entry that every version lays out alike; what follows means something to that version only. None:
/// it is too short.
fn parse(bytes: &[u8]) -> Option<ConnectionEntry> {
    let mut whole = [0; size_of::<ConnectionEntry>()];
    whole[..ConnectionEntry::COMMON_BYTES].copy_from_slice(bytes.get(..ConnectionEntry::COMMON_BYTES)?);
    // SAFETY: there are as many bytes as the structure has, which is `repr(C)`, without padding, and of integers and bytes
    // only, so that every bit pattern is one; an unaligned read asks for nothing more.
    let entry = unsafe { whole.as_ptr().cast::<ConnectionEntry>().read_unaligned() };
    let flags = entry.flags & (ConnectionEntry::OBSERVED | ConnectionEntry::INHERITED);
    Some(ConnectionEntry { flags, seen: 0, ..entry })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A later version may append; what it found here stays where it is.
    #[test]
    fn a_longer_entry_begins_alike() {
        let mut bytes: Vec<u8> = (1..).take(ConnectionEntry::COMMON_BYTES).collect();
        let entry = parse(&bytes).expect("as long as it must be");
        assert_eq!(entry.epoch, u64::from_ne_bytes([1, 2, 3, 4, 5, 6, 7, 8]));
        assert_eq!((entry.seen, entry.bytes), (0, 0));
        assert_eq!(parse(&bytes[1..]), None);
        bytes.extend([0xff; 32]);
        assert_eq!(parse(&bytes), Some(entry));
    }
}
