//! Several control planes on one PostgreSQL database: who is at work there, who has which host's session, and what others have changed.
//!
//! A file has one control plane, which finds no others; what is said here of one that is gone holds for the one before it, too.
//!
//! Liveness is by the database's clock: those of machines need not agree. Nothing is right or wrong by it. What keeps two from writing
//! the same thing is that changes are one after the other, and that a host's session has a number.

use std::collections::HashMap;
use std::time::Duration;

use proto::types::{EventKind, Fingerprint, HostName, Timestamp};

use super::setup::Hold;
use super::sql;
use super::tx::Tx;
use super::{Store, StoreError, decode, postgres};
use crate::rules::actor::Actor;
use crate::rules::roster::Presence;

/// How often a control plane says that it is at work.
pub const BEAT: Duration = Duration::from_secs(2);

/// For how many milliseconds it need not have said so until it counts as gone.
const GONE_AFTER_MS: i64 = 10_000;

/// How many sessions one transaction ends, so that others get their turn at the database in between.
const LOST_BATCH: u32 = 200;

/// Which session of a host it is: what an earlier one still has to say does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionNumber(pub(super) i64);

impl SessionNumber {
    /// No session has it.
    pub const NONE: Self = Self(0);
}

impl Store {
    /// Begins to be at work on the database. Others who sign hosts' certificates by another authority are not to be there; the
    /// sessions of those who are gone are over.
    pub async fn begin_work(&self, authority: Fingerprint, now: Timestamp) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let moment = self.moment(&mut tx, now).await?;
        let theirs: Option<String> = sql::query_scalar(
            "SELECT authority FROM replicas WHERE authority <> ? AND seen_ms >= ? ORDER BY seen_ms DESC LIMIT 1",
        )
        .bind(authority.to_string())
        .bind(moment.gone_before)
        .fetch_optional(tx.sql())
        .await
        .map_err(StoreError::sql("look who is at work"))?;
        if let Some(theirs) = theirs {
            return Err(StoreError::OtherAuthority { ours: authority, theirs });
        }
        sql::query("INSERT INTO replicas (id, authority, seen_ms) VALUES (?, ?, ?)")
            .bind(self.replica.to_string())
            .bind(authority.to_string())
            .bind(moment.clock.unix_ms())
            .execute(tx.sql())
            .await
            .map_err(StoreError::sql("note that we are at work"))?;
        tx.commit().await?;
        while self.end_lost_sessions(now).await? {}
        Ok(())
    }

    async fn moment(&self, tx: &mut Tx, now: Timestamp) -> Result<Moment, StoreError> {
        match &*self.hold {
            Hold::File { .. } => Ok(Moment { clock: now, gone_before: i64::MAX, beat: Duration::MAX }),
            Hold::Server(_) => {
                let clock = postgres::now(tx.sql()).await?;
                let gone_before = clock.unix_ms() - GONE_AFTER_MS;
                Ok(Moment { clock, gone_before, beat: BEAT })
            }
        }
    }

    /// Says that we are at work. Returns whether others are, or were and have left something to end.
    pub async fn beat(&self, authority: Fingerprint) -> Result<Others, StoreError> {
        let Hold::Server(server) = &*self.hold else { return Ok(Others::default()) };
        let (others, gone) = server.beat(self.replica, authority, GONE_AFTER_MS).await?;
        Ok(Others { are_there: others > 0, are_gone: gone > 0 })
    }

    /// Ends sessions whose control plane is gone without having done so. Returns whether there may be more of them.
    pub async fn end_lost_sessions(&self, now: Timestamp) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        let moment = self.moment(&mut tx, now).await?;
        let lost: Vec<(i64, String, i64)> = sql::query_as(
            "SELECT hosts.number, hosts.name, replicas.seen_ms FROM replicas
             JOIN hosts ON hosts.replica = replicas.id
             WHERE replicas.id <> ? AND replicas.seen_ms < ? ORDER BY hosts.number LIMIT ?",
        )
        .bind(self.replica.to_string())
        .bind(moment.gone_before)
        .bind(LOST_BATCH)
        .fetch_all(tx.sql())
        .await
        .map_err(StoreError::sql("read which sessions are lost"))?;
        let may_be_more = lost.len() == LOST_BATCH as usize;
        for (number, name, seen) in lost {
            // The agent can have been heard until the control plane would have said again that it is at work.
            let heard = decode::time("seen", seen)?.plus(moment.beat).min(moment.clock);
            tx.end_session(number, &decode::text("host", &name)?, heard, "control_plane_lost", now).await?;
        }
        if !may_be_more {
            sql::query(
                "DELETE FROM replicas WHERE id <> ? AND seen_ms < ?
                 AND NOT EXISTS (SELECT 1 FROM hosts WHERE hosts.replica = replicas.id)",
            )
            .bind(self.replica.to_string())
            .bind(moment.gone_before)
            .execute(tx.sql())
            .await
            .map_err(StoreError::sql("forget who is gone"))?;
        }
        tx.commit().await?;
        Ok(may_be_more)
    }

    /// We are not at work any more.
    pub(super) async fn leave(&self) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        sql::query(
            "DELETE FROM replicas WHERE id = ?
             AND NOT EXISTS (SELECT 1 FROM hosts WHERE hosts.replica = replicas.id)",
        )
        .bind(self.replica.to_string())
        .execute(tx.sql())
        .await
        .map_err(StoreError::sql("note that we are not at work"))?;
        tx.commit().await
    }

    /// Lets the others know how the hosts are whose sessions we have.
    pub async fn publish(&self, presences: Vec<(HostName, Presence)>) -> Result<(), StoreError> {
        match &*self.hold {
            Hold::Server(server) if !presences.is_empty() => server.publish(self.replica, presences).await,
            Hold::Server(_) | Hold::File { .. } => Ok(()),
        }
    }

    /// The hosts whose sessions others have.
    pub async fn elsewhere(&self) -> Result<HashMap<HostName, Presence>, StoreError> {
        if let Hold::File { .. } = &*self.hold {
            return Ok(HashMap::new());
        }
        type Row = (String, i64, Option<i64>, Option<String>);
        let rows: Vec<Row> = sql::query_as(
            "SELECT hosts.name, coalesce(presences.seen_ms, hosts.seen_ms, 0), presences.confirmed_ms, presences.disagreement
             FROM hosts LEFT JOIN presences ON presences.host = hosts.number AND presences.replica = hosts.replica
             WHERE hosts.replica IS NOT NULL AND hosts.replica <> ?",
        )
        .bind(self.replica.to_string())
        .fetch_all(&self.readers)
        .await
        .map_err(StoreError::sql("read who is connected elsewhere"))?;
        let presence = |(name, seen, confirmed, disagreement): Row| {
            let confirmed = confirmed.map(|confirmed| decode::time("confirmed", confirmed)).transpose()?;
            let presence = Presence { seen: decode::time("seen", seen)?, confirmed, disagreement };
            Ok((decode::text("host", &name)?, presence))
        };
        rows.into_iter().map(presence).collect()
    }

    /// Wakes those here who wait for what others have changed since the revision `last`. Returns the revision up to which that is done.
    pub async fn wake_for_others(&self, last: i64) -> Result<i64, StoreError> {
        let rows: Vec<(i64, Option<String>, Option<i64>)> = sql::query_as(
            "SELECT timeline.revision, hosts.name, hosts.changed FROM timeline
             LEFT JOIN hosts ON hosts.changed > ?",
        )
        .bind(last)
        .fetch_all(&self.readers)
        .await
        .map_err(StoreError::sql("read what has changed"))?;
        let revision = rows.first().map_or(last, |(revision, ..)| *revision);
        if revision == last {
            return Ok(last);
        }
        let mut sets = Vec::new();
        for (_, name, changed) in rows {
            if let (Some(name), Some(changed)) = (name, changed) {
                sets.push((decode::text("host", &name)?, changed));
            }
        }
        self.signals.catch_up(&sets);
        Ok(revision)
    }

    /// Resolves when others may have changed something: at the latest in a second. Only with a server.
    pub async fn others_change(&self) {
        match &*self.hold {
            Hold::Server(server) => server.others_change(self.replica).await,
            Hold::File { .. } => std::future::pending().await,
        }
    }
}

/// Whether there are other control planes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Some are at work.
    pub are_there: bool,
    /// Some have stopped without saying so.
    pub are_gone: bool,
}

/// What "now" is to those who share a database.
struct Moment {
    clock: Timestamp,
    /// Who has not said since then, in milliseconds since 1970, that they are at work is gone. On a file that is everybody else.
    gone_before: i64,
    /// How long after that they can have been at work all the same.
    beat: Duration,
}

impl Tx {
    /// Writes down that a host's session is over, and nobody can go on with it.
    pub(super) async fn end_session(
        &mut self,
        number: i64,
        host: &HostName,
        seen: Timestamp,
        reason: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sql::query("UPDATE hosts SET replica = NULL, session = session + 1, seen_ms = ? WHERE number = ?")
            .bind(seen.unix_ms())
            .bind(number)
            .execute(self.sql())
            .await
            .map_err(StoreError::sql("note an agent's end"))?;
        self.wake_session(host).await?;
        self.record(EventKind::AgentDisconnected, now, |event| {
            event.host = host.to_string();
            event.actor = Actor::System.to_string();
            event.reason = reason.to_owned();
        });
        Ok(())
    }
}
