//! Sign-ins, of people and of workloads: sessions' rows, and tokens that were used.

use std::time::Duration;

use ::policy::facts::Device;
use ::policy::names::GroupName;
use proto::types::{
    Credential, EventKind, NewSubject, ProviderName, SignIn, SignInBy, SubjectId, SubjectIdentity,
    SubjectRole, Timestamp,
};

use super::disabling::refuse_if_disabled;
use super::sql::{self, Transaction};
use super::tx::{Tx, caused_by};
use super::{Store, StoreError, decode};
use crate::identity::TokenHash;
use crate::rules::Refusal;
use crate::rules::actor::Acting;
use crate::rules::claims::{Expected, Proven, role};
use crate::rules::workload;

/// How many sessions one subject can have: a person has a few machines. Beyond it the oldest ends.
const SESSIONS_MAX: i64 = 32;

/// The same of a workload: a job signs in with each command, and many jobs run at once.
const WORKLOAD_SESSIONS_MAX: i64 = 1000;

/// How often one workload's token may be used: a job whose commands each sign in has fewer, and who has stolen it is bounded.
const WORKLOAD_TOKEN_USES_MAX: u32 = 100;

/// Whatever an administrator made of the subject in the directory: what a job's token is enough for is to ask, use and release.
const WORKLOAD_ROLE: SubjectRole = SubjectRole::Member;

/// Who holds the secret of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldBy {
    /// A tool, which shows it as a bearer token.
    Tool,
    /// A browser, which keeps it as a cookie of the console's.
    Browser,
}

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
    /// Who gets it.
    pub held_by: HeldBy,
    /// Of the session that the new one takes the place of.
    pub replaces: Option<TokenHash>,
}

/// What is asked of the record when a workload has proven what it is.
#[derive(Clone, Debug)]
pub struct WorkloadEntry<'a> {
    /// What the token proves.
    pub proven: &'a workload::Proven,
    /// By which issuer.
    pub issuer: &'a ProviderName,
    /// How long the session lasts.
    pub lifetime: Duration,
    /// By what the workload's token is known; None: it has shown a certificate, which only its owner can.
    pub used: Option<TokenHash>,
    /// Of the new session's token.
    pub token: TokenHash,
}

/// A session that is to begin.
struct NewSession<'a> {
    subject: &'a SubjectId,
    role: SubjectRole,
    by: SignInBy,
    provider: &'a ProviderName,
    account: &'a str,
    proven: Option<Timestamp>,
    methods: &'a [String],
    groups: &'a [String],
    named_groups: Vec<&'a str>,
    device: Option<Device>,
    token: &'a TokenHash,
    held_by: HeldBy,
    began: Timestamp,
    expires: Timestamp,
}

impl Store {
    /// Begins a session. Somebody new gets into the directory, if the provider or the operator gives them a role.
    pub async fn sign_in(&self, entry: &Entry<'_>, now: Timestamp) -> Result<SubjectIdentity, StoreError> {
        let mut tx = self.write().await?;
        forget_what_is_over(tx.sql(), now).await?;
        tx.use_up(&entry.id_token, entry.proven.usable_until, 1).await?;
        let subject = &entry.proven.subject;
        refuse_if_disabled(tx.sql(), subject).await?;
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
        tx.bind(entry, &acting, now).await?;
        let replaced = match &entry.replaces {
            Some(replaced) => tx.end_session_of(subject, replaced).await?,
            None => false,
        };
        if let (HeldBy::Browser, Some(before)) = (entry.held_by, &entry.replaces) {
            tx.end_session_of_another(before, now).await?;
        }
        let expires = now.plus(entry.lifetime);
        let Proven { account, proven, methods, groups, named_groups, device, .. } = entry.proven;
        let session = NewSession {
            subject,
            role,
            by: SignInBy::Person,
            provider: entry.provider,
            account,
            proven: *proven,
            methods,
            groups,
            named_groups: named_groups.iter().map(GroupName::as_str).collect(),
            device: *device,
            token: &entry.token,
            held_by: entry.held_by,
            began: now,
            expires,
        };
        tx.begin(&session).await?;
        tx.note_groups(subject, &session.named_groups).await?;
        tx.record(EventKind::SubjectSignedIn, now, |event| {
            caused_by(event, &acting.into());
            event.subject = subject.to_string();
            // A browser does nothing without the person.
            let is_renewed = replaced && entry.held_by == HeldBy::Tool;
            event.reason = if is_renewed { "renewed" } else { "signed_in" }.to_owned();
            event.expires = Some(expires);
            event.comment = told(entry, role);
        });
        tx.commit().await?;
        Ok(session.identity())
    }

    /// Begins a workload's session. What an operator has bound to its claims is in the directory from then on.
    pub async fn sign_in_workload(
        &self,
        entry: &WorkloadEntry<'_>,
        now: Timestamp,
    ) -> Result<SubjectIdentity, StoreError> {
        let mut tx = self.write().await?;
        forget_what_is_over(tx.sql(), now).await?;
        let workload::Proven { subject, account, usable_until } = entry.proven;
        let shown = match &entry.used {
            Some(token) => {
                let times = tx.use_up(token, *usable_until, WORKLOAD_TOKEN_USES_MAX).await?;
                format!("use {times} of the token")
            }
            None => "by certificate".to_owned(),
        };
        refuse_if_disabled(tx.sql(), subject).await?;
        let acting = Acting { id: subject.clone(), credential: Credential::Workload };
        if in_directory(tx.sql(), subject).await?.is_none() {
            tx.enter(entry.issuer, WORKLOAD_ROLE, &acting, now).await?;
        }
        let expires = now.plus(entry.lifetime);
        let session = NewSession {
            subject,
            role: WORKLOAD_ROLE,
            by: SignInBy::Workload,
            provider: entry.issuer,
            account,
            proven: None,
            methods: &[],
            groups: &[],
            named_groups: Vec::new(),
            device: None,
            token: &entry.token,
            held_by: HeldBy::Tool,
            began: now,
            expires,
        };
        tx.begin(&session).await?;
        tx.record(EventKind::SubjectSignedIn, now, |event| {
            caused_by(event, &acting.into());
            event.subject = subject.to_string();
            event.reason = "workload".to_owned();
            event.expires = Some(expires);
            let account: String = account.chars().flat_map(char::escape_debug).collect();
            event.comment = format!("issuer `{}`, account `{account}`, {shown}", entry.issuer);
        });
        tx.commit().await?;
        Ok(session.identity())
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
        });
        tx.commit().await
    }

    /// The session of this token, if it has not ended.
    pub async fn session(&self, token: &TokenHash, now: Timestamp) -> Result<Option<SignIn>, StoreError> {
        let row: Option<(String, String, i64, i64)> = sql::query_as(
            "SELECT credential, provider, began_ms, expires_ms FROM sign_ins WHERE hash = ? AND expires_ms > ?",
        )
        .bind(token.as_bytes().as_slice())
        .bind(now.unix_ms())
        .fetch_optional(&self.readers)
        .await
        .map_err(StoreError::sql("look up a session"))?;
        let Some((credential, provider, began, expires)) = row else { return Ok(None) };
        Ok(Some(SignIn {
            by: sign_in_by(&credential)?,
            provider: decode::text("provider", &provider)?,
            began: decode::time("began", began)?,
            expires: decode::time("expires", expires)?,
        }))
    }
}

impl NewSession<'_> {
    /// Whom the control plane takes its holder for.
    fn identity(&self) -> SubjectIdentity {
        let Self { by, provider, began, expires, .. } = self;
        let sign_in = SignIn { by: *by, provider: (*provider).clone(), began: *began, expires: *expires };
        SubjectIdentity { subject: self.subject.clone(), role: self.role, sign_in: Some(sign_in) }
    }
}

/// Who signed in, as a row says.
pub(super) fn sign_in_by(text: &str) -> Result<SignInBy, StoreError> {
    const ALL: [SignInBy; 2] = [SignInBy::Person, SignInBy::Workload];
    decode::one_of("credential", &ALL, |by| by.credential().as_str(), text)
}

/// What the directory has of somebody.
struct InDirectory {
    role: SubjectRole,
    /// Only a sign-in has put them there.
    by_provider: bool,
}

async fn in_directory(sql: &mut Transaction, subject: &SubjectId) -> Result<Option<InDirectory>, StoreError> {
    let row: Option<(String, bool)> =
        sql::query_as("SELECT role, provider IS NOT NULL FROM subjects WHERE id = ?")
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
pub(super) async fn forget_what_is_over(sql: &mut Transaction, now: Timestamp) -> Result<(), StoreError> {
    for statement in
        ["DELETE FROM sign_ins WHERE expires_ms <= ?", "DELETE FROM used_tokens WHERE usable_until_ms <= ?"]
    {
        sql::query(statement)
            .bind(now.unix_ms())
            .execute(&mut *sql)
            .await
            .map_err(StoreError::sql("forget sign-ins that are over"))?;
    }
    Ok(())
}

/// For people: with which provider, as whom, how proven.
fn told(entry: &Entry<'_>, role: SubjectRole) -> String {
    let Proven { account, methods, device, .. } = entry.proven;
    let account: String = account.chars().flat_map(char::escape_debug).collect();
    let mut text = format!("provider `{}`, account `{account}`, role {role}", entry.provider);
    if !methods.is_empty() {
        text += &format!(", by {}", methods.join(" "));
    }
    text += match device {
        None => "",
        Some(Device { managed: true, encrypted: true }) => ", device managed and encrypted",
        Some(Device { managed: true, encrypted: false }) => ", device managed",
        Some(Device { managed: false, encrypted: true }) => ", device encrypted",
        Some(Device { managed: false, encrypted: false }) => ", device neither managed nor encrypted",
    };
    if entry.held_by == HeldBy::Browser {
        text += ", at the console";
    }
    text
}

impl Tx {
    /// Notes that a token is used, and the how manieth time that is; refused if it was used `most` times before.
    pub(super) async fn use_up(
        &mut self,
        token: &TokenHash,
        until: Timestamp,
        most: u32,
    ) -> Result<u32, StoreError> {
        let times: Option<i64> = sql::query_scalar(
            "INSERT INTO used_tokens (hash, usable_until_ms) VALUES (?, ?)
             ON CONFLICT (hash) DO UPDATE SET times = used_tokens.times + 1
             WHERE used_tokens.times < ? RETURNING times",
        )
        .bind(token.as_bytes().as_slice())
        .bind(until.unix_ms())
        .bind(most)
        .fetch_optional(self.sql())
        .await
        .map_err(StoreError::sql("note that a token is used"))?;
        let used_up = || if most == 1 { Refusal::IdTokenUsed } else { Refusal::TokenUsedUp(most) };
        decode::number("times", times.ok_or_else(used_up)?)
    }

    /// Ends all sessions of a subject; returns how many.
    pub(super) async fn end_sessions(&mut self, subject: &SubjectId) -> Result<u64, StoreError> {
        sql::query("DELETE FROM sign_ins WHERE subject = (SELECT number FROM subjects WHERE id = ?)")
            .bind(subject.as_str())
            .execute(self.sql())
            .await
            .map_err(StoreError::sql("end a subject's sessions"))
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
        sql::query("UPDATE subjects SET provider = ? WHERE number = ?")
            .bind(provider.as_str())
            .bind(subject.number.get())
            .execute(self.sql())
            .await
            .map_err(StoreError::sql("note who brought a subject"))?;
        self.raise_all().await
    }

    async fn note_role(&mut self, subject: &SubjectId, role: SubjectRole) -> Result<(), StoreError> {
        sql::query("UPDATE subjects SET role = ? WHERE id = ?")
            .bind(role.as_str())
            .bind(subject.as_str())
            .execute(self.sql())
            .await
            .map_err(StoreError::sql("note a subject's role"))?;
        Ok(())
    }

    /// Whoever is in other groups by now is judged by these, in what they have asked for themselves and what lives of it: who has left a
    /// group does not keep what it gave.
    async fn note_groups(&mut self, subject: &SubjectId, groups: &[&str]) -> Result<(), StoreError> {
        sql::query(
            "UPDATE requests SET named_groups = ?
             WHERE id IN (
                 SELECT id FROM requests WHERE state = 'pending'
                 UNION ALL SELECT request FROM grants WHERE state <> 'ended'
             ) AND subject = (SELECT number FROM subjects WHERE id = ?) AND requester = subject AND named_groups <> ?",
        )
        .bind(groups.join("\n"))
        .bind(subject.as_str())
        .bind(groups.join("\n"))
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("note which groups somebody is in"))?;
        Ok(())
    }

    /// Whether there was such a session of this subject.
    async fn end_session_of(&mut self, subject: &SubjectId, token: &TokenHash) -> Result<bool, StoreError> {
        let ended = sql::query(
            "DELETE FROM sign_ins WHERE hash = ? AND subject = (SELECT number FROM subjects WHERE id = ?)",
        )
        .bind(token.as_bytes().as_slice())
        .bind(subject.as_str())
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("end a session"))?;
        Ok(ended > 0)
    }

    /// Ends the session that a browser had until somebody else signed in with it.
    async fn end_session_of_another(&mut self, token: &TokenHash, now: Timestamp) -> Result<(), StoreError> {
        let before: Option<(String, String)> = sql::query_as(
            "DELETE FROM sign_ins WHERE hash = ? AND used_ms IS NOT NULL
             RETURNING (SELECT id FROM subjects WHERE number = subject), credential",
        )
        .bind(token.as_bytes().as_slice())
        .fetch_optional(self.sql())
        .await
        .map_err(StoreError::sql("end a browser's session"))?;
        let Some((id, by)) = before else { return Ok(()) };
        let id: SubjectId = decode::text("subject", &id)?;
        let acting = Acting { id: id.clone(), credential: sign_in_by(&by)?.credential() };
        self.record(EventKind::SubjectSignedOut, now, |event| {
            caused_by(event, &acting.into());
            event.subject = id.to_string();
            event.comment = "somebody else signed in with the same browser".to_owned();
        });
        Ok(())
    }

    async fn begin(&mut self, session: &NewSession<'_>) -> Result<(), StoreError> {
        let sessions_max = match session.by {
            SignInBy::Person => SESSIONS_MAX,
            SignInBy::Workload => WORKLOAD_SESSIONS_MAX,
        };
        // Room for one more: the oldest beyond that go.
        sql::query(
            "DELETE FROM sign_ins WHERE hash IN (
                 SELECT hash FROM sign_ins WHERE subject = (SELECT number FROM subjects WHERE id = ?)
                 ORDER BY began_ms DESC LIMIT 9223372036854775807 OFFSET ?)",
        )
        .bind(session.subject.as_str())
        .bind(sessions_max - 1)
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("end the oldest sessions"))?;
        sql::query(
            "INSERT INTO sign_ins
                 (hash, subject, role, credential, provider, account, proven_ms, methods, role_groups, named_groups,
                 device_managed, device_encrypted, began_ms, expires_ms, used_ms)
             SELECT ?, number, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ? FROM subjects WHERE id = ?",
        )
        .bind(session.token.as_bytes().as_slice())
        .bind(session.role.as_str())
        .bind(session.by.credential().as_str())
        .bind(session.provider.as_str())
        .bind(session.account)
        .bind(session.proven.map(Timestamp::unix_ms))
        .bind(session.methods.join("\n"))
        .bind(session.groups.join("\n"))
        .bind(session.named_groups.join("\n"))
        .bind(session.device.map(|device| device.managed))
        .bind(session.device.map(|device| device.encrypted))
        .bind(session.began.unix_ms())
        .bind(session.expires.unix_ms())
        .bind((session.held_by == HeldBy::Browser).then(|| session.began.unix_ms()))
        .bind(session.subject.as_str())
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("begin a session"))?;
        Ok(())
    }
}
