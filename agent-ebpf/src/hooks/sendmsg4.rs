//! Unconnected UDP to an IPv4 address, datagram by datagram; from an IPv6 socket to a mapped address too.

use agent_ebpf::abi::Hook;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::context;

#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn sendmsg4(ctx: SockAddrContext) -> i32 {
    super::judge(&ctx, Hook::Sendmsg4, &context::destination4(&ctx))
}
