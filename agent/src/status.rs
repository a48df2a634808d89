//! Whether this host is enforcing, from what was just proven and what is known to be missing.
//!
//! Owns: the words of a report. Must not know: how anything was found out.

use std::collections::BTreeMap;

use agent_ebpf::abi::Hook;
use proto::types::{HostState, Refused, RefusedItem, Report, SubjectNumber};

use crate::canary::Finding;
use crate::kernel::Missing;

/// What the report is made of.
#[derive(Debug, Default)]
pub struct Health {
    /// Of the last canary; None: it has not run yet.
    pub canary: Option<[(Hook, Finding); 4]>,
    /// Parts of the gate that this kernel cannot have.
    pub missing: Vec<Missing>,
    /// What the kernel could not take.
    pub refused: Vec<Refused>,
    /// Removals that failed.
    pub failed: Vec<String>,
    /// Cgroups that several subjects claim.
    pub contested: BTreeMap<u64, Vec<SubjectNumber>>,
}

impl Health {
    /// The report. An open hook, or a canary that has not run, is not enforcing; anything else that is missing is degraded.
    ///
    /// `spool_error` is why events cannot be kept; None: they can.
    pub fn report(&self, spool_error: Option<&str>) -> Report {
        let Some(canary) = &self.canary else {
            return report(HostState::NotEnforcing, vec!["nothing is proven yet".to_owned()]);
        };
        let open: Vec<String> = canary
            .iter()
            .filter(|(_, finding)| *finding == Finding::Open)
            .map(|(hook, _)| format!("{} lets the canary through", hook.as_str()))
            .collect();
        if !open.is_empty() {
            return report(HostState::NotEnforcing, open);
        }
        let mut missing = Vec::new();
        missing.extend(self.missing.iter().map(|Missing { part, why }| format!("without {part} ({why})")));
        missing.extend(self.refused.iter().map(refused));
        missing.extend(self.failed.iter().cloned());
        missing.extend(self.contested.iter().map(|(id, subjects)| {
            format!("cgroup {id} is claimed by {} subjects, and so is nobody's", subjects.len())
        }));
        missing.extend(spool_error.map(ToOwned::to_owned));
        match missing.is_empty() {
            true => report(HostState::Enforcing, missing),
            false => report(HostState::Degraded, missing),
        }
    }
}

fn report(state: HostState, parts: Vec<String>) -> Report {
    Report { state, detail: parts.join("; ") }
}

fn refused(refused: &Refused) -> String {
    match refused.item {
        RefusedItem::Resource(number) => format!("resource {number} is not protected: {}", refused.error),
        RefusedItem::Subject(number) => {
            format!("subject {number} has cgroups that are not bound: {}", refused.error)
        }
        RefusedItem::Grant(id) => format!("grant {id} lets nobody through: {}", refused.error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canary(finding: Finding) -> Option<[(Hook, Finding); 4]> {
        Some([
            (Hook::Connect4, Finding::Shut),
            (Hook::Connect6, Finding::Shut),
            (Hook::Sendmsg4, Finding::Shut),
            (Hook::Sendmsg6, finding),
        ])
    }

    #[track_caller]
    fn check(health: Health, state: HostState, detail: &str) {
        assert_eq!(health.report(None), Report { state, detail: detail.to_owned() });
    }

    #[test]
    fn only_what_is_proven_is_claimed() {
        check(Health::default(), HostState::NotEnforcing, "nothing is proven yet");
        let shut = || Health { canary: canary(Finding::Shut), ..Health::default() };
        check(shut(), HostState::Enforcing, "");
        check(Health { canary: canary(Finding::Impossible), ..Health::default() }, HostState::Enforcing, "");
        let open =
            Health { canary: canary(Finding::Open), failed: vec!["x".to_owned()], ..Health::default() };
        check(open, HostState::NotEnforcing, "sendmsg6 lets the canary through");
        let missing = vec![Missing { part: "the check of senders", why: "EINVAL".to_owned() }];
        check(Health { missing, ..shut() }, HostState::Degraded, "without the check of senders (EINVAL)");
        let item = RefusedItem::Resource(7.try_into().expect("not 0"));
        let refused = vec![Refused { item, error: "map RESOURCES is full".to_owned() }];
        check(
            Health { refused, ..shut() },
            HostState::Degraded,
            "resource 7 is not protected: map RESOURCES is full",
        );
        let contested = [(42, vec![1.try_into().expect("not 0"), 2.try_into().expect("not 0")])].into();
        check(
            Health { contested, ..shut() },
            HostState::Degraded,
            "cgroup 42 is claimed by 2 subjects, and so is nobody's",
        );
        assert_eq!(shut().report(Some("full")), report(HostState::Degraded, vec!["full".to_owned()]));
    }
}
