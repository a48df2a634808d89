//! Every IP packet of a socket on its way out, after address translation and before fragmentation: its socket must have been
//! let through to where the packet really goes, by a grant that still counts. The last word, which no rewriting on the way
//! can go around.

use agent_ebpf::abi::{Admission, GrantKey, Hook, protocol};
use agent_ebpf::verdict::{Reason, Verdict, WireFacts, decide_wire};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::{
    bpf_get_smp_processor_id, bpf_get_socket_cookie, bpf_sk_fullsock, bpf_skb_cgroup_id,
};
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;

use super::{GO_ON, REFUSE, bind, grant, note_admitted, protecting, slot, write_name};
use crate::context::{self, Destination};
use crate::packet::{self, Packet, Segment};
use crate::{maps, record};

const SOCK_RAW: u32 = 3;

#[cgroup_skb]
pub(crate) fn egress(ctx: SkBuffContext) -> i32 {
    match packet::read(&ctx) {
        Packet::WithoutPorts => GO_ON,
        Packet::Unreadable => {
            let nowhere = Destination { address: [0; 16], port: 0, protocol: 0 };
            tell(&ctx, &nowhere, 0, None, Reason::Unreadable, context::now_boot_ns());
            REFUSE
        }
        Packet::ToPort(segment) => judge(&ctx, &segment),
    }
}

#[inline(always)]
fn judge(ctx: &SkBuffContext, segment: &Segment) -> i32 {
    // Most packets end here, after one array look-up. An answer to a connection request is nobody's access.
    let Some(resource) = protecting(&segment.destination) else { return GO_ON };
    if segment.is_answer {
        return GO_ON;
    }
    let now_boot_ns = context::now_boot_ns();
    let sk = full_socket(ctx);
    let known = if sk.is_null() { None } else { context::admission(sk) };
    let mut found = known.as_deref().copied().unwrap_or_default();
    if found.resource == 0 && found.flags & Admission::PASSIVE == 0 && !sk.is_null() {
        match known {
            Some(&mut ref mut admission) if passes_no_other_hook(sk, segment.destination.protocol) => {
                admit_by_creator(admission, resource, now_boot_ns);
                found = *admission;
            }
            _ => inherit(ctx, &mut found),
        }
    }

    // An unconnected socket may be used for several resources at once: each datagram was judged on its way in, and the
    // socket remembers the last one.
    if found.resource != resource
        && segment.destination.protocol == protocol::UDP
        && found.resource != 0
        && let Some(grant) = grant(GrantKey { subject: found.subject, resource })
    {
        (found.resource, found.slot, found.epoch) = (resource, grant.slot, grant.epoch);
    }
    let slot = slot(found.slot);
    let facts = WireFacts { resource: Some(resource), admission: Some(&found), slot: slot.as_ref() };
    let reason = decide_wire(&facts, now_boot_ns);
    if reason.verdict() == Verdict::Allow {
        note_admitted(found.slot, now_boot_ns);
        return GO_ON;
    }
    // Both ends of a connection that was let through once may learn that it is over.
    if segment.is_farewell && found.resource == resource {
        return GO_ON;
    }
    // Once for each socket that was let through once or could have been: it goes on trying.
    let notes = if found.resource == 0 { known } else { known.or_else(|| context::admission_or_new(sk)) };
    let told = notes.is_some_and(|notes| {
        let told = notes.flags & Admission::TOLD != 0;
        notes.flags |= Admission::TOLD;
        told
    });
    if !told {
        tell(ctx, &segment.destination, resource, Some(&found), reason, now_boot_ns);
    }
    REFUSE
}

/// What a gate of another ABI version had let a socket through to, as the agent wrote it down. Looked up for each packet and
/// not written into the socket's storage: whoever connects it anew meanwhile may be writing there.
#[inline(always)]
fn inherit(ctx: &SkBuffContext, found: &mut Admission) {
    // SAFETY: the helper takes the context that the kernel handed us.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: the entry lives for the program's run; each of its numbers is read at once. Should the agent replace it
    // meanwhile, either slot and epoch belong together, or they are no live ones.
    if let Some(entry) = unsafe { maps::CONNECTIONS.get(cookie) } {
        found.resource = entry.resource;
        found.subject = entry.subject;
        found.slot = entry.slot;
        found.epoch = entry.epoch;
    }
}

/// The packet's socket, if it is a whole one: neither a request nor in TIME_WAIT. Null otherwise.
#[inline(always)]
fn full_socket(ctx: &SkBuffContext) -> *mut bpf_sock {
    // SAFETY: the kernel hands the program a valid `__sk_buff`; `sk` is the one pointer of the union that it sets, and the
    // helper takes what is not null.
    unsafe {
        let sk = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if sk.is_null() { sk } else { bpf_sk_fullsock(sk) }
    }
}

/// Whether neither `connect` nor `sendmsg` programs see such a socket.
#[inline(always)]
fn passes_no_other_hook(sk: *mut bpf_sock, protocol: u8) -> bool {
    // SAFETY: `sk` is a full socket, of which these fields may be read.
    let is_raw = unsafe { (*sk).type_ } == SOCK_RAW;
    is_raw || matches!(protocol, protocol::DCCP | protocol::SCTP | protocol::UDPLITE)
}

/// Lets a socket through on behalf of who made it, once: later packets are bound to what was granted then.
#[inline(always)]
fn admit_by_creator(admission: &mut Admission, resource: u32, now_boot_ns: u64) {
    let pair = GrantKey { subject: admission.creator_subject, resource };
    if pair.subject == 0 {
        return;
    }
    if let Some(grant) = grant(pair)
        && let Some(slot) = slot(grant.slot)
        && slot.epoch == grant.epoch
        && now_boot_ns < slot.deadline_boot_ns
    {
        bind(admission, pair, grant);
    }
}

#[inline(always)]
fn tell(
    ctx: &SkBuffContext,
    destination: &Destination,
    resource: u32,
    admission: Option<&Admission>,
    reason: Reason,
    now_boot_ns: u64,
) {
    record::emit(Verdict::Deny, |record| {
        record.boot_ns = now_boot_ns;
        record.address = destination.address;
        record.port = destination.port;
        record.protocol = destination.protocol;
        record.resource = resource;
        if let Some(admission) = admission {
            record.creator_cgroup_id = admission.creator_cgroup_id;
            if admission.resource == resource {
                record.subject = admission.subject;
                record.epoch = admission.epoch;
                write_name(admission.slot, record);
            }
        }
        record.hook = Hook::Egress as u8;
        record.verdict = Verdict::Deny as u8;
        record.reason = reason as u8;
        // SAFETY: helpers that take the context that the kernel handed us, or nothing.
        unsafe {
            record.cgroup_id = bpf_skb_cgroup_id(ctx.skb.skb);
            record.socket_cookie = bpf_get_socket_cookie(ctx.as_ptr());
            record.cpu = bpf_get_smp_processor_id();
        }
    });
}
