//! Tokens' rows: hashes, and whose they are.

use proto::types::{Credential, EventKind, SubjectId, Timestamp};

use super::sign_ins::sign_in_by;
use super::sql;
use super::tx::{Tx, caused_by};
use super::{Store, StoreError, decode};
use crate::identity::TokenHash;
use crate::rules::Refusal;
use crate::rules::actor::Actor;
use crate::rules::calls::Caller;

impl Store {
    /// Whose token this is; None: nobody's, or not any more.
    pub async fn caller(&self, token: &TokenHash, now: Timestamp) -> Result<Option<Caller>, StoreError> {
        match self.holder(token).await? {
            Some(caller) => Ok(Some(caller)),
            None => self.signed_in(token, now).await,
        }
    }

    /// Whose session this is. What a browser holds is of no use to a tool.
    async fn signed_in(&self, token: &TokenHash, now: Timestamp) -> Result<Option<Caller>, StoreError> {
        let row: Option<(String, String, String)> = sql::query_as(
            "SELECT subjects.id, sign_ins.role, sign_ins.credential FROM sign_ins
             JOIN subjects ON subjects.number = sign_ins.subject
             WHERE hash = ? AND expires_ms > ? AND used_ms IS NULL AND subjects.disabled_ms IS NULL",
        )
        .bind(token.as_bytes().as_slice())
        .bind(now.unix_ms())
        .fetch_optional(&self.readers)
        .await
        .map_err(StoreError::sql("look up a session"))?;
        row.map(|(id, role, by)| subject((id, role), sign_in_by(&by)?.credential())).transpose()
    }

    /// Whose static token this is.
    async fn holder(&self, token: &TokenHash) -> Result<Option<Caller>, StoreError> {
        let row: Option<(String, String)> = sql::query_as(
            "SELECT subjects.id, subjects.role FROM tokens
             JOIN subjects ON subjects.number = tokens.subject
             WHERE tokens.hash = ? AND subjects.disabled_ms IS NULL",
        )
        .bind(token.as_bytes().as_slice())
        .fetch_optional(&self.readers)
        .await
        .map_err(StoreError::sql("look up a token"))?;
        row.map(|row| subject(row, Credential::Token)).transpose()
    }

    /// Gives a subject this token and ends the one before.
    pub async fn issue_token(
        &self,
        subject: &SubjectId,
        token: &TokenHash,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        tx.issue_subject_token(subject, token, actor, now).await?;
        tx.commit().await
    }
}

fn subject((id, role): (String, String), credential: Credential) -> Result<Caller, StoreError> {
    let (id, role) = (decode::text("subject", &id)?, decode::text("role", &role)?);
    Ok(Caller::Subject { id, role, credential })
}

impl Tx {
    pub(super) async fn issue_subject_token(
        &mut self,
        subject: &SubjectId,
        token: &TokenHash,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let given = sql::query(
            "INSERT INTO tokens (hash, subject, issued_ms) SELECT ?, number, ? FROM subjects WHERE id = ?
             ON CONFLICT (subject) DO UPDATE SET hash = excluded.hash, issued_ms = excluded.issued_ms",
        )
        .bind(token.as_bytes().as_slice())
        .bind(now.unix_ms())
        .bind(subject.as_str())
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("store a token"))?;
        if given == 0 {
            return Err(Refusal::UnknownSubject(subject.clone()).into());
        }
        self.record(EventKind::TokenIssued, now, |event| {
            event.subject = subject.to_string();
            caused_by(event, actor);
        });
        Ok(())
    }
}
