//! The programs, one file a hook: read, look up, decide, record, return.

mod connect4;
mod connect6;
mod egress;
mod sendmsg4;
mod sendmsg6;
mod sock_create;
mod sock_ops;
mod sock_release;

use agent_ebpf::abi::{
    AddressKey, Admission, CLASS_BITS, ConnectionEntry, GrantKey, GrantRef, GrantSlot, Hook, VerdictRecord,
    port_index,
};
use agent_ebpf::verdict::{Caller, Creator, Facts, Reason, Slot, Verdict, decide};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::error;

use crate::context::{self, Destination};
use crate::subjects::caller;
use crate::{maps, record};

/// What a program returns to let a call or packet go on.
const GO_ON: i32 = 1;
/// What it returns to have the caller get EPERM, or the packet dropped.
const REFUSE: i32 = 0;

/// Judges one connection, or one unconnected datagram, of the calling task.
#[inline(always)]
fn judge(ctx: &SockAddrContext, hook: Hook, destination: &Destination) -> i32 {
    // Most traffic ends here, after one array look-up.
    let Some(resource) = protecting(destination) else { return GO_ON };

    let cgroup_id = context::cgroup_id();
    let caller = caller(cgroup_id);
    let subject = match caller {
        Caller::Subject(subject) => subject,
        Caller::Unknown | Caller::TooDeep => 0,
    };
    let grant = if subject == 0 { None } else { grant(GrantKey { subject, resource }) };
    let slot = grant.and_then(|grant| slot(grant.slot));
    let known = context::admission(context::socket(ctx));
    let made = known.as_deref().copied().unwrap_or_default();
    let creator = match Creator::of(&made, cgroup_id, subject) {
        // The kernel binds the sockets of later MPTCP subflows before it connects them, in whichever task's name; the
        // connection that they are to join may have ended.
        Creator::Unknown if context::is_bound(ctx) => Creator::Other,
        creator => creator,
    };
    let now_boot_ns = context::now_boot_ns();
    let facts =
        Facts { resource: Some(resource), caller, creator, grant: grant.as_ref(), slot: slot.as_ref() };
    let mut reason = decide(&facts, now_boot_ns);
    if reason == Reason::LookupFailed {
        error!(ctx, "a grant's slot could not be read");
    }
    if let (Verdict::Allow, Some(grant)) = (reason.verdict(), grant) {
        reason = admit(ctx, known, hook, destination, GrantKey { subject, resource }, grant, now_boot_ns);
    }

    record::emit(reason.verdict(), |record| {
        record.boot_ns = now_boot_ns;
        record.address = destination.address;
        record.port = destination.port;
        record.protocol = destination.protocol;
        record.resource = resource;
        record.subject = subject;
        record.creator_cgroup_id = made.creator_cgroup_id;
        record.cgroup_id = cgroup_id;
        if let Some(grant) = grant {
            record.epoch = grant.epoch;
            write_name(grant.slot, record);
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

/// Binds the socket to the grant and epoch that let it through, and remembers a connection. What cannot be remembered is not
/// let through: nobody could end it. `known` is what was known of the socket before.
#[inline(always)]
fn admit(
    ctx: &SockAddrContext,
    known: Option<&mut Admission>,
    hook: Hook,
    destination: &Destination,
    pair: GrantKey,
    grant: GrantRef,
    now_boot_ns: u64,
) -> Reason {
    let known = known.or_else(|| context::admission_or_new(context::socket(ctx)));
    let Some(admission) = known else { return Reason::LookupFailed };
    bind(admission, pair, grant);
    note_admitted(grant.slot, now_boot_ns);
    match hook {
        Hook::Connect4 | Hook::Connect6 => {}
        // Judged anew with each datagram, and never ended.
        Hook::Sendmsg4 | Hook::Sendmsg6 | Hook::Egress | Hook::SocketCreate | Hook::FileReceive => {
            return Reason::Granted;
        }
    }
    let connection = ConnectionEntry {
        epoch: grant.epoch,
        admitted_boot_ns: now_boot_ns,
        netns_cookie: context::netns_cookie(ctx),
        address: destination.address,
        slot: grant.slot,
        resource: pair.resource,
        subject: pair.subject,
        pid: context::pid(),
        port: destination.port,
        protocol: destination.protocol,
        reserved: [0; 5],
    };
    match maps::CONNECTIONS.insert(context::socket_cookie(ctx), connection, 0) {
        Ok(()) => Reason::Granted,
        Err(_) => {
            admission.resource = 0;
            Reason::ConnectionsFull
        }
    }
}

/// Writes an admission. Its resource last: while that is 0 the rest says nothing.
#[inline(always)]
fn bind(admission: &mut Admission, pair: GrantKey, grant: GrantRef) {
    admission.resource = 0;
    admission.flags &= !Admission::TOLD;
    admission.subject = pair.subject;
    admission.slot = grant.slot;
    admission.epoch = grant.epoch;
    admission.resource = pair.resource;
}

/// The number of the resource that the destination belongs to.
#[inline(always)]
fn protecting(destination: &Destination) -> Option<u32> {
    let class = class(destination.protocol, destination.port)?;
    let key = AddressKey { class, address: destination.address };
    maps::RESOURCES.get(Key::new(CLASS_BITS + 128, key)).map(|entry| entry.number)
}

/// The class of a port. None: nobody protects it.
#[inline(always)]
fn class(protocol: u8, port: u16) -> Option<u32> {
    match maps::PORT_CLASSES.get(port_index(protocol, port)?) {
        None | Some(0) => None,
        Some(class) => Some(*class),
    }
}

#[inline(always)]
fn grant(key: GrantKey) -> Option<GrantRef> {
    // SAFETY: the kernel replaces a whole entry when the agent writes it, and frees the old one only after this program's
    // run; what is copied here is one or the other.
    unsafe { maps::GRANTS.get(key).copied() }
}

/// The deadline first, the epoch after it: see [`Slot`].
#[inline(always)]
fn slot(index: u32) -> Option<Slot> {
    let deadline = maps::DEADLINES.get_ptr(index)?;
    let epoch = maps::EPOCHS.get_ptr(index)?;
    // SAFETY: the pointers are to aligned 8-byte elements of array maps, valid for the program's run. Volatile, so that the
    // two are read once each, and in this order.
    unsafe { Some(Slot { deadline_boot_ns: deadline.read_volatile(), epoch: epoch.read_volatile() }) }
}

/// Writes down what the slot is called now. Nothing: it has no name.
#[inline(always)]
fn write_name(index: u32, record: &mut VerdictRecord) {
    if let Some(GrantSlot { grant }) = maps::SLOTS.get(index) {
        record.grant = *grant;
    }
}

/// Several CPUs may write at once: any of their times is right.
#[inline(always)]
fn note_admitted(slot: u32, now_boot_ns: u64) {
    if let Some(last) = maps::LAST_ADMITTED.get_ptr_mut(slot) {
        // SAFETY: the pointer is to an aligned 8-byte element of an array map, valid for the program's run.
        unsafe { last.write_volatile(now_boot_ns) };
    }
}
