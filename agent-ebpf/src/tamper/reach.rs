//! Somebody reaches for something: is it the gate's, and is it the agent who does?
//!
//! Owns: the tier's maps, and what follows from a decision. Must not know: by which hook it was asked.

use agent_ebpf::abi::{self, FileKey, Hook, ObjectKey, Tampering, tamper_state};
use agent_ebpf::verdict::Verdict;
use agent_ebpf::verdict::tamper::decide_reach;
use aya_ebpf::helpers::generated::bpf_get_current_task;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};

use crate::kernel::{self, Pointer};
use crate::task::Task;
use crate::{GO_ON, REFUSE, context, record};

#[map]
static TAMPER_FILES: HashMap<FileKey, u32> = HashMap::with_max_entries(abi::TAMPER_FILES_MAX, 0);

#[map]
static TAMPER_OBJECTS: HashMap<ObjectKey, u32> = HashMap::with_max_entries(abi::TAMPER_OBJECTS_MAX, 0);

#[map]
static TAMPER_STATE: Array<u64> = Array::with_max_entries(tamper_state::MAX, 0);

/// The number of the canary among resources: what has it is the agent's own doing.
const OWN_DOING: u32 = u32::MAX;

/// Whether a file has any of these flags.
#[inline(always)]
pub(crate) fn is_file(file: FileKey, flags: u32) -> bool {
    // SAFETY: a word, which is replaced as a whole.
    unsafe { TAMPER_FILES.get(file).is_some_and(|found| *found & flags != 0) }
}

/// Whether it is on the list.
#[inline(always)]
pub(crate) fn is_object(kind: u32, id: u32) -> bool {
    TAMPER_OBJECTS.get_ptr(ObjectKey { kind, id }).is_some()
}

/// Whether a task runs the agent.
#[inline(always)]
pub(crate) fn runs_agent(task: Pointer) -> bool {
    is_file(kernel::executable(task), FileKey::AGENT)
}

/// The task that calls.
#[inline(always)]
pub(crate) fn task() -> Pointer {
    // SAFETY: a helper without preconditions.
    unsafe { bpf_get_current_task() as Pointer }
}

/// Decides, and records what is refused. `detail`: see [`abi::VerdictRecord::port`].
#[inline(always)]
pub(crate) fn judge(is_the_gates: bool, tampering: Tampering, detail: u16) -> i32 {
    let lifted_until = || state(tamper_state::LIFTED_UNTIL);
    let is_agent = || runs_agent(task());
    let Some(reason) = decide_reach(is_the_gates, context::now_boot_ns, lifted_until, is_agent) else {
        return GO_ON;
    };
    let by_helper = state(tamper_state::HELPER) == u64::from(Task::current().pid());
    if by_helper {
        let index = tamper_state::REFUSED + tampering as u32;
        set_state(index, state(index) + 1);
    }
    record::emit_denied(|record| {
        record.boot_ns = context::now_boot_ns();
        record.cgroup_id = context::cgroup_id();
        record.resource = if by_helper { OWN_DOING } else { 0 };
        record.family = tampering as u8;
        record.port = detail;
        record.hook = Hook::Tamper as u8;
        record.verdict = Verdict::Deny as u8;
        record.reason = reason as u8;
        Task::current().describe(record);
    });
    REFUSE
}

#[inline(always)]
fn state(index: u32) -> u64 {
    match TAMPER_STATE.get_ptr(index) {
        // SAFETY: an aligned word of a map, valid for the program's run; volatile, so that it is read once.
        Some(word) => unsafe { word.read_volatile() },
        None => 0,
    }
}

/// Writes down a number for the agent.
#[inline(always)]
pub(crate) fn set_state(index: u32, value: u64) {
    if let Some(word) = TAMPER_STATE.get_ptr_mut(index) {
        // SAFETY: as in `state`.
        unsafe { word.write_volatile(value) };
    }
}
