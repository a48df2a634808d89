//! Writing records of verdicts, and of connections that have ended.
//!
//! Owns: the rings and the counters of what they lost. Must not know: who reads them.
//!
//! Invariant: every record is counted once before it can be read, or twice if it is lost: attempted = read + unread + lost.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use agent_ebpf::abi::{ClosedRecord, MovedRecord, Ring, RingCounters, VerdictRecord};
use aya_ebpf::maps::RingBuf;
use aya_ebpf::maps::ring_buf::RingBufEntry;

use crate::maps;

/// Room for a record of what is about to be let through. To be filled in or given back.
#[must_use = "the verifier wants it filled in or given back"]
pub(crate) struct Reserved {
    entry: RingBufEntry<VerdictRecord>,
}

impl Reserved {
    /// Puts the record into the ring; `fill` writes it in place: a record takes a quarter of the stack that a program has.
    #[inline(always)]
    pub(crate) fn keep(self, fill: impl FnOnce(&mut VerdictRecord)) {
        attempted(Ring::Allow);
        put(self.entry, fill);
    }

    /// Gives the room back: nobody was let through.
    #[inline(always)]
    pub(crate) fn give_back(self) {
        self.entry.discard(0);
    }
}

/// Takes room for a record of what is about to be let through. None: there is none.
#[inline(always)]
pub(crate) fn reserve() -> Option<Reserved> {
    maps::EVENTS_ALLOW.reserve::<VerdictRecord>(0).map(|entry| Reserved { entry })
}

/// Counts a record that was not there to be kept: somebody was let through all the same.
#[inline(always)]
pub(crate) fn lose_allowed() {
    attempted(Ring::Allow);
    lost(Ring::Allow);
}

/// Puts a record of what is not let through, or would not be, into its ring.
#[inline(always)]
pub(crate) fn emit_denied(fill: impl FnOnce(&mut VerdictRecord)) {
    emit(Ring::Deny, &maps::EVENTS_DENY, fill);
}

/// Puts a record of a connection that has ended into its ring.
#[inline(always)]
pub(crate) fn emit_closed(fill: impl FnOnce(&mut ClosedRecord)) {
    emit(Ring::Closed, &maps::EVENTS_CLOSED, fill);
}

/// Puts a record of a process that was moved into its ring.
#[allow(dead_code, reason = "one program of one object does")]
#[inline(always)]
pub(crate) fn emit_moved(fill: impl FnOnce(&mut MovedRecord)) {
    emit(Ring::Moved, &maps::EVENTS_MOVED, fill);
}

#[inline(always)]
fn emit<T: Record>(index: Ring, ring: &RingBuf, fill: impl FnOnce(&mut T)) {
    attempted(index);
    match ring.reserve::<T>(0) {
        Some(entry) => put(entry, fill),
        None => lost(index),
    }
}

/// What is `repr(C)`, aligned to 8 bytes, of a size that is a multiple of them, and of integers only.
trait Record: 'static {}

impl Record for VerdictRecord {}

impl Record for ClosedRecord {}

impl Record for MovedRecord {}

#[inline(always)]
fn put<T: Record>(mut entry: RingBufEntry<T>, fill: impl FnOnce(&mut T)) {
    let record = entry.as_mut_ptr();
    // SAFETY: the kernel has reserved a whole record, aligned to 8 bytes; all of it is written before it is referred to, and
    // every pattern is a value.
    unsafe {
        clear(record);
        fill(&mut *record);
    }
    entry.submit(0);
}

/// Writes zeros over a record, word by word. What the compiler calls for this otherwise goes byte by byte, and takes a third
/// of the time of a verdict; volatile keeps it from doing so.
///
/// # Safety
/// `record` points to the memory of a record.
#[inline(always)]
unsafe fn clear<T: Record>(record: *mut T) {
    let words = record.cast::<u64>();
    let mut word = 0;
    while word < size_of::<T>() / size_of::<u64>() {
        // SAFETY: within the record, by the loop's condition.
        unsafe { words.add(word).write_volatile(0) };
        word += 1;
    }
}

#[inline(always)]
fn attempted(ring: Ring) {
    if let Some(counters) = counters(ring) {
        // SAFETY: see `counters`; its fields are aligned words.
        unsafe { count(&raw mut (*counters).attempted) };
    }
}

#[inline(always)]
fn lost(ring: Ring) {
    if let Some(counters) = counters(ring) {
        // SAFETY: see `counters`; its fields are aligned words.
        unsafe { count(&raw mut (*counters).lost) };
    }
}

/// This CPU's counters of a ring, valid for the program's run. A per-CPU array has an element for each index below its length:
/// there always are some.
#[inline(always)]
fn counters(ring: Ring) -> Option<*mut RingCounters> {
    maps::COUNTERS.get_ptr_mut(ring as u32)
}

/// Adds one, in one instruction: another of our programs may interrupt this one on the same CPU.
///
/// # Safety
/// `counter` points to an aligned word of a map.
#[inline(always)]
unsafe fn count(counter: *mut u64) {
    // The target has no compare-and-swap before Linux 5.12, so `AtomicU64` has no `fetch_add` there; the plain addition
    // that this becomes (its result is not used) is older than eBPF.
    //
    // SAFETY: the caller promises it.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, 1) };
}
