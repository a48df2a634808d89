//! Sessions that browsers hold: whose they are, and that they end when nobody uses them.

use std::time::Duration;

use proto::types::{SignIn, SubjectId, SubjectRole, Timestamp};
use sqlx::FromRow;

use super::sign_ins::sign_in_by;
use super::sql;
use super::{Store, StoreError, decode};
use crate::identity::TokenHash;
use crate::rules::actor::Acting;

/// How precisely it is known when a session was last used: no page costs a write more often.
const USED_PRECISION: Duration = Duration::from_secs(60);

/// A session that a browser holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrowserSession {
    /// Whose it is.
    pub subject: SubjectId,
    /// What they may do with it.
    pub role: SubjectRole,
    /// With which provider it began, when, and when it ends at the latest.
    pub sign_in: SignIn,
    /// Of their groups those that have a role here.
    pub groups: Vec<String>,
    /// When it ends, if it is not used again.
    pub idle_end: Timestamp,
}

impl BrowserSession {
    /// Whom it makes act.
    pub fn acting(&self) -> Acting {
        Acting { id: self.subject.clone(), credential: self.sign_in.by.credential() }
    }
}

#[derive(FromRow)]
struct Row {
    id: String,
    role: String,
    credential: String,
    provider: String,
    groups: String,
    began_ms: i64,
    expires_ms: i64,
    used_ms: i64,
}

impl Store {
    /// The session of a browser's secret, which counts as used at `now`, within a minute; None: nobody's, not any more, or not used for `idle`.
    pub async fn browser_session(
        &self,
        token: &TokenHash,
        idle: Duration,
        now: Timestamp,
    ) -> Result<Option<BrowserSession>, StoreError> {
        let row: Option<Row> = sql::query_as(
            "SELECT subjects.id, sign_ins.role, sign_ins.credential, sign_ins.provider, sign_ins.role_groups AS groups,
                 sign_ins.began_ms, sign_ins.expires_ms, sign_ins.used_ms
             FROM sign_ins JOIN subjects ON subjects.number = sign_ins.subject
             WHERE hash = ? AND expires_ms > ? AND used_ms IS NOT NULL AND subjects.disabled_ms IS NULL",
        )
        .bind(token.as_bytes().as_slice())
        .bind(now.unix_ms())
        .fetch_optional(&self.readers)
        .await
        .map_err(StoreError::sql("look up a browser's session"))?;
        let Some(row) = row else { return Ok(None) };
        let mut used = decode::time("used", row.used_ms)?;
        if now >= used.plus(idle) {
            return Ok(None);
        }
        if now >= used.plus(USED_PRECISION) {
            self.note_used(token, now).await?;
            used = now;
        }
        let sign_in = SignIn {
            by: sign_in_by(&row.credential)?,
            provider: decode::text("provider", &row.provider)?,
            began: decode::time("began", row.began_ms)?,
            expires: decode::time("expires", row.expires_ms)?,
        };
        Ok(Some(BrowserSession {
            subject: decode::text("subject", &row.id)?,
            role: decode::text("role", &row.role)?,
            groups: row.groups.split('\n').filter(|group| !group.is_empty()).map(str::to_owned).collect(),
            idle_end: used.plus(idle).min(sign_in.expires),
            sign_in,
        }))
    }

    async fn note_used(&self, token: &TokenHash, now: Timestamp) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        sql::query("UPDATE sign_ins SET used_ms = ? WHERE hash = ? AND used_ms < ?")
            .bind(now.unix_ms())
            .bind(token.as_bytes().as_slice())
            .bind(now.unix_ms())
            .execute(tx.sql())
            .await
            .map_err(StoreError::sql("note that a session is used"))?;
        tx.commit().await
    }
}
