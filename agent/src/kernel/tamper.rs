//! The tamper tier: programs that keep everybody but the agent, root included, from the gate's programs, maps, links and pins,
//! and from the agent itself. Only some kernels can have it, and only some hosts want it.
//!
//! Owns: loading, attaching and proving these programs, what they are told to keep, and saying what is missing. Must not know:
//! what grants mean.
//!
//! Invariants: nothing is claimed that a helper, which is not the agent, was not just refused; programs of an earlier agent go
//! only after ours are there. Whoever runs the agent's executable is the agent: no process is told from another.

mod helper;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_ebpf::abi::{FileKey, ObjectKey, Tampering, map, tamper_state};
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use aya::programs::{Lsm, ProgramError};
use aya::{Btf, Ebpf};

use super::error::in_full;
use super::pins::Pins;
use super::types::KernelTypes;
use super::{Demand, Fault, Gate, KernelError, Missing, Settings, load_patiently, loader, sys, typed};
use crate::clock::now_boot_ns;
use crate::observe;
use helper::{Answer, Helper, Question};

pub use helper::{HELPER_VERB, serve};

/// The programs, as the build script made them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portcullis-tamper"));

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

/// The programs' names for members of the kernel's structures.
const OFFSETS: [(&str, &str, &str); 16] = [
    ("TASK_MM", "task_struct", "mm"),
    ("TASK_FILES", "task_struct", "files"),
    ("MM_EXE_FILE", "mm_struct", "exe_file"),
    ("FILES_TABLE", "files_struct", "fdt"),
    ("TABLE_FILES", "fdtable", "fd"),
    ("TABLE_LENGTH", "fdtable", "max_fds"),
    ("FILE_INODE", "file", "f_inode"),
    ("FILE_PRIVATE", "file", "private_data"),
    ("INODE_NUMBER", "inode", "i_ino"),
    ("INODE_SUPER", "inode", "i_sb"),
    ("SUPER_DEVICE", "super_block", "s_dev"),
    ("DENTRY_INODE", "dentry", "d_inode"),
    ("MAP_ID", "bpf_map", "id"),
    ("PROGRAM_AUX", "bpf_prog", "aux"),
    ("AUX_ID", "bpf_prog_aux", "id"),
    ("LINK_ID", "bpf_link", "id"),
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
    lifted_until_boot_ns: u64,
}

/// What the programs are told to keep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Belongings {
    files: BTreeMap<FileKey, u32>,
    objects: BTreeSet<ObjectKey>,
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
        Ok(Self { links, kept, loader, executable, helper: Helper::default(), lifted_until_boot_ns: 0 })
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
            Question::RemoveDirectory(pins.link_dir()),
            Question::MakeDirectory(pins.link_dir()),
        ];
        questions.extend(id(ObjectKey::MAP).map(Question::Map));
        questions.extend(id(ObjectKey::PROGRAM).map(Question::Program));
        questions.extend(id(ObjectKey::LINK).map(Question::Link));
        let link = fs::read_dir(pins.link_dir()).ok().and_then(|mut entries| Some(entries.next()?.ok()?.path()));
        questions.extend(link.map(Question::Pin));
        let pid = self.helper.pid()?;
        self.kept.set_state(tamper_state::HELPER, u64::from(pid))?;
        for question in questions {
            let counted = self.kept.refused(question.tampering())?;
            let answer = self.helper.ask(&question)?;
            if answer != Answer::Refused || self.kept.refused(question.tampering())? == counted {
                return Err(format!("{question} was not refused to somebody else: {answer}{}", active_modules()));
            }
        }
        Ok(())
    }
}

/// Programs load and attach also where the kernel was started without their security module; they never run then.
fn active_modules() -> String {
    let modules = fs::read_to_string("/sys/kernel/security/lsm");
    modules.map_or_else(|_| String::new(), |names| format!("; active security modules: {}", names.trim()))
}

/// What it takes to load the object.
struct Loader {
    settings: Settings,
    pins: Pins,
    types: Btf,
    offsets: Vec<(&'static str, u64)>,
    pins_device: u32,
}

impl Loader {
    fn new(settings: &Settings, pins: &Pins) -> Result<Self, String> {
        let types =
            Btf::from_sys_fs().map_err(|error| format!("the kernel's types cannot be read: {error}"))?;
        let kernel = KernelTypes::read()?;
        let offset = |(name, structure, member)| Ok((name, kernel.offset_of(structure, member)?.into()));
        let mut offsets: Vec<(&str, u64)> = OFFSETS.into_iter().map(offset).collect::<Result<_, String>>()?;
        let (part, id) = (kernel.offset_of("mount", "mnt")?, kernel.offset_of("mount", "mnt_id")?);
        offsets.push(("MOUNT_ID", u64::from(id).wrapping_sub(part.into())));
        let dir = pins.dir();
        let pins_device = file_at(dir).map_err(|error| format!("{}: {error}", dir.display()))?.device;
        Ok(Self { settings: settings.clone(), pins: pins.clone(), types, offsets, pins_device })
    }

    /// `learner`: the thread that learns; 0: none does.
    fn load(&self, learner: u32) -> Result<Ebpf, String> {
        let mut loader = loader(&self.settings, &self.pins);
        for (name, offset) in &self.offsets {
            loader.override_global(*name, offset, true);
        }
        loader.override_global("PINS_DEVICE", &self.pins_device, true);
        loader.override_global("LEARNER", &learner, true);
        loader.load(OBJECT).map_err(|error| in_full(&KernelError::load(error)))
    }

    fn load_program(&self, object: &mut Ebpf, name: &str, hook: &str) -> Result<(), String> {
        let loaded = load_patiently(|| program(object, name)?.load(hook, &self.types));
        loaded.map_err(|error| format!("the kernel refuses the program `{name}`: {}", brief(name, error)))
    }

    fn attach(&self, object: &mut Ebpf, name: &str) -> Result<OwnedFd, String> {
        let attached = program(object, name).and_then(|program| Ok(program.fd()?.as_fd().try_clone_to_owned()));
        let attached = attached.map_err(|error| in_full(&error))?;
        let link = attached.and_then(|program| sys::link_create_at_kernel(program.as_fd()));
        link.map_err(|error| format!("the kernel does not attach the program `{name}`: {error}"))
    }

    /// The kernel's own numbers of a file, which some file systems do not tell: a program looks while this thread comes by it.
    fn learn(&self, kept: &mut Kept, path: &Path) -> Result<FileKey, String> {
        let mut object = self.load(nix::unistd::gettid().as_raw() as u32)?;
        self.load_program(&mut object, "learn", "inode_permission")?;
        kept.set_state(tamper_state::LEARNT_INODE, 0)?;
        let link = self.attach(&mut object, "learn")?;
        let looked = nix::unistd::access(path, nix::unistd::AccessFlags::R_OK);
        drop(link);
        looked.map_err(|error| format!("cannot look at {}: {error}", path.display()))?;
        match (kept.state(tamper_state::LEARNT_INODE)?, kept.state(tamper_state::LEARNT_DEVICE)?) {
            (0, _) => Err(format!("the kernel never runs the programs{}", active_modules())),
            (inode, device) => Ok(FileKey { inode, device: device as u32, reserved: 0 }),
        }
    }
}

fn program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Lsm, ProgramError> {
    object.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()
}

/// What a person needs; the verifier's words go to the log.
fn brief(name: &str, error: ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            tracing::debug!(program = name, %verifier_log, "the verifier does not take a program");
            io_error.to_string()
        }
        error => in_full(&error),
    }
}

/// The executable that this process runs, and what lies at its path.
struct Executable {
    path: PathBuf,
    running: FileKey,
    /// What was last admitted from there, and how it was told from others.
    admitted: FileKey,
    told: Option<(u64, u64, i64, i64)>,
}

impl Executable {
    fn learn(loader: &Loader, kept: &mut Kept) -> Result<Self, String> {
        let path = std::env::current_exe().map_err(|error| format!("this program has no path: {error}"))?;
        let running = loader.learn(kept, Path::new("/proc/self/exe"))?;
        let told = told_apart(&path);
        Ok(Self { path, running, admitted: running, told })
    }

    /// Whoever upgrades puts another file there: the next agent must be one to this tier. Only while this agent runs, and only
    /// what nobody but root can have written. Gives what is to be told.
    fn look(&mut self, loader: &Loader, kept: &mut Kept) -> Result<Option<String>, String> {
        let told = told_apart(&self.path);
        if told.is_none() || told == self.told {
            return Ok(None);
        }
        self.told = told;
        self.admitted = loader.learn(kept, &self.path)?;
        let path = self.path.display();
        Ok(Some(format!("{path} is another file now: whoever runs it is the agent to the tamper tier as well")))
    }
}

/// None: there is no such file, or others than root may write to it.
fn told_apart(path: &Path) -> Option<(u64, u64, i64, i64)> {
    const OTHERS_WRITE: u32 = 0o022;
    let metadata = fs::metadata(path).ok()?;
    let is_roots = metadata.is_file() && metadata.uid() == 0 && metadata.mode() & OTHERS_WRITE == 0;
    is_roots.then(|| (metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
}

/// The maps of what the programs keep, and what only this has written there.
struct Kept {
    files: HashMap<MapData, FileKey, u32>,
    objects: HashMap<MapData, ObjectKey, u32>,
    state: Array<MapData, u64>,
    held: Belongings,
}

impl Kept {
    fn take(object: &mut Ebpf) -> Result<Self, KernelError> {
        let mut kept = Self {
            files: typed(object, map::TAMPER_FILES)?,
            objects: typed(object, map::TAMPER_OBJECTS)?,
            state: typed(object, map::TAMPER_STATE)?,
            held: Belongings::default(),
        };
        kept.held = kept.read()?;
        Ok(kept)
    }

    fn read(&self) -> Result<Belongings, KernelError> {
        let files: Result<_, _> = self.files.iter().collect();
        let objects: Result<_, _> = self.objects.keys().collect();
        Ok(Belongings {
            files: files.map_err(|error| KernelError::read(map::TAMPER_FILES, error))?,
            objects: objects.map_err(|error| KernelError::read(map::TAMPER_OBJECTS, error))?,
        })
    }

    fn keep_file(&mut self, file: FileKey, flags: u32) -> Result<(), String> {
        self.files.insert(file, flags, 0).map_err(|error| in_full(&error))?;
        self.held.files.insert(file, flags);
        Ok(())
    }

    /// Brings the maps to this, whatever is in them; what is new first. Returns whether somebody else had changed them.
    fn keep(&mut self, wanted: &Belongings) -> Result<bool, KernelError> {
        let found = self.read()?;
        let changed = found != self.held;
        let of_files = |error: MapError| KernelError::Write { name: map::TAMPER_FILES, source: error.into() };
        let of_objects = |error: MapError| KernelError::Write { name: map::TAMPER_OBJECTS, source: error.into() };
        for (file, flags) in wanted.files.iter().filter(|(file, flags)| found.files.get(file) != Some(flags)) {
            self.files.insert(file, flags, 0).map_err(of_files)?;
        }
        for object in wanted.objects.difference(&found.objects) {
            self.objects.insert(object, 0, 0).map_err(of_objects)?;
        }
        for file in found.files.keys().filter(|file| !wanted.files.contains_key(file)) {
            self.files.remove(file).map_err(of_files)?;
        }
        for object in found.objects.difference(&wanted.objects) {
            self.objects.remove(object).map_err(of_objects)?;
        }
        self.held = wanted.clone();
        Ok(changed)
    }

    fn state(&self, index: u32) -> Result<u64, String> {
        self.state.get(&index, 0).map_err(|error| in_full(&error))
    }

    fn set_state(&mut self, index: u32, value: u64) -> Result<(), String> {
        self.state.set(index, value, 0).map_err(|error| in_full(&error))
    }

    /// How often the helper was refused something.
    fn refused(&self, tampering: Tampering) -> Result<u64, String> {
        self.state(tamper_state::REFUSED + tampering as u32)
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
        let own = self.programs.iter().chain(&self.senders);
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
        self.hold_maps()?;
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
                    text: format!("another file lies at the agent's path, and is nobody to the tamper tier: {why}"),
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
                opens: true,
                repaired: true,
            }),
            Err(why) => faults.push(Fault { text: why, opens: false, repaired: false }),
        }
        self.prove_tamper();
        faults
    }
}

/// What `stat` says of what lies on a BPF file system, which tells the kernel's own numbers.
fn file_at(path: &Path) -> std::io::Result<FileKey> {
    let metadata = fs::symlink_metadata(path)?;
    let (major, minor) = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
    Ok(FileKey { inode: metadata.ino(), device: major << 20 | minor, reserved: 0 })
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
        let write = |error: MapError| KernelError::Write { name: map::TAMPER_STATE, source: error.into() };
        let data = MapData::from_pin(path).map_err(write)?;
        let mut state: Array<_, u64> = Map::Array(data).try_into().map_err(write)?;
        state.set(tamper_state::LIFTED_UNTIL, until, 0).map_err(write)?;
        found = true;
    }
    Ok(found)
}
