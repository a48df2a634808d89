//! Whose a task is.
//!
//! Owns: the walk from the task's cgroup to its subject. Must not know: what anybody may do.

use agent_ebpf::verdict::Caller;

use crate::context;
use crate::maps;

/// Whose the calling task is: the nearest cgroup at or above its own that is bound. `own` is its own.
#[inline(always)]
pub(crate) fn caller(own: u64) -> Caller {
    // Nothing is nearer, and most that are let through are found here: without a walk.
    if let Some(subject) = bound(own) {
        return Caller::Subject(subject);
    }
    // 0 is no subject's number. A plain number keeps the verifier's work small: it walks every way through the loop.
    let mut found = 0;
    let searched = context::for_each_cgroup(|id| {
        if let Some(subject) = bound(id) {
            found = subject;
        }
    });
    match (searched, found) {
        (Err(context::CgroupTooDeep), _) => Caller::TooDeep,
        (Ok(()), 0) => Caller::Unknown,
        (Ok(()), subject) => Caller::Subject(subject),
    }
}

/// Whose a cgroup is.
#[inline(always)]
fn bound(cgroup_id: u64) -> Option<u32> {
    // SAFETY: an entry that the agent replaces meanwhile may be read old or new; its one number is read at once.
    unsafe { maps::SUBJECTS.get(cgroup_id) }.map(|entry| entry.number)
}
