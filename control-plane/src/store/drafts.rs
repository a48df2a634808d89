//! Drafts: what was denied, as the beginning of a request.

use std::collections::HashMap;

use proto::types::{AuditEvent, Draft, DraftId, EventKind, HostName, SubjectId, Timestamp};
use sqlx::FromRow;

use super::requests::Whose;
use super::sql::{self, Query, Rows, Transaction};
use super::tx::{Tx, caused_by};
use super::{Store, StoreError, decode};
use crate::rules::actor::Actor;
use crate::rules::{Refusal, draft as rules};

impl Store {
    /// Newest first, and how many attempts found no room for one, ever.
    pub async fn drafts(
        &self,
        whose: &Whose,
        limit: u32,
        now: Timestamp,
    ) -> Result<(Vec<Draft>, u64), StoreError> {
        let mut sql = self.read().await?;
        let mut query = open(now);
        push_whose(&mut query, whose);
        query.push(" ORDER BY drafts.id DESC LIMIT ").push_bind(limit);
        let found = read_drafts(&mut sql, query).await?;
        let left_out: i64 = sql::query_scalar("SELECT attempts FROM drafts_left_out")
            .fetch_one(&mut sql)
            .await
            .map_err(StoreError::sql("read how many drafts were left out"))?;
        Ok((found, decode::number("attempts", left_out)?))
    }

    /// Takes a draft away. What is not `whose` is as if it were not there.
    pub async fn drop_draft(&self, id: DraftId, whose: &Whose, now: Timestamp) -> Result<Draft, StoreError> {
        let mut tx = self.write().await?;
        let draft = tx.take_draft(id, whose, now).await?;
        tx.commit().await?;
        Ok(draft)
    }
}

impl Tx {
    /// Opens drafts for what these events of a host say was denied, where resources want that.
    pub(super) async fn open_drafts(
        &mut self,
        host: &HostName,
        events: &[AuditEvent],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let attempts = rules::attempts(events);
        if attempts.is_empty() {
            return Ok(());
        }
        let mut query = sql::query_as(
            "SELECT name, number FROM resources WHERE removed_ms IS NULL AND drafts AND name IN ",
        );
        query.push_list(attempts.keys().map(|(_, resource)| resource));
        let wanting: Vec<(String, i64)> =
            query.fetch_all(self.sql()).await.map_err(StoreError::sql("read what wants drafts"))?;
        if wanting.is_empty() {
            return Ok(());
        }
        let wanting: HashMap<String, i64> = wanting.into_iter().collect();
        sql::query("DELETE FROM drafts WHERE first_ms <= ?")
            .bind(now.unix_ms().saturating_sub(lifetime_ms()))
            .execute(self.sql())
            .await
            .map_err(StoreError::sql("forget drafts that have lapsed"))?;
        let mut all = self.count_drafts(None).await?;
        for ((subject, resource), times) in attempts {
            let Some(resource) = wanting.get(&resource) else { continue };
            all += u64::from(self.note_attempts(host, &subject, *resource, times, all, now).await?);
        }
        Ok(())
    }

    /// Returns whether there is another draft now.
    async fn note_attempts(
        &mut self,
        host: &HostName,
        subject: &str,
        resource: i64,
        times: u64,
        all: u64,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        // Whom an agent names and nobody knows, or who is shut out, could not complete it.
        let known: Option<(i64, i64)> = sql::query_as(
            "SELECT subjects.number, hosts.number FROM subjects CROSS JOIN hosts
             WHERE subjects.id = ? AND subjects.disabled_ms IS NULL AND hosts.name = ?",
        )
        .bind(subject)
        .bind(host.as_str())
        .fetch_optional(self.sql())
        .await
        .map_err(StoreError::sql("look up who was denied"))?;
        let Some((subject, host)) = known else { return Ok(false) };
        let noted = sql::query(
            "UPDATE drafts SET attempts = attempts + ?, last_ms = ? WHERE subject = ? AND resource = ? AND host = ?",
        )
        .bind(decode::sql(times))
        .bind(now.unix_ms())
        .bind(subject)
        .bind(resource)
        .bind(host)
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("note another attempt"))?;
        if noted > 0 {
            return Ok(false);
        }
        if !rules::has_room(self.count_drafts(Some(subject)).await?, all) {
            sql::query("UPDATE drafts_left_out SET attempts = attempts + ?")
                .bind(decode::sql(times))
                .execute(self.sql())
                .await
                .map_err(StoreError::sql("count an attempt that finds no room"))?;
            return Ok(false);
        }
        let id = DraftId::new();
        sql::query(
            "INSERT INTO drafts (id, subject, resource, host, first_ms, last_ms, attempts)
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(id.to_string())
        .bind(subject)
        .bind(resource)
        .bind(host)
        .bind(now.unix_ms())
        .bind(now.unix_ms())
        .bind(decode::sql(times))
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("open a draft"))?;
        let mut query = open(now);
        query.push(" AND drafts.id = ").push_bind(id.to_string());
        let Some(draft) = read_drafts(self.sql(), query).await?.pop() else { return Ok(true) };
        self.record(EventKind::DraftOpened, now, |event| {
            event.subject = draft.subject.to_string();
            event.resource = draft.resource.to_string();
            event.host = draft.host.to_string();
            caused_by(event, &Actor::System);
            event.expires = Some(draft.lapses);
            event.comment = rules::told(id);
        });
        Ok(true)
    }

    async fn count_drafts(&mut self, of: Option<i64>) -> Result<u64, StoreError> {
        let mut query = sql::query_scalar("SELECT count(*) FROM drafts");
        if let Some(subject) = of {
            query.push(" WHERE subject = ").push_bind(subject);
        }
        let count: i64 = query.fetch_one(self.sql()).await.map_err(StoreError::sql("count the drafts"))?;
        decode::number("drafts", count)
    }

    /// Takes a draft away: it is dropped, or becomes a request.
    pub(super) async fn take_draft(
        &mut self,
        id: DraftId,
        whose: &Whose,
        now: Timestamp,
    ) -> Result<Draft, StoreError> {
        let mut query = open(now);
        query.push(" AND drafts.id = ").push_bind(id.to_string());
        push_whose(&mut query, whose);
        let draft = read_drafts(self.sql(), query).await?.pop().ok_or(Refusal::UnknownDraft(id))?;
        sql::query("DELETE FROM drafts WHERE id = ?")
            .bind(id.to_string())
            .execute(self.sql())
            .await
            .map_err(StoreError::sql("take a draft away"))?;
        Ok(draft)
    }
}

fn lifetime_ms() -> i64 {
    i64::try_from(rules::LIFETIME.as_millis()).unwrap_or(i64::MAX)
}

const DRAFTS: &str = "
    SELECT drafts.id, subjects.id AS subject, resources.name AS resource, hosts.name AS host, drafts.first_ms,
        drafts.last_ms, drafts.attempts
    FROM drafts
    JOIN subjects ON subjects.number = drafts.subject
    JOIN resources ON resources.number = drafts.resource
    JOIN hosts ON hosts.number = drafts.host
    WHERE resources.removed_ms IS NULL AND drafts.first_ms > ";

/// Those that have not lapsed, of what is protected.
fn open(now: Timestamp) -> Query<Rows<DraftRow>> {
    let mut query = sql::query_as(DRAFTS);
    query.push_bind(now.unix_ms().saturating_sub(lifetime_ms()));
    query
}

/// Of a draft only its subject counts: nobody has asked for it yet.
fn push_whose(query: &mut Query<Rows<DraftRow>>, whose: &Whose) {
    if let Whose::Of(id) = whose {
        query.push(" AND subjects.id = ").push_bind(SubjectId::to_string(id));
    }
}

#[derive(FromRow)]
struct DraftRow {
    id: String,
    subject: String,
    resource: String,
    host: String,
    first_ms: i64,
    last_ms: i64,
    attempts: i64,
}

async fn read_drafts(sql: &mut Transaction, query: Query<Rows<DraftRow>>) -> Result<Vec<Draft>, StoreError> {
    let rows: Vec<DraftRow> = query.fetch_all(sql).await.map_err(StoreError::sql("read drafts"))?;
    let draft = |row: DraftRow| {
        let first = decode::time("first", row.first_ms)?;
        Ok(Draft {
            id: decode::text("draft", &row.id)?,
            subject: decode::text("subject", &row.subject)?,
            resource: decode::text("resource", &row.resource)?,
            host: decode::text("host", &row.host)?,
            first,
            last: decode::time("last", row.last_ms)?,
            attempts: decode::number("attempts", row.attempts)?,
            lapses: first.plus(rules::LIFETIME),
        })
    };
    rows.into_iter().map(draft).collect()
}
