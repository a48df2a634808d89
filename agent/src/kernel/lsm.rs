//! The LSM tier: programs that refuse sockets whose packets pass the gate, and sockets that are handed to somebody else; and
//! those that guard unix sockets. Only some kernels can have it, and only some hosts want it.
//!
//! Owns: loading, attaching and proving these programs, and saying what is missing. Must not know: what grants mean.
//!
//! Invariants: what is not proven to run is said to be missing; programs of an earlier agent go only after ours are there.

pub(super) mod unix;

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use agent_ebpf::abi::{Hook, map};
use agent_ebpf::family;
use aya::maps::{HashMap, MapData};
use aya::programs::{Lsm, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader};
use nix::errno::Errno;

use super::error::in_full;
use super::pins::Pins;
use super::{KernelError, Missing, Settings, load_patiently, loader, sys};
use crate::rules::drift::{Drift, exempt_drift};

/// The programs, as the build script made them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portcullis-lsm"));

/// What each program guards, as people are told.
const PARTS: [(Hook, &str); 2] = [(Hook::SocketCreate, "packet sockets"), (Hook::FileReceive, "handoff")];

/// Whether the host wants the tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// It does not; what an earlier agent put up is taken down.
    Off,
    /// It takes what the kernel can have, and is degraded by the rest.
    Prefer,
    /// It takes all or nothing: the gate is not changed.
    Require,
}

/// How the tier is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LsmSettings {
    /// Whether it is wanted.
    pub demand: Demand,
    /// The address families that everybody may have, as a set.
    pub families: u64,
    /// Cgroups, with all below them, whose processes may have sockets of any family.
    pub exempt: BTreeSet<u64>,
}

impl Default for LsmSettings {
    /// Off.
    fn default() -> Self {
        Self { demand: Demand::Off, families: family::USUAL, exempt: BTreeSet::new() }
    }
}

/// The tier, as far as it is there.
#[derive(Default)]
pub(super) struct Tier {
    /// Held beside the pins, as the gate's are. As long as nothing is pinned, they end with this.
    links: Vec<(&'static str, OwnedFd)>,
    missing: Vec<Missing>,
    /// What the programs for unix sockets are proven with. None: they are not there.
    unix: Option<unix::Probe>,
}

impl Tier {
    /// Loads, attaches and proves what is wanted. The gate's maps must be pinned already.
    ///
    /// # Errors
    /// If all of it is required and something is missing.
    pub(super) fn attach(settings: &Settings, pins: &Pins) -> Result<Self, KernelError> {
        let mut tier = Self::default();
        if settings.lsm.demand == Demand::Off {
            return Ok(tier);
        }
        if let Err(why) = tier.attach_all(settings, pins) {
            tier = Self { missing: all_missing(&why), ..Self::default() };
        }
        if settings.lsm.demand == Demand::Require && !tier.missing.is_empty() {
            let missing = tier.missing.iter().map(|Missing { part, why }| format!("{part} ({why})"));
            return Err(KernelError::Lsm { missing: missing.collect::<Vec<_>>().join(", ") });
        }
        Ok(tier)
    }

    /// The error is why there is nothing of it at all.
    fn attach_all(&mut self, settings: &Settings, pins: &Pins) -> Result<(), String> {
        let types =
            Btf::from_sys_fs().map_err(|error| format!("the kernel's types cannot be read: {error}"))?;
        let mut loader = loader(settings, pins);
        loader.override_global("FAMILIES", &settings.lsm.families, true);
        for (hook, part) in PARTS {
            match attach(hook, &mut loader, &types) {
                Ok(link) => self.links.push((hook.as_str(), link)),
                Err(why) => self.missing.push(Missing { part, why }),
            }
        }
        // Where not even that one is there, nothing is proven of the others.
        match self.links.first() {
            Some((name, _)) if *name == Hook::SocketCreate.as_str() => prove()?,
            _ => return Err(self.missing.first().map(|missing| missing.why.clone()).unwrap_or_default()),
        }
        match unix::attach(settings, pins, &types) {
            Ok((links, probe)) => {
                self.links.extend(links);
                self.unix = Some(probe);
            }
            Err(why) => self.missing.push(Missing { part: unix::PART, why }),
        }
        Ok(())
    }

    /// Puts the links in the places of those of an earlier agent, and removes what is not wanted any more. A link of this
    /// kind keeps its program for good: a new one is the only way to another.
    pub(super) fn pin(&self, settings: &Settings, pins: &Pins) -> Result<(), KernelError> {
        self.links().try_for_each(|(name, link)| pins.replace_link(name, link))?;
        match settings.lsm.demand {
            Demand::Off => {
                let names = PARTS.into_iter().map(|(hook, _)| hook.as_str()).chain(unix::PROGRAMS);
                names.into_iter().try_for_each(|name| pins.remove_link(name))
            }
            Demand::Prefer | Demand::Require => Ok(()),
        }
    }

    /// The names and links of its programs.
    pub(super) fn links(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        self.links.iter().map(|(name, link)| (*name, link.as_fd()))
    }

    /// What is missing now. The programs are seen to run: they are asked for what they always refuse.
    pub(super) fn missing(&mut self) -> Vec<Missing> {
        if !self.links.is_empty()
            && let Err(why) = prove()
        {
            return all_missing(&why);
        }
        let mut missing = self.missing.clone();
        if let Some(probe) = &mut self.unix
            && let Err(why) = probe.prove()
        {
            missing.push(Missing { part: unix::PART, why });
        }
        missing
    }
}

/// The cgroups that are exempt, where the programs look them up.
pub(super) struct Exempt {
    map: HashMap<MapData, u64, u32>,
    /// What it holds, as far as only this has written to it.
    held: BTreeSet<u64>,
}

impl Exempt {
    /// Brings the map, whatever is in it, to what the settings say.
    pub(super) fn open(map: HashMap<MapData, u64, u32>, settings: &Settings) -> Result<Self, KernelError> {
        let mut exempt = Self { map, held: BTreeSet::new() };
        exempt.held = exempt.read()?;
        exempt.write(settings)?;
        Ok(exempt)
    }

    fn read(&self) -> Result<BTreeSet<u64>, KernelError> {
        let keys: Result<_, _> = self.map.keys().collect();
        keys.map_err(|error| KernelError::read(map::EXEMPT_CGROUPS, error))
    }

    /// Looks what somebody else has written to the map; to be followed by [`Exempt::write`].
    pub(super) fn look(&mut self) -> Result<Option<Drift>, KernelError> {
        let found = self.read()?;
        let drift = exempt_drift(&self.held, &found);
        self.held = found;
        Ok(drift)
    }

    /// Brings the map to what the settings say, removals first.
    pub(super) fn write(&mut self, settings: &Settings) -> Result<(), KernelError> {
        let wanted = &settings.lsm.exempt;
        for id in self.held.difference(wanted).copied().collect::<Vec<_>>() {
            let result = self.map.remove(&id);
            result.or_else(|error| KernelError::from_write(map::EXEMPT_CGROUPS, settings, error))?;
            self.held.remove(&id);
        }
        for id in wanted.difference(&self.held).copied().collect::<Vec<_>>() {
            let result = self.map.insert(id, 0, 0);
            result.or_else(|error| KernelError::from_write(map::EXEMPT_CGROUPS, settings, error))?;
            self.held.insert(id);
        }
        Ok(())
    }
}

fn all_missing(why: &str) -> Vec<Missing> {
    let parts = PARTS.into_iter().map(|(_, part)| part).chain([unix::PART]);
    parts.map(|part| Missing { part, why: why.to_owned() }).collect()
}

/// Loads and attaches one program. The error is why that cannot be.
fn attach(hook: Hook, loader: &mut EbpfLoader<'_>, types: &Btf) -> Result<OwnedFd, String> {
    let mut attempt = |knows_ancestors: &'static u8| {
        loader.override_global("KNOWS_ANCESTORS", knows_ancestors, true);
        let object = loader.load(OBJECT).map_err(KernelError::load);
        let mut object = object.map_err(|error| in_full(&error))?;
        let link = load_and_attach(lsm_program(&mut object, hook.as_str())?, hook.as_str(), types);
        link.map_err(|error| format!("the kernel refuses the program `{}`: {error}", hook.as_str()))
    };
    // Old kernels let no LSM program ask for the cgroups above a task's own: an exemption is then for processes in that very
    // cgroup. A program that cannot do without is refused either way.
    attempt(&1).or_else(|_| attempt(&0))
}

fn lsm_program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Lsm, String> {
    let program = object.program_mut(name).and_then(|program| program.try_into().ok());
    program.ok_or_else(|| format!("the build is broken: there is no program `{name}`"))
}

/// A program is named after its hook.
fn load_and_attach(program: &mut Lsm, hook: &str, types: &Btf) -> Result<OwnedFd, String> {
    load_patiently(|| program.load(hook, types)).map_err(|error| brief(hook, error))?;
    let fd = program.fd().map_err(|error| in_full(&error))?;
    sys::link_create_at_kernel(fd.as_fd()).map_err(|error| error.to_string())
}

/// Asks for a socket that no kernel has and that the program refuses all the same. The error is why that proves nothing.
///
/// Programs load and attach also where the kernel was started without their security module; they never run then.
fn prove() -> Result<(), String> {
    // SAFETY: a call without pointers. What it gives, against all expectation, is a descriptor that nobody else owns.
    let answer = unsafe {
        let kind = family::PROBE_KIND as libc::c_int;
        match libc::socket(libc::AF_INET, kind, 0) {
            -1 => Errno::last(),
            number => {
                drop(OwnedFd::from_raw_fd(number));
                Errno::UnknownErrno
            }
        }
    };
    if answer == Errno::EPERM {
        return Ok(());
    }
    // Not mounted everywhere; what counts was seen already.
    let modules = fs::read_to_string("/sys/kernel/security/lsm");
    let modules = modules.map_or_else(|_| String::new(), |names| format!(" ({})", names.trim()));
    Err(format!(
        "the kernel never runs the programs: `bpf` is not among its active security modules{modules}, start it with \
         `lsm=` and a list that ends in `bpf`"
    ))
}

/// What a person needs; the verifier's words go to the log.
fn brief(hook: &str, error: ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            tracing::debug!(program = hook, %verifier_log, "the verifier does not take a program");
            io_error.to_string()
        }
        error => in_full(&error),
    }
}
