//! Somebody writes on a connection: it must be the subject that it was let through for. Whatever way a task has to a socket
//! that somebody else connected, it gets EACCES.

use agent_ebpf::abi::{Admission, Hook, ResourceEntry, protocol};
use agent_ebpf::verdict::{Caller, Reason, Verdict, decide_send};
use aya_ebpf::macros::sk_msg;
use aya_ebpf::programs::SkMsgContext;

use crate::context::{self, Destination};
use crate::grants::write_name;
use crate::record;
use crate::resources::protecting;
use crate::subjects::caller;
use crate::task::Task;

/// `SK_DROP`: the writer gets EACCES.
const REFUSE: u32 = 0;
/// `SK_PASS`.
const GO_ON: u32 = 1;

#[sk_msg]
pub(crate) fn send(ctx: SkMsgContext) -> u32 {
    // SAFETY: the kernel hands the program a valid `sk_msg_md`; `sk` is the one pointer of the union that it sets.
    let sk = unsafe { (*ctx.msg).__bindgen_anon_3.sk };
    if sk.is_null() {
        return REFUSE;
    }
    let Some(admission) = context::admission(sk) else { return GO_ON };
    // Egress holds back what was not let through.
    if admission.resource == 0 {
        return GO_ON;
    }
    let cgroup_id = context::cgroup_id();
    let sender = caller(cgroup_id);
    let reason = decide_send(sender, admission.subject);
    if reason == Reason::Granted {
        return GO_ON;
    }
    let destination = destination(&ctx);
    // The resource may be guarded in another way by now.
    let Some(resource) = protecting(&destination) else { return GO_ON };
    if !resource.has(ResourceEntry::SENDERS) {
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
    record::emit_denied(|record| {
        record.boot_ns = context::now_boot_ns();
        record.cgroup_id = cgroup_id;
        record.socket_cookie = admission.socket_cookie;
        record.epoch = admission.epoch;
        write_name(admission.slot, &mut record.grant);
        record.address = destination.address;
        record.port = destination.port;
        record.protocol = destination.protocol;
        record.resource = resource.number;
        if let Caller::Subject(subject) = sender {
            record.subject = subject;
        }
        record.hook = Hook::Send as u8;
        record.verdict = verdict as u8;
        record.reason = reason as u8;
        Task::current().identify(record);
    });
    if verdict.lets_through() { GO_ON } else { REFUSE }
}

/// Where the connection leads.
#[inline(always)]
fn destination(ctx: &SkMsgContext) -> Destination {
    const AF_INET: u32 = 2;
    let msg = ctx.msg;
    // All of them are read, whichever count: the compiler makes one read of an address that it chooses otherwise, which the
    // verifier refuses.
    //
    // SAFETY: as in `send`; these fields may be read, each by itself and as 4 bytes, hence volatile.
    let (family, address4, address6, port) = unsafe {
        let word = |index: usize| (&raw const (*msg).remote_ip6[index]).read_volatile();
        (
            (&raw const (*msg).family).read_volatile(),
            (&raw const (*msg).remote_ip4).read_volatile(),
            [word(0), word(1), word(2), word(3)],
            (&raw const (*msg).remote_port).read_volatile(),
        )
    };
    let address =
        if family == AF_INET { context::literally_mapped(address4) } else { context::bytes(address6) };
    Destination { address, port: u32::from_be(port) as u16, protocol: protocol::TCP }
}
