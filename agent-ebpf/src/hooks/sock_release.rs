//! The last file descriptor of a socket is closed: its connection need not be remembered any more.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;

use super::GO_ON;
use crate::context;
use crate::maps;

#[cgroup_sock(sock_release)]
pub(crate) fn sock_release(ctx: SockContext) -> i32 {
    // Most sockets were never let through to anything protected. Of one that was made before this gate was up, a gate of
    // another ABI version may have known.
    if context::admission(ctx.sock).is_none_or(|admission| admission.resource != 0) {
        // SAFETY: the helper takes the context that the kernel handed us.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
        // An unconnected socket was never in the map.
        let _ = maps::CONNECTIONS.remove(cookie);
    }
    GO_ON
}
