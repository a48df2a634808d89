//! What the maps should hold.
//!
//! Owns: how it follows from resources and grants. Must not know: what they hold now.

use std::collections::{BTreeMap, BTreeSet};

use agent_ebpf::abi::ResourceEntry;
use proto::types::{GrantId, Protocol, Resource, ResourceMode, ResourceNumber, SubjectNumber};

use super::AddressPrefix;

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
    pub(super) fn judges_writes(&self, protocol: Protocol) -> bool {
        let is_judged = |resource: &&Resource| {
            self.options.get(&resource.number).is_some_and(|options| options.per_send)
                && resource.ports.iter().any(|range| range.protocol() == protocol)
        };
        self.resources.iter().any(|resource| is_judged(&resource))
    }

    /// What the kernel knows of a resource.
    pub(super) fn entry(&self, number: ResourceNumber) -> ResourceEntry {
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
        let proto::types::ResourceOptions {
            mode,
            strict,
            check_senders,
            serve_only: _,
            outage: _,
            drafts: _,
        } = options;
        Self { observe: *mode == ResourceMode::Observe, strict_audit: *strict, per_send: *check_senders }
    }
}

impl ResourceOptions {
    /// As the kernel knows them.
    pub(super) fn flags(self) -> u32 {
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
