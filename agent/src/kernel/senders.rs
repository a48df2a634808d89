//! The per-send check: programs that judge whoever writes on a connection. Only some kernels can have it.
//!
//! Owns: loading and attaching these programs, and saying what is missing. Must not know: which resources want it.
//!
//! Invariant: connections are put where their writers are judged only after there is a program that judges them.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use agent_ebpf::abi::map;
use aya::maps::{MapData, SockHash};
use aya::{Ebpf, EbpfError, EbpfLoader};

use super::error::in_full;
use super::pins::{Attachable, Pins};
use super::sys::AttachType;
use super::{KernelError, Missing, attachable, loaded, sys, typed};

/// The programs, as the build script made them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portcullis-senders"));

/// Judges each write.
pub(super) const SEND: &str = "send";
/// Puts connections where writes are judged. Its link is what is pinned.
pub(super) const ENLIST: &str = "enlist";

/// What people are told is missing.
pub const PART: &str = "the check of senders";

/// The check, or why there is none. The gate's maps must be pinned already.
pub(super) fn raise(
    loader: &mut EbpfLoader<'_>,
    cgroup_root: &File,
    pins: &Pins,
) -> Result<Attachable, Missing> {
    attach_all(loader, cgroup_root, pins).map_err(|error| Missing { part: PART, why: in_full(&error) })
}

/// The programs, loaded with the gate's maps or with maps of their own.
pub(super) fn load(loader: &mut EbpfLoader<'_>) -> Result<Ebpf, EbpfError> {
    loader.load(OBJECT)
}

fn attach_all(
    loader: &mut EbpfLoader<'_>,
    cgroup_root: &File,
    pins: &Pins,
) -> Result<Attachable, KernelError> {
    let mut ebpf = load(loader).map_err(KernelError::load)?;
    let senders: SockHash<MapData, u64> = typed(&mut ebpf, map::SENDERS)?;
    loaded(&mut ebpf, ENLIST)?;
    let judge = loaded(&mut ebpf, SEND)?.fd().map_err(|source| KernelError::program(SEND, source))?;
    sys::attach_to_sockets(senders.fd().as_fd(), judge.as_fd())
        .map_err(|source| KernelError::attach(SEND, source))?;
    let root = cgroup_root.metadata().map_err(|source| KernelError::attach(ENLIST, source))?.ino();
    let mut program = attachable(&mut ebpf, (ENLIST, AttachType::SOCK_OPS), root)?;
    pins.attach(&mut program, cgroup_root.as_fd())?;
    Ok(program)
}
