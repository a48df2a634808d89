//! Who is shut out, and what ends with that.

use std::collections::BTreeMap;

use proto::types::{EndReason, EventKind, SubjectId, Timestamp};

use super::grants::{GRANTS, read};
use super::requests::request;
use super::sql::{self, Transaction};
use super::steps::Cause;
use super::tx::caused_by;
use super::{Store, StoreError, decode};
use crate::rules::Refusal;
use crate::rules::actor::{Acting, Actor};
use crate::rules::request::{Decided, Outcome};

/// What has ended with somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedWith {
    /// Live grants.
    pub grants: u32,
    /// Requests that waited.
    pub requests: u32,
}

impl Store {
    /// Shuts somebody out: nothing that they prove themselves by counts any more, and what they have ends, at once.
    pub async fn disable(
        &self,
        subject: &SubjectId,
        by: &Acting,
        comment: &str,
        now: Timestamp,
    ) -> Result<EndedWith, StoreError> {
        if by.id == *subject {
            return Err(Refusal::OwnSubject(subject.clone()).into());
        }
        let mut tx = self.write().await?;
        match is_disabled(tx.sql(), subject).await? {
            None => return Err(Refusal::UnknownSubject(subject.clone()).into()),
            Some(true) => return Err(Refusal::AlreadyDisabled(subject.clone()).into()),
            Some(false) => {}
        }
        let actor: Actor = by.clone().into();
        sql::query("UPDATE subjects SET disabled_ms = ? WHERE id = ?")
            .bind(now.unix_ms())
            .bind(subject.as_str())
            .execute(tx.sql())
            .await
            .map_err(StoreError::sql("disable a subject"))?;
        let sessions = tx.end_sessions(subject).await?;
        let mut query = sql::query_as(GRANTS);
        query.push(" WHERE grants.state IN ('scheduled', 'activating', 'active') AND subjects.id = ");
        query.push_bind(subject.as_str());
        let live = read(tx.sql(), query).await?;
        let waiting: Vec<String> = sql::query_scalar(
            "SELECT requests.id FROM requests JOIN subjects ON subjects.id = ?
             WHERE requests.state = 'pending' AND subjects.number IN (requests.subject, requests.requester)",
        )
        .bind(subject.as_str())
        .fetch_all(tx.sql())
        .await
        .map_err(StoreError::sql("read a subject's requests"))?;
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let ended = EndedWith { grants: count(live.len()), requests: count(waiting.len()) };
        tx.record(EventKind::SubjectDisabled, now, |event| {
            caused_by(event, &actor);
            event.subject = subject.to_string();
            let EndedWith { grants, requests } = ended;
            event.comment = format!("sessions {sessions}, grants {grants}, requests {requests}");
            if !comment.is_empty() {
                event.comment += &format!(": {comment}");
            }
        });
        let why = format!("`{subject}` was disabled");
        for kept in live {
            let cause = Cause { actor: actor.clone(), comment: why.clone() };
            tx.end(kept, EndReason::IdentityDisabled, cause, now).await?;
        }
        for id in waiting {
            let before = request(tx.sql(), decode::text("request", &id)?).await?;
            let decided = Decided { request: before.id, outcome: Outcome::Denied, by: None };
            tx.decide(&before, &decided, actor.clone(), &why, now).await?;
        }
        tx.commit().await?;
        Ok(ended)
    }

    /// Lets somebody in again; what has ended stays ended.
    pub async fn enable(
        &self,
        subject: &SubjectId,
        actor: &Actor,
        comment: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        if !is_disabled(tx.sql(), subject).await?.ok_or_else(|| Refusal::UnknownSubject(subject.clone()))? {
            return Err(Refusal::NotDisabled(subject.clone()).into());
        }
        sql::query("UPDATE subjects SET disabled_ms = NULL WHERE id = ?")
            .bind(subject.as_str())
            .execute(tx.sql())
            .await
            .map_err(StoreError::sql("enable a subject"))?;
        tx.record(EventKind::SubjectEnabled, now, |event| {
            caused_by(event, actor);
            event.subject = subject.to_string();
            event.comment = comment.to_owned();
        });
        tx.commit().await
    }

    /// Those who are shut out, and since when.
    pub async fn disabled(&self) -> Result<BTreeMap<SubjectId, Timestamp>, StoreError> {
        let rows: Vec<(String, i64)> =
            sql::query_as("SELECT id, disabled_ms FROM subjects WHERE disabled_ms IS NOT NULL")
                .fetch_all(&self.readers)
                .await
                .map_err(StoreError::sql("read who is disabled"))?;
        rows.into_iter()
            .map(|(id, since)| Ok((decode::text("subject", &id)?, decode::time("disabled", since)?)))
            .collect()
    }
}

/// None: there is no such subject.
async fn is_disabled(sql: &mut Transaction, subject: &SubjectId) -> Result<Option<bool>, StoreError> {
    sql::query_scalar("SELECT disabled_ms IS NOT NULL FROM subjects WHERE id = ?")
        .bind(subject.as_str())
        .fetch_optional(sql)
        .await
        .map_err(StoreError::sql("look whether a subject is disabled"))
}

/// That somebody is not shut out. Whom nobody knows is not.
pub(super) async fn refuse_if_disabled(sql: &mut Transaction, subject: &SubjectId) -> Result<(), StoreError> {
    match is_disabled(sql, subject).await? {
        Some(true) => Err(Refusal::Disabled(subject.clone()).into()),
        Some(false) | None => Ok(()),
    }
}
