//! Somebody sends a datagram to a unix socket, or connects to it to send some.

use core::ffi::c_void;

use agent_ebpf::abi::Hook;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

use crate::resources::guards_unix;
use crate::unix_paths::{Attempt, UnixSocket};
use crate::{GO_ON, inner};

#[lsm(hook = "unix_may_send")]
pub(crate) fn unix_may_send(ctx: LsmContext) -> i32 {
    if !guards_unix() {
        return GO_ON;
    }
    let (socket, server): (*const c_void, *const c_void) = (ctx.arg(0), ctx.arg(1));
    // SAFETY: the kernel hands the program valid sockets, and keeps the server's as it is meanwhile.
    let (sk, server) = unsafe {
        let Some(sk) = inner(socket) else { return GO_ON };
        let Some(server) = inner(server).and_then(|server| UnixSocket::of(server)) else { return GO_ON };
        (sk, server)
    };
    let Some((key, resource)) = server.guarded() else { return GO_ON };
    Attempt { hook: Hook::UnixSend, key, resource, sk, accepted: None }.judge()
}
