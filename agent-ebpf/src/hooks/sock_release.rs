//! The last file descriptor of a socket is closed. TCP goes on for a while, and tells by itself when it is over; anything else
//! is over now.

use agent_ebpf::abi::{ClosedRecord, ConnectionEntry, protocol};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;

use super::{Carried, GO_ON, close};
use crate::context;
use crate::grants::connection;
use crate::resources::class;

/// `TCP_CLOSE`.
const CLOSED: u32 = 7;

#[cgroup_sock(sock_release)]
pub(crate) fn sock_release(ctx: SockContext) -> i32 {
    let (protocol, state) = protocol_and_state(ctx.sock);
    if protocol == u32::from(protocol::TCP) {
        release_tcp(&ctx, state);
    } else if let Some(admission) = context::admission(ctx.sock)
        // Most sockets were never let through to anything protected.
        && admission.may_be_remembered()
    {
        let carried = Carried { sent: admission.bytes, received: ClosedRecord::UNKNOWN };
        // An unconnected socket was never remembered.
        close(cookie(&ctx), None, true, carried, context::now_boot_ns());
    }
    GO_ON
}

#[inline(always)]
fn release_tcp(ctx: &SockContext, state: u32) {
    // Without a connection it has no port any more; with one, most end here, after one array look-up.
    if state != CLOSED && class(protocol::TCP, destination_port(ctx.sock)).is_none() {
        return;
    }
    let cookie = cookie(ctx);
    let Some(connection) = connection(cookie) else { return };
    if state == CLOSED {
        // It never began.
        close(cookie, None, true, Carried { sent: 0, received: 0 }, context::now_boot_ns());
    } else {
        connection.flags |= ConnectionEntry::RELEASED;
    }
}

#[inline(always)]
fn destination_port(sk: *mut bpf_sock) -> u16 {
    // SAFETY: the context's socket, of which this field may be read; hence volatile. In network order.
    u16::from_be(unsafe { (&raw const (*sk).dst_port).read_volatile() })
}

#[inline(always)]
fn cookie(ctx: &SockContext) -> u64 {
    // SAFETY: the helper takes the context that the kernel handed us.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn protocol_and_state(sk: *mut bpf_sock) -> (u32, u32) {
    // SAFETY: the context's socket, of which these fields may be read, each by itself; hence volatile.
    unsafe { ((&raw const (*sk).protocol).read_volatile(), (&raw const (*sk).state).read_volatile()) }
}
