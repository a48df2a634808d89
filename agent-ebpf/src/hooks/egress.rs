//! Every IP packet of a socket on its way out, after address translation and before fragmentation: its socket must have been
//! let through to where the packet really goes, by a grant that still counts. The last word, which no rewriting on the way
//! can go around.

use agent_ebpf::abi::{
    Admission, ConnectionEntry, GrantKey, Hook, NEVER, ResourceEntry, VerdictRecord, protocol,
};
use agent_ebpf::verdict::{Caller, Creator, Reason, Verdict, WireFacts, decide_wire, without_record};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_skb_cgroup_id, bpf_tcp_sock};
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;

use super::{GO_ON, REFUSE, bind};
use crate::context::{self, Destination};
use crate::grants::{Found, connection, grant, inherit, note_active, note_admitted, slot, write_name};
use crate::packet::{self, Opening, Packet, Segment, opening};
use crate::record;
use crate::resources::{class, resource};
use crate::subjects::of_socket;

const SOCK_RAW: u32 = 3;

#[cgroup_skb]
pub(crate) fn egress(ctx: SkBuffContext) -> i32 {
    match packet::read(&ctx) {
        Packet::WithoutPorts => GO_ON,
        Packet::Unreadable => {
            let nowhere = Destination { address: [0; 16], port: 0, protocol: 0 };
            let packet =
                Judged { destination: &nowhere, resource: None, now_boot_ns: context::now_boot_ns() };
            record::emit_denied(|record| packet.describe(&ctx, None, Reason::Unreadable, record));
            REFUSE
        }
        Packet::ToPort(segment) => judge(&ctx, &segment),
    }
}

#[inline(always)]
fn judge(ctx: &SkBuffContext, segment: &Segment) -> i32 {
    // Most packets end here, after one array look-up. An answer to a connection request is nobody's access.
    let Destination { address, port, protocol } = segment.destination;
    let Some(class) = class(protocol, port) else { return GO_ON };
    if segment.is_answer {
        return GO_ON;
    }
    // SAFETY: the helper takes the context that the kernel handed us.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let connection = if protocol == protocol::TCP { connection(cookie) } else { None };
    // Of nearly all packets of a connection it is known where they lead.
    let known =
        connection.as_ref().and_then(|connection| connection.leads_to(class, protocol, &address, port));
    let Some(resource) = known.or_else(|| resource(class, address)) else { return GO_ON };
    let now_boot_ns = context::now_boot_ns();
    let packet = Judged { destination: &segment.destination, resource: Some(&resource), now_boot_ns };
    if let Some(connection) = connection {
        return judge_connection(ctx, segment, &packet, cookie, connection);
    }
    let sk = packet::full_socket(ctx);
    if sk.is_null() {
        return packet.refuse_unknown(ctx);
    }
    // A connection that is closed with a reset is forgotten before that leaves. And what arrives for one that is over is
    // answered for it, so that the other side learns.
    if segment.is_farewell && is_closed_tcp(sk)
        || segment.carries_nothing() && answers_for_the_kernel(ctx, sk)
    {
        return GO_ON;
    }
    judge_socket(ctx, segment, &packet, sk, cookie)
}

/// Judges a packet of a TCP connection that is remembered.
#[inline(always)]
fn judge_connection(
    ctx: &SkBuffContext,
    segment: &Segment,
    packet: &Judged<'_>,
    cookie: u64,
    connection: &mut ConnectionEntry,
) -> i32 {
    let found = Admission::of(connection);
    let slot = Found::from(slot(found.slot));
    let mut creator = Creator::Same;
    if !connection.is_seen(cookie) {
        creator = creator_of(ctx, segment, found.subject);
        if creator == Creator::Same {
            connection.see(cookie);
        }
    }
    let facts =
        WireFacts { resource: packet.resource, admission: Some(&found), slot: slot.as_ref(), creator };
    let reason = decide_wire(&facts, packet.now_boot_ns);
    if reason == Reason::Granted
        && let Some(slot) = slot.get()
    {
        note_admitted(found.slot, packet.now_boot_ns);
        if slot.idle_limit_ns != 0 && has_activity(ctx, &mut connection.bytes, segment) {
            note_active(found.slot, packet.now_boot_ns);
        }
        return GO_ON;
    }
    // It cannot become anything: the agent closes it, so that who waits for it hears of it.
    if reason == Reason::CreatorDiffers && reason.verdict(packet.resource) == Verdict::Deny {
        connection.epoch = NEVER;
    }
    let was_told = connection.has(ConnectionEntry::OBSERVED);
    packet.refuse(ctx, segment, &found, reason, was_told)
}

/// Who made the socket of a connection that was let through for this subject.
#[inline(always)]
fn creator_of(ctx: &SkBuffContext, segment: &Segment, subject: u32) -> Creator {
    let creator = Creator::of(of_socket(ctx), subject);
    if creator == Creator::Other {
        return creator;
    }
    match opening(ctx, segment) {
        Opening::Plain => creator,
        // A further subflow of MPTCP is the kernel's, for a connection that may have ended.
        Opening::Join => Creator::Other,
        // The kernel writes on it: that is not to be judged.
        Opening::Mptcp => {
            if let Some(admission) = storage(ctx) {
                admission.flags |= Admission::SUBFLOW;
            }
            creator
        }
    }
}

/// Judges a packet of any other socket: what is known of it stands in its storage.
#[inline(always)]
fn judge_socket(
    ctx: &SkBuffContext,
    segment: &Segment,
    packet: &Judged<'_>,
    sk: *mut bpf_sock,
    cookie: u64,
) -> i32 {
    // What is not known of a socket yet is made, so that it is told of once.
    let Some(admission) = context::admission_or_new(sk) else { return packet.refuse_unknown(ctx) };
    let mut without_room = false;
    if let Some(resource) = packet.resource {
        if admission.creator_subject == 0
            && admission.flags & Admission::PASSIVE == 0
            && let Caller::Subject(subject) = of_socket(ctx)
        {
            admission.creator_subject = subject;
        }
        if admission.resource == 0 && passes_no_other_hook(sk, segment.destination.protocol) {
            without_room = !packet.admit_by_creator(ctx, admission, resource);
        }
    }

    let mut found = *admission;
    // Looked up for each packet and not written into the socket's storage: whoever connects it anew meanwhile may be writing
    // there.
    if found.resource == 0 && found.flags & Admission::PASSIVE == 0 && inherit(cookie, &mut found) {
        admission.flags |= Admission::INHERITED;
    }
    // An unconnected socket may be used for several resources at once: each datagram was judged on its way in, and the
    // socket remembers the last one.
    if let Some(resource) = packet.resource
        && found.resource != resource.number
        && segment.destination.protocol == protocol::UDP
        && found.resource != 0
        && let Some(grant) = grant(GrantKey { subject: found.subject, resource: resource.number })
    {
        (found.resource, found.slot, found.epoch) = (resource.number, grant.slot, grant.epoch);
    }
    let slot = Found::from(slot(found.slot));
    let creator = Creator::of(made_by(&found), found.subject);
    let facts =
        WireFacts { resource: packet.resource, admission: Some(&found), slot: slot.as_ref(), creator };
    let reason =
        if without_room { Reason::AuditUnavailable } else { decide_wire(&facts, packet.now_boot_ns) };
    // Nobody's access.
    if reason == Reason::NotProtected {
        return GO_ON;
    }
    if reason == Reason::Granted
        && let Some(slot) = slot.get()
    {
        note_admitted(found.slot, packet.now_boot_ns);
        admission.bytes += u64::from(segment.payload_bytes);
        if slot.idle_limit_ns != 0 && segment.payload_bytes > 0 {
            note_active(found.slot, packet.now_boot_ns);
        }
        return GO_ON;
    }
    packet.refuse(ctx, segment, &found, reason, false)
}

/// Whose the cgroup is that the socket was made in, as its storage has it.
#[inline(always)]
fn made_by(admission: &Admission) -> Caller {
    match admission.creator_subject {
        0 => Caller::Unknown,
        subject => Caller::Subject(subject),
    }
}

/// Whether there was activity, as an idle limit counts it: payload sent, or received since the last look. A bare
/// acknowledgement or a keepalive probe is none.
#[inline(always)]
fn has_activity(ctx: &SkBuffContext, bytes: &mut u64, segment: &Segment) -> bool {
    let Some(received) = bytes_received(packet::full_socket(ctx)) else { return segment.payload_bytes > 0 };
    let has_received = received != *bytes;
    *bytes = received;
    has_received || segment.payload_bytes > 0
}

/// What is known of the packet's socket, made if it was not there. None: it is no whole socket, or there is no memory.
#[inline(always)]
fn storage<'a>(ctx: &SkBuffContext) -> Option<&'a mut Admission> {
    let sk = packet::full_socket(ctx);
    if sk.is_null() { None } else { context::admission_or_new(sk) }
}

/// Bytes that a TCP connection has received. None: it is none, as a raw socket's, or not a whole socket.
#[inline(always)]
fn bytes_received(sk: *mut bpf_sock) -> Option<u64> {
    if sk.is_null() {
        return None;
    }
    // SAFETY: `sk` is a full socket; the helper gives null or a pointer of which this field may be read.
    unsafe {
        let tcp = bpf_tcp_sock(sk);
        if tcp.is_null() { None } else { Some((&raw const (*tcp).bytes_received).read_volatile()) }
    }
}

/// Whether this is a TCP socket without a connection: nothing but the reset of the last one can come from there.
#[inline(always)]
fn is_closed_tcp(sk: *mut bpf_sock) -> bool {
    const SOCK_STREAM: u32 = 1;
    const CLOSED: u32 = 7;
    // SAFETY: `sk` is a full socket, of which these fields may be read, each by itself; hence volatile.
    unsafe {
        (&raw const (*sk).type_).read_volatile() == SOCK_STREAM
            && (&raw const (*sk).protocol).read_volatile() == u32::from(protocol::TCP)
            && (&raw const (*sk).state).read_volatile() == CLOSED
    }
}

/// Whether this is a socket by which the kernel answers for connections that are over. It made them when it began, so they lie
/// in the root cgroup; those of other network namespaces lie where whoever made that lived, on Linux before 5.18 and for IPv6.
/// Nobody else's are like this, but for raw sockets of somebody in the root cgroup.
#[inline(always)]
fn answers_for_the_kernel(ctx: &SkBuffContext, sk: *mut bpf_sock) -> bool {
    const ROOT_CGROUP: u64 = 1;
    // SAFETY: as in `is_closed_tcp`.
    let is_raw_tcp = unsafe {
        (&raw const (*sk).type_).read_volatile() == SOCK_RAW
            && (&raw const (*sk).protocol).read_volatile() == u32::from(protocol::TCP)
    };
    is_raw_tcp && context::socket_cgroup_id(ctx) == ROOT_CGROUP
}

/// Whether neither `connect` nor `sendmsg` programs see such a socket.
#[inline(always)]
fn passes_no_other_hook(sk: *mut bpf_sock, protocol: u8) -> bool {
    // SAFETY: `sk` is a full socket, of which these fields may be read.
    let is_raw = unsafe { (*sk).type_ } == SOCK_RAW;
    is_raw || matches!(protocol, protocol::DCCP | protocol::SCTP | protocol::UDPLITE)
}

/// A packet to something protected.
struct Judged<'a> {
    destination: &'a Destination,
    /// None: it is not known.
    resource: Option<&'a ResourceEntry>,
    now_boot_ns: u64,
}

impl Judged<'_> {
    /// Of its socket nothing is known, nor can it be.
    #[inline(always)]
    fn refuse_unknown(&self, ctx: &SkBuffContext) -> i32 {
        let verdict = Reason::NotAdmitted.verdict(self.resource);
        record::emit_denied(|record| self.describe(ctx, None, Reason::NotAdmitted, record));
        if verdict.lets_through() { GO_ON } else { REFUSE }
    }

    /// What becomes of a packet that was not let through. `was_told`: there is a record already of what is only observed.
    #[inline(always)]
    fn refuse(
        &self,
        ctx: &SkBuffContext,
        segment: &Segment,
        found: &Admission,
        reason: Reason,
        was_told: bool,
    ) -> i32 {
        let verdict = reason.verdict(self.resource);
        // Both ends of a connection that was let through once may learn that it is over.
        if segment.is_farewell
            && reason != Reason::CreatorDiffers
            && self.resource.is_some_and(|resource| found.resource == resource.number)
        {
            return GO_ON;
        }
        let told = if verdict.lets_through() { Admission::OBSERVED } else { Admission::TOLD };
        // Once for each socket: it goes on trying.
        let is_first = match storage(ctx) {
            Some(admission) => {
                let is_first = admission.flags & told == 0;
                admission.flags |= told;
                is_first
            }
            None => true,
        };
        if is_first && !(was_told && verdict.lets_through()) {
            record::emit_denied(|record| self.describe(ctx, Some(found), reason, record));
        }
        if verdict.lets_through() { GO_ON } else { REFUSE }
    }

    /// Lets a socket through on behalf of who made it, once: later packets are bound to what was granted then. Returns whether
    /// there was room for a record where there must be one.
    #[inline(always)]
    fn admit_by_creator(
        &self,
        ctx: &SkBuffContext,
        admission: &mut Admission,
        resource: &ResourceEntry,
    ) -> bool {
        let pair = GrantKey { subject: admission.creator_subject, resource: resource.number };
        if pair.subject == 0 {
            return true;
        }
        let Some(grant) = grant(pair) else { return true };
        let Some(slot) = slot(grant.slot) else { return true };
        if slot.ended(grant.epoch, self.now_boot_ns).is_some() {
            return true;
        }
        match record::reserve() {
            Some(reserved) => {
                bind(admission, resource, pair.subject, grant);
                reserved.keep(|record| self.describe(ctx, Some(admission), Reason::Granted, record));
                true
            }
            None if without_record(resource) == Reason::Granted => {
                bind(admission, resource, pair.subject, grant);
                record::lose_allowed();
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    fn describe(
        &self,
        ctx: &SkBuffContext,
        admission: Option<&Admission>,
        reason: Reason,
        record: &mut VerdictRecord,
    ) {
        let number = self.resource.map_or(0, |resource| resource.number);
        record.boot_ns = self.now_boot_ns;
        record.address = self.destination.address;
        record.port = self.destination.port;
        record.protocol = self.destination.protocol;
        record.resource = number;
        if let Some(admission) = admission
            && admission.resource == number
        {
            record.subject = admission.subject;
            record.epoch = admission.epoch;
            write_name(admission.slot, &mut record.grant);
        }
        record.hook = Hook::Egress as u8;
        record.verdict = reason.verdict(self.resource) as u8;
        record.reason = reason as u8;
        // SAFETY: helpers that take the context that the kernel handed us.
        unsafe {
            record.cgroup_id = bpf_skb_cgroup_id(ctx.skb.skb);
            record.creator_cgroup_id = record.cgroup_id;
            record.socket_cookie = bpf_get_socket_cookie(ctx.as_ptr());
        }
    }
}
