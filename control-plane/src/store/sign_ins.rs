//! Sign-ins with identity providers: sessions' rows, and ID tokens that were used.

use std::time::Duration;

use proto::types::{
    Credential, EventKind, NewSubject, ProviderName, SignIn, SubjectId, SubjectIdentity, SubjectRole,
    Timestamp,
};
use sqlx::SqliteConnection;

use super::tx::{Tx, caused_by};
use super::{Store, StoreError, decode};
use crate::identity::TokenHash;
use crate::rules::Refusal;
use crate::rules::actor::Acting;
use crate::rules::claims::{Expected, Proven, role};

/// How many sessions one subject can have: a person has a few machines. Beyond it the oldest ends.
const SESSIONS_MAX: i64 = 32;

/// What is asked of the record when somebody has proven who they are.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// What the token proves.
    pub proven: &'a Proven,
    /// By which provider.
    pub provider: &'a ProviderName,
    /// What its operator expects, roles among it.
    pub expected: &'a Expected,
    /// How long the session lasts.
    pub lifetime: Duration,
    /// By what the ID token is known, which is used up.
    pub id_token: TokenHash,
    /// Of the new session's token.
    pub token: TokenHash,
    /// Of the session that the new one takes the place of.
    pub replaces: Option<TokenHash>,
}

impl Store {
    /// Begins a session. Somebody new gets into the directory, if the provider or the operator gives them a role.
    pub async fn sign_in(&self, entry: &Entry<'_>, now: Timestamp) -> Result<SubjectIdentity, StoreError> {
        let mut tx = self.write().await?;
        forget_what_is_over(tx.sql(), now).await?;
        tx.use_up(&entry.id_token, entry.proven.usable_until).await?;
        let subject = &entry.proven.subject;
        let known = in_directory(tx.sql(), subject).await?;
        let of_directory = known.as_ref().filter(|known| !known.by_provider).map(|known| known.role);
        let role = role(entry.proven, entry.expected, of_directory)
            .ok_or_else(|| Refusal::NotLetIn(subject.clone()))?;
        let acting = Acting { id: subject.clone(), credential: Credential::Session };
        match &known {
            None => tx.enter(entry.provider, role, &acting, now).await?,
            Some(known) if known.by_provider && known.role != role => tx.note_role(subject, role).await?,
            Some(_) => {}
        }
        let replaced = match &entry.replaces {
            Some(replaced) => tx.end_session_of(subject, replaced).await?,
            None => false,
        };
        let expires = now.plus(entry.lifetime);
        tx.begin(entry, role, now, expires).await?;
        tx.record(EventKind::SubjectSignedIn, now, |event| {
            caused_by(event, &acting.into());
            event.subject = subject.to_string();
            event.reason = if replaced { "renewed" } else { "signed_in" }.to_owned();
            event.expires = Some(expires);
            event.comment = told(entry, role);
        })
        .await?;
        tx.commit().await?;
        let sign_in = SignIn { provider: entry.provider.clone(), began: now, expires };
        Ok(SubjectIdentity { subject: subject.clone(), role, sign_in: Some(sign_in) })
    }

    /// Ends a session before its time.
    pub async fn sign_out(
        &self,
        token: &TokenHash,
        acting: &Acting,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        if !tx.end_session_of(&acting.id, token).await? {
            return Err(Refusal::NoSession.into());
        }
        tx.record(EventKind::SubjectSignedOut, now, |event| {
            caused_by(event, &acting.clone().into());
            event.subject = acting.id.to_string();
        })
        .await?;
        tx.commit().await
    }

    /// The session of this token, if it has not ended.
    pub async fn session(&self, token: &TokenHash, now: Timestamp) -> Result<Option<SignIn>, StoreError> {
        let row: Option<(String, i64, i64)> = sqlx::query_as(
            "SELECT provider, began_ms, expires_ms FROM sign_ins WHERE hash = ? AND expires_ms > ?",
        )
        .bind(token.as_bytes().as_slice())
        .bind(now.unix_ms())
        .fetch_optional(&self.readers)
        .await
        .map_err(StoreError::sql("look up a session"))?;
        let Some((provider, began, expires)) = row else { return Ok(None) };
        Ok(Some(SignIn {
            provider: decode::text("provider", &provider)?,
            began: decode::time("began", began)?,
            expires: decode::time("expires", expires)?,
        }))
    }
}

/// What the directory has of somebody.
struct InDirectory {
    role: SubjectRole,
    /// Only a sign-in has put them there.
    by_provider: bool,
}

async fn in_directory(
    sql: &mut SqliteConnection,
    subject: &SubjectId,
) -> Result<Option<InDirectory>, StoreError> {
    let row: Option<(String, bool)> =
        sqlx::query_as("SELECT role, provider IS NOT NULL FROM subjects WHERE id = ?")
            .bind(subject.as_str())
            .fetch_optional(sql)
            .await
            .map_err(StoreError::sql("look up a subject"))?;
    let known = |(role, by_provider): (String, bool)| {
        Ok(InDirectory { role: decode::text("role", &role)?, by_provider })
    };
    row.map(known).transpose()
}

/// Rows that nobody can use any more.
async fn forget_what_is_over(sql: &mut SqliteConnection, now: Timestamp) -> Result<(), StoreError> {
    for statement in [
        "DELETE FROM sign_ins WHERE expires_ms <= ?",
        "DELETE FROM used_id_tokens WHERE usable_until_ms <= ?",
    ] {
        sqlx::query(statement)
            .bind(now.unix_ms())
            .execute(&mut *sql)
            .await
            .map_err(StoreError::sql("forget sign-ins that are over"))?;
    }
    Ok(())
}

/// For people: with which provider, as whom, how proven.
fn told(entry: &Entry<'_>, role: SubjectRole) -> String {
    let Proven { account, methods, .. } = entry.proven;
    let account: String = account.chars().flat_map(char::escape_debug).collect();
    let mut text = format!("provider `{}`, account `{account}`, role {role}", entry.provider);
    if !methods.is_empty() {
        text += &format!(", by {}", methods.join(" "));
    }
    text
}

impl Tx {
    /// Notes that an ID token is used; refused if it was before.
    async fn use_up(&mut self, id_token: &TokenHash, until: Timestamp) -> Result<(), StoreError> {
        let noted = sqlx::query(
            "INSERT INTO used_id_tokens (hash, usable_until_ms) VALUES (?, ?) ON CONFLICT (hash) DO NOTHING",
        )
        .bind(id_token.as_bytes().as_slice())
        .bind(until.unix_ms())
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("note that an ID token is used"))?;
        match noted.rows_affected() {
            0 => Err(Refusal::IdTokenUsed.into()),
            _ => Ok(()),
        }
    }

    /// Puts somebody into the directory who is there by their sign-in only.
    async fn enter(
        &mut self,
        provider: &ProviderName,
        role: SubjectRole,
        acting: &Acting,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let new = NewSubject { id: acting.id.clone(), selectors: Vec::new(), role };
        let subject = self.add_subject(new, &acting.clone().into(), now).await?;
        sqlx::query("UPDATE subjects SET provider = ? WHERE number = ?")
            .bind(provider.as_str())
            .bind(subject.number.get())
            .execute(self.sql())
            .await
            .map_err(StoreError::sql("note who brought a subject"))?;
        self.raise_all().await
    }

    async fn note_role(&mut self, subject: &SubjectId, role: SubjectRole) -> Result<(), StoreError> {
        sqlx::query("UPDATE subjects SET role = ? WHERE id = ?")
            .bind(role.as_str())
            .bind(subject.as_str())
            .execute(self.sql())
            .await
            .map_err(StoreError::sql("note a subject's role"))?;
        Ok(())
    }

    /// Whether there was such a session of this subject.
    async fn end_session_of(&mut self, subject: &SubjectId, token: &TokenHash) -> Result<bool, StoreError> {
        let ended = sqlx::query(
            "DELETE FROM sign_ins WHERE hash = ? AND subject = (SELECT number FROM subjects WHERE id = ?)",
        )
        .bind(token.as_bytes().as_slice())
        .bind(subject.as_str())
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("end a session"))?;
        Ok(ended.rows_affected() > 0)
    }

    async fn begin(
        &mut self,
        entry: &Entry<'_>,
        role: SubjectRole,
        now: Timestamp,
        expires: Timestamp,
    ) -> Result<(), StoreError> {
        let Proven { subject, account, proven, methods, .. } = entry.proven;
        // Room for one more: the oldest beyond that go.
        sqlx::query(
            "DELETE FROM sign_ins WHERE hash IN (
                 SELECT hash FROM sign_ins WHERE subject = (SELECT number FROM subjects WHERE id = ?)
                 ORDER BY began_ms DESC LIMIT -1 OFFSET ?)",
        )
        .bind(subject.as_str())
        .bind(SESSIONS_MAX - 1)
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("end the oldest sessions"))?;
        sqlx::query(
            "INSERT INTO sign_ins
                 (hash, subject, role, provider, account, proven_ms, methods, began_ms, expires_ms)
             SELECT ?, number, ?, ?, ?, ?, ?, ?, ? FROM subjects WHERE id = ?",
        )
        .bind(entry.token.as_bytes().as_slice())
        .bind(role.as_str())
        .bind(entry.provider.as_str())
        .bind(account)
        .bind(proven.map(Timestamp::unix_ms))
        .bind(methods.join("\n"))
        .bind(now.unix_ms())
        .bind(expires.unix_ms())
        .bind(subject.as_str())
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("begin a session"))?;
        Ok(())
    }
}
