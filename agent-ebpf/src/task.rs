//! The calling task, as records name it.
//!
//! Owns: how it is found out. Must not know: what is recorded besides.
//!
//! Newer kernels let programs look into the task itself, which takes a third of the time of asking for each thing. Where the
//! fields lie, the agent finds in the kernel's own description of its types, and writes it down before the programs are loaded;
//! the verifier compares each read with the same description.

use core::ffi::c_void;
use core::ptr::null;

use agent_ebpf::abi::VerdictRecord;
use aya_ebpf::Global;
use aya_ebpf::helpers::generated::{bpf_get_current_comm, bpf_get_current_task_btf};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_uid_gid};

use crate::context::{self, field};

// In bytes, from the beginning of the structure. All 0: the kernel does not let programs look, and they ask.

/// `task_struct.tgid`.
#[unsafe(no_mangle)]
static TASK_TGID: Global<u32> = Global::new(0);
/// `task_struct.comm`.
#[unsafe(no_mangle)]
static TASK_COMM: Global<u32> = Global::new(0);
/// `task_struct.cred`.
#[unsafe(no_mangle)]
static TASK_CRED: Global<u32> = Global::new(0);
/// `cred.uid`.
#[unsafe(no_mangle)]
static CRED_UID: Global<u32> = Global::new(0);

/// The calling task. Null where the programs do not look.
#[derive(Clone, Copy)]
pub(crate) struct Task(*const c_void);

impl Task {
    #[inline(always)]
    pub(crate) fn current() -> Self {
        if !looks() {
            return Self(null());
        }
        // SAFETY: a helper without preconditions; the agent has seen that the kernel has it.
        Self(unsafe { bpf_get_current_task_btf() }.cast_const().cast())
    }

    /// Its thread group id: what people call its pid.
    #[inline(always)]
    pub(crate) fn pid(self) -> u32 {
        if !looks() {
            return (bpf_get_current_pid_tgid() >> 32) as u32;
        }
        // SAFETY: the verifier permits this read only if there is such a field.
        unsafe { field(self.0, TASK_TGID.load()) }
    }

    /// Its user, in the initial user namespace.
    #[inline(always)]
    fn uid(self) -> u32 {
        if !looks() {
            return bpf_get_current_uid_gid() as u32;
        }
        // SAFETY: as above; a task that runs has credentials, which it alone exchanges.
        unsafe {
            let credentials: *const c_void = field(self.0, TASK_CRED.load());
            if credentials.is_null() { u32::MAX } else { field(credentials, CRED_UID.load()) }
        }
    }

    /// Writes it down.
    #[inline(always)]
    pub(crate) fn describe(self, record: &mut VerdictRecord) {
        self.identify(record);
        // SAFETY: the helper is open to socket address and LSM programs from Linux 5.10 on. It is given the field to fill and
        // its size; should it fail, it leaves zeros. The reads are as above.
        unsafe {
            if looks() {
                let name = TASK_COMM.load();
                record.command = context::bytes_of([field(self.0, name), field(self.0, name + 8)]);
            } else {
                bpf_get_current_comm(record.command.as_mut_ptr().cast(), size_of_val(&record.command) as u32);
            }
        }
    }

    /// The same without its name, which sk_msg programs cannot ask for everywhere: Linux 6.1 refuses it.
    #[inline(always)]
    pub(crate) fn identify(self, record: &mut VerdictRecord) {
        record.uid = self.uid();
        record.pid = self.pid();
    }
}

/// Known before the programs are loaded: the verifier does not even look at the other way.
#[inline(always)]
fn looks() -> bool {
    TASK_TGID.load() != 0
}
