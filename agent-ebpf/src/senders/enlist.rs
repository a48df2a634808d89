//! A TCP connection that this side opened is up: if whoever writes on it is to be judged, it is put where they are.

use agent_ebpf::abi::{self, Admission, ConnectionEntry, NEVER, protocol};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_sock_hash_update};
use aya_ebpf::macros::{map, sock_ops};
use aya_ebpf::maps::SockHash;
use aya_ebpf::programs::SockOpsContext;

use crate::context;
use crate::grants::connection;
use crate::resources::class;

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
    // Most connections end here, after one array look-up.
    if class(protocol::TCP, u32::from_be(ctx.remote_port()) as u16).is_none() {
        return;
    }
    let sk = socket(ctx);
    if sk.is_null() {
        return;
    }
    // SAFETY: the helper takes the context that the kernel handed us.
    let mut cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let Some(connection) = connection(cookie) else { return };
    if !connection.has(ConnectionEntry::SENDERS) {
        return;
    }
    if let Some(admission) = context::admission_or_new(sk) {
        // The kernel writes there.
        if admission.flags & Admission::SUBFLOW != 0 {
            return;
        }
        admission.subject = connection.subject;
        admission.slot = connection.slot;
        admission.epoch = connection.epoch;
        admission.socket_cookie = cookie;
        admission.resource = connection.resource;
        // SAFETY: the helper takes the context that the kernel handed us; the map's keys are cookies.
        let result = unsafe {
            let map = (&raw const SENDERS).cast_mut().cast();
            bpf_sock_hash_update(ctx.ops, map, (&raw mut cookie).cast(), 0)
        };
        if result == 0 {
            return;
        }
        admission.resource = 0;
    }
    // Nobody could judge what is written: nothing of it gets out.
    connection.epoch = NEVER;
}

#[inline(always)]
fn socket(ctx: &SockOpsContext) -> *mut bpf_sock {
    // SAFETY: the kernel hands the program a valid `bpf_sock_ops`; `sk` is the one pointer of the union that it sets.
    unsafe { (*ctx.ops).__bindgen_anon_2.sk }
}
