//! The last file descriptor of a socket is closed. TCP goes on for a while, and tells by itself when it is over; anything else
//! is over now.

use agent_ebpf::abi::{Admission, ClosedRecord, protocol};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;

use super::{Carried, GO_ON, close};
use crate::context;

/// `TCP_CLOSE`.
const CLOSED: u32 = 7;

#[cgroup_sock(sock_release)]
pub(crate) fn sock_release(ctx: SockContext) -> i32 {
    // Most sockets were never let through to anything protected.
    if let Some(admission) = context::admission(ctx.sock)
        && (admission.resource != 0 || admission.flags & Admission::OBSERVED != 0)
    {
        admission.flags |= Admission::RELEASED;
        let (protocol, state) = protocol_and_state(ctx.sock);
        let carried = match protocol == u32::from(protocol::TCP) {
            true if state != CLOSED => return GO_ON,
            // It never began.
            true => Carried { sent: 0, received: 0 },
            false => Carried { sent: admission.bytes, received: ClosedRecord::UNKNOWN },
        };
        // SAFETY: the helper takes the context that the kernel handed us.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
        // An unconnected socket was never remembered.
        close(cookie, None, true, carried, context::now_boot_ns());
    }
    GO_ON
}

#[inline(always)]
fn protocol_and_state(sk: *mut bpf_sock) -> (u32, u32) {
    // SAFETY: the context's socket, of which these fields may be read, each by itself; hence volatile.
    unsafe { ((&raw const (*sk).protocol).read_volatile(), (&raw const (*sk).state).read_volatile()) }
}
