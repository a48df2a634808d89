//! Somebody writes on a connection to a unix socket, at either end: what let it through must not have ended.

use core::ffi::c_void;

use agent_ebpf::abi::{self, Admission, Hook, ResourceEntry};
use agent_ebpf::verdict::{Caller, Creator, Reason, Verdict, WireFacts, decide_send, decide_wire};
use aya_ebpf::Global;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

use crate::grants::{Found, note_active, note_admitted, slot, write_name};
use crate::resources::{guarding, guards_unix};
use crate::task::Task;
use crate::unix_paths::{UnixSocket, cookie};
use crate::{GO_ON, REFUSE, context, inner, record, subjects};

/// `socket.type`, in bytes from the beginning.
#[unsafe(no_mangle)]
static SOCKET_TYPE: Global<u32> = Global::new(0);

const SOCK_DGRAM: u16 = 2;

#[lsm(hook = "socket_sendmsg")]
pub(crate) fn socket_sendmsg(ctx: LsmContext) -> i32 {
    if !guards_unix() {
        return GO_ON;
    }
    let socket: *const c_void = ctx.arg(0);
    // SAFETY: the kernel hands the program a valid socket.
    let (sk, unix) = unsafe {
        let Some(sk) = inner(socket) else { return GO_ON };
        let Some(unix) = UnixSocket::of(sk) else { return GO_ON };
        (sk, unix)
    };
    let mut known = context::admission(sk);
    let mut admission = known.as_deref().copied().unwrap_or_default();
    if admission.flags & Admission::UNIX == 0 {
        // SAFETY: the verifier permits this read only if there is such a field.
        let kind =
            unsafe { socket.cast::<u8>().add(SOCKET_TYPE.load() as usize).cast::<u16>().read_volatile() };
        // Each datagram is judged by itself, and may go elsewhere than the one before.
        if kind == SOCK_DGRAM {
            return GO_ON;
        }
        let Some((key, flags)) = unadmitted(unix) else { return GO_ON };
        known = context::admission_or_new(sk);
        admission.resource = 0;
        admission.bytes = key;
        admission.flags = flags;
        if let Some(known) = known.as_deref_mut() {
            known.bytes = key;
            known.flags = flags;
        }
    }
    // The resource may have been given up.
    let Some(resource) = guarding(admission.bytes) else { return GO_ON };
    judge(sk, known, &admission, &resource)
}

/// The key of the protected path that a connection leads to which was never judged, and flags for its socket: it was made before
/// the path was protected, or while the programs were not there. Either end may have the path.
#[inline(always)]
fn unadmitted(unix: UnixSocket) -> Option<(u64, u32)> {
    // SAFETY: a connection keeps its peer.
    let peer = unix.peer().and_then(|peer| unsafe { UnixSocket::of(peer) });
    if let Some((key, _)) = peer.and_then(UnixSocket::guarded) {
        return Some((key, Admission::UNIX));
    }
    // What a server accepts has the server's path.
    unix.guarded().map(|(key, _)| (key, Admission::UNIX | Admission::ACCEPTED))
}

#[inline(always)]
fn judge(
    sk: *mut bpf_sock,
    known: Option<&mut Admission>,
    admission: &Admission,
    resource: &ResourceEntry,
) -> i32 {
    let slot = Found::from(if admission.resource == 0 { None } else { slot(admission.slot) });
    let facts = WireFacts {
        resource: Some(resource),
        admission: Some(admission),
        slot: slot.as_ref(),
        // Who uses a unix socket counts, whoever made it.
        creator: Creator::Same,
    };
    let now_boot_ns = context::now_boot_ns();
    let mut reason = decide_wire(&facts, now_boot_ns);
    let is_checked = resource.has(ResourceEntry::SENDERS) && admission.flags & Admission::ACCEPTED == 0;
    // Whom it was let through for; or who writes, if that is somebody else.
    let mut subject = admission.subject;
    if reason == Reason::Granted && is_checked {
        let sender = subjects::caller(context::cgroup_id());
        subject = match sender {
            Caller::Subject(subject) => subject,
            Caller::Unknown | Caller::TooDeep => 0,
        };
        reason = decide_send(sender, admission.subject);
    }
    if reason == Reason::Granted {
        note_admitted(admission.slot, now_boot_ns);
        if slot.get().unwrap_or_default().idle_limit_ns != 0 {
            note_active(admission.slot, now_boot_ns);
        }
        return GO_ON;
    }
    let verdict = reason.verdict(Some(resource));
    let is_told = match known {
        // Who else writes on a connection is told each time, as where TCP's writes are judged.
        Some(known) if reason != Reason::SenderDiffers || verdict == Verdict::WouldDeny => {
            let flag = if verdict == Verdict::Deny { Admission::TOLD } else { Admission::OBSERVED };
            let is_told = known.flags & flag != 0;
            known.flags |= flag;
            is_told
        }
        _ => false,
    };
    if !is_told && resource.number != abi::UNIX_PROBE {
        record::emit_denied(|record| {
            record.boot_ns = now_boot_ns;
            record.cgroup_id = context::cgroup_id();
            record.lead_to_unix(admission.bytes);
            record.resource = resource.number;
            record.socket_cookie = cookie(sk);
            record.subject = subject;
            if admission.resource != 0 {
                record.epoch = admission.epoch;
                write_name(admission.slot, &mut record.grant);
            }
            record.hook = Hook::UnixSend as u8;
            record.verdict = verdict as u8;
            record.reason = reason as u8;
            Task::current().describe(record);
        });
    }
    if verdict.lets_through() { GO_ON } else { REFUSE }
}
