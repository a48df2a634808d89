//! Reading whole maps: a part takes some milliseconds at the most.
//!
//! Owns: how each map is walked. Must not know: what it should hold.

use std::os::fd::AsFd;

use agent_ebpf::abi::{
    AddressKey, CLASS_BITS, GrantKey, GrantRef, PeerKey, RESOURCE_BITS, ResourceEntry, SubjectEntry, map,
};
use aya::Pod;

use super::pins::HeldMap;
use super::{Gate, KernelError, sys};
use crate::rules::drift::Part;
use crate::rules::plan::{AddressPrefix, Entries};

impl Gate {
    /// Reads one part of what the maps hold now into `entries`, in the place of what was there.
    pub fn read_part(&self, part: Part, entries: &mut Entries) -> Result<(), KernelError> {
        match part {
            Part::Ports { first, count } => {
                let end = first.saturating_add(count);
                entries.ports.retain(|index, _| !(first..end).contains(index));
                entries.ports.extend(self.non_zero::<u32>(map::PORT_CLASSES, first, end)?);
            }
            Part::Resources => self.read_resources(entries)?,
            Part::Peers => self.read_peers(entries)?,
            Part::UnixSockets => {
                // What the programs never look up is not protected.
                let is_guarded = self.unix_guarded.get(&0, 0);
                let is_guarded =
                    is_guarded.map_err(|error| KernelError::read(map::UNIX_GUARDED, error))? != 0;
                let pairs = self.pairs::<u64, ResourceEntry>(map::UNIX_SOCKETS)?.into_iter();
                entries.unix_sockets = pairs.filter(|_| is_guarded).collect();
            }
            Part::Subjects => {
                let bound = self.pairs::<u64, SubjectEntry>(map::SUBJECTS)?;
                entries.cgroups = bound.into_iter().map(|(id, entry)| (id, entry.number)).collect();
            }
            Part::Grants => {
                entries.grants = self.pairs::<GrantKey, GrantRef>(map::GRANTS)?.into_iter().collect();
            }
            Part::Slots => self.slots.read(entries),
        }
        Ok(())
    }

    /// As [`Gate::read_resources`].
    fn read_peers(&self, entries: &mut Entries) -> Result<(), KernelError> {
        entries.peers.clear();
        for key in self.peers.keys() {
            let key = key.map_err(|error| KernelError::read(map::PEERS, error))?;
            let (PeerKey { resource, address }, length) = (key.data(), key.prefix_len());
            let bits = u8::try_from(length.saturating_sub(RESOURCE_BITS)).unwrap_or(u8::MAX);
            entries.peers.entry(resource).or_default().insert(AddressPrefix { address, bits });
        }
        Ok(())
    }

    /// The kernel walks a trie one key at a time; there are as many as there are address prefixes.
    fn read_resources(&self, entries: &mut Entries) -> Result<(), KernelError> {
        entries.classes.clear();
        for item in self.resources.iter() {
            let (key, entry) = item.map_err(|error| KernelError::read(map::RESOURCES, error))?;
            let (AddressKey { class, address }, length) = (key.data(), key.prefix_len());
            let bits = u8::try_from(length.saturating_sub(CLASS_BITS)).unwrap_or(u8::MAX);
            entries.classes.entry(class).or_default().insert(AddressPrefix { address, bits }, entry);
        }
        Ok(())
    }

    /// All elements of a hash map.
    fn pairs<K: Pod, V: Pod>(&self, name: &'static str) -> Result<Vec<(K, V)>, KernelError> {
        let map = self.held(name)?;
        sys::hash_elements(map.fd.as_fd()).map_err(|source| KernelError::Elements { name, source })
    }

    /// The elements of a part of an array map that are not 0, with their indexes.
    fn non_zero<V: Pod + PartialEq + Default>(
        &self,
        name: &'static str,
        first: u32,
        end: u32,
    ) -> Result<impl Iterator<Item = (u32, V)> + use<V>, KernelError> {
        let map = self.held(name)?;
        let elements = sys::array_elements::<V>(map.fd.as_fd(), map.max_entries, first, end);
        let elements = elements.map_err(|source| KernelError::Elements { name, source })?;
        Ok((first..).zip(elements).filter(|(_, value)| *value != V::default()))
    }

    fn held(&self, name: &'static str) -> Result<&HeldMap, KernelError> {
        super::held(&self.maps, name)
    }
}
