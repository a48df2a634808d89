//! A TCP connection that the other side opened is told apart from those that this side did: its packets go to no port that
//! this side chose, and are nobody's access.

use agent_ebpf::abi::{Admission, protocol};
use aya_ebpf::bindings::{BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;

use super::{GO_ON, class};
use crate::context;

#[sock_ops]
pub(crate) fn sock_ops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&ctx),
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&ctx),
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
    // A socket that a task made itself, and that got here by a simultaneous open, is not passive.
    if !sk.is_null()
        && context::admission(sk).is_none()
        && let Some(admission) = context::admission_or_new(sk)
    {
        admission.flags = Admission::PASSIVE;
    }
}

/// A socket that was accepted once can be disconnected and used to connect: it is not the other side's doing any more.
#[inline(always)]
fn connecting(ctx: &SockOpsContext) {
    let sk = socket(ctx);
    if !sk.is_null()
        && let Some(admission) = context::admission(sk)
    {
        admission.flags &= !Admission::PASSIVE;
    }
}

#[inline(always)]
fn socket(ctx: &SockOpsContext) -> *mut bpf_sock {
    // SAFETY: the kernel hands the program a valid `bpf_sock_ops`; `sk` is the one pointer of the union that it sets.
    unsafe { (*ctx.ops).__bindgen_anon_2.sk }
}
