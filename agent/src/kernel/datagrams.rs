//! The per-send check for UDP: a program that judges whoever sends a datagram. Only some kernels can have it, and it is attached
//! only while some resource wants it.
//!
//! Owns: loading it, when it is attached, and saying that it is missing. Must not know: which resources want it.

use std::os::fd::AsFd;

use aya::{Ebpf, EbpfError, EbpfLoader};

use super::error::in_full;
use super::pins::{Attachable, Pins};
use super::sys::AttachType;
use super::{Gate, KernelError, Missing, attachable};

/// The program, as the build script made it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portcullis-datagrams"));

/// Its name.
pub(super) const DATAGRAM: &str = "datagram";

/// What people are told is missing.
pub const PART: &str = "the check of senders of datagrams";

/// The program, as far as it is there.
pub(super) struct Datagrams {
    /// None: this kernel cannot have it, or it is not loaded yet.
    pub(super) program: Option<Attachable>,
    /// Why there is none.
    why: String,
    /// Attached, or to be attached when this gate is.
    pub(super) wanted: bool,
}

impl Datagrams {
    /// As an earlier agent left it; not loaded yet.
    pub(super) fn new(pins: &Pins) -> Self {
        Self { program: None, why: "it is not loaded yet".to_owned(), wanted: pins.link(DATAGRAM).exists() }
    }

    /// Loads it. The gate's maps must be pinned already.
    pub(super) fn load(&mut self, loader: &mut EbpfLoader<'_>, root: u64) {
        let program = load(loader)
            .map_err(KernelError::load)
            .and_then(|mut ebpf| attachable(&mut ebpf, (DATAGRAM, AttachType::EGRESS), root));
        match program {
            Ok(program) => self.program = Some(program),
            // Without what the verifier says of each instruction.
            Err(error) => self.why = in_full(&error).lines().next().unwrap_or_default().to_owned(),
        }
    }

    /// What is missing where it is wanted.
    pub(super) fn missing(&self) -> Option<Missing> {
        (self.wanted && self.program.is_none()).then(|| Missing { part: PART, why: self.why.clone() })
    }
}

/// The program, loaded with the gate's maps or with maps of its own.
pub(super) fn load(loader: &mut EbpfLoader<'_>) -> Result<Ebpf, EbpfError> {
    loader.load(OBJECT)
}

impl Gate {
    /// Begins or ceases to judge who sends datagrams. Where the kernel cannot, that is [`Gate::missing`].
    pub(super) fn judge_datagrams(&mut self, on: bool) -> Result<(), KernelError> {
        if on {
            self.datagrams.wanted = true;
            return if self.stands() { self.attach_datagrams() } else { Ok(()) };
        }
        self.pins.lower_link(DATAGRAM)?;
        if let Some(program) = &mut self.datagrams.program {
            program.link = None;
        }
        self.datagrams.wanted = false;
        Ok(())
    }

    /// Attaches the program, if it is wanted and there; or gives the link that an earlier agent left its new one.
    pub(super) fn attach_datagrams(&mut self) -> Result<(), KernelError> {
        match &mut self.datagrams.program {
            Some(program) if self.datagrams.wanted => self.pins.attach(program, self.cgroup_root.as_fd()),
            _ => Ok(()),
        }
    }
}
