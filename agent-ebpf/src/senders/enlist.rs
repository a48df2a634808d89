//! A TCP connection that this side opened is up: if whoever writes on it is to be judged, it is put where they are.

use agent_ebpf::abi::{self, Admission};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_sock_hash_update};
use aya_ebpf::macros::{map, sock_ops};
use aya_ebpf::maps::SockHash;
use aya_ebpf::programs::SockOpsContext;

use crate::context;

/// Connections whose writers are judged. One that is closed leaves by itself.
#[map]
static SENDERS: SockHash<u64> = SockHash::with_max_entries(abi::CONNECTIONS_MAX, 0);

/// What such a program returns; it decides nothing.
const GO_ON: u32 = 1;

#[sock_ops]
pub(crate) fn enlist(ctx: SockOpsContext) -> u32 {
    if ctx.op() == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB {
        add(&ctx);
    }
    GO_ON
}

#[inline(always)]
fn add(ctx: &SockOpsContext) {
    let sk = socket(ctx);
    if sk.is_null() {
        return;
    }
    let Some(admission) = context::admission(sk) else { return };
    // A subflow of MPTCP, which the kernel makes, is written on by the kernel.
    if admission.resource == 0
        || admission.flags & Admission::SENDERS == 0
        || admission.creator_cgroup_id == 0
    {
        return;
    }
    // SAFETY: the helpers take the context that the kernel handed us; the map's keys are cookies.
    let result = unsafe {
        let mut cookie = bpf_get_socket_cookie(ctx.as_ptr());
        admission.socket_cookie = cookie;
        let map = (&raw const SENDERS).cast_mut().cast();
        bpf_sock_hash_update(ctx.ops, map, (&raw mut cookie).cast(), 0)
    };
    if result != 0 {
        // Nobody could judge what is written: nothing of it gets out.
        admission.resource = 0;
    }
}

#[inline(always)]
fn socket(ctx: &SockOpsContext) -> *mut bpf_sock {
    // SAFETY: the kernel hands the program a valid `bpf_sock_ops`; `sk` is the one pointer of the union that it sets.
    unsafe { (*ctx.ops).__bindgen_anon_2.sk }
}
