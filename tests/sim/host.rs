//! A host: its kernel, its disk, and the agent, which is there or not.
//!
//! Owns: the order of an agent's effects, as `agent::run` has it, between its real rules and a kernel of maps in memory. Must
//! not know: the control plane, the network.
//!
//! An agent can end between any two effects: each burns a piece of the host's fuse, and there are none once it is burnt down.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use agent::memory::Memory;
use agent::rules::audit::{Names, Numbering, ProcessDetails};
use agent::rules::digest::digest;
use agent::rules::grants::{Accepted, Grants, Sight};
use agent::rules::plan::{Entries, Wanted, WantedGrant, Write, reconcile};
use agent::rules::queue::Sending;
use agent::rules::reports::Reports;
use agent::rules::runs::Runs;
use agent::rules::workloads::{self, Doubt};
use agent::spool::{Entry, Mark, Marks};
use agent_ebpf::abi::{GrantKey, Hook, ResourceEntry, Ring, VerdictRecord, protocol};
use agent_ebpf::verdict::{Caller, Facts, Reason, Slot, decide};
use proto::types::{
    Applied, AuditEvent, CgroupPath, Delta, Digest, EndedGrant, EventKind, GrantId, GrantSet, Hello,
    HostName, HostState, LiveGrant, Refused, Report, RunId, Selector, SubjectNumber, Timestamp,
};
use uuid::Uuid;

use crate::disk::Disk;
use crate::faults::Broken;

/// Slots of a kernel: more than twice the pairs that there are, so that only a full map refuses a grant.
pub(crate) const SLOTS_MAX: u32 = 16;
/// Records that a ring takes.
const RING_MAX: usize = 12;
/// The version of the kernel's maps; there is one.
const ABI: u32 = 1;
/// The number of the ring; there is one.
const RING: u32 = 1;
/// Boot clocks begin after a while.
const BOOTED_NS: u64 = 1_000_000_000;
/// Digests are told every so many ticks.
const TICKS_PER_DIGEST: u32 = 3;

/// What an agent says; what it hears is the host's methods.
#[derive(Debug)]
pub(crate) enum Say {
    Applied(Applied),
    Ended(Vec<EndedGrant>),
    /// With its number.
    Report(u64, Report),
    Audit(Vec<AuditEvent>),
    Digest(Digest),
    Resync(String),
}

/// The maps and rings, which outlive the agent.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    pub(crate) entries: Entries,
    /// Hash maps and tries take no new key.
    pub(crate) is_full: bool,
    /// Records whose room is taken, read or not.
    pub(crate) ring: VecDeque<VerdictRecord>,
    /// How many records left the ring before them.
    given_back: u64,
    /// Records that the ring had no room for.
    pub(crate) lost: u64,
}

impl Kernel {
    fn write(&mut self, write: &Write, broken: Broken) -> Result<(), &'static str> {
        let entries = &self.entries;
        let is_new = match write {
            Write::PutGrant { key, .. } => !entries.grants.contains_key(key),
            Write::BindCgroup { id, .. } => !entries.cgroups.contains_key(id),
            Write::AddAddress { class, prefix, .. } => {
                entries.classes.get(class).is_none_or(|prefixes| !prefixes.contains_key(prefix))
            }
            _ => false,
        };
        if is_new && self.is_full {
            return Err("no room");
        }
        match (broken, write) {
            (Broken::Deadlines, Write::SetDeadline { slot, .. }) => {
                self.entries.apply(&Write::SetDeadline { slot: *slot, deadline_boot_ns: u64::MAX - 1 });
            }
            (Broken::Removals, Write::RemoveGrant { .. } | Write::SetEpoch { .. }) => {}
            _ => self.entries.apply(write),
        }
        Ok(())
    }

    /// Gives the room of all records up to the one of this number back.
    fn give_back(&mut self, end: u64) {
        while self.given_back < end && self.ring.pop_front().is_some() {
            self.given_back += 1;
        }
    }

    fn slot(&self, slot: u32) -> Option<Slot> {
        (slot < SLOTS_MAX).then(|| {
            let word = |words: &BTreeMap<u32, u64>| words.get(&slot).copied().unwrap_or(0);
            Slot {
                deadline_boot_ns: word(&self.entries.deadlines),
                idle_limit_ns: word(&self.entries.idle_limits),
                active_boot_ns: word(&self.entries.active),
                epoch: word(&self.entries.epochs),
            }
        })
    }

    /// What the kernel makes of a connection by a process in this cgroup to this port, without a trace.
    pub(crate) fn verdict(&self, cgroup: u64, port: u16, now_boot_ns: u64) -> (Reason, Option<GrantKey>) {
        let number = self.entries.protecting(protocol::TCP, port, address());
        let resource = number.map(|number| ResourceEntry { number, flags: 0 });
        let subject = self.entries.cgroups.get(&cgroup).copied();
        let pair = subject.zip(number).map(|(subject, resource)| GrantKey { subject, resource });
        let grant = pair.and_then(|pair| self.entries.grants.get(&pair));
        let slot = grant.and_then(|grant| self.slot(grant.slot));
        let caller = subject.map_or(Caller::Unknown, Caller::Subject);
        let facts = Facts { resource: resource.as_ref(), caller, grant, slot: slot.as_ref() };
        (decide(&facts, now_boot_ns), pair)
    }

    /// The same, with a record. Returns whether there is one: nobody protects the port, or the ring is full, otherwise.
    pub(crate) fn connect(&mut self, cgroup: u64, port: u16, cookie: u64, now_boot_ns: u64) -> bool {
        let (reason, pair) = self.verdict(cgroup, port, now_boot_ns);
        if reason == Reason::NotProtected {
            return false;
        }
        let slot = pair.and_then(|pair| self.entries.grants.get(&pair)).map(|grant| grant.slot);
        let grant = slot.and_then(|slot| self.entries.names.get(&slot)).copied().unwrap_or_default();
        if let Some(slot) = slot.filter(|_| reason == Reason::Granted) {
            self.entries.active.insert(slot, now_boot_ns);
        }
        let verdict = reason.verdict(Some(&ResourceEntry { number: 1, flags: 0 }));
        let record = VerdictRecord {
            boot_ns: now_boot_ns,
            cgroup_id: cgroup,
            socket_cookie: cookie,
            grant,
            resource: pair.map_or(0, |pair| pair.resource),
            subject: pair.map_or(0, |pair| pair.subject),
            port,
            protocol: protocol::TCP,
            hook: Hook::Connect4 as u8,
            verdict: verdict as u8,
            reason: reason as u8,
            ..VerdictRecord::EMPTY
        };
        let has_room = self.ring.len() < RING_MAX;
        match has_room {
            true => self.ring.push_back(record),
            false => self.lost += 1,
        }
        has_room
    }
}

/// Where all resources are, as the kernel compares it.
fn address() -> [u8; 16] {
    std::net::Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets()
}

/// How many effects an agent has before it ends. None: as many as it likes.
#[derive(Clone, Copy, Debug, Default)]
struct Fuse(Option<u32>);

impl Fuse {
    /// Whether it is there to have one more.
    fn burns(&mut self) -> bool {
        match &mut self.0 {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }
}

/// What an agent's process knows.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) grants: Grants,
    entries: Entries,
    bound: BTreeMap<u64, SubjectNumber>,
    pub(crate) refused: Vec<Refused>,
    failed: Vec<String>,
    numbering: Numbering,
    names: Names,
    pub(crate) pending: Vec<Entry>,
    sending: Sending,
    /// The number of the last record that was read.
    read: u64,
    lost: u64,
    /// Of these, what is in the spool.
    lost_kept: u64,
    /// Whose set a restart would go on from, as the agent knows it.
    remembered: Option<(Uuid, u64)>,
    is_unwritten: bool,
    /// When the next grant runs out that the memory knows as one that goes on.
    forgotten_boot_ns: Option<u64>,
    owes_applied: Option<Applied>,
    instance: Uuid,
    ticks: u32,
    owes_digest: bool,
    reports: Reports,
    /// None: no session, or not welcomed yet.
    pub(crate) session: Option<Welcomed>,
    began_boot_ns: u64,
}

/// A session that has begun.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Welcomed {
    timeline: Uuid,
    protocol: u32,
}

/// What is true of a host whatever its agent believes: what invariants are held against.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    /// The earliest deadline of each grant that an agent was told and took, on the boot clock.
    pub(crate) deadlines: BTreeMap<GrantId, u64>,
    /// Those of them that the agent does not remember, although they may be in the maps.
    pub(crate) unsure: BTreeSet<GrantId>,
    /// Those that this process was told.
    told: BTreeSet<GrantId>,
    /// What was left of each that is written down when that was last done, in nanoseconds; and in which boot.
    kept: BTreeMap<GrantId, u64>,
    kept_in: Uuid,
    /// What is written down is not to be used: the next agent begins with nothing.
    is_spoilt: bool,
    /// When the control plane was last there for certain; None: not since this boot.
    pub(crate) heard_boot_ns: Option<u64>,
    /// The agent has heard it since it has started; before, it may take it for silent for longer than it is.
    pub(crate) has_heard: bool,
    /// How long grants of a resource live without it, as an agent was told and took: in nanoseconds, by number.
    pub(crate) limits: BTreeMap<u32, u64>,
    /// The last generation that the control plane may have heard of as applied, of this boot.
    pub(crate) told_generation: u64,
    /// What the host has ended by itself, and remembers.
    pub(crate) ended: BTreeSet<GrantId>,
    /// Which number the record of each verdict was given.
    pub(crate) numbers: BTreeMap<u64, (Uuid, u64)>,
    /// Verdicts whose records are gone without a gap: of a machine that lost its power. Nobody else can lose one.
    pub(crate) excused: BTreeSet<u64>,
}

/// The host.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) name: HostName,
    pub(crate) boot: Uuid,
    booted_ns: u64,
    pub(crate) protocol: u32,
    pub(crate) kernel: Kernel,
    pub(crate) disk: Disk,
    pub(crate) agent: Option<Agent>,
    fuse: Fuse,
    pub(crate) tasks: BTreeMap<CgroupPath, u64>,
    pub(crate) truth: Truth,
    broken: Broken,
    next_instance: u128,
    /// What the agent has said and nobody carries yet.
    pub(crate) said: Vec<Say>,
}

struct View<'a> {
    kernel: &'a Kernel,
    entries: &'a Entries,
    tasks: &'a BTreeMap<CgroupPath, u64>,
}

impl Sight for View<'_> {
    /// There are no runs here.
    fn has_run(&self, _: RunId, _: SubjectNumber) -> bool {
        false
    }

    fn running(&self, path: &CgroupPath) -> Option<u64> {
        self.tasks.get(path).copied()
    }

    fn last_active_boot_ns(&self, grant: &WantedGrant, _: Option<RunId>) -> Option<u64> {
        let pair = GrantKey { subject: grant.subject.get(), resource: grant.resource.get() };
        let slot = self.entries.grants.get(&pair)?.slot;
        self.entries.idle_limits.get(&slot)?;
        Some(self.kernel.entries.active.get(&slot).copied().unwrap_or(0))
    }
}

/// The cgroup that stands for a subject.
pub(crate) fn cgroup_of(subject: u32) -> u64 {
    100 + u64::from(subject)
}

/// `cgroup:/N` is cgroup N; subjects have no other selectors here.
fn observed(selector: &Selector) -> Result<BTreeSet<u64>, Doubt> {
    match selector {
        Selector::Cgroup(path) => Ok(path.as_str().trim_start_matches('/').parse().into_iter().collect()),
        _ => Ok(BTreeSet::new()),
    }
}

impl Host {
    pub(crate) fn new(name: HostName, protocol: u32, broken: Broken, number: u128, now_ns: u64) -> Self {
        let mut host = Self {
            name,
            boot: Uuid::from_u128((number << 32) + 1),
            booted_ns: now_ns,
            protocol,
            kernel: Kernel::default(),
            // The third host's becomes one that nobody writes to, the others' fill up.
            disk: Disk::new(number == 3),
            agent: None,
            fuse: Fuse::default(),
            tasks: BTreeMap::new(),
            truth: Truth::default(),
            broken,
            next_instance: number << 64,
            said: Vec::new(),
        };
        host.start(now_ns);
        host
    }

    pub(crate) fn boot_ns(&self, now_ns: u64) -> u64 {
        now_ns - self.booted_ns + BOOTED_NS
    }

    /// For the record only.
    fn wall(&self, now_ns: u64) -> Timestamp {
        crate::world::wall(now_ns, 0)
    }

    /// The agent's process starts, as `Enforcing::new` does.
    pub(crate) fn start(&mut self, now_ns: u64) {
        if self.agent.is_some() {
            return;
        }
        let boot_ns = self.boot_ns(now_ns);
        let memory = self.disk.recall(self.boot, boot_ns);
        let mut next = self.disk.open(self.boot);
        if self.broken == Broken::Numbers {
            next = 1;
        }
        let entries = self.kernel.entries.clone();
        let took_over = entries != Entries::default();
        let mut grants = Grants::default();
        let ended = if self.broken == Broken::Ends { Vec::new() } else { memory.ended };
        let left = if self.broken == Broken::Clocks { BTreeMap::new() } else { memory.left };
        grants.recall(memory.grants, ended, left, boot_ns);
        grants.hear_from_maps(&entries);
        let (remembered, forgotten_boot_ns) = (grants.applied(), grants.next_deadline(boot_ns));
        self.note_start(boot_ns);
        let marks = if self.broken == Broken::Marks { Marks::default() } else { self.disk.marks(self.boot) };
        self.kernel.give_back(marks.end(RING).unwrap_or(0));
        let remembered_lost = memory.lost.get(&ABI).map_or(0, |lost| lost[Ring::Deny as usize]);
        let lost = marks.lost(RING).unwrap_or(remembered_lost);
        self.next_instance += 1;
        self.agent = Some(Agent {
            grants,
            entries,
            bound: BTreeMap::new(),
            refused: Vec::new(),
            failed: Vec::new(),
            numbering: Numbering::new(self.name.clone(), self.boot, next),
            names: Names::default(),
            pending: Vec::new(),
            sending: Sending::default(),
            read: self.kernel.given_back,
            lost,
            lost_kept: lost,
            remembered,
            is_unwritten: false,
            forgotten_boot_ns,
            owes_applied: None,
            instance: Uuid::from_u128(self.next_instance),
            ticks: 0,
            owes_digest: false,
            reports: Reports::default(),
            session: None,
            began_boot_ns: 0,
        });
        let knows = self.agent.as_ref().is_some_and(|agent| agent.grants.applied().is_some());
        if knows || !took_over {
            self.look(now_ns);
            self.find_ends(now_ns);
            self.reconcile(now_ns);
        }
        let at = self.wall(now_ns);
        if let Some(agent) = &mut self.agent {
            let event = agent.numbering.host_event(EventKind::AgentStarted, at, String::new());
            agent.pending.push(event.into());
        }
        self.flush(now_ns);
    }

    /// What was written down of a grant bounds it, whatever the control plane's clock says; of another boot, what was left then.
    /// What was not, the agent takes from the control plane as if it were new.
    fn note_start(&mut self, boot_ns: u64) {
        let (entries, truth) = (&self.kernel.entries, &mut self.truth);
        let in_kernel = |id: &GrantId| entries.names.values().any(|name| name == id.as_bytes());
        truth.deadlines.retain(|id, _| truth.kept.contains_key(id) || in_kernel(id));
        if truth.kept_in != self.boot {
            truth.deadlines.extend(truth.kept.iter().map(|(id, left)| (*id, boot_ns + left)));
        }
        let unsure = truth.deadlines.keys().filter(|id| !truth.kept.contains_key(id));
        truth.unsure = unsure.copied().collect();
        truth.told.clear();
        truth.has_heard = false;
        if truth.is_spoilt {
            truth.told_generation = 0;
        }
    }

    /// The agent ends: now, or after so many more effects.
    pub(crate) fn crash(&mut self, effects: u32) {
        match effects {
            0 => self.end(),
            effects => self.fuse = Fuse(Some(effects)),
        }
    }

    fn end(&mut self) {
        self.fuse = Fuse::default();
        self.agent = None;
    }

    /// To be called after everything that an agent does. Returns whether it has ended in the midst of it.
    pub(crate) fn bury(&mut self) -> bool {
        let is_over = matches!(self.fuse, Fuse(Some(0)));
        if is_over {
            self.end();
        }
        is_over
    }

    pub(crate) fn reboot(&mut self, now_ns: u64) {
        self.end();
        self.truth.excused.extend(cookies(&self.disk.lose_power()));
        self.truth.excused.extend(self.kernel.ring.iter().map(|record| record.socket_cookie));
        self.kernel = Kernel { is_full: self.kernel.is_full, ..Kernel::default() };
        self.boot = Uuid::from_u128(self.boot.as_u128() + 1);
        self.booted_ns = now_ns;
        self.tasks.clear();
        let Truth { ended, numbers, excused, kept, kept_in, .. } = std::mem::take(&mut self.truth);
        self.truth = Truth { ended, numbers, excused, kept, kept_in, ..Truth::default() };
    }

    fn look(&mut self, _now_ns: u64) {
        if let Some(agent) = &mut self.agent {
            agent.bound = workloads::bind(agent.grants.subjects(), observed).cgroups;
        }
    }

    fn find_ends(&mut self, now_ns: u64) -> bool {
        let boot_ns = self.boot_ns(now_ns);
        let Some(agent) = &mut self.agent else { return false };
        let Agent { grants, entries, .. } = agent;
        grants.find_ends(&View { kernel: &self.kernel, entries, tasks: &self.tasks }, boot_ns)
    }

    fn wanted(agent: &Agent) -> Wanted {
        Wanted {
            cgroups: agent.bound.clone(),
            grants: agent.grants.wanted(&Runs::default()),
            ..Wanted::guarding(agent.grants.resources().to_vec())
        }
    }

    fn reconcile(&mut self, now_ns: u64) {
        let boot_ns = self.boot_ns(now_ns);
        let (kernel, fuse, broken) = (&mut self.kernel, &mut self.fuse, self.broken);
        let Some(agent) = &mut self.agent else { return };
        if broken == Broken::Writes {
            return;
        }
        for slot in agent.entries.seeming_idle(boot_ns) {
            agent.entries.active.insert(slot, kernel.entries.active.get(&slot).copied().unwrap_or(0));
        }
        let wanted = Self::wanted(agent);
        let write = |write: &Write| match fuse.burns() {
            true => kernel.write(write, broken),
            false => Err("the agent is gone"),
        };
        let outcome = reconcile(&mut agent.entries, &wanted, SLOTS_MAX, boot_ns, write);
        agent.refused = outcome.refused;
        agent.failed = outcome.failed;
    }

    fn say(&mut self, say: Say) {
        let has_session = self.agent.as_ref().is_some_and(|agent| agent.session.is_some());
        if has_session && self.fuse.burns() {
            if let Say::Applied(applied) = &say {
                self.truth.told_generation = applied.generation;
            }
            self.said.push(say);
        }
    }

    /// Returns whether it is written down.
    fn remember(&mut self, now_ns: u64) -> bool {
        let boot_ns = self.boot_ns(now_ns);
        let Some(agent) = &mut self.agent else { return false };
        let set = agent.grants.applied().map(|(timeline, _)| (timeline, agent.grants.remaining_set(boot_ns)));
        let mut lost = [0; Ring::ALL.len()];
        lost[Ring::Deny as usize] = agent.lost_kept;
        let (ended, left) = (agent.grants.ended(), agent.grants.left(boot_ns));
        let memory = Memory { grants: set, ended, left, lost: [(ABI, lost)].into() };
        if !self.fuse.burns() {
            return false;
        }
        let is_kept = self.disk.remember(self.boot, &memory, boot_ns);
        agent.is_unwritten = !is_kept;
        if is_kept {
            agent.remembered = agent.grants.applied();
            agent.forgotten_boot_ns = agent.grants.next_deadline(boot_ns);
            self.note_kept(boot_ns);
        } else if self.fuse.burns() && self.disk.spoil() {
            agent.remembered = None;
            self.truth.is_spoilt = true;
        }
        is_kept
    }

    fn note_kept(&mut self, boot_ns: u64) {
        let truth = &mut self.truth;
        let known = truth.deadlines.iter().filter(|(id, _)| {
            truth.kept.contains_key(id) || truth.told.contains(id) && !truth.unsure.contains(id)
        });
        let left = known.map(|(id, deadline)| (*id, deadline.saturating_sub(boot_ns)));
        truth.kept = left.collect();
        truth.kept_in = self.boot;
        truth.is_spoilt = false;
    }

    /// Writes down what a restart must know, and tells what was waiting for that.
    fn tell_what_is_kept(&mut self, now_ns: u64) -> bool {
        let is_late = self.broken == Broken::Memory;
        let mut is_kept = !is_late && self.remember(now_ns);
        let is_told = match self.broken {
            Broken::Memory | Broken::Unwritten => true,
            _ => is_kept,
        };
        if is_told {
            let ended = self.agent.as_ref().map(|agent| agent.grants.ended()).unwrap_or_default();
            if !ended.is_empty() {
                if is_kept {
                    self.truth.ended.extend(ended.iter().map(|ended| ended.grant));
                }
                self.say(Say::Ended(ended));
            }
            let owed = self.agent.as_mut().and_then(|agent| agent.owes_applied.take());
            owed.into_iter().for_each(|applied| self.say(Say::Applied(applied)));
        }
        if is_late {
            is_kept = self.remember(now_ns);
        }
        is_kept
    }

    /// What an agent says first.
    pub(crate) fn hello(&mut self, now_ns: u64) -> Option<Hello> {
        let boot_ns = self.boot_ns(now_ns);
        let agent = self.agent.as_mut()?;
        agent.began_boot_ns = boot_ns;
        agent.reports = Reports::default();
        let counts = |held: &(Uuid, u64)| held.1 > 0;
        let (applied, remembered) = (agent.grants.applied().filter(counts), agent.remembered.filter(counts));
        let applied = if agent.is_unwritten { remembered.or(applied) } else { applied };
        if let Some((_, generation)) = applied {
            self.truth.told_generation = generation;
        }
        Some(Hello {
            host: self.name.clone(),
            boot_id: self.boot,
            applied,
            agent_version: String::new(),
            kernel_release: String::new(),
            report: report(),
            instance: Some(agent.instance),
            protocol: self.protocol,
        })
    }

    pub(crate) fn welcomed(&mut self, timeline: Uuid, protocol: u32, now_ns: u64) {
        let Some(agent) = &mut self.agent else { return };
        agent.session = Some(Welcomed { timeline, protocol });
        let began_boot_ns = agent.began_boot_ns;
        self.tell_ended(now_ns);
        self.rewind();
        self.ship();
        self.heard(began_boot_ns, now_ns);
    }

    pub(crate) fn disconnected(&mut self) {
        if let Some(agent) = &mut self.agent {
            agent.session = None;
            agent.owes_applied = None;
        }
        self.rewind();
    }

    fn rewind(&mut self) {
        if let Some(agent) = &mut self.agent {
            agent.sending = Sending::default();
        }
    }

    pub(crate) fn answered(&mut self, number: u64, now_ns: u64) {
        let at = self.agent.as_mut().and_then(|agent| agent.reports.answered(number));
        if let Some(boot_ns) = at {
            self.heard(boot_ns, now_ns);
        }
    }

    fn heard(&mut self, boot_ns: u64, now_ns: u64) {
        let Some(agent) = &mut self.agent else { return };
        self.truth.heard_boot_ns = self.truth.heard_boot_ns.max(Some(boot_ns));
        if agent.grants.hear(boot_ns) {
            self.reconcile(now_ns);
        }
        // One that has ended in the midst of it may not have moved every deadline.
        self.truth.has_heard = !matches!(self.fuse, Fuse(Some(0)));
    }

    pub(crate) fn set(&mut self, set: GrantSet, now_ns: u64) {
        let boot_ns = self.boot_ns(now_ns);
        let generation = set.generation;
        let Some(agent) = &mut self.agent else { return };
        let Some(Welcomed { timeline, .. }) = agent.session else { return };
        let told = set.grants.clone();
        match agent.grants.accept(timeline, set, boot_ns) {
            Accepted::Older => {}
            Accepted::Same => self.apply(generation, &[], now_ns),
            Accepted::Changed => self.apply(generation, &told, now_ns),
        }
    }

    pub(crate) fn delta(&mut self, delta: &Delta, now_ns: u64) {
        let boot_ns = self.boot_ns(now_ns);
        let Some(agent) = &mut self.agent else { return };
        let Some(Welcomed { timeline, .. }) = agent.session else { return };
        match agent.grants.change(timeline, delta, boot_ns) {
            Ok(()) => self.apply(delta.generation, &delta.put_grants, now_ns),
            Err(error) => self.say(Say::Resync(error.to_string())),
        }
    }

    /// Kernel, then memory, then the control plane.
    fn apply(&mut self, generation: u64, told: &[LiveGrant], now_ns: u64) {
        self.look(now_ns);
        self.find_ends(now_ns);
        self.reconcile(now_ns);
        if let Some(agent) = &mut self.agent {
            let refused = agent.refused.clone();
            agent.owes_applied = Some(Applied { generation, refused });
        }
        let is_kept = self.tell_what_is_kept(now_ns);
        if let Some(agent) = &mut self.agent {
            agent.names.learn(agent.grants.resources(), agent.grants.subjects());
            agent.owes_digest = true;
        }
        self.note_told(told, is_kept, self.boot_ns(now_ns));
    }

    /// The next agent goes back to what was before if this one has ended in the midst of it, before it was kept.
    fn note_told(&mut self, told: &[LiveGrant], is_kept: bool, boot_ns: u64) {
        for grant in told {
            let deadline = boot_ns + u64::try_from(grant.remaining.as_nanos()).unwrap_or(u64::MAX);
            let known = self.truth.deadlines.entry(grant.id).or_insert(deadline);
            if self.truth.unsure.contains(&grant.id) {
                *known = deadline.max(*known);
            } else if is_kept {
                *known = deadline.min(*known);
            }
        }
        self.truth.told.extend(told.iter().map(|grant| grant.id));
        if is_kept {
            told.iter().for_each(|grant| _ = self.truth.unsure.remove(&grant.id));
            self.note_kept(boot_ns);
        }
        if let Some(agent) = &self.agent {
            let limits = agent.grants.resources().iter().filter_map(|resource| {
                let limit = resource.options.outage.limit()?;
                Some((resource.number.get(), u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX)))
            });
            let told: BTreeMap<u32, u64> = limits.collect();
            // Whichever is longer, while the kernel may have one and the memory the other.
            let before =
                |number: &u32| if is_kept { Some(0) } else { self.truth.limits.get(number).copied() };
            let longer = |(number, limit): (u32, u64)| Some((number, limit.max(before(&number)?)));
            self.truth.limits = told.into_iter().filter_map(longer).collect();
        }
    }

    fn tell_ended(&mut self, now_ns: u64) {
        if self.agent.as_ref().is_some_and(|agent| !agent.grants.ended().is_empty()) {
            self.tell_what_is_kept(now_ns);
        }
    }

    /// All of the agent's timers, in their order.
    pub(crate) fn tick(&mut self, now_ns: u64) {
        let boot_ns = self.boot_ns(now_ns);
        if self.broken == Broken::Outages {
            if let Some(agent) = &mut self.agent {
                agent.grants.hear(boot_ns);
            }
            self.reconcile(now_ns);
        }
        if self.find_ends(now_ns) {
            // Memory before the kernel: an agent that ends in between leaves nothing that the next one would revive.
            if self.broken != Broken::Memory {
                self.remember(now_ns);
            }
            self.reconcile(now_ns);
            self.tell_ended(now_ns);
        }
        let Some(agent) = &self.agent else { return };
        if !agent.refused.is_empty() || !agent.failed.is_empty() {
            self.reconcile(now_ns);
        }
        self.read_ring(now_ns);
        self.count_losses(now_ns);
        self.flush(now_ns);
        let Some(agent) = &mut self.agent else { return };
        if agent.pending.is_empty() && self.fuse.burns() {
            self.disk.sync();
        }
        agent.ticks += 1;
        agent.owes_digest |= agent.ticks.is_multiple_of(TICKS_PER_DIGEST);
        self.ship();
        self.tell_digest(now_ns);
        let Some(agent) = self.agent.as_mut().filter(|agent| agent.session.is_some()) else { return };
        let number = agent.reports.next(boot_ns);
        self.say(Say::Report(number, report()));
    }

    fn tell_digest(&mut self, now_ns: u64) {
        let Some(agent) = &self.agent else { return };
        let knows_digests = agent.session.is_some_and(|session| session.protocol >= 2);
        if !agent.owes_digest || !knows_digests {
            return;
        }
        if let Some(digest) = self.digest(now_ns) {
            self.say(Say::Digest(digest));
            if let Some(agent) = &mut self.agent {
                agent.owes_digest = false;
            }
        }
    }

    /// Of what the kernel holds.
    pub(crate) fn digest(&self, now_ns: u64) -> Option<Digest> {
        let agent = self.agent.as_ref()?;
        let (wanted, boot_ns) = (Self::wanted(agent), self.boot_ns(now_ns));
        let runs = Runs::default();
        digest(&self.kernel.entries, &agent.grants, &runs, &wanted, &agent.refused, SLOTS_MAX, boot_ns)
    }

    /// Records are read only if what was read before them is on disk, and leave the kernel only after they are.
    fn read_ring(&mut self, now_ns: u64) {
        let at = self.wall(now_ns);
        let Some(agent) = &mut self.agent else { return };
        if !agent.pending.is_empty() || !self.fuse.burns() {
            return;
        }
        for (record, end) in self.kernel.ring.iter().zip(self.kernel.given_back + 1..) {
            let event = agent.numbering.verdict(record, &agent.names, ProcessDetails::default(), at);
            self.truth.numbers.insert(record.socket_cookie, (event.id.epoch, event.id.sequence));
            agent.pending.push(Entry { event, mark: Some(Mark { ring: RING, end, lost: 0 }) });
            agent.read = end;
        }
        if self.broken == Broken::Rings {
            self.kernel.give_back(agent.read);
        }
        self.flush(now_ns);
    }

    /// What is kept needs no room in the kernel any more.
    fn give_back(&mut self) {
        let Some(agent) = &self.agent else { return };
        let kept = match agent.pending.is_empty() {
            true => agent.read,
            false => self.disk.marks(self.boot).end(RING).unwrap_or(0),
        };
        if self.kernel.given_back < kept && self.fuse.burns() {
            self.kernel.give_back(kept);
        }
    }

    fn count_losses(&mut self, now_ns: u64) {
        let (at, boot_ns) = (self.wall(now_ns), self.boot_ns(now_ns));
        let Some(agent) = &mut self.agent else { return };
        let owes_memory = agent.is_unwritten || agent.forgotten_boot_ns.is_some_and(|at| at <= boot_ns);
        let lost = self.kernel.lost.saturating_sub(agent.lost);
        if lost == 0 {
            if owes_memory && self.broken != Broken::Memory {
                self.tell_what_is_kept(now_ns);
            }
            return;
        }
        agent.lost = self.kernel.lost;
        if self.broken != Broken::Losses {
            let event = agent.numbering.lost(Ring::Deny, lost, at);
            agent.pending.push(Entry { event, mark: Some(Mark::of_losses(RING, agent.lost)) });
        }
        self.flush(now_ns);
        self.tell_what_is_kept(now_ns);
    }

    /// An agent may end between any two events.
    fn flush(&mut self, now_ns: u64) {
        let at = self.wall(now_ns);
        let Some(agent) = &mut self.agent else { return };
        for entry in &agent.pending {
            if !self.fuse.burns() {
                return;
            }
            self.disk.append(entry, at);
        }
        let kept = self.disk.next_sequence();
        agent.pending.retain(|entry| entry.event.id.sequence >= kept);
        if agent.pending.is_empty() {
            agent.lost_kept = agent.lost;
        }
        self.give_back();
    }

    fn ship(&mut self) {
        let Some(agent) = &mut self.agent else { return };
        let Some(after) = agent.sending.next().filter(|_| agent.session.is_some()) else { return };
        let events = self.disk.read(after);
        let Some(last) = events.last().map(|last| (last.id.epoch, last.id.sequence)) else { return };
        agent.sending.send(last.0, last.1);
        if self.broken == Broken::Spool {
            self.disk.acknowledge(last.0, last.1);
        }
        self.say(Say::Audit(events));
    }

    pub(crate) fn acknowledged(&mut self, epoch: Uuid, sequence: u64) {
        let Some(agent) = &mut self.agent else { return };
        agent.sending.acknowledge(epoch, sequence);
        if self.fuse.burns() {
            self.disk.acknowledge(epoch, sequence);
        }
        self.ship();
    }
}

/// Whose records these are.
pub(crate) fn cookies<'a>(events: impl IntoIterator<Item = &'a AuditEvent>) -> Vec<u64> {
    events.into_iter().filter_map(|event| Some(event.connection.as_ref()?.socket_cookie)).collect()
}

fn report() -> Report {
    Report { state: HostState::Enforcing, detail: String::new() }
}
