//! What is known of this node's pods, kept over a restart of the agent: so that nobody's pods are unbound until the API server
//! has been heard again.
//!
//! Owns: one file, written in one step. Must not know: what pods are for.
//!
//! Invariant: of another boot nothing is believed. What is lost is asked for again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::rules::layouts::PodUid;
use crate::rules::pods::{Pod, Pods};

/// The file.
pub struct PodsFile {
    path: PathBuf,
    boot_id: Uuid,
}

/// More is not read: [`Pods::MAX`] pods with all the labels that usual ones have.
const BYTES_MAX: u64 = 16 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
struct Content {
    boot_id: String,
    pods: Vec<Remembered>,
}

#[derive(Serialize, Deserialize)]
struct Remembered {
    uid: String,
    namespace: String,
    service_account: String,
    labels: BTreeMap<String, String>,
}

impl PodsFile {
    /// The file in `state_dir`, for the kernel that runs now.
    pub fn new(state_dir: &Path, boot_id: Uuid) -> Self {
        Self { path: state_dir.join("pods.json"), boot_id }
    }

    /// What it says; nothing, with a line in the log, if it cannot be used.
    pub fn read(&self) -> Vec<Pod> {
        match self.try_read() {
            Ok(pods) => pods,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "starting without the last known pods");
                Vec::new()
            }
        }
    }

    fn try_read(&self) -> io::Result<Vec<Pod>> {
        let mut bytes = Vec::new();
        File::open(&self.path)?.take(BYTES_MAX).read_to_end(&mut bytes)?;
        let content: Content = serde_json::from_slice(&bytes)?;
        let is_current = content.boot_id == self.boot_id.to_string();
        let pods = content.pods.into_iter().filter(|_| is_current);
        Ok(pods.filter_map(Remembered::pod).collect())
    }

    /// Replaces it. What a crash of the machine loses of it is of another boot then.
    pub fn write(&self, pods: &Pods) -> io::Result<()> {
        let pods = pods.iter().map(Remembered::of).collect();
        let content = Content { boot_id: self.boot_id.to_string(), pods };
        let beside = self.path.with_extension("new");
        fs::write(&beside, serde_json::to_vec(&content)?)?;
        fs::rename(beside, &self.path)
    }
}

impl Remembered {
    fn of(pod: &Pod) -> Self {
        Self {
            uid: pod.uid.as_str().to_owned(),
            namespace: pod.namespace.clone(),
            service_account: pod.service_account.clone(),
            labels: pod.labels.clone(),
        }
    }

    fn pod(self) -> Option<Pod> {
        let uid = PodUid::parse(&self.uid)?;
        Some(Pod {
            uid,
            namespace: self.namespace,
            service_account: self.service_account,
            labels: self.labels,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::pods::PodsChange;

    #[test]
    fn what_was_written_is_read_until_the_next_boot() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (boot, next_boot) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let file = PodsFile::new(dir.path(), boot);
        assert_eq!(file.read(), []);
        let pod = Pod {
            uid: PodUid::parse("0f8fad5b-d9cb-469f-a165-70867728950e").expect("valid"),
            namespace: "prod".to_owned(),
            service_account: "web".to_owned(),
            labels: [("app".to_owned(), "shop".to_owned())].into(),
        };
        let mut pods = Pods::default();
        pods.apply(PodsChange::Listed(vec![pod.clone()]));
        file.write(&pods).expect("written");
        assert_eq!(file.read(), [pod]);
        assert_eq!(PodsFile::new(dir.path(), next_boot).read(), []);
        for damaged in ["", "{}", "nonsense", r#"{"boot_id":"x","pods":[{}]}"#] {
            fs::write(dir.path().join("pods.json"), damaged).expect("written");
            assert_eq!(file.read(), [], "{damaged}");
        }
    }
}
