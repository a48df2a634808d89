//! The pods of this node, as the API server tells of them.
//!
//! Owns: what is believed of them, and until when. Must not know: the network, cgroups.
//!
//! Invariant: what was told once is believed until something else is told. A pod's uid is never another pod's, and its service
//! account never changes, so that what is bound stays right while the API server is silent; labels may be older than they seem.

use std::collections::BTreeMap;

use proto::types::PodSelector;

use super::layouts::PodUid;

/// A pod, as far as selectors ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// In the name of its cgroup, too.
    pub uid: PodUid,
    /// Its namespace.
    pub namespace: String,
    /// The service account that it runs as.
    pub service_account: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// News of pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodsChange {
    /// These are all.
    Listed(Vec<Pod>),
    /// This one came, or is another now.
    Applied(Pod),
    /// This one is gone.
    Deleted(PodUid),
}

/// The pods of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    known: BTreeMap<PodUid, Pod>,
    left_out: bool,
}

impl Pods {
    /// How many are remembered: a kubelet runs 110 unless it is told otherwise, and hardly ever more than 500.
    pub const MAX: usize = 4096;

    /// Takes over what was told. Returns whether anything is another than before.
    pub fn apply(&mut self, change: PodsChange) -> bool {
        match change {
            PodsChange::Listed(pods) => {
                let before = std::mem::take(self);
                for pod in pods {
                    self.insert(pod);
                }
                *self != before
            }
            PodsChange::Applied(pod) => self.insert(pod),
            PodsChange::Deleted(uid) => self.known.remove(&uid).is_some(),
        }
    }

    fn insert(&mut self, pod: Pod) -> bool {
        if self.known.len() >= Self::MAX && !self.known.contains_key(&pod.uid) {
            return !std::mem::replace(&mut self.left_out, true);
        }
        self.known.insert(pod.uid.clone(), pod.clone()).is_none_or(|before| before != pod)
    }

    /// Whether there were more than can be remembered. Those are nobody's.
    pub fn left_out(&self) -> bool {
        self.left_out
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Pod> {
        self.known.values()
    }

    /// Those that a selector stands for.
    pub fn matching(&self, wanted: &PodSelector) -> impl Iterator<Item = &PodUid> {
        let is_wanted = move |pod: &&Pod| {
            wanted
                .matches(&pod.namespace, &pod.service_account, |key| pod.labels.get(key).map(String::as_str))
        };
        self.known.values().filter(is_wanted).map(|pod| &pod.uid)
    }
}

#[cfg(test)]
mod tests {
    use proto::types::Selector;

    use super::*;

    fn pod(number: u32, account: &str) -> Pod {
        Pod {
            uid: PodUid::parse(&format!("{number:032x}")).expect("valid"),
            namespace: "prod".to_owned(),
            service_account: account.to_owned(),
            labels: BTreeMap::new(),
        }
    }

    fn of_account(pods: &Pods, account: &str) -> usize {
        let Ok(Selector::Kubernetes(wanted)) = format!("kubernetes:prod/{account}").parse() else {
            panic!("no selector of pods: {account}")
        };
        pods.matching(&wanted).count()
    }

    #[test]
    fn what_was_told_last_counts() {
        let mut pods = Pods::default();
        assert!(pods.apply(PodsChange::Listed(vec![pod(1, "web"), pod(2, "db")])));
        assert!(!pods.apply(PodsChange::Listed(vec![pod(2, "db"), pod(1, "web")])));
        assert!(!pods.apply(PodsChange::Applied(pod(1, "web"))));
        assert!(pods.apply(PodsChange::Applied(pod(3, "web"))));
        assert_eq!(of_account(&pods, "web"), 2);
        assert!(pods.apply(PodsChange::Deleted(pod(1, "web").uid)));
        assert!(!pods.apply(PodsChange::Deleted(pod(1, "web").uid)));
        assert_eq!(of_account(&pods, "web"), 1);
        // What a new list does not have went while nobody looked.
        assert!(pods.apply(PodsChange::Listed(vec![pod(2, "db")])));
        assert_eq!((of_account(&pods, "web"), of_account(&pods, "db")), (0, 1));
    }

    #[test]
    fn what_is_too_many_is_left_out_and_told() {
        let mut pods = Pods::default();
        let most = u32::try_from(Pods::MAX).expect("few");
        pods.apply(PodsChange::Listed((0..most).map(|number| pod(number, "web")).collect()));
        assert!(!pods.left_out());
        assert!(pods.apply(PodsChange::Applied(pod(most, "web"))));
        assert!(pods.left_out());
        assert!(pods.apply(PodsChange::Applied(pod(0, "db"))));
        assert_eq!((of_account(&pods, "web"), of_account(&pods, "db")), (Pods::MAX - 1, 1));
        pods.apply(PodsChange::Listed(Vec::new()));
        assert!(!pods.left_out());
    }
}
