//! The decision: what the look-ups found, and the time, to a verdict and its reason.
//!
//! Owns: the rule that a protected destination is closed unless a live grant says otherwise. Must not know: maps, clocks,
//! contexts. The same code runs in the kernel and in the unit tests, which print its whole truth table.
//!
//! Invariant: `Allow` for a protected destination has one way only, through every check; anything missing denies.

use crate::abi::{GrantRef, GrantSlot};

/// What the kernel does with one connection attempt.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Allow = 1,
    /// The caller gets EPERM.
    Deny = 2,
}

/// Why.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nobody protects the destination. Never recorded.
    NotProtected = 1,
    /// A live grant.
    Granted = 2,
    /// The caller's cgroup belongs to no subject.
    UnknownSubject = 3,
    /// The subject has no grant for the resource.
    NoLiveGrant = 4,
    /// The grant's deadline has passed.
    Expired = 5,
    /// The grant was ended before its deadline, and the maps are just being changed.
    Revoked = 6,
    /// The caller's cgroup lies deeper than the program looks.
    CgroupTooDeep = 7,
    /// A map has no entry where it must have one.
    LookupFailed = 8,
}

impl Verdict {
    /// The verdict that a record names. None: not one of ours.
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::Allow, Self::Deny].into_iter().find(|verdict| *verdict as u8 == code)
    }
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::NotProtected,
        Self::Granted,
        Self::UnknownSubject,
        Self::NoLiveGrant,
        Self::Expired,
        Self::Revoked,
        Self::CgroupTooDeep,
        Self::LookupFailed,
    ];

    /// The reason that a record names. None: not one of ours.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u8 == code)
    }

    /// As audit events name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotProtected => "not_protected",
            Self::Granted => "granted",
            Self::UnknownSubject => "unknown_subject",
            Self::NoLiveGrant => "no_live_grant",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::CgroupTooDeep => "cgroup_too_deep",
            Self::LookupFailed => "lookup_failed",
        }
    }

    /// The one verdict that goes with the reason.
    #[inline(always)]
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::NotProtected | Self::Granted => Verdict::Allow,
            Self::UnknownSubject
            | Self::NoLiveGrant
            | Self::Expired
            | Self::Revoked
            | Self::CgroupTooDeep
            | Self::LookupFailed => Verdict::Deny,
        }
    }
}

/// Whose the calling process is: the nearest cgroup at or above its own that is bound to a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// No such cgroup.
    Unknown,
    /// The search ended before the process's own cgroup was reached.
    TooDeep,
    /// The subject's number.
    Subject(u32),
}

/// What the look-ups found, in the order in which they must be made: the slot before its epoch. A slot is filled anew only
/// after its epoch was raised, so whoever reads the slot half written reads a different epoch after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts<'a> {
    /// Number of the resource; None: the destination is not protected.
    pub resource: Option<u32>,
    /// Who asks.
    pub caller: Caller,
    /// The pair's grant.
    pub grant: Option<&'a GrantRef>,
    /// Where it lies.
    pub slot: Option<&'a GrantSlot>,
    /// The slot's epoch now.
    pub epoch: Option<u64>,
}

/// Decides. `now_boot_ns` is `CLOCK_BOOTTIME`.
#[inline(always)]
pub fn decide(facts: &Facts<'_>, now_boot_ns: u64) -> Reason {
    if facts.resource.is_none() {
        return Reason::NotProtected;
    }
    match facts.caller {
        Caller::Unknown => return Reason::UnknownSubject,
        Caller::TooDeep => return Reason::CgroupTooDeep,
        Caller::Subject(_) => {}
    }
    let Some(grant) = facts.grant else { return Reason::NoLiveGrant };
    let (Some(slot), Some(epoch)) = (facts.slot, facts.epoch) else { return Reason::LookupFailed };
    if epoch != grant.epoch {
        return Reason::Revoked;
    }
    if now_boot_ns >= slot.expires_at_boot_ns {
        return Reason::Expired;
    }
    Reason::Granted
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::format;

    use super::*;

    const NOW: u64 = 1_000;

    fn grant(epoch: u64) -> GrantRef {
        GrantRef { slot: 0, reserved: 0, epoch }
    }

    fn slot(expires_at_boot_ns: u64) -> GrantSlot {
        GrantSlot { grant: [1; 16], expires_at_boot_ns, reserved: 0 }
    }

    /// Every combination of what each look-up can find. A change of any row is a change of what Portcullis lets through.
    #[test]
    fn truth_table() {
        let resources = [("unprotected", None), ("protected", Some(1))];
        let callers =
            [("unknown", Caller::Unknown), ("too deep", Caller::TooDeep), ("subject", Caller::Subject(1))];
        let grants = [("none", None), ("epoch 7", Some(grant(7)))];
        let slots = [
            ("none", None),
            ("empty", Some(slot(0))),
            ("ends before", Some(slot(NOW - 1))),
            ("ends now", Some(slot(NOW))),
            ("ends after", Some(slot(NOW + 1))),
        ];
        let epochs = [("none", None), ("6", Some(6)), ("7", Some(7)), ("8", Some(8))];

        let mut table = format!(
            "{:<12} {:<9} {:<8} {:<12} {:<6} -> {:<6} {}\n",
            "destination", "caller", "grant", "slot", "epoch", "", "reason"
        );
        for (resource_name, resource) in resources {
            for (caller_name, caller) in callers {
                for (grant_name, grant) in &grants {
                    for (slot_name, slot) in &slots {
                        for (epoch_name, epoch) in epochs {
                            let facts =
                                Facts { resource, caller, grant: grant.as_ref(), slot: slot.as_ref(), epoch };
                            let reason = decide(&facts, NOW);
                            table += &format!(
                                "{resource_name:<12} {caller_name:<9} {grant_name:<8} {slot_name:<12} {epoch_name:<6} -> {:<6} {}\n",
                                format!("{:?}", reason.verdict()),
                                reason.as_str(),
                            );
                        }
                    }
                }
            }
        }
        insta::assert_snapshot!(table);
    }

    /// The table again, as one sentence: a protected destination opens only to a subject whose grant is of the slot's
    /// present epoch and not over.
    #[test]
    fn only_a_live_grant_opens() {
        let allowed = |facts: &Facts<'_>| decide(facts, NOW).verdict() == Verdict::Allow;
        let (grant, slot) = (grant(7), slot(NOW + 1));
        let open = Facts {
            resource: Some(1),
            caller: Caller::Subject(1),
            grant: Some(&grant),
            slot: Some(&slot),
            epoch: Some(7),
        };
        assert!(allowed(&open));
        let closed = [
            Facts { caller: Caller::Unknown, ..open },
            Facts { caller: Caller::TooDeep, ..open },
            Facts { grant: None, ..open },
            Facts { slot: None, ..open },
            Facts { epoch: None, ..open },
            Facts { epoch: Some(8), ..open },
        ];
        for facts in closed {
            assert!(!allowed(&facts), "{facts:?}");
        }
        assert_eq!(decide(&open, slot.expires_at_boot_ns).verdict(), Verdict::Deny);
        assert_eq!(decide(&open, u64::MAX).verdict(), Verdict::Deny);
    }

    #[test]
    fn codes_and_names_are_distinct() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_code(reason as u8), Some(reason));
            let same = Reason::ALL.into_iter().filter(|other| other.as_str() == reason.as_str());
            assert_eq!(same.count(), 1, "{}", reason.as_str());
        }
        assert_eq!(Reason::from_code(0), None);
        assert_eq!(Verdict::from_code(2), Some(Verdict::Deny));
        assert_eq!(Verdict::from_code(0), None);
    }
}
