//! Somebody connects to a unix socket, of a stream or of sequenced packets.

use agent_ebpf::abi::Hook;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

use crate::GO_ON;
use crate::resources::guards_unix;
use crate::unix_paths::{Attempt, UnixSocket};

#[lsm(hook = "unix_stream_connect")]
pub(crate) fn unix_stream_connect(ctx: LsmContext) -> i32 {
    if !guards_unix() {
        return GO_ON;
    }
    let (sk, server, accepted): (*mut bpf_sock, *mut bpf_sock, *mut bpf_sock) =
        (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    // SAFETY: the kernel hands the program valid sockets.
    let Some(server) = (unsafe { UnixSocket::of(server) }) else { return GO_ON };
    let Some((key, resource)) = server.guarded() else { return GO_ON };
    Attempt { hook: Hook::UnixConnect, key, resource, sk, accepted: Some(accepted) }.judge()
}
