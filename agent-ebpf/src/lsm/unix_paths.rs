//! Unix sockets: by which path one is known, and what is decided about whoever connects or sends to it.
//!
//! Owns: every read of what the kernel keeps of unix sockets and directory entries. Must not know: which hook asks.
//!
//! Where the fields lie, the agent finds in the kernel's own description of its types, and writes it down before the programs
//! are loaded; the verifier compares each read with the same description. Nothing is read through helpers, which a kernel that
//! is locked down refuses.

use core::ffi::c_void;

use agent_ebpf::abi::{self, Admission, GrantKey, GrantRef, Hook, ResourceEntry, VerdictRecord};
use agent_ebpf::unix::{KeyBuilder, NAME_MAX_BYTES, NAMES_MAX};
use agent_ebpf::verdict::{Caller, Facts, Reason, Verdict, decide, without_record};
use aya_ebpf::Global;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_skc_to_unix_sock};

use crate::context::{self, field};
use crate::grants::{Found, grant, note_admitted, slot, write_name};
use crate::resources::guarding;
use crate::subjects::caller;
use crate::task::Task;
use crate::{GO_ON, REFUSE, record};

// In bytes, from the beginning of the structure.

/// `unix_sock.path.dentry`.
#[unsafe(no_mangle)]
static UNIX_SOCK_DENTRY: Global<u32> = Global::new(0);
/// `unix_sock.peer`.
#[unsafe(no_mangle)]
static UNIX_SOCK_PEER: Global<u32> = Global::new(0);
/// `dentry.d_parent`.
#[unsafe(no_mangle)]
static DENTRY_PARENT: Global<u32> = Global::new(0);
/// `dentry.d_name.len`.
#[unsafe(no_mangle)]
static DENTRY_NAME_LENGTH: Global<u32> = Global::new(0);
/// `dentry.d_iname`, or `d_shortname`, where short names are kept.
#[unsafe(no_mangle)]
static DENTRY_NAME: Global<u32> = Global::new(0);
/// `dentry.d_sb`.
#[unsafe(no_mangle)]
static DENTRY_SUPER_BLOCK: Global<u32> = Global::new(0);
/// `super_block.s_dev`.
#[unsafe(no_mangle)]
static SUPER_BLOCK_DEVICE: Global<u32> = Global::new(0);

/// A unix socket of the kernel's.
#[derive(Clone, Copy)]
pub(crate) struct UnixSocket(*const c_void);

impl UnixSocket {
    /// None: it is of another family.
    ///
    /// # Safety
    /// `sk` is a `struct sock *` of the kernel's that lasts for this program's run.
    #[inline(always)]
    pub(crate) unsafe fn of(sk: *mut bpf_sock) -> Option<Self> {
        // SAFETY: the caller promises it.
        let socket = unsafe { bpf_skc_to_unix_sock(sk.cast()) };
        (!socket.is_null()).then_some(Self(socket.cast()))
    }

    /// What it is connected to. The socket holds on to that as long as it is there itself, if it is of a kind that is connected
    /// once.
    #[inline(always)]
    pub(crate) fn peer(self) -> Option<*mut bpf_sock> {
        // SAFETY: the verifier permits this read only if there is a pointer there.
        let peer: *mut bpf_sock = unsafe { field(self.0, UNIX_SOCK_PEER.load()) };
        (!peer.is_null()).then_some(peer)
    }

    /// The key of the path that it has. None: it has none, or one that cannot be protected.
    ///
    /// The names are read while others may change them. Who renames a directory that leads to a protected socket can do worse.
    #[inline(always)]
    pub(crate) fn key(self) -> Option<u64> {
        // SAFETY: the verifier permits these reads only if there are such fields; where a pointer leads nowhere any more, the
        // kernel makes of the read a 0.
        unsafe {
            let mut dentry: *const c_void = field(self.0, UNIX_SOCK_DENTRY.load());
            if dentry.is_null() {
                return None;
            }
            let super_block: *const c_void = field(dentry, DENTRY_SUPER_BLOCK.load());
            let mut key = KeyBuilder::new(field(super_block, SUPER_BLOCK_DEVICE.load()));
            let mut names = 0;
            loop {
                let parent: *const c_void = field(dentry, DENTRY_PARENT.load());
                // The root of the file system is its own parent.
                if parent == dentry {
                    return if names > 0 { Some(key.build()) } else { None };
                }
                if names == NAMES_MAX {
                    return None;
                }
                let length: u32 = field(dentry, DENTRY_NAME_LENGTH.load());
                if length > NAME_MAX_BYTES as u32 {
                    return None;
                }
                let mut index = 0;
                // The kernel permits a read of one byte at a time.
                while index < NAME_MAX_BYTES as u32 && index < length {
                    key = key.byte(field(dentry, DENTRY_NAME.load() + index));
                    index += 1;
                }
                key = key.end_of_name();
                dentry = parent;
                names += 1;
            }
        }
    }

    /// The resource that it belongs to, and the key of its path.
    #[inline(always)]
    pub(crate) fn guarded(self) -> Option<(u64, ResourceEntry)> {
        let key = self.key()?;
        Some((key, guarding(key)?))
    }
}

/// Somebody who connects or sends to a unix socket that is protected.
pub(crate) struct Attempt {
    pub(crate) hook: Hook,
    pub(crate) key: u64,
    pub(crate) resource: ResourceEntry,
    /// Theirs.
    pub(crate) sk: *mut bpf_sock,
    /// What the server will accept. None: there is no connection.
    pub(crate) accepted: Option<*mut bpf_sock>,
}

impl Attempt {
    /// Judges it, for the calling task.
    #[inline(always)]
    pub(crate) fn judge(&self) -> i32 {
        if self.resource.number == abi::UNIX_PROBE {
            return self.answer_probe();
        }
        let cgroup_id = context::cgroup_id();
        let caller = caller(cgroup_id);
        let subject = match caller {
            Caller::Subject(subject) => subject,
            Caller::Unknown | Caller::TooDeep => 0,
        };
        let key = GrantKey { subject, resource: self.resource.number };
        let grant = Found::from(if subject == 0 { None } else { grant(key) });
        let slot = Found::from(grant.get().and_then(|grant| slot(grant.slot)));
        let now_boot_ns = context::now_boot_ns();
        let facts =
            Facts { resource: Some(&self.resource), caller, grant: grant.as_ref(), slot: slot.as_ref() };
        let mut reason = decide(&facts, now_boot_ns);
        let describe = |reason: Reason, record: &mut VerdictRecord| {
            record.boot_ns = now_boot_ns;
            record.cgroup_id = cgroup_id;
            record.subject = subject;
            if let Some(grant) = grant.get() {
                record.epoch = grant.epoch;
                write_name(grant.slot, &mut record.grant);
            }
            self.describe(reason, record);
        };
        if let (Reason::Granted, Some(grant)) = (reason, grant.get()) {
            let admission = Bound { subject, grant };
            // Room for the record first: who may not pass without one has not passed before there is.
            reason = match record::reserve() {
                Some(reserved) => match self.admit(admission, now_boot_ns) {
                    Reason::Granted => {
                        reserved.keep(|record| describe(Reason::Granted, record));
                        return GO_ON;
                    }
                    other => {
                        reserved.give_back();
                        other
                    }
                },
                None => match without_record(&self.resource) {
                    Reason::Granted => match self.admit(admission, now_boot_ns) {
                        Reason::Granted => {
                            record::lose_allowed();
                            return GO_ON;
                        }
                        other => other,
                    },
                    other => other,
                },
            };
        }
        let verdict = reason.verdict(Some(&self.resource));
        if verdict == Verdict::WouldDeny {
            self.observe();
        }
        record::emit_denied(|record| describe(reason, record));
        if verdict.lets_through() { GO_ON } else { REFUSE }
    }

    /// The agent asks whether this program runs: it is refused; or, to see the one that judges writes, let through as somebody
    /// who is only observed.
    #[inline(always)]
    fn answer_probe(&self) -> i32 {
        if !self.resource.has(ResourceEntry::OBSERVE) {
            return REFUSE;
        }
        self.observe();
        GO_ON
    }

    /// Binds both ends of a connection to the grant and epoch that let it through: each of their writes is judged by that. What
    /// cannot be bound is not let through.
    #[inline(always)]
    fn admit(&self, bound: Bound, now_boot_ns: u64) -> Reason {
        if let Some(accepted) = self.accepted {
            let ours = self.bind(self.sk, 0, bound);
            let theirs = self.bind(accepted, Admission::ACCEPTED, bound);
            if !ours || !theirs {
                return Reason::LookupFailed;
            }
        }
        note_admitted(bound.grant.slot, now_boot_ns);
        Reason::Granted
    }

    /// What would not have been let through is remembered, so that it ends when its resource is not only observed any more.
    #[inline(always)]
    fn observe(&self) {
        if let Some(accepted) = self.accepted {
            let nothing = Bound { subject: 0, grant: GrantRef { slot: 0, reserved: 0, epoch: 0 } };
            self.bind(self.sk, Admission::OBSERVED, nothing);
            self.bind(accepted, Admission::OBSERVED | Admission::ACCEPTED, nothing);
        }
    }

    /// Returns whether it is done.
    #[inline(always)]
    fn bind(&self, sk: *mut bpf_sock, flags: u32, bound: Bound) -> bool {
        let Some(admission) = context::admission_or_new(sk) else { return false };
        // The resource last: while that is 0 the rest says nothing.
        admission.resource = 0;
        admission.flags = Admission::UNIX | flags;
        admission.bytes = self.key;
        admission.subject = bound.subject;
        admission.slot = bound.grant.slot;
        admission.epoch = bound.grant.epoch;
        admission.resource = if flags & Admission::OBSERVED == 0 { self.resource.number } else { 0 };
        true
    }

    #[inline(always)]
    fn describe(&self, reason: Reason, record: &mut VerdictRecord) {
        record.lead_to_unix(self.key);
        record.resource = self.resource.number;
        record.socket_cookie = cookie(self.sk);
        record.hook = self.hook as u8;
        record.verdict = reason.verdict(Some(&self.resource)) as u8;
        record.reason = reason as u8;
        Task::current().describe(record);
    }
}

/// For whom, and by what.
#[derive(Clone, Copy)]
struct Bound {
    subject: u32,
    grant: GrantRef,
}

/// The cookie of a socket of the kernel's.
#[inline(always)]
pub(crate) fn cookie(sk: *mut bpf_sock) -> u64 {
    // SAFETY: the helper takes a socket of the kernel's.
    unsafe { bpf_get_socket_cookie(sk.cast()) }
}
