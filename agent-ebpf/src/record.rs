//! Writing verdict records.
//!
//! Owns: the rings and the counters of what they lost. Must not know: who reads them.
//!
//! Invariant: every record is counted before it is tried, and once more if it is lost: attempted = read + unread + lost.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use agent_ebpf::abi::{Ring, VerdictRecord};
use agent_ebpf::verdict::Verdict;

use crate::maps;

/// Puts a record into the ring of this verdict; `fill` writes it in place: a record takes a quarter of
/// the stack that a program has.
#[inline(always)]
pub(crate) fn emit(verdict: Verdict, fill: impl FnOnce(&mut VerdictRecord)) {
    let (index, ring) = match verdict {
        Verdict::Allow => (Ring::Allow, &maps::EVENTS_ALLOW),
        Verdict::Deny => (Ring::Deny, &maps::EVENTS_DENY),
    };
    // A per-CPU array has an element for each index below its length; were it otherwise, the verdict would stand all the same.
    let Some(counters) = maps::COUNTERS.get_ptr_mut(index as u32) else { return };
    // SAFETY: `counters` points to this CPU's element of a per-CPU array, which lives as long as the program; its fields are
    // aligned words.
    unsafe { count(&raw mut (*counters).attempted) };
    match ring.reserve::<VerdictRecord>(0) {
        Some(mut entry) => {
            let record = entry.as_mut_ptr();
            // SAFETY: the kernel has reserved a whole record, aligned to 8 bytes; all of it is written before it is referred
            // to, and every pattern is a value.
            unsafe {
                clear(record.cast());
                fill(&mut *record);
            }
            entry.submit(0);
        }
        // SAFETY: as above.
        None => unsafe { count(&raw mut (*counters).lost) },
    }
}

/// Writes zeros over a record, word by word. What the compiler calls for this otherwise goes byte by byte, and takes a third
/// of the time of a verdict; volatile keeps it from doing so.
///
/// # Safety
/// `record` points to the memory of a record.
#[inline(always)]
unsafe fn clear(record: *mut u64) {
    let mut word = 0;
    while word < size_of::<VerdictRecord>() / size_of::<u64>() {
        // SAFETY: within the record, by the loop's condition.
        unsafe { record.add(word).write_volatile(0) };
        word += 1;
    }
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
