//! Loading the programs of the tier, and learning from one of them how the kernel numbers a file.
//!
//! Owns: what they are told before they are loaded. Must not know: what is kept.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use agent_ebpf::abi::{FileKey, tamper_state};
use aya::programs::{Lsm, ProgramError};
use aya::{Btf, Ebpf};
use nix::unistd::{AccessFlags, access, gettid};

use super::super::error::in_full;
use super::super::pins::Pins;
use super::super::types::Types;
use super::super::{KernelError, Settings, load_patiently, loader, sys};
use super::kept::{Kept, file_at};

/// The programs, as the build script made them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portcullis-tamper"));

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

/// Programs load and attach also where the kernel was started without their security module; they never run then.
pub(super) fn active_modules() -> String {
    let modules = fs::read_to_string("/sys/kernel/security/lsm");
    modules.map_or_else(|_| String::new(), |names| format!("; active security modules: {}", names.trim()))
}

/// What it takes to load the object.
pub(super) struct Loader {
    settings: Settings,
    pins: Pins,
    types: Btf,
    offsets: Vec<(&'static str, u64)>,
    pins_device: u32,
}

impl Loader {
    pub(super) fn new(settings: &Settings, pins: &Pins) -> Result<Self, String> {
        let types =
            Btf::from_sys_fs().map_err(|error| format!("the kernel's types cannot be read: {error}"))?;
        let kernel = Types::of_kernel().map_err(|error| in_full(&error))?;
        let offset_of =
            |structure, member| kernel.offset(structure, &[member]).map_err(|error| in_full(&error));
        let offset = |(name, structure, member)| Ok((name, offset_of(structure, member)?.into()));
        let mut offsets: Vec<(&str, u64)> = OFFSETS.into_iter().map(offset).collect::<Result<_, String>>()?;
        let (part, id) = (offset_of("mount", "mnt")?, offset_of("mount", "mnt_id")?);
        offsets.push(("MOUNT_ID", u64::from(id).wrapping_sub(part.into())));
        let dir = pins.dir();
        let pins_device = file_at(dir).map_err(|error| format!("{}: {error}", dir.display()))?.device;
        Ok(Self { settings: settings.clone(), pins: pins.clone(), types, offsets, pins_device })
    }

    /// `learner`: the thread that learns; 0: none does.
    pub(super) fn load(&self, learner: u32) -> Result<Ebpf, String> {
        let mut loader = loader(&self.settings, &self.pins);
        for (name, offset) in &self.offsets {
            loader.override_global(name, offset, true);
        }
        loader.override_global("PINS_DEVICE", &self.pins_device, true);
        loader.override_global("LEARNER", &learner, true);
        loader.load(OBJECT).map_err(|error| in_full(&KernelError::load(error)))
    }

    pub(super) fn load_program(&self, object: &mut Ebpf, name: &str, hook: &str) -> Result<(), String> {
        let loaded = load_patiently(|| program(object, name)?.load(hook, &self.types));
        loaded.map_err(|error| format!("the kernel refuses the program `{name}`: {}", brief(name, error)))
    }

    pub(super) fn attach(&self, object: &mut Ebpf, name: &str) -> Result<OwnedFd, String> {
        let attached =
            program(object, name).and_then(|program| Ok(program.fd()?.as_fd().try_clone_to_owned()));
        let attached = attached.map_err(|error| in_full(&error))?;
        let link = attached.and_then(|program| sys::link_create_at_kernel(program.as_fd()));
        link.map_err(|error| format!("the kernel does not attach the program `{name}`: {error}"))
    }

    /// The kernel's own numbers of a file, which some file systems do not tell: a program looks while this thread comes by it.
    pub(super) fn learn(&self, kept: &mut Kept, path: &Path) -> Result<FileKey, String> {
        let mut object = self.load(gettid().as_raw() as u32)?;
        self.load_program(&mut object, "learn", "inode_permission")?;
        kept.set_state(tamper_state::LEARNT_INODE, 0)?;
        let link = self.attach(&mut object, "learn")?;
        let looked = access(path, AccessFlags::R_OK);
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
