//! Requests: making and deciding them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ::policy::approval::{Extent, Step};
use ::policy::facts::Channel;
use ::policy::model::ClockStart;
use ::policy::names::GroupName;
use prost::Message;
use proto::types::{
    AuditEvent, CgroupPath, EventKind, Grant, GrantId, GrantState, HostName, NewApproval, NewRequest,
    Request, RequestId, RequestState, SubjectId, Timestamp, Vote,
};
use proto::wire::access as wire;
use sha2::{Digest, Sha256};

use super::disabling::refuse_if_disabled;
use super::footing::{all_of, footing};
use super::freezes::refuse_if_frozen;
use super::incidents::moment;
use super::policies::wish;
use super::requests::{Whose, request};
use super::sql::{self, Transaction, Value};
use super::tx::{Tx, caused_by};
use super::{Store, StoreError, decode, grants};
use crate::rules::actor::{Acting, Actor};
use crate::rules::calls::Reach;
use crate::rules::grant::event_of;
use crate::rules::policy::{Circumstances, Limits, Moment, Wish};
use crate::rules::request::{Decided, Outcome, Pending, Stand};
use crate::rules::schedule::Begin;
use crate::rules::{Refusal, draft, policy};

/// How long a grant waits to be activated whose request could wait for ever.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// How many requests one transaction looks at because of the time, so that others get their turn at the database in between.
const DUE_BATCH: u32 = 100;

impl Store {
    /// Makes a request of `requester` for `subject`. What the policy in force lets begin without anybody's yes is approved at once.
    pub async fn create_request(
        &self,
        new: NewRequest,
        subject: &SubjectId,
        requester: &Acting,
        known: Known<'_>,
        now: Timestamp,
    ) -> Result<Request, StoreError> {
        let mut tx = self.write().await?;
        let digest = Sha256::digest(wire::CreateRequestRequest::from(new.clone()).encode_to_vec()).to_vec();
        if let Some(made) = made_before(tx.sql(), &new, &requester.id, &digest).await? {
            return Ok(made);
        }
        let (footing, hosts) = footing(tx.sql(), &new, subject, &requester.id, now).await?;
        let resource = footing.resource.ok_or_else(|| Refusal::UnknownResource(new.resource.clone()))?;
        let hosts = all_of(&new.hosts, hosts)?;
        policy::place(&new, hosts.len())?;
        if let Some(id) = new.draft {
            let completed = tx.take_draft(id, &Whose::Of(requester.id.clone()), now).await?;
            if completed.subject != *subject {
                return Err(Refusal::UnknownDraft(id).into());
            }
            draft::fits(&completed, &new)?;
        }
        if footing.is_something_frozen {
            refuse_if_frozen(tx.sql(), &new.resource, now).await?;
        }
        if footing.is_disabled {
            return Err(Refusal::Disabled(subject.clone()).into());
        }
        let for_whom = footing.subject.ok_or_else(|| Refusal::UnknownSubject(subject.clone()))?;
        let by_whom = footing.requester.ok_or_else(|| Refusal::UnknownSubject(requester.id.clone()))?;
        let in_force = match footing.policy()? {
            Some(version) => Some(self.numbered(tx.sql(), version).await?),
            None => None,
        };
        let (terms, duration) = match (in_force, &new.role) {
            (Some(in_force), _) => {
                let wish = Wish {
                    subject: subject.clone(),
                    requester: requester.id.clone(),
                    resource: new.resource.clone(),
                    hosts: hosts.iter().map(|(_, name)| name.clone()).collect(),
                    role: new.role.clone(),
                    duration: new.duration,
                    circumstances: known.circumstances.clone(),
                };
                let moment = match footing.is_incident_open {
                    true => moment(tx.sql(), now).await?,
                    false => Moment { now, incidents: Arc::default() },
                };
                let terms = wish.terms(&in_force, &moment)?;
                let duration = known.limits.duration(&new, Some((&in_force, &terms)))?;
                (Some((in_force.version, terms)), duration)
            }
            (None, Some(role)) => return Err(Refusal::NoPolicy(role.clone()).into()),
            (None, None) => (None, known.limits.duration(&new, None)?),
        };
        let lapses = now.plus(known.limits.request_lifetime);
        let mut made = Request {
            id: RequestId::new(),
            state: RequestState::Pending,
            resource: new.resource,
            subject: subject.clone(),
            hosts: hosts.iter().map(|(_, name)| name.clone()).collect(),
            duration: Duration::from_secs(duration.as_secs()),
            reason: new.reason,
            requester: requester.id.clone(),
            created: now,
            decided: None,
            comment: String::new(),
            grant: None,
            idle: [new.idle, terms.as_ref().and_then(|(_, terms)| terms.idle)].into_iter().flatten().min(),
            while_running: new.while_running,
            run: new.run,
            action: new.action,
            judged: terms.as_ref().map(|(version, terms)| (*version, terms.role.clone())),
            lapses: Some(lapses),
            votes: Vec::new(),
            answers: Vec::new(),
            waiting: None,
            extends: None,
        };
        let is_break_glass = terms.as_ref().is_some_and(|(_, terms)| terms.break_glass);
        // Nobody has said anything yet: what decides is that nobody has to.
        let stand = match terms {
            Some((_, terms)) => Some(Pending::of(&made, terms.steps)?.wait(now)),
            None => None,
        };
        let due = match &stand {
            Some(Stand::Waiting(due)) => *due,
            Some(Stand::Decided(_)) | None => Some(lapses),
        };
        tx.insert_request(&made, (resource, for_whom, by_whom), known.circumstances, due).await?;
        if let Some(key) = &new.key {
            sql::query("INSERT INTO request_keys (requester, key, asked, request) VALUES (?, ?, ?, ?)")
                .bind(by_whom)
                .bind(key.as_str())
                .bind(digest)
                .bind(made.id.to_string())
                .execute(tx.sql())
                .await
                .map_err(StoreError::sql("keep a request's key"))?;
        }
        tx.insert_hosts(made.id, hosts.into_iter().map(|(number, _)| number).collect()).await?;
        tx.record_request(EventKind::RequestCreated, &made, requester.clone().into(), &asked(&made), now);
        match stand {
            None => {}
            Some(Stand::Waiting(_)) => self.ask_hooks(&mut tx, &made, now).await?,
            Some(stand @ Stand::Decided(_)) => {
                self.settle(&mut tx, &made, stand, Actor::System, "nobody has to approve it", now).await?;
                made = request(tx.sql(), made.id).await?;
            }
        }
        if is_break_glass {
            self.open_review(&mut tx, made.id, &requester.clone().into(), now).await?;
        }
        tx.wake_access();
        tx.commit().await?;
        Ok(made)
    }

    /// Somebody says yes to a request. If nobody else has to, there is a grant from here on, on its way to its hosts.
    pub async fn approve(
        &self,
        new: &NewApproval,
        approver: &Acting,
        reach: Reach,
        now: Timestamp,
    ) -> Result<(Request, Option<Grant>), StoreError> {
        let vote = Vote {
            by: approver.id.clone(),
            at: now,
            yes: true,
            comment: new.comment.clone(),
            duration: new.duration,
            hosts: new.hosts.clone(),
        };
        self.vote(new.request, vote, approver, reach, now).await
    }

    /// Somebody says no to a request.
    pub async fn deny(
        &self,
        id: RequestId,
        approver: &Acting,
        reach: Reach,
        comment: &str,
        now: Timestamp,
    ) -> Result<Request, StoreError> {
        let vote = Vote {
            by: approver.id.clone(),
            at: now,
            yes: false,
            comment: comment.to_owned(),
            duration: None,
            hosts: Vec::new(),
        };
        self.vote(id, vote, approver, reach, now).await.map(|(request, _)| request)
    }

    /// Who asked for it, or whom it is for, takes a request back.
    pub async fn withdraw(
        &self,
        id: RequestId,
        caller: &Acting,
        now: Timestamp,
    ) -> Result<Request, StoreError> {
        let mut tx = self.write().await?;
        let before = request(tx.sql(), id).await?;
        let decided = Pending::of(&before, Vec::new())?.withdraw(&caller.id)?;
        tx.decide(&before, &decided, caller.clone().into(), "", now).await?;
        let request = request(tx.sql(), id).await?;
        tx.commit().await?;
        Ok(request)
    }

    /// When something next follows for a pending request by itself; None: for none of them.
    pub async fn next_due_request(&self) -> Result<Option<Timestamp>, StoreError> {
        let next: Option<i64> = sql::query_scalar("SELECT min(due_ms) FROM requests WHERE state = 'pending'")
            .fetch_one(&self.readers)
            .await
            .map_err(StoreError::sql("read when a request is due"))?;
        next.map(|next| decode::time("due", next)).transpose()
    }

    /// Does what follows for pending requests by itself. Returns whether there may be more of them.
    pub async fn settle_due_requests(&self, now: Timestamp) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        let due: Vec<String> = sql::query_scalar(
            "SELECT id FROM requests WHERE state = 'pending' AND due_ms <= ? ORDER BY due_ms LIMIT ?",
        )
        .bind(now.unix_ms())
        .bind(DUE_BATCH)
        .fetch_all(tx.sql())
        .await
        .map_err(StoreError::sql("read which requests are due"))?;
        let may_be_more = due.len() == DUE_BATCH as usize;
        for id in due {
            let before = request(tx.sql(), decode::text("request", &id)?).await?;
            let steps = self.steps(tx.sql(), &before).await?.unwrap_or_else(|| anybody(None));
            let stand = Pending::of(&before, steps)?.wait(now);
            let settled = self.settle(&mut tx, &before, stand, Actor::System, "time passed", now).await;
            // What would be a grant, had the policy or the resource not changed, is none.
            if let Err(StoreError::Refused(refusal)) = settled {
                let decided = Decided { request: before.id, outcome: Outcome::Denied, by: None };
                tx.decide(&before, &decided, Actor::System, &refusal.to_string(), now).await?;
            } else {
                settled?;
            }
        }
        tx.commit().await?;
        Ok(may_be_more)
    }

    async fn vote(
        &self,
        id: RequestId,
        vote: Vote,
        voter: &Acting,
        reach: Reach,
        now: Timestamp,
    ) -> Result<(Request, Option<Grant>), StoreError> {
        let mut tx = self.write().await?;
        let before = request(tx.sql(), id).await?;
        if vote.yes && before.decided.is_none() {
            refuse_if_frozen(tx.sql(), &before.resource, now).await?;
        }
        let steps = match self.steps(tx.sql(), &before).await? {
            Some(steps) => steps,
            None => anybody((reach == Reach::All).then_some(&vote.by)),
        };
        let pending = Pending::of(&before, steps)?;
        let vote = Vote { at: pending.moment(now), ..vote };
        let stand = pending.vote(&vote)?;
        tx.keep_vote(id, &vote).await?;
        if matches!(stand, Stand::Waiting(_)) {
            tx.record_request(stand.event(), &before, voter.clone().into(), &left(&vote), now);
        }
        let grant = self.settle(&mut tx, &before, stand, voter.clone().into(), &vote.comment, now).await?;
        let request = request(tx.sql(), id).await?;
        tx.commit().await?;
        Ok((request, grant))
    }

    /// Writes down where a request stands. Approved, it becomes a grant, if the policy in force lets it begin.
    pub(super) async fn settle(
        &self,
        tx: &mut Tx,
        before: &Request,
        stand: Stand,
        actor: Actor,
        comment: &str,
        now: Timestamp,
    ) -> Result<Option<Grant>, StoreError> {
        let decided = match stand {
            Stand::Waiting(due) => {
                sql::query("UPDATE requests SET due_ms = ? WHERE id = ?")
                    .bind(due.map(Timestamp::unix_ms))
                    .bind(before.id.to_string())
                    .execute(tx.sql())
                    .await
                    .map_err(StoreError::sql("note when a request is due"))?;
                self.ask_hooks(tx, before, now).await?;
                tx.wake_access();
                return Ok(None);
            }
            Stand::Decided(decided) => decided,
        };
        let Outcome::Approved(extent) = &decided.outcome else {
            let is_by_yes = decided.by.is_none() && matches!(actor, Actor::Subject(_));
            let comment = if is_by_yes { "nothing is left of it that all approve" } else { comment };
            // Whoever it was that came.
            let is_by_hook = matches!(actor, Actor::Hook(_));
            let actor = if decided.by.is_some() || is_by_hook { actor } else { Actor::System };
            tx.decide(before, &decided, actor, comment, now).await?;
            return Ok(None);
        };
        refuse_if_removed(tx.sql(), before).await?;
        refuse_if_disabled(tx.sql(), &before.subject).await?;
        refuse_if_frozen(tx.sql(), &before.resource, now).await?;
        if let Some(id) = before.extends {
            return self.extend(tx, before, id, &decided, extent, actor, comment, now).await.map(Some);
        }
        let clock = match self.in_force(tx.sql()).await? {
            None => ClockStart::Approval,
            Some(in_force) => {
                let hosts = extent.hosts.clone();
                let wish =
                    Wish { hosts, duration: Some(extent.duration), ..wish(tx.sql(), before.id).await? };
                wish.clock(&in_force, &moment(tx.sql(), now).await?)?
            }
        };
        // It waits to be activated for as long as a request does to be decided.
        let patience = before.lapses.map_or(PATIENCE, |lapses| lapses.since(before.created));
        let begin = Begin::of(clock, extent.duration, patience, now)?;
        tx.decide(before, &decided, actor.clone(), comment, now).await?;
        tx.issue(before, extent, begin, &actor, now).await.map(Some)
    }
}

/// What is known beside a new request.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Of who asks.
    pub circumstances: &'a Circumstances,
    /// Of the operator.
    pub limits: &'a Limits,
}

/// The one step of a request that no policy has judged: one yes, of whoever is an approver here. `who`: the one that comes, if so.
fn anybody(who: Option<&SubjectId>) -> Vec<Step> {
    let approvers = who.cloned().into_iter().collect();
    vec![Step { approvers, hooks: BTreeSet::new(), count: 1, after: None }]
}

/// What the record says of a new request.
fn asked(request: &Request) -> String {
    match &request.judged {
        None => request.reason.to_string(),
        Some((version, role)) => format!("{} (role {role}, policy version {version})", request.reason),
    }
}

/// What the record says of a yes that is not the last.
fn left(vote: &Vote) -> String {
    let duration = vote.duration.map(|duration| format!("for {}", humantime::format_duration(duration)));
    let hosts: Vec<&str> = vote.hosts.iter().map(HostName::as_str).collect();
    let hosts = (!hosts.is_empty()).then(|| format!("on {}", hosts.join(", ")));
    let parts = Some(vote.comment.clone()).filter(|comment| !comment.is_empty());
    parts.into_iter().chain(duration).chain(hosts).collect::<Vec<_>>().join("; ")
}

impl Tx {
    /// `numbers`: of the resource, of whom it is for, of who asks. `due`: when something next follows for it by itself.
    async fn insert_request(
        &mut self,
        request: &Request,
        numbers: (i64, i64, i64),
        circumstances: &Circumstances,
        due: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        let (resource, for_whom, by_whom) = numbers;
        let Circumstances { channel, source, mfa, signed_in, groups, device } = circumstances;
        let groups: Vec<&str> = groups.iter().map(GroupName::as_str).collect();
        sql::query(
            "INSERT INTO requests
                 (id, state, resource, subject, requester, duration_s, idle_s, while_running, run, action, reason,
                  created_ms, policy, role, channel, source, mfa, signed_in_ms, named_groups, device_managed,
                  device_encrypted, lapses_ms, due_ms)
             VALUES (?, 'pending', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(request.id.to_string())
        .bind(resource)
        .bind(for_whom)
        .bind(by_whom)
        .bind(decode::sql(request.duration.as_secs()))
        .bind(request.idle.map(|idle| decode::sql(idle.as_secs())))
        .bind(request.while_running.as_ref().map(CgroupPath::as_str))
        .bind(request.run.map(|id| id.to_string()))
        .bind(request.action.clone().map(|action| wire::Action::from(action).encode_to_vec()))
        .bind(request.reason.as_str())
        .bind(request.created.unix_ms())
        .bind(request.judged.as_ref().map(|(version, _)| decode::sql(*version)))
        .bind(request.judged.as_ref().map(|(_, role)| role.as_str()))
        .bind(channel.map(Channel::as_str))
        .bind(source.map(|source| source.to_string()))
        .bind(*mfa)
        .bind(signed_in.map(Timestamp::unix_ms))
        .bind(groups.join("\n"))
        .bind(device.map(|device| device.managed))
        .bind(device.map(|device| device.encrypted))
        .bind(request.lapses.map(Timestamp::unix_ms))
        .bind(due.map(Timestamp::unix_ms))
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("make a request"))?;
        Ok(())
    }

    async fn insert_hosts(&mut self, request: RequestId, hosts: Vec<i64>) -> Result<(), StoreError> {
        for hosts in hosts.chunks(sql::ROWS_MAX) {
            let mut insert = sql::query("INSERT INTO request_hosts (request, host) VALUES ");
            insert.push_rows(hosts.iter().map(|host| [Value::from(request.to_string()), (*host).into()]));
            insert.execute(self.sql()).await.map_err(StoreError::sql("note a request's hosts"))?;
        }
        Ok(())
    }

    async fn keep_vote(&mut self, request: RequestId, vote: &Vote) -> Result<(), StoreError> {
        let hosts: Vec<&str> = vote.hosts.iter().map(HostName::as_str).collect();
        sql::query(
            "INSERT INTO votes (request, person, at_ms, yes, comment, duration_s, hosts)
             SELECT ?, number, ?, ?, ?, ?, ? FROM subjects WHERE id = ?",
        )
        .bind(request.to_string())
        .bind(vote.at.unix_ms())
        .bind(vote.yes)
        .bind(&vote.comment)
        .bind(vote.duration.map(|duration| decode::sql(duration.as_secs())))
        .bind(hosts.join(" "))
        .bind(vote.by.as_str())
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("keep a vote"))?;
        Ok(())
    }

    /// `before`: the request, as it was until now.
    pub(super) async fn decide(
        &mut self,
        before: &Request,
        decided: &Decided,
        actor: Actor,
        comment: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sql::query(
            "UPDATE requests SET state = ?, decided_ms = ?, comment = ?, due_ms = NULL,
             decided_by = (SELECT number FROM subjects WHERE id = ?) WHERE id = ? AND state = 'pending'",
        )
        .bind(decided.outcome.state().as_str())
        .bind(now.unix_ms())
        .bind(comment)
        .bind(decided.by.as_ref().map(SubjectId::as_str))
        .bind(decided.request.to_string())
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("decide a request"))?;
        self.record_request(decided.outcome.event(), before, actor, comment, now);
        self.wake_access();
        Ok(())
    }

    /// Makes the grant of an approved request. If its time begins now, its hosts get another set.
    async fn issue(
        &mut self,
        request: &Request,
        extent: &Extent,
        begin: Begin,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<Grant, StoreError> {
        let id = GrantId::new();
        let (state, begins, expires, duration) = match begin {
            Begin::Now { until } => (GrantState::Activating, Some(now), until, None),
            Begin::Then { begins, until } => (GrantState::Scheduled, Some(begins), until, None),
            Begin::WhenActivated { by, duration } => (GrantState::Scheduled, None, by, Some(duration)),
        };
        sql::query(
            "INSERT INTO grants (id, request, state, issued_ms, begins_ms, expires_ms, duration_s)
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(id.to_string())
        .bind(request.id.to_string())
        .bind(state.as_str())
        .bind(now.unix_ms())
        .bind(begins.map(Timestamp::unix_ms))
        .bind(expires.unix_ms())
        .bind(duration.map(|duration| decode::sql(duration.as_secs())))
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("make a grant"))?;
        for host in &extent.hosts {
            // No kernel holds one whose time has not begun, and no set has it.
            let (holding, generation) = match state {
                GrantState::Scheduled => ("free", 0),
                _ => ("unknown", self.raise(host).await?),
            };
            sql::query(
                "INSERT INTO grant_hosts (grant_id, host, holding, since_generation)
                 SELECT ?, number, ?, ? FROM hosts WHERE name = ?",
            )
            .bind(id.to_string())
            .bind(holding)
            .bind(decode::sql(generation))
            .bind(host.as_str())
            .execute(self.sql())
            .await
            .map_err(StoreError::sql("place a grant on a host"))?;
        }
        let grant = grants::grant(self.sql(), id).await?;
        let limits = limits(&grant);
        let when = match begin {
            Begin::Now { .. } => None,
            Begin::Then { .. } => Some("its time begins by itself".to_owned()),
            Begin::WhenActivated { duration, .. } => {
                Some(format!("for {} from when it is activated", humantime::format_duration(duration)))
            }
        };
        self.record_grant(event_of(state), &grant, now, |event| {
            caused_by(event, actor);
            let parts = when.into_iter().chain(Some(limits).filter(|limits| !limits.is_empty()));
            event.comment = parts.collect::<Vec<_>>().join("; ");
        });
        Ok(grant)
    }

    pub(super) fn record_request(
        &mut self,
        kind: EventKind,
        request: &Request,
        actor: Actor,
        comment: &str,
        now: Timestamp,
    ) {
        self.record(kind, now, |event: &mut AuditEvent| {
            event.request = request.id.to_string();
            event.subject = request.subject.to_string();
            event.resource = request.resource.to_string();
            caused_by(event, &actor);
            event.comment = comment.to_owned();
        });
    }
}

/// What may end a grant before its deadline, in words; empty: nothing but what everybody may do.
fn limits(grant: &Grant) -> String {
    let idle = grant.idle.map(|idle| format!("idle limit {}", humantime::format_duration(idle)));
    let task = grant.while_running.as_ref().map(|path| format!("while cgroup {path} runs"));
    let run = grant.run.map(|id| format!("for run {id} only"));
    let action = grant.action.as_ref().map(|action| format!("for {action} only, once"));
    idle.into_iter().chain(task).chain(run).chain(action).collect::<Vec<_>>().join("; ")
}

/// A grant for what is not protected any more would mean nothing, and be held by nobody.
pub(super) async fn refuse_if_removed(sql: &mut Transaction, request: &Request) -> Result<(), StoreError> {
    let is_removed: bool = sql::query_scalar(
        "SELECT resources.removed_ms IS NOT NULL FROM requests
         JOIN resources ON resources.number = requests.resource WHERE requests.id = ?",
    )
    .bind(request.id.to_string())
    .fetch_one(sql)
    .await
    .map_err(StoreError::sql("look whether a resource is removed"))?;
    match is_removed {
        true => {
            Err(Refusal::ResourceRemoved { resource: request.resource.clone(), request: request.id }.into())
        }
        false => Ok(()),
    }
}

/// The request that `requester` has made with the key of this wish; None: there is none.
async fn made_before(
    sql: &mut Transaction,
    new: &NewRequest,
    requester: &SubjectId,
    asked: &[u8],
) -> Result<Option<Request>, StoreError> {
    let Some(key) = &new.key else { return Ok(None) };
    let made: Option<(String, Vec<u8>)> = sql::query_as(
        "SELECT request_keys.request, request_keys.asked FROM request_keys
         JOIN subjects ON subjects.number = request_keys.requester WHERE subjects.id = ? AND request_keys.key = ?",
    )
    .bind(requester.as_str())
    .bind(key.as_str())
    .fetch_optional(&mut *sql)
    .await
    .map_err(StoreError::sql("look for a request's key"))?;
    let Some((id, before)) = made else { return Ok(None) };
    let id = decode::text("request", &id)?;
    match before == asked {
        true => request(sql, id).await.map(Some),
        false => Err(Refusal::KeyUsed { key: key.clone(), request: id }.into()),
    }
}

pub(super) async fn subject_number(sql: &mut Transaction, id: &SubjectId) -> Result<i64, StoreError> {
    let number = sql::query_scalar("SELECT number FROM subjects WHERE id = ?")
        .bind(id.as_str())
        .fetch_optional(sql)
        .await
        .map_err(StoreError::sql("look up a subject"))?;
    Ok(number.ok_or_else(|| Refusal::UnknownSubject(id.clone()))?)
}
