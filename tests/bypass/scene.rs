//! What a probe is told.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The places and names of one attempt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Scene {
    /// The technique's name.
    pub(crate) technique: String,
    /// Where the marker is to arrive.
    pub(crate) to: SocketAddr,
    /// The same service beside it, which nobody protects.
    pub(crate) decoy: SocketAddr,
    /// Name of the destination if it is a unix socket; a leading `@` stands for the abstract name space.
    pub(crate) unix: String,
    /// What is to arrive.
    pub(crate) marker: String,
    /// Of the sender.
    pub(crate) cgroup: PathBuf,
    /// Of a subject that always has a grant.
    pub(crate) granted_cgroup: PathBuf,
    /// Of nobody.
    pub(crate) nobodys_cgroup: PathBuf,
    /// Network namespace to start in; None: that of the runner's thread.
    pub(crate) namespace: Option<PathBuf>,
    /// Where the lender listens.
    pub(crate) lender: Option<PathBuf>,
    /// Whether to wait, with the socket ready, for the grant to end.
    pub(crate) pauses: bool,
}

impl Scene {
    pub(crate) fn to_text(&self) -> Result<String> {
        serde_json::to_string(self).context("a scene as JSON")
    }

    pub(crate) fn from_text(text: &str) -> Result<Self> {
        serde_json::from_str(text).context("a scene is JSON")
    }
}
