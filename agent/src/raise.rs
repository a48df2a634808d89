//! Putting up the gate at boot, before there is a network: what was protected when the host went down is closed to everybody.
//!
//! Owns: what a gate without grants holds. Must not know: the control plane; it is the agent that asks there, later.
//!
//! Invariant: a gate that is up is left as it is, for it knows more than this does.

use proto::types::Refused;

use crate::addresses::LocalAddresses;
use crate::canary;
use crate::clock::now_boot_ns;
use crate::config::Config;
use crate::kernel::{self, Demand, Gate, KernelError, LsmSettings, Settings};
use crate::memory::{MemoryError, MemoryFile};
use crate::observe::{self, ObserveError};
use crate::rules::local;
use crate::rules::plan::{Entries, Wanted, reconcile};

/// Why the gate is not up, or not whole.
#[derive(Debug, thiserror::Error)]
pub enum RaiseError {
    /// What was protected is not known.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// This host cannot be observed.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel cannot take everything; what it took is closed.
    #[error("the gate is up, but not whole: {0}")]
    NotWhole(String),
    /// The kernel took everything, and lets the canary through.
    #[error("the gate is up, and does not deny: {0}")]
    Open(String),
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raised {
    /// A gate is up already.
    WasUp,
    /// The gate is up, and nobody passes to this many resources.
    Shut(usize),
}

/// Puts up a gate over the resources of the last grant set, whatever boot it is from, and with no grant at all. Without such
/// a set, as before the first start of the agent, it protects nothing yet. Must be called within a tokio runtime; the caller
/// holds the state directory's lock.
///
/// # Errors
/// If the set is there and cannot be used, nothing is put up: what should be protected is not known.
pub fn raise(config: &Config) -> Result<Raised, RaiseError> {
    if kernel::is_up(&config.kernel.pin_dir)? {
        return Ok(Raised::WasUp);
    }
    let memory = MemoryFile::new(&config.state_dir, observe::boot_id()?).try_read(now_boot_ns())?;
    let resources = memory.grants.map(|(_, set)| set.resources).unwrap_or_default();
    let protected = resources.len();

    // Without the LSM tier: whoever gets this host its addresses is exempt from it by a cgroup that is not there yet.
    // Nor with the tamper tier, which is the agent's to keep.
    let settings = Settings { lsm: LsmSettings::default(), tamper: Demand::Off, ..config.kernel.clone() };
    let (mut gate, _streams) = Gate::raise(&settings, &observe::cgroup_root()?)?;
    let mut entries: Entries = gate.read()?;
    // Addresses that come later are the agent's to follow; those that are local everywhere are there from the start.
    let mut addresses = LocalAddresses::default();
    addresses.look(true);
    let mut resources = local::expand(resources, addresses.known());
    resources.insert(0, canary::resource(canary::SILENT_PORT));
    let wanted = Wanted::guarding(resources);
    let slots_max = gate.slots_max();
    let outcome = reconcile(&mut entries, &wanted, slots_max, now_boot_ns(), |write| gate.write(write));
    let refused = |refused: &Refused| format!("{:?}: {}", refused.item, refused.error);
    let problems: Vec<String> = outcome.refused.iter().map(refused).chain(outcome.failed).collect();
    if !problems.is_empty() {
        return Err(RaiseError::NotWhole(problems.join("; ")));
    }
    // By the errors alone: the records are the agent's to read.
    let flaws = canary::judge_tries(&canary::try_shut(canary::SILENT_PORT), &[]);
    match flaws.into_iter().find(|flaw| flaw.is_grave) {
        Some(flaw) => Err(RaiseError::Open(flaw.text)),
        None => Ok(Raised::Shut(protected)),
    }
}
