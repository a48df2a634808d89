//! Lifting the gate, for good and on the record.

use proto::types::EventKind;

use crate::canary;
use crate::clock::{Instants, now_boot_ns};
use crate::config::Config;
use crate::kernel::{self, Kept, Lowered, Placed};
use crate::memory::MemoryFile;
use crate::observe::{self, Cgroups};
use crate::rules::audit::{Names, Numbering};
use crate::run::RunError;
use crate::spool::{Entry, Mark, Spool};

/// Reads what the kernel still has to say, lifts the gate, of whichever ABI version, and writes down that it was lifted; the
/// next agent ships it. Says what there was; nothing: there was no gate. The caller holds the state directory's lock.
pub fn detach(config: &Config) -> Result<Vec<Lowered>, RunError> {
    let boot_id = observe::boot_id()?;
    let mut cgroups = Cgroups::new(observe::cgroup_root()?);
    let mut spool = Spool::open(&config.state_dir.join("spool"), boot_id, config.spool_max_bytes)?;
    let mut rings = kernel::open_rings(&config.kernel.pin_dir)?;
    // The agent may have been killed before it could give back what it had kept.
    rings.pass_over(|ring| spool.marks().end(ring));

    let mut names = Names::default();
    if let Some((_, set)) = MemoryFile::new(&config.state_dir, boot_id).read(now_boot_ns()).grants {
        names.learn(&set.resources, &set.subjects);
    }
    let mut numbering = Numbering::new(config.host.clone(), boot_id, spool.next_sequence());
    let now = Instants::now();
    for mut ring in rings.verdicts {
        while let Some(Placed { record, place }) = ring.read().map_err(RunError::Ring)? {
            if record.resource != canary::NUMBER {
                let process = cgroups.details(record.pid, record.cgroup_id, record.boot_ns);
                let event = numbering.verdict(&record, &names, process, now.wall_at(record.boot_ns));
                spool.append(&[Entry { event, mark: Some(Mark::of_record(place)) }], now.wall())?;
            }
            ring.release(Kept::All);
        }
    }
    for mut ring in rings.closed {
        while let Some(Placed { record, place }) = ring.read().map_err(RunError::Ring)? {
            if record.resource != canary::NUMBER {
                let event = numbering.closed(&record, &names, now.wall_at(record.boot_ns));
                spool.append(&[Entry { event, mark: Some(Mark::of_record(place)) }], now.wall())?;
            }
            ring.release(Kept::All);
        }
    }
    for mut ring in rings.moved {
        while let Some(Placed { record, place }) = ring.read().map_err(RunError::Ring)? {
            if record.subject != canary::NUMBER {
                let moved = cgroups.details(record.pid, record.cgroup_id, record.boot_ns);
                let mover = cgroups.details(record.mover_pid, record.mover_cgroup_id, record.boot_ns);
                // Which grants there were is not known here.
                let at = now.wall_at(record.boot_ns);
                let event = numbering.moved(&record, &names, (&moved, &mover), None, at);
                spool.append(&[Entry { event, mark: Some(Mark::of_record(place)) }], now.wall())?;
            }
            ring.release(Kept::All);
        }
    }
    canary::remove_cgroup(cgroups.root());
    let lowered = kernel::lower(&config.kernel.pin_dir)?;
    if !lowered.is_empty() {
        let comment = format!("the gate was lifted with `portcullis-agent detach`: {}", describe(&lowered));
        let event = numbering.host_event(EventKind::AgentDetached, Instants::now().wall(), comment);
        spool.append(&[event], now.wall())?;
    }
    spool.sync()?;
    Ok(lowered)
}

/// Writes down that the tamper tier was lifted, for the next agent to ship. The caller holds the state directory's lock.
pub fn record_lift(config: &Config, minutes: u64) -> Result<(), RunError> {
    let boot_id = observe::boot_id()?;
    let mut spool = Spool::open(&config.state_dir.join("spool"), boot_id, config.spool_max_bytes)?;
    let mut numbering = Numbering::new(config.host.clone(), boot_id, spool.next_sequence());
    let comment = format!("the tamper tier was lifted for {minutes} min with `portcullis-agent tamper lift`");
    let now = Instants::now().wall();
    spool.append(&[numbering.host_event(EventKind::HostDrift, now, comment)], now)?;
    spool.sync()?;
    Ok(())
}

/// What was taken away, in words.
pub fn describe(lowered: &[Lowered]) -> String {
    let of_version = |lowered: &Lowered| match lowered.programs.as_slice() {
        [] => format!("ABI version {}, no program of which was attached", lowered.abi_version),
        programs => format!("ABI version {} ({})", lowered.abi_version, programs.join(", ")),
    };
    lowered.iter().map(of_version).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_is_named() {
        let lowered = |abi_version, programs: &[&str]| Lowered {
            abi_version,
            programs: programs.iter().map(ToString::to_string).collect(),
        };
        let text = describe(&[lowered(1, &["connect4", "egress"]), lowered(2, &[])]);
        assert_eq!(text, "ABI version 1 (connect4, egress); ABI version 2, no program of which was attached");
    }
}
