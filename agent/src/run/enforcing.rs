//! Keeping the maps as they should be.
//!
//! Owns: what they should hold, and what they hold. Its parts say when that changes, and whether it is so.

mod ends;
mod following;
mod proof;
mod succession;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use agent_ebpf::abi::Ring;
use proto::types::{
    Applied, Delta, Digest, GrantSet, Invalid, Refused, RefusedItem, Report, Selector, SubjectNumber,
};
use uuid::Uuid;

use super::proving::Proving;
use super::runs::Running;
use crate::addresses::LocalAddresses;
use crate::canary;
use crate::clock::now_boot_ns;
use crate::kernel::{Gate, KernelError, Missing, UNIX_SOCKETS};
use crate::kubernetes::PodsFile;
use crate::memory::{Lost, Memory, MemoryFile};
use crate::observe::{Cgroups, UnixSockets};
use crate::rules::digest::digest;
use crate::rules::grants::{Accepted, Grants};
use crate::rules::local;
use crate::rules::plan::{Entries, Wanted, WantedGrant, reconcile};
use crate::rules::pods::PodsChange;
use crate::rules::runs::FIRST_NUMBER;
use crate::status::{Flaw, Health};
use ends::Period;
pub(super) use ends::PeriodEnd;
pub(super) use following::exempt;

/// The gate, what it should hold, and what it holds.
pub(super) struct Enforcing {
    gate: Gate,
    entries: Entries,
    pub(super) grants: Grants,
    pub(super) cgroups: Cgroups,
    addresses: LocalAddresses,
    unix_sockets: UnixSockets,
    /// Whose processes may have sockets of any family.
    exempt: Vec<Selector>,
    /// What is known of pods is kept there; None: nobody asks for them.
    pods_file: Option<PodsFile>,
    /// Whose each cgroup was when it was last looked at.
    bound: BTreeMap<u64, SubjectNumber>,
    pub(super) health: Health,
    memory: MemoryFile,
    pub(super) running: Running,
    /// Whose set, and which, a restart would go on from. None: from none.
    remembered: Option<(Uuid, u64)>,
    /// When the next grant runs out that the memory knows as one that goes on.
    forgotten_boot_ns: Option<u64>,
    proving: Proving,
    /// Its grant, while it has one.
    canary_grant: Option<WantedGrant>,
    /// Which part of the maps is compared next.
    next_part: usize,
    /// Found in the maps since the last look at the gate.
    drifted: Vec<Flaw>,
    /// What is let through now, by slot and epoch: to be known when it has ended.
    periods: BTreeMap<(u32, u64), Period>,
    /// Before this moment none of them ends, unless something is written. 0: that is not known.
    next_end_boot_ns: u64,
    /// Some connection of an ended period may still be there.
    unconfirmed: bool,
    /// Some connection was let through by a call, and then refused for who made its socket.
    strays: bool,
    /// Resources that were only observed when it was last reconciled.
    observed: BTreeSet<u32>,
}

impl Enforcing {
    /// Starts from what is remembered. If nothing is, a gate that was taken over, of this ABI version or another, is left as it
    /// is until the control plane speaks: it holds what an earlier agent was told, and its deadlines pass by themselves.
    pub(super) fn new(
        gate: Gate,
        mut cgroups: Cgroups,
        exempt: Vec<Selector>,
        pods_file: Option<PodsFile>,
        remembered: Memory,
        memory: MemoryFile,
        mut running: Running,
    ) -> Result<Self, KernelError> {
        if let Some(file) = &pods_file {
            cgroups.pods_mut().apply(PodsChange::Listed(file.read()));
        }
        let entries = gate.read()?;
        let observed = entries.observed();
        let mut grants = Grants::default();
        let now_boot_ns = now_boot_ns();
        grants.recall(remembered.grants, remembered.ended, remembered.left, now_boot_ns);
        let (remembered, forgotten_boot_ns) = (grants.applied(), grants.next_deadline(now_boot_ns));
        grants.recall_used(std::mem::take(&mut running.recalled));
        grants.hear_from_maps(&entries);
        let unheard = || "the API server has not been heard yet".to_owned();
        let health = Health { pods: pods_file.is_some().then(unheard), ..Health::default() };
        let addresses = LocalAddresses::default();
        let bound = BTreeMap::new();
        let periods = BTreeMap::new();
        // What an earlier agent left connected and no grant covers any more is ended now.
        let mut enforcing = Self {
            gate,
            entries,
            grants,
            cgroups,
            addresses,
            unix_sockets: UnixSockets::default(),
            exempt,
            pods_file,
            bound,
            health,
            memory,
            running,
            remembered,
            forgotten_boot_ns,
            proving: Proving::default(),
            canary_grant: None,
            next_part: 0,
            drifted: Vec::new(),
            periods,
            next_end_boot_ns: 0,
            unconfirmed: true,
            strays: false,
            observed,
        };
        enforcing.note_missing();
        enforcing.note_periods();
        if enforcing.knows_what_is_wanted() {
            enforcing.look_for_set();
            enforcing.find_ends();
            enforcing.reconcile();
        }
        enforcing.succeed();
        Ok(enforcing)
    }

    /// Otherwise the maps are left as they were found, and nothing is proven.
    fn knows_what_is_wanted(&self) -> bool {
        self.grants.applied().is_some() || !self.gate.took_over()
    }

    fn note_missing(&mut self) {
        let missing = self.gate.missing();
        for Missing { part, why } in missing.iter().filter(|part| !self.health.missing.contains(part)) {
            tracing::warn!(part, why, "this kernel cannot have all of the gate");
        }
        self.health.missing = missing;
    }

    pub(super) fn grants(&self) -> &Grants {
        &self.grants
    }

    pub(super) fn unix_sockets(&self) -> &UnixSockets {
        &self.unix_sockets
    }

    /// The accounts by which subjects are found.
    pub(super) fn accounts(&self) -> BTreeMap<u32, BTreeSet<u32>> {
        self.cgroups.accounts_of(self.grants.subjects())
    }

    pub(super) fn grants_and_cgroups(&mut self) -> (&Grants, &mut Cgroups) {
        (&self.grants, &mut self.cgroups)
    }

    pub(super) fn cgroups(&mut self) -> &mut Cgroups {
        &mut self.cgroups
    }

    /// Puts a set into the kernel. None: it was older than what is there, or cannot be meant; the control plane hears nothing.
    pub(super) fn apply(&mut self, timeline: Uuid, set: GrantSet) -> Option<Applied> {
        let generation = set.generation;
        let named = set.resources.iter().map(|resource| resource.number.get());
        let mut named = named.chain(set.subjects.iter().map(|subject| subject.number.get()));
        if named.any(|number| number >= FIRST_NUMBER) {
            tracing::error!(generation, "the grant set uses numbers of runs or of the canary; left aside");
            return None;
        }
        match self.grants.accept(timeline, set, now_boot_ns()) {
            Accepted::Older => {
                tracing::warn!(generation, "an older grant set than the one that is enforced; left aside");
                return None;
            }
            Accepted::Same | Accepted::Changed => {}
        }
        Some(self.put_into_the_kernel(generation))
    }

    /// The same for a change of the set that is there. The error says why it is none: a whole set is needed.
    pub(super) fn change(&mut self, timeline: Uuid, delta: &Delta) -> Result<Applied, Invalid> {
        let named = delta.put_resources.iter().map(|resource| resource.number.get());
        let mut named = named.chain(delta.put_subjects.iter().map(|subject| subject.number.get()));
        if named.any(|number| number >= FIRST_NUMBER) {
            return Err(Invalid::new("delta", "uses numbers of runs or of the canary"));
        }
        self.grants.change(timeline, delta, now_boot_ns())?;
        Ok(self.put_into_the_kernel(delta.generation))
    }

    fn put_into_the_kernel(&mut self, generation: u64) -> Applied {
        self.look_for_set();
        // What is over before it began lets nobody through at all.
        self.find_ends();
        self.reconcile();
        self.succeed();
        let refused = self.health.refused.clone();
        tracing::info!(generation, refused = refused.len(), "grant set applied");
        Applied { generation, refused }
    }

    /// The control plane was there at `boot_ns`.
    pub(super) fn heard(&mut self, boot_ns: u64) {
        if self.grants.hear(boot_ns) {
            self.reconcile();
        }
    }

    /// What the kernel holds now, read from its maps. None: there is no set yet, or the maps cannot be read, which the next
    /// comparison tells.
    pub(super) fn digest(&self) -> Option<Digest> {
        let read = self.gate.read_whole().ok()?;
        let (wanted, refused) = (self.wanted(), &self.health.refused);
        let runs = &self.running.runs;
        digest(&read, &self.grants, runs, &wanted, refused, self.gate.slots_max(), now_boot_ns())
    }

    /// Tries again what failed.
    pub(super) fn retry(&mut self) {
        if !self.health.refused.is_empty() || !self.health.failed.is_empty() {
            self.reconcile();
        }
        self.succeed();
    }

    pub(super) fn reconcile(&mut self) {
        let now_boot_ns = now_boot_ns();
        // What has ended idle must not be taken for live, nor what is active for ended.
        self.look_at_activity(now_boot_ns);
        let wanted = self.wanted();
        let slots_max = self.gate.slots_max();
        let outcome =
            reconcile(&mut self.entries, &wanted, slots_max, now_boot_ns, |write| self.gate.write(write));
        for refused in &outcome.refused {
            tracing::error!(item = ?refused.item, error = refused.error, "the kernel cannot take this");
        }
        for error in &outcome.failed {
            tracing::error!(error, "the kernel still holds what it should not");
        }
        // The control plane knows nothing of the canary, which tells by itself what it lacks.
        let canary_grant = self.canary_grant.map(|grant| grant.id);
        let is_known = |refused: &Refused| match refused.item {
            RefusedItem::Resource(number) => number.get() != canary::NUMBER,
            RefusedItem::Subject(number) => number.get() != canary::NUMBER,
            RefusedItem::Grant(id) => Some(id) != canary_grant,
        };
        self.health.refused = outcome.refused.into_iter().filter(is_known).collect();
        self.health.failed = outcome.failed;
        self.refuse_local();
        self.refuse_unix();
        // What went on without a grant is to be ended now.
        let observed = self.entries.observed();
        self.unconfirmed |= !self.observed.is_subset(&observed);
        self.observed = observed;
        self.note_periods();
    }

    /// What the control plane wants, and what the canary needs. Nobody else is ever given its cgroup or its destination.
    fn wanted(&self) -> Wanted {
        let resources = local::expand(self.grants.resources().to_vec(), self.addresses.known());
        let runs = &self.running.runs;
        let mut wanted = Wanted {
            unix_sockets: self.unix_sockets.keys().iter().map(|(key, (number, _))| (*key, *number)).collect(),
            // Nobody else can mean the cgroup of a run.
            cgroups: self.bound.iter().map(|(id, subject)| (*id, *subject)).chain(runs.bindings()).collect(),
            grants: self.grants.wanted(runs),
            ..Wanted::guarding(resources)
        };
        let Some(place) = self.proving.place() else { return wanted };
        wanted.resources.insert(0, canary::resource(place.port));
        if let (Ok(id), Ok(subject)) = (&place.cgroup, SubjectNumber::try_from(canary::NUMBER)) {
            wanted.cgroups.insert(*id, subject);
        }
        wanted.grants.extend(self.canary_grant);
        wanted
    }

    /// Of an address that could not be read nobody can say that it is protected.
    fn refuse_local(&mut self) {
        let Some(error) = self.addresses.error() else { return };
        for resource in self.grants.resources().iter().filter(|resource| resource.local) {
            let item = RefusedItem::Resource(resource.number);
            if !self.health.refused.iter().any(|refused| refused.item == item) {
                self.health.refused.push(Refused { item, error: error.to_owned() });
            }
        }
    }

    /// Of a unix socket that this host cannot guard, or whose place it cannot tell, nobody can say that it is protected.
    fn refuse_unix(&mut self) {
        let missing = self.health.missing.iter().find(|missing| missing.part == UNIX_SOCKETS);
        let why = match missing {
            _ if !self.gate.wants_tier() => {
                Some("`kernel.lsm` is \"off\" in the agent's configuration".to_owned())
            }
            missing => missing.map(|missing| missing.why.clone()),
        };
        for resource in self.grants.resources().iter().filter(|resource| !resource.unix.is_empty()) {
            let error = match &why {
                Some(why) => Some(format!("its unix sockets cannot be protected: {why}")),
                None => self.unix_sockets.errors().get(&resource.number).cloned(),
            };
            let item = RefusedItem::Resource(resource.number);
            if let Some(error) = error
                && !self.health.refused.iter().any(|refused| refused.item == item)
            {
                self.health.refused.push(Refused { item, error });
            }
        }
    }

    /// `spool_error` is why events cannot be kept; None: they can.
    pub(super) fn report(&mut self, spool_error: Option<&str>) -> Report {
        self.health.canary = self.proving.flaws(now_boot_ns());
        self.health.cgroups = self.cgroups.problem();
        self.health.report(spool_error)
    }

    pub(super) fn lost(&self, ring: Ring) -> Result<u64, KernelError> {
        self.gate.lost(ring)
    }

    /// Writes down what a restart must know. Returns whether it is: what is not must not be told, for a restart may undo it.
    pub(super) fn remember(&mut self, lost: BTreeMap<u32, Lost>) -> bool {
        let now_boot_ns = now_boot_ns();
        let grants =
            self.grants.applied().map(|(timeline, _)| (timeline, self.grants.remaining_set(now_boot_ns)));
        let memory = Memory { grants, ended: self.grants.ended(), left: self.grants.left(now_boot_ns), lost };
        match self.memory.write(&memory, now_boot_ns) {
            Ok(()) => {
                self.health.memory = None;
                self.remembered = self.grants.applied();
                self.forgotten_boot_ns = self.grants.next_deadline(now_boot_ns);
            }
            Err(error) => self.note_unwritten(&error),
        }
        self.health.memory.is_none()
    }

    /// What is on disk would bring back what has ended: if it cannot be replaced, it is not to be used.
    fn note_unwritten(&mut self, error: &io::Error) {
        let why = error.to_string();
        if self.health.memory.as_ref() != Some(&why) {
            tracing::error!(
                error = why,
                "cannot write down the grant set; it is not confirmed to the control plane"
            );
        }
        self.health.memory = Some(why);
        match self.memory.spoil() {
            Ok(()) => self.remembered = None,
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.remembered = None,
            Err(error) => tracing::error!(%error, "a restart would go on from an older grant set"),
        }
    }

    /// Whether something is to be written down that the memory does not know: it could not be, or a grant has run out since.
    pub(super) fn owes_memory(&self) -> bool {
        self.health.memory.is_some() || self.forgotten_boot_ns.is_some_and(|at| at <= now_boot_ns())
    }

    /// Whose set the kernel holds, and which; if a restart would bring back an older one, that: of the grants that have ended since
    /// it must not be said that they are gone. Where a restart would bring back nothing, it revives nothing.
    pub(super) fn confirmed(&self) -> Option<(Uuid, u64)> {
        let applied = self.grants.applied().filter(|(_, generation)| *generation > 0);
        let remembered = self.remembered.filter(|(_, generation)| *generation > 0);
        match self.health.memory {
            Some(_) => remembered.or(applied),
            None => applied,
        }
    }
}
