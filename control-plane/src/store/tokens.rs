//! Tokens' rows: hashes, and whose they are.

use proto::types::{EventKind, SubjectId, SubjectRole, Timestamp};

use super::tx::Tx;
use super::{Store, StoreError, decode};
use crate::identity::TokenHash;
use crate::rules::Refusal;
use crate::rules::calls::Caller;

impl Store {
    /// Whose token this is; None: nobody's.
    pub async fn caller(&self, token: &TokenHash) -> Result<Option<Caller>, StoreError> {
        let row: Option<(String, String)> = sqlx::query_as(
            "SELECT subjects.id, subjects.role FROM tokens
             JOIN subjects ON subjects.number = tokens.subject WHERE tokens.hash = ?",
        )
        .bind(token.as_bytes().as_slice())
        .fetch_optional(&self.readers)
        .await
        .map_err(StoreError::sql("look up a token"))?;
        let caller = |(id, role): (String, String)| {
            let role = decode::text::<SubjectRole>("role", &role)?;
            Ok(Caller::Subject { id: decode::text("subject", &id)?, role })
        };
        row.map(caller).transpose()
    }

    /// Gives a subject this token and ends the one before.
    pub async fn issue_token(
        &self,
        subject: &SubjectId,
        token: &TokenHash,
        actor: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        tx.issue_subject_token(subject, token, actor, now).await?;
        tx.commit().await
    }
}

impl Tx {
    pub(super) async fn issue_subject_token(
        &mut self,
        subject: &SubjectId,
        token: &TokenHash,
        actor: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let given = sqlx::query(
            "INSERT INTO tokens (hash, subject, issued_ms) SELECT ?, number, ? FROM subjects WHERE id = ?
             ON CONFLICT (subject) DO UPDATE SET hash = excluded.hash, issued_ms = excluded.issued_ms",
        )
        .bind(token.as_bytes().as_slice())
        .bind(now.unix_ms())
        .bind(subject.as_str())
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("store a token"))?;
        if given.rows_affected() == 0 {
            return Err(Refusal::UnknownSubject(subject.clone()).into());
        }
        self.record(EventKind::TokenIssued, now, |event| {
            event.subject = subject.to_string();
            event.actor = actor.to_owned();
        })
        .await
    }
}
