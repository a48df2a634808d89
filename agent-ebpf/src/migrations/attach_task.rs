//! A process was moved into another cgroup. Linux 5.5 and newer, where the kernel describes its types.
//!
//! The kernel tells of it after it is done, and only of moves: a process that begins in a cgroup (`clone3` with
//! `CLONE_INTO_CGROUP`, or by its parent) is not moved there.

use core::ffi::c_void;

use agent_ebpf::abi::{CGROUP_LEVELS_MAX, MovedRecord};
use aya_ebpf::Global;
use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_get_current_comm};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_uid_gid};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;

use crate::context::{self, field};
use crate::{maps, record};

/// Offsets in bytes from the beginning of a structure, as the agent writes them before the program is loaded; it has the same
/// names. The verifier compares each read with the kernel's own description.
macro_rules! offsets {
    ($($name:ident,)*) => {
        $(#[unsafe(no_mangle)] static $name: Global<u32> = Global::new(0);)*
    };
}

offsets! {
    CGROUP_NODE,
    CGROUP_ROOT,
    CGROUP_PARENT,
    STATE_CGROUP,
    NODE_ID,
    ROOT_HIERARCHY,
    MOVED_TGID,
    MOVED_COMM,
    MOVED_CRED,
    MOVED_UID,
}

/// `struct cgroup *`, its path, `struct task_struct *`, whether all its threads were moved.
#[btf_tracepoint(function = "cgroup_attach_task")]
pub(crate) fn attach_task(ctx: BtfTracePointContext) -> i32 {
    let (cgroup, task): (*const c_void, *const c_void) = (ctx.arg(0), ctx.arg(2));
    // SAFETY: these are what the kernel gives to this program, and the verifier permits each read only if there is such a field.
    unsafe { see(cgroup, task) };
    0
}

/// # Safety
/// They are what the kernel gave.
#[inline(always)]
unsafe fn see(cgroup: *const c_void, task: *const c_void) {
    // SAFETY: the caller promises it; each pointer is one that a structure of the kernel's has, and is read only if it is one.
    unsafe {
        // Hierarchies of version 1 number their cgroups by themselves. The one of version 2 is 0.
        let root: *const c_void = field(cgroup, CGROUP_ROOT.load());
        if root.is_null() || field::<i32>(root, ROOT_HIERARCHY.load()) != 0 {
            return;
        }
        let Some((bound, subject)) = nearest(cgroup) else { return };
        let to = id(cgroup);
        let name = MOVED_COMM.load();
        let credentials: *const c_void = field(task, MOVED_CRED.load());
        let uid = if credentials.is_null() { u32::MAX } else { field(credentials, MOVED_UID.load()) };
        record::emit_moved(|record: &mut MovedRecord| {
            record.boot_ns = context::now_boot_ns();
            record.cgroup_id = to;
            record.bound_cgroup_id = bound;
            record.subject = subject;
            record.pid = field(task, MOVED_TGID.load());
            record.uid = uid;
            record.command = context::bytes_of([field(task, name), field(task, name + 8)]);
            record.mover_cgroup_id = bpf_get_current_cgroup_id();
            record.mover_pid = (bpf_get_current_pid_tgid() >> 32) as u32;
            record.mover_uid = bpf_get_current_uid_gid() as u32;
            let command = &mut record.mover_command;
            bpf_get_current_comm(command.as_mut_ptr().cast(), size_of_val(command) as u32);
        });
    }
}

/// The nearest cgroup at or above this one that is bound, and whose it is.
///
/// # Safety
/// As [`see`].
#[inline(always)]
unsafe fn nearest(cgroup: *const c_void) -> Option<(u64, u32)> {
    let mut at = cgroup;
    for _ in 0..CGROUP_LEVELS_MAX {
        // SAFETY: the caller promises it of the first one; the others are those above, and the last has none above it.
        unsafe {
            let id = id(at);
            if let Some(entry) = maps::SUBJECTS.get_ptr(id) {
                return Some((id, (*entry).number));
            }
            let above: *const c_void = field(at, CGROUP_PARENT.load());
            if above.is_null() {
                return None;
            }
            at = field(above, STATE_CGROUP.load());
            if at.is_null() {
                return None;
            }
        }
    }
    // Deeper than any program looks: whoever is there is nobody.
    None
}

/// # Safety
/// As [`see`].
#[inline(always)]
unsafe fn id(cgroup: *const c_void) -> u64 {
    // SAFETY: the caller promises it.
    unsafe {
        let node: *const c_void = field(cgroup, CGROUP_NODE.load());
        if node.is_null() { 0 } else { field(node, NODE_ID.load()) }
    }
}
