//! Whether this host is enforcing, from what was just proven and what is known to be missing.
//!
//! Owns: the words of a report. Must not know: how anything was found out.

use std::collections::BTreeMap;

use proto::types::{HostState, Refused, RefusedItem, Report, Selector, SubjectNumber};

use crate::kernel::Missing;
use crate::rules::workloads::Doubt;

/// Something that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// Something is, or was until it was put right just now, let through that must not be. Otherwise the gate is shut, and
    /// something else is missing.
    pub is_grave: bool,
    /// What it is, for people.
    pub text: String,
}

impl Flaw {
    /// The host is not enforcing.
    pub fn grave(text: String) -> Self {
        Self { is_grave: true, text }
    }

    /// The host is degraded.
    pub fn lesser(text: String) -> Self {
        Self { is_grave: false, text }
    }
}

/// What the report is made of.
#[derive(Debug, Default)]
pub struct Health {
    /// What the last proofs showed; None: there is none, or none that is recent.
    pub canary: Option<Vec<Flaw>>,
    /// What the last look at programs, links, pins and maps showed.
    pub gate: Vec<Flaw>,
    /// Parts of the gate that this kernel cannot have.
    pub missing: Vec<Missing>,
    /// What the kernel could not take.
    pub refused: Vec<Refused>,
    /// Removals that failed.
    pub failed: Vec<String>,
    /// Why a gate of another ABI version still decides; None: none does.
    pub waiting: Option<String>,
    /// Cgroups that several subjects claim.
    pub contested: BTreeMap<u64, Vec<SubjectNumber>>,
    /// Selectors that bind nothing, though something is there.
    pub doubts: BTreeMap<(SubjectNumber, Selector), Doubt>,
    /// Why cgroups may be there that nobody knows; None: all are known.
    pub cgroups: Option<&'static str>,
    /// Why it is not known which pods run here now; None: it is, or nobody asks.
    pub pods: Option<String>,
    /// Pods run here that a subject may have, and nobody asks whose they are.
    pub unknown_pods: bool,
    /// Why the grant set cannot be written down; None: it is.
    pub memory: Option<String>,
    /// Why no program can run a command as a subject; None: it can, or nobody wants that.
    pub runs: Option<String>,
}

impl Health {
    /// The report. A grave flaw, or nothing proven, is not enforcing; anything else that is missing is degraded.
    ///
    /// `spool_error` is why events cannot be kept; None: they can.
    pub fn report(&self, spool_error: Option<&str>) -> Report {
        let unproven = Flaw::grave("nothing is proven yet".to_owned());
        let canary = self.canary.as_deref().unwrap_or(std::slice::from_ref(&unproven));
        let (grave, lesser): (Vec<&Flaw>, Vec<&Flaw>) =
            self.gate.iter().chain(canary).partition(|flaw| flaw.is_grave);
        let texts = |flaws: Vec<&Flaw>| flaws.into_iter().map(|flaw| flaw.text.clone()).collect::<Vec<_>>();
        let (grave, mut missing) = (texts(grave), texts(lesser));
        missing.extend(self.missing.iter().map(|Missing { part, why }| format!("without {part} ({why})")));
        missing.extend(self.refused.iter().map(refused));
        missing.extend(self.failed.iter().cloned());
        let waiting = self.waiting.as_ref();
        missing.extend(waiting.map(|why| format!("the gate of another ABI version decides, {why}")));
        missing.extend(self.contested.iter().map(|(id, subjects)| {
            format!("cgroup {id} is claimed by {} subjects, and so is nobody's", subjects.len())
        }));
        missing.extend(self.doubts.iter().map(|((subject, selector), doubt)| {
            format!("`{selector}` of subject {subject} binds nothing: {doubt}")
        }));
        missing.extend(self.cgroups.map(ToOwned::to_owned));
        missing.extend(self.pods.as_ref().map(|why| format!("new pods are not bound: {why}")));
        let unknown = "no pod is bound: the agent's configuration has no `[kubernetes]`";
        missing.extend(self.unknown_pods.then(|| unknown.to_owned()));
        let memory = self.memory.as_ref();
        missing.extend(
            memory.map(|why| format!("the grant set cannot be written down, and is not confirmed: {why}")),
        );
        missing.extend(self.runs.as_ref().map(|why| format!("nobody can run a command as a subject: {why}")));
        missing.extend(spool_error.map(ToOwned::to_owned));
        match (grave.is_empty(), missing.is_empty()) {
            (false, _) => report(HostState::NotEnforcing, [grave, missing].concat()),
            (true, false) => report(HostState::Degraded, missing),
            (true, true) => report(HostState::Enforcing, missing),
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

    #[track_caller]
    fn check(health: Health, state: HostState, detail: &str) {
        assert_eq!(health.report(None), Report { state, detail: detail.to_owned() });
    }

    #[test]
    fn only_what_is_proven_is_claimed() {
        check(Health::default(), HostState::NotEnforcing, "nothing is proven yet");
        let proven = || Health { canary: Some(Vec::new()), ..Health::default() };
        check(proven(), HostState::Enforcing, "");
        let open = Flaw::grave("sendmsg6 lets the canary through".to_owned());
        let silent = Flaw::lesser("connect4 left no record".to_owned());
        check(
            Health {
                canary: Some(vec![silent.clone(), open]),
                failed: vec!["x".to_owned()],
                ..Health::default()
            },
            HostState::NotEnforcing,
            "sendmsg6 lets the canary through; connect4 left no record; x",
        );
        check(
            Health { canary: Some(vec![silent]), ..Health::default() },
            HostState::Degraded,
            "connect4 left no record",
        );
        let detached = Flaw::grave("connect4 was detached; put back".to_owned());
        check(
            Health { gate: vec![detached], ..proven() },
            HostState::NotEnforcing,
            "connect4 was detached; put back",
        );
    }

    #[test]
    fn whatever_is_missing_is_told() {
        let proven = || Health { canary: Some(Vec::new()), ..Health::default() };
        let item = RefusedItem::Resource(7.try_into().expect("not 0"));
        let refused = vec![Refused { item, error: "map RESOURCES is full".to_owned() }];
        check(
            Health { refused, ..proven() },
            HostState::Degraded,
            "resource 7 is not protected: map RESOURCES is full",
        );
        let contested = [(42, vec![1.try_into().expect("not 0"), 2.try_into().expect("not 0")])].into();
        check(
            Health { contested, ..proven() },
            HostState::Degraded,
            "cgroup 42 is claimed by 2 subjects, and so is nobody's",
        );
        let selector = "systemd-unit:a.service".parse().expect("valid");
        let doubts = [((7.try_into().expect("not 0"), selector), Doubt::SeveralPlaces(2))].into();
        check(
            Health { doubts, ..proven() },
            HostState::Degraded,
            "`systemd-unit:a.service` of subject 7 binds nothing: it is at 2 places: remove the cgroups that nobody uses any \
             more",
        );
        let pods = Some("the API server cannot be reached".to_owned());
        check(
            Health { pods, unknown_pods: true, runs: Some("no socket".to_owned()), ..proven() },
            HostState::Degraded,
            "new pods are not bound: the API server cannot be reached; no pod is bound: the agent's configuration has no \
             `[kubernetes]`; nobody can run a command as a subject: no socket",
        );
        let waiting = Some("until the control plane has been heard".to_owned());
        let told = "the gate of another ABI version decides, until the control plane has been heard";
        check(Health { waiting: waiting.clone(), ..proven() }, HostState::Degraded, told);
        // Of that gate this agent has no proof.
        let unproven = format!("nothing is proven yet; {told}");
        check(Health { waiting, ..Health::default() }, HostState::NotEnforcing, &unproven);
        let missing = vec![Missing { part: "the check of senders", why: "no such program".to_owned() }];
        check(
            Health { missing, ..proven() },
            HostState::Degraded,
            "without the check of senders (no such program)",
        );
        let memory = Some("No space left on device (os error 28)".to_owned());
        check(
            Health { memory, ..proven() },
            HostState::Degraded,
            "the grant set cannot be written down, and is not confirmed: No space left on device (os error 28)",
        );
        assert_eq!(proven().report(Some("full")), report(HostState::Degraded, vec!["full".to_owned()]));
    }
}
