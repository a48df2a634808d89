//! Grants that are about to end: which warnings are due, and which were given.
//!
//! Owns: that each warning is on record once for each deadline, whoever gives it and whenever it is started again. Must not know: who is
//! told of it.

use proto::types::{EventKind, Timestamp};

use super::grants::{GRANTS, read};
use super::sql::{self, Query};
use super::tx::caused_by;
use super::{Store, StoreError, decode};
use crate::rules::actor::Actor;
use crate::rules::expiring::{WARNINGS, Warning};

/// How many warnings one transaction gives, so that others get their turn at the database in between.
const WARN_BATCH: u32 = 100;

/// Those that live, were long enough, and have had neither this warning nor a later one of the deadline that they have now. What has been
/// ended, or has yet to become active, warns nobody.
fn push_unwarned<O>(query: &mut Query<O>, warning: Warning, now: Timestamp) {
    query.push(
        " LEFT JOIN grant_warnings ON grant_warnings.grant_id = grants.id
           AND grant_warnings.expires_ms = grants.expires_ms AND grant_warnings.ahead_ms <= ",
    );
    query.push_bind(warning.ahead_ms());
    // The first of them is what the index by deadlines is for.
    query.push(
        " WHERE grants.state <> 'ended' AND grants.state = 'active' AND grant_warnings.grant_id IS NULL",
    );
    query
        .push(" AND grants.expires_ms - coalesce(grants.begins_ms, grants.issued_ms) > ")
        .push_bind(warning.ahead_ms());
    query.push(" AND grants.expires_ms > ").push_bind(now.unix_ms());
}

impl Store {
    /// When the next warning is due, now or later; None: none is, as far as is known.
    pub async fn next_warning(&self, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        let mut next = None;
        for warning in WARNINGS {
            let mut query = sql::query_scalar("SELECT min(grants.expires_ms) FROM grants");
            push_unwarned(&mut query, warning, now);
            let first: Option<i64> = query
                .fetch_one(&self.readers)
                .await
                .map_err(StoreError::sql("read when a grant is about to end"))?;
            let first = first.map(|first| decode::time("expires", first)).transpose()?;
            let due = first.map(|expires| warning.due(expires));
            next = [next, due].into_iter().flatten().min();
        }
        Ok(next)
    }

    /// Puts warnings that are due on record. Returns whether there may be more of them.
    pub async fn warn(&self, now: Timestamp) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        for warning in WARNINGS {
            let mut query = sql::query_as(GRANTS);
            push_unwarned(&mut query, warning, now);
            query.push(" AND grants.expires_ms <= ").push_bind(now.plus(warning.ahead).unix_ms());
            query.push(" ORDER BY grants.expires_ms LIMIT ").push_bind(WARN_BATCH);
            let ending = read(tx.sql(), query).await?;
            if ending.is_empty() {
                continue;
            }
            for kept in &ending {
                let grant = &kept.grant;
                sql::query(
                    "INSERT INTO grant_warnings (grant_id, expires_ms, ahead_ms) VALUES (?, ?, ?)
                     ON CONFLICT (grant_id) DO UPDATE SET expires_ms = excluded.expires_ms,
                         ahead_ms = excluded.ahead_ms",
                )
                .bind(grant.id.to_string())
                .bind(grant.expires.unix_ms())
                .bind(warning.ahead_ms())
                .execute(tx.sql())
                .await
                .map_err(StoreError::sql("note that somebody was warned"))?;
                tx.record_grant(EventKind::GrantExpiring, grant, now, |event| {
                    caused_by(event, &Actor::System);
                    event.reason = warning.name.to_owned();
                });
            }
            tx.commit().await?;
            return Ok(true);
        }
        Ok(false)
    }
}
