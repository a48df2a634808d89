//! Processes that are moved into somebody's cgroup: a program that records it. Only some kernels can have it.
//!
//! Owns: loading and attaching it, and saying why it is missing. Must not know: what becomes of its records.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::LazyLock;

use aya::programs::{BtfTracePoint, ProgramError};
use aya::{Btf, EbpfLoader};

use super::error::in_full;
use super::pins::Pins;
use super::types::{Types, TypesError};
use super::{KernelError, Missing, load_patiently, sys};

/// The program, as the build script made it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portcullis-migrations"));

/// Its name.
pub(super) const ATTACH_TASK: &str = "attach_task";
/// Where the kernel tells of it.
const TRACEPOINT: &str = "cgroup_attach_task";
/// What is missing without it, as people are told.
const PART: &str = "migrations";

/// The program's names for members of the kernel's structures.
const FIELDS: [(&str, &str, &[&str]); 10] = [
    ("CGROUP_NODE", "cgroup", &["kn"]),
    ("CGROUP_ROOT", "cgroup", &["root"]),
    ("CGROUP_PARENT", "cgroup", &["self", "parent"]),
    ("STATE_CGROUP", "cgroup_subsys_state", &["cgroup"]),
    ("NODE_ID", "kernfs_node", &["id"]),
    ("ROOT_HIERARCHY", "cgroup_root", &["hierarchy_id"]),
    ("MOVED_TGID", "task_struct", &["tgid"]),
    ("MOVED_COMM", "task_struct", &["comm"]),
    ("MOVED_CRED", "task_struct", &["cred"]),
    ("MOVED_UID", "cred", &["uid"]),
];

/// The program, attached or missing.
pub(super) struct Migrations(Result<OwnedFd, String>);

impl Migrations {
    /// None yet: beside a gate of another ABI version, which has its own.
    pub(super) fn later() -> Self {
        Self(Err("it is not loaded yet".to_owned()))
    }

    /// Loads and attaches it, and gives its link the place of that of an earlier agent: a link of this kind keeps its program
    /// for good. The gate's maps must be pinned already.
    pub(super) fn attach(loader: &mut EbpfLoader<'_>, pins: &Pins) -> Result<Self, KernelError> {
        let link = try_attach(loader);
        match &link {
            Ok(link) => pins.replace_link(ATTACH_TASK, link.as_fd())?,
            Err(_) => pins.remove_link(ATTACH_TASK)?,
        }
        Ok(Self(link))
    }

    /// Its name and its link.
    pub(super) fn link(&self) -> Option<(&'static str, BorrowedFd<'_>)> {
        self.0.as_ref().ok().map(|link| (ATTACH_TASK, link.as_fd()))
    }

    pub(super) fn missing(&self) -> Option<Missing> {
        let why = self.0.as_ref().err()?;
        Some(Missing { part: PART, why: why.lines().next().unwrap_or_default().to_owned() })
    }
}

/// In the order of [`FIELDS`]; or why they are not known.
static OFFSETS: LazyLock<Result<[u32; FIELDS.len()], String>> =
    LazyLock::new(|| offsets().map_err(|error| in_full(&error)));

fn offsets() -> Result<[u32; FIELDS.len()], TypesError> {
    let kernel = Types::of_kernel()?;
    let mut offsets = [0; FIELDS.len()];
    for (offset, (_, structure, fields)) in offsets.iter_mut().zip(FIELDS) {
        *offset = kernel.offset(structure, fields)?;
    }
    Ok(offsets)
}

fn try_attach(loader: &mut EbpfLoader<'_>) -> Result<OwnedFd, String> {
    let types = Btf::from_sys_fs().map_err(|error| format!("the kernel's types cannot be read: {error}"))?;
    for ((name, ..), offset) in FIELDS.iter().zip(OFFSETS.as_ref()?) {
        loader.override_global(name, offset, false);
    }
    let mut object = loader.load(OBJECT).map_err(|error| in_full(&KernelError::load(error)))?;
    let program = object.program_mut(ATTACH_TASK).ok_or("the object lacks its program")?;
    let program: &mut BtfTracePoint = program.try_into().map_err(|error: ProgramError| in_full(&error))?;
    load_patiently(|| program.load(TRACEPOINT, &types)).map_err(|error| in_full(&error))?;
    let fd = program.fd().map_err(|error| in_full(&error))?;
    sys::link_create_at_kernel(fd.as_fd()).map_err(|error| format!("the kernel does not attach it: {error}"))
}
