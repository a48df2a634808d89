//! What agents say about their hosts.

use std::collections::HashSet;

use proto::types::{
    Applied, EndedGrant, EventKind, GrantId, Hello, HostName, Refused, RefusedItem, Report, Timestamp,
};
use uuid::Uuid;

use super::hosts::{HostRecord, host};
use super::replicas::SessionNumber;
use super::sql::{self, Transaction};
use super::tx::Tx;
use super::{Store, StoreError, decode, directory};
use crate::rules::actor::Actor;
use crate::rules::grant::Answer;
use crate::rules::placement::{self, Span};
use crate::rules::roster::{self, Instances};

/// A detail can name many refused items; an event's text holds 4096 bytes.
const COMMENT_MAX_CHARS: usize = 1000;

/// No honest agent holds a generation beyond this one; what is above would leave no room to raise it further.
const GENERATION_MAX: u64 = 1 << 62;

/// How a session begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connected {
    /// Which one it is.
    pub session: SessionNumber,
    /// The agent had the host's session before another run of it did: two have the host's key.
    pub takes_turns: bool,
}

impl Store {
    /// An agent's session begins: what its kernel holds, and what it reports. What an earlier session says from here on does not count.
    pub async fn agent_connected(&self, hello: &Hello, now: Timestamp) -> Result<Connected, StoreError> {
        let mut tx = self.write().await?;
        let (number, record) = host(tx.sql(), &hello.host).await?;
        let generation = record.generation;
        let is_ours = |held: &(Uuid, u64)| held.0 == self.timeline() && held.1 <= GENERATION_MAX;
        let held = hello.applied.filter(is_ours).map(|(_, held)| held);
        // Restored from an older copy, we could be behind what the agent holds, and it would refuse all we send.
        if let Some(held) = held.filter(|held| *held > generation) {
            tracing::warn!(host = %hello.host, held, generation, "an agent is ahead of this database");
            set_generation(tx.sql(), &hello.host, held).await?;
            tx.raise(&hello.host).await?;
        }
        let (other, instances): (Option<String>, String) =
            sql::query_as("SELECT replica, instances FROM hosts WHERE number = ?")
                .bind(number)
                .fetch_one(tx.sql())
                .await
                .map_err(StoreError::sql("read who has a session"))?;
        if other.is_some() {
            // It is elsewhere, and learns of it when it is over.
            tx.end_session(number, &hello.host, now, "superseded", now).await?;
        }
        let mut instances: Instances = decode::text("instances", &instances)?;
        let takes_turns = hello.instance.is_some_and(|instance| instances.take(instance));
        let session = sql::query_scalar(
            "UPDATE hosts SET applied_generation = ?, seen_ms = ?, agent_version = ?, kernel_release = ?, replica = ?, instances = ?,
                 session = session + 1
             WHERE number = ? RETURNING session",
        )
        .bind(decode::sql(held.unwrap_or(0)))
        .bind(now.unix_ms())
        .bind(&hello.agent_version)
        .bind(&hello.kernel_release)
        .bind(self.replica.to_string())
        .bind(instances.to_string())
        .bind(number)
        .fetch_one(tx.sql())
        .await
        .map_err(StoreError::sql("note an agent's hello"))?;
        tx.record(EventKind::AgentConnected, now, |event| {
            event.host = hello.host.to_string();
            event.actor = format!("host:{}", hello.host);
            event.comment = format!("agent {}, kernel {}", hello.agent_version, hello.kernel_release);
        });
        for (grant, span) in open_grants(tx.sql(), &hello.host).await? {
            if let Some(answer) = placement::greeted(span, held) {
                tx.heard(grant, &hello.host, answer, now).await?;
            }
        }
        let session = SessionNumber(session);
        tx.report(&hello.host, session, &hello.report, now).await?;
        tx.commit().await?;
        Ok(Connected { session, takes_turns })
    }

    /// A host's kernel does not hold what it should: its set gets a new generation.
    pub async fn resync(
        &self,
        name: &HostName,
        session: SessionNumber,
        why: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        refuse_if_superseded(tx.sql(), name, session).await?;
        tx.raise(name).await?;
        tx.record(EventKind::HostDisagrees, now, |event| {
            event.host = name.to_string();
            event.actor = format!("host:{name}");
            event.comment = why.chars().take(COMMENT_MAX_CHARS).collect();
        });
        tx.commit().await
    }

    /// An agent's session is over. Of one that another has replaced that is known already.
    pub async fn agent_disconnected(
        &self,
        name: &HostName,
        session: SessionNumber,
        reason: &str,
        comment: &str,
        seen: Timestamp,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let ended = sql::query("UPDATE hosts SET seen_ms = ?, replica = NULL WHERE name = ? AND session = ?")
            .bind(seen.unix_ms())
            .bind(name.as_str())
            .bind(session.0)
            .execute(tx.sql())
            .await
            .map_err(StoreError::sql("note an agent's end"))?;
        if ended == 0 {
            return Ok(());
        }
        tx.record(EventKind::AgentDisconnected, now, |event| {
            event.host = name.to_string();
            event.actor = Actor::System.to_string();
            event.reason = reason.to_owned();
            event.comment = comment.to_owned();
        });
        tx.commit().await
    }

    /// An agent says how its host is.
    pub async fn agent_reported(
        &self,
        name: &HostName,
        session: SessionNumber,
        report: &Report,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        // Nearly all reports say the same again; they must not queue up for the one writer.
        if self.host(name).await?.report.as_ref() == Some(report) {
            return Ok(());
        }
        let mut tx = self.write().await?;
        tx.report(name, session, report, now).await?;
        tx.commit().await
    }

    /// A host has ended grants by itself. What it was not given, or has said before, changes nothing.
    pub async fn agent_ended(
        &self,
        name: &HostName,
        session: SessionNumber,
        ended: &[EndedGrant],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        refuse_if_superseded(tx.sql(), name, session).await?;
        let mut open: HashSet<GrantId> =
            open_grants(tx.sql(), name).await?.into_iter().map(|(id, _)| id).collect();
        for EndedGrant { grant, reason } in ended {
            if open.remove(grant) {
                tx.heard(*grant, name, Answer::Ends(*reason), now).await?;
            }
        }
        tx.commit().await
    }
}

impl Tx {
    async fn report(
        &mut self,
        name: &HostName,
        session: SessionNumber,
        report: &Report,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let (number, before) = host(self.sql(), name).await?;
        if before.report.as_ref() == Some(report) {
            return Ok(());
        }
        let noted = sql::query(
            "UPDATE hosts SET reported_state = ?, reported_detail = ?, seen_ms = ? WHERE number = ? AND session = ?",
        )
        .bind(report.state.as_str())
        .bind(&report.detail)
        .bind(now.unix_ms())
        .bind(number)
        .bind(session.0)
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("note an agent's report"))?;
        if noted == 0 {
            return Err(StoreError::Superseded(name.clone()));
        }
        self.note_state(name, &before, now).await
    }

    /// Writes down that what may be claimed of a host is not what it was.
    pub(super) async fn note_state(
        &mut self,
        name: &HostName,
        before: &HostRecord,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let after = host(self.sql(), name).await?.1;
        let claimed = |record: &HostRecord| {
            record.report.as_ref().map(|report| roster::claimed(report, &record.missing))
        };
        let Some(claim) = claimed(&after).filter(|claim| Some(claim) != claimed(before).as_ref()) else {
            return Ok(());
        };
        self.record(EventKind::AgentStateChanged, now, |event| {
            event.host = name.to_string();
            event.actor = format!("host:{name}");
            event.reason = claim.state.as_str().replace(' ', "_");
            event.comment = claim.detail.chars().take(COMMENT_MAX_CHARS).collect();
        });
        Ok(())
    }
}

/// Another session of the host has begun: this one speaks for nobody.
async fn refuse_if_superseded(
    sql: &mut Transaction,
    name: &HostName,
    session: SessionNumber,
) -> Result<(), StoreError> {
    let current: i64 = sql::query_scalar("SELECT session FROM hosts WHERE name = ?")
        .bind(name.as_str())
        .fetch_one(sql)
        .await
        .map_err(StoreError::sql("read which session a host has"))?;
    if current == session.0 { Ok(()) } else { Err(StoreError::Superseded(name.clone())) }
}

async fn set_generation(sql: &mut Transaction, name: &HostName, generation: u64) -> Result<(), StoreError> {
    sql::query("UPDATE hosts SET generation = ? WHERE name = ?")
        .bind(decode::sql(generation))
        .bind(name.as_str())
        .execute(sql)
        .await
        .map_err(StoreError::sql("set a host's generation"))?;
    Ok(())
}

pub(super) async fn replace_refusals(
    sql: &mut Transaction,
    host: i64,
    applied: &Applied,
) -> Result<(), StoreError> {
    let failed = StoreError::sql("note what a host refused");
    sql::query("DELETE FROM host_refusals WHERE host = ?")
        .bind(host)
        .execute(&mut *sql)
        .await
        .map_err(&failed)?;
    let known = known_items(sql, applied).await?;
    for refused in applied.refused.iter().filter(|refused| known.contains(&refused.item)) {
        let (statement, number) = match refused.item {
            RefusedItem::Grant(_) => continue,
            RefusedItem::Resource(number) => (
                "INSERT INTO host_refusals (host, resource, error) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                number.get(),
            ),
            RefusedItem::Subject(number) => (
                "INSERT INTO host_refusals (host, subject, error) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                number.get(),
            ),
        };
        sql::query(statement)
            .bind(host)
            .bind(number)
            .bind(&refused.error)
            .execute(&mut *sql)
            .await
            .map_err(&failed)?;
    }
    Ok(())
}

/// What can be refused at all: a confused agent that refuses a million things must not hold up the one writer.
async fn known_items(sql: &mut Transaction, applied: &Applied) -> Result<HashSet<RefusedItem>, StoreError> {
    let is_item = |refused: &Refused| !matches!(refused.item, RefusedItem::Grant(_));
    if !applied.refused.iter().any(is_item) {
        return Ok(HashSet::new());
    }
    let resources = directory::resources(sql).await?.into_iter();
    let subjects = directory::subjects(sql).await?.into_iter();
    let resources = resources.map(|resource| RefusedItem::Resource(resource.number));
    Ok(resources.chain(subjects.map(|subject| RefusedItem::Subject(subject.number))).collect())
}

/// The grants that a host's kernel may hold.
pub(super) async fn open_grants(
    sql: &mut Transaction,
    name: &HostName,
) -> Result<Vec<(GrantId, Span)>, StoreError> {
    let rows: Vec<(String, i64, Option<i64>)> = sql::query_as(
        "SELECT grant_hosts.grant_id, grant_hosts.since_generation, grant_hosts.until_generation
         FROM grant_hosts JOIN hosts ON hosts.number = grant_hosts.host
         WHERE hosts.name = ? AND grant_hosts.holding <> 'free'",
    )
    .bind(name.as_str())
    .fetch_all(sql)
    .await
    .map_err(StoreError::sql("read a host's open grants"))?;
    let open = |(id, since, until): (String, i64, Option<i64>)| {
        let until = until.map(|until| decode::number("until_generation", until)).transpose()?;
        let span = Span { since: decode::number("since_generation", since)?, until };
        Ok((decode::text("grant", &id)?, span))
    };
    rows.into_iter().map(open).collect()
}
