//! The plan against a model that knows no maps: random sets, and writes that fail at random.

use std::cell::RefCell;

use agent_ebpf::abi::{GrantRef, ResourceEntry, port_index, protocol};
use proptest::prelude::*;
use proto::types::{GrantId, NewResource, PortRange, Prefix, Protocol, Resource, ResourceNumber};

use super::layout::number_of;
use super::pairs::most_patient;
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
        idle_limit_ns: 0,
    }
}

/// The resource that the maps find for a destination, as the kernel does it.
fn protecting(entries: &Entries, protocol: u8, port: u16, address: [u8; 16]) -> Option<u32> {
    entry_of(entries, protocol, port, address).map(|entry| entry.number)
}

/// The same, and how it is guarded.
fn entry_of(entries: &Entries, protocol: u8, port: u16, address: [u8; 16]) -> Option<ResourceEntry> {
    let class = entries.ports.get(&port_index(protocol, port)?)?;
    let prefixes = entries.classes.get(class)?.iter().filter(|(prefix, _)| covers(prefix, address));
    prefixes.max_by_key(|(prefix, _)| prefix.bits).map(|(_, entry)| *entry)
}

fn covers(prefix: &AddressPrefix, address: [u8; 16]) -> bool {
    let mask = u128::MAX.checked_shl(128 - u32::from(prefix.bits)).unwrap_or(0);
    u128::from_be_bytes(prefix.address) & mask == u128::from_be_bytes(address) & mask
}

/// Whether what arrives from a peer goes on, as the kernel decides it.
fn serves(entries: &Entries, (protocol, port, address): (u8, u16, [u8; 16]), peer: [u8; 16]) -> bool {
    let Some(entry) = entry_of(entries, protocol, port, address) else { return true };
    let is_peer = |peers: &BTreeSet<AddressPrefix>| peers.iter().any(|prefix| covers(prefix, peer));
    !entries.judged.contains(&Check::Arrivals)
        || !entry.has(ResourceEntry::PEERS)
        || entries.peers.get(&entry.number).is_some_and(is_peer)
}

/// The same by what is wanted.
fn is_to_serve(wanted: &Wanted, (protocol, port, address): (u8, u16, [u8; 16]), peer: [u8; 16]) -> bool {
    let Some(entry) = model(wanted, protocol, port, address) else { return true };
    let number = ResourceNumber::try_from(entry.number).expect("not 0");
    wanted.peers.get(&number).is_none_or(|peers| peers.iter().any(|prefix| covers(prefix, peer)))
}

/// Some that random peers can mean, and one that they cannot.
fn peers() -> [[u8; 16]; 3] {
    ["10.1.0.0", "10.1.0.1", "10.2.0.1"].map(|text| text.parse::<Prefix>().expect("valid").mapped().0)
}

fn some_peers() -> impl Strategy<Value = BTreeSet<AddressPrefix>> {
    let prefixes = prop::sample::select(vec!["10.1.0.0/24", "10.1.0.1", "10.1.0.0", "2001:db8::/32"]);
    let prefixes = prefixes.prop_map(|text| text.parse::<Prefix>().expect("valid").into());
    prop::collection::btree_set(prefixes, 1..3)
}

/// The grant and deadline that the maps find for a pair, as the kernel does it.
pub(in crate::rules) fn granted(entries: &Entries, key: GrantKey) -> Option<([u8; 16], u64)> {
    let reference = entries.grants.get(&key)?;
    let name = entries.names.get(&reference.slot)?;
    let deadline = entries.deadlines.get(&reference.slot)?;
    (entries.epoch(reference.slot) == reference.epoch).then_some((*name, *deadline))
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

/// Connections remember a class by its number, and take for granted what it said.
#[test]
fn a_class_is_never_called_what_another_was() {
    let mut present = Entries::default();
    let mut seen: BTreeMap<u32, Class> = BTreeMap::new();
    let of = |number: u32, addresses: &[&str], observe| Wanted {
        options: [(
            number.try_into().expect("not 0"),
            ResourceOptions { observe, ..ResourceOptions::default() },
        )]
        .into(),
        resources: vec![resource(number, addresses, &["tcp/5432"])],
        ..Wanted::default()
    };
    let steps = [
        of(1, &["10.0.0.1"], false),
        of(1, &["10.0.0.1"], true),
        Wanted::default(),
        of(2, &["10.0.0.1"], false),
        of(1, &["10.0.0.1", "10.0.0.2"], false),
        Wanted::default(),
        of(1, &["10.0.0.1"], false),
    ];
    for wanted in &steps {
        settle(&mut present, wanted);
        for (number, class) in &present.classes {
            assert_eq!(seen.entry(*number).or_insert_with(|| class.clone()), class);
        }
    }
    assert_eq!(seen.len(), 4);
}

#[test]
fn removals_come_first() {
    let mut present = Entries::default();
    let subject = |number: u32| SubjectNumber::try_from(number).expect("not 0");
    let resources = vec![resource(1, &["10.0.0.1"], &["tcp/1"])];
    let first = Wanted {
        resources: resources.clone(),
        unix_sockets: BTreeMap::new(),
        cgroups: [(10, subject(1))].into(),
        grants: vec![grant(1, 1, 1, 100)],
        ..Wanted::default()
    };
    settle(&mut present, &first);
    let second =
        Wanted { resources, cgroups: [(11, subject(2))].into(), grants: vec![grant(2, 2, 1, 100)], ..first };
    let kinds: Vec<&str> = settle(&mut present, &second)
        .iter()
        .map(|write| match write {
            Write::SetEpoch { .. } => "raise epoch",
            Write::RemoveGrant { .. } => "remove grant",
            Write::UnbindCgroup { .. } => "unbind",
            Write::BindCgroup { .. } => "bind",
            Write::NameSlot { .. } => "name slot",
            Write::SetDeadline { .. } => "set deadline",
            Write::SetIdleLimit { .. } => "limit",
            Write::BeginSlot { .. } => "begin slot",
            Write::RestartIdling { .. } => "restart idling",
            Write::PutGrant { .. } => "put grant",
            Write::SetPort { .. }
            | Write::AddAddress { .. }
            | Write::RemoveAddress { .. }
            | Write::GuardUnix { .. }
            | Write::FreeUnix { .. } => "protect",
            Write::AddPeer { .. } | Write::RemovePeer { .. } => "serve",
            Write::Judge { .. } => "judge",
        })
        .collect();
    assert_eq!(
        kinds,
        [
            "raise epoch",
            "remove grant",
            "unbind",
            "bind",
            "name slot",
            "begin slot",
            "set deadline",
            "put grant"
        ]
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

/// A resource gets another mode by another class, so that each of its ports has the old mode or the new one.
#[test]
fn another_mode_is_another_class() {
    let mut present = Entries::default();
    let resources = vec![resource(1, &["10.0.0.1"], &["tcp/1"])];
    let wanted = |observe| Wanted {
        resources: resources.clone(),
        options: [(1.try_into().expect("not 0"), ResourceOptions { observe, ..ResourceOptions::default() })]
            .into(),
        ..Wanted::default()
    };
    settle(&mut present, &wanted(false));
    assert!(present.observed().is_empty());
    let writes = settle(&mut present, &wanted(true));
    assert!(
        matches!(
            writes[..],
            [
                Write::AddAddress { class: added, .. },
                Write::SetPort { class: set, .. },
                Write::RemoveAddress { class: removed, .. }
            ] if added == set && removed != set
        ),
        "{writes:?}"
    );
    assert_eq!(present.observed(), [1].into());
}

/// In this order nobody is served on the way who is served neither before nor after.
#[test]
fn peers_come_before_the_port_and_go_after_it() {
    let mut present = Entries::default();
    let open = Wanted { resources: vec![resource(1, &["10.0.0.1"], &["tcp/1"])], ..Wanted::default() };
    let limited = |prefixes: &[&str]| {
        let prefix = |text: &&str| text.parse::<Prefix>().expect("valid").into();
        let peers = [(1.try_into().expect("not 0"), prefixes.iter().map(prefix).collect())].into();
        Wanted { peers, ..open.clone() }
    };
    settle(&mut present, &open);
    let kinds = |writes: Vec<Write>| -> Vec<&str> {
        let kind = |write: &Write| match write {
            Write::Judge { on: true, .. } => "judge",
            Write::Judge { on: false, .. } => "cease",
            Write::AddPeer { .. } => "add peer",
            Write::RemovePeer { .. } => "remove peer",
            Write::AddAddress { .. } => "add address",
            Write::SetPort { .. } => "set port",
            Write::RemoveAddress { .. } => "remove address",
            _ => "other",
        };
        writes.iter().map(kind).collect()
    };
    let writes = settle(&mut present, &limited(&["10.1.0.0/24"]));
    assert_eq!(kinds(writes), ["judge", "add peer", "add address", "set port", "remove address"]);
    let writes = settle(&mut present, &limited(&["10.1.0.1", "10.1.0.2"]));
    assert_eq!(kinds(writes), ["remove peer", "add peer", "add peer"]);
    let writes = settle(&mut present, &open);
    let expected = ["add address", "set port", "remove address", "remove peer", "remove peer", "cease"];
    assert_eq!(kinds(writes), expected);
}

/// The port is limited all the same: rather nobody is served than everybody.
#[test]
fn peers_that_cannot_be_written_are_refused_by_name() {
    let number = ResourceNumber::try_from(1).expect("not 0");
    let resources = vec![resource(1, &["10.0.0.1"], &["tcp/1"])];
    let peers = [(number, [Prefix::from(std::net::IpAddr::from([10, 1, 0, 1])).into()].into())].into();
    let wanted = Wanted { resources, peers, ..Wanted::default() };
    for unwritten in ["serve resource 1 to a peer", "begin to judge what arrives"] {
        let mut present = Entries::default();
        let outcome = reconcile(&mut present, &wanted, SLOTS, NOW, |write| match write.to_string() {
            text if text == unwritten => Err("no room"),
            _ => Ok(()),
        });
        let refused: Vec<&RefusedItem> = outcome.refused.iter().map(|refused| &refused.item).collect();
        assert_eq!(refused, [&RefusedItem::Resource(number)], "{unwritten}");
        let flags = present.classes.values().flat_map(BTreeMap::values).map(|entry| entry.flags);
        assert_eq!(flags.collect::<Vec<_>>(), [ResourceEntry::PEERS], "{unwritten}");
        // And it is tried again.
        settle(&mut present, &wanted);
        assert!(present.judged.contains(&Check::Arrivals) && present.peers.len() == 1);
    }
}

/// A grant with an idle limit, in hours.
fn idle_grant(id: u8, expires_at_boot_ns: u64, idle_hours: u64) -> WantedGrant {
    WantedGrant { idle_limit_ns: idle_hours * HOUR, ..grant(id, 1, 1, expires_at_boot_ns) }
}

#[track_caller]
fn settle_at(present: &mut Entries, grants: &[WantedGrant], now_boot_ns: u64) {
    let wanted = Wanted { grants: grants.to_vec(), ..Wanted::default() };
    let outcome = reconcile(present, &wanted, SLOTS, now_boot_ns, |_| Ok::<(), String>(()));
    assert!(outcome.refused.is_empty() && outcome.failed.is_empty(), "{outcome:?}");
}

#[test]
fn what_has_ended_idle_stays_ended_and_another_grant_is_another() {
    let key = GrantKey { subject: 1, resource: 1 };
    let mut present = Entries::default();
    let idle = idle_grant(1, 9 * HOUR, 1);
    settle_at(&mut present, &[idle], NOW);
    let held = present.grants[&key];
    assert!(present.counts(held.slot, held.epoch, HOUR - 1) && !present.counts(held.slot, held.epoch, HOUR));
    // The set comes again, with another look at how much is left: it says `idle` as before, and revives nothing.
    settle_at(&mut present, &[WantedGrant { expires_at_boot_ns: 9 * HOUR - 1, ..idle }], 2 * HOUR);
    assert_eq!(present.grants[&key], held);
    assert!(!present.counts(held.slot, held.epoch, 2 * HOUR));
    // One that ends earlier and came later is let through all the same.
    settle_at(&mut present, &[idle, idle_grant(2, 5 * HOUR, 1)], 2 * HOUR);
    let next = present.grants[&key];
    assert!(next.slot != held.slot && present.counts(next.slot, next.epoch, 3 * HOUR - 1));
    assert!(!present.counts(held.slot, held.epoch, 2 * HOUR));
}

#[test]
fn until_when_something_counts_is_the_first_of_its_ends() {
    let key = GrantKey { subject: 1, resource: 1 };
    for (idle_hours, until) in [(0, 9 * HOUR), (1, HOUR), (20, 9 * HOUR)] {
        let mut present = Entries::default();
        settle_at(&mut present, &[idle_grant(1, 9 * HOUR, idle_hours)], NOW);
        let held = present.grants[&key];
        let until_at = |now| present.counts_until(held.slot, held.epoch, now);
        assert_eq!(until_at(NOW), Some(until), "{idle_hours} hours");
        assert_eq!((until_at(until - 1), until_at(until)), (Some(until), None), "{idle_hours} hours");
        assert_eq!(present.counts_until(held.slot, held.epoch + 1, NOW), None);
    }
}

#[test]
fn the_most_patient_grant_counts() {
    assert_eq!(
        [most_patient(0, 1), most_patient(1, 0), most_patient(1, 2), most_patient(2, 1)],
        [0, 0, 2, 2]
    );
    let key = GrantKey { subject: 1, resource: 1 };
    let mut present = Entries::default();
    let (short, long, endless) =
        (idle_grant(1, 9 * HOUR, 1), idle_grant(2, 9 * HOUR, 2), idle_grant(3, 9 * HOUR, 0));
    settle_at(&mut present, &[short, long, endless], NOW);
    let held = present.grants[&key];
    assert!(present.counts(held.slot, held.epoch, 8 * HOUR));
    // A lower limit counts from when it is set.
    settle_at(&mut present, &[short, long], 3 * HOUR);
    assert_eq!(present.grants[&key], held);
    assert!(
        present.counts(held.slot, held.epoch, 5 * HOUR - 1)
            && !present.counts(held.slot, held.epoch, 5 * HOUR)
    );
    settle_at(&mut present, &[short], 4 * HOUR);
    assert!(
        present.counts(held.slot, held.epoch, 5 * HOUR - 1)
            && !present.counts(held.slot, held.epoch, 5 * HOUR)
    );
}

#[test]
fn a_unix_socket_that_cannot_be_guarded_is_refused_by_name() {
    let unix = |pairs: &[(u64, u32)]| Wanted {
        unix_sockets: pairs.iter().map(|(key, id)| (*key, (*id).try_into().expect("not 0"))).collect(),
        ..Wanted::default()
    };
    let mut present = Entries::default();
    settle(&mut present, &unix(&[(1, 1)]));
    let outcome = reconcile(&mut present, &unix(&[(2, 2), (3, 3)]), SLOTS, NOW, |write| match write {
        Write::GuardUnix { key: 2, .. } => Err("no room"),
        _ => Ok(()),
    });
    let refused: Vec<RefusedItem> = outcome.refused.iter().map(|refused| refused.item).collect();
    assert_eq!(refused, [RefusedItem::Resource(2.try_into().expect("not 0"))]);
    // Rather what was protected before than nothing.
    assert_eq!(present.unix_sockets.keys().copied().collect::<Vec<_>>(), [1, 3]);
    settle(&mut present, &unix(&[(2, 2), (3, 3)]));
    assert_eq!(present.unix_sockets.keys().copied().collect::<Vec<_>>(), [2, 3]);
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
fn what_has_no_room_is_refused_by_every_grant_of_its_pair() {
    let grants = vec![grant(1, 1, 1, 100), grant(2, 1, 1, 200), grant(3, 1, 1, NOW)];
    let wanted = Wanted { grants, ..Wanted::default() };
    let outcome = reconcile(&mut Entries::default(), &wanted, 0, NOW, |_| Ok::<(), String>(()));
    let refused: BTreeSet<RefusedItem> = outcome.refused.iter().map(|refused| refused.item).collect();
    let item = |id| RefusedItem::Grant(GrantId::from_bytes([id; 16]).expect("not 0"));
    // The third is over; it may be only until the control plane is heard again.
    assert_eq!(refused, [1, 2, 3].map(item).into());
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

fn some_options() -> impl Strategy<Value = ResourceOptions> {
    (any::<bool>(), any::<bool>(), any::<bool>())
        .prop_map(|(observe, strict_audit, per_send)| ResourceOptions { observe, strict_audit, per_send })
}

pub(in crate::rules) fn some_wanted() -> impl Strategy<Value = Wanted> {
    let grants = prop::collection::btree_map(1..6u8, (1..3u32, 1..3u32, 1..5u64), 0..6);
    let cgroups = prop::collection::btree_map(1..6u64, 1..4u32, 0..5);
    let options = prop::collection::btree_map(1..4u32, some_options(), 0..4);
    let unix = prop::collection::btree_map(1..6u64, 1..4u32, 0..5);
    let peers = prop::collection::btree_map(1..4u32, some_peers(), 0..3);
    let parts = (some_resources(), options, unix, peers, cgroups, grants);
    parts.prop_map(|(resources, options, unix, peers, cgroups, grants)| Wanted {
        resources,
        unix_sockets: unix.into_iter().map(|(key, id)| (key, id.try_into().expect("not 0"))).collect(),
        options: options.into_iter().map(|(id, options)| (id.try_into().expect("not 0"), options)).collect(),
        peers: peers.into_iter().map(|(id, peers)| (id.try_into().expect("not 0"), peers)).collect(),
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
    let mapped = addresses.map(|text| text.parse::<Prefix>().expect("valid").mapped().0);
    let ports = |protocol: u8| (1..9u16).map(move |port| (protocol, port));
    let all: Vec<(u8, u16)> = ports(protocol::TCP).chain(ports(protocol::UDP)).collect();
    all.into_iter().flat_map(move |(protocol, port)| mapped.map(|address| (protocol, port, address)))
}

/// The same of unix sockets.
pub(in crate::rules) fn unix_model(wanted: &Wanted) -> BTreeMap<u64, ResourceEntry> {
    let entry = |number: &ResourceNumber| {
        let options = wanted.options.get(number).copied().unwrap_or_default();
        ResourceEntry { number: number.get(), flags: options.flags() }
    };
    wanted.unix_sockets.iter().map(|(key, number)| (*key, entry(number))).collect()
}

/// What protects a destination by the resources themselves, and how: the longest prefix, of equal ones the first resource's.
pub(in crate::rules) fn model(
    wanted: &Wanted,
    protocol: u8,
    port: u16,
    address: [u8; 16],
) -> Option<ResourceEntry> {
    let on_port = |resource: &&Resource| {
        resource.ports.iter().any(|range| {
            let (first, last) = range.bounds();
            number_of(range.protocol()) == protocol && (first..=last).contains(&port)
        })
    };
    let mut best: Option<(u8, ResourceNumber)> = None;
    for resource in wanted.resources.iter().filter(on_port) {
        for prefix in &resource.addresses {
            let (start, bits) = prefix.mapped();
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            let covers = u128::from_be_bytes(start) == u128::from_be_bytes(address) & mask;
            if covers && best.is_none_or(|(longest, _)| bits > longest) {
                best = Some((bits, resource.number));
            }
        }
    }
    best.map(|(_, number)| wanted.entry(number))
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
                    entry_of(&present, protocol, port, address),
                    model(wanted, protocol, port, address)
                );
            }
            prop_assert_eq!(&present.unix_sockets, &unix_model(wanted));
            let peers: BTreeMap<u32, BTreeSet<AddressPrefix>> =
                wanted.peers.iter().map(|(number, peers)| (number.get(), peers.clone())).collect();
            prop_assert_eq!(&present.peers, &peers);
            let is_wanted = |check: &Check| match check {
                Check::Arrivals => !peers.is_empty(),
                Check::Datagrams => wanted.judges_writes(Protocol::Udp),
                Check::Senders => wanted.judges_writes(Protocol::Tcp),
            };
            prop_assert_eq!(&present.judged, &Check::ALL.into_iter().filter(is_wanted).collect());
            let cgroups: BTreeMap<u64, u32> = wanted.cgroups.iter().map(|(id, subject)| (*id, subject.get())).collect();
            prop_assert_eq!(&present.cgroups, &cgroups);
            let best = unions(&wanted.grants, |_| false);
            prop_assert_eq!(present.grants.len(), best.len());
            for (key, grant) in best {
                prop_assert_eq!(granted(&present, key), Some((*grant.id.as_bytes(), grant.expires_at_boot_ns)));
            }
            prop_assert_eq!(settle(&mut present, wanted), []);
        }
    }

    /// After every single write, with writes that fail at random: no protection is lost on the way, no grant counts that is
    /// neither wanted now nor held before, nobody is served who was not before and is not to be; and once nothing fails any
    /// more, the maps are right.
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
                        && model(wanted, *protocol, *port, *address).is_some()
                })
                .collect();
            let always_unix: Vec<u64> =
                before.unix_sockets.keys().filter(|key| wanted.unix_sockets.contains_key(*key)).copied().collect();
            let unserved: Vec<_> = destinations()
                .flat_map(|destination| peers().map(|peer| (destination, peer)))
                .filter(|(destination, peer)| {
                    !serves(&before, *destination, *peer) && !is_to_serve(wanted, *destination, *peer)
                })
                .collect();
            let refs: Vec<GrantRef> = before.grants.values().copied().collect();
            reconcile(&mut present, wanted, SLOTS, NOW, |write| {
                // Removals of grants cannot fail here: that a grant which could not be removed is live is no finding. Nor is
                // that a peer is served which could not be removed, or that all are while nothing can be judged.
                let may_fail = !matches!(
                    write,
                    Write::SetEpoch { .. }
                        | Write::RemoveGrant { .. }
                        | Write::RemovePeer { .. }
                        | Write::Judge { .. }
                );
                if may_fail && fails.next() == Some(true) {
                    return Err("no room");
                }
                seen.apply(write);
                for (protocol, port, address) in &always {
                    assert!(protecting(&seen, *protocol, *port, *address).is_some(), "open after {write}");
                }
                assert!(always_unix.iter().all(|key| seen.unix_sockets.contains_key(key)), "open after {write}");
                for (protocol, port, address) in destinations() {
                    let check = if protocol == protocol::UDP { Check::Datagrams } else { Check::Senders };
                    let entry = entry_of(&seen, protocol, port, address);
                    let is_judged = entry.is_some_and(|entry| entry.has(ResourceEntry::SENDERS));
                    assert!(!is_judged || seen.judged.contains(&check), "senders are not judged after {write}");
                }
                for (destination, peer) in &unserved {
                    assert!(!serves(&seen, *destination, *peer), "served after {write}");
                }
                if let Write::PutGrant { value, .. } = write {
                    assert!(seen.deadlines.contains_key(&value.slot), "{write} before its deadline");
                    let current = |old: &GrantRef| old.slot == value.slot && old.epoch == value.epoch;
                    assert!(!refs.iter().any(current), "{write} with the epoch of an earlier pair");
                }
                Ok(())
            });
            prop_assert_eq!(&seen, &present);
            let wanted_grants = unions(&wanted.grants, |_| false);
            for key in present.grants.keys() {
                if let Some((id, _)) = granted(&present, *key) {
                    let grant = wanted_grants.get(key);
                    prop_assert_eq!(Some(&id), grant.map(|grant| grant.id.as_bytes()), "{:?} is live", key);
                }
            }
            settle(&mut present, wanted);
            for (protocol, port, address) in destinations() {
                prop_assert_eq!(
                    entry_of(&present, protocol, port, address),
                    model(wanted, protocol, port, address)
                );
            }
            prop_assert_eq!(&present.unix_sockets, &unix_model(wanted));
        }
    }
}

/// What happens to the grants of one pair.
#[derive(Clone, Debug)]
enum Happening {
    /// A grant is made, for this long and with this idle limit, both in hours; 0 is no limit.
    Grant(u64, u64),
    /// One of those made so far is taken away.
    Revoke(usize),
    /// Something is sent, if anything may be.
    Send,
    /// Nothing but that time passes.
    Wait,
}

fn some_happening() -> impl Strategy<Value = (u64, Happening)> {
    let happening = prop_oneof![
        (1..6u64, 0..4u64).prop_map(|(hours, idle)| Happening::Grant(hours, idle)),
        Just(Happening::Send),
        (0..8usize).prop_map(Happening::Revoke),
        Just(Happening::Wait)
    ];
    (0..4u64, happening)
}

proptest! {
    /// Against a model that knows intervals and no slots: what was let through at some moment goes on exactly as long as,
    /// from then on, at least one grant of the pair is live and the pair is not idle for longer than its most patient one
    /// may be; and a new connection is let through exactly while that is so. Time goes in steps well beyond the margin.
    #[test]
    fn grants_are_a_union_and_a_later_one_revives_nothing(happenings in prop::collection::vec(some_happening(), 1..25)) {
        let key = GrantKey { subject: 1, resource: 1 };
        let mut present = Entries::default();
        let mut now = 0;
        // Those that live, and when the pair was last active.
        let mut grants: Vec<WantedGrant> = Vec::new();
        let mut active = 0;
        let limit_of = |grants: &[WantedGrant]| {
            grants.iter().map(|grant| grant.idle_limit_ns).reduce(most_patient).unwrap_or(0)
        };
        // What was let through: by which slot and epoch, and whether the model says that it goes on.
        let mut admitted: Vec<(u32, u64, bool)> = Vec::new();
        for (index, (pause, happening)) in happenings.into_iter().enumerate() {
            // Half an hour off the hours at which grants end, so that nothing happens at the very moment of a deadline.
            let next = now + pause * HOUR + if index == 0 { HOUR / 2 } else { 0 };
            let covered = grants.iter().any(|grant| grant.expires_at_boot_ns > next);
            let limit = limit_of(&grants);
            let was_idle = limit != 0 && next - active >= limit;
            now = next;
            admitted.iter_mut().for_each(|(_, _, live)| *live &= covered && !was_idle);
            // What has ended is not wanted any more, as the agent sees to it.
            let limit = limit_of(&grants);
            grants.retain(|grant| grant.expires_at_boot_ns > now && !was_idle);

            match happening {
                Happening::Grant(hours, idle) => {
                    let id = u8::try_from(index + 1).expect("few steps");
                    let expires_at_boot_ns = now + hours * HOUR - HOUR / 2;
                    if grants.is_empty() {
                        active = now;
                    }
                    grants.push(idle_grant(id, expires_at_boot_ns, idle));
                }
                Happening::Revoke(which) if which < grants.len() => drop(grants.remove(which)),
                Happening::Send if !grants.is_empty() => {
                    active = now;
                    if let Some(held) = present.grants.get(&key) {
                        present.active.insert(held.slot, now);
                    }
                }
                Happening::Revoke(_) | Happening::Send | Happening::Wait => {}
            }
            let lower = limit_of(&grants);
            if lower != limit && lower != most_patient(limit, lower) {
                active = now;
            }
            let wanted = Wanted { grants: grants.clone(), ..Wanted::default() };
            let outcome = reconcile(&mut present, &wanted, SLOTS, now, |_| Ok::<(), String>(()));
            prop_assert!(outcome.refused.is_empty() && outcome.failed.is_empty());

            let is_live = !grants.is_empty();
            admitted.iter_mut().for_each(|(_, _, live)| *live &= is_live);
            for (slot, epoch, live) in &admitted {
                prop_assert_eq!(present.counts(*slot, *epoch, now), *live, "step {}", index);
            }
            let held = present.grants.get(&key).filter(|held| present.counts(held.slot, held.epoch, now));
            prop_assert_eq!(held.is_some(), is_live, "step {}", index);
            admitted.extend(held.map(|held| (held.slot, held.epoch, true)));
        }
    }
}

/// Two subjects and two resources, so that slots go from one pair to another.
const PAIRS: [GrantKey; 3] = [
    GrantKey { subject: 1, resource: 1 },
    GrantKey { subject: 1, resource: 2 },
    GrantKey { subject: 2, resource: 1 },
];

/// What happens to the grants of some pair.
#[derive(Clone, Debug)]
enum OfPair {
    /// A grant is made, for this long.
    Grant(usize, u64),
    /// One of those made so far is taken away.
    Revoke(usize),
    /// Nothing but that time passes.
    Wait,
}

fn something_of_some_pair() -> impl Strategy<Value = (u64, OfPair)> {
    let happening = prop_oneof![
        (0..PAIRS.len(), 1..6u64).prop_map(|(pair, hours)| OfPair::Grant(pair, hours)),
        (0..8usize).prop_map(OfPair::Revoke),
        Just(OfPair::Wait)
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
    fn pairs_that_share_slots_do_not_share_grants(
        happenings in prop::collection::vec((something_of_some_pair(), prop::bool::weighted(0.8)), 1..40),
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
                OfPair::Grant(pair, hours) => {
                    let id = u8::try_from(index + 1).expect("few steps");
                    let GrantKey { subject, resource } = PAIRS[pair];
                    grants.push(grant(id, subject, resource, now + hours * HOUR - HOUR / 2));
                }
                OfPair::Revoke(which) if which < grants.len() => drop(grants.remove(which)),
                OfPair::Revoke(_) | OfPair::Wait => {}
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
