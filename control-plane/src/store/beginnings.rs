//! Grants whose time begins later than their approval: by somebody who activates them, or by itself.

use ::policy::facts::Stage;
use proto::types::{EndReason, Grant, GrantId, GrantState, Timestamp};

use super::access::refuse_if_removed;
use super::disabling::refuse_if_disabled;
use super::freezes::refuse_if_frozen;
use super::grants::{Kept, grant, kept};
use super::incidents::moment;
use super::policies::wish;
use super::requests::request;
use super::sql;
use super::steps::Cause;
use super::tx::Tx;
use super::{Store, StoreError, decode};
use crate::rules::actor::{Acting, Actor};
use crate::rules::grant::Step;
use crate::rules::policy::{Circumstances, Wish};
use crate::rules::{Refusal, schedule};

/// How many grants one transaction begins, so that others get their turn at the database in between.
const BEGIN_BATCH: u32 = 100;

impl Store {
    /// Whoever holds it or asked for it begins the time of a grant.
    pub async fn activate_grant(
        &self,
        id: GrantId,
        caller: &Acting,
        circumstances: Circumstances,
        now: Timestamp,
    ) -> Result<Grant, StoreError> {
        let mut tx = self.write().await?;
        let before = kept(tx.sql(), id).await?;
        if ![&before.grant.subject, &before.requester].contains(&&caller.id) {
            return Err(Refusal::NotHolder { caller: caller.id.clone(), grant: id }.into());
        }
        let duration = schedule::activated(&before.grant, now)?;
        let known = circumstances.of_request(&caller.id, &before.grant.subject);
        let wish = Wish {
            requester: caller.id.clone(),
            duration: Some(duration),
            circumstances: known,
            ..wish(tx.sql(), before.grant.request).await?
        };
        self.refuse_to_begin(&mut tx, &before.grant, wish, now).await?;
        let cause = Cause { actor: caller.clone().into(), comment: "activated".to_owned() };
        tx.step(before, Step::Begin(now.plus(duration)), cause, now).await?;
        let after = grant(tx.sql(), id).await?;
        tx.commit().await?;
        Ok(after)
    }

    /// When the next grant begins by itself; None: none does.
    pub async fn next_beginning(&self) -> Result<Option<Timestamp>, StoreError> {
        let next: Option<i64> =
            sql::query_scalar("SELECT min(begins_ms) FROM grants WHERE state = 'scheduled'")
                .fetch_one(&self.readers)
                .await
                .map_err(StoreError::sql("read when a grant begins"))?;
        next.map(|next| decode::time("begins", next)).transpose()
    }

    /// Begins the grants whose time has come; one that may not begin ends. Returns whether there may be more of them.
    pub async fn begin_due(&self, now: Timestamp) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        let due: Vec<String> = sql::query_scalar(
            "SELECT id FROM grants WHERE state = 'scheduled' AND begins_ms <= ? ORDER BY begins_ms LIMIT ?",
        )
        .bind(now.unix_ms())
        .bind(BEGIN_BATCH)
        .fetch_all(tx.sql())
        .await
        .map_err(StoreError::sql("read which grants begin"))?;
        let may_be_more = due.len() == BEGIN_BATCH as usize;
        for id in due {
            let before = kept(tx.sql(), decode::text("grant", &id)?).await?;
            let wish = wish(tx.sql(), before.grant.request).await?;
            let until = before.grant.expires;
            let cause = |comment: String| Cause { actor: Actor::System, comment };
            match self.refuse_to_begin(&mut tx, &before.grant, wish, now).await {
                // Nobody was there while all of its time passed: it lapses.
                Ok(()) if until <= now => tx.step(before, Step::Wait, cause(String::new()), now).await?,
                Ok(()) => {
                    tx.step(before, Step::Begin(until), cause("its time has come".to_owned()), now).await?
                }
                Err(StoreError::Refused(refusal)) => {
                    end_instead(&mut tx, before, &refusal, until, now).await?;
                }
                Err(error) => return Err(error),
            }
        }
        tx.commit().await?;
        Ok(may_be_more)
    }

    /// That nothing stands against its time beginning now.
    async fn refuse_to_begin(
        &self,
        tx: &mut Tx,
        grant: &Grant,
        wish: Wish,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let asked = request(tx.sql(), grant.request).await?;
        refuse_if_disabled(tx.sql(), &grant.subject).await?;
        refuse_if_removed(tx.sql(), &asked).await?;
        refuse_if_frozen(tx.sql(), &grant.resource, now).await?;
        if let Some(in_force) = self.in_force(tx.sql()).await? {
            let hosts = grant.hosts.iter().map(|host| host.name.clone()).collect();
            let moment = moment(tx.sql(), now).await?;
            Wish { hosts, ..wish }.is_permitted(&in_force, Stage::Activate, &moment)?;
        }
        Ok(())
    }
}

/// It would have begun now, and may not.
async fn end_instead(
    tx: &mut Tx,
    before: Kept,
    refusal: &Refusal,
    until: Timestamp,
    now: Timestamp,
) -> Result<(), StoreError> {
    let cause = Cause { actor: Actor::System, comment: refusal.to_string() };
    if until <= now || before.grant.state != GrantState::Scheduled {
        return tx.step(before, Step::Wait, cause, now).await;
    }
    let reason = match refusal {
        Refusal::Frozen { .. } => EndReason::Frozen,
        Refusal::Disabled(_) => EndReason::IdentityDisabled,
        _ => EndReason::PolicyChanged,
    };
    tx.end(before, reason, cause, now).await
}
