//! A process is handed a file: by SCM_RIGHTS, by pidfd_getfd, or in whichever other way. A socket that was let through for
//! somebody else it does not get.

use agent_ebpf::abi::{Admission, Hook};
use agent_ebpf::verdict::Caller;
use agent_ebpf::verdict::lsm::decide_handover;
use aya_ebpf::bindings::{bpf_sock, file};
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_sock_from_file};
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

use crate::context::{self, Destination};
use crate::grants::write_name;
use crate::resources::{guarding, protecting};
use crate::task::Task;
use crate::{GO_ON, REFUSE, inner, maps, record, subjects};

#[lsm(hook = "file_receive")]
pub(crate) fn file_receive(ctx: LsmContext) -> i32 {
    let Some(sk) = socket(ctx.arg(0)) else { return GO_ON };
    // SAFETY: the helper takes a socket of the kernel's, which `sk` is.
    let cookie = unsafe { bpf_get_socket_cookie(sk.cast()) };
    let mut admission = context::admission(sk).as_deref().copied().unwrap_or_default();
    // SAFETY: an entry is replaced as a whole; what is copied here is one or the other.
    let connection = unsafe { maps::CONNECTIONS.get(cookie).copied() };
    // TCP connections, and what a gate of another ABI version let through, stand there alone.
    if admission.resource == 0
        && admission.flags & Admission::PASSIVE == 0
        && let Some(connection) = &connection
    {
        admission = Admission::of(connection);
    }
    let mut receiver = Caller::Unknown;
    let ask = || {
        receiver = subjects::caller(context::cgroup_id());
        receiver
    };
    let Some(reason) = decide_handover(&admission, ask) else { return GO_ON };
    let destination = connection.map(|connection| Destination {
        address: connection.address,
        port: connection.port,
        protocol: connection.protocol,
    });
    let is_unix = admission.flags & Admission::UNIX != 0;
    // Where it leads may only be observed.
    let resource =
        if is_unix { guarding(admission.bytes) } else { destination.as_ref().and_then(protecting) };
    let verdict = reason.verdict(resource.as_ref());
    record::emit_denied(|record| {
        record.boot_ns = context::now_boot_ns();
        record.cgroup_id = context::cgroup_id();
        record.socket_cookie = cookie;
        record.resource = admission.resource;
        record.epoch = admission.epoch;
        if let Caller::Subject(subject) = receiver {
            record.subject = subject;
        }
        // Whose grant it is.
        if admission.resource != 0 {
            write_name(admission.slot, &mut record.grant);
        }
        if let Some(connection) = connection {
            record.netns_cookie = connection.netns_cookie;
            record.address = connection.address;
            record.port = connection.port;
            record.protocol = connection.protocol;
        }
        if is_unix {
            record.lead_to_unix(admission.bytes);
        }
        record.hook = Hook::FileReceive as u8;
        record.verdict = verdict as u8;
        record.reason = reason as u8;
        Task::current().describe(record);
    });
    if verdict.lets_through() {
        return GO_ON;
    }
    REFUSE
}

/// The socket that a file is. None: it is none.
#[inline(always)]
fn socket(file: *mut file) -> Option<*mut bpf_sock> {
    // SAFETY: the kernel hands the program a valid `struct file`; the helper gives the `struct socket` in it, or null.
    let socket = unsafe { bpf_sock_from_file(file) };
    if socket.is_null() {
        return None;
    }
    // SAFETY: it is what the helper gave.
    unsafe { inner(socket.cast()) }
}
