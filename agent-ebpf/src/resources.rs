//! What the maps say about destinations, and from where they are served.
//!
//! Owns: the look-ups. Must not know: who may reach what.

use agent_ebpf::abi::{AddressKey, CLASS_BITS, PeerKey, RESOURCE_BITS, ResourceEntry, port_index};
use aya_ebpf::maps::lpm_trie::Key;

use crate::context::Destination;
use crate::maps;

/// The resource that the destination belongs to.
#[inline(always)]
pub(crate) fn protecting(destination: &Destination) -> Option<ResourceEntry> {
    let class = class(destination.protocol, destination.port)?;
    let key = AddressKey { class, address: destination.address };
    maps::RESOURCES.get(Key::new(CLASS_BITS + 128, key)).copied()
}

/// Whether a resource that is not served everywhere is served at this address.
#[inline(always)]
pub(crate) fn serves(resource: u32, address: [u8; 16]) -> bool {
    maps::PEERS.get(Key::new(RESOURCE_BITS + 128, PeerKey { resource, address })).is_some()
}

/// The class of a port. None: nobody protects it.
#[inline(always)]
pub(crate) fn class(protocol: u8, port: u16) -> Option<u32> {
    match maps::PORT_CLASSES.get(port_index(protocol, port)?) {
        None | Some(0) => None,
        Some(class) => Some(*class),
    }
}
