//! The classes of ports, and what they are called.
//!
//! Owns: which ports share one. Must not know: what the maps hold now.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use agent_ebpf::abi::{port_index, protocol};
use proto::types::{Protocol, Resource};

use super::{Class, Wanted};

/// Which ports share which addresses: ports on which the same prefixes are protected are one class.
pub(super) struct Layout {
    pub(super) classes: Vec<Class>,
    /// Port index → index into `classes`.
    pub(super) ports: BTreeMap<u32, usize>,
}

impl Layout {
    pub(super) fn of(wanted: &Wanted) -> Self {
        let resources = &wanted.resources;
        let mut layout = Self { classes: Vec::new(), ports: BTreeMap::new() };
        let mut numbers: HashMap<Class, usize> = HashMap::new();
        for protocol in Protocol::ALL {
            for (first, last, covering) in runs(resources, protocol) {
                let class = class_of(covering.iter().map(|index| &resources[*index]), wanted);
                let class = *numbers.entry(class).or_insert_with_key(|class| {
                    layout.classes.push(class.clone());
                    layout.classes.len() - 1
                });
                for port in first..=last {
                    layout.ports.extend(port_index(number_of(protocol), port).map(|index| (index, class)));
                }
            }
        }
        layout
    }
}

/// IANA's number of a protocol.
pub(super) fn number_of(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => protocol::TCP,
        Protocol::Udp => protocol::UDP,
        Protocol::Dccp => protocol::DCCP,
        Protocol::Sctp => protocol::SCTP,
        Protocol::UdpLite => protocol::UDPLITE,
    }
}

/// The runs of ports that the same resources cover, with the indexes of those resources; uncovered ports are left out.
fn runs(resources: &[Resource], protocol: Protocol) -> Vec<(u16, u16, Vec<usize>)> {
    let ranges: Vec<(usize, u16, u16)> = resources
        .iter()
        .enumerate()
        .flat_map(|(index, resource)| resource.ports.iter().map(move |range| (index, range)))
        .filter(|(_, range)| range.protocol() == protocol)
        .map(|(index, range)| (index, range.bounds().0, range.bounds().1))
        .collect();
    // Where a run can begin. One past the last port lies outside `u16`, so these are wider.
    let edges: BTreeSet<u32> =
        ranges.iter().flat_map(|(_, first, last)| [u32::from(*first), u32::from(*last) + 1]).collect();
    let starts = edges.iter().zip(edges.iter().skip(1));
    starts
        .filter_map(|(start, end)| {
            let (first, last) = (u16::try_from(*start).ok()?, u16::try_from(end - 1).ok()?);
            let covers = |(_, from, to): &&(usize, u16, u16)| *from <= first && last <= *to;
            let covering: Vec<usize> = ranges.iter().filter(covers).map(|(index, ..)| *index).collect();
            (!covering.is_empty()).then_some((first, last, covering))
        })
        .collect()
}

/// The numbers that a class may have, the likeliest first: always the same ones for the same contents, and others for others, by
/// all likelihood.
pub(super) fn numbers_of(prefixes: &Class) -> impl Iterator<Item = u32> + use<> {
    let mut hasher = DefaultHasher::new();
    prefixes.hash(&mut hasher);
    let first = hasher.finish() as u32;
    (0..=u32::MAX).map(move |further| first.wrapping_add(further))
}

/// The prefixes of all these resources. The control plane lets no two claim the same one on the same port; should it, the
/// first keeps it, and it is protected either way.
fn class_of<'a>(resources: impl Iterator<Item = &'a Resource>, wanted: &Wanted) -> Class {
    let mut class = Class::new();
    for resource in resources {
        let entry = wanted.entry(resource.number);
        for prefix in &resource.addresses {
            class.entry((*prefix).into()).or_insert(entry);
        }
    }
    class
}
