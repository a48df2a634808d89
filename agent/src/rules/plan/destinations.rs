//! What is protected, how, and from where it is served.
//!
//! Owns: the order in which that is written. Must not know: who may pass.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Display;

use agent_ebpf::abi::{ResourceEntry, UNIX_SOCKETS_MAX};
use proto::types::{RefusedItem, ResourceNumber};

use super::layout::{Layout, numbers_of};
use super::{AddressPrefix, Check, Class, Peers, Reconciler, Wanted, Write};

impl<E: Display, W: FnMut(&Write) -> Result<(), E>> Reconciler<'_, W> {
    /// Peers that are not served any more first, and those of resources that are served everywhere yet; then new classes; then
    /// the ports, each in one write from its old class to its new one; then what no port refers to any more, more peers, and
    /// those of resources that are served everywhere now.
    pub(super) fn protect(&mut self, wanted: &Wanted) {
        for (check, protocol) in Check::OF_WRITES {
            if wanted.judges_writes(protocol) && !self.present.judged.contains(&check) {
                self.must(Write::Judge { check, on: true });
            }
        }
        let more = self.serve_fewer(&wanted.peers);
        let layout = Layout::of(wanted);
        let classes = self.name_classes(layout.classes);
        let mut complete = true;
        let mut usable: Vec<Option<u32>> = Vec::with_capacity(classes.len());
        for (class, prefixes) in &classes {
            let whole = self.add_class(*class, prefixes);
            complete &= whole;
            usable.push(whole.then_some(*class));
        }
        for (index, class_index) in &layout.ports {
            let (Some(class), Some((_, prefixes))) = (usable[*class_index], classes.get(*class_index)) else {
                continue;
            };
            if self.present.ports.get(index) != Some(&class) {
                match self.try_write(Write::SetPort { index: *index, class }) {
                    Ok(()) => {}
                    Err(error) => {
                        complete = false;
                        self.refuse_resources(prefixes, &error);
                    }
                }
            }
        }
        // What could not be put up leaves what was there before: rather the old protection than none.
        if complete {
            self.drop_ports(&layout.ports);
            self.drop_classes(&classes);
            for (number, prefix) in more {
                self.add_peer(number, prefix);
            }
            self.drop_peers(&wanted.peers);
            for (check, protocol) in Check::OF_WRITES {
                let is_wanted = wanted.judges_writes(protocol) || self.present.has_judged_writes(protocol);
                if !is_wanted && self.present.judged.contains(&check) {
                    self.must(Write::Judge { check, on: false });
                }
            }
        } else {
            for (number, _) in more {
                let error = "cannot serve it to more peers before all else is written".to_owned();
                self.refuse(RefusedItem::Resource(number), error);
            }
        }
    }

    /// Serves no resource to a peer that it is not to be served to, once a port refers to it. Gives the peers that resources
    /// are to be served to besides, where this matters already: a port may still refer to one that will be another's.
    fn serve_fewer(&mut self, wanted: &Peers) -> Vec<(ResourceNumber, AddressPrefix)> {
        if !wanted.is_empty()
            && !self.present.judged.contains(&Check::Arrivals)
            && let Err(error) = self.try_write(Write::Judge { check: Check::Arrivals, on: true })
        {
            wanted.keys().for_each(|number| self.refuse(RefusedItem::Resource(*number), error.clone()));
        }
        let entries = self.present.classes.values().flat_map(BTreeMap::values);
        let limited: BTreeSet<u32> =
            entries.filter(|entry| entry.has(ResourceEntry::PEERS)).map(|entry| entry.number).collect();
        let mut more = Vec::new();
        for (number, peers) in wanted {
            let resource = number.get();
            let present = self.present.peers.get(&resource).cloned().unwrap_or_default();
            for prefix in present.difference(peers) {
                self.must(Write::RemovePeer { resource, prefix: *prefix });
            }
            let mut added = peers.difference(&present);
            if limited.contains(&resource) {
                more.extend(added.map(|prefix| (*number, *prefix)));
            } else {
                // One that has no room is enough to know.
                added.all(|prefix| self.add_peer(*number, *prefix));
            }
        }
        more
    }

    fn add_peer(&mut self, number: ResourceNumber, prefix: AddressPrefix) -> bool {
        self.offer(RefusedItem::Resource(number), Write::AddPeer { resource: number.get(), prefix })
    }

    fn drop_peers(&mut self, wanted: &Peers) {
        let wanted: BTreeSet<u32> = wanted.keys().map(|number| number.get()).collect();
        let gone = self.present.peers.iter().filter(|(resource, _)| !wanted.contains(resource));
        let gone: Vec<(u32, AddressPrefix)> =
            gone.flat_map(|(resource, peers)| peers.iter().map(|prefix| (*resource, *prefix))).collect();
        for (resource, prefix) in gone {
            self.must(Write::RemovePeer { resource, prefix });
        }
        let is_limited = |class: &Class| class.values().any(|entry| entry.has(ResourceEntry::PEERS));
        let any_limited = self.present.classes.values().any(is_limited);
        // What could not be removed may still be limited.
        if wanted.is_empty() && !any_limited && self.present.judged.contains(&Check::Arrivals) {
            self.must(Write::Judge { check: Check::Arrivals, on: false });
        }
    }

    /// Each path in one write, whatever protected it before; then what is not wanted any more.
    pub(super) fn protect_unix(&mut self, wanted: &Wanted) {
        let mut complete = true;
        for (key, number) in &wanted.unix_sockets {
            // Who is served, and who is not, is about packets.
            let options = wanted.options.get(number).copied().unwrap_or_default();
            let entry = ResourceEntry { number: number.get(), flags: options.flags() };
            if self.present.unix_sockets.get(key) != Some(&entry) {
                complete &= self.offer(RefusedItem::Resource(*number), Write::GuardUnix { key: *key, entry });
            }
        }
        let is_gone = |key: &&u64| !wanted.unix_sockets.contains_key(*key);
        let gone: Vec<u64> = self.present.unix_sockets.keys().filter(is_gone).copied().collect();
        // As with ports: rather the old protection than none. Where it takes the room, the next time there is some.
        if complete || gone.len() + wanted.unix_sockets.len() > UNIX_SOCKETS_MAX as usize {
            for key in gone {
                self.must(Write::FreeUnix { key });
            }
        }
    }

    /// Gives each wanted class the number of a present one with the same contents, or one that is not in use.
    ///
    /// A number stands for its contents also when the class is long gone: connections remember the class by which they were let
    /// through, and take for granted what it said. So it is not the next number that is free, but one made from the contents.
    fn name_classes(&self, wanted: Vec<Class>) -> Vec<(u32, Class)> {
        let known: HashMap<&Class, u32> =
            self.present.classes.iter().map(|(number, prefixes)| (prefixes, *number)).collect();
        let mut taken: BTreeSet<u32> =
            self.present.classes.keys().chain(self.present.ports.values()).copied().collect();
        let mut name = |prefixes: &Class| {
            let free = |number: &u32| *number != 0 && !taken.contains(number);
            let number = numbers_of(prefixes).find(free)?;
            taken.insert(number);
            Some(number)
        };
        let named = wanted.into_iter().filter_map(|prefixes| {
            let number = known.get(&prefixes).copied().or_else(|| name(&prefixes))?;
            Some((number, prefixes))
        });
        named.collect()
    }

    /// Returns whether the class is there as a whole.
    fn add_class(&mut self, class: u32, prefixes: &Class) -> bool {
        for (prefix, entry) in prefixes {
            let there = self.present.classes.get(&class).and_then(|present| present.get(prefix)).copied();
            if there == Some(*entry) {
                continue;
            }
            let write = Write::AddAddress { class, prefix: *prefix, entry: *entry };
            if let Err(error) = self.try_write(write) {
                self.refuse_resources(prefixes, &error);
                self.drop_class_unless_used(class);
                return false;
            }
        }
        true
    }

    /// Takes back what was written of a class that could not be completed: it must not fill the map for good.
    fn drop_class_unless_used(&mut self, class: u32) {
        if self.present.ports.values().any(|used| *used == class) {
            return;
        }
        let prefixes = self.present.classes.get(&class).cloned().unwrap_or_default();
        for prefix in prefixes.into_keys() {
            self.must(Write::RemoveAddress { class, prefix });
        }
    }

    /// Of a class of which a part is missing no resource is surely protected on its ports.
    fn refuse_resources(&mut self, prefixes: &Class, error: &str) {
        for number in prefixes.values().map(|entry| entry.number).collect::<BTreeSet<_>>() {
            if let Ok(number) = ResourceNumber::try_from(number) {
                self.refuse(RefusedItem::Resource(number), error.to_owned());
            }
        }
    }

    fn drop_ports(&mut self, wanted: &BTreeMap<u32, usize>) {
        let gone: Vec<u32> =
            self.present.ports.keys().filter(|index| !wanted.contains_key(index)).copied().collect();
        for index in gone {
            self.must(Write::SetPort { index, class: 0 });
        }
    }

    fn drop_classes(&mut self, wanted: &[(u32, Class)]) {
        let wanted: BTreeSet<u32> = wanted.iter().map(|(number, _)| *number).collect();
        let used: BTreeSet<u32> = self.present.ports.values().copied().collect();
        let gone: Vec<(u32, AddressPrefix)> = self
            .present
            .classes
            .iter()
            .filter(|(number, _)| !wanted.contains(number) && !used.contains(number))
            .flat_map(|(number, prefixes)| prefixes.keys().map(|prefix| (*number, *prefix)))
            .collect();
        for (class, prefix) in gone {
            self.must(Write::RemoveAddress { class, prefix });
        }
    }
}
