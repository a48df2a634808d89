//! Whose a task is, or a socket.
//!
//! Owns: the walk from a cgroup to its subject. Must not know: what anybody may do.

use agent_ebpf::verdict::Caller;
use aya_ebpf::programs::SkBuffContext;

use crate::context;
use crate::maps;

/// Whose the calling task is: the nearest cgroup at or above its own that is bound. `own` is its own.
#[inline(always)]
pub(crate) fn caller(own: u64) -> Caller {
    nearest(own, context::ancestor_cgroup_id)
}

/// Whose the cgroup is that the packet's socket was made in.
#[inline(always)]
pub(crate) fn of_socket(ctx: &SkBuffContext) -> Caller {
    nearest(context::socket_cgroup_id(ctx), |level| context::socket_ancestor_cgroup_id(ctx, level))
}

/// The subject of the nearest bound cgroup at or above `own`. `ancestor` gives those at each level, 0 being the root.
#[inline(always)]
fn nearest(own: u64, ancestor: impl Fn(u32) -> u64) -> Caller {
    // Plain numbers that have a value on every path: what the compiler would leave unset where nobody asks for it, Linux 5.10
    // refuses to see read. And they keep the verifier's work small: it walks every way through the loop.
    let mut found = bound(own);
    let mut is_too_deep = false;
    // Nothing is nearer than its own, and most that are let through are found there: without a walk.
    if found == NOBODY {
        let searched = context::for_each_cgroup(ancestor, |id| {
            let subject = bound(id);
            if subject != NOBODY {
                found = subject;
            }
        });
        is_too_deep = searched.is_err();
    }
    match (is_too_deep, found) {
        (true, _) => Caller::TooDeep,
        (false, NOBODY) => Caller::Unknown,
        (false, subject) => Caller::Subject(subject),
    }
}

/// No subject has this number.
const NOBODY: u32 = 0;

/// Whose a cgroup is.
#[inline(always)]
fn bound(cgroup_id: u64) -> u32 {
    // SAFETY: an entry that the agent replaces meanwhile may be read old or new; its one number is read at once.
    unsafe { maps::SUBJECTS.get(cgroup_id) }.map_or(NOBODY, |entry| entry.number)
}
