//! Somebody signals the agent, or gets into it.

use agent_ebpf::abi::Tampering;
use agent_ebpf::verdict::tamper::{gets_inside, may_signal};
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

use crate::reach::{judge, runs_agent};
use crate::task::Task;

/// Not asked about signals that the kernel itself sends.
#[lsm(hook = "task_kill")]
pub(crate) fn task_kill(ctx: LsmContext) -> i32 {
    let is_ours = !may_signal(Task::current().pid()) && runs_agent(ctx.arg(0));
    judge(is_ours, Tampering::Signal, ctx.arg::<u32>(2) as u16)
}

/// A debugger, a descriptor that is taken, memory that is read or written.
#[lsm(hook = "ptrace_access_check")]
pub(crate) fn ptrace_access_check(ctx: LsmContext) -> i32 {
    let is_ours = gets_inside(ctx.arg::<u32>(1)) && runs_agent(ctx.arg(0));
    judge(is_ours, Tampering::Trace, 0)
}
