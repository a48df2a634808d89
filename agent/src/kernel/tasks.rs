//! Where the programs find what they record of the calling task.
//!
//! Owns: whether they may look for themselves. Must not know: what is recorded.

use std::sync::LazyLock;

use aya::EbpfLoader;
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported};

use super::types::{Types, TypesError};

/// The programs' names for members of the kernel's structures.
const FIELDS: [(&str, &str, &str); 4] = [
    ("TASK_TGID", "task_struct", "tgid"),
    ("TASK_COMM", "task_struct", "comm"),
    ("TASK_CRED", "task_struct", "cred"),
    ("CRED_UID", "cred", "uid"),
];

/// In the order of [`FIELDS`]. All 0: the programs ask the kernel for each thing.
static OFFSETS: LazyLock<[u32; FIELDS.len()]> = LazyLock::new(|| {
    let helper = BpfHelper::BPF_FUNC_get_current_task_btf;
    // Linux 5.10 has no such question, and some later ones not for programs of this kind.
    if !is_helper_supported(ProgramType::CgroupSockAddr, helper).unwrap_or(false) {
        return Default::default();
    }
    offsets().unwrap_or_else(|error| {
        tracing::debug!(%error, "the programs cannot look into tasks, and take longer for a record");
        Default::default()
    })
});

fn offsets() -> Result<[u32; FIELDS.len()], TypesError> {
    let types = Types::of_kernel()?;
    let mut offsets = [0; FIELDS.len()];
    for (offset, (_, structure, field)) in offsets.iter_mut().zip(FIELDS) {
        *offset = types.offset(structure, &[field])?;
    }
    Ok(offsets)
}

/// Writes it into the programs that are loaded from here on; not all of them have a use for it.
pub(super) fn tell(loader: &mut EbpfLoader<'_>) {
    for ((name, ..), offset) in FIELDS.iter().zip(OFFSETS.iter()) {
        loader.override_global(name, offset, false);
    }
}
