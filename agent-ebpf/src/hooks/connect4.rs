//! TCP and connected UDP to an IPv4 address, Fast Open and MPTCP's first subflow included.

use agent_ebpf::abi::Hook;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::context;

#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    super::judge(&ctx, Hook::Connect4, &context::destination4(&ctx))
}
