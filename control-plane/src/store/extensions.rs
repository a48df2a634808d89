//! Grants that are to live longer: asking for it, and what comes of a yes.

use std::time::Duration;

use ::policy::approval::Extent;
use ::policy::facts::Stage;
use proto::types::{EventKind, Grant, GrantId, NewExtension, Request, RequestId, Timestamp};

use super::access::{Known, refuse_if_removed, subject_number};
use super::disabling::refuse_if_disabled;
use super::freezes::refuse_if_frozen;
use super::grants::{Kept, grant, kept};
use super::incidents::moment;
use super::policies::wish;
use super::requests::request;
use super::sql;
use super::steps::Cause;
use super::tx::{Tx, caused_by};
use super::{Store, StoreError, decode};
use crate::rules::actor::{Acting, Actor};
use crate::rules::grant::Step;
use crate::rules::policy::Wish;
use crate::rules::request::{Decided, Pending};
use crate::rules::{Refusal, extension};

impl Store {
    /// Makes a request of `requester`, who holds the grant or asked for it, to have it for longer. If nobody has to approve that, its
    /// deadline has moved when this returns.
    pub async fn extend_grant(
        &self,
        new: NewExtension,
        requester: &Acting,
        known: Known<'_>,
        now: Timestamp,
    ) -> Result<(Request, Grant), StoreError> {
        let NewExtension { grant: id, by, reason } = new;
        let mut tx = self.write().await?;
        let Kept { grant: before, requester: asked, .. } = kept(tx.sql(), id).await?;
        if ![&before.subject, &asked].contains(&&requester.id) {
            return Err(Refusal::NotHolder { caller: requester.id.clone(), grant: id }.into());
        }
        let original = request(tx.sql(), before.request).await?;
        refuse_if_disabled(tx.sql(), &before.subject).await?;
        refuse_if_removed(tx.sql(), &original).await?;
        refuse_if_frozen(tx.sql(), &before.resource, now).await?;
        let latest = before.begins.unwrap_or(before.issued).plus(known.limits.max_grant_duration);
        let (_, total) = extension::deadline(&before, by, latest, now)?;
        let terms = match self.in_force(tx.sql()).await? {
            None => None,
            Some(in_force) => {
                let wish = Wish {
                    subject: before.subject.clone(),
                    requester: requester.id.clone(),
                    resource: before.resource.clone(),
                    hosts: before.hosts.iter().map(|host| host.name.clone()).collect(),
                    role: original.judged.as_ref().map(|(_, role)| role.clone()),
                    duration: Some(total),
                    circumstances: known.circumstances.clone().of_request(&requester.id, &before.subject),
                };
                let terms = wish.terms(&in_force, &moment(tx.sql(), now).await?)?;
                extension::permitted(&terms, &before, by)?;
                Some((in_force.version, terms))
            }
        };
        let reason = reason.unwrap_or(original.reason);
        let made = RequestId::new();
        tx.insert_extension(made, &before, (by, latest), reason.as_str(), requester, known, now).await?;
        if let Some((version, terms)) = &terms {
            sql::query("UPDATE requests SET policy = ?, role = ? WHERE id = ?")
                .bind(decode::sql(*version))
                .bind(terms.role.as_str())
                .bind(made.to_string())
                .execute(tx.sql())
                .await
                .map_err(StoreError::sql("note what an extension was judged by"))?;
        }
        let asks = request(tx.sql(), made).await?;
        let told = format!("{id} for {} longer: {reason}", humantime::format_duration(by));
        tx.record_request(EventKind::RequestCreated, &asks, requester.clone().into(), &told, now);
        if let Some((_, terms)) = terms {
            let needs_approval = terms.extension.is_none_or(|extension| extension.approval);
            let steps = if needs_approval { terms.steps } else { Vec::new() };
            let stand = Pending::of(&asks, steps)?.wait(now);
            self.settle(&mut tx, &asks, stand, Actor::System, "nobody has to approve it", now).await?;
        }
        tx.wake_access();
        let (asks, after) = (request(tx.sql(), made).await?, grant(tx.sql(), id).await?);
        tx.commit().await?;
        Ok((asks, after))
    }

    /// What comes of the last yes: the deadline moves, if the grant still lives and the policy in force lets it live for so long.
    #[allow(clippy::too_many_arguments, reason = "they are what `settle` has")]
    pub(super) async fn extend(
        &self,
        tx: &mut Tx,
        asks: &Request,
        id: GrantId,
        decided: &Decided,
        extent: &Extent,
        actor: Actor,
        comment: &str,
        now: Timestamp,
    ) -> Result<Grant, StoreError> {
        let kept = kept(tx.sql(), id).await?;
        let latest = tx.latest_deadline(asks.id).await?;
        let (until, total) = extension::deadline(&kept.grant, extent.duration, latest, now)?;
        if let Some(in_force) = self.in_force(tx.sql()).await? {
            let hosts = kept.grant.hosts.iter().map(|host| host.name.clone()).collect();
            let wish = Wish { hosts, duration: Some(total), ..wish(tx.sql(), asks.id).await? };
            let terms = wish.terms_at(&in_force, Stage::Activate, &moment(tx.sql(), now).await?)?;
            extension::permitted(&terms, &kept.grant, extent.duration)?;
        }
        tx.decide(asks, decided, actor.clone(), comment, now).await?;
        let cause = Cause { actor: actor.clone(), comment: comment.to_owned() };
        tx.step(kept, Step::Extend(until), cause, now).await?;
        let after = grant(tx.sql(), id).await?;
        let by = humantime::format_duration(extent.duration);
        tx.record_grant(EventKind::GrantExtended, &after, now, |event| {
            caused_by(event, &actor);
            event.request = asks.id.to_string();
            event.comment = format!("by {by}, {total} in all", total = humantime::format_duration(total));
        });
        Ok(after)
    }
}

impl Tx {
    #[allow(clippy::too_many_arguments, reason = "they are what a row has")]
    async fn insert_extension(
        &mut self,
        id: RequestId,
        grant: &Grant,
        (by, latest): (Duration, Timestamp),
        reason: &str,
        requester: &Acting,
        known: Known<'_>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let by_whom = subject_number(self.sql(), &requester.id).await?;
        let lapses = now.plus(known.limits.request_lifetime).min(grant.expires);
        let seen = known.circumstances;
        let groups: Vec<&str> = seen.groups.iter().map(|group| group.as_str()).collect();
        sql::query(
            "INSERT INTO requests
                 (id, state, resource, subject, requester, duration_s, reason, created_ms, channel, source, mfa,
                  signed_in_ms, named_groups, device_managed, device_encrypted, lapses_ms, due_ms, extends, extends_until_ms)
             SELECT ?, 'pending', requests.resource, requests.subject, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, grants.id, ?
             FROM grants JOIN requests ON requests.id = grants.request WHERE grants.id = ?",
        )
        .bind(id.to_string())
        .bind(by_whom)
        .bind(decode::sql(by.as_secs()))
        .bind(reason)
        .bind(now.unix_ms())
        .bind(seen.channel.map(|channel| channel.as_str()))
        .bind(seen.source.map(|source| source.to_string()))
        .bind(seen.mfa)
        .bind(seen.signed_in.map(Timestamp::unix_ms))
        .bind(groups.join("\n"))
        .bind(seen.device.map(|device| device.managed))
        .bind(seen.device.map(|device| device.encrypted))
        // Once the grant has ended nothing can be extended any more.
        .bind(lapses.unix_ms())
        .bind(lapses.unix_ms())
        .bind(latest.unix_ms())
        .bind(grant.id.to_string())
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("make a request"))?;
        sql::query(
            "INSERT INTO request_hosts (request, host) SELECT ?, host FROM grant_hosts WHERE grant_id = ?",
        )
        .bind(id.to_string())
        .bind(grant.id.to_string())
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("note a request's hosts"))?;
        Ok(())
    }

    /// Beyond which the request may not make its grant live.
    async fn latest_deadline(&mut self, request: RequestId) -> Result<Timestamp, StoreError> {
        let latest: Option<i64> = sql::query_scalar("SELECT extends_until_ms FROM requests WHERE id = ?")
            .bind(request.to_string())
            .fetch_optional(self.sql())
            .await
            .map_err(StoreError::sql("read a request"))?;
        decode::time("extends_until", latest.ok_or(Refusal::UnknownRequest(request))?)
    }
}
