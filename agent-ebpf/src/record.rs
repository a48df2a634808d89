//! Writing verdict records.
//!
//! Owns: the rings and the counters of what they lost. Must not know: who reads them.
//!
//! Invariant: every record is counted before it is tried, and once more if it is lost; so a reader that sees a number
//! missing, or the counters ahead of the records, knows exactly how many it never saw.

use agent_ebpf::abi::{Ring, VerdictRecord};
use agent_ebpf::verdict::Verdict;

use crate::maps;

/// Puts the record into the ring of its verdict, numbered.
#[inline(always)]
pub(crate) fn emit(verdict: Verdict, mut record: VerdictRecord) {
    let (index, ring) = match verdict {
        Verdict::Allow => (Ring::Allow, &maps::EVENTS_ALLOW),
        Verdict::Deny => (Ring::Deny, &maps::EVENTS_DENY),
    };
    let Some(counters) = maps::COUNTERS.get_ptr_mut(index as u32) else { return };
    // A record of sequence 0 never leaves: `record.sequence` is taken from the counter before anything else can fail.
    //
    // SAFETY: `counters` points to this CPU's element of a per-CPU array, which lives as long as the program. The hooks run
    // with preemption or migration disabled, and none of them interrupts another of ours on the same CPU, so nobody else
    // writes it meanwhile.
    unsafe {
        (*counters).attempted += 1;
        record.sequence = (*counters).attempted;
    }
    match ring.reserve::<VerdictRecord>(0) {
        Some(mut entry) => {
            entry.write(record);
            entry.submit(0);
        }
        // SAFETY: as above.
        None => unsafe { (*counters).lost += 1 },
    }
}
