//! The program that judges what arrives: attached only while some resource wants it, so that it costs other hosts nothing.
//!
//! Owns: when it is attached. Must not know: which resources want it.
//!
//! Invariant: beside a gate of another ABI version it is attached no sooner than this gate's other programs.

use std::os::fd::AsFd;

use super::pins::{Attachable, Pins};
use super::{Gate, KernelError};

/// The program, and whether it is wanted.
pub(super) struct Arrivals {
    pub(super) program: Attachable,
    /// Attached, or to be attached when this gate is.
    pub(super) wanted: bool,
}

impl Arrivals {
    /// As an earlier agent left it.
    pub(super) fn new(program: Attachable, pins: &Pins) -> Self {
        let wanted = pins.link(program.name).exists();
        Self { program, wanted }
    }
}

impl Gate {
    /// Begins or ceases to judge what arrives.
    pub(super) fn judge_arrivals(&mut self, on: bool) -> Result<(), KernelError> {
        if on {
            self.arrivals.wanted = true;
            return if self.stands() { self.attach_arrivals() } else { Ok(()) };
        }
        self.pins.lower_link(self.arrivals.program.name)?;
        self.arrivals.program.link = None;
        self.arrivals.wanted = false;
        Ok(())
    }

    /// Attaches the program, if it is wanted; or gives the link that an earlier agent left its new one.
    pub(super) fn attach_arrivals(&mut self) -> Result<(), KernelError> {
        match self.arrivals.wanted {
            true => self.pins.attach(&mut self.arrivals.program, self.cgroup_root.as_fd()),
            false => Ok(()),
        }
    }
}
