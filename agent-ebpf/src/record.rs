//! Writing verdict records.
//!
//! Owns: the rings and the counters of what they lost. Must not know: who reads them.
//!
//! Invariant: every record is counted before it is tried, and once more if it is lost; so a reader that sees a number
//! missing, or the counters ahead of the records, knows exactly how many it never saw.

use agent_ebpf::abi::{Ring, VerdictRecord};
use agent_ebpf::verdict::Verdict;

use crate::maps;

/// Puts a record into the ring of this verdict, numbered; `fill` writes the rest of it, in place: a record takes a quarter of
/// the stack that a program has.
#[inline(always)]
pub(crate) fn emit(verdict: Verdict, fill: impl FnOnce(&mut VerdictRecord)) {
    let (index, ring) = match verdict {
        Verdict::Allow => (Ring::Allow, &maps::EVENTS_ALLOW),
        Verdict::Deny => (Ring::Deny, &maps::EVENTS_DENY),
    };
    // A per-CPU array has an element for each index below its length; were it otherwise, the verdict would stand all the same.
    let Some(counters) = maps::COUNTERS.get_ptr_mut(index as u32) else { return };
    // SAFETY: `counters` points to this CPU's element of a per-CPU array, which lives as long as the program. The hooks run
    // with migration disabled, and none of them interrupts another of ours on the same CPU, so nobody else writes it
    // meanwhile.
    let sequence = unsafe {
        (*counters).attempted += 1;
        (*counters).attempted
    };
    match ring.reserve::<VerdictRecord>(0) {
        Some(mut entry) => {
            let record = entry.write(VerdictRecord::EMPTY);
            fill(record);
            record.sequence = sequence;
            entry.submit(0);
        }
        // SAFETY: as above.
        None => unsafe { (*counters).lost += 1 },
    }
}
