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
    resource(class(destination.protocol, destination.port)?, destination.address)
}

/// The resource that an address belongs to, on the ports of this class.
#[inline(always)]
pub(crate) fn resource(class: u32, address: [u8; 16]) -> Option<ResourceEntry> {
    maps::RESOURCES.get(Key::new(CLASS_BITS + 128, AddressKey { class, address })).copied()
}

/// Whether a resource that is not served everywhere is served at this address.
#[inline(always)]
pub(crate) fn serves(resource: u32, address: [u8; 16]) -> bool {
    maps::PEERS.get(Key::new(RESOURCE_BITS + 128, PeerKey { resource, address })).is_some()
}

/// The resource that the unix socket whose path has this key belongs to.
#[inline(always)]
pub(crate) fn guarding(key: u64) -> Option<ResourceEntry> {
    // SAFETY: the kernel replaces a whole entry when the agent writes it, and frees the old one only after this program's
    // run; what is copied here is one or the other.
    unsafe { maps::UNIX_SOCKETS.get(key).copied() }
}

/// Whether any unix socket is protected.
#[inline(always)]
pub(crate) fn guards_unix() -> bool {
    matches!(maps::UNIX_GUARDED.get(0), Some(count) if *count != 0)
}

/// The class of a port. None: nobody protects it.
#[inline(always)]
pub(crate) fn class(protocol: u8, port: u16) -> Option<u32> {
    match maps::PORT_CLASSES.get(port_index(protocol, port)?) {
        None | Some(0) => None,
        Some(class) => Some(*class),
    }
}
