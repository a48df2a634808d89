//! Unconnected UDP to an IPv6 address, datagram by datagram.

use agent_ebpf::abi::Hook;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::context;

#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn sendmsg6(ctx: SockAddrContext) -> i32 {
    super::judge(&ctx, Hook::Sendmsg6, &context::destination6(&ctx))
}
