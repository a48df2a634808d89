//! The plan against a model that knows no maps: random sets, and writes that fail at random.

use std::cell::RefCell;

use proptest::prelude::*;
use proto::types::{NewResource, PortRange};

use super::*;

pub(in crate::rules) const SLOTS: u32 = 8;

/// Longer than any margin.
const HOUR: u64 = 3_600_000_000_000;

/// Before every deadline of these tests, unless they say otherwise.
const NOW: u64 = 0;

fn resource(number: u32, addresses: &[&str], ports: &[&str]) -> Resource {
    let parse = |text: &&str| text.parse().expect("valid");
    let ports = ports.iter().map(|text| text.parse().expect("valid")).collect();
    let name = format!("r{number}").parse().expect("valid");
    let new = NewResource::new(name, addresses.iter().map(parse).collect(), ports).expect("valid");
    Resource::numbered(number.try_into().expect("not 0"), new)
}

pub(in crate::rules) fn grant(id: u8, subject: u32, resource: u32, expires_at_boot_ns: u64) -> WantedGrant {
    WantedGrant {
        id: GrantId::from_bytes([id; 16]).expect("not 0"),
        subject: subject.try_into().expect("not 0"),
        resource: resource.try_into().expect("not 0"),
        expires_at_boot_ns,
    }
}

/// The resource that the maps find for a destination.
fn protecting(entries: &Entries, protocol: u8, port: u16, address: [u8; 16]) -> Option<u32> {
    entries.protecting(protocol, port, address)
}

/// The grant and deadline that the maps find for a pair, as the kernel does it.
pub(in crate::rules) fn granted(entries: &Entries, key: GrantKey) -> Option<([u8; 16], u64)> {
    let reference = entries.grants.get(&key)?;
    let slot = entries.slots.get(&reference.slot)?;
    let deadline = entries.deadlines.get(&reference.slot)?;
    (entries.epoch(reference.slot) == reference.epoch).then_some((slot.grant, *deadline))
}

#[track_caller]
pub(in crate::rules) fn settle(present: &mut Entries, wanted: &Wanted) -> Vec<Write> {
    let mut writes = Vec::new();
    let outcome = reconcile(present, wanted, SLOTS, NOW, |write| {
        writes.push(*write);
        Ok::<(), String>(())
    });
    assert!(outcome.refused.is_empty() && outcome.failed.is_empty(), "{outcome:?}");
    writes
}

#[test]
fn ports_of_the_same_resources_share_a_class() {
    let mut present = Entries::default();
    let wanted = Wanted {
        resources: vec![
            resource(1, &["10.0.0.1", "10.0.0.2"], &["tcp/5432", "tcp/6000-6009"]),
            resource(2, &["10.0.0.0/24"], &["tcp/6005", "udp/5432"]),
        ],
        ..Wanted::default()
    };
    settle(&mut present, &wanted);
    // {1}, {1, 2} and {2}.
    assert_eq!(present.classes.len(), 3);
    assert_eq!(present.ports.len(), 12);
    let address = |last: u8| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, last];
    assert_eq!(protecting(&present, protocol::TCP, 5432, address(1)), Some(1));
    assert_eq!(protecting(&present, protocol::TCP, 5432, address(3)), None);
    assert_eq!(protecting(&present, protocol::TCP, 6005, address(1)), Some(1));
    assert_eq!(protecting(&present, protocol::TCP, 6005, address(3)), Some(2));
    assert_eq!(protecting(&present, protocol::UDP, 5432, address(1)), Some(2));
    // The same again is nothing to do; nothing wanted leaves nothing.
    assert_eq!(settle(&mut present, &wanted), []);
    settle(&mut present, &Wanted::default());
    assert_eq!(present, Entries::default());
}

#[test]
fn removals_come_first() {
    let mut present = Entries::default();
    let subject = |number: u32| SubjectNumber::try_from(number).expect("not 0");
    let resources = vec![resource(1, &["10.0.0.1"], &["tcp/1"])];
    let first = Wanted {
        resources: resources.clone(),
        cgroups: [(10, subject(1))].into(),
        grants: vec![grant(1, 1, 1, 100)],
    };
    settle(&mut present, &first);
    let second = Wanted { resources, cgroups: [(11, subject(2))].into(), grants: vec![grant(2, 2, 1, 100)] };
    let kinds: Vec<&str> = settle(&mut present, &second)
        .iter()
        .map(|write| match write {
            Write::SetEpoch { .. } => "raise epoch",
            Write::RemoveGrant { .. } => "remove grant",
            Write::UnbindCgroup { .. } => "unbind",
            Write::BindCgroup { .. } => "bind",
            Write::NameSlot { .. } => "name slot",
            Write::SetDeadline { .. } => "set deadline",
            Write::PutGrant { .. } => "put grant",
            Write::SetPort { .. } | Write::AddAddress { .. } | Write::RemoveAddress { .. } => "protect",
        })
        .collect();
    assert_eq!(
        kinds,
        ["raise epoch", "remove grant", "unbind", "bind", "name slot", "set deadline", "put grant"]
    );
}

#[test]
fn a_longer_grant_takes_over_without_a_hole() {
    let mut present = Entries::default();
    let key = GrantKey { subject: 1, resource: 1 };
    let wanted = |grants: Vec<WantedGrant>| Wanted { grants, ..Wanted::default() };
    settle(&mut present, &wanted(vec![grant(1, 1, 1, HOUR)]));
    assert_eq!(granted(&present, key), Some(([1; 16], HOUR)));
    let held = present.grants[&key];

    let holes = RefCell::new(0);
    let mut seen = present.clone();
    let both = wanted(vec![grant(1, 1, 1, HOUR), grant(2, 1, 1, 2 * HOUR)]);
    reconcile(&mut present, &both, SLOTS, NOW, |write| {
        seen.apply(write);
        *holes.borrow_mut() += usize::from(granted(&seen, key).is_none());
        Ok::<(), String>(())
    });
    assert_eq!((granted(&present, key), holes.into_inner()), (Some(([2; 16], 2 * HOUR)), 0));
    // The long one revoked: the short one carries on. What was let through all the while refers to the same slot and epoch.
    settle(&mut present, &wanted(vec![grant(1, 1, 1, HOUR)]));
    assert_eq!(granted(&present, key), Some(([1; 16], HOUR)));
    assert_eq!(present.grants[&key], held);
    settle(&mut present, &wanted(vec![]));
    assert_eq!(granted(&present, key), None);
    // A later one is another.
    settle(&mut present, &wanted(vec![grant(3, 1, 1, HOUR)]));
    assert!(present.grants[&key] != held && !present.counts(held.slot, held.epoch, NOW));
}

#[test]
fn a_full_map_refuses_by_name_and_keeps_the_rest() {
    let mut present = Entries::default();
    let grants: Vec<WantedGrant> = (1..=3).map(|id| grant(id, u32::from(id), 1, 100)).collect();
    let outcome =
        reconcile(&mut present, &Wanted { grants, ..Wanted::default() }, 2, NOW, |_| Ok::<(), String>(()));
    let refused: Vec<RefusedItem> = outcome.refused.iter().map(|refused| refused.item).collect();
    assert_eq!(refused, [RefusedItem::Grant(GrantId::from_bytes([3; 16]).expect("not 0"))]);
    assert_eq!(present.grants.len(), 2);
}

#[test]
fn one_pair_alone_is_brought_to_what_is_wanted() {
    let mut present = Entries::default();
    let others = Wanted { grants: vec![grant(1, 1, 1, HOUR), grant(2, 2, 1, HOUR)], ..Wanted::default() };
    settle(&mut present, &others);
    let (before, key) = (present.clone(), GrantKey { subject: 9, resource: 9 });
    let write = |_: &Write| Ok::<(), String>(());
    let made = grant(9, 9, 9, HOUR);
    reconcile_pair(&mut present, key, Some(&made), SLOTS, NOW, write);
    let held = present.grants[&key];
    assert_eq!((granted(&present, key), held.slot), (Some(([9; 16], HOUR)), 2));
    reconcile_pair(&mut present, key, None, SLOTS, NOW, write);
    assert!(!present.counts(held.slot, held.epoch, NOW));
    assert_eq!(present.grants, before.grants);
    // Nothing is left for the whole to do.
    assert_eq!(settle(&mut present, &others), []);
}

/// Index of the protocol, first port, how many more.
type SomePorts = (usize, u32, u32);

fn some_resources() -> impl Strategy<Value = Vec<Resource>> {
    let ports = prop::collection::vec((0..2usize, 1..6u32, 0..3u32), 1..3);
    let addresses = prop::collection::vec(
        prop::sample::select(vec!["10.0.0.0/30", "10.0.0.0/31", "10.0.0.1", "10.0.0.2", "::1"]),
        1..3,
    );
    prop::collection::vec((addresses, ports), 0..4).prop_map(|parts| {
        let build = |(index, (addresses, ports)): (usize, (Vec<&str>, Vec<SomePorts>))| {
            let number = u32::try_from(index + 1).expect("small");
            let name = format!("r{number}").parse().expect("valid");
            let addresses = addresses.iter().map(|text| text.parse().expect("valid")).collect();
            let range = |(protocol, first, more): SomePorts| {
                PortRange::new(Protocol::ALL[protocol], first, first + more).expect("valid")
            };
            // Overlapping ranges within one resource are no resource at all.
            let new = NewResource::new(name, addresses, ports.into_iter().map(range).collect()).ok()?;
            Some(Resource::numbered(number.try_into().expect("not 0"), new))
        };
        parts.into_iter().enumerate().filter_map(build).collect()
    })
}

pub(in crate::rules) fn some_wanted() -> impl Strategy<Value = Wanted> {
    let grants = prop::collection::btree_map(1..6u8, (1..3u32, 1..3u32, 1..5u64), 0..6);
    let cgroups = prop::collection::btree_map(1..6u64, 1..4u32, 0..5);
    (some_resources(), cgroups, grants).prop_map(|(resources, cgroups, grants)| Wanted {
        resources,
        cgroups: cgroups.into_iter().map(|(id, subject)| (id, subject.try_into().expect("not 0"))).collect(),
        grants: grants
            .into_iter()
            .map(|(id, (subject, resource, end))| grant(id, subject, resource, end))
            .collect(),
    })
}

/// Every destination that the random resources can mean, and some they cannot.
pub(in crate::rules) fn destinations() -> impl Iterator<Item = (u8, u16, [u8; 16])> {
    let addresses = ["10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "::1", "::2"];
    let mapped = addresses.map(|text| text.parse::<proto::types::Prefix>().expect("valid").mapped().0);
    let ports = |protocol: u8| (1..9u16).map(move |port| (protocol, port));
    let all: Vec<(u8, u16)> = ports(protocol::TCP).chain(ports(protocol::UDP)).collect();
    all.into_iter().flat_map(move |(protocol, port)| mapped.map(|address| (protocol, port, address)))
}

/// What protects a destination by the resources themselves: the longest prefix, of equal ones the first resource's.
pub(in crate::rules) fn model(resources: &[Resource], protocol: u8, port: u16, address: [u8; 16]) -> Option<u32> {
    let on_port = |resource: &&Resource| {
        resource.ports.iter().any(|range| {
            let (first, last) = range.bounds();
            number_of(range.protocol()) == protocol && (first..=last).contains(&port)
        })
    };
    let mut best: Option<(u8, u32)> = None;
    for resource in resources.iter().filter(on_port) {
        for prefix in &resource.addresses {
            let (start, bits) = prefix.mapped();
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            let covers = u128::from_be_bytes(start) == u128::from_be_bytes(address) & mask;
            if covers && best.is_none_or(|(longest, _)| bits > longest) {
                best = Some((bits, resource.number.get()));
            }
        }
    }
    best.map(|(_, number)| number)
}

proptest! {
    /// Without failures the maps end up meaning exactly what is wanted, whatever they held.
    #[test]
    fn present_becomes_wanted(steps in prop::collection::vec(some_wanted(), 1..5)) {
        let mut present = Entries::default();
        for wanted in &steps {
            settle(&mut present, wanted);
            for (protocol, port, address) in destinations() {
                prop_assert_eq!(
                    protecting(&present, protocol, port, address),
                    model(&wanted.resources, protocol, port, address)
                );
            }
            let cgroups: BTreeMap<u64, u32> = wanted.cgroups.iter().map(|(id, subject)| (*id, subject.get())).collect();
            prop_assert_eq!(&present.cgroups, &cgroups);
            let best = longest(&wanted.grants);
            prop_assert_eq!(present.grants.len(), best.len());
            for (key, grant) in best {
                prop_assert_eq!(granted(&present, key), Some((*grant.id.as_bytes(), grant.expires_at_boot_ns)));
            }
            prop_assert_eq!(settle(&mut present, wanted), []);
        }
    }

    /// After every single write, with writes that fail at random: no protection is lost on the way, no grant counts that is
    /// neither wanted now nor held before; and once nothing fails any more, the maps are right.
    #[test]
    fn every_step_is_safe(
        steps in prop::collection::vec(some_wanted(), 1..5),
        fails in prop::collection::vec(prop::bool::weighted(0.2), 1..200),
    ) {
        let mut present = Entries::default();
        let mut fails = fails.into_iter().cycle();
        for wanted in &steps {
            let before = present.clone();
            let mut seen = present.clone();
            let always: Vec<_> = destinations()
                .filter(|(protocol, port, address)| {
                    protecting(&before, *protocol, *port, *address).is_some()
                        && model(&wanted.resources, *protocol, *port, *address).is_some()
                })
                .collect();
            let refs: Vec<GrantRef> = before.grants.values().copied().collect();
            reconcile(&mut present, wanted, SLOTS, NOW, |write| {
                // Removals of grants cannot fail here: that a grant which could not be removed is live is no finding.
                let may_fail = !matches!(write, Write::SetEpoch { .. } | Write::RemoveGrant { .. });
                if may_fail && fails.next() == Some(true) {
                    return Err("no room");
                }
                seen.apply(write);
                for (protocol, port, address) in &always {
                    assert!(protecting(&seen, *protocol, *port, *address).is_some(), "open after {write}");
                }
                if let Write::PutGrant { value, .. } = write {
                    assert!(seen.deadlines.contains_key(&value.slot), "{write} before its deadline");
                    let current = |old: &GrantRef| old.slot == value.slot && old.epoch == value.epoch;
                    assert!(!refs.iter().any(current), "{write} with the epoch of an earlier pair");
                }
                Ok(())
            });
            prop_assert_eq!(&seen, &present);
            let wanted_grants = longest(&wanted.grants);
            for key in present.grants.keys() {
                if let Some((id, _)) = granted(&present, *key) {
                    let grant = wanted_grants.get(key);
                    prop_assert_eq!(Some(&id), grant.map(|grant| grant.id.as_bytes()), "{:?} is live", key);
                }
            }
            settle(&mut present, wanted);
            for (protocol, port, address) in destinations() {
                prop_assert_eq!(
                    protecting(&present, protocol, port, address),
                    model(&wanted.resources, protocol, port, address)
                );
            }
        }
    }
}

/// What happens to the grants of some pair.
#[derive(Clone, Debug)]
enum Happening {
    /// A grant is made, for this long.
    Grant(usize, u64),
    /// One of those made so far is taken away.
    Revoke(usize),
    /// Nothing but that time passes.
    Wait,
}

/// Two subjects and two resources, so that slots go from one pair to another.
const PAIRS: [GrantKey; 3] = [
    GrantKey { subject: 1, resource: 1 },
    GrantKey { subject: 1, resource: 2 },
    GrantKey { subject: 2, resource: 1 },
];

fn some_happening() -> impl Strategy<Value = (u64, Happening)> {
    let happening = prop_oneof![
        (0..PAIRS.len(), 1..6u64).prop_map(|(pair, hours)| Happening::Grant(pair, hours)),
        (0..8usize).prop_map(Happening::Revoke),
        Just(Happening::Wait)
    ];
    (0..4u64, happening)
}

/// Something that was let through.
struct Admitted {
    pair: GrantKey,
    slot: u32,
    epoch: u64,
    /// The model says that it goes on.
    live: bool,
}

proptest! {
    /// Against a model that knows intervals and no slots: what was let through at some moment goes on exactly as long as,
    /// from then on, at least one grant of its pair is live; and a new connection is let through exactly while one is. Time
    /// goes in steps well beyond the margin. The agent may also have been late: it reconciles after some steps only.
    #[test]
    fn grants_are_a_union_and_a_later_one_revives_nothing(
        happenings in prop::collection::vec((some_happening(), prop::bool::weighted(0.8)), 1..40),
    ) {
        let mut present = Entries::default();
        let mut now = 0;
        let mut grants: Vec<WantedGrant> = Vec::new();
        // What the kernel was told of; only its deadlines end anything by themselves.
        let mut told: Vec<WantedGrant> = Vec::new();
        let mut admitted: Vec<Admitted> = Vec::new();
        let covered_until = |grants: &[WantedGrant], pair: GrantKey| {
            let of_pair = |grant: &&WantedGrant| (grant.subject.get(), grant.resource.get()) == (pair.subject, pair.resource);
            grants.iter().filter(of_pair).map(|grant| grant.expires_at_boot_ns).max()
        };
        for (index, ((pause, happening), reconciles)) in happenings.into_iter().enumerate() {
            // Half an hour off the hours at which grants end, so that nothing happens at the very moment of a deadline.
            now += pause * HOUR + if index == 0 { HOUR / 2 } else { 0 };
            let mut end = |told: &[WantedGrant]| for one in &mut admitted {
                one.live &= covered_until(told, one.pair).is_some_and(|end| end > now);
            };
            end(&told);
            match happening {
                Happening::Grant(pair, hours) => {
                    let id = u8::try_from(index + 1).expect("few steps");
                    let GrantKey { subject, resource } = PAIRS[pair];
                    grants.push(grant(id, subject, resource, now + hours * HOUR - HOUR / 2));
                }
                Happening::Revoke(which) if which < grants.len() => drop(grants.remove(which)),
                Happening::Revoke(_) | Happening::Wait => {}
            }
            if reconciles {
                told.clone_from(&grants);
                end(&told);
                let wanted = Wanted { grants: grants.clone(), ..Wanted::default() };
                let outcome = reconcile(&mut present, &wanted, SLOTS, now, |_| Ok::<(), String>(()));
                prop_assert!(outcome.refused.is_empty() && outcome.failed.is_empty());
            }

            for one in &admitted {
                prop_assert_eq!(present.counts(one.slot, one.epoch, now), one.live, "step {}", index);
            }
            for pair in PAIRS {
                let is_live = covered_until(&told, pair).is_some_and(|end| end > now);
                let held = present.grants.get(&pair).filter(|held| present.counts(held.slot, held.epoch, now));
                prop_assert_eq!(held.is_some(), is_live, "step {}", index);
                admitted.extend(held.map(|held| Admitted { pair, slot: held.slot, epoch: held.epoch, live: true }));
            }
        }
    }
}
