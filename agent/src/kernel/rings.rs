//! What the programs say: records, and their own diagnostics.
//!
//! Owns: how far each ring is read, and how far it is given back. Must not know: who keeps records, and how.
//!
//! Invariant: what was not given back is read again, by whoever reads next.

use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use agent_ebpf::abi::{ClosedRecord, ConnectionEntry, MovedRecord, VerdictRecord};
use aya::Ebpf;
use aya::maps::{Map, MapData};
use aya_log::EbpfLogger;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use super::KernelError;
use super::ring_memory::{Item, RingMemory};

/// What a ring holds: `repr(C)`, without padding, and of integers only, so that every bit pattern is one.
pub trait Record: Copy {
    /// All 0: what an earlier agent's programs have not written.
    const EMPTY: Self;
    /// How long a record of theirs is at least.
    const BYTES_MIN: usize;
}

impl Record for VerdictRecord {
    const EMPTY: Self = Self::EMPTY;
    const BYTES_MIN: usize = Self::BYTES_MIN;
}

impl Record for ClosedRecord {
    const EMPTY: Self = Self::of(&ConnectionEntry::EMPTY, 0, 0);
    const BYTES_MIN: usize = size_of::<Self>();
}

impl Record for MovedRecord {
    const EMPTY: Self = Self::EMPTY;
    const BYTES_MIN: usize = size_of::<Self>();
}

/// Where a record lies: as long as its ring is there, no other one lies there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The kernel's number of the ring.
    pub ring: u32,
    /// Bytes from the ring's beginning to the end of the record; grows with each.
    pub end: u64,
}

/// A record that was read, and whose room is still taken: whoever reads next after a crash finds it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed<T> {
    /// What it says.
    pub record: T,
    /// Where it lies.
    pub place: Place,
}

/// How far the records of a ring are kept elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// All that were read.
    All,
    /// Those that end here, or before.
    Until(u64),
}

/// A ring of records. There is one reader of each: whoever holds the gate.
pub struct RecordRing<T = VerdictRecord> {
    map: MapData,
    memory: RingMemory,
    id: u32,
    /// Where the room begins that is still taken.
    taken: usize,
    /// Where the next record begins.
    next: usize,
    of: PhantomData<T>,
}

impl<T: Record> RecordRing<T> {
    pub(super) fn open(map: Map) -> Result<Self, KernelError> {
        let Map::RingBuf(map) = map else { return Err(KernelError::Missing("ring")) };
        let info = map.info().map_err(|error| KernelError::read("ring", error))?;
        let memory = RingMemory::of_map(map.fd().as_fd(), info.max_entries());
        let memory = memory.map_err(|source| KernelError::Elements { name: "ring", source })?;
        let taken = memory.begin();
        Ok(Self { map, memory, id: info.id(), taken, next: taken, of: PhantomData })
    }

    /// The kernel's number of it.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The next record, oldest first; its room stays taken. None: nothing now, though there may be something later.
    ///
    /// # Errors
    /// If what lies there cannot be in a ring.
    pub fn read(&mut self) -> io::Result<Option<Placed<T>>> {
        loop {
            match self.memory.at(self.next)? {
                Item::None => return Ok(None),
                Item::Discarded(next) => self.next = next,
                Item::Record(bytes, next) => {
                    let record = parse(bytes);
                    self.next = next;
                    let place = Place { ring: self.id, end: next as u64 };
                    match record {
                        Some(record) => return Ok(Some(Placed { record, place })),
                        None => {
                            tracing::error!("a ring item is not a record: the pinned ring is not ours");
                        }
                    }
                }
            }
        }
    }

    /// Gives the room of what is kept elsewhere back to the kernel. What is not, the next reader finds again; this one does not.
    pub fn release(&mut self, kept: Kept) {
        let taken = match kept {
            Kept::All => self.next,
            // Only forwards, and not beyond what was read.
            Kept::Until(end) => {
                usize::try_from(end).map_or(self.taken, |end| end.clamp(self.taken, self.next))
            }
        };
        if self.taken != taken {
            self.taken = taken;
            self.memory.give_back(taken);
        }
    }

    /// Gives back what is known to be kept since before a crash: all up to `end`, where a record ends. What does not is not
    /// believed.
    pub fn pass_over(&mut self, end: u64) {
        let begin = self.next;
        while (self.next as u64) < end {
            match self.memory.at(self.next) {
                Ok(Item::Record(_, next) | Item::Discarded(next)) => self.next = next,
                Ok(Item::None) | Err(_) => break,
            }
        }
        if self.next as u64 == end {
            self.release(Kept::All);
        } else {
            self.next = begin;
        }
    }

    /// The same ring, to be awaited. Must be called within a tokio runtime.
    pub fn into_async(self) -> io::Result<AsyncRecords<T>> {
        // SAFETY: `as_raw_fd` is that of the map, which this object owns and never exchanges.
        let fd = unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) };
        let fd = fd.map_err(|error| error.into_parts().1)?;
        Ok(AsyncRecords { fd, not_before: Instant::now() })
    }
}

/// Yields what is not read yet, oldest first, and forgets it: for whoever need not keep it. None: nothing now, though there may
/// be something later.
impl<T: Record> Iterator for RecordRing<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let read = self.read();
        let read = read.inspect_err(|error| tracing::error!(%error, "a ring cannot be read")).ok()??;
        self.release(Kept::All);
        Some(read.record)
    }
}

impl<T> AsRawFd for RecordRing<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.map.fd().as_fd().as_raw_fd()
    }
}

/// How long a ring that was read to its end is left alone. The kernel wakes a reader that has seen everything with each
/// record, by an interrupt that costs the connecting task some 10 µs; a reader that lags behind is not woken. A ring of the
/// usual size takes some 770,000 records a second at this pace.
const LET_GATHER: Duration = Duration::from_millis(10);

/// A ring of records that can be awaited.
pub struct AsyncRecords<T = VerdictRecord> {
    fd: AsyncFd<RecordRing<T>>,
    not_before: Instant,
}

impl<T: Record> AsyncRecords<T> {
    /// The kernel's number of the ring.
    pub fn id(&self) -> u32 {
        self.fd.get_ref().id()
    }

    /// As [`RecordRing::release`]: before the next are read.
    pub fn release(&mut self, kept: Kept) {
        self.fd.get_mut().release(kept);
    }

    /// Waits until there is something to read, and reads at most `max` records. Cancel-safe: nothing is read before it
    /// returns.
    pub async fn read(&mut self, max: usize) -> io::Result<Vec<Placed<T>>> {
        sleep_until(self.not_before).await;
        loop {
            let mut guard = self.fd.readable_mut().await?;
            let mut records = Vec::new();
            while records.len() < max
                && let Some(record) = guard.get_inner_mut().read()?
            {
                records.push(record);
            }
            if !records.is_empty() {
                if records.len() < max {
                    self.not_before = Instant::now() + LET_GATHER;
                }
                return Ok(records);
            }
            // The kernel wakes whoever has given back all that was there, and only then: so it is not before nothing is found that
            // this waits for it. A notice that came meanwhile is not cleared.
            guard.clear_ready();
        }
    }
}

/// A later agent may append to a record; what it has in common with an earlier one stands first.
fn parse<T: Record>(item: &[u8]) -> Option<T> {
    if item.len() < T::BYTES_MIN {
        return None;
    }
    let mut record = T::EMPTY;
    let bytes = item.len().min(size_of::<T>());
    // SAFETY: `item` has so many bytes, and so has `record`, of which every bit pattern is one; they do not overlap, and bytes
    // need no alignment.
    unsafe { (&raw mut record).cast::<u8>().copy_from_nonoverlapping(item.as_ptr(), bytes) };
    Some(record)
}

/// The programs' own log lines; each goes to this process's log.
pub struct Diagnostics {
    fd: AsyncFd<EbpfLogger<&'static dyn log::Log>>,
}

impl Diagnostics {
    /// None, with a warning, where it cannot be had: enforcement does not depend on it.
    pub(super) fn init(ebpf: &mut Ebpf) -> Option<Self> {
        let logger = EbpfLogger::init(ebpf)
            .inspect_err(|error| tracing::warn!(%error, "the kernel programs' diagnostics cannot be read"))
            .ok()?;
        // SAFETY: `as_raw_fd` is that of the log map, which the logger owns and never exchanges.
        let fd = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }
            .map_err(|error| error.into_parts().1)
            .inspect_err(|error| tracing::warn!(%error, "the kernel programs' diagnostics cannot be awaited"))
            .ok()?;
        Some(Self { fd })
    }

    /// Waits for lines and logs them.
    pub async fn relay(&mut self) -> io::Result<()> {
        let mut guard = self.fd.readable_mut().await?;
        guard.get_inner_mut().flush();
        guard.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_other_agents_are_shorter_or_longer() {
        let mut bytes = vec![7; size_of::<VerdictRecord>() + 8];
        let parsed = |bytes: &[u8]| parse::<VerdictRecord>(bytes).map(|record| (record.pid, record.peer));
        let pid = u32::from_ne_bytes([7; 4]);
        assert_eq!(parsed(&bytes), Some((pid, [7; 16])));
        bytes.truncate(VerdictRecord::BYTES_MIN);
        assert_eq!(parsed(&bytes), Some((pid, [0; 16])));
        bytes.pop();
        assert_eq!(parsed(&bytes), None);
        assert!(parse::<ClosedRecord>(&bytes).is_some_and(|record| record.pid == pid));
    }
}
