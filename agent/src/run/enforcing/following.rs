//! What comes and goes on this host: cgroups, pods, addresses, paths of unix sockets.
//!
//! Owns: when each is looked at, and whose each cgroup is. Must not know: what a selector means, which is `rules/workloads`'.

use std::collections::BTreeSet;

use proto::types::Selector;

use super::Enforcing;
use crate::kubernetes::PodsNews;
use crate::observe::Cgroups;
use crate::rules::pods::Pods;
use crate::rules::workloads;

impl Enforcing {
    /// Follows what came and went on this host: cgroups and addresses. `again`: also asks for what there was no notice of.
    /// Returns whether anything changed.
    pub(in crate::run) fn follow(&mut self, again: bool) -> bool {
        let rebound = self.follow_cgroups(again);
        let elsewhere = self.grants.applied().is_some() && self.look_elsewhere(again);
        if elsewhere {
            self.reconcile();
        }
        rebound || elsewhere
    }

    /// The same of cgroups only.
    pub(in crate::run) fn follow_cgroups(&mut self, again: bool) -> bool {
        let came_or_went = self.cgroups.look(again);
        if came_or_went || again {
            self.follow_exempt();
        }
        came_or_went && self.follow_bindings()
    }

    /// The API server told of this node's pods. Returns whether anything changed.
    pub(in crate::run) fn follow_pods(&mut self, news: PodsNews) -> bool {
        let before = self.health.pods.take();
        let moved = match news {
            PodsNews::Changed(change) => self.cgroups.pods_mut().apply(change),
            PodsNews::Unreachable(why) => {
                self.health.pods = Some(why);
                false
            }
        };
        if self.health.pods.is_none() && self.cgroups.pods_mut().left_out() {
            self.health.pods = Some(format!("of more than {} pods some are not known", Pods::MAX));
        }
        if moved {
            self.remember_pods();
            self.follow_exempt();
        }
        let rebound = moved && self.follow_bindings();
        rebound || self.health.pods != before
    }

    fn remember_pods(&mut self) {
        let pods = self.cgroups.pods_mut();
        if let Some(Err(error)) = self.pods_file.as_ref().map(|file| file.write(pods)) {
            tracing::error!(%error, "cannot write down the pods; a restart would wait for the API server");
        }
    }

    pub(super) fn follow_bindings(&mut self) -> bool {
        let changed = self.grants.applied().is_some() && self.rebind();
        if changed {
            self.reconcile();
        }
        changed
    }

    pub(super) fn follow_exempt(&mut self) {
        let exempt = exempt(&self.cgroups, &self.exempt);
        if let Err(error) = self.gate.exempt(&exempt) {
            tracing::error!(%error, "cannot change whose processes may have sockets of any family");
        }
    }

    /// Looks at everything as a new set wants it.
    pub(super) fn look_for_set(&mut self) {
        let selectors = self.grants.subjects().iter().flat_map(|subject| &subject.selectors);
        self.cgroups.follow(self.exempt.iter().chain(selectors));
        self.cgroups.look(false);
        self.rebind();
        self.look_elsewhere(false);
    }

    /// Whose each cgroup is now. Returns whether that is another than before.
    pub(super) fn rebind(&mut self) -> bool {
        let bindings = workloads::bind(self.grants.subjects(), |selector| self.cgroups.find(selector));
        let unknown_pods = self.unknown_pods();
        let changed = bindings.cgroups != self.bound
            || bindings.contested != self.health.contested
            || bindings.doubts != self.health.doubts
            || unknown_pods != self.health.unknown_pods;
        self.bound = bindings.cgroups;
        self.health.contested = bindings.contested;
        self.health.doubts = bindings.doubts;
        self.health.unknown_pods = unknown_pods;
        changed
    }

    /// Whether pods run here that a subject may have, and nobody tells whose they are.
    fn unknown_pods(&self) -> bool {
        let mut selectors = self.grants.subjects().iter().flat_map(|subject| &subject.selectors);
        self.pods_file.is_none()
            && self.cgroups.has_pods()
            && selectors.any(|selector| matches!(selector, Selector::Kubernetes(_)))
    }

    /// Returns whether addresses or paths changed since the last look.
    pub(super) fn look_elsewhere(&mut self, again: bool) -> bool {
        let is_anything_local = self.grants.resources().iter().any(|resource| resource.local);
        let moved = is_anything_local && self.addresses.look(again);
        let rerouted = self.unix_sockets.look(self.grants.resources(), again);
        moved || rerouted
    }
}

/// The cgroups of these selectors, all of which mean the same. What could be several things is not exempt.
pub(in crate::run) fn exempt(cgroups: &Cgroups, selectors: &[Selector]) -> BTreeSet<u64> {
    selectors.iter().filter_map(|selector| cgroups.find(selector).ok()).flatten().collect()
}
