//! Drift against a model: random sets, changed at random behind the agent's back.

use agent_ebpf::abi::{GrantKey, ResourceEntry};
use proptest::prelude::*;

use super::super::plan::tests::{SLOTS, destinations, granted, model, settle, some_wanted, unix_model};
use super::super::plan::{AddressPrefix, Wanted, reconcile};
use super::*;

/// Before every deadline of these tests.
const NOW: u64 = 0;

/// One write of somebody else's.
#[derive(Clone, Debug)]
enum Tampering {
    Port(u32, u32),
    Prefix(u32, usize, Option<u32>),
    Unix(u64, Option<u32>),
    Peer(u32, usize, bool),
    Subject(u64, Option<u32>),
    Grant(GrantKey, Option<GrantRef>),
    Name(u32, u8),
    Deadline(u32, u64),
    IdleLimit(u32, u64),
    Epoch(u32, u64),
}

fn prefix(index: usize) -> AddressPrefix {
    let (text, bits) = [("10.0.0.0", 126), ("10.0.0.1", 128), ("10.0.0.0", 96), ("::1", 128)][index];
    AddressPrefix { address: text.parse::<proto::types::Prefix>().expect("valid").mapped().0, bits }
}

fn some_epoch() -> impl Strategy<Value = u64> {
    prop_oneof![0..4u64, Just(u64::MAX)]
}

fn some_tampering() -> impl Strategy<Value = Tampering> {
    let number = || prop::option::of(1..4u32);
    // Slots beyond the last too.
    let slot = || 0..SLOTS + 2;
    prop_oneof![
        (1..9u32, 0..4u32).prop_map(|(port, class)| Tampering::Port(port, class)),
        (1..4u32, 0..4usize, number())
            .prop_map(|(class, index, number)| Tampering::Prefix(class, index, number)),
        (1..7u64, number()).prop_map(|(key, number)| Tampering::Unix(key, number)),
        (1..4u32, 0..4usize, any::<bool>())
            .prop_map(|(resource, index, added)| Tampering::Peer(resource, index, added)),
        (1..7u64, number()).prop_map(|(id, number)| Tampering::Subject(id, number)),
        ((1..4u32, 1..4u32), prop::option::of((slot(), some_epoch()))).prop_map(
            |((subject, resource), to)| {
                let reference = to.map(|(slot, epoch)| GrantRef { slot, reserved: 0, epoch });
                Tampering::Grant(GrantKey { subject, resource }, reference)
            }
        ),
        (0..SLOTS, 0..9u8).prop_map(|(slot, id)| Tampering::Name(slot, id)),
        (0..SLOTS, 0..9u64).prop_map(|(slot, deadline)| Tampering::Deadline(slot, deadline)),
        (0..SLOTS, 0..9u64).prop_map(|(slot, limit)| Tampering::IdleLimit(slot, limit)),
        (0..SLOTS, some_epoch()).prop_map(|(slot, epoch)| Tampering::Epoch(slot, epoch)),
    ]
}

fn tamper(entries: &mut Entries, tampering: &Tampering) {
    match *tampering {
        Tampering::Port(index, class) => entries.apply(&Write::SetPort { index, class }),
        Tampering::Prefix(class, index, Some(resource)) => {
            let entry = ResourceEntry { number: resource, flags: resource % 2 };
            entries.apply(&Write::AddAddress { class, prefix: prefix(index), entry });
        }
        Tampering::Prefix(class, index, None) => {
            entries.apply(&Write::RemoveAddress { class, prefix: prefix(index) });
        }
        Tampering::Unix(key, Some(number)) => {
            entries.apply(&Write::GuardUnix { key, entry: ResourceEntry { number, flags: number % 2 } });
        }
        Tampering::Unix(key, None) => entries.apply(&Write::FreeUnix { key }),
        Tampering::Peer(resource, index, added) => {
            let prefix = prefix(index);
            entries.apply(&match added {
                true => Write::AddPeer { resource, prefix },
                false => Write::RemovePeer { resource, prefix },
            });
        }
        Tampering::Subject(id, Some(subject)) => entries.apply(&Write::BindCgroup { id, subject }),
        Tampering::Subject(id, None) => entries.apply(&Write::UnbindCgroup { id }),
        Tampering::Grant(key, Some(value)) => entries.apply(&Write::PutGrant { key, value }),
        Tampering::Grant(key, None) => entries.apply(&Write::RemoveGrant { key }),
        Tampering::Name(slot, id) => {
            entries.apply(&Write::NameSlot { slot, grant: [id; 16] });
        }
        Tampering::Deadline(slot, deadline_boot_ns) => {
            entries.apply(&Write::SetDeadline { slot, deadline_boot_ns });
        }
        Tampering::IdleLimit(slot, limit_ns) => entries.apply(&Write::SetIdleLimit { slot, limit_ns }),
        Tampering::Epoch(slot, epoch) => entries.apply(&Write::SetEpoch { slot, epoch }),
    }
}

fn is_seen(known: &Entries, read: &Entries) -> bool {
    Part::all().any(|part| drift(part, known, read).is_some())
}

/// What the kernel sees of entries: 0 in an array is nothing.
fn effective(entries: &Entries) -> Entries {
    let mut entries = entries.clone();
    entries.deadlines.retain(|_, deadline| *deadline != 0);
    entries.epochs.retain(|_, epoch| *epoch != 0);
    entries.names.retain(|_, name| *name != [0; 16]);
    // The kernel moves it on, so it is not compared.
    entries.active.clear();
    entries.classes.retain(|_, prefixes| !prefixes.is_empty());
    entries
}

fn repair(known: &Entries, read: &Entries, wanted: &Wanted) -> (Entries, Vec<Write>) {
    let mut present = read.clone();
    let mut writes = distrust(known, read, SLOTS);
    writes.iter().for_each(|write| present.apply(write));
    let outcome = reconcile(&mut present, wanted, SLOTS, NOW, |write| {
        writes.push(*write);
        Ok::<(), String>(())
    });
    assert!(outcome.refused.is_empty() && outcome.failed.is_empty(), "{outcome:?}");
    (present, writes)
}

#[test]
fn each_kind_of_difference_is_told() {
    let mut known = Entries::default();
    let key = |subject| GrantKey { subject, resource: 1 };
    let reference = |slot| GrantRef { slot, reserved: 0, epoch: 0 };
    known.grants = [(key(1), reference(0)), (key(2), reference(1))].into();
    let mut read = known.clone();
    assert_eq!(drift(Part::Grants, &known, &read), None);
    read.grants = [(key(1), reference(5)), (key(3), reference(1))].into();
    let found = drift(Part::Grants, &known, &read).expect("differs").to_string();
    assert_eq!(found, "map GRANTS: 1 added, 1 changed, 1 removed (subject 1 to resource 1)");
    // 0 in an array is what it is to the kernel: nothing.
    let deadlines = Entries { deadlines: [(3, 0)].into(), ..Entries::default() };
    assert_eq!(drift(Part::Slots, &deadlines, &Entries::default()), None);
}

#[test]
fn the_parts_are_all_there_is() {
    let ports: u32 =
        Part::all().map(|part| if let Part::Ports { count, .. } = part { count } else { 0 }).sum();
    assert_eq!((ports, Part::all().count()), (PORT_CLASSES_MAX, Part::COUNT));
    assert_eq!(Part::nth(Part::COUNT), Part::nth(0));
}

#[test]
fn a_reference_to_a_later_epoch_is_never_let_in() {
    let key = GrantKey { subject: 1, resource: 1 };
    let known = Entries::default();
    let mut read = known.clone();
    read.grants.insert(key, GrantRef { slot: 3, reserved: 0, epoch: 1 });
    read.deadlines.insert(3, u64::MAX);
    let mut seen = read.clone();
    for write in repair(&known, &read, &Wanted::default()).1 {
        seen.apply(&write);
        assert_eq!(granted(&seen, key), None, "after {write}");
    }
    assert!(!seen.counts(3, 1, NOW) && !seen.grants.contains_key(&key));
}

proptest! {
    /// Whatever was changed is seen, if it makes a difference to the kernel; it is put right; and what was let through in
    /// between by a reference, a name or a deadline that was not ours does not count afterwards.
    #[test]
    fn what_was_changed_is_put_right(
        wanted in some_wanted(),
        earlier in some_wanted(),
        tamperings in prop::collection::vec(some_tampering(), 1..8),
    ) {
        let mut known = Entries::default();
        settle(&mut known, &earlier);
        settle(&mut known, &wanted);
        let mut read = known.clone();
        tamperings.iter().for_each(|tampering| tamper(&mut read, tampering));
        prop_assert_eq!(is_seen(&known, &read), effective(&known) != effective(&read));

        let (present, _) = repair(&known, &read, &wanted);
        for (protocol, port, address) in destinations() {
            let expected = model(&wanted, protocol, port, address).map(|entry| entry.number);
            prop_assert_eq!(present.protecting(protocol, port, address), expected);
        }
        prop_assert_eq!(&present.unix_sockets, &unix_model(&wanted));
        let peers: BTreeMap<u32, BTreeSet<AddressPrefix>> =
            wanted.peers.iter().map(|(number, peers)| (number.get(), peers.clone())).collect();
        prop_assert_eq!(&present.peers, &peers);
        let cgroups: BTreeMap<u64, u32> = wanted.cgroups.iter().map(|(id, subject)| (*id, subject.get())).collect();
        prop_assert_eq!(&present.cgroups, &cgroups);
        let wanted_pairs: BTreeSet<GrantKey> = wanted
            .grants
            .iter()
            .map(|grant| GrantKey { subject: grant.subject.get(), resource: grant.resource.get() })
            .collect();
        prop_assert_eq!(present.grants.keys().copied().collect::<BTreeSet<_>>(), wanted_pairs);
        let mut slots = BTreeSet::new();
        for (key, reference) in &present.grants {
            let of_pair = |grant: &&super::super::plan::WantedGrant| {
                (grant.subject.get(), grant.resource.get()) == (key.subject, key.resource)
            };
            let last = wanted.grants.iter().filter(of_pair).map(|grant| grant.expires_at_boot_ns).max();
            prop_assert_eq!(granted(&present, *key).map(|(_, deadline)| deadline), last);
            prop_assert!(slots.insert(reference.slot), "two pairs share a slot");
        }

        // What may have been let through in between, by slot and epoch.
        for (key, reference) in &read.grants {
            let ours = known.grants.get(key) == Some(reference);
            let posed = read.cgroups.iter().any(|(id, subject)| {
                *subject == key.subject && known.cgroups.get(id) != Some(subject)
            });
            if !ours || posed {
                prop_assert!(!present.counts(reference.slot, reference.epoch, NOW), "{:?} goes on", key);
            }
        }
        for (slot, epoch) in &read.epochs {
            if known.epochs.get(slot).copied().unwrap_or(0) != *epoch {
                prop_assert!(!present.counts(*slot, *epoch, NOW), "slot {} goes on in epoch {}", slot, epoch);
            }
        }
        // What was let through rightly, by slots that nobody has touched, goes on. (With a new name too, but not by grants
        // that end as soon as these.)
        let touched = |slot: u32| {
            distrust(&known, &read, SLOTS).iter().any(|write| matches!(write, Write::SetEpoch { slot: s, .. } if *s == slot))
                || read.deadlines.get(&slot) != known.deadlines.get(&slot)
                || read.names.get(&slot) != known.names.get(&slot)
        };
        for (key, reference) in known.grants.iter().filter(|(_, reference)| !touched(reference.slot)) {
            prop_assert_eq!(present.grants.get(key), Some(reference));
        }
        // And again is nothing to do.
        prop_assert_eq!(repair(&present, &present, &wanted).1, []);
    }
}
