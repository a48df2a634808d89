//! Reading whole maps: a part takes some milliseconds at the most.
//!
//! Owns: how each map is walked. Must not know: what it should hold.

use agent_ebpf::abi::{
    AddressKey, CLASS_BITS, GrantKey, GrantRef, GrantSlot, ResourceEntry, SubjectEntry, map,
};
use aya::Pod;
use aya::maps::{LpmTrie, MapData};

use super::guard::Guard;
use super::{KernelError, sys};
use crate::rules::drift::Part;
use crate::rules::plan::{AddressPrefix, Entries};

/// Reads one part into `entries`, in the place of what was there.
pub(super) fn read(
    guard: &Guard,
    resources: &LpmTrie<MapData, AddressKey, ResourceEntry>,
    part: Part,
    entries: &mut Entries,
) -> Result<(), KernelError> {
    match part {
        Part::Ports { first, count } => {
            let end = first.saturating_add(count);
            entries.ports.retain(|index, _| !(first..end).contains(index));
            entries.ports.extend(non_zero::<u32>(guard, map::PORT_CLASSES, first, end)?);
        }
        Part::Resources => read_resources(resources, entries)?,
        Part::Subjects => {
            let bound = hash::<u64, SubjectEntry>(guard, map::SUBJECTS)?;
            entries.cgroups = bound.into_iter().map(|(id, entry)| (id, entry.number)).collect();
        }
        Part::Grants => {
            entries.grants = hash::<GrantKey, GrantRef>(guard, map::GRANTS)?.into_iter().collect();
        }
        Part::Slots => {
            let names = non_zero::<[u8; 16]>(guard, map::SLOTS, 0, u32::MAX)?;
            entries.slots = names.map(|(slot, grant)| (slot, GrantSlot { grant })).collect();
        }
        Part::Deadlines => {
            entries.deadlines = non_zero::<u64>(guard, map::DEADLINES, 0, u32::MAX)?.collect();
        }
        Part::IdleLimits => {
            entries.idle_limits = non_zero::<u64>(guard, map::IDLE_LIMITS, 0, u32::MAX)?.collect();
        }
        Part::Epochs => entries.epochs = non_zero::<u64>(guard, map::EPOCHS, 0, u32::MAX)?.collect(),
    }
    Ok(())
}

/// The kernel walks a trie one key at a time; there are as many as there are address prefixes.
fn read_resources(
    resources: &LpmTrie<MapData, AddressKey, ResourceEntry>,
    entries: &mut Entries,
) -> Result<(), KernelError> {
    entries.classes.clear();
    for item in resources.iter() {
        let (key, entry) = item.map_err(|error| KernelError::read(map::RESOURCES, error))?;
        let (AddressKey { class, address }, length) = (key.data(), key.prefix_len());
        let bits = u8::try_from(length.saturating_sub(CLASS_BITS)).unwrap_or(u8::MAX);
        entries.classes.entry(class).or_default().insert(AddressPrefix { address, bits }, entry);
    }
    Ok(())
}

fn hash<K: Pod, V: Pod>(guard: &Guard, name: &'static str) -> Result<Vec<(K, V)>, KernelError> {
    let (fd, _) = guard.map(name).ok_or(KernelError::Missing(name))?;
    sys::hash_elements(fd).map_err(|source| KernelError::Elements { name, source })
}

/// The elements of a part of an array map that are not 0, with their indexes.
fn non_zero<V: Pod + PartialEq + Default>(
    guard: &Guard,
    name: &'static str,
    first: u32,
    end: u32,
) -> Result<impl Iterator<Item = (u32, V)>, KernelError> {
    let (fd, total) = guard.map(name).ok_or(KernelError::Missing(name))?;
    let elements = sys::array_elements::<V>(fd, total, first, end);
    let elements = elements.map_err(|source| KernelError::Elements { name, source })?;
    Ok((first..).zip(elements).filter(|(_, value)| *value != V::default()))
}
