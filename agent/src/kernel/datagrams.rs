//! The per-send check for UDP: a program that judges whoever sends a datagram. Only some kernels can have it.
//!
//! Owns: loading it. Must not know: when it is attached.

use aya::{Ebpf, EbpfError, EbpfLoader};

use super::pins::Attachable;
use super::sys::AttachType;
use super::{KernelError, attachable};

/// The program, as the build script made it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portcullis-datagrams"));

/// Its name.
pub(super) const DATAGRAM: &str = "datagram";

/// The program, for the cgroup of this id. The gate's maps must be pinned already.
pub(super) fn load_for(loader: &mut EbpfLoader<'_>, root: u64) -> Result<Attachable, KernelError> {
    let mut ebpf = load(loader).map_err(KernelError::load)?;
    attachable(&mut ebpf, (DATAGRAM, AttachType::EGRESS), root)
}

/// The program, with the gate's maps or with maps of its own.
pub(super) fn load(loader: &mut EbpfLoader<'_>) -> Result<Ebpf, EbpfError> {
    loader.load(OBJECT)
}
