//! Bindings: which account has which person's name.

use proto::types::{EventKind, SubjectId, Timestamp};

use super::sign_ins::Entry;
use super::sql;
use super::tx::{Tx, caused_by};
use super::{Store, StoreError, decode};
use crate::rules::Refusal;
use crate::rules::actor::{Acting, Actor};
use crate::rules::binding::{Account, Binding, bind};

impl Store {
    /// Takes a name away from its account, and ends all sessions of the person. The next account that signs in under it has it.
    pub async fn unbind(
        &self,
        subject: &SubjectId,
        actor: &Actor,
        comment: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let bound = tx.account_of(subject).await?.ok_or_else(|| Refusal::NotBound(subject.clone()))?;
        sql::query("UPDATE subjects SET issuer = NULL, account = NULL WHERE id = ?")
            .bind(subject.as_str())
            .execute(tx.sql())
            .await
            .map_err(StoreError::sql("unbind a subject"))?;
        let ended = tx.end_sessions(subject).await?;
        tx.record(EventKind::SubjectUnbound, now, |event| {
            caused_by(event, actor);
            event.subject = subject.to_string();
            event.comment = format!("{}, {} sessions ended", told(&bound), ended);
            if !comment.is_empty() {
                event.comment += &format!(": {comment}");
            }
        });
        tx.commit().await
    }
}

impl Tx {
    /// Sees to it that somebody's name is their account's; the first one gets it. To be called when they are in the directory.
    pub(super) async fn bind(
        &mut self,
        entry: &Entry<'_>,
        acting: &Acting,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let subject = &acting.id;
        let account = Account { issuer: entry.expected.issuer.clone(), name: entry.proven.account.clone() };
        let bound = self.account_of(subject).await?;
        let owner = self.owner_of(&account).await?;
        match bind(subject, &account, bound.as_ref(), owner.as_ref())? {
            Binding::Kept => return Ok(()),
            Binding::Made => {}
        }
        sql::query("UPDATE subjects SET issuer = ?, account = ? WHERE id = ?")
            .bind(&account.issuer)
            .bind(&account.name)
            .bind(subject.as_str())
            .execute(self.sql())
            .await
            .map_err(StoreError::sql("bind a subject"))?;
        self.record(EventKind::SubjectBound, now, |event| {
            caused_by(event, &acting.clone().into());
            event.subject = subject.to_string();
            event.comment = format!("provider `{}`, {}", entry.provider, told(&account));
        });
        Ok(())
    }

    /// The account that has a name; None: none yet.
    async fn account_of(&mut self, subject: &SubjectId) -> Result<Option<Account>, StoreError> {
        let row: Option<(Option<String>, Option<String>)> =
            sql::query_as("SELECT issuer, account FROM subjects WHERE id = ?")
                .bind(subject.as_str())
                .fetch_optional(self.sql())
                .await
                .map_err(StoreError::sql("look up a subject's account"))?;
        let (issuer, name) = row.ok_or_else(|| Refusal::UnknownSubject(subject.clone()))?;
        Ok(issuer.zip(name).map(|(issuer, name)| Account { issuer, name }))
    }

    /// The name that an account has; None: none yet.
    async fn owner_of(&mut self, account: &Account) -> Result<Option<SubjectId>, StoreError> {
        let id: Option<String> =
            sql::query_scalar("SELECT id FROM subjects WHERE issuer = ? AND account = ?")
                .bind(&account.issuer)
                .bind(&account.name)
                .fetch_optional(self.sql())
                .await
                .map_err(StoreError::sql("look up an account's subject"))?;
        id.map(|id| decode::text("subject", &id)).transpose()
    }
}

/// For people.
fn told(account: &Account) -> String {
    let name: String = account.name.chars().flat_map(char::escape_debug).collect();
    format!("issuer `{}`, account `{name}`", account.issuer)
}
