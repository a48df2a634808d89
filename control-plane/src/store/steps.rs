//! Grants: their steps, each with its events and with the sets it changes.

use proto::types::{AuditEvent, EndReason, EventKind, Grant, GrantId, GrantState, HostName, Timestamp};

use super::grants::{GRANTS, Kept, grant, holding_words, kept, read};
use super::sql;
use super::tx::{Tx, caused_by};
use super::{Store, StoreError, Whose, decode};
use crate::rules::Refusal;
use crate::rules::actor::{Acting, Actor};
use crate::rules::grant::{Answer, Body, Holding, NotLive, Step, Stepped, event_of};
use crate::rules::placement::{self, Removal};

/// How many grants one transaction ends, so that others get their turn at the database in between.
const EXPIRE_BATCH: u32 = 100;

/// Who or what makes a step, for the record.
#[derive(Clone)]
pub(super) struct Cause {
    pub(super) actor: Actor,
    pub(super) comment: String,
}

impl Store {
    /// Ends a grant; of somebody's own only, if `whose` says so.
    pub async fn end_grant(
        &self,
        id: GrantId,
        reason: EndReason,
        caller: &Acting,
        whose: &Whose,
        comment: &str,
        now: Timestamp,
    ) -> Result<Grant, StoreError> {
        let mut tx = self.write().await?;
        let kept = kept(tx.sql(), id).await?;
        if let Whose::Of(holder) = whose
            && ![&kept.grant.subject, &kept.requester].contains(&holder)
        {
            return Err(Refusal::NotHolder { caller: caller.id.clone(), grant: id }.into());
        }
        let cause = Cause { actor: caller.clone().into(), comment: comment.to_owned() };
        tx.end(kept, reason, cause, now).await?;
        let grant = grant(tx.sql(), id).await?;
        tx.commit().await?;
        Ok(grant)
    }

    /// When the next grant reaches its deadline; None: there is no live one.
    pub async fn next_deadline(&self) -> Result<Option<Timestamp>, StoreError> {
        let next: Option<i64> =
            sql::query_scalar("SELECT min(expires_ms) FROM grants WHERE state <> 'ended'")
                .fetch_one(&self.readers)
                .await
                .map_err(StoreError::sql("read the next deadline"))?;
        next.map(|next| decode::time("expires", next)).transpose()
    }

    /// Ends grants whose deadline has passed. Returns whether there may be more of them.
    pub async fn expire(&self, now: Timestamp) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        let mut query = sql::query_as(GRANTS);
        query.push(" WHERE grants.state <> 'ended' AND grants.expires_ms <= ").push_bind(now.unix_ms());
        query.push(" ORDER BY grants.expires_ms LIMIT ").push_bind(EXPIRE_BATCH);
        let over = read(tx.sql(), query).await?;
        let may_be_more = over.len() == EXPIRE_BATCH as usize;
        for kept in over {
            let cause = Cause { actor: Actor::System, comment: String::new() };
            tx.step(kept, Step::Wait, cause, now).await?;
        }
        tx.commit().await?;
        Ok(may_be_more)
    }
}

impl Tx {
    /// A host's agent said something about a grant.
    pub(super) async fn heard(
        &mut self,
        id: GrantId,
        host: &HostName,
        answer: Answer,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.heard_from(id, vec![(host.clone(), answer)], now).await
    }

    /// The agents of these hosts said something about a grant, in this order.
    pub(super) async fn heard_from(
        &mut self,
        id: GrantId,
        answers: Vec<(HostName, Answer)>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let step = |(host, answer): (HostName, Answer)| {
            let comment = match &answer {
                Answer::Refuses(error) => error.clone(),
                Answer::Holds | Answer::Lacks | Answer::Blank | Answer::Ends(_) => String::new(),
            };
            (Cause { actor: Actor::Host(host.clone()), comment }, Step::Heard(host, answer))
        };
        let kept = kept(self.sql(), id).await?;
        self.steps(kept, answers.into_iter().map(step).collect(), now).await
    }

    /// Ends a grant.
    pub(super) async fn end(
        &mut self,
        kept: Kept,
        reason: EndReason,
        cause: Cause,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.step(kept, Step::End(reason), cause, now).await
    }

    /// Makes one step and writes down what it changed.
    pub(super) async fn step(
        &mut self,
        kept: Kept,
        step: Step,
        cause: Cause,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.steps(kept, vec![(cause, step)], now).await
    }

    /// Makes steps, one after the other, and writes down what they changed.
    async fn steps(
        &mut self,
        kept: Kept,
        steps: Vec<(Cause, Step)>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let Kept { grant, life: before, .. } = kept;
        let refused = |NotLive(state)| Refusal::NotLive { grant: grant.id, state };
        let mut life = before.clone();
        let mut entered = Vec::new();
        for (cause, step) in steps {
            let stepped: Stepped = life.step(step, now).map_err(refused)?;
            life = stepped.life;
            entered.extend(stepped.entered.into_iter().map(|state| (state, cause.clone())));
        }
        if life == before {
            return Ok(());
        }
        for (host, holding) in &life.body().hosts {
            if before.body().hosts.get(host) != Some(holding) {
                self.note_holding(grant.id, host, holding).await?;
            }
        }
        let states: Vec<GrantState> = entered.iter().map(|(state, _)| *state).collect();
        match placement::removal(&before, &life, &states) {
            Removal::Nowhere => {}
            Removal::Early => self.take_out(&grant, true).await?,
            Removal::AtDeadline => self.take_out(&grant, false).await?,
            Removal::Of(hosts) => {
                for host in &hosts {
                    let generation = self.raise(host).await?;
                    self.take_out_of(grant.id, host, generation).await?;
                }
            }
        }
        if before.state() == GrantState::Scheduled && life.state() == GrantState::Activating {
            self.begin_grant(&grant, life.body(), now).await?;
        } else if life.body().expires != before.body().expires {
            self.move_deadline(&grant, life.body()).await?;
        }
        let grant = Grant { expires: life.body().expires, ..grant };
        if !entered.is_empty() {
            self.note_state_of(grant.id, life.state(), now).await?;
        }
        for (state, cause) in entered {
            self.record_step(&grant, state, &cause, now);
        }
        self.wake_access();
        Ok(())
    }

    async fn note_holding(
        &mut self,
        grant: GrantId,
        host: &HostName,
        holding: &Holding,
    ) -> Result<(), StoreError> {
        let (word, error) = holding_words(holding);
        sql::query(
            "UPDATE grant_hosts SET holding = ?, error = ?
             WHERE grant_id = ? AND host = (SELECT number FROM hosts WHERE name = ?)",
        )
        .bind(word)
        .bind(error)
        .bind(grant.to_string())
        .bind(host.as_str())
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("note what a host holds"))?;
        Ok(())
    }

    /// Notes that a grant's time begins; its hosts get another set.
    async fn begin_grant(&mut self, grant: &Grant, body: &Body, now: Timestamp) -> Result<(), StoreError> {
        sql::query("UPDATE grants SET begins_ms = ?, expires_ms = ? WHERE id = ?")
            .bind(grant.begins.unwrap_or(now).unix_ms())
            .bind(body.expires.unix_ms())
            .bind(grant.id.to_string())
            .execute(self.sql())
            .await
            .map_err(StoreError::sql("begin a grant"))?;
        for host in body.hosts.keys() {
            let generation = self.raise(host).await?;
            sql::query(
                "UPDATE grant_hosts SET since_generation = ?
                 WHERE grant_id = ? AND host = (SELECT number FROM hosts WHERE name = ?)",
            )
            .bind(decode::sql(generation))
            .bind(grant.id.to_string())
            .bind(host.as_str())
            .execute(self.sql())
            .await
            .map_err(StoreError::sql("place a grant on a host"))?;
        }
        Ok(())
    }

    /// Notes that a grant lives longer; the hosts that may hold it get another set.
    async fn move_deadline(&mut self, grant: &Grant, body: &Body) -> Result<(), StoreError> {
        sql::query("UPDATE grants SET expires_ms = ?, extensions = extensions + 1 WHERE id = ?")
            .bind(body.expires.unix_ms())
            .bind(grant.id.to_string())
            .execute(self.sql())
            .await
            .map_err(StoreError::sql("extend a grant"))?;
        for (host, _) in body.hosts.iter().filter(|(_, holding)| holding.may_hold()) {
            self.raise(host).await?;
        }
        Ok(())
    }

    /// Takes a grant out of its hosts' sets: [`Removal::Early`] or [`Removal::AtDeadline`].
    async fn take_out(&mut self, grant: &Grant, is_early: bool) -> Result<(), StoreError> {
        if is_early {
            for host in &grant.hosts {
                self.raise(&host.name).await?;
            }
        }
        sql::query(
            "UPDATE grant_hosts SET until_generation =
                 (SELECT generation + ? FROM hosts WHERE hosts.number = grant_hosts.host)
             WHERE grant_id = ? AND until_generation IS NULL",
        )
        .bind(if is_early { 0_i64 } else { 1 })
        .bind(grant.id.to_string())
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("take a grant out of its hosts' sets"))?;
        Ok(())
    }

    /// Takes a grant out of the set of one host, from this generation on.
    async fn take_out_of(
        &mut self,
        grant: GrantId,
        host: &HostName,
        generation: u64,
    ) -> Result<(), StoreError> {
        sql::query(
            "UPDATE grant_hosts SET until_generation = ?
             WHERE grant_id = ? AND host = (SELECT number FROM hosts WHERE name = ?)",
        )
        .bind(decode::sql(generation))
        .bind(grant.to_string())
        .bind(host.as_str())
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("take a grant out of a host's set"))?;
        Ok(())
    }

    async fn note_state_of(
        &mut self,
        grant: GrantId,
        state: GrantState,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let ended = matches!(state, GrantState::Ended(_)).then_some(now.unix_ms());
        sql::query("UPDATE grants SET state = ?, end_reason = ?, ended_ms = ? WHERE id = ?")
            .bind(state.as_str())
            .bind(state.end_reason().map(EndReason::as_str))
            .bind(ended)
            .bind(grant.to_string())
            .execute(self.sql())
            .await
            .map_err(StoreError::sql("step a grant"))?;
        Ok(())
    }

    fn record_step(&mut self, grant: &Grant, state: GrantState, cause: &Cause, now: Timestamp) {
        self.record_grant(event_of(state), grant, now, |event| {
            event.reason = state.end_reason().map(|reason| reason.to_string()).unwrap_or_default();
            caused_by(event, &cause.actor);
            event.comment.clone_from(&cause.comment);
        });
    }

    pub(super) fn record_grant(
        &mut self,
        kind: EventKind,
        grant: &Grant,
        now: Timestamp,
        fill: impl FnOnce(&mut AuditEvent),
    ) {
        self.record(kind, now, |event| {
            event.request = grant.request.to_string();
            event.grant = grant.id.to_string();
            event.subject = grant.subject.to_string();
            event.resource = grant.resource.to_string();
            event.expires = Some(grant.expires);
            fill(event);
        });
    }
}
