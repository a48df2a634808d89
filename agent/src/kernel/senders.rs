//! The per-send check: programs that judge whoever writes on a connection. Only some kernels can have it.
//!
//! Owns: loading these programs. Must not know: when they are attached.
//!
//! Invariant: connections are put where their writers are judged only after there is a program that judges them.

use std::os::fd::AsFd;

use agent_ebpf::abi::map;
use aya::maps::{MapData, SockHash};
use aya::{Ebpf, EbpfError, EbpfLoader};

use super::pins::Attachable;
use super::sys::AttachType;
use super::{KernelError, attachable, loaded, sys, typed};

/// The programs, as the build script made them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portcullis-senders"));

/// Judges each write.
pub(super) const SEND: &str = "send";
/// Puts connections where writes are judged. Its link is what is pinned.
pub(super) const ENLIST: &str = "enlist";

/// The program that puts connections where writes are judged, for the cgroup of this id; the one that judges is there already. The
/// gate's maps must be pinned.
pub(super) fn load_for(loader: &mut EbpfLoader<'_>, root: u64) -> Result<Attachable, KernelError> {
    let mut ebpf = load(loader).map_err(KernelError::load)?;
    let senders: SockHash<MapData, u64> = typed(&mut ebpf, map::SENDERS)?;
    loaded(&mut ebpf, ENLIST)?;
    let judge = loaded(&mut ebpf, SEND)?.fd().map_err(|source| KernelError::program(SEND, source))?;
    sys::attach_to_sockets(senders.fd().as_fd(), judge.as_fd())
        .map_err(|source| KernelError::attach(SEND, source))?;
    attachable(&mut ebpf, (ENLIST, AttachType::SOCK_OPS), root)
}

/// The programs, with the gate's maps or with maps of their own.
pub(super) fn load(loader: &mut EbpfLoader<'_>) -> Result<Ebpf, EbpfError> {
    loader.load(OBJECT)
}
