//! A task makes an IPv4 or IPv6 socket: who it is, is remembered with the socket. Nothing is refused here: a refusal by type
//! would also hit traffic to what nobody protects.

use agent_ebpf::abi::Admission;
use agent_ebpf::verdict::Caller;
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;

use super::GO_ON;
use crate::context;
use crate::subjects::caller;

#[cgroup_sock(sock_create)]
pub(crate) fn sock_create(ctx: SockContext) -> i32 {
    // Without memory for it the creator stays unknown.
    if let Some(admission) = context::admission_or_new(ctx.sock) {
        let cgroup_id = context::cgroup_id();
        admission.creator_cgroup_id = cgroup_id;
        if let Caller::Subject(subject) = caller(cgroup_id) {
            admission.creator_subject = subject;
        }
        if context::is_mptcp(ctx.sock) {
            admission.flags |= Admission::MPTCP;
        }
    }
    GO_ON
}
