//! The decision: what the look-ups found, and the time, to a verdict and its reason.
//!
//! Owns: the rule that a protected destination is closed unless a live grant says otherwise. Must not know: maps, clocks,
//! contexts. The same code runs in the kernel and in the unit tests, which print its whole truth table.
//!
//! Invariant: `Allow` for a protected destination has one way only, through every check; anything missing denies. What is
//! only observed is decided in the same way, and let through all the same, as `WouldDeny`.

pub mod ingress;
pub mod lsm;
pub mod tamper;

use crate::abi::{Admission, ConnectionEntry, EndedBy, GrantRef, ResourceEntry};

/// What the kernel does with one connection attempt.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Allow = 1,
    /// The caller gets EPERM.
    Deny = 2,
    /// It goes on, as its resource is only observed.
    WouldDeny = 3,
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
    /// The socket was made by somebody else than the caller.
    CreatorDiffers = 9,
    /// There is no room to remember another connection.
    ConnectionsFull = 10,
    /// A packet of a socket that was not let through to anything.
    NotAdmitted = 11,
    /// A packet to another resource than the socket was let through to: its address or port was changed on the way.
    OtherResource = 12,
    /// A packet whose headers are not understood, or run on for too long.
    Unreadable = 13,
    /// There is no room for the record without which the resource lets nobody through.
    AuditUnavailable = 14,
    /// Nothing was sent or received by the grant for longer than it may be idle.
    Idle = 15,
    /// A write on a connection by somebody else than whom it was let through for.
    SenderDiffers = 16,
    /// A packet that has arrived for a resource from somewhere where it is not served.
    PeerNotServed = 17,
    /// A socket of a family that does not pass the gate.
    FamilyRefused = 32,
    /// A socket that was let through for another subject than the process that was handed it.
    HandedOver = 33,
    /// Somebody else than the agent reaches for the gate itself, or for the agent.
    Tampering = 34,
}

impl Verdict {
    /// The verdict that a record names. None: not one of ours.
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::Allow, Self::Deny, Self::WouldDeny].into_iter().find(|verdict| *verdict as u8 == code)
    }

    /// Whether what was judged goes on.
    #[inline(always)]
    pub const fn lets_through(self) -> bool {
        match self {
            Self::Allow | Self::WouldDeny => true,
            Self::Deny => false,
        }
    }
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::NotProtected,
        Self::Granted,
        Self::UnknownSubject,
        Self::NoLiveGrant,
        Self::Expired,
        Self::Revoked,
        Self::CgroupTooDeep,
        Self::LookupFailed,
        Self::CreatorDiffers,
        Self::ConnectionsFull,
        Self::NotAdmitted,
        Self::OtherResource,
        Self::Unreadable,
        Self::AuditUnavailable,
        Self::Idle,
        Self::SenderDiffers,
        Self::PeerNotServed,
        Self::FamilyRefused,
        Self::HandedOver,
        Self::Tampering,
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
            Self::CreatorDiffers => "creator_differs",
            Self::ConnectionsFull => "connections_full",
            Self::NotAdmitted => "not_admitted",
            Self::OtherResource => "other_resource",
            Self::Unreadable => "unreadable",
            Self::AuditUnavailable => "audit_unavailable",
            Self::Idle => "idle",
            Self::SenderDiffers => "sender_differs",
            Self::PeerNotServed => "peer_not_served",
            Self::FamilyRefused => "family_refused",
            Self::HandedOver => "handed_over",
            Self::Tampering => "tampering",
        }
    }

    /// The one verdict that goes with the reason. `resource` is what it is about; None: nobody knows.
    #[inline(always)]
    pub fn verdict(self, resource: Option<&ResourceEntry>) -> Verdict {
        match self {
            Self::NotProtected | Self::Granted => Verdict::Allow,
            _ if resource.is_some_and(|entry| entry.has(ResourceEntry::OBSERVE)) => Verdict::WouldDeny,
            Self::UnknownSubject
            | Self::NoLiveGrant
            | Self::Expired
            | Self::Revoked
            | Self::CgroupTooDeep
            | Self::LookupFailed
            | Self::CreatorDiffers
            | Self::ConnectionsFull
            | Self::NotAdmitted
            | Self::OtherResource
            | Self::Unreadable
            | Self::AuditUnavailable
            | Self::Idle
            | Self::SenderDiffers
            | Self::PeerNotServed
            | Self::FamilyRefused
            | Self::HandedOver
            | Self::Tampering => Verdict::Deny,
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

/// Who made the socket, seen from whom it was let through for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creator {
    /// That subject.
    Same,
    /// Somebody else; or the kernel, for a connection that is up already.
    Other,
}

impl Creator {
    /// `made_in` is whose the cgroup is that the socket was made in, `subject` whom it was let through for.
    #[inline(always)]
    pub fn of(made_in: Caller, subject: u32) -> Self {
        match made_in {
            Caller::Subject(creator) if creator == subject => Self::Same,
            Caller::Subject(_) | Caller::Unknown | Caller::TooDeep => Self::Other,
        }
    }
}

/// What the look-ups about a slot found. A slot is given to another pair only after its epoch was raised, and all else about
/// it is written before anything refers to the new epoch: so the epoch is read last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// `CLOCK_BOOTTIME` in nanoseconds.
    pub deadline_boot_ns: u64,
    /// How long it may be without activity, in nanoseconds; 0: for any time.
    pub idle_limit_ns: u64,
    /// When it was last active: `CLOCK_BOOTTIME` in nanoseconds. Means nothing where there is no limit.
    pub active_boot_ns: u64,
    /// Its epoch now.
    pub epoch: u64,
}

impl Slot {
    /// Whether what referred to the slot in this epoch still counts. None: it does.
    #[inline(always)]
    pub fn ended(&self, epoch: u64, now_boot_ns: u64) -> Option<Reason> {
        if self.epoch != epoch {
            return Some(Reason::Revoked);
        }
        if now_boot_ns >= self.deadline_boot_ns {
            return Some(Reason::Expired);
        }
        // Another CPU's packet may be newer than this one's look at the clock.
        if self.idle_limit_ns != 0 && now_boot_ns.saturating_sub(self.active_boot_ns) >= self.idle_limit_ns {
            return Some(Reason::Idle);
        }
        None
    }
}

/// What the look-ups about a connection attempt, or an unconnected datagram, found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts<'a> {
    /// The resource; None: the destination is not protected.
    pub resource: Option<&'a ResourceEntry>,
    /// Who asks.
    pub caller: Caller,
    /// The pair's grant.
    pub grant: Option<&'a GrantRef>,
    /// Where it lies.
    pub slot: Option<&'a Slot>,
}

/// Decides about a connection attempt, or an unconnected datagram. `now_boot_ns` is `CLOCK_BOOTTIME`.
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
    let Some(slot) = facts.slot else { return Reason::LookupFailed };
    slot.ended(grant.epoch, now_boot_ns).unwrap_or(Reason::Granted)
}

/// What becomes of somebody who would be let through, if there is no room for the record of it.
#[inline(always)]
pub fn without_record(resource: &ResourceEntry) -> Reason {
    if resource.has(ResourceEntry::STRICT) { Reason::AuditUnavailable } else { Reason::Granted }
}

/// What the look-ups about a packet found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireFacts<'a> {
    /// The resource; None: the destination is not protected.
    pub resource: Option<&'a ResourceEntry>,
    /// What its socket was let through by; None: nothing is known of the socket.
    pub admission: Option<&'a Admission>,
    /// The admission's slot.
    pub slot: Option<&'a Slot>,
    /// Who made the socket. Only packets show it: the kernel does not tell the programs that see calls.
    pub creator: Creator,
}

/// Decides about a packet. `now_boot_ns` is `CLOCK_BOOTTIME`.
#[inline(always)]
pub fn decide_wire(facts: &WireFacts<'_>, now_boot_ns: u64) -> Reason {
    let Some(resource) = facts.resource else { return Reason::NotProtected };
    let Some(admission) = facts.admission else { return Reason::NotAdmitted };
    if admission.flags & Admission::PASSIVE != 0 {
        return Reason::NotProtected;
    }
    if admission.resource == 0 {
        return Reason::NotAdmitted;
    }
    if admission.resource != resource.number {
        return Reason::OtherResource;
    }
    let Some(slot) = facts.slot else { return Reason::LookupFailed };
    if let Some(ended) = slot.ended(admission.epoch, now_boot_ns) {
        return ended;
    }
    // Last: that somebody may reach the resource, and only not by this socket, is another thing than that they may not.
    match facts.creator {
        Creator::Same => Reason::Granted,
        Creator::Other => Reason::CreatorDiffers,
    }
}

/// Decides about a write on a connection that was let through for `admitted`, a subject's number. `sender` is whose the
/// writing task is.
#[inline(always)]
pub fn decide_send(sender: Caller, admitted: u32) -> Reason {
    match sender {
        Caller::Subject(subject) if subject == admitted => Reason::Granted,
        Caller::Subject(_) | Caller::Unknown | Caller::TooDeep => Reason::SenderDiffers,
    }
}

/// What is known of a connection when it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End<'a> {
    /// How it was let through.
    pub entry: &'a ConnectionEntry,
    /// Its slot.
    pub slot: Option<&'a Slot>,
    /// Its TCP state before; None: it has no such states.
    pub state: Option<u32>,
    /// Its last file descriptor was closed before.
    pub is_released: bool,
}

/// Says who ended a connection, as far as the kernel shows it. `now_boot_ns` is `CLOCK_BOOTTIME`.
#[inline(always)]
pub fn ended_by(end: &End<'_>, now_boot_ns: u64) -> EndedBy {
    // TCP's states, as the kernel numbers them.
    const FIN_WAIT1: u32 = 4;
    const FIN_WAIT2: u32 = 5;
    const CLOSE_WAIT: u32 = 8;
    const LAST_ACK: u32 = 9;
    const CLOSING: u32 = 11;
    let is_observed = end.entry.flags & ConnectionEntry::OBSERVED != 0;
    let has_ended = |slot: &Slot| slot.ended(end.entry.epoch, now_boot_ns).is_some();
    if !is_observed && end.slot.is_none_or(has_ended) {
        return EndedBy::Grant;
    }
    match end.state {
        Some(CLOSE_WAIT | LAST_ACK) => EndedBy::Peer,
        Some(FIN_WAIT1 | FIN_WAIT2 | CLOSING) => EndedBy::Own,
        _ if end.is_released => EndedBy::Own,
        _ => EndedBy::Reset,
    }
}

/// What TCP counts as acknowledged and as received but is no payload, when the connection ends from this state: SYN and FIN.
/// Whether the other side's FIN came cannot be told from FIN_WAIT2.
#[inline(always)]
pub const fn overhead(state: u32) -> (u64, u64) {
    const SYN_SENT: u32 = 2;
    const FIN_WAIT2: u32 = 5;
    const CLOSE_WAIT: u32 = 8;
    const LAST_ACK: u32 = 9;
    const CLOSING: u32 = 11;
    match state {
        SYN_SENT => (0, 0),
        FIN_WAIT2 => (2, 0),
        CLOSE_WAIT => (1, 1),
        LAST_ACK | CLOSING => (2, 1),
        _ => (1, 0),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::format;
    use std::string::String;

    use super::*;

    const NOW: u64 = 1_000;

    fn grant(epoch: u64) -> GrantRef {
        GrantRef { slot: 0, reserved: 0, epoch }
    }

    const LIMIT: u64 = 100;

    fn entry(number: u32, flags: u32) -> ResourceEntry {
        ResourceEntry { number, flags }
    }

    /// What a destination can be found to be.
    const RESOURCES: [(&str, Option<ResourceEntry>); 3] = [
        ("unprotected", None),
        ("protected", Some(ResourceEntry { number: 1, flags: 0 })),
        ("observed", Some(ResourceEntry { number: 1, flags: ResourceEntry::OBSERVE })),
    ];

    fn live() -> Slot {
        Slot { deadline_boot_ns: NOW + 1, idle_limit_ns: 0, active_boot_ns: 0, epoch: 7 }
    }

    /// What a slot can be found to be, seen from a reference of epoch 7.
    fn slots() -> [(&'static str, Option<Slot>); 10] {
        let slot = |deadline_boot_ns, epoch| Some(Slot { deadline_boot_ns, epoch, ..live() });
        let limited = |active_boot_ns| Some(Slot { idle_limit_ns: LIMIT, active_boot_ns, ..live() });
        [
            ("none", None),
            ("never, 7", slot(0, 7)),
            ("before, 7", slot(NOW - 1, 7)),
            ("now, 7", slot(NOW, 7)),
            ("after, 7", slot(NOW + 1, 7)),
            ("after, 6", slot(NOW + 1, 6)),
            ("after, 8", slot(NOW + 1, 8)),
            ("idle", limited(NOW - LIMIT)),
            ("not idle", limited(NOW - LIMIT + 1)),
            ("newer", limited(NOW + 1)),
        ]
    }

    /// Every combination of what each look-up can find. A change of any row is a change of what Portcullis lets through.
    #[test]
    fn truth_table() {
        let callers =
            [("unknown", Caller::Unknown), ("too deep", Caller::TooDeep), ("subject", Caller::Subject(1))];
        let grants = [("none", None), ("epoch 7", Some(grant(7)))];

        let mut table = row(["destination", "caller", "grant", "slot ends", ""], None);
        for (resource_name, resource) in &RESOURCES {
            for (caller_name, caller) in callers {
                for (grant_name, grant) in &grants {
                    for (slot_name, slot) in &slots() {
                        let facts = Facts {
                            resource: resource.as_ref(),
                            caller,
                            grant: grant.as_ref(),
                            slot: slot.as_ref(),
                        };
                        let names = [resource_name, caller_name, grant_name, slot_name, ""];
                        table += &row(names, Some((decide(&facts, NOW), resource.as_ref())));
                    }
                }
            }
        }
        insta::assert_snapshot!(table);
    }

    /// The same for packets.
    #[test]
    fn wire_truth_table() {
        let admission =
            |resource, flags| Some(Admission { resource, flags, epoch: 7, ..Admission::default() });
        let admissions = [
            ("none", None),
            ("to nothing", admission(0, 0)),
            ("to another", admission(2, 0)),
            ("to this", admission(1, 0)),
            ("to this, told", admission(1, Admission::TOLD)),
            ("passive", admission(0, Admission::PASSIVE)),
        ];
        let creators = [("same", Creator::Same), ("other", Creator::Other)];
        let mut table = row(["destination", "admission", "slot ends", "creator", ""], None);
        for (resource_name, resource) in &RESOURCES {
            for (admission_name, admission) in &admissions {
                for (slot_name, slot) in &slots() {
                    for (creator_name, creator) in creators {
                        let resource = resource.as_ref();
                        let (admission, slot) = (admission.as_ref(), slot.as_ref());
                        let reason = decide_wire(&WireFacts { resource, admission, slot, creator }, NOW);
                        let names = [resource_name, admission_name, slot_name, creator_name, ""];
                        table += &row(names, Some((reason, resource)));
                    }
                }
            }
        }
        insta::assert_snapshot!(table);
    }

    /// Every way in which a connection can be found to have ended, and what of its acknowledged bytes is no payload.
    #[test]
    fn ends_table() {
        let states = [
            ("none", None),
            ("ESTABLISHED", Some(1)),
            ("SYN_SENT", Some(2)),
            ("FIN_WAIT1", Some(4)),
            ("FIN_WAIT2", Some(5)),
            ("CLOSE_WAIT", Some(8)),
            ("LAST_ACK", Some(9)),
            ("CLOSING", Some(11)),
        ];
        let mut entry = ConnectionEntry::EMPTY;
        entry.epoch = 7;
        let observed = ConnectionEntry { flags: ConnectionEntry::OBSERVED, ..entry };
        let ended = Slot { epoch: 8, ..live() };
        let whats = [
            ("granted", &entry, Some(live())),
            ("ended", &entry, Some(ended)),
            ("slot unread", &entry, None),
            ("observed", &observed, Some(ended)),
        ];
        let mut table =
            String::from("connection   released  state        -> end    overhead sent, received\n");
        for (name, entry, slot) in &whats {
            for is_released in [false, true] {
                for (state_name, state) in states {
                    let end = End { entry, slot: slot.as_ref(), state, is_released };
                    let by = ended_by(&end, NOW).as_str();
                    let (sent, received) = state.map_or((0, 0), overhead);
                    table += &format!(
                        "{name:<12} {is_released:<9} {state_name:<12} -> {by:<6} {sent} {received}\n"
                    );
                }
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn only_strict_resources_insist_on_a_record() {
        for flags in 0..8 {
            let strict = flags & ResourceEntry::STRICT != 0;
            let reason = if strict { Reason::AuditUnavailable } else { Reason::Granted };
            assert_eq!(without_record(&entry(1, flags)), reason, "flags {flags}");
        }
    }

    #[test]
    fn only_whom_it_was_let_through_for_writes() {
        assert_eq!(decide_send(Caller::Subject(3), 3), Reason::Granted);
        for other in [Caller::Subject(4), Caller::Unknown, Caller::TooDeep] {
            assert_eq!(decide_send(other, 3), Reason::SenderDiffers);
        }
    }

    fn row(names: [&str; 5], reason: Option<(Reason, Option<&ResourceEntry>)>) -> String {
        let verdict =
            |(reason, resource): (Reason, Option<&ResourceEntry>)| format!("{:?}", reason.verdict(resource));
        let verdict = reason.map_or_else(String::new, verdict);
        let reason = reason.map_or("reason", |(reason, _)| reason.as_str());
        let [a, b, c, d, e] = names;
        format!("{a:<12} {b:<14} {c:<10} {d:<10} {e:<8} -> {verdict:<9} {reason}\n")
    }

    /// The table again, as one sentence: a protected destination opens only to a subject whose grant is of the slot's
    /// present epoch and not over.
    #[test]
    fn only_a_live_grant_opens() {
        let verdict = |facts: &Facts<'_>| decide(facts, NOW).verdict(facts.resource);
        let allowed = |facts: &Facts<'_>| verdict(facts) == Verdict::Allow;
        let (grant, slot) = (grant(7), live());
        let over = Slot { deadline_boot_ns: NOW, ..live() };
        let revoked = Slot { epoch: 8, ..live() };
        let idle = Slot { idle_limit_ns: LIMIT, active_boot_ns: NOW - LIMIT, ..live() };
        let (protected, observed) = (entry(1, 0), entry(1, ResourceEntry::OBSERVE));
        let open = Facts {
            resource: Some(&protected),
            caller: Caller::Subject(1),
            grant: Some(&grant),
            slot: Some(&slot),
        };
        assert!(allowed(&open));
        let closed = [
            Facts { caller: Caller::Unknown, ..open },
            Facts { caller: Caller::TooDeep, ..open },
            Facts { grant: None, ..open },
            Facts { slot: None, ..open },
            Facts { slot: Some(&over), ..open },
            Facts { slot: Some(&revoked), ..open },
            Facts { slot: Some(&idle), ..open },
        ];
        for facts in closed {
            assert_eq!(verdict(&facts), Verdict::Deny, "{facts:?}");
            assert_eq!(
                verdict(&Facts { resource: Some(&observed), ..facts }),
                Verdict::WouldDeny,
                "{facts:?}"
            );
        }
        assert_eq!(decide(&open, u64::MAX).verdict(Some(&protected)), Verdict::Deny);
    }

    #[test]
    fn whose_socket_it_is() {
        assert_eq!(Creator::of(Caller::Subject(3), 3), Creator::Same);
        for other in [Caller::Subject(4), Caller::Unknown, Caller::TooDeep] {
            assert_eq!(Creator::of(other, 3), Creator::Other);
        }
        // What was let through for nobody was not let through.
        assert_eq!(Creator::of(Caller::Unknown, 0), Creator::Other);
    }

    #[test]
    fn codes_and_names_are_distinct() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_code(reason as u8), Some(reason));
            let same = Reason::ALL.into_iter().filter(|other| other.as_str() == reason.as_str());
            assert_eq!(same.count(), 1, "{}", reason.as_str());
        }
        assert_eq!(Reason::from_code(0), None);
        for verdict in [Verdict::Allow, Verdict::Deny, Verdict::WouldDeny] {
            assert_eq!(Verdict::from_code(verdict as u8), Some(verdict));
        }
        for ended_by in EndedBy::ALL {
            assert_eq!(EndedBy::from_code(ended_by as u8), Some(ended_by));
        }
        assert_eq!(Verdict::from_code(0), None);
    }
}
