//! The programs, one file a hook: read, look up, decide, record, return.

mod connect4;
mod connect6;
mod sendmsg4;
mod sendmsg6;

use agent_ebpf::abi::{AddressKey, CLASS_BITS, GrantKey, GrantRef, GrantSlot, Hook, port_index};
use agent_ebpf::verdict::{Caller, Facts, Reason, Verdict, decide};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::error;

use crate::context::{self, Destination};
use crate::{maps, record};

/// What a socket address program returns to let the call go on.
const GO_ON: i32 = 1;
/// What it returns to have the caller get EPERM.
const REFUSE: i32 = 0;

/// Judges one connection or datagram of the calling task.
#[inline(always)]
fn judge(ctx: &SockAddrContext, hook: Hook, destination: &Destination) -> i32 {
    // Most traffic ends here, after one array look-up.
    let Some(resource) = protecting(destination) else { return GO_ON };

    let caller = caller();
    let grant = match caller {
        Caller::Subject(subject) => grant(GrantKey { subject, resource }),
        Caller::Unknown | Caller::TooDeep => None,
    };
    // The slot before its epoch: see `Facts`.
    let slot = grant.and_then(|grant| slot(grant.slot));
    let epoch = grant.and_then(|grant| epoch(grant.slot));
    let now_boot_ns = context::now_boot_ns();
    let facts = Facts { resource: Some(resource), caller, grant: grant.as_ref(), slot: slot.as_ref(), epoch };
    let reason = decide(&facts, now_boot_ns);
    if reason == Reason::LookupFailed {
        error!(ctx, "a grant's slot could not be read");
    }
    record::emit(reason.verdict(), |record| {
        record.boot_ns = now_boot_ns;
        record.address = destination.address;
        record.port = destination.port;
        record.protocol = destination.protocol;
        record.resource = resource;
        if let Caller::Subject(subject) = caller {
            record.subject = subject;
        }
        if let Some(grant) = grant {
            record.epoch = grant.epoch;
        }
        if let Some(slot) = slot {
            record.grant = slot.grant;
        }
        record.hook = hook as u8;
        record.verdict = reason.verdict() as u8;
        record.reason = reason as u8;
        context::describe_caller(ctx, record);
    });
    match reason.verdict() {
        Verdict::Allow => GO_ON,
        Verdict::Deny => REFUSE,
    }
}

/// The number of the resource that the destination belongs to.
#[inline(always)]
fn protecting(destination: &Destination) -> Option<u32> {
    let index = port_index(destination.protocol, destination.port)?;
    let class = match maps::PORT_CLASSES.get(index) {
        None | Some(0) => return None,
        Some(class) => *class,
    };
    let key = AddressKey { class, address: destination.address };
    maps::RESOURCES.get(Key::new(CLASS_BITS + 128, key)).map(|entry| entry.number)
}

/// Whose the calling task is: the nearest cgroup at or above its own that is bound.
#[inline(always)]
fn caller() -> Caller {
    // 0 is no subject's number. A plain number keeps the verifier's work small: it walks every way through the loop.
    let mut found = 0;
    let searched = context::for_each_cgroup(|id| {
        // SAFETY: an entry that the agent replaces meanwhile may be read old or new; its one number is read at once.
        if let Some(entry) = unsafe { maps::SUBJECTS.get(id) } {
            found = entry.number;
        }
    });
    match (searched, found) {
        (Err(context::CgroupTooDeep), _) => Caller::TooDeep,
        (Ok(()), 0) => Caller::Unknown,
        (Ok(()), subject) => Caller::Subject(subject),
    }
}

#[inline(always)]
fn grant(key: GrantKey) -> Option<GrantRef> {
    // SAFETY: the kernel replaces a whole entry when the agent writes it, and frees the old one only after this program's
    // run; what is copied here is one or the other.
    unsafe { maps::GRANTS.get(key).copied() }
}

#[inline(always)]
fn slot(index: u32) -> Option<GrantSlot> {
    maps::SLOTS.get(index).copied()
}

#[inline(always)]
fn epoch(index: u32) -> Option<u64> {
    // SAFETY: the pointer is to an aligned 8-byte element of an array map, valid for the program's run. Volatile, because
    // the read must not move before that of the slot.
    maps::EPOCHS.get_ptr(index).map(|epoch| unsafe { epoch.read_volatile() })
}
