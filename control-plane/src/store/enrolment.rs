//! How hosts prove themselves: the rows of join tokens and certificates.

use proto::types::{EventKind, HostName, Labels, ProviderName, Timestamp};

use super::sign_ins::forget_what_is_over;
use super::sql::{self, Transaction};
use super::tx::{Tx, caused_by};
use super::{Store, StoreError, decode};
use crate::identity::{HostCertificate, Serial, TokenHash};
use crate::rules::Refusal;
use crate::rules::actor::Actor;
use crate::rules::enrolment::{self, Presented, Standing};
use crate::rules::workload::ProvenNode;

/// A join token as it is kept.
#[derive(Clone, Debug)]
pub struct NewJoinToken {
    /// Of its secret.
    pub hash: TokenHash,
    /// It counts until then.
    pub expires: Timestamp,
}

/// A certificate as it is kept.
#[derive(Clone, Copy, Debug)]
pub struct NewCertificate {
    /// By which it is known.
    pub serial: Serial,
    /// It counts until then.
    pub expires: Timestamp,
}

/// What is asked of the record when a cluster vouches for one of its nodes.
#[derive(Clone, Debug)]
pub struct ClusterJoin<'a> {
    /// What the token proves.
    pub node: &'a ProvenNode,
    /// Which cluster.
    pub cluster: &'a ProviderName,
    /// Of a host that is new.
    pub labels: &'a Labels,
    /// By what the token is known.
    pub used: TokenHash,
}

/// How often the token of one pod may be used: an answer can be lost, and an agent that starts anew may find no other one yet.
const CLUSTER_TOKEN_USES_MAX: u32 = 3;

impl Store {
    /// Gives a host this join token and ends the one before.
    pub async fn issue_join_token(
        &self,
        host: &HostName,
        token: &NewJoinToken,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        tx.issue_join_token(host, token, actor, now).await?;
        tx.commit().await
    }

    /// Takes a join token away and gives its host a certificate for it. What is refused changes nothing.
    pub async fn join(
        &self,
        host: &HostName,
        secret: &TokenHash,
        certificate: &NewCertificate,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let row: Option<(String, i64)> = sql::query_as(
            "SELECT hosts.name, join_tokens.expires_ms FROM join_tokens
             JOIN hosts ON hosts.number = join_tokens.host WHERE join_tokens.hash = ?",
        )
        .bind(secret.as_bytes().as_slice())
        .fetch_optional(tx.sql())
        .await
        .map_err(StoreError::sql("look up a join token"))?;
        let (meant, expires) = row.ok_or(Refusal::UnknownJoinToken)?;
        enrolment::join(host, &decode::text("host", &meant)?, decode::time("expires", expires)?, now)?;
        sql::query("DELETE FROM join_tokens WHERE hash = ?")
            .bind(secret.as_bytes().as_slice())
            .execute(tx.sql())
            .await
            .map_err(StoreError::sql("use up a join token"))?;
        tx.add_certificate(host, certificate, EventKind::HostJoined, HowJoined::default(), now).await?;
        tx.commit().await
    }

    /// Gives a node of a cluster a certificate, and makes a host of it if it is none yet. What is refused changes nothing.
    pub async fn join_by_cluster(
        &self,
        join: &ClusterJoin<'_>,
        certificate: &NewCertificate,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let ClusterJoin { node: ProvenNode { host, pod, usable_until }, cluster, .. } = join;
        let mut tx = self.write().await?;
        forget_what_is_over(tx.sql(), now).await?;
        tx.use_up(&join.used, *usable_until, CLUSTER_TOKEN_USES_MAX).await?;
        let known: Option<Option<String>> = sql::query_scalar("SELECT cluster FROM hosts WHERE name = ?")
            .bind(host.as_str())
            .fetch_optional(tx.sql())
            .await
            .map_err(StoreError::sql("look up a host"))?;
        let had_one = match known {
            None => {
                tx.bring_host(join, now).await?;
                false
            }
            Some(brought_by) if brought_by.as_deref() == Some(cluster.as_str()) => {
                tx.has_certificate(host, now).await?
            }
            // Whoever can make nodes of a cluster gets no host of somebody else's by it, and none back that was revoked.
            Some(_) => {
                return Err(Refusal::NotOfCluster { host: host.clone(), cluster: (*cluster).clone() }.into());
            }
        };
        let besides = if had_one { "; it had another one that counts" } else { "" };
        let told = format!(", cluster `{cluster}`, pod `{pod}`{besides}");
        let how = HowJoined { reason: "kubernetes", told };
        tx.add_certificate(host, certificate, EventKind::HostJoined, how, now).await?;
        tx.commit().await
    }

    /// Gives a host its next certificate.
    pub async fn renew(
        &self,
        host: &HostName,
        certificate: &NewCertificate,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        tx.add_certificate(host, certificate, EventKind::HostRenewed, HowJoined::default(), now).await?;
        tx.commit().await
    }

    /// A host presents a certificate: whether it counts. The first time that a new one is presented is what ends the one before.
    pub async fn present(&self, certificate: &HostCertificate, now: Timestamp) -> Result<(), StoreError> {
        let HostCertificate { host, serial, .. } = certificate;
        match judge(&mut self.read().await?, host, serial, now).await? {
            Presented::Known => Ok(()),
            Presented::Confirmed => self.confirm(host, serial, now).await,
        }
    }

    async fn confirm(&self, host: &HostName, serial: &Serial, now: Timestamp) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        // It may have changed since it was looked at.
        if judge(tx.sql(), host, serial, now).await? == Presented::Known {
            return Ok(());
        }
        let failed = StoreError::sql("confirm a certificate");
        sql::query(
            "UPDATE certificates SET standing = 'superseded'
             WHERE standing = 'current' AND host = (SELECT number FROM hosts WHERE name = ?)",
        )
        .bind(host.as_str())
        .execute(tx.sql())
        .await
        .map_err(&failed)?;
        sql::query("UPDATE certificates SET standing = 'current' WHERE serial = ?")
            .bind(serial.as_bytes().as_slice())
            .execute(tx.sql())
            .await
            .map_err(&failed)?;
        tx.commit().await
    }

    /// Puts on record that somebody has a copy of a host's key.
    pub async fn key_copied(
        &self,
        host: &HostName,
        reason: &'static str,
        comment: String,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        tx.record(EventKind::HostKeyCopied, now, |event| {
            event.host = host.to_string();
            event.actor = format!("host:{host}");
            event.reason = reason.to_owned();
            event.comment = comment;
        });
        tx.commit().await
    }

    /// Ends all that a host could prove itself by.
    pub async fn revoke_host(
        &self,
        host: &HostName,
        actor: &Actor,
        comment: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let number = tx.host_number(host).await?;
        let failed = StoreError::sql("revoke a host");
        sql::query("DELETE FROM join_tokens WHERE host = ?")
            .bind(number)
            .execute(tx.sql())
            .await
            .map_err(&failed)?;
        sql::query(
            "UPDATE certificates SET standing = 'revoked' WHERE host = ? AND standing IN ('pending', 'current')",
        )
        .bind(number)
        .execute(tx.sql())
        .await
        .map_err(&failed)?;
        sql::query("UPDATE hosts SET cluster = NULL WHERE number = ?")
            .bind(number)
            .execute(tx.sql())
            .await
            .map_err(&failed)?;
        tx.record(EventKind::HostRevoked, now, |event| {
            event.host = host.to_string();
            caused_by(event, actor);
            event.comment = comment.to_owned();
        });
        // Its session looks at its certificate when it wakes.
        tx.wake_session(host).await?;
        tx.commit().await
    }
}

/// What the record tells of how a host got a certificate.
#[derive(Default)]
struct HowJoined {
    reason: &'static str,
    told: String,
}

impl Tx {
    /// Makes a host of a cluster's node.
    async fn bring_host(&mut self, join: &ClusterJoin<'_>, now: Timestamp) -> Result<(), StoreError> {
        let ClusterJoin { node: ProvenNode { host, .. }, cluster, labels, .. } = join;
        sql::query("INSERT INTO hosts (name, labels, added_ms, cluster) VALUES (?, ?, ?, ?)")
            .bind(host.as_str())
            .bind(labels.to_string())
            .bind(now.unix_ms())
            .bind(cluster.as_str())
            .execute(self.sql())
            .await
            .map_err(StoreError::sql("add a host"))?;
        self.record(EventKind::HostAdded, now, |event| {
            event.host = host.to_string();
            event.actor = format!("host:{host}");
            event.reason = "kubernetes".to_owned();
            event.comment = format!("cluster `{cluster}`; {labels}");
        });
        Ok(())
    }

    /// Whether a host has a certificate that counts.
    async fn has_certificate(&mut self, host: &HostName, now: Timestamp) -> Result<bool, StoreError> {
        let current: Option<i64> = sql::query_scalar(
            "SELECT hosts.number FROM certificates JOIN hosts ON hosts.number = certificates.host
             WHERE hosts.name = ? AND standing IN ('pending', 'current') AND expires_ms >= ? LIMIT 1",
        )
        .bind(host.as_str())
        .bind(now.unix_ms())
        .fetch_optional(self.sql())
        .await
        .map_err(StoreError::sql("look up a host's certificates"))?;
        Ok(current.is_some())
    }

    pub(super) async fn issue_join_token(
        &mut self,
        host: &HostName,
        token: &NewJoinToken,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let number = self.host_number(host).await?;
        sql::query(
            "INSERT INTO join_tokens (hash, host, expires_ms) VALUES (?, ?, ?)
             ON CONFLICT (host) DO UPDATE SET hash = excluded.hash, expires_ms = excluded.expires_ms",
        )
        .bind(token.hash.as_bytes().as_slice())
        .bind(number)
        .bind(token.expires.unix_ms())
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("store a join token"))?;
        self.record(EventKind::TokenIssued, now, |event| {
            event.host = host.to_string();
            caused_by(event, actor);
        });
        Ok(())
    }

    /// Adds a certificate that waits to be presented; one that waited before it never will be.
    async fn add_certificate(
        &mut self,
        host: &HostName,
        certificate: &NewCertificate,
        kind: EventKind,
        how: HowJoined,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let number = self.host_number(host).await?;
        let failed = StoreError::sql("store a certificate");
        // What has run out counts nowhere, whatever is known of it.
        sql::query("DELETE FROM certificates WHERE host = ? AND expires_ms < ?")
            .bind(number)
            .bind(now.unix_ms())
            .execute(self.sql())
            .await
            .map_err(&failed)?;
        sql::query("UPDATE certificates SET standing = 'revoked' WHERE host = ? AND standing = 'pending'")
            .bind(number)
            .execute(self.sql())
            .await
            .map_err(&failed)?;
        sql::query(
            "INSERT INTO certificates (serial, host, standing, issued_ms, expires_ms)
             VALUES (?, ?, 'pending', ?, ?)",
        )
        .bind(certificate.serial.as_bytes().as_slice())
        .bind(number)
        .bind(now.unix_ms())
        .bind(certificate.expires.unix_ms())
        .execute(self.sql())
        .await
        .map_err(&failed)?;
        self.record(kind, now, |event| {
            event.host = host.to_string();
            event.actor = format!("host:{host}");
            event.reason = how.reason.to_owned();
            event.comment = format!("certificate {}{}", certificate.serial, how.told);
        });
        Ok(())
    }

    async fn host_number(&mut self, host: &HostName) -> Result<i64, StoreError> {
        let number: Option<i64> = sql::query_scalar("SELECT number FROM hosts WHERE name = ?")
            .bind(host.as_str())
            .fetch_optional(self.sql())
            .await
            .map_err(StoreError::sql("look up a host"))?;
        Ok(number.ok_or_else(|| Refusal::UnknownHost(host.clone()))?)
    }
}

async fn judge(
    sql: &mut Transaction,
    host: &HostName,
    serial: &Serial,
    now: Timestamp,
) -> Result<Presented, StoreError> {
    let row: Option<(String, i64)> = sql::query_as(
        "SELECT certificates.standing, certificates.expires_ms FROM certificates
         JOIN hosts ON hosts.number = certificates.host WHERE certificates.serial = ? AND hosts.name = ?",
    )
    .bind(serial.as_bytes().as_slice())
    .bind(host.as_str())
    .fetch_optional(sql)
    .await
    .map_err(StoreError::sql("look up a certificate"))?;
    let (standing, expires) = match row {
        None => (None, now),
        Some((standing, expires)) => {
            let standing =
                decode::one_of("standing", &Standing::ALL, |standing| standing.as_str(), &standing)?;
            (Some(standing), decode::time("expires", expires)?)
        }
    };
    Ok(enrolment::present(host, standing, expires, now)?)
}
