//! The gate in the kernel: loading, pinning, attaching, map access, records. The only caller of aya.
//!
//! Owns: the programs' life. Must not know: what grants mean.
//!
//! Invariants: programs are attached by links at the root of cgroup v2 and pinned before [`Gate::raise`] returns, so that
//! the gate stays shut when this process ends, however it ends; a gate that is already up is taken over without an instant
//! in which neither the old nor the new programs decide. One of another ABI version goes on deciding until this one has been
//! told what it should hold and stands beside it, see [`Gate::stand_beside`].

#![allow(unsafe_code, reason = "records come out of shared memory")]

mod allocator;
mod datagrams;
mod error;
mod guard;
mod lsm;
mod migrations;
mod netns;
mod on_demand;
mod pins;
mod predecessors;
mod reading;
mod ring_memory;
mod rings;
mod senders;
mod slots;
mod statistics;
mod succession;
mod sys;
mod tamper;
mod tasks;
mod types;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use agent_ebpf::abi::{
    self, AddressKey, CLASS_BITS, ClosedRecord, ConnectionEntry, GrantKey, GrantRef, MovedRecord, PeerKey,
    RESOURCE_BITS, ResourceEntry, Ring, RingCounters, SubjectEntry, map,
};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuArray};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

pub(crate) use allocator::give_back;
pub use error::KernelError;
pub use guard::Fault;
pub use lsm::unix::PART as UNIX_SOCKETS;
pub use lsm::{Demand, LsmSettings};
pub use netns::netns_cookie;
pub use on_demand::part as part_of_check;
pub use rings::{AsyncRecords, Diagnostics, Kept, Place, Placed, Record, RecordRing};
pub use statistics::{ProgramTime, Statistics};
pub use tamper::{HELPER_VERB, lift_tamper, serve as serve_tamper_helper};

use crate::rules::drift::Part;
use crate::rules::plan::{AddressPrefix, Check, Entries, Write};
use lsm::{Exempt, Tier};
use migrations::Migrations;
use on_demand::{INGRESS, OnDemand};
use pins::{Attachable, HeldMap, Pins};
use predecessors::Predecessor;
use slots::{Slots, Word};
use sys::{AttachType, CgroupPlace};
use tamper::Tamper;

/// The kernel programs, as the build script made them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portcullis-ebpf"));

/// How the gate is set up on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where programs and maps are pinned; on a BPF file system.
    pub pin_dir: PathBuf,
    /// The version under which they are pinned: [`abi::ABI_VERSION`], but in tests of the way from one to another.
    pub abi_version: u32,
    /// Cgroups that can be bound to a subject.
    pub subjects_max: u32,
    /// Live (subject, resource) pairs.
    pub grants_max: u32,
    /// Address prefixes over all classes of ports; and as many of peers over all resources.
    pub resources_max: u32,
    /// Connections to protected destinations that are up at a time.
    pub connections_max: u32,
    /// Size of each ring in bytes: a power of two, at least a page.
    pub ring_bytes: u32,
    /// The LSM tier.
    pub lsm: LsmSettings,
    /// A directory of the agent's, not on a BPF file system, for sockets by which it proves some programs.
    pub scratch_dir: PathBuf,
    /// The tamper tier.
    pub tamper: Demand,
}

impl Settings {
    /// The defaults of the ABI, pinned at `pin_dir`.
    pub fn new(pin_dir: PathBuf) -> Self {
        Self {
            pin_dir,
            abi_version: abi::ABI_VERSION,
            subjects_max: abi::SUBJECTS_MAX,
            grants_max: abi::GRANTS_MAX,
            resources_max: abi::RESOURCES_MAX,
            connections_max: abi::CONNECTIONS_MAX,
            ring_bytes: abi::RING_BYTES,
            lsm: LsmSettings::default(),
            scratch_dir: std::env::temp_dir(),
            tamper: Demand::Off,
        }
    }
}

/// The gate, up.
pub struct Gate {
    ports: Array<MapData, u32>,
    resources: LpmTrie<MapData, AddressKey, ResourceEntry>,
    peers: LpmTrie<MapData, PeerKey, u32>,
    subjects: HashMap<MapData, u64, SubjectEntry>,
    grants: HashMap<MapData, GrantKey, GrantRef>,
    slots: Slots,
    connections: HashMap<MapData, u64, ConnectionEntry>,
    counters: PerCpuArray<MapData, RingCounters>,
    exempt: Exempt,
    unix_sockets: HashMap<MapData, u64, ResourceEntry>,
    unix_guarded: Array<MapData, u32>,
    programs: Vec<Attachable>,
    on_demand: [OnDemand; Check::ALL.len()],
    cgroup_root: File,
    /// Its id.
    root_id: u64,
    pins: Pins,
    /// All that are pinned.
    maps: Vec<HeldMap>,
    tier: Tier,
    tamper: Tamper,
    migrations: Migrations,
    predecessors: Vec<Predecessor>,
    /// The kernel's numbers of the rings.
    rings: [u32; Ring::ALL.len()],
    settings: Settings,
    took_over: bool,
}

/// A part of the gate that this host does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// What is not guarded.
    pub part: &'static str,
    /// Why not.
    pub why: String,
}

/// The rings of records.
pub struct Rings {
    /// Of what was let through.
    pub allow: RecordRing,
    /// Of what was not, or would not have been.
    pub deny: RecordRing,
    /// Of connections that have ended.
    pub closed: RecordRing<ClosedRecord>,
    /// Of processes that were moved into a cgroup that is bound.
    pub moved: RecordRing<MovedRecord>,
}

/// The rings of gates that are pinned, to be read to their end.
#[derive(Default)]
pub struct PinnedRings {
    /// Of what was let through, and what was not.
    pub verdicts: Vec<RecordRing>,
    /// Of connections that have ended.
    pub closed: Vec<RecordRing<ClosedRecord>>,
    /// Of processes that were moved.
    pub moved: Vec<RecordRing<MovedRecord>>,
}

impl PinnedRings {
    /// Passes over what is known to be kept since before a crash, by the number of each ring.
    pub fn pass_over(&mut self, end: impl Fn(u32) -> Option<u64>) {
        for ring in &mut self.verdicts {
            end(ring.id()).into_iter().for_each(|end| ring.pass_over(end));
        }
        for ring in &mut self.closed {
            end(ring.id()).into_iter().for_each(|end| ring.pass_over(end));
        }
        for ring in &mut self.moved {
            end(ring.id()).into_iter().for_each(|end| ring.pass_over(end));
        }
    }
}

/// What comes out of the kernel, to be read by whoever waits for it.
pub struct Streams {
    /// The records.
    pub rings: Rings,
    /// The programs' own diagnostics; None where the kernel gave them no place.
    pub diagnostics: Option<Diagnostics>,
}

impl Gate {
    /// Loads the programs and attaches them at `cgroup_root`, pinned; takes over what an earlier agent left pinned there,
    /// maps and all. Where one of another ABI version is up, nothing but the LSM tier is attached yet: it decides until
    /// [`Gate::stand_beside`] and [`Gate::lower_predecessors`].
    ///
    /// # Errors
    /// If the kernel lacks something, the pin directory is no BPF file system, or what is pinned has another shape. Nothing
    /// that was up before is taken down.
    pub fn raise(settings: &Settings, cgroup_root: &Path) -> Result<(Self, Streams), KernelError> {
        let pins = Pins::prepare(settings)?;
        pins.check_access()?;
        let predecessors = Predecessor::find(settings)?;
        let took_over = pins.check_maps(settings)?;
        let mut loader = loader(settings, &pins);
        let mut ebpf = loader.load(OBJECT).map_err(KernelError::load)?;
        let diagnostics = Diagnostics::init(&mut ebpf);
        let streams = Streams {
            rings: Rings {
                allow: RecordRing::open(take(&mut ebpf, map::EVENTS_ALLOW)?)?,
                deny: RecordRing::open(take(&mut ebpf, map::EVENTS_DENY)?)?,
                closed: RecordRing::open(take(&mut ebpf, map::EVENTS_CLOSED)?)?,
                moved: RecordRing::open(take(&mut ebpf, map::EVENTS_MOVED)?)?,
            },
            diagnostics,
        };
        let Rings { allow, deny, closed, moved } = &streams.rings;
        let rings = [allow.id(), deny.id(), closed.id(), moved.id()];
        let exempt = Exempt::open(typed(&mut ebpf, map::EXEMPT_CGROUPS)?, settings)?;
        let of_root = |source| KernelError::CgroupRoot { path: cgroup_root.to_owned(), source };
        let root = File::open(cgroup_root).map_err(of_root)?;
        // All of them load before the first is attached: a gate that cannot be whole is not put up in part.
        let root_id = root.metadata().map_err(of_root)?.ino();
        let programs = PROGRAMS.into_iter().map(|program| attachable(&mut ebpf, program, root_id));
        let programs = programs.collect::<Result<_, _>>()?;
        let mut on_demand = OnDemand::all(&pins);
        let ingress = attachable(&mut ebpf, (INGRESS, AttachType::INGRESS), root_id)?;
        let mut arrivals = on_demand.iter_mut().filter(|one| one.check() == Check::Arrivals);
        arrivals.next().ok_or(KernelError::Missing(INGRESS))?.loaded(Ok(ingress));
        // Before any other program is attached: where all of the tier is required and something is missing, the gate that is
        // up stays as it is, of whichever ABI version. That the tier decides from here on does no harm beside one of another
        // version: families are this host's to refuse and not the control plane's, and who was let through to what, the tier
        // learns only from programs that are attached later.
        let tier = Tier::attach(settings, &pins)?;
        let mut maps = Vec::new();
        hold_maps(&mut maps, &pins, settings)?;
        let mut gate = Self {
            ports: typed(&mut ebpf, map::PORT_CLASSES)?,
            resources: typed(&mut ebpf, map::RESOURCES)?,
            peers: typed(&mut ebpf, map::PEERS)?,
            subjects: typed(&mut ebpf, map::SUBJECTS)?,
            grants: typed(&mut ebpf, map::GRANTS)?,
            slots: Slots::open(held(&maps, map::SLOTS)?)?,
            connections: typed(&mut ebpf, map::CONNECTIONS)?,
            counters: typed(&mut ebpf, map::COUNTERS)?,
            exempt,
            unix_sockets: typed(&mut ebpf, map::UNIX_SOCKETS)?,
            unix_guarded: typed(&mut ebpf, map::UNIX_GUARDED)?,
            programs,
            on_demand,
            cgroup_root: root,
            root_id,
            pins,
            maps,
            tier,
            tamper: Tamper::default(),
            migrations: Migrations::later(),
            predecessors,
            rings,
            settings: settings.clone(),
            took_over,
        };
        // Before any program of the gate is attached, as the LSM tier.
        gate.raise_tamper()?;
        if !gate.is_waiting() {
            gate.attach(|_| true)?;
            gate.raise_optional(&mut loader)?;
        }
        Ok((gate, streams))
    }

    /// Attaches some of the programs, or gives the links that an earlier agent left their new ones.
    fn attach(&mut self, which: impl Fn(&Attachable) -> bool) -> Result<(), KernelError> {
        let mut programs = self.programs.iter_mut().filter(|program| which(program));
        programs.try_for_each(|program| self.pins.attach(program, self.cgroup_root.as_fd()))
    }

    /// Puts up what not every kernel has, and what not every host wants; and the LSM tier for good, in the place of an earlier
    /// agent's. No sooner than programs of this gate are: should the process end before, the tier that is left is that of the
    /// gate that is left.
    fn raise_optional(&mut self, loader: &mut EbpfLoader<'_>) -> Result<(), KernelError> {
        let root = self.root_id;
        for one in &mut self.on_demand {
            match one.check() {
                // One of those that every kernel has.
                Check::Arrivals => {}
                Check::Datagrams => one.loaded(datagrams::load_for(loader, root)),
                Check::Senders => one.loaded(senders::load_for(loader, root)),
            }
        }
        self.attach_on_demand()?;
        self.migrations = Migrations::attach(loader, &self.pins)?;
        // There is one that no other program has.
        hold_maps(&mut self.maps, &self.pins, &self.settings)?;
        self.tier.pin(&self.settings, &self.pins)?;
        self.tamper.pin(&self.settings, &self.pins)?;
        self.prove_tamper();
        Ok(())
    }

    /// Whether an earlier agent had left a gate up.
    pub fn took_over(&self) -> bool {
        self.took_over
    }

    /// The kernel's numbers of the rings, in the order of [`Ring::ALL`].
    pub fn rings(&self) -> [u32; Ring::ALL.len()] {
        self.rings
    }

    /// How many slots for grants there are.
    pub fn slots_max(&self) -> u32 {
        self.settings.grants_max
    }

    /// How many programs are attached by this gate, but for the LSM tier.
    pub fn attached(&self) -> usize {
        let programs = self.programs.iter().chain(self.on_demand_programs());
        programs.filter(|program| program.link.is_some()).count()
    }

    /// What this kernel lacks for the whole gate, as far as it is wanted.
    pub fn missing(&mut self) -> Vec<Missing> {
        let parts = self.on_demand.iter().filter_map(OnDemand::missing);
        let migrations = self.migrations.missing().filter(|_| self.stands());
        parts.chain(migrations).chain(self.tier.missing()).chain(self.tamper.missing()).collect()
    }

    /// Whether the LSM tier, without which there is no guard of unix sockets, is wanted at all.
    pub fn wants_tier(&self) -> bool {
        self.settings.lsm.demand != Demand::Off
    }

    /// Lets the processes of these cgroups, and of all below them, have sockets of any family; and no others.
    pub fn exempt(&mut self, cgroups: &BTreeSet<u64>) -> Result<(), KernelError> {
        self.settings.lsm.exempt.clone_from(cgroups);
        self.exempt.write(&self.settings)
    }

    /// What the maps hold now. Of a new gate: nothing, without looking.
    pub fn read(&self) -> Result<Entries, KernelError> {
        match self.took_over {
            true => self.read_whole(),
            false => Ok(Entries::default()),
        }
    }

    /// What the maps hold now, read whole, whoever has written it.
    pub fn read_whole(&self) -> Result<Entries, KernelError> {
        let mut entries = Entries::default();
        Part::all().try_for_each(|part| self.read_part(part, &mut entries))?;
        entries.judged = self.on_demand.iter().filter(|one| one.wanted).map(OnDemand::check).collect();
        for slot in entries.idle_limits.keys().copied().collect::<Vec<_>>() {
            entries.active.insert(slot, self.last_active_boot_ns(slot)?);
        }
        Ok(entries)
    }

    /// Does one write. Removing what is not there is done already.
    ///
    /// # Errors
    /// [`KernelError::Full`] names the map and the setting that makes it larger.
    pub fn write(&mut self, write: &Write) -> Result<(), KernelError> {
        let (name, result) = match *write {
            Write::SetPort { index, class } => (map::PORT_CLASSES, self.ports.set(index, class, 0)),
            Write::AddAddress { class, prefix, entry } => {
                (map::RESOURCES, self.resources.insert(&lpm_key(class, prefix), entry, 0))
            }
            Write::RemoveAddress { class, prefix } => {
                (map::RESOURCES, self.resources.remove(&lpm_key(class, prefix)))
            }
            Write::GuardUnix { key, entry } => {
                let result = lsm::unix::guard(&mut self.unix_sockets, &mut self.unix_guarded, key, entry);
                named(map::UNIX_SOCKETS, result)
            }
            Write::FreeUnix { key } => {
                named(map::UNIX_SOCKETS, lsm::unix::free(&mut self.unix_sockets, &mut self.unix_guarded, key))
            }
            Write::AddPeer { resource, prefix } => {
                (map::PEERS, self.peers.insert(&peer_key(resource, prefix), 0, 0))
            }
            Write::RemovePeer { resource, prefix } => {
                (map::PEERS, self.peers.remove(&peer_key(resource, prefix)))
            }
            Write::Judge { check, on } => return self.judge(check, on),
            Write::BindCgroup { id, subject } => {
                let entry = SubjectEntry { number: subject, reserved: 0 };
                (map::SUBJECTS, self.subjects.insert(id, entry, 0))
            }
            Write::UnbindCgroup { id } => (map::SUBJECTS, self.subjects.remove(&id)),
            Write::NameSlot { slot, grant } => return self.slots.set_name(slot, grant),
            Write::SetDeadline { slot, deadline_boot_ns } => {
                return self.slots.set(slot, Word::DEADLINE, deadline_boot_ns);
            }
            Write::SetIdleLimit { slot, limit_ns } => {
                return self.slots.set(slot, Word::IDLE_LIMIT, limit_ns);
            }
            Write::BeginSlot { slot, boot_ns } => {
                self.slots.set(slot, Word::LAST_ADMITTED, 0)?;
                return self.slots.set(slot, Word::LAST_ACTIVE, boot_ns);
            }
            Write::RestartIdling { slot, boot_ns } => {
                return self.slots.set(slot, Word::LAST_ACTIVE, boot_ns);
            }
            Write::SetEpoch { slot, epoch } => return self.slots.set(slot, Word::EPOCH, epoch),
            Write::PutGrant { key, value } => (map::GRANTS, self.grants.insert(key, value, 0)),
            Write::RemoveGrant { key } => (map::GRANTS, self.grants.remove(&key)),
        };
        result.or_else(|error| KernelError::from_write(name, &self.settings, error))
    }

    /// The connections that were let through and not closed since, by socket cookie.
    pub fn connections(&self) -> Result<Vec<(u64, ConnectionEntry)>, KernelError> {
        let entries: Result<_, _> = self.connections.iter().collect();
        entries.map_err(|error| KernelError::read(map::CONNECTIONS, error))
    }

    /// Forgets a connection that is closed.
    pub fn forget_connection(&mut self, cookie: u64) -> Result<(), KernelError> {
        let result = self.connections.remove(&cookie);
        result.or_else(|error| KernelError::from_write(map::CONNECTIONS, &self.settings, error))
    }

    /// When something was last let through by a slot, `CLOCK_BOOTTIME` in nanoseconds; 0: never.
    pub fn last_admitted_boot_ns(&self, slot: u32) -> Result<u64, KernelError> {
        self.slots.get(slot, Word::LAST_ADMITTED)
    }

    /// When payload was last sent or received by a slot that has an idle limit, `CLOCK_BOOTTIME` in nanoseconds.
    pub fn last_active_boot_ns(&self, slot: u32) -> Result<u64, KernelError> {
        self.slots.get(slot, Word::LAST_ACTIVE)
    }

    /// How many records each ring has lost since it was made, summed over the CPUs.
    pub fn lost(&self, ring: Ring) -> Result<u64, KernelError> {
        let counters = self.counters.get(&(ring as u32), 0);
        let counters = counters.map_err(|error| KernelError::read(map::COUNTERS, error))?;
        Ok(counters.iter().map(|counters| counters.lost).sum())
    }
}

/// Whether a gate of any ABI version is up at `pin_dir`.
pub fn is_up(pin_dir: &Path) -> Result<bool, KernelError> {
    for pins in Pins::all(pin_dir)? {
        if pins.links()?.iter().any(pins::PinnedLink::is_attached) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The gate of one ABI version that was taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lowered {
    /// Which version.
    pub abi_version: u32,
    /// The programs that were attached.
    pub programs: Vec<String>,
}

/// Lifts the gates that are pinned at `pin_dir`, of every ABI version: detaches the programs, and forgets the maps. Says what
/// there was.
pub fn lower(pin_dir: &Path) -> Result<Vec<Lowered>, KernelError> {
    let mut lowered = Vec::new();
    for pins in Pins::all(pin_dir)? {
        if let Some(programs) = pins.remove()? {
            lowered.push(Lowered { abi_version: pins.version(), programs });
        }
    }
    Ok(lowered)
}

/// The rings that are pinned at `pin_dir`, for a last look before [`lower`].
pub fn open_rings(pin_dir: &Path) -> Result<PinnedRings, KernelError> {
    let mut all = PinnedRings::default();
    for pins in Pins::all(pin_dir)? {
        pins.check_access()?;
        let rings = pins.open_rings()?;
        all.verdicts.extend(rings.verdicts);
        all.closed.extend(rings.closed);
        all.moved.extend(rings.moved);
    }
    Ok(all)
}

/// What one program costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramCost {
    /// Its name.
    pub name: String,
    /// Instructions after the kernel's rewriting, 8 bytes each.
    pub instructions: u32,
    /// Instructions that the verifier walked through; None: Linux before 5.16 does not say.
    pub verified_instructions: Option<u32>,
    /// Bytes of machine code; 0: not compiled.
    pub jited_bytes: u32,
}

/// The programs, and where each belongs, in the order in which they are attached: what remembers before what decides.
const PROGRAMS: [(&str, AttachType); 8] = [
    ("sock_create", AttachType::SOCK_CREATE),
    ("sock_ops", AttachType::SOCK_OPS),
    ("sock_release", AttachType::SOCK_RELEASE),
    ("connect4", AttachType::CONNECT4),
    ("connect6", AttachType::CONNECT6),
    ("sendmsg4", AttachType::SENDMSG4),
    ("sendmsg6", AttachType::SENDMSG6),
    ("egress", AttachType::EGRESS),
];

/// Loads every program without attaching it, and asks the kernel what it made of it.
pub fn program_costs() -> Result<Vec<ProgramCost>, KernelError> {
    let mut loader = EbpfLoader::new();
    tasks::tell(&mut loader);
    let mut ebpf = loader.load(OBJECT).map_err(KernelError::load)?;
    let names = PROGRAMS.into_iter().map(|(name, _)| name).chain([INGRESS]);
    let mut costs = names.map(|name| cost(&mut ebpf, name)).collect::<Result<Vec<_>, _>>()?;
    // What a kernel may lack says so elsewhere: see `Gate::missing`.
    if let Ok(mut ebpf) = senders::load(&mut loader) {
        let optional = [senders::ENLIST, senders::SEND];
        costs.extend(optional.into_iter().filter_map(|name| cost(&mut ebpf, name).ok()));
    }
    if let Ok(mut ebpf) = datagrams::load(&mut loader) {
        costs.extend(cost(&mut ebpf, datagrams::DATAGRAM).ok());
    }
    Ok(costs)
}

fn cost(ebpf: &mut Ebpf, name: &'static str) -> Result<ProgramCost, KernelError> {
    let info = loaded(ebpf, name)?.info().map_err(|source| KernelError::program(name, source))?;
    Ok(ProgramCost {
        name: name.to_owned(),
        instructions: info.size_translated().unwrap_or(0) / 8,
        verified_instructions: info.verified_instruction_count(),
        jited_bytes: info.size_jitted(),
    })
}

/// Makes maps where they are to be pinned, or takes those that are pinned there. To be used for as many objects as can be: aya
/// reads the whole description of the kernel's types for each loader, which takes longer than all else.
fn loader(settings: &Settings, pins: &Pins) -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    tasks::tell(&mut loader);
    for shape in pins::shapes(settings) {
        loader.map_max_entries(shape.name, shape.max_entries);
        loader.map_pin_path(shape.name, pins.map(shape.name));
    }
    loader
}

/// Holds the pinned maps that are not held yet.
fn hold_maps(maps: &mut Vec<HeldMap>, pins: &Pins, settings: &Settings) -> Result<(), KernelError> {
    for shape in pins::shapes(settings) {
        if maps.iter().all(|map| map.name != shape.name) {
            maps.extend(pins.hold_map(&shape)?);
        }
    }
    Ok(())
}

fn held<'a>(maps: &'a [HeldMap], name: &'static str) -> Result<&'a HeldMap, KernelError> {
    maps.iter().find(|map| map.name == name).ok_or(KernelError::Missing(name))
}

/// A program, loaded, for a place at the cgroup of this id.
fn attachable(
    ebpf: &mut Ebpf,
    (name, attach_type): (&'static str, AttachType),
    root: u64,
) -> Result<Attachable, KernelError> {
    let of_program = |source| KernelError::program(name, source);
    let program = loaded(ebpf, name)?;
    let id = program.info().map_err(of_program)?.id();
    let fd = program.fd().map_err(of_program)?.as_fd().try_clone_to_owned();
    let fd = fd.map_err(|source| KernelError::attach(name, source))?;
    Ok(Attachable { name, place: CgroupPlace { cgroup_id: root, attach_type }, id, fd, link: None })
}

/// A program, loaded.
fn loaded<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, KernelError> {
    let program = ebpf.program_mut(name).ok_or(KernelError::Missing(name))?;
    if program.fd().is_err() {
        let load = || match program {
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            Program::CgroupSkb(program) => program.load(),
            Program::SockOps(program) => program.load(),
            Program::SkMsg(program) => program.load(),
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        load_patiently(load).map_err(|source| KernelError::program(name, source))?;
    }
    Ok(program)
}

/// The verifier gives up with EAGAIN while a signal is pending, and aya does not try again. Signals wait meanwhile, or go to
/// another thread; one that was pending before is no reason to give up.
fn load_patiently(load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    let mut before = SigSet::empty();
    let masked = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), Some(&mut before));
    let result = load_again(load);
    if masked.is_ok() {
        // Cannot fail where blocking did not.
        let _ = before.thread_set_mask();
    }
    result
}

fn load_again(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    const TRIES: usize = 5;
    for _ in 1..TRIES {
        match load() {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == io::ErrorKind::WouldBlock => {
            }
            result => return result,
        }
    }
    load()
}

/// The map that a write was to, and what came of it. `name`: where it succeeded.
fn named<E>(name: &'static str, result: Result<(), (&'static str, E)>) -> (&'static str, Result<(), E>) {
    match result {
        Ok(()) => (name, Ok(())),
        Err((name, error)) => (name, Err(error)),
    }
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, KernelError> {
    ebpf.take_map(name).ok_or(KernelError::Missing(name))
}

fn typed<T: TryFrom<Map, Error = aya::maps::MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, KernelError> {
    take(ebpf, name)?.try_into().map_err(|error| KernelError::read(name, error))
}

fn lpm_key(class: u32, prefix: AddressPrefix) -> Key<AddressKey> {
    Key::new(CLASS_BITS + u32::from(prefix.bits), AddressKey { class, address: prefix.address })
}

fn peer_key(resource: u32, prefix: AddressPrefix) -> Key<PeerKey> {
    Key::new(RESOURCE_BITS + u32::from(prefix.bits), PeerKey { resource, address: prefix.address })
}
