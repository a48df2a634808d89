//! What the programs say: records, and their own diagnostics.

use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use agent_ebpf::abi::{ClosedRecord, ConnectionEntry, VerdictRecord};
use aya::Ebpf;
use aya::maps::{Map, MapData, RingBuf};
use aya_log::EbpfLogger;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use super::KernelError;

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

/// A ring of records.
pub struct RecordRing<T = VerdictRecord> {
    ring: RingBuf<MapData>,
    of: PhantomData<T>,
}

impl<T: Record> RecordRing<T> {
    pub(super) fn open(map: Map) -> Result<Self, KernelError> {
        let ring = RingBuf::try_from(map).map_err(|error| KernelError::read("ring", error))?;
        Ok(Self { ring, of: PhantomData })
    }

    /// The same ring, to be awaited. Must be called within a tokio runtime.
    pub fn into_async(self) -> io::Result<AsyncRecords<T>> {
        // SAFETY: `as_raw_fd` is that of the map, which this object owns and never exchanges.
        let fd = unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) };
        let fd = fd.map_err(|error| error.into_parts().1)?;
        Ok(AsyncRecords { fd, not_before: Instant::now() })
    }
}

/// Yields what is not read yet, oldest first; None: nothing now, though there may be something later.
impl<T: Record> Iterator for RecordRing<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        loop {
            if let Some(record) = parse(&self.ring.next()?) {
                return Some(record);
            }
            tracing::error!("a ring item is not a record: the pinned ring is not ours");
        }
    }
}

impl<T> AsRawFd for RecordRing<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
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
    /// Waits until there is something to read, and reads at most `max` records. Cancel-safe: nothing is read before it
    /// returns.
    pub async fn read(&mut self, max: usize) -> io::Result<Vec<T>> {
        sleep_until(self.not_before).await;
        let mut guard = self.fd.readable_mut().await?;
        let mut records = Vec::new();
        while records.len() < max {
            let Some(record) = guard.get_inner_mut().next() else {
                guard.clear_ready();
                self.not_before = Instant::now() + LET_GATHER;
                break;
            };
            records.push(record);
        }
        Ok(records)
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
