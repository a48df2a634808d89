//! Programs that are attached only while some resource wants them, so that they cost other hosts nothing. Some kernels cannot have
//! some of them.
//!
//! Owns: when each is attached, and saying what is missing. Must not know: which resources want them.
//!
//! Invariant: beside a gate of another ABI version none is attached sooner than the programs that see calls.

use std::os::fd::AsFd;

use super::error::in_full;
use super::pins::{Attachable, Pins};
use super::{Gate, KernelError, Missing, datagrams, senders};
use crate::rules::plan::Check;

/// Judges what arrives.
pub(super) const INGRESS: &str = "ingress";

/// What is judged, as people are told that it is not.
pub const fn part(check: Check) -> &'static str {
    match check {
        Check::Arrivals => "the check of what arrives",
        Check::Datagrams => "the check of senders of datagrams",
        Check::Senders => "the check of senders",
    }
}

/// The program's name, and that of its link's pin.
const fn program_of(check: Check) -> &'static str {
    match check {
        Check::Arrivals => INGRESS,
        Check::Datagrams => datagrams::DATAGRAM,
        Check::Senders => senders::ENLIST,
    }
}

/// One of them, as far as it is there.
pub(super) struct OnDemand {
    check: Check,
    /// None: this kernel cannot have it, or it is not loaded yet.
    pub(super) program: Option<Attachable>,
    /// Why there is none.
    why: String,
    /// Attached, or to be attached when this gate is.
    pub(super) wanted: bool,
}

impl OnDemand {
    /// All of them, as an earlier agent left them; not loaded yet.
    pub(super) fn all(pins: &Pins) -> [Self; Check::ALL.len()] {
        Check::ALL.map(|check| Self {
            check,
            program: None,
            why: "it is not loaded yet".to_owned(),
            wanted: pins.link(program_of(check)).exists(),
        })
    }

    pub(super) fn check(&self) -> Check {
        self.check
    }

    /// What came of loading it.
    pub(super) fn loaded(&mut self, program: Result<Attachable, KernelError>) {
        match program {
            Ok(program) => self.program = Some(program),
            // Without what the verifier says of each instruction.
            Err(error) => self.why = in_full(&error).lines().next().unwrap_or_default().to_owned(),
        }
    }

    /// What is missing where it is wanted.
    pub(super) fn missing(&self) -> Option<Missing> {
        let is_missing = self.wanted && self.program.is_none();
        is_missing.then(|| Missing { part: part(self.check), why: self.why.clone() })
    }
}

impl Gate {
    /// Begins or ceases to judge something. Where the kernel cannot, that is [`Gate::missing`].
    pub(super) fn judge(&mut self, check: Check, on: bool) -> Result<(), KernelError> {
        if !on {
            self.pins.lower_link(program_of(check))?;
        }
        for one in self.on_demand.iter_mut().filter(|one| one.check == check) {
            one.wanted = on;
            if let Some(program) = one.program.as_mut().filter(|_| !on) {
                program.link = None;
            }
        }
        if on && self.stands() {
            self.attach_on_demand()?;
            // It has a link more to keep.
            self.prove_tamper();
        }
        Ok(())
    }

    /// Attaches what is wanted and there; or gives the links that an earlier agent left their new programs.
    pub(super) fn attach_on_demand(&mut self) -> Result<(), KernelError> {
        let wanted = self.on_demand.iter_mut().filter(|one| one.wanted);
        let mut programs =
            wanted.filter_map(|one| one.program.as_mut()).filter(|program| program.link.is_none());
        programs.try_for_each(|program| self.pins.attach(program, self.cgroup_root.as_fd()))
    }

    /// Those that are there, attached or not.
    pub(super) fn on_demand_programs(&self) -> impl Iterator<Item = &Attachable> + Clone {
        self.on_demand.iter().filter_map(|one| one.program.as_ref())
    }
}
