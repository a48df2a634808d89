//! Issuers that vouch for workloads, and clusters that vouch for their nodes.
//!
//! Owns: whose keys a token is tried with, and how many may try. Must not know: what claims mean (`rules/workload`), who is in
//! the directory.

use std::time::Duration;

use proto::types::{Labels, ProviderName};

use super::oidc::{FetchError, Issuer, Limits, unproven_issuer};
use crate::config::{KubernetesCluster, WorkloadIssuer};
use crate::rules::workload::{Expected, ExpectedAgent};

/// All of a configuration.
#[derive(Debug)]
pub struct Vouchers {
    issuers: Vec<Vouching<Expected>>,
    clusters: Vec<Vouching<ExpectedAgent>>,
    issuer_limits: Limits,
    cluster_limits: Limits,
}

/// One of them.
#[derive(Debug)]
pub struct Vouching<E> {
    /// Its name here.
    pub name: ProviderName,
    /// Whose signature its tokens have.
    pub issuer: Issuer,
    /// What its tokens have to say.
    pub expected: E,
    /// Of an issuer: how long a session lasts.
    pub session_lifetime: Duration,
    /// Of a cluster: what its hosts are labelled with.
    pub labels: Labels,
}

/// Why no keys are tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NobodyVouches {
    /// It names no issuer, or one that is not known.
    Unknown,
    /// Too many try with this one.
    TooMany,
}

impl Vouchers {
    /// Asks nobody yet.
    pub fn new(issuers: Vec<WorkloadIssuer>, clusters: Vec<KubernetesCluster>) -> Result<Self, FetchError> {
        let issuer = |WorkloadIssuer { name, keys, expected, session_lifetime }| {
            let (issuer, labels) = (Issuer::new(keys)?, Labels::default());
            Ok(Vouching { name, issuer, expected, session_lifetime, labels })
        };
        let cluster = |KubernetesCluster { name, keys, expected, labels }| {
            let (issuer, session_lifetime) = (Issuer::new(keys)?, Duration::ZERO);
            Ok(Vouching { name, issuer, expected, session_lifetime, labels })
        };
        let issuers = issuers.into_iter().map(issuer).collect::<Result<Vec<_>, _>>()?;
        let clusters = clusters.into_iter().map(cluster).collect::<Result<Vec<_>, _>>()?;
        let issuer_limits = Limits::new(issuers.iter().map(|known| &known.name));
        let cluster_limits = Limits::new(clusters.iter().map(|known| &known.name));
        Ok(Self { issuers, clusters, issuer_limits, cluster_limits })
    }

    /// The issuer whose token it says to be, if one more may try with it.
    pub fn issuer(&self, token: &str) -> Result<&Vouching<Expected>, NobodyVouches> {
        of(&self.issuers, &self.issuer_limits, token)
    }

    /// The same of clusters.
    pub fn cluster(&self, token: &str) -> Result<&Vouching<ExpectedAgent>, NobodyVouches> {
        of(&self.clusters, &self.cluster_limits, token)
    }
}

fn of<'a, E>(
    known: &'a [Vouching<E>],
    limits: &Limits,
    token: &str,
) -> Result<&'a Vouching<E>, NobodyVouches> {
    let said = unproven_issuer(token).ok_or(NobodyVouches::Unknown)?;
    let vouching = known.iter().find(|known| known.issuer.as_str() == said).ok_or(NobodyVouches::Unknown)?;
    match limits.allow_sign_in(&vouching.name) {
        true => Ok(vouching),
        false => Err(NobodyVouches::TooMany),
    }
}
