//! What this machine can do, so that a test that cannot run is skipped by name, never passed.

use std::sync::OnceLock;

use nix::unistd::Uid;

/// Why kernel tests cannot run here; None: they can.
pub fn cannot_enforce() -> Option<&'static str> {
    static REASON: OnceLock<Option<String>> = OnceLock::new();
    let reason = REASON.get_or_init(|| {
        if !Uid::effective().is_root() {
            return Some("not root".to_owned());
        }
        if let Err(error) = agent::observe::cgroup_root() {
            return Some(error.to_string());
        }
        let error = agent::kernel::program_costs().err()?;
        // With what the verifier said: nobody can look again on a machine that is gone.
        Some(format!("the kernel programs do not load: {:#}", anyhow::Error::from(error)))
    });
    reason.as_deref()
}
