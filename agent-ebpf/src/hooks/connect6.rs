//! TCP and connected UDP to an IPv6 address; TCP to a mapped IPv4 address comes here too.

use agent_ebpf::abi::Hook;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::context;

#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    super::judge(&ctx, Hook::Connect6, &context::destination6(&ctx))
}
