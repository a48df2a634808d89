//! What the maps hold, and the single writes that change it.
//!
//! Owns: what each write does to them, and what they mean. Must not know: what they should hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};

use agent_ebpf::abi::{GrantKey, GrantRef, ResourceEntry, port_index};
use proto::types::{Prefix, Protocol};

use super::layout::number_of;

/// Leading bits of a 128-bit address, IPv4 as mapped IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressPrefix {
    /// Network order.
    pub address: [u8; 16],
    /// 0..=128.
    pub bits: u8,
}

impl From<Prefix> for AddressPrefix {
    fn from(prefix: Prefix) -> Self {
        let (address, bits) = prefix.mapped();
        Self { address, bits }
    }
}

/// Which resource each prefix of a class belongs to, and how it is guarded. Never changed while a port refers to it: a class
/// with other contents is another class, and so a resource gets another mode by one write for each of its ports.
pub type Class = BTreeMap<AddressPrefix, ResourceEntry>;

/// What is judged only while some resource wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// What arrives: while it is not, every resource is served everywhere.
    Arrivals,
    /// Who sends datagrams.
    Datagrams,
    /// Who writes on connections.
    Senders,
}

impl Check {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Arrivals, Self::Datagrams, Self::Senders];
    /// Those of whoever writes, and on which ports that matters.
    pub(super) const OF_WRITES: [(Self, Protocol); 2] =
        [(Self::Datagrams, Protocol::Udp), (Self::Senders, Protocol::Tcp)];
}

impl Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Arrivals => "what arrives",
            Self::Datagrams => "who sends datagrams",
            Self::Senders => "who writes on connections",
        })
    }
}

/// What the maps hold. Absent is 0 or no entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// Port index → class.
    pub ports: BTreeMap<u32, u32>,
    /// Class → its prefixes.
    pub classes: BTreeMap<u32, Class>,
    /// Key of a unix socket's path → what protects it.
    pub unix_sockets: BTreeMap<u64, ResourceEntry>,
    /// Resource number → from where it is served, if its entries say that this matters.
    pub peers: BTreeMap<u32, BTreeSet<AddressPrefix>>,
    /// What is judged besides, where the kernel can.
    pub judged: BTreeSet<Check>,
    /// Cgroup id → subject number.
    pub cgroups: BTreeMap<u64, u32>,
    /// Pair → where its grant lies.
    pub grants: BTreeMap<GrantKey, GrantRef>,
    /// Slot → which grant it is called after, a UUID; also those that nothing refers to.
    pub names: BTreeMap<u32, [u8; 16]>,
    /// Slot → deadline on the boot clock in nanoseconds; also those that nothing refers to.
    pub deadlines: BTreeMap<u32, u64>,
    /// Slot → idle limit in nanoseconds; also those that nothing refers to.
    pub idle_limits: BTreeMap<u32, u64>,
    /// Slot → when it was last active, on the boot clock in nanoseconds, as far as it was looked at: the kernel moves it on.
    /// Means nothing where there is no idle limit.
    pub active: BTreeMap<u32, u64>,
    /// Slot → epoch.
    pub epochs: BTreeMap<u32, u64>,
}

/// One write to one map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are the maps' keys and values")]
pub enum Write {
    SetPort {
        index: u32,
        class: u32,
    },
    AddAddress {
        class: u32,
        prefix: AddressPrefix,
        entry: ResourceEntry,
    },
    RemoveAddress {
        class: u32,
        prefix: AddressPrefix,
    },
    GuardUnix {
        key: u64,
        entry: ResourceEntry,
    },
    FreeUnix {
        key: u64,
    },
    AddPeer {
        resource: u32,
        prefix: AddressPrefix,
    },
    RemovePeer {
        resource: u32,
        prefix: AddressPrefix,
    },
    /// Something is judged from now on, or not any more.
    Judge {
        check: Check,
        on: bool,
    },
    BindCgroup {
        id: u64,
        subject: u32,
    },
    UnbindCgroup {
        id: u64,
    },
    NameSlot {
        slot: u32,
        grant: [u8; 16],
    },
    SetDeadline {
        slot: u32,
        deadline_boot_ns: u64,
    },
    SetIdleLimit {
        slot: u32,
        limit_ns: u64,
    },
    /// Nothing was let through by the slot yet, and it counts as active now.
    BeginSlot {
        slot: u32,
        boot_ns: u64,
    },
    /// The slot counts as active now.
    RestartIdling {
        slot: u32,
        boot_ns: u64,
    },
    SetEpoch {
        slot: u32,
        epoch: u64,
    },
    PutGrant {
        key: GrantKey,
        value: GrantRef,
    },
    RemoveGrant {
        key: GrantKey,
    },
}

impl Display for Write {
    /// For error texts: what could not be done.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetPort { index, class } => write!(f, "set port {index} to class {class}"),
            Self::AddAddress { class, entry, .. } => {
                write!(f, "add an address of resource {} to class {class}", entry.number)
            }
            Self::RemoveAddress { class, .. } => write!(f, "remove an address from class {class}"),
            Self::GuardUnix { entry, .. } => write!(f, "protect a unix socket of resource {}", entry.number),
            Self::FreeUnix { key } => write!(f, "stop protecting the unix socket of key {key:#x}"),
            Self::AddPeer { resource, .. } => write!(f, "serve resource {resource} to a peer"),
            Self::RemovePeer { resource, .. } => write!(f, "stop serving resource {resource} to a peer"),
            Self::Judge { check, on: true } => write!(f, "begin to judge {check}"),
            Self::Judge { check, on: false } => write!(f, "cease to judge {check}"),
            Self::BindCgroup { id, subject } => write!(f, "bind cgroup {id} to subject {subject}"),
            Self::UnbindCgroup { id } => write!(f, "unbind cgroup {id}"),
            Self::NameSlot { slot, .. } => write!(f, "name slot {slot}"),
            Self::SetDeadline { slot, .. } => write!(f, "set the deadline of slot {slot}"),
            Self::SetIdleLimit { slot, .. } => write!(f, "set the idle limit of slot {slot}"),
            Self::BeginSlot { slot, .. } | Self::RestartIdling { slot, .. } => {
                write!(f, "begin the idle time of slot {slot}")
            }
            Self::SetEpoch { slot, epoch } => write!(f, "raise slot {slot} to epoch {epoch}"),
            Self::PutGrant { key, .. } => {
                write!(f, "let subject {} through to resource {}", key.subject, key.resource)
            }
            Self::RemoveGrant { key } => {
                write!(f, "stop letting subject {} through to resource {}", key.subject, key.resource)
            }
        }
    }
}

impl Entries {
    /// What the maps hold after a write that succeeded.
    pub fn apply(&mut self, write: &Write) {
        match *write {
            Write::SetPort { index, class: 0 } => drop(self.ports.remove(&index)),
            Write::SetPort { index, class } => drop(self.ports.insert(index, class)),
            Write::AddAddress { class, prefix, entry } => {
                self.classes.entry(class).or_default().insert(prefix, entry);
            }
            Write::RemoveAddress { class, prefix } => {
                if let Some(prefixes) = self.classes.get_mut(&class) {
                    prefixes.remove(&prefix);
                    if prefixes.is_empty() {
                        self.classes.remove(&class);
                    }
                }
            }
            Write::GuardUnix { key, entry } => drop(self.unix_sockets.insert(key, entry)),
            Write::FreeUnix { key } => drop(self.unix_sockets.remove(&key)),
            Write::AddPeer { resource, prefix } => {
                self.peers.entry(resource).or_default().insert(prefix);
            }
            Write::RemovePeer { resource, prefix } => {
                if let Some(peers) = self.peers.get_mut(&resource) {
                    peers.remove(&prefix);
                    if peers.is_empty() {
                        self.peers.remove(&resource);
                    }
                }
            }
            Write::Judge { check, on: true } => drop(self.judged.insert(check)),
            Write::Judge { check, on: false } => drop(self.judged.remove(&check)),
            Write::BindCgroup { id, subject } => drop(self.cgroups.insert(id, subject)),
            Write::UnbindCgroup { id } => drop(self.cgroups.remove(&id)),
            Write::NameSlot { slot, grant } => drop(self.names.insert(slot, grant)),
            Write::SetDeadline { slot, deadline_boot_ns } => {
                self.deadlines.insert(slot, deadline_boot_ns);
            }
            Write::SetIdleLimit { slot, limit_ns: 0 } => drop(self.idle_limits.remove(&slot)),
            Write::SetIdleLimit { slot, limit_ns } => drop(self.idle_limits.insert(slot, limit_ns)),
            Write::BeginSlot { slot, boot_ns } | Write::RestartIdling { slot, boot_ns } => {
                self.active.insert(slot, boot_ns);
            }
            Write::SetEpoch { slot, epoch } => drop(self.epochs.insert(slot, epoch)),
            Write::PutGrant { key, value } => drop(self.grants.insert(key, value)),
            Write::RemoveGrant { key } => drop(self.grants.remove(&key)),
        }
    }

    pub(super) fn epoch(&self, slot: u32) -> u64 {
        self.epochs.get(&slot).copied().unwrap_or(0)
    }

    /// Number of the resource that a destination belongs to, as the kernel finds it. `address`: network order, IPv4 as mapped
    /// IPv6.
    pub fn protecting(&self, protocol: u8, port: u16, address: [u8; 16]) -> Option<u32> {
        let class = self.ports.get(&port_index(protocol, port)?)?;
        let covers = |prefix: &AddressPrefix| {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.bits)).unwrap_or(0);
            u128::from_be_bytes(prefix.address) & mask == u128::from_be_bytes(address) & mask
        };
        let prefixes = self.classes.get(class)?.iter().filter(|(prefix, _)| covers(prefix));
        prefixes.max_by_key(|(prefix, _)| prefix.bits).map(|(_, entry)| entry.number)
    }

    /// Whether whatever was let through by this slot in this epoch may go on, as the kernel decides it; by the activity that is
    /// known.
    pub fn counts(&self, slot: u32, epoch: u64, now_boot_ns: u64) -> bool {
        self.counts_until(slot, epoch, now_boot_ns).is_some()
    }

    /// The same, and until when: nothing but a write ends it before that. None: it may not go on.
    pub fn counts_until(&self, slot: u32, epoch: u64, now_boot_ns: u64) -> Option<u64> {
        let deadline_boot_ns = self.deadlines.get(&slot).filter(|deadline| **deadline > now_boot_ns)?;
        if self.epoch(slot) != epoch || self.is_idle(slot, now_boot_ns) {
            return None;
        }
        let active_boot_ns = self.active.get(&slot).copied().unwrap_or(0);
        let idle_boot_ns = match self.idle_limits.get(&slot) {
            None | Some(0) => u64::MAX,
            Some(limit_ns) => active_boot_ns.saturating_add(*limit_ns),
        };
        Some(idle_boot_ns.min(*deadline_boot_ns))
    }

    /// Whether the slot has been idle for longer than it may, by the activity that is known.
    pub fn is_idle(&self, slot: u32, now_boot_ns: u64) -> bool {
        let active_boot_ns = self.active.get(&slot).copied().unwrap_or(0);
        let idle_ns = now_boot_ns.saturating_sub(active_boot_ns);
        self.idle_limits.get(&slot).is_some_and(|limit_ns| *limit_ns != 0 && idle_ns >= *limit_ns)
    }

    /// The slots that are let through by and seem to be idle: the kernel may know of later activity.
    pub fn seeming_idle(&self, now_boot_ns: u64) -> Vec<u32> {
        let held = self.grants.values().filter(|held| self.epoch(held.slot) == held.epoch);
        held.map(|held| held.slot).filter(|slot| self.is_idle(*slot, now_boot_ns)).collect()
    }

    /// Whether a port of this protocol leads to a resource where each write is judged: what could not be removed may still do.
    pub(super) fn has_judged_writes(&self, protocol: Protocol) -> bool {
        let protocol = number_of(protocol);
        let (first, last) = (port_index(protocol, 0), port_index(protocol, u16::MAX));
        let (Some(first), Some(last)) = (first, last) else { return false };
        let classes: BTreeSet<u32> = self.ports.range(first..=last).map(|(_, class)| *class).collect();
        let entries = classes.iter().filter_map(|class| self.classes.get(class)).flat_map(BTreeMap::values);
        entries.into_iter().any(|entry| entry.has(ResourceEntry::SENDERS))
    }

    /// The numbers of the resources that are only observed.
    pub fn observed(&self) -> BTreeSet<u32> {
        let entries = self.classes.values().flat_map(BTreeMap::values).chain(self.unix_sockets.values());
        entries.filter(|entry| entry.has(ResourceEntry::OBSERVE)).map(|entry| entry.number).collect()
    }
}
