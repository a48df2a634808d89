//! Every IP packet that a socket is handed, after all address translation on its way: where the resource that it goes to is
//! served for some peers only, it must come from one of them. Attached only while there is such a resource.
//!
//! This guards the side that owns a resource, against hosts whose processes no gate judges, and against what was translated
//! outside the reach of the gate that judged it.

use agent_ebpf::abi::{Admission, Hook, VerdictRecord, protocol};
use agent_ebpf::verdict::ingress::decide_arrival;
use agent_ebpf::verdict::{Reason, Verdict};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_skb_cgroup_id};
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;

use super::{GO_ON, REFUSE};
use crate::context::{self, Destination};
use crate::packet::{self, Ends, Packet, full_socket};
use crate::record;
use crate::resources::{class, protecting, serves};

/// The loopback device's number, in every network namespace.
const LOOPBACK: u32 = 1;

#[cgroup_skb]
pub(crate) fn ingress(ctx: SkBuffContext) -> i32 {
    match packet::read(&ctx) {
        Packet::ToPort(segment) => {
            let Destination { protocol, port, .. } = segment.destination;
            let kind = match (protocol, segment.is_request) {
                (protocol::TCP, true) => Kind::Request,
                (protocol::TCP, false) => Kind::Later,
                _ => Kind::Datagram,
            };
            judge(&ctx, protocol, port, kind)
        }
        // The kernel has understood what this program does not, and found the socket that it is for.
        Packet::Unreadable | Packet::WithoutPorts => match own_port(&ctx) {
            Some((protocol, port)) => judge(&ctx, protocol, port, Kind::Datagram),
            None => GO_ON,
        },
    }
}

/// What is told of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It requests a connection: told if it is held back. What goes on is told of the connection.
    Request,
    /// One of the many of a connection: told once for each connection, which may be older than the peers.
    Later,
    /// Always told.
    Datagram,
}

#[inline(always)]
fn judge(ctx: &SkBuffContext, protocol: u8, port: u16, kind: Kind) -> i32 {
    // Most packets end here, after one array look-up.
    if class(protocol, port).is_none() {
        return GO_ON;
    }
    let Some(Ends { from, to }) = packet::ends(ctx) else { return REFUSE };
    let destination = Destination { address: to, port, protocol };
    let Some(resource) = protecting(&destination) else { return GO_ON };
    let Some(reason) = decide_arrival(&resource, is_local(ctx), || serves(resource.number, from)) else {
        return GO_ON;
    };
    let verdict = reason.verdict(Some(&resource));
    let is_told = match kind {
        Kind::Request => !verdict.lets_through(),
        Kind::Later => is_first(ctx, verdict),
        Kind::Datagram => true,
    };
    if is_told {
        record::emit_denied(|record| {
            record.boot_ns = context::now_boot_ns();
            record.address = destination.address;
            record.port = destination.port;
            record.protocol = destination.protocol;
            record.resource = resource.number;
            record.verdict = verdict as u8;
            record.peer = from;
            describe(ctx, reason, record);
        });
    }
    if verdict.lets_through() { GO_ON } else { REFUSE }
}

/// Whether nothing was told yet of the packets of its connection. Of what has none the listening socket remembers, once for all;
/// what goes on there is the rest of a request.
#[inline(always)]
fn is_first(ctx: &SkBuffContext, verdict: Verdict) -> bool {
    const LISTEN: u32 = 10;
    let sk = full_socket(ctx);
    if sk.is_null() {
        return true;
    }
    // SAFETY: `sk` is a full socket, of which this field may be read.
    let state = unsafe { (&raw const (*sk).state).read_volatile() };
    if verdict.lets_through() && state == LISTEN {
        return false;
    }
    let told = if verdict.lets_through() { Admission::OBSERVED } else { Admission::TOLD };
    let Some(admission) = context::admission_or_new(sk) else { return true };
    let is_first = admission.flags & told == 0;
    admission.flags |= told;
    is_first
}

/// Whether it came by the loopback device, on which only those of the same network namespace send.
#[inline(always)]
fn is_local(ctx: &SkBuffContext) -> bool {
    // SAFETY: the kernel hands the program a valid `__sk_buff`.
    unsafe { (*ctx.skb.skb).ifindex == LOOPBACK }
}

/// What the socket is for that is handed the packet. None: there is no whole one.
#[inline(always)]
fn own_port(ctx: &SkBuffContext) -> Option<(u8, u16)> {
    let sk = full_socket(ctx);
    if sk.is_null() {
        return None;
    }
    // SAFETY: `sk` is a full socket, of which these fields may be read, each by itself; hence volatile.
    unsafe {
        let protocol = (&raw const (*sk).protocol).read_volatile();
        let port = (&raw const (*sk).src_port).read_volatile();
        Some((protocol as u8, port as u16))
    }
}

#[inline(always)]
fn describe(ctx: &SkBuffContext, reason: Reason, record: &mut VerdictRecord) {
    record.hook = Hook::Ingress as u8;
    record.reason = reason as u8;
    // SAFETY: helpers that take the context that the kernel handed us.
    unsafe {
        record.cgroup_id = bpf_skb_cgroup_id(ctx.skb.skb);
        record.socket_cookie = bpf_get_socket_cookie(ctx.as_ptr());
    }
}
