//! Programs that a step of a policy asks: which questions are open, and what was answered.
//!
//! Owns: that a question is written down in the transaction in which its step begins, and so survives a crash; that one answer counts. Must
//! not know: how a program is asked.

use std::collections::BTreeSet;

use policy::model::Policy;
use proto::types::{EventKind, HookAnswer, HookName, Request, RequestId, RequestState, Timestamp};
use tokio::sync::watch;
use uuid::Uuid;

use super::requests::{self, requests};
use super::sql;
use super::tx::Tx;
use super::{Store, StoreError, decode};
use crate::rules::Refusal;
use crate::rules::actor::Actor;
use crate::rules::request::{Decided, Outcome, Pending, Stand};

/// A question that somebody is to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Whom.
    pub hook: HookName,
    /// About what, as it stands.
    pub request: Request,
}

impl Store {
    /// The same store, which knows these programs.
    #[must_use]
    pub fn asking(mut self, hooks: BTreeSet<HookName>) -> Self {
        self.hooks = hooks.into();
        self
    }

    /// Wakes after questions were written down by this process. Others may have written some, too.
    pub fn questions(&self) -> watch::Receiver<()> {
        self.outbox_filled()
    }

    /// That a policy asks no program that is not configured: requests would wait for nobody.
    pub(super) fn knows_hooks(&self, policy: &Policy) -> Result<(), Refusal> {
        let steps = policy.roles.iter().flat_map(|role| role.steps.iter().map(move |step| (role, step)));
        let mut asked = steps.flat_map(|(role, step)| step.hooks().map(move |hook| (role, hook)));
        match asked.find(|(_, hook)| !self.hooks.contains(*hook)) {
            None => Ok(()),
            Some((role, hook)) => Err(Refusal::UnknownHook { hook: hook.clone(), role: role.name.clone() }),
        }
    }

    /// When the next question is due; None: none is open.
    pub async fn next_question(&self) -> Result<Option<Timestamp>, StoreError> {
        let next: Option<i64> = sql::query_scalar("SELECT min(due_ms) FROM hook_questions")
            .fetch_one(&self.readers)
            .await
            .map_err(StoreError::sql("read when a question is due"))?;
        next.map(|next| decode::time("due", next)).transpose()
    }

    /// Takes at most so many questions that are due in hand, until `until`. `hand` is a name that nobody else has.
    pub async fn take_questions(
        &self,
        hand: Uuid,
        limit: u32,
        until: Timestamp,
        now: Timestamp,
    ) -> Result<Vec<Question>, StoreError> {
        let mut tx = self.write().await?;
        sql::query(
            "DELETE FROM hook_questions WHERE request IN (SELECT id FROM requests WHERE state <> 'pending')",
        )
        .execute(tx.sql())
        .await
        .map_err(StoreError::sql("take questions away"))?;
        let due: Vec<(String, String)> = sql::query_as(
            "SELECT request, hook FROM hook_questions WHERE due_ms <= ? ORDER BY due_ms, request, hook LIMIT ?",
        )
        .bind(now.unix_ms())
        .bind(limit)
        .fetch_all(tx.sql())
        .await
        .map_err(StoreError::sql("read which questions are due"))?;
        let mut questions = Vec::with_capacity(due.len());
        for (id, hook) in due {
            sql::query("UPDATE hook_questions SET due_ms = ?, claimed_by = ? WHERE request = ? AND hook = ?")
                .bind(until.unix_ms())
                .bind(hand.to_string())
                .bind(&id)
                .bind(&hook)
                .execute(tx.sql())
                .await
                .map_err(StoreError::sql("take a question in hand"))?;
            let id: RequestId = decode::text("request", &id)?;
            let found = requests(tx.sql(), [id]).await?.remove(&id);
            let request = found.ok_or(Refusal::UnknownRequest(id))?;
            questions.push(Question { hook: decode::text("hook", &hook)?, request });
        }
        tx.commit().await?;
        Ok(questions)
    }

    /// A program has answered, or it counts as its no that it has not; and what follows from that. Of a question that somebody else
    /// has in hand by now nothing is written.
    pub async fn answer_question(
        &self,
        question: &Question,
        hand: Uuid,
        yes: bool,
        comment: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let Question { hook, request: Request { id, .. } } = question;
        let gone = sql::query("DELETE FROM hook_questions WHERE request = ? AND hook = ? AND claimed_by = ?")
            .bind(id.to_string())
            .bind(hook.as_str())
            .bind(hand.to_string())
            .execute(tx.sql())
            .await
            .map_err(StoreError::sql("take a question away"))?;
        let before = requests::request(tx.sql(), *id).await?;
        let steps = self.steps(tx.sql(), &before).await?;
        // Nobody waits for it any more.
        let (1.., RequestState::Pending, Some(steps)) = (gone, before.state, steps) else {
            return tx.commit().await;
        };
        let pending = Pending::of(&before, steps)?;
        let answer =
            HookAnswer { hook: hook.clone(), at: pending.moment(now), yes, comment: comment.to_owned() };
        tx.keep_answer(*id, &answer).await?;
        let stand = pending.answer(&answer);
        let actor = Actor::Hook(hook.clone());
        let (actor, comment) = match &stand {
            Stand::Waiting(_) => {
                tx.record_request(EventKind::ApprovalGiven, &before, actor.clone(), comment, now);
                (actor, comment)
            }
            Stand::Decided(Decided { outcome: Outcome::Denied, .. }) if yes => {
                (Actor::System, "nothing is left of it that all approve")
            }
            Stand::Decided(_) => (actor, comment),
        };
        let settled = self.settle(&mut tx, &before, stand, actor, comment, now).await;
        // What would be a grant, had the policy or the resource not changed, is none.
        if let Err(StoreError::Refused(refusal)) = settled {
            let decided = Decided { request: *id, outcome: Outcome::Denied, by: None };
            tx.decide(&before, &decided, Actor::System, &refusal.to_string(), now).await?;
        } else {
            settled?;
        }
        tx.commit().await
    }

    /// Writes down which programs are to be asked about a request, and have not been yet.
    pub(super) async fn ask_hooks(
        &self,
        tx: &mut Tx,
        request: &Request,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let id = request.id;
        let Some(steps) = self.steps(tx.sql(), request).await? else { return Ok(()) };
        if steps.iter().all(|step| step.hooks.is_empty()) {
            return Ok(());
        }
        // With what was said about it meanwhile.
        let request = requests::request(tx.sql(), id).await?;
        for hook in Pending::of(&request, steps)?.asks(now) {
            let asked = sql::query(
                "INSERT INTO hook_questions (request, hook, asked_ms, due_ms) VALUES (?, ?, ?, ?)
                 ON CONFLICT (request, hook) DO NOTHING",
            )
            .bind(id.to_string())
            .bind(hook.as_str())
            .bind(now.unix_ms())
            .bind(now.unix_ms())
            .execute(tx.sql())
            .await
            .map_err(StoreError::sql("write down who is to be asked"))?;
            if asked > 0 {
                tx.fill_outbox();
            }
        }
        Ok(())
    }
}

impl Tx {
    async fn keep_answer(&mut self, id: RequestId, answer: &HookAnswer) -> Result<(), StoreError> {
        let HookAnswer { hook, at, yes, comment } = answer;
        sql::query("INSERT INTO hook_answers (request, hook, at_ms, yes, comment) VALUES (?, ?, ?, ?, ?)")
            .bind(id.to_string())
            .bind(hook.as_str())
            .bind(at.unix_ms())
            .bind(*yes)
            .bind(comment)
            .execute(self.sql())
            .await
            .map_err(StoreError::sql("keep an answer"))?;
        Ok(())
    }
}
