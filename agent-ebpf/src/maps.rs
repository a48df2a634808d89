//! Every map of the programs: key, value, capacity, who writes. Names are those of [`agent_ebpf::abi::map`].
//!
//! Owns: the definitions. Must not know: logic. Nothing here is an LRU map: what matters is never evicted.

use agent_ebpf::abi::{
    self, AddressKey, Admission, ConnectionEntry, GrantKey, GrantRef, GrantSlot, PeerKey, ResourceEntry,
    RingCounters, SubjectEntry,
};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf};

/// `BPF_F_NO_PREALLOC`, which the kernel demands of an LPM trie.
const NO_PREALLOC: u32 = 1;
/// `BPF_F_MMAPABLE`: the agent compares whole arrays with what it has written there, again and again, and writes single words.
/// Linux 5.5 and newer.
const IN_MEMORY: u32 = 1 << 10;

// Written by the agent.

#[map]
pub(crate) static PORT_CLASSES: Array<u32> = Array::with_max_entries(abi::PORT_CLASSES_MAX, IN_MEMORY);

#[map]
pub(crate) static RESOURCES: LpmTrie<AddressKey, ResourceEntry> =
    LpmTrie::with_max_entries(abi::RESOURCES_MAX, NO_PREALLOC);

#[map]
pub(crate) static PEERS: LpmTrie<PeerKey, u32> = LpmTrie::with_max_entries(abi::RESOURCES_MAX, NO_PREALLOC);

#[map]
pub(crate) static SUBJECTS: HashMap<u64, SubjectEntry> = HashMap::with_max_entries(abi::SUBJECTS_MAX, 0);

#[map]
pub(crate) static GRANTS: HashMap<GrantKey, GrantRef> = HashMap::with_max_entries(abi::GRANTS_MAX, 0);

#[map]
pub(crate) static EXEMPT_CGROUPS: HashMap<u64, u32> = HashMap::with_max_entries(abi::EXEMPT_CGROUPS_MAX, 0);

#[map]
pub(crate) static UNIX_SOCKETS: HashMap<u64, ResourceEntry> =
    HashMap::with_max_entries(abi::UNIX_SOCKETS_MAX, 0);

#[map]
pub(crate) static UNIX_GUARDED: Array<u32> = Array::with_max_entries(1, 0);

// Written by both.

#[map]
pub(crate) static SLOTS: Array<GrantSlot> = Array::with_max_entries(abi::GRANTS_MAX, IN_MEMORY);

// Written by the programs.

/// The kernel takes socket storage with BTF only.
#[btf_map]
pub(crate) static ADMISSIONS: SkStorage<Admission> = SkStorage::new();

/// The agent removes what it has seen closed.
#[map]
pub(crate) static CONNECTIONS: HashMap<u64, ConnectionEntry> =
    HashMap::with_max_entries(abi::CONNECTIONS_MAX, 0);

#[map]
pub(crate) static EVENTS_ALLOW: RingBuf = RingBuf::with_byte_size(abi::RING_BYTES, 0);

#[map]
pub(crate) static EVENTS_DENY: RingBuf = RingBuf::with_byte_size(abi::RING_BYTES, 0);

#[map]
pub(crate) static EVENTS_CLOSED: RingBuf = RingBuf::with_byte_size(abi::RING_BYTES, 0);

#[map]
pub(crate) static EVENTS_MOVED: RingBuf = RingBuf::with_byte_size(abi::RING_BYTES, 0);

#[map]
pub(crate) static COUNTERS: PerCpuArray<RingCounters> = PerCpuArray::with_max_entries(abi::RINGS, 0);
