//! What becomes of TCP connections. Those that the other side opened are told apart: their packets go to no port that this
//! side chose, and are nobody's access. Those that were let through are written down when they end.

use agent_ebpf::abi::{Admission, protocol};
use agent_ebpf::verdict::overhead;
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
    BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock,
};
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;

use super::{Carried, GO_ON, close};
use crate::context;
use crate::grants::connection;
use crate::resources::class;

/// `TCP_CLOSE`.
const CLOSED: u32 = 7;

#[sock_ops]
pub(crate) fn sock_ops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&ctx),
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == CLOSED => closed(&ctx),
        _ => {}
    }
    GO_ON as u32
}

#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    // Egress asks only where somebody protects the port that the other side happens to have.
    if class(protocol::TCP, u32::from_be(ctx.remote_port()) as u16).is_none() {
        return;
    }
    let sk = socket(ctx);
    // A socket that got here by a simultaneous open connects to where it was let through.
    if !sk.is_null()
        && connection(cookie(ctx)).is_none()
        && let Some(admission) = context::admission_or_new(sk)
    {
        admission.flags = Admission::PASSIVE;
    }
}

/// A socket that was accepted once can be disconnected and used to connect: it is not the other side's doing any more. The end
/// of a connection that was let through is asked for, beside what others may have asked for.
#[inline(always)]
fn connecting(ctx: &SockOpsContext) {
    let sk = socket(ctx);
    if !sk.is_null()
        && let Some(admission) = context::admission(sk)
    {
        admission.flags &= !Admission::PASSIVE;
    }
    // Most connections end here, after one array look-up. One that another program leads to a port that nobody protects is
    // not seen to end: it is forgotten with its grant.
    if class(protocol::TCP, u32::from_be(ctx.remote_port()) as u16).is_some()
        && connection(cookie(ctx)).is_some()
    {
        // Never refused for a flag that the kernel knows.
        let _ = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
    }
}

#[inline(always)]
fn closed(ctx: &SockOpsContext) {
    let state = ctx.arg(0);
    // SAFETY: the kernel hands the program a valid `bpf_sock_ops`, of which these fields may be read.
    let (acknowledged, received) = unsafe {
        (
            (&raw const (*ctx.ops).bytes_acked).read_volatile(),
            (&raw const (*ctx.ops).bytes_received).read_volatile(),
        )
    };
    let (not_sent, not_received) = overhead(state);
    let carried = Carried {
        sent: acknowledged.saturating_sub(not_sent),
        received: received.saturating_sub(not_received),
    };
    close(cookie(ctx), Some(state), false, carried, context::now_boot_ns());
}

#[inline(always)]
fn socket(ctx: &SockOpsContext) -> *mut bpf_sock {
    // SAFETY: the kernel hands the program a valid `bpf_sock_ops`; `sk` is the one pointer of the union that it sets.
    unsafe { (*ctx.ops).__bindgen_anon_2.sk }
}

#[inline(always)]
fn cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes the context that the kernel handed us.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}
