//! A task wants a socket: of a family whose packets pass the gate, or it is one of the few that may have others.

use agent_ebpf::abi::Hook;
use agent_ebpf::family;
use agent_ebpf::verdict::Verdict;
use agent_ebpf::verdict::lsm::{Wanted, decide_family};
use aya_ebpf::Global;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

use crate::task::Task;
use crate::{GO_ON, REFUSE, context, maps, record};

/// The families that everybody may have, as a set; the agent writes it before the program is loaded.
#[unsafe(no_mangle)]
static FAMILIES: Global<u64> = Global::new(family::USUAL);

/// Whether the kernel lets LSM programs ask for the cgroups above a task's own; not before Linux 5.15 or so. Written by the
/// agent before the program is loaded: what is 0 then is not even looked at by the verifier.
#[unsafe(no_mangle)]
static KNOWS_ANCESTORS: Global<u8> = Global::new(1);

#[lsm(hook = "socket_create")]
pub(crate) fn socket_create(ctx: LsmContext) -> i32 {
    // 32 bits each: the upper half of the register is not the kernel's promise.
    let (family, kind, protocol) = (ctx.arg::<u32>(0), ctx.arg::<u32>(1), ctx.arg::<u32>(2));
    let by_kernel = ctx.arg::<u32>(3);
    let family = family::effective(family, protocol);
    let wanted = Wanted { family, kind, by_kernel: by_kernel != 0 };
    let Some(reason) = decide_family(&wanted, FAMILIES.load(), is_exempt) else { return GO_ON };
    if !wanted.is_probe() {
        record::emit_denied(|record| {
            record.boot_ns = context::now_boot_ns();
            record.cgroup_id = context::cgroup_id();
            // The kernel has refused numbers that are too large before it asks.
            record.family = family as u8;
            record.hook = Hook::SocketCreate as u8;
            record.verdict = Verdict::Deny as u8;
            record.reason = reason as u8;
            Task::current().describe(record);
        });
    }
    REFUSE
}

/// Whether the calling task's cgroup, or one above it, is on the list. One that lies too deep is not.
#[inline(always)]
fn is_exempt() -> bool {
    if is_listed(context::cgroup_id()) {
        return true;
    }
    if KNOWS_ANCESTORS.load() == 0 {
        return false;
    }
    let mut found = 0;
    let searched = context::for_each_cgroup(context::ancestor_cgroup_id, |id| {
        if is_listed(id) {
            found = 1;
        }
    });
    searched.is_ok() && found == 1
}

#[inline(always)]
fn is_listed(cgroup_id: u64) -> bool {
    maps::EXEMPT_CGROUPS.get_ptr(cgroup_id).is_some()
}
