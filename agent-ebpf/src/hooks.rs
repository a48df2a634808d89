//! The programs, one file a hook: read, look up, decide, record, return.

mod connect4;
mod connect6;
mod egress;
mod ingress;
mod sendmsg4;
mod sendmsg6;
mod sock_create;
mod sock_ops;
mod sock_release;

use agent_ebpf::abi::{
    Admission, ClosedRecord, ConnectionEntry, GrantKey, GrantRef, Hook, ResourceEntry, VerdictRecord,
    protocol,
};
use agent_ebpf::verdict::{Caller, End, Facts, Reason, Verdict, decide, ended_by, without_record};
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::error;

use crate::context::{self, Destination};
use crate::grants::{Found, grant, note_admitted, slot, write_name};
use crate::resources::{class, resource};
use crate::subjects::caller;
use crate::task::Task;
use crate::{maps, record};

/// What a program returns to let a call or packet go on.
const GO_ON: i32 = 1;
/// What it returns to have the caller get EPERM, or the packet dropped.
const REFUSE: i32 = 0;

/// Judges one connection, or one unconnected datagram, of the calling task.
#[inline(always)]
fn judge(ctx: &SockAddrContext, hook: Hook, destination: &Destination) -> i32 {
    // Most traffic ends here, after one array look-up.
    let Some(class) = class(destination.protocol, destination.port) else { return GO_ON };
    let Some(resource) = resource(class, destination.address) else { return GO_ON };

    let cgroup_id = context::cgroup_id();
    let caller = caller(cgroup_id);
    let subject = match caller {
        Caller::Subject(subject) => subject,
        Caller::Unknown | Caller::TooDeep => 0,
    };
    let grant = if subject == 0 { None } else { grant(GrantKey { subject, resource: resource.number }) };
    let grant = Found::from(grant);
    let slot = Found::from(grant.get().and_then(|grant| slot(grant.slot)));
    let now_boot_ns = context::now_boot_ns();
    let facts = Facts { resource: Some(&resource), caller, grant: grant.as_ref(), slot: slot.as_ref() };
    let mut reason = decide(&facts, now_boot_ns);
    if reason == Reason::LookupFailed {
        error!(ctx, "a grant's slot could not be read");
    }
    let attempt = Attempt {
        ctx,
        hook,
        destination,
        class,
        resource,
        subject,
        cgroup_id,
        task: Task::current(),
        socket_cookie: context::socket_cookie(ctx),
        netns_cookie: context::netns_cookie(ctx),
        grant: grant.get(),
        now_boot_ns,
    };
    if let (Reason::Granted, Some(grant)) = (reason, grant.get()) {
        // Room for the record first: who may not pass without one has not passed before there is.
        reason = match record::reserve() {
            Some(reserved) => match attempt.admit(grant) {
                Reason::Granted => {
                    reserved.keep(|record| attempt.describe(Reason::Granted, record));
                    return GO_ON;
                }
                other => {
                    reserved.give_back();
                    other
                }
            },
            None => match without_record(&resource) {
                Reason::Granted => match attempt.admit(grant) {
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

    let verdict = reason.verdict(Some(&resource));
    if verdict == Verdict::WouldDeny {
        attempt.observe();
    }
    record::emit_denied(|record| attempt.describe(reason, record));
    if verdict.lets_through() { GO_ON } else { REFUSE }
}

/// A connection, or one unconnected datagram, and what the look-ups about it found.
struct Attempt<'a> {
    ctx: &'a SockAddrContext,
    hook: Hook,
    destination: &'a Destination,
    /// Of the port.
    class: u32,
    resource: ResourceEntry,
    /// 0: nobody's.
    subject: u32,
    cgroup_id: u64,
    // Each question costs some 30 ns, and these are asked for the connection and for the record.
    task: Task,
    socket_cookie: u64,
    netns_cookie: u64,
    grant: Option<GrantRef>,
    now_boot_ns: u64,
}

impl Attempt<'_> {
    /// Binds the socket to the grant and epoch that let it through, and remembers a connection. What cannot be remembered is
    /// not let through: nobody could end it.
    #[inline(always)]
    fn admit(&self, grant: GrantRef) -> Reason {
        if self.is_tcp_connection() {
            self.forget_storage();
        } else {
            let admission = context::admission_or_new(context::socket(self.ctx));
            let Some(admission) = admission else { return Reason::LookupFailed };
            if self.is_connection() {
                self.close_earlier(admission);
            }
            bind(admission, &self.resource, self.subject, grant);
        }
        note_admitted(grant.slot, self.now_boot_ns);
        // Datagrams of an unconnected socket are judged one by one, and never ended.
        if !self.is_connection() {
            return Reason::Granted;
        }
        let flags = if self.resource.has(ResourceEntry::SENDERS) { ConnectionEntry::SENDERS } else { 0 };
        match self.remember(grant, flags) {
            Ok(()) => Reason::Granted,
            Err(_) => {
                if let Some(admission) = context::admission(context::socket(self.ctx)) {
                    admission.resource = 0;
                }
                Reason::ConnectionsFull
            }
        }
    }

    /// What would not have been let through is remembered all the same, so that it can be ended when its resource is not
    /// only observed any more. Where that fails it starves then, but is not closed.
    #[inline(always)]
    fn observe(&self) {
        let nothing = GrantRef { slot: 0, reserved: 0, epoch: 0 };
        if self.is_tcp_connection() {
            self.forget_storage();
            let _ = self.remember(nothing, ConnectionEntry::OBSERVED);
            return;
        }
        let Some(admission) = context::admission_or_new(context::socket(self.ctx)) else { return };
        if self.is_connection() {
            self.close_earlier(admission);
            admission.resource = 0;
            let _ = self.remember(nothing, ConnectionEntry::OBSERVED);
        }
        // The record of this attempt tells it.
        admission.flags |= Admission::OBSERVED;
    }

    /// What a TCP connection is let through by stands in its entry alone; what was known of an earlier connection of the
    /// socket, or told of it, counts no more.
    #[inline(always)]
    fn forget_storage(&self) {
        if let Some(admission) = context::admission(context::socket(self.ctx)) {
            admission.resource = 0;
            admission.socket_cookie = 0;
            admission.flags &= Admission::PASSIVE | Admission::MPTCP;
        }
    }

    /// A UDP socket can be connected again without having been closed; TCP tells itself that a connection is over.
    #[inline(always)]
    fn close_earlier(&self, admission: &mut Admission) {
        if admission.may_be_remembered() {
            let carried = Carried { sent: admission.bytes, received: ClosedRecord::UNKNOWN };
            close(self.socket_cookie, None, true, carried, self.now_boot_ns);
        }
        admission.bytes = 0;
    }

    #[inline(always)]
    fn remember(&self, grant: GrantRef, flags: u8) -> Result<(), i32> {
        let mut connection = ConnectionEntry {
            epoch: grant.epoch,
            address: self.destination.address,
            slot: grant.slot,
            resource: self.resource.number,
            subject: self.subject,
            port: self.destination.port,
            protocol: self.destination.protocol,
            flags,
            admitted_boot_ns: self.now_boot_ns,
            netns_cookie: self.netns_cookie,
            grant: [0; 16],
            pid: self.task.pid(),
            seen: 0,
            bytes: 0,
            class: self.class,
            guard: self.resource.flags,
        };
        if flags & ConnectionEntry::OBSERVED == 0 {
            write_name(grant.slot, &mut connection.grant);
        }
        maps::CONNECTIONS.insert(self.socket_cookie, connection, 0)
    }

    #[inline(always)]
    fn is_tcp_connection(&self) -> bool {
        self.is_connection() && self.destination.protocol == protocol::TCP
    }

    #[inline(always)]
    fn is_connection(&self) -> bool {
        matches!(self.hook, Hook::Connect4 | Hook::Connect6)
    }

    #[inline(always)]
    fn describe(&self, reason: Reason, record: &mut VerdictRecord) {
        record.boot_ns = self.now_boot_ns;
        record.address = self.destination.address;
        record.port = self.destination.port;
        record.protocol = self.destination.protocol;
        record.resource = self.resource.number;
        record.subject = self.subject;
        record.cgroup_id = self.cgroup_id;
        if let Some(grant) = self.grant {
            record.epoch = grant.epoch;
            write_name(grant.slot, &mut record.grant);
        }
        record.hook = self.hook as u8;
        record.verdict = reason.verdict(Some(&self.resource)) as u8;
        record.reason = reason as u8;
        record.socket_cookie = self.socket_cookie;
        record.netns_cookie = self.netns_cookie;
        self.task.describe(record);
    }
}

/// What a connection carried; [`ClosedRecord::UNKNOWN`] where nobody counted.
struct Carried {
    sent: u64,
    received: u64,
}

/// Forgets a connection that has ended, and writes down what became of it. Nothing, if it is not remembered. `state` is TCP's
/// before; `is_released`: its last file descriptor is being closed.
#[inline(always)]
fn close(cookie: u64, state: Option<u32>, is_released: bool, carried: Carried, now_boot_ns: u64) {
    // SAFETY: an entry is replaced as a whole; what is copied here is one or the other.
    let Some(entry) = (unsafe { maps::CONNECTIONS.get(cookie).copied() }) else { return };
    // Of several programs at once, one is right.
    if maps::CONNECTIONS.remove(cookie).is_err() {
        return;
    }
    let slot = slot(entry.slot);
    let is_released = is_released || entry.has(ConnectionEntry::RELEASED);
    let end = End { entry: &entry, slot: slot.as_ref(), state, is_released };
    record::emit_closed(|record| {
        *record = ClosedRecord::of(&entry, cookie, now_boot_ns);
        record.bytes_sent = carried.sent;
        record.bytes_received = carried.received;
        record.ended_by = ended_by(&end, now_boot_ns) as u8;
    });
}

/// Writes an admission. Its resource last: while that is 0 the rest says nothing.
#[inline(always)]
fn bind(admission: &mut Admission, resource: &ResourceEntry, subject: u32, grant: GrantRef) {
    admission.resource = 0;
    admission.flags &= !(Admission::TOLD | Admission::OBSERVED | Admission::SENDERS);
    if resource.has(ResourceEntry::SENDERS) {
        admission.flags |= Admission::SENDERS;
    }
    admission.subject = subject;
    admission.slot = grant.slot;
    admission.epoch = grant.epoch;
    admission.resource = resource.number;
}
