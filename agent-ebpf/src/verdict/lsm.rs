//! The decisions of the LSM tier: who may have a socket of which family, and who may be handed one that was let through.
//!
//! Both say why something is refused; None: it goes on, and nothing is recorded.

use super::{Caller, Reason};
use crate::abi::Admission;
use crate::family;

/// A socket that somebody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its address family, see [`family::effective`].
    pub family: u32,
    /// Its type.
    pub kind: u32,
    /// The kernel makes it for itself, in whichever task's name.
    pub by_kernel: bool,
}

impl Wanted {
    /// Whether it is the agent's question whether the program runs: such a socket cannot be had anyway.
    #[inline(always)]
    pub fn is_probe(&self) -> bool {
        self.family == family::INET as u32 && self.kind == family::PROBE_KIND && !self.by_kernel
    }
}

/// Decides about a socket that is asked for. `allowed` is a set of families; `is_exempt` says whether who asks may have any,
/// and is asked only if it matters.
#[inline(always)]
pub fn decide_family(wanted: &Wanted, allowed: u64, is_exempt: impl FnOnce() -> bool) -> Option<Reason> {
    if wanted.by_kernel {
        return None;
    }
    // No shift by what may be more than the width: the kernel has refused families above its own before it asks.
    let family = wanted.family as u8;
    let is_allowed = wanted.family == family as u32 && allowed & family::set_of(family) != 0;
    if is_allowed && !wanted.is_probe() {
        return None;
    }
    if !is_allowed && is_exempt() {
        return None;
    }
    Some(Reason::FamilyRefused)
}

/// Decides about a socket that a process is handed. `admission` is what is known of the socket; `receiver` says whose the
/// process is, and is asked only if it matters.
///
/// Whether the grant still counts is not asked: a socket that it let through is of no use to anybody after its end.
///
/// What is let through of MPTCP are its subflows, and what is handed over is the socket above them: it stays with the subject
/// that made it, wherever it leads. The end of a connection that a server accepted is the server's to hand on.
#[inline(always)]
pub fn decide_handover(admission: &Admission, receiver: impl FnOnce() -> Caller) -> Option<Reason> {
    if admission.flags & Admission::ACCEPTED != 0 {
        return None;
    }
    let owner = if admission.resource != 0 {
        admission.subject
    } else if admission.flags & Admission::MPTCP != 0 && admission.creator_subject != 0 {
        admission.creator_subject
    } else {
        return None;
    };
    match receiver() {
        Caller::Subject(subject) if subject == owner => None,
        Caller::Subject(_) | Caller::Unknown | Caller::TooDeep => Some(Reason::HandedOver),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{INET, NETLINK, PACKET, PROBE_KIND, USUAL, VSOCK, XDP};

    const STREAM: u32 = 1;

    fn wanted(family: u8) -> Wanted {
        Wanted { family: family.into(), kind: STREAM, by_kernel: false }
    }

    fn never() -> bool {
        panic!("nobody need be asked")
    }

    #[test]
    fn only_usual_families_can_be_had() {
        for family in 0..=u8::MAX {
            let usual = USUAL & family::set_of(family) != 0;
            let expected = (!usual).then_some(Reason::FamilyRefused);
            assert_eq!(decide_family(&wanted(family), USUAL, || false), expected, "{family}");
        }
        // Not taken for the family whose number its last byte is.
        let odd = Wanted { family: 0x100 + u32::from(INET), ..wanted(INET) };
        assert_eq!(decide_family(&odd, USUAL, || false), Some(Reason::FamilyRefused));
    }

    #[test]
    fn some_may_have_any() {
        assert_eq!(decide_family(&wanted(PACKET), USUAL, || true), None);
        assert_eq!(decide_family(&wanted(VSOCK), USUAL | family::set_of(VSOCK), never), None);
        assert_eq!(decide_family(&wanted(NETLINK), USUAL, never), None);
        assert_eq!(decide_family(&Wanted { by_kernel: true, ..wanted(XDP) }, USUAL, never), None);
    }

    #[test]
    fn the_probe_is_always_refused() {
        let probe = Wanted { kind: PROBE_KIND, ..wanted(INET) };
        assert_eq!(decide_family(&probe, USUAL, never), Some(Reason::FamilyRefused));
        assert!(probe.is_probe());
        assert!(!wanted(INET).is_probe());
        assert_eq!(decide_family(&Wanted { by_kernel: true, ..probe }, USUAL, never), None);
    }

    #[test]
    fn who_may_be_handed_a_socket() {
        let admission = |resource, subject| Admission { resource, subject, ..Admission::default() };
        let let_through = admission(1, 7);
        for (receiver, expected) in [
            (Caller::Subject(7), None),
            (Caller::Subject(8), Some(Reason::HandedOver)),
            (Caller::Unknown, Some(Reason::HandedOver)),
            (Caller::TooDeep, Some(Reason::HandedOver)),
        ] {
            assert_eq!(decide_handover(&let_through, || receiver), expected, "{receiver:?}");
        }
        let mptcp = Admission { flags: Admission::MPTCP, creator_subject: 7, ..Admission::default() };
        assert_eq!(decide_handover(&mptcp, || Caller::Subject(7)), None);
        assert_eq!(decide_handover(&mptcp, || Caller::Subject(8)), Some(Reason::HandedOver));
        let nobody = || -> Caller { panic!("nobody need be asked") };
        let accepted = Admission { flags: Admission::UNIX | Admission::ACCEPTED, ..let_through };
        assert_eq!(decide_handover(&accepted, nobody), None);
        assert_eq!(decide_handover(&Admission::default(), nobody), None);
        assert_eq!(decide_handover(&admission(0, 7), nobody), None);
        assert_eq!(decide_handover(&Admission { creator_subject: 0, ..mptcp }, nobody), None);
    }
}
