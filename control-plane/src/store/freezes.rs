//! Resources that are closed for a time.

use std::collections::{BTreeSet, HashMap};

use proto::types::{
    EndReason, EventKind, Freeze, FreezeId, Frozen, NewFreeze, ResourceName, SubjectId, Timestamp,
};
use sqlx::FromRow;

use super::directory::resource;
use super::grants::{GRANTS, read};
use super::sql::{self, Query, Rows, Transaction};
use super::steps::Cause;
use super::tx::{Tx, caused_by};
use super::{Store, StoreError, decode};
use crate::rules::actor::{Acting, Actor};
use crate::rules::{Refusal, freeze as rules};

impl Store {
    /// Closes resources for a time. Returns how many live grants have ended by it.
    pub async fn freeze(
        &self,
        new: NewFreeze,
        by: &Acting,
        now: Timestamp,
    ) -> Result<(Freeze, u32), StoreError> {
        let mut tx = self.write().await?;
        rules::room(holding(tx.sql(), now).await?.len())?;
        if let Frozen::These(names) = &new.what {
            for name in names {
                resource(tx.sql(), name).await?;
            }
        }
        let NewFreeze { what, duration, reason, keep_live } = new;
        let (id, by_whom, until) = (FreezeId::new(), by.id.clone(), now.plus(duration));
        let freeze = Freeze { id, what, began: now, until, reason, by: by_whom, keep_live, ended: None };
        tx.keep_freeze(&freeze).await?;
        let live = match keep_live {
            true => Vec::new(),
            false => {
                let mut query = sql::query_as(GRANTS);
                query.push(" WHERE grants.state IN ('scheduled', 'activating', 'active')");
                if let Frozen::These(names) = &freeze.what {
                    query.push(" AND resources.name IN ").push_list(names.iter().map(ResourceName::as_str));
                }
                read(tx.sql(), query).await?
            }
        };
        let ended = u32::try_from(live.len()).unwrap_or(u32::MAX);
        let actor: Actor = by.clone().into();
        let told = rules::told(freeze.id, &freeze.what);
        let length = humantime::format_duration(duration);
        let live_ones = if keep_live { "none" } else { &ended.to_string() };
        let comment =
            format!("{told} for {length}, which ends {live_ones} of the live grants: {}", freeze.reason);
        tx.record_freeze(EventKind::FreezeBegan, &freeze, &actor, "", comment, now);
        for kept in live {
            let cause = Cause { actor: actor.clone(), comment: format!("freeze {id}: {}", freeze.reason) };
            tx.end(kept, EndReason::Frozen, cause, now).await?;
        }
        // Whoever watches the time looks at this one's end, too.
        tx.wake_access();
        tx.commit().await?;
        Ok((freeze, ended))
    }

    /// Lifts a freeze before its time.
    pub async fn thaw(
        &self,
        id: FreezeId,
        by: &Acting,
        comment: &str,
        now: Timestamp,
    ) -> Result<Freeze, StoreError> {
        let mut tx = self.write().await?;
        let before = freeze(tx.sql(), id).await?;
        rules::liftable(&before, now)?;
        let told = rules::told(id, &before.what);
        let told = if comment.is_empty() { told } else { format!("{told}: {comment}") };
        tx.end_freeze(&before, Some(&by.id), &by.clone().into(), "thawed", told, now).await?;
        let after = freeze(tx.sql(), id).await?;
        tx.commit().await?;
        Ok(after)
    }

    /// Newest first; `all`: also those that are over.
    pub async fn freezes(&self, all: bool, limit: u32, now: Timestamp) -> Result<Vec<Freeze>, StoreError> {
        let mut query = sql::query_as(FREEZES);
        if !all {
            query.push(" WHERE freezes.ended_ms IS NULL AND freezes.until_ms > ").push_bind(now.unix_ms());
        }
        query.push(" ORDER BY freezes.id DESC LIMIT ").push_bind(limit);
        read_freezes(&mut self.read().await?, query).await
    }

    /// When the next freeze lifts by itself; None: none holds.
    pub async fn next_thaw(&self) -> Result<Option<Timestamp>, StoreError> {
        let next: Option<i64> = sql::query_scalar("SELECT min(until_ms) FROM freezes WHERE ended_ms IS NULL")
            .fetch_one(&self.readers)
            .await
            .map_err(StoreError::sql("read when a freeze ends"))?;
        next.map(|next| decode::time("until", next)).transpose()
    }

    /// Notes those that have lifted by themselves.
    pub async fn note_thawed(&self, now: Timestamp) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let mut query = sql::query_as(FREEZES);
        query.push(" WHERE freezes.ended_ms IS NULL AND freezes.until_ms <= ").push_bind(now.unix_ms());
        for over in read_freezes(tx.sql(), query).await? {
            let told = rules::told(over.id, &over.what);
            tx.end_freeze(&over, None, &Actor::System, "time", told, now).await?;
        }
        tx.commit().await
    }
}

impl Tx {
    async fn keep_freeze(&mut self, freeze: &Freeze) -> Result<(), StoreError> {
        sql::query(
            "INSERT INTO freezes (id, everything, reason, begun_by, keep_live, began_ms, until_ms)
             SELECT ?, ?, ?, number, ?, ?, ? FROM subjects WHERE id = ?",
        )
        .bind(freeze.id.to_string())
        .bind(freeze.what == Frozen::All)
        .bind(freeze.reason.as_str())
        .bind(freeze.keep_live)
        .bind(freeze.began.unix_ms())
        .bind(freeze.until.unix_ms())
        .bind(freeze.by.as_str())
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("keep a freeze"))?;
        let Frozen::These(names) = &freeze.what else { return Ok(()) };
        for name in names {
            sql::query("INSERT INTO freeze_resources (of_freeze, resource) VALUES (?, ?)")
                .bind(freeze.id.to_string())
                .bind(name.as_str())
                .execute(self.sql())
                .await
                .map_err(StoreError::sql("keep what a freeze closes"))?;
        }
        Ok(())
    }

    async fn end_freeze(
        &mut self,
        freeze: &Freeze,
        by: Option<&SubjectId>,
        actor: &Actor,
        reason: &str,
        comment: String,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sql::query(
            "UPDATE freezes SET ended_ms = ?, ended_by = (SELECT number FROM subjects WHERE id = ?) WHERE id = ?",
        )
        .bind(now.unix_ms())
        .bind(by.map(SubjectId::as_str))
        .bind(freeze.id.to_string())
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("end a freeze"))?;
        self.record_freeze(EventKind::FreezeEnded, freeze, actor, reason, comment, now);
        Ok(())
    }

    fn record_freeze(
        &mut self,
        kind: EventKind,
        freeze: &Freeze,
        actor: &Actor,
        reason: &str,
        comment: String,
        now: Timestamp,
    ) {
        self.record(kind, now, |event| {
            caused_by(event, actor);
            if let Frozen::These(names) = &freeze.what
                && let [name] = names.iter().collect::<Vec<_>>()[..]
            {
                event.resource = name.to_string();
            }
            event.reason = reason.to_owned();
            event.comment = comment;
            event.expires = Some(freeze.until);
        });
    }
}

/// That nothing closes the resource.
pub(super) async fn refuse_if_frozen(
    sql: &mut Transaction,
    name: &ResourceName,
    now: Timestamp,
) -> Result<(), StoreError> {
    Ok(rules::open(&holding(sql, now).await?, name, now)?)
}

/// Those that hold.
async fn holding(sql: &mut Transaction, now: Timestamp) -> Result<Vec<Freeze>, StoreError> {
    let mut query = sql::query_as(FREEZES);
    query.push(" WHERE freezes.ended_ms IS NULL AND freezes.until_ms > ").push_bind(now.unix_ms());
    read_freezes(sql, query).await
}

async fn freeze(sql: &mut Transaction, id: FreezeId) -> Result<Freeze, StoreError> {
    let mut query = sql::query_as(FREEZES);
    query.push(" WHERE freezes.id = ").push_bind(id.to_string());
    let found = read_freezes(sql, query).await?.pop();
    Ok(found.ok_or(Refusal::UnknownFreeze(id))?)
}

const FREEZES: &str = "
    SELECT freezes.id, freezes.everything, freezes.reason, beginners.id AS begun_by, freezes.keep_live,
        freezes.began_ms, freezes.until_ms, freezes.ended_ms, enders.id AS ended_by
    FROM freezes
    JOIN subjects AS beginners ON beginners.number = freezes.begun_by
    LEFT JOIN subjects AS enders ON enders.number = freezes.ended_by";

#[derive(FromRow)]
struct FreezeRow {
    id: String,
    everything: bool,
    reason: String,
    begun_by: String,
    keep_live: bool,
    began_ms: i64,
    until_ms: i64,
    ended_ms: Option<i64>,
    ended_by: Option<String>,
}

async fn read_freezes(
    sql: &mut Transaction,
    query: Query<Rows<FreezeRow>>,
) -> Result<Vec<Freeze>, StoreError> {
    let rows: Vec<FreezeRow> = query.fetch_all(&mut *sql).await.map_err(StoreError::sql("read freezes"))?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let mut query = sql::query_as("SELECT of_freeze, resource FROM freeze_resources WHERE of_freeze IN ");
    query.push_list(rows.iter().map(|row| &row.id));
    let pairs: Vec<(String, String)> =
        query.fetch_all(sql).await.map_err(StoreError::sql("read what freezes close"))?;
    let mut names: HashMap<String, BTreeSet<ResourceName>> = HashMap::new();
    for (freeze, name) in pairs {
        names.entry(freeze).or_default().insert(decode::text("resource", &name)?);
    }
    let decode = |row: FreezeRow| {
        let by = |id: Option<String>| id.map(|id| decode::text("ended_by", &id)).transpose();
        Ok(Freeze {
            id: decode::text("freeze", &row.id)?,
            what: match row.everything {
                true => Frozen::All,
                false => Frozen::These(names.remove(&row.id).unwrap_or_default()),
            },
            began: decode::time("began", row.began_ms)?,
            until: decode::time("until", row.until_ms)?,
            reason: decode::text("reason", &row.reason)?,
            by: decode::text("begun_by", &row.begun_by)?,
            keep_live: row.keep_live,
            ended: match row.ended_ms {
                None => None,
                Some(ended) => Some((decode::time("ended", ended)?, by(row.ended_by)?)),
            },
        })
    };
    rows.into_iter().map(decode).collect()
}
