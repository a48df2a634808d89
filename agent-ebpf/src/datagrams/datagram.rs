//! Somebody sends by a UDP socket: it must be the subject that the socket was let through for. Whatever way a task has to a
//! socket that somebody else connected, it gets EPERM. Attached only while a resource with UDP ports has each write judged, and
//! beside `egress`, which judges the rest.
//!
//! UDP sends in whichever task's name it is called: there are no queues before this point, but what a socket holds back at its
//! user's wish (`UDP_CORK`), which leaves in the name of whoever ends that. What is asked of whoever runs when TCP sends would
//! say nothing.

use agent_ebpf::abi::{Admission, Hook, ResourceEntry, VerdictRecord, protocol};
use agent_ebpf::verdict::{Caller, Reason, Verdict, decide_send};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;

use crate::context;
use crate::grants::{inherit, write_name};
use crate::packet::{self, Packet, Segment};
use crate::record;
use crate::resources::protecting;
use crate::subjects::caller;
use crate::task::Task;

/// What a program returns to let a packet go on.
const GO_ON: i32 = 1;
/// What it returns to have the sender get EPERM.
const REFUSE: i32 = 0;

#[cgroup_skb]
pub(crate) fn datagram(ctx: SkBuffContext) -> i32 {
    match packet::read(&ctx) {
        Packet::ToPort(segment) if segment.destination.protocol == protocol::UDP => judge(&ctx, &segment),
        // Egress refuses what cannot be read.
        Packet::ToPort(_) | Packet::WithoutPorts | Packet::Unreadable => GO_ON,
    }
}

#[inline(always)]
fn judge(ctx: &SkBuffContext, segment: &Segment) -> i32 {
    let Some(resource) = protecting(&segment.destination) else { return GO_ON };
    if !resource.has(ResourceEntry::SENDERS) {
        return GO_ON;
    }
    // Egress holds back what was not let through.
    let sk = packet::full_socket(ctx);
    let known = if sk.is_null() { None } else { context::admission(sk) };
    let Some(admission) = known else { return GO_ON };
    // SAFETY: the helper takes the context that the kernel handed us.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let mut found = *admission;
    if found.resource == 0 && !inherit(cookie, &mut found) {
        return GO_ON;
    }
    let cgroup_id = context::cgroup_id();
    let sender = caller(cgroup_id);
    let reason = decide_send(sender, found.subject);
    if reason == Reason::Granted {
        return GO_ON;
    }
    let verdict = reason.verdict(Some(&resource));
    if verdict == Verdict::WouldDeny {
        // Once for each socket, as for its packets.
        if admission.flags & Admission::OBSERVED != 0 {
            return GO_ON;
        }
        admission.flags |= Admission::OBSERVED;
    }
    record::emit_denied(|record: &mut VerdictRecord| {
        record.boot_ns = context::now_boot_ns();
        record.cgroup_id = cgroup_id;
        record.socket_cookie = cookie;
        record.epoch = found.epoch;
        write_name(found.slot, &mut record.grant);
        record.address = segment.destination.address;
        record.port = segment.destination.port;
        record.protocol = segment.destination.protocol;
        record.resource = resource.number;
        if let Caller::Subject(subject) = sender {
            record.subject = subject;
        }
        record.hook = Hook::Datagram as u8;
        record.verdict = verdict as u8;
        record.reason = reason as u8;
        Task::current().identify(record);
    });
    if verdict.lets_through() { GO_ON } else { REFUSE }
}
