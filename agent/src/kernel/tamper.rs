//! The tamper tier: programs that keep everybody but the agent, root included, from the gate's programs, maps, links and pins,
//! and from the agent itself. Only some kernels can have it, and only some hosts want it.
//!
//! Owns: loading, attaching and proving these programs, what they are told to keep, and saying what is missing. Must not know:
//! what grants mean.
//!
//! Invariants: nothing is claimed that a helper, which is not the agent, was not just refused; programs of an earlier agent go
//! only after ours are there. Whoever runs the agent's executable is the agent: no process is told from another.

mod executable;
mod helper;
mod kept;
mod loading;

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use agent_ebpf::abi::{FileKey, ObjectKey, map, tamper_state};
use aya::maps::{Array, Map, MapData, MapError};

use super::error::in_full;
use super::pins::Pins;
use super::{Demand, Fault, Gate, KernelError, Missing, Settings, hold_maps, sys};
use crate::clock::now_boot_ns;
use crate::observe;
use executable::Executable;
use helper::{Answer, Helper, Question};
use kept::{Belongings, Kept, file_at};
use loading::{Loader, active_modules};

pub use helper::{HELPER_VERB, serve};

/// What people are told is missing.
pub(super) const PART: &str = "tamper protection";

/// Each program's hook, which is its name, and the name of its link's pin.
const PROGRAMS: [(&str, &str); 14] = [
    ("bpf_map", "tamper_bpf_map"),
    ("bpf_prog", "tamper_bpf_prog"),
    ("bpf", "tamper_bpf"),
    ("inode_permission", "tamper_inode_permission"),
    ("inode_unlink", "tamper_inode_unlink"),
    ("inode_rmdir", "tamper_inode_rmdir"),
    ("inode_rename", "tamper_inode_rename"),
    ("inode_mkdir", "tamper_inode_mkdir"),
    ("inode_create", "tamper_inode_create"),
    ("inode_symlink", "tamper_inode_symlink"),
    ("inode_link", "tamper_inode_link"),
    ("sb_umount", "tamper_sb_umount"),
    ("task_kill", "tamper_task_kill"),
    ("ptrace_access_check", "tamper_ptrace_access_check"),
];

/// The tier, as far as it is there.
#[derive(Default)]
pub(super) struct Tamper {
    up: Option<Up>,
    missing: Option<String>,
}

/// The tier, up.
struct Up {
    /// Held beside the pins, as the gate's are. As long as nothing is pinned, they end with this.
    links: Vec<(&'static str, OwnedFd)>,
    kept: Kept,
    loader: Loader,
    executable: Executable,
    helper: Helper,
    /// As it was last told.
    lifted_until_boot_ns: u64,
}

impl Tamper {
    /// Loads and attaches what is wanted; to be told next what to keep. The directories of the pins must be there.
    pub(super) fn attach(settings: &Settings, pins: &Pins) -> Self {
        if settings.tamper == Demand::Off {
            return Self { up: None, missing: None };
        }
        match Up::attach(settings, pins) {
            Ok(up) => Self { up: Some(up), missing: None },
            Err(why) => Self { up: None, missing: Some(why) },
        }
    }

    /// Puts the links in the places of those of an earlier agent, and removes what is not wanted any more.
    pub(super) fn pin(&self, settings: &Settings, pins: &Pins) -> Result<(), KernelError> {
        self.links().try_for_each(|(name, link)| pins.replace_link(name, link))?;
        match settings.tamper {
            Demand::Off => PROGRAMS.into_iter().try_for_each(|(_, name)| pins.remove_link(name)),
            Demand::Prefer | Demand::Require => Ok(()),
        }
    }

    /// The names and links of its programs.
    pub(super) fn links(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        self.up.iter().flat_map(|up| up.links.iter().map(|(name, link)| (*name, link.as_fd())))
    }

    /// What was last found to be missing.
    pub(super) fn missing(&self) -> Option<Missing> {
        self.missing.clone().map(|why| Missing { part: PART, why })
    }
}

impl Up {
    /// The error is why there is no such tier.
    fn attach(settings: &Settings, pins: &Pins) -> Result<Self, String> {
        let loader = Loader::new(settings, pins)?;
        let mut object = loader.load(0)?;
        for (hook, _) in PROGRAMS {
            loader.load_program(&mut object, hook, hook)?;
        }
        let mut kept = Kept::take(&mut object).map_err(|error| in_full(&error))?;
        let executable = Executable::learn(&loader, &mut kept)?;
        // Before anything is refused: from here on it is the agent.
        kept.keep_file(executable.running, FileKey::AGENT)?;
        let attach = |(hook, name)| Ok((name, loader.attach(&mut object, hook)?));
        let links = PROGRAMS.into_iter().map(attach).collect::<Result<_, String>>()?;
        // What is over was told by an earlier agent.
        let lifted_until_boot_ns = kept.state(tamper_state::LIFTED_UNTIL)?;
        let lifted_until_boot_ns =
            if lifted_until_boot_ns > now_boot_ns() { 0 } else { lifted_until_boot_ns };
        Ok(Self { links, kept, loader, executable, helper: Helper::default(), lifted_until_boot_ns })
    }

    /// Asks, as somebody who is not the agent, for what must be refused. The error is what was not, or why it is not known.
    fn prove(&mut self, belongings: &Belongings, pins: &Pins) -> Result<(), String> {
        if self.kept.state(tamper_state::LIFTED_UNTIL)? > now_boot_ns() {
            return Err("it is lifted for a time".to_owned());
        }
        let id = |kind| belongings.objects.iter().find(|object| object.kind == kind).map(|object| object.id);
        let mut questions = vec![
            Question::Signal(std::process::id()),
            Question::Trace(std::process::id()),
            Question::RemoveDirectory(pins.dir().to_owned()),
            Question::MakeDirectory(pins.link_dir()),
        ];
        questions.extend(id(ObjectKey::MAP).map(Question::Map));
        questions.extend(id(ObjectKey::PROGRAM).map(Question::Program));
        questions.extend(id(ObjectKey::LINK).map(Question::Link));
        let link =
            fs::read_dir(pins.link_dir()).ok().and_then(|mut entries| Some(entries.next()?.ok()?.path()));
        questions.extend(link.map(Question::Pin));
        let pid = self.helper.pid()?;
        self.kept.set_state(tamper_state::HELPER, u64::from(pid))?;
        for question in questions {
            let counted = self.kept.refused(question.tampering())?;
            let answer = self.helper.ask(&question)?;
            if answer != Answer::Refused || self.kept.refused(question.tampering())? == counted {
                return Err(format!(
                    "{question} was not refused to somebody else: {answer}{}",
                    active_modules()
                ));
            }
        }
        Ok(())
    }
}

impl Gate {
    /// Tells the tier what to keep: everything that the gate has now. The error is why it cannot.
    fn keep_belongings(&mut self) -> Result<bool, String> {
        let belongings = self.belongings();
        let Some(up) = &mut self.tamper.up else { return Ok(false) };
        let mut belongings = belongings?;
        for executable in [up.executable.running, up.executable.admitted] {
            belongings.files.insert(executable, FileKey::AGENT);
        }
        up.kept.keep(&belongings).map_err(|error| in_full(&error))
    }

    /// What the gate has now.
    fn belongings(&self) -> Result<Belongings, String> {
        let mut belongings = Belongings::default();
        let mut add = |kind, id: std::io::Result<u32>| {
            belongings.objects.extend(id.ok().map(|id| ObjectKey { kind, id }));
        };
        self.maps.iter().for_each(|map| add(ObjectKey::MAP, sys::map_id(map.fd.as_fd())));
        let own = self.programs.iter().chain(self.on_demand_programs());
        own.clone().for_each(|program| add(ObjectKey::PROGRAM, Ok(program.id)));
        let own = own.filter_map(|program| Some(program.link.as_ref()?.as_fd()));
        let lsm = self.tier.links().chain(self.tamper.links()).map(|(_, link)| link);
        for link in own.chain(lsm) {
            let info = sys::link_info(link);
            add(ObjectKey::LINK, info.as_ref().map(|info| info.id).map_err(|error| error.kind().into()));
            add(ObjectKey::PROGRAM, info.map(|info| info.program));
        }
        let at = |path: &Path| file_at(path).map_err(|error| format!("{}: {error}", path.display()));
        let dir = self.pins.dir();
        let device = at(dir)?.device;
        // Those above: up to where the file system is mounted.
        for above in dir.ancestors() {
            match at(above)? {
                file if file.device == device => belongings.files.insert(file, FileKey::STAYS),
                _ => break,
            };
        }
        for closed in [dir, self.settings.pin_dir.as_path(), &self.pins.link_dir(), &self.pins.maps()] {
            belongings.files.insert(at(closed)?, FileKey::STAYS | FileKey::CLOSED);
        }
        for dir in [self.pins.link_dir(), self.pins.maps()] {
            let entries = fs::read_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
            for entry in entries.filter_map(Result::ok) {
                belongings.files.insert(at(&entry.path())?, FileKey::STAYS | FileKey::PIN);
            }
        }
        let mounts = observe::mounts_that_carry(fs::metadata(dir).map_err(|error| error.to_string())?.dev());
        belongings.objects.extend(mounts.into_iter().map(|id| ObjectKey { kind: ObjectKey::MOUNT, id }));
        Ok(belongings)
    }

    /// Tells the tier what to keep, and has it proven.
    pub(super) fn prove_tamper(&mut self) {
        if self.tamper.up.is_none() {
            return;
        }
        let proven = self.keep_belongings().and_then(|_| {
            let Some(up) = &mut self.tamper.up else { return Ok(()) };
            let held = up.kept.held.clone();
            up.prove(&held, &self.pins)
        });
        self.tamper.missing = proven.err();
    }

    /// The same, at start.
    ///
    /// # Errors
    /// If it is required and missing.
    pub(super) fn raise_tamper(&mut self) -> Result<(), KernelError> {
        self.tamper = Tamper::attach(&self.settings, &self.pins);
        // It has maps of its own.
        hold_maps(&mut self.maps, &self.pins, &self.settings)?;
        self.prove_tamper();
        match (self.settings.tamper, &self.tamper.missing) {
            (Demand::Require, Some(why)) => Err(KernelError::Tamper { why: why.clone() }),
            _ => Ok(()),
        }
    }

    /// Whether the tier is as it should be; and what there is to be told of it.
    pub(super) fn inspect_tamper(&mut self) -> Vec<Fault> {
        let told = |text: String| Fault { text, opens: false, repaired: true };
        let mut faults = Vec::new();
        if let Some(up) = &mut self.tamper.up {
            match up.executable.look(&up.loader, &mut up.kept) {
                Ok(text) => faults.extend(text.map(told)),
                Err(why) => faults.push(Fault {
                    text: format!(
                        "another file lies at the agent's path, and is nobody to the tamper tier: {why}"
                    ),
                    opens: false,
                    repaired: false,
                }),
            }
            let lifted_until = up.kept.state(tamper_state::LIFTED_UNTIL).unwrap_or(0);
            if lifted_until != up.lifted_until_boot_ns {
                up.lifted_until_boot_ns = lifted_until;
                let seconds = lifted_until.saturating_sub(now_boot_ns()).div_ceil(1_000_000_000);
                faults.push(told(match seconds {
                    0 => "the tamper tier is no longer lifted".to_owned(),
                    _ => format!("the tamper tier is lifted for the next {seconds} s: anybody with root may change the gate"),
                }));
            }
        }
        match self.keep_belongings() {
            Ok(false) => {}
            Ok(true) => faults.push(Fault {
                text: "somebody else changed what the tamper tier keeps; put right".to_owned(),
                opens: false,
                repaired: true,
            }),
            Err(why) => faults.push(Fault { text: why, opens: false, repaired: false }),
        }
        self.prove_tamper();
        faults
    }
}

/// Has the tamper tiers that are pinned at `pin_dir` refuse nothing for so long; 0: has them refuse again. Says whether there
/// is any.
///
/// # Errors
/// If the caller is not the agent to a tier that is up.
pub fn lift_tamper(pin_dir: &Path, duration: Duration) -> Result<bool, KernelError> {
    let mut found = false;
    let duration_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let until = if duration.is_zero() { 0 } else { now_boot_ns().saturating_add(duration_ns) };
    for pins in Pins::all(pin_dir)? {
        let path = pins.map(map::TAMPER_STATE);
        if !path.exists() || !pins.link(PROGRAMS[0].1).exists() {
            continue;
        }
        pins.check_access()?;
        let write = |error: MapError| KernelError::Write { name: map::TAMPER_STATE, source: error.into() };
        let data = MapData::from_pin(path).map_err(write)?;
        let mut state: Array<_, u64> = Map::Array(data).try_into().map_err(write)?;
        state.set(tamper_state::LIFTED_UNTIL, until, 0).map_err(write)?;
        found = true;
    }
    Ok(found)
}
