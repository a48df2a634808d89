//! From what the maps hold and what they should hold to the writes that lead there, in an order that is safe at every
//! single step.
//!
//! Owns: the order, the classes of ports, the slots of grants. Must not know: aya.
//!
//! Invariants, property-tested after each write and with writes that fail: a destination that was protected before and is
//! to be protected after is protected all the time; nobody is served who was not before and is not to be after; nobody is let
//! through by a grant that is not wanted any more, once its removal has been tried; a reference to a slot is never written before the slot's deadline is; and what was let through
//! goes on exactly as long as the pair's grants, from then on, leave no gap.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::{self, Display};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use agent_ebpf::abi::{GrantKey, GrantRef, ResourceEntry, UNIX_SOCKETS_MAX, port_index, protocol};
use proto::types::{
    GrantId, Prefix, Protocol, Refused, RefusedItem, Resource, ResourceMode, ResourceNumber, SubjectNumber,
};

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
    const OF_WRITES: [(Self, Protocol); 2] =
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

/// From where resources are served.
pub type Peers = BTreeMap<ResourceNumber, BTreeSet<AddressPrefix>>;

/// What the maps should hold.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// What is protected.
    pub resources: Vec<Resource>,
    /// How; absent: without any option.
    pub options: BTreeMap<ResourceNumber, ResourceOptions>,
    /// What protects each unix socket, by the key of its path.
    pub unix_sockets: BTreeMap<u64, ResourceNumber>,
    /// From where it is served; absent: from everywhere.
    pub peers: Peers,
    /// Whose each cgroup is.
    pub cgroups: BTreeMap<u64, SubjectNumber>,
    /// Who may pass. Grants of one pair are a union: it ends when the longest does, and is idle when the most patient is.
    pub grants: Vec<WantedGrant>,
}

impl Wanted {
    /// These resources, guarded as each of them says.
    pub fn guarding(resources: Vec<Resource>) -> Self {
        let mut wanted = Self { resources, ..Self::default() };
        for resource in &wanted.resources {
            wanted.options.insert(resource.number, (&resource.options).into());
            if !resource.options.serve_only.is_empty() {
                let peers = resource.options.serve_only.iter().map(|prefix| (*prefix).into());
                wanted.peers.insert(resource.number, peers.collect());
            }
        }
        wanted
    }

    /// Whether there are ports of this protocol where each write is to be judged.
    fn judges_writes(&self, protocol: Protocol) -> bool {
        let is_judged = |resource: &&Resource| {
            self.options.get(&resource.number).is_some_and(|options| options.per_send)
                && resource.ports.iter().any(|range| range.protocol() == protocol)
        };
        self.resources.iter().any(|resource| is_judged(&resource))
    }

    /// What the kernel knows of a resource.
    fn entry(&self, number: ResourceNumber) -> ResourceEntry {
        let options = self.options.get(&number).copied().unwrap_or_default();
        let peers = if self.peers.contains_key(&number) { ResourceEntry::PEERS } else { 0 };
        ResourceEntry { number: number.get(), flags: options.flags() | peers }
    }
}

/// How a resource is guarded, but for its peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResourceOptions {
    /// Everything is judged and recorded, and nothing is held back.
    pub observe: bool,
    /// Nobody is let through without a record.
    pub strict_audit: bool,
    /// Whoever writes on a connection must be the subject that it was let through for.
    pub per_send: bool,
}

impl From<&proto::types::ResourceOptions> for ResourceOptions {
    fn from(options: &proto::types::ResourceOptions) -> Self {
        let proto::types::ResourceOptions { mode, strict, check_senders, serve_only: _ } = options;
        Self { observe: *mode == ResourceMode::Observe, strict_audit: *strict, per_send: *check_senders }
    }
}

impl ResourceOptions {
    /// As the kernel knows them.
    fn flags(self) -> u32 {
        let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
        flag(self.observe, ResourceEntry::OBSERVE)
            | flag(self.strict_audit, ResourceEntry::STRICT)
            | flag(self.per_send, ResourceEntry::SENDERS)
    }
}

/// A grant that should let somebody through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedGrant {
    /// Its id.
    pub id: GrantId,
    /// Who may.
    pub subject: SubjectNumber,
    /// What may be reached.
    pub resource: ResourceNumber,
    /// `CLOCK_BOOTTIME` in nanoseconds.
    pub expires_at_boot_ns: u64,
    /// How long nothing may be sent or received by it, in nanoseconds; 0: for any time.
    pub idle_limit_ns: u64,
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

    fn epoch(&self, slot: u32) -> u64 {
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
        self.epoch(slot) == epoch
            && self.deadlines.get(&slot).is_some_and(|deadline| *deadline > now_boot_ns)
            && !self.is_idle(slot, now_boot_ns)
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
    fn has_judged_writes(&self, protocol: Protocol) -> bool {
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

/// What came of a reconciliation.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What the kernel could not take.
    pub refused: Vec<Refused>,
    /// Removals that failed: the maps still hold something they should not, and the next reconciliation tries again.
    pub failed: Vec<String>,
}

/// Writes what leads from `present` to `wanted`, and keeps `present` true. `slots_max` is how many slots there are.
///
/// A pair that is let through without a break keeps its slot and epoch, whichever of its grants it is by: a union's deadline
/// moves, and what was let through goes on. Once it has ended, the next grant gets another slot, and revives nothing.
///
/// A union is idle by the most patient of its grants: if one of them has no idle limit, the slot has none, otherwise the
/// largest. Idleness counts from when the slot began, or its limit was last lowered.
pub fn reconcile<E: Display>(
    present: &mut Entries,
    wanted: &Wanted,
    slots_max: u32,
    now_boot_ns: u64,
    write: impl FnMut(&Write) -> Result<(), E>,
) -> Outcome {
    let mut reconciler = Reconciler { present, write, slots_max, now_boot_ns, outcome: Outcome::default() };
    let has_ended = |grant: &WantedGrant| {
        grant.expires_at_boot_ns <= reconciler.now_boot_ns || reconciler.ended_idle(grant)
    };
    let grants = unions(&wanted.grants, has_ended);
    reconciler.remove_grants(&grants);
    reconciler.unbind(&wanted.cgroups);
    reconciler.protect(wanted);
    reconciler.protect_unix(wanted);
    reconciler.bind(&wanted.cgroups);
    reconciler.put_grants(&grants);
    reconciler.outcome
}

/// The same for the grants of one pair, of which `wanted` ends last; nothing else is looked at. None: it should have none.
pub fn reconcile_pair<E: Display>(
    present: &mut Entries,
    key: GrantKey,
    wanted: Option<&WantedGrant>,
    slots_max: u32,
    now_boot_ns: u64,
    write: impl FnMut(&Write) -> Result<(), E>,
) -> Outcome {
    let mut reconciler = Reconciler { present, write, slots_max, now_boot_ns, outcome: Outcome::default() };
    match wanted {
        Some(grant) => reconciler.put_grants(&BTreeMap::from([(key, *grant)])),
        None => reconciler.remove_grant(key),
    }
    reconciler.outcome
}

/// Of the grants of each pair the one that ends last, of equal ones the newest, with the idle limit of all of them. Those that
/// have `ended` count only where the pair has no other.
fn unions(grants: &[WantedGrant], ended: impl Fn(&WantedGrant) -> bool) -> BTreeMap<GrantKey, WantedGrant> {
    let mut unions: BTreeMap<GrantKey, (WantedGrant, bool)> = BTreeMap::new();
    for grant in grants {
        let (key, has_ended) = (key_of(grant), ended(grant));
        match unions.get_mut(&key) {
            None => drop(unions.insert(key, (*grant, has_ended))),
            Some(union) if union.1 && !has_ended => *union = (*grant, false),
            Some((_, false)) if has_ended => {}
            Some((union, _)) => {
                let idle_limit_ns = most_patient(union.idle_limit_ns, grant.idle_limit_ns);
                let rank = |grant: &WantedGrant| (grant.expires_at_boot_ns, grant.id);
                let longest = if rank(grant) > rank(union) { grant } else { &*union };
                *union = WantedGrant { idle_limit_ns, ..*longest };
            }
        }
    }
    unions.into_iter().map(|(key, (union, _))| (key, union)).collect()
}

fn key_of(grant: &WantedGrant) -> GrantKey {
    GrantKey { subject: grant.subject.get(), resource: grant.resource.get() }
}

/// 0 is no limit.
fn most_patient(a_ns: u64, b_ns: u64) -> u64 {
    if a_ns == 0 || b_ns == 0 { 0 } else { a_ns.max(b_ns) }
}

struct Reconciler<'a, W> {
    present: &'a mut Entries,
    write: W,
    slots_max: u32,
    now_boot_ns: u64,
    outcome: Outcome,
}

impl<E: Display, W: FnMut(&Write) -> Result<(), E>> Reconciler<'_, W> {
    /// Writes, and mirrors what was written. The error is for people.
    fn try_write(&mut self, write: Write) -> Result<(), String> {
        (self.write)(&write).map_err(|error| format!("cannot {write}: {error}"))?;
        self.present.apply(&write);
        Ok(())
    }

    /// A write that must not fail. Returns whether it did not.
    fn must(&mut self, write: Write) -> bool {
        let result = self.try_write(write);
        let done = result.is_ok();
        self.outcome.failed.extend(result.err());
        done
    }

    /// A write for one item, which is refused if it fails. Returns whether it did not.
    fn offer(&mut self, item: RefusedItem, write: Write) -> bool {
        match self.try_write(write) {
            Ok(()) => true,
            Err(error) => {
                self.refuse(item, error);
                false
            }
        }
    }

    fn refuse(&mut self, item: RefusedItem, error: String) {
        if !self.outcome.refused.iter().any(|refused| refused.item == item) {
            self.outcome.refused.push(Refused { item, error });
        }
    }

    /// Ends every pair that is not wanted at all. The epoch first: it alone closes, and it is one write.
    fn remove_grants(&mut self, wanted: &BTreeMap<GrantKey, WantedGrant>) {
        let gone: Vec<GrantKey> =
            self.present.grants.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        gone.into_iter().for_each(|key| self.remove_grant(key));
    }

    fn remove_grant(&mut self, key: GrantKey) {
        if let Some(held) = self.present.grants.get(&key).copied() {
            self.raise_epoch(held.slot);
            self.must(Write::RemoveGrant { key });
        }
    }

    fn raise_epoch(&mut self, slot: u32) {
        // Only somebody else refers to a slot that is not there, and it lets nobody through.
        if slot < self.slots_max {
            // Only somebody else gets to the last epoch. One counts by being the same, so going round does no harm.
            let epoch = self.present.epoch(slot).wrapping_add(1);
            self.must(Write::SetEpoch { slot, epoch });
        }
    }

    fn unbind(&mut self, wanted: &BTreeMap<u64, SubjectNumber>) {
        let gone: Vec<u64> = self
            .present
            .cgroups
            .iter()
            .filter(|(id, subject)| wanted.get(id).map(|number| number.get()) != Some(**subject))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.must(Write::UnbindCgroup { id });
        }
    }

    fn bind(&mut self, wanted: &BTreeMap<u64, SubjectNumber>) {
        let mut full: BTreeSet<SubjectNumber> = BTreeSet::new();
        for (id, subject) in wanted {
            if !self.present.cgroups.contains_key(id) && !full.contains(subject) {
                let write = Write::BindCgroup { id: *id, subject: subject.get() };
                if !self.offer(RefusedItem::Subject(*subject), write) {
                    full.insert(*subject);
                }
            }
        }
    }

    /// Peers that are not served any more first, and those of resources that are served everywhere yet; then new classes; then
    /// the ports, each in one write from its old class to its new one; then what no port refers to any more, more peers, and
    /// those of resources that are served everywhere now.
    fn protect(&mut self, wanted: &Wanted) {
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
    fn protect_unix(&mut self, wanted: &Wanted) {
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

    fn put_grants(&mut self, wanted: &BTreeMap<GrantKey, WantedGrant>) {
        let slots_max = self.slots_max;
        let mut taken: HashSet<u32> = self.present.grants.values().map(|value| value.slot).collect();
        // Lowest first: the maps' first pages are the ones in the caches.
        let mut next_slot = 0;
        for (key, grant) in wanted {
            let old = self.present.grants.get(key).copied();
            if let Some(old) = old {
                // What has ended idle stays, as long as nothing else is wanted, and says so.
                if self.is_exactly(old, grant) || self.ended_idle(grant) {
                    continue;
                }
                if self.is_live(old) {
                    self.carry_on(*key, old, grant);
                    continue;
                }
            }
            while taken.contains(&next_slot) {
                next_slot += 1;
            }
            let item = RefusedItem::Grant(grant.id);
            let put = if next_slot < slots_max {
                taken.insert(next_slot);
                self.put_grant(*key, grant, next_slot)
            } else {
                self.refuse(item, format!("cannot hold more than {slots_max} grants at a time"));
                false
            };
            if let Some(old) = old {
                self.raise_epoch(old.slot);
                if !put {
                    self.must(Write::RemoveGrant { key: *key });
                }
            }
        }
    }

    /// Whether the reference leads to this grant and no other.
    fn is_exactly(&self, reference: GrantRef, grant: &WantedGrant) -> bool {
        self.present.epoch(reference.slot) == reference.epoch
            && self.present.names.get(&reference.slot) == Some(&name_of(grant))
            && self.present.deadlines.get(&reference.slot) == Some(&grant.expires_at_boot_ns)
            && self.idle_limit(reference.slot) == grant.idle_limit_ns
    }

    fn idle_limit(&self, slot: u32) -> u64 {
        self.present.idle_limits.get(&slot).copied().unwrap_or(0)
    }

    /// Whether the pair's slot is named after the grant, and has been idle for longer than it may.
    fn ended_idle(&self, grant: &WantedGrant) -> bool {
        self.present.grants.get(&key_of(grant)).is_some_and(|held| {
            self.present.epoch(held.slot) == held.epoch
                && self.present.names.get(&held.slot) == Some(&name_of(grant))
                && self.present.is_idle(held.slot, self.now_boot_ns)
        })
    }

    /// Whether somebody is let through by the reference, and still will be by the time that this is written.
    fn is_live(&self, reference: GrantRef) -> bool {
        const MARGIN_NS: u64 = 10_000_000;
        self.present.counts(reference.slot, reference.epoch, self.now_boot_ns.saturating_add(MARGIN_NS))
    }

    /// Another grant of the pair takes over while one still counts: the deadline moves, what was let through goes on.
    fn carry_on(&mut self, key: GrantKey, held: GrantRef, grant: &WantedGrant) {
        let (item, slot) = (RefusedItem::Grant(grant.id), held.slot);
        let moved = self.limit(item, slot, grant.idle_limit_ns)
            && self.offer(item, Write::SetDeadline { slot, deadline_boot_ns: grant.expires_at_boot_ns })
            && self.offer(item, Write::NameSlot { slot, grant: name_of(grant) });
        if !moved {
            // Whatever the slot says now is not what is wanted.
            self.raise_epoch(slot);
            self.must(Write::RemoveGrant { key });
        }
    }

    /// Sets the idle limit of a slot that counts. A lower one begins to count now.
    fn limit(&mut self, item: RefusedItem, slot: u32, limit_ns: u64) -> bool {
        let present_ns = self.idle_limit(slot);
        if present_ns == limit_ns {
            return true;
        }
        let is_lowered = limit_ns != most_patient(present_ns, limit_ns);
        let boot_ns = self.now_boot_ns;
        (!is_lowered || self.offer(item, Write::RestartIdling { slot, boot_ns }))
            && self.offer(item, Write::SetIdleLimit { slot, limit_ns })
    }

    fn put_grant(&mut self, key: GrantKey, grant: &WantedGrant, slot: u32) -> bool {
        let item = RefusedItem::Grant(grant.id);
        let value = GrantRef { slot, reserved: 0, epoch: self.present.epoch(slot) };
        self.offer(item, Write::NameSlot { slot, grant: name_of(grant) })
            && self.offer(item, Write::BeginSlot { slot, boot_ns: self.now_boot_ns })
            && (self.idle_limit(slot) == grant.idle_limit_ns
                || self.offer(item, Write::SetIdleLimit { slot, limit_ns: grant.idle_limit_ns }))
            && self.offer(item, Write::SetDeadline { slot, deadline_boot_ns: grant.expires_at_boot_ns })
            && self.offer(item, Write::PutGrant { key, value })
    }
}

fn name_of(grant: &WantedGrant) -> [u8; 16] {
    *grant.id.as_bytes()
}

/// Which ports share which addresses: ports on which the same prefixes are protected are one class.
struct Layout {
    classes: Vec<Class>,
    /// Port index → index into `classes`.
    ports: BTreeMap<u32, usize>,
}

impl Layout {
    fn of(wanted: &Wanted) -> Self {
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
fn number_of(protocol: Protocol) -> u8 {
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
fn numbers_of(prefixes: &Class) -> impl Iterator<Item = u32> + use<> {
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

#[cfg(test)]
pub(super) mod tests;
