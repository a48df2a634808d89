//! The decisions of the tamper tier: whose reach for the gate, or for its agent, is refused.
//!
//! Each says why; None: it goes on, and nothing is recorded.

use super::Reason;

/// Decides about a reach for something. Who it is, is asked only of what is the gate's; `lifted_until_boot_ns` is until when
/// nothing is refused.
#[inline(always)]
pub fn decide_reach(
    is_the_gates: bool,
    now_boot_ns: impl FnOnce() -> u64,
    lifted_until_boot_ns: impl FnOnce() -> u64,
    is_agent: impl FnOnce() -> bool,
) -> Option<Reason> {
    if !is_the_gates || is_agent() || now_boot_ns() < lifted_until_boot_ns() {
        return None;
    }
    Some(Reason::Tampering)
}

/// The first process of the host, which starts and stops services: it may signal the agent.
const INIT: u32 = 1;

/// Whether a signal by this process may be to stop the agent as it is meant to be stopped. Signals that the kernel itself sends
/// are not asked about.
#[inline(always)]
pub const fn may_signal(pid: u32) -> bool {
    pid == INIT
}

/// Whether this access to a process gives its memory and descriptors away; otherwise it is to be looked at only. `mode` is the
/// kernel's `PTRACE_MODE_*`.
#[inline(always)]
pub const fn gets_inside(mode: u32) -> bool {
    const ATTACH: u32 = 2;
    mode & ATTACH != 0
}

/// Whether a look-up of a file asks for what it holds; otherwise it is only passed on the way to another. `mask` is the kernel's
/// `MAY_*`.
#[inline(always)]
pub const fn opens(mask: u32) -> bool {
    const WRITE: u32 = 2;
    const READ: u32 = 4;
    mask & (READ | WRITE) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_agent_reaches_for_the_gate() {
        let decide = |is_the_gates, lifted_until, is_agent| {
            decide_reach(is_the_gates, || 10, || lifted_until, || is_agent)
        };
        assert_eq!(decide(true, 0, false), Some(Reason::Tampering));
        assert_eq!(decide(true, 10, false), Some(Reason::Tampering));
        assert_eq!(decide(true, 11, false), None);
        assert_eq!(decide(true, 0, true), None);
        let nobody = || -> bool { panic!("nobody need be asked") };
        assert_eq!(decide_reach(false, || 10, || 0, nobody), None);
    }

    #[test]
    fn services_are_stopped_and_looked_at() {
        assert!(may_signal(1) && !may_signal(2));
        // PTRACE_MODE_READ_FSCREDS, as `ps` asks; PTRACE_MODE_ATTACH_REALCREDS, as a debugger does.
        assert!(!gets_inside(0x09) && gets_inside(0x12));
        // A directory on the way; a file that is opened.
        assert!(!opens(0x81) && opens(0x24) && opens(0x02));
    }
}
