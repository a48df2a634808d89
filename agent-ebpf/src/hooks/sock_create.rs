//! A task makes an IPv4 or IPv6 socket. One of MPTCP is marked with whose it is, for what is let through later are the sockets
//! that the kernel makes below it. Of any other the kernel itself remembers the cgroup that it was made in, and shows it with
//! each packet. Nothing is refused here: a refusal by type would also hit traffic to what nobody protects.

use agent_ebpf::abi::Admission;
use agent_ebpf::verdict::Caller;
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;

use super::GO_ON;
use crate::context;
use crate::subjects::caller;

#[cgroup_sock(sock_create)]
pub(crate) fn sock_create(ctx: SockContext) -> i32 {
    if context::is_mptcp(ctx.sock)
        && let Some(admission) = context::admission_or_new(ctx.sock)
    {
        admission.flags |= Admission::MPTCP;
        if let Caller::Subject(subject) = caller(context::cgroup_id()) {
            admission.creator_subject = subject;
        }
    }
    GO_ON
}
