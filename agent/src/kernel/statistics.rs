//! What the programs cost while they run: the kernel's own counts and times.
//!
//! Owns: turning the kernel's statistics on and off. Must not know: what is measured, or why.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use agent_ebpf::abi::ABI_VERSION;
use aya::maps::MapInfo;
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};

use super::KernelError;
use super::pins::Pins;

/// What one program has cost since it was loaded, as far as statistics were on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramTime {
    /// The kernel's id of it.
    pub id: u32,
    /// Its name; the kernel keeps 15 bytes of it.
    pub name: String,
    /// How often it ran.
    pub runs: u64,
    /// How long, summed over the runs; the reading of the clock around each run counts, which takes some 10 to 25 ns.
    pub run_time_ns: u64,
}

/// The kernel's statistics, on. Dropped, they are off again, unless somebody else wants them too: measuring costs the host
/// some 20 ns for each run of any program.
pub struct Statistics {
    _on: OwnedFd,
    /// Ids of the maps of one gate: whatever uses one of them belongs to it.
    maps: Vec<u32>,
}

impl Statistics {
    /// Turns them on, for the programs of the gate that is pinned at `pin_dir`.
    pub fn collect(pin_dir: &Path) -> Result<Self, KernelError> {
        let dir = Pins::at(pin_dir, ABI_VERSION).maps();
        let of_dir = |source| KernelError::Pin { path: dir.clone(), source };
        let mut maps = Vec::new();
        for entry in fs::read_dir(&dir).map_err(of_dir)? {
            let path = entry.map_err(of_dir)?.path();
            let info = MapInfo::from_pin(&path).map_err(|error| of_dir(io::Error::other(error)))?;
            maps.push(info.id());
        }
        let on = enable_stats(Stats::RunTime).map_err(|error| KernelError::Statistics(error.io_error))?;
        Ok(Self { _on: on, maps })
    }

    /// What each program has cost so far, by name.
    pub fn read(&self) -> Result<Vec<ProgramTime>, KernelError> {
        let mut times = Vec::new();
        // One that ended between being listed and being looked at is none of ours: those are attached.
        for info in loaded_programs().flatten() {
            let uses = info.map_ids().ok().flatten().unwrap_or_default();
            if uses.iter().any(|id| self.maps.contains(id)) {
                times.push(ProgramTime {
                    id: info.id(),
                    name: info.name_as_str().unwrap_or_default().to_owned(),
                    runs: info.run_count(),
                    run_time_ns: u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX),
                });
            }
        }
        times.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(times)
    }
}
