//! Lifting the gate, for good and on the record.

use proto::types::EventKind;

use crate::canary;
use crate::clock::{Instants, now_boot_ns};
use crate::config::Config;
use crate::kernel;
use crate::memory::MemoryFile;
use crate::observe::{self, Cgroups};
use crate::rules::audit::{Names, Numbering};
use crate::run::RunError;
use crate::spool::Spool;

/// Reads what the kernel still has to say, lifts the gate and writes down that it was lifted; the next agent ships it.
/// Returns whether there was a gate. The caller holds the state directory's lock.
pub fn detach(config: &Config) -> Result<bool, RunError> {
    let boot_id = observe::boot_id()?;
    let mut cgroups = Cgroups::new(observe::cgroup_root()?);
    let mut spool = Spool::open(&config.state_dir.join("spool"), boot_id, config.spool_max_bytes)?;
    let Some(rings) = kernel::open_rings(&config.kernel.pin_dir)? else { return Ok(false) };

    let mut names = Names::default();
    if let Some((_, set)) = MemoryFile::new(&config.state_dir, boot_id).read(now_boot_ns()).grants {
        names.learn(&set.resources, &set.subjects);
    }
    let mut numbering = Numbering::new(config.host.clone(), boot_id, spool.next_sequence());
    let now = Instants::now();
    for ring in [rings.allow, rings.deny] {
        for record in ring.filter(|record| record.resource != canary::NUMBER) {
            let process = cgroups.details(record.pid, record.cgroup_id, record.boot_ns);
            let event = numbering.verdict(&record, &names, process, now.wall_at(record.boot_ns));
            spool.append(&[event], now.wall())?;
        }
    }
    for record in rings.closed.filter(|record| record.resource != canary::NUMBER) {
        let event = numbering.closed(&record, &names, now.wall_at(record.boot_ns));
        spool.append(&[event], now.wall())?;
    }
    canary::remove_cgroup(cgroups.root());
    let lifted = kernel::lower(&config.kernel.pin_dir)?;
    let comment = "the gate was lifted with `portcullis-agent detach`".to_owned();
    let event = numbering.host_event(EventKind::AgentDetached, Instants::now().wall(), comment);
    spool.append(&[event], now.wall())?;
    spool.sync()?;
    Ok(lifted)
}
