//! Incidents: which are open, and since when.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::types::{EventKind, Incident, IncidentId, NewIncident, SubjectId, Timestamp};
use sqlx::FromRow;

use super::sql::{self, Query, Rows, Transaction};
use super::tx::{Tx, caused_by};
use super::{Store, StoreError, decode};
use crate::rules::actor::{Acting, Actor};
use crate::rules::policy::Moment;
use crate::rules::{Refusal, incident as rules};

impl Store {
    /// Opens an incident, or moves the end of one that is open.
    pub async fn open_incident(
        &self,
        new: NewIncident,
        by: &Acting,
        now: Timestamp,
    ) -> Result<Incident, StoreError> {
        let mut tx = self.write().await?;
        let before = find(tx.sql(), &new.id).await?;
        let open = count_open(tx.sql(), now).await?;
        let length = humantime::format_duration(new.duration);
        let said = new.reason.clone();
        let after = rules::opened(new, before.as_ref(), open, &by.id, now)?;
        let is_moved = before.as_ref().is_some_and(|before| rules::is_open(before, now));
        if let Some(over) = before.filter(|before| !is_moved && before.closed.is_none()) {
            // Its time was over, and nobody has looked since: the record has an end for each beginning.
            tx.close_incident(&over, None, &Actor::System, "time", "", now).await?;
        }
        tx.keep_incident(&after).await?;
        let length = format!("{} {length}", if is_moved { "from now on for" } else { "for" });
        let said = if said.is_empty() { length } else { format!("{length}: {said}") };
        tx.record_incident(EventKind::IncidentOpened, &after, &by.clone().into(), "", &said, now);
        // Whoever watches the time looks at this one's end, too.
        tx.wake_access();
        tx.commit().await?;
        Ok(after)
    }

    /// Closes an incident before its time.
    pub async fn close_incident(
        &self,
        id: &IncidentId,
        by: &Acting,
        comment: &str,
        now: Timestamp,
    ) -> Result<Incident, StoreError> {
        let mut tx = self.write().await?;
        let before = find(tx.sql(), id).await?.ok_or_else(|| Refusal::UnknownIncident(id.clone()))?;
        rules::closable(&before, now)?;
        tx.close_incident(&before, Some(&by.id), &by.clone().into(), "closed", comment, now).await?;
        tx.commit().await?;
        Ok(Incident { closed: Some((now, Some(by.id.clone()))), ..before })
    }

    /// The last opened first; `all`: also those that are closed.
    pub async fn incidents(
        &self,
        all: bool,
        limit: u32,
        now: Timestamp,
    ) -> Result<Vec<Incident>, StoreError> {
        let mut query = sql::query_as(INCIDENTS);
        if !all {
            query
                .push(" WHERE incidents.closed_ms IS NULL AND incidents.until_ms > ")
                .push_bind(now.unix_ms());
        }
        query.push(" ORDER BY incidents.opened_ms DESC, incidents.id LIMIT ").push_bind(limit);
        read(&mut self.read().await?, query).await
    }

    /// When the next incident closes by itself; None: none is open.
    pub async fn next_closing(&self) -> Result<Option<Timestamp>, StoreError> {
        let next: Option<i64> =
            sql::query_scalar("SELECT min(until_ms) FROM incidents WHERE closed_ms IS NULL")
                .fetch_one(&self.readers)
                .await
                .map_err(StoreError::sql("read when an incident closes"))?;
        next.map(|next| decode::time("until", next)).transpose()
    }

    /// Notes those that have closed by themselves.
    pub async fn note_closed(&self, now: Timestamp) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let mut query = sql::query_as(INCIDENTS);
        query.push(" WHERE incidents.closed_ms IS NULL AND incidents.until_ms <= ").push_bind(now.unix_ms());
        for over in read(tx.sql(), query).await? {
            tx.close_incident(&over, None, &Actor::System, "time", "", now).await?;
        }
        tx.commit().await
    }
}

impl Tx {
    async fn keep_incident(&mut self, incident: &Incident) -> Result<(), StoreError> {
        sql::query(
            "INSERT INTO incidents (id, reason, opened_by, opened_ms, until_ms)
             SELECT ?, ?, number, ?, ? FROM subjects WHERE id = ?
             ON CONFLICT (id) DO UPDATE SET reason = excluded.reason, opened_by = excluded.opened_by,
                 opened_ms = excluded.opened_ms, until_ms = excluded.until_ms, closed_ms = NULL, closed_by = NULL",
        )
        .bind(incident.id.as_str())
        .bind(&incident.reason)
        .bind(incident.opened.unix_ms())
        .bind(incident.until.unix_ms())
        .bind(incident.by.as_str())
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("keep an incident"))?;
        Ok(())
    }

    pub(super) async fn close_incident(
        &mut self,
        incident: &Incident,
        by: Option<&SubjectId>,
        actor: &Actor,
        reason: &str,
        comment: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sql::query(
            "UPDATE incidents SET closed_ms = ?, closed_by = (SELECT number FROM subjects WHERE id = ?) WHERE id = ?",
        )
        .bind(now.unix_ms())
        .bind(by.map(SubjectId::as_str))
        .bind(incident.id.as_str())
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("close an incident"))?;
        self.record_incident(EventKind::IncidentClosed, incident, actor, reason, comment, now);
        Ok(())
    }

    fn record_incident(
        &mut self,
        kind: EventKind,
        incident: &Incident,
        actor: &Actor,
        reason: &str,
        said: &str,
        now: Timestamp,
    ) {
        self.record(kind, now, |event| {
            caused_by(event, actor);
            event.reason = reason.to_owned();
            event.comment = rules::told(incident, said);
            event.expires = Some(incident.until);
        });
    }
}

/// What is so for everybody at `now`: what a policy is asked with besides what is asked for.
pub(super) async fn moment(sql: &mut Transaction, now: Timestamp) -> Result<Moment, StoreError> {
    let rows: Vec<(String, i64)> =
        sql::query_as("SELECT id, until_ms FROM incidents WHERE closed_ms IS NULL AND until_ms > ?")
            .bind(now.unix_ms())
            .fetch_all(sql)
            .await
            .map_err(StoreError::sql("read which incidents are open"))?;
    let decode =
        |(id, until): (String, i64)| Ok((decode::text("incident", &id)?, decode::time("until", until)?));
    let incidents = rows.into_iter().map(decode).collect::<Result<BTreeMap<_, _>, StoreError>>()?;
    Ok(Moment { now, incidents: Arc::new(incidents) })
}

/// Those that nobody has closed, and that no time has been noted to.
pub(super) async fn open_incidents(sql: &mut Transaction) -> Result<Vec<Incident>, StoreError> {
    let mut query = sql::query_as(INCIDENTS);
    query.push(" WHERE incidents.closed_ms IS NULL");
    read(sql, query).await
}

async fn count_open(sql: &mut Transaction, now: Timestamp) -> Result<usize, StoreError> {
    let open: i64 =
        sql::query_scalar("SELECT count(*) FROM incidents WHERE closed_ms IS NULL AND until_ms > ?")
            .bind(now.unix_ms())
            .fetch_one(sql)
            .await
            .map_err(StoreError::sql("count the incidents that are open"))?;
    decode::number("open", open)
}

async fn find(sql: &mut Transaction, id: &IncidentId) -> Result<Option<Incident>, StoreError> {
    let mut query = sql::query_as(INCIDENTS);
    query.push(" WHERE incidents.id = ").push_bind(id.as_str());
    Ok(read(sql, query).await?.pop())
}

const INCIDENTS: &str = "
    SELECT incidents.id, incidents.reason, openers.id AS opened_by, incidents.opened_ms, incidents.until_ms,
        incidents.closed_ms, closers.id AS closed_by
    FROM incidents
    JOIN subjects AS openers ON openers.number = incidents.opened_by
    LEFT JOIN subjects AS closers ON closers.number = incidents.closed_by";

#[derive(FromRow)]
struct IncidentRow {
    id: String,
    reason: String,
    opened_by: String,
    opened_ms: i64,
    until_ms: i64,
    closed_ms: Option<i64>,
    closed_by: Option<String>,
}

async fn read(sql: &mut Transaction, query: Query<Rows<IncidentRow>>) -> Result<Vec<Incident>, StoreError> {
    let rows: Vec<IncidentRow> = query.fetch_all(sql).await.map_err(StoreError::sql("read incidents"))?;
    let decode = |row: IncidentRow| {
        let closed_by = row.closed_by.map(|id| decode::text("closed_by", &id)).transpose()?;
        Ok(Incident {
            id: decode::text("incident", &row.id)?,
            opened: decode::time("opened", row.opened_ms)?,
            until: decode::time("until", row.until_ms)?,
            reason: row.reason,
            by: decode::text("opened_by", &row.opened_by)?,
            closed: row
                .closed_ms
                .map(|closed| Ok::<_, StoreError>((decode::time("closed", closed)?, closed_by)))
                .transpose()?,
        })
    };
    rows.into_iter().map(decode).collect()
}
