//! Requests: making and deciding them.

use prost::Message;
use proto::types::{
    AuditEvent, CgroupPath, EventKind, Grant, GrantId, GrantState, HostName, NewRequest, Request, RequestId,
    RequestState, SubjectId, Timestamp,
};
use proto::wire::access as wire;

use super::requests::request;
use super::sql::{self, Transaction};
use super::tx::{Tx, caused_by};
use super::{Store, StoreError, decode, grants};
use crate::rules::actor::Acting;
use crate::rules::request::{Decided, Pending};
use crate::rules::{Refusal, policy};

impl Store {
    /// Makes a request of `requester` for `subject`.
    pub async fn create_request(
        &self,
        new: NewRequest,
        subject: &SubjectId,
        requester: &Acting,
        now: Timestamp,
    ) -> Result<Request, StoreError> {
        let mut tx = self.write().await?;
        const PROTECTED: &str = "SELECT number FROM resources WHERE name = ? AND removed_ms IS NULL";
        let resource = number(tx.sql(), PROTECTED, new.resource.as_str());
        let resource = resource.await?.ok_or_else(|| Refusal::UnknownResource(new.resource.clone()))?;
        let hosts = hosts(tx.sql(), &new.hosts).await?;
        policy::place(&new, hosts.len())?;
        let id = RequestId::new();
        let for_whom = subject_number(tx.sql(), subject).await?;
        let by_whom = subject_number(tx.sql(), &requester.id).await?;
        sql::query(
            "INSERT INTO requests
                 (id, state, resource, subject, requester, duration_s, idle_s, while_running, run, action, reason,
                  created_ms)
             VALUES (?, 'pending', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(id.to_string())
        .bind(resource)
        .bind(for_whom)
        .bind(by_whom)
        .bind(decode::sql(new.duration.as_secs()))
        .bind(new.idle.map(|idle| decode::sql(idle.as_secs())))
        .bind(new.while_running.as_ref().map(CgroupPath::as_str))
        .bind(new.run.map(|id| id.to_string()))
        .bind(new.action.clone().map(|action| wire::Action::from(action).encode_to_vec()))
        .bind(new.reason.as_str())
        .bind(now.unix_ms())
        .execute(tx.sql())
        .await
        .map_err(StoreError::sql("make a request"))?;
        for host in hosts {
            sql::query("INSERT INTO request_hosts (request, host) VALUES (?, ?)")
                .bind(id.to_string())
                .bind(host)
                .execute(tx.sql())
                .await
                .map_err(StoreError::sql("note a request's host"))?;
        }
        let request = request(tx.sql(), id).await?;
        tx.record_request(EventKind::RequestCreated, &request, requester, request.reason.as_str(), now)
            .await?;
        tx.wake_access();
        tx.commit().await?;
        Ok(request)
    }

    /// Says yes to a request: from here on there is a grant, on its way to its hosts.
    pub async fn approve(
        &self,
        id: RequestId,
        approver: &Acting,
        comment: &str,
        now: Timestamp,
    ) -> Result<(Request, Grant), StoreError> {
        let mut tx = self.write().await?;
        let before = request(tx.sql(), id).await?;
        let decided = Pending::of(&before)?.approve(&approver.id)?;
        refuse_if_removed(tx.sql(), &before).await?;
        tx.decide(&decided, approver, comment, now).await?;
        let grant = tx.issue(&before, approver, now).await?;
        let request = request(tx.sql(), id).await?;
        tx.commit().await?;
        Ok((request, grant))
    }

    /// Says no to a request.
    pub async fn deny(
        &self,
        id: RequestId,
        approver: &Acting,
        comment: &str,
        now: Timestamp,
    ) -> Result<Request, StoreError> {
        let mut tx = self.write().await?;
        let before = request(tx.sql(), id).await?;
        let decided = Pending::of(&before)?.deny(&approver.id)?;
        tx.decide(&decided, approver, comment, now).await?;
        let request = request(tx.sql(), id).await?;
        tx.commit().await?;
        Ok(request)
    }
}

impl Tx {
    async fn decide(
        &mut self,
        decided: &Decided,
        approver: &Acting,
        comment: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sql::query(
            "UPDATE requests SET state = ?, decided_ms = ?, comment = ?,
             decided_by = (SELECT number FROM subjects WHERE id = ?) WHERE id = ? AND state = 'pending'",
        )
        .bind(decided.state.as_str())
        .bind(now.unix_ms())
        .bind(comment)
        .bind(decided.by.as_str())
        .bind(decided.request.to_string())
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("decide a request"))?;
        let kind = match decided.state {
            RequestState::Denied => EventKind::RequestDenied,
            RequestState::Approved | RequestState::Pending => EventKind::RequestApproved,
        };
        let request = request(self.sql(), decided.request).await?;
        self.record_request(kind, &request, approver, comment, now).await?;
        self.wake_access();
        Ok(())
    }

    /// Makes the grant of an approved request; its hosts get another set.
    async fn issue(
        &mut self,
        request: &Request,
        approver: &Acting,
        now: Timestamp,
    ) -> Result<Grant, StoreError> {
        let id = GrantId::new();
        let expires = now.plus(request.duration);
        sql::query("INSERT INTO grants (id, request, state, issued_ms, expires_ms) VALUES (?, ?, ?, ?, ?)")
            .bind(id.to_string())
            .bind(request.id.to_string())
            .bind(GrantState::Activating.as_str())
            .bind(now.unix_ms())
            .bind(expires.unix_ms())
            .execute(self.sql())
            .await
            .map_err(StoreError::sql("make a grant"))?;
        for host in &request.hosts {
            let generation = self.raise(host).await?;
            sql::query(
                "INSERT INTO grant_hosts (grant_id, host, holding, since_generation)
                 SELECT ?, number, 'unknown', ? FROM hosts WHERE name = ?",
            )
            .bind(id.to_string())
            .bind(decode::sql(generation))
            .bind(host.as_str())
            .execute(self.sql())
            .await
            .map_err(StoreError::sql("place a grant on a host"))?;
        }
        let grant = grants::grant(self.sql(), id).await?;
        self.record_grant(EventKind::GrantIssued, &grant, now, |event| {
            caused_by(event, &approver.clone().into());
            event.comment = limits(&grant);
        })
        .await?;
        Ok(grant)
    }

    async fn record_request(
        &mut self,
        kind: EventKind,
        request: &Request,
        actor: &Acting,
        comment: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.record(kind, now, |event: &mut AuditEvent| {
            event.request = request.id.to_string();
            event.subject = request.subject.to_string();
            event.resource = request.resource.to_string();
            caused_by(event, &actor.clone().into());
            event.comment = comment.to_owned();
        })
        .await
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
async fn refuse_if_removed(sql: &mut Transaction, request: &Request) -> Result<(), StoreError> {
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

async fn number(
    sql: &mut Transaction,
    statement: &'static str,
    name: &str,
) -> Result<Option<i64>, StoreError> {
    sql::query_scalar(statement)
        .bind(name)
        .fetch_optional(sql)
        .await
        .map_err(StoreError::sql("look up a name"))
}

async fn subject_number(sql: &mut Transaction, id: &SubjectId) -> Result<i64, StoreError> {
    let number = number(sql, "SELECT number FROM subjects WHERE id = ?", id.as_str()).await?;
    Ok(number.ok_or_else(|| Refusal::UnknownSubject(id.clone()))?)
}

/// The hosts of these names; without names, every host.
async fn hosts(sql: &mut Transaction, names: &[HostName]) -> Result<Vec<i64>, StoreError> {
    if names.is_empty() {
        let all: Vec<i64> = sql::query_scalar("SELECT number FROM hosts ORDER BY name")
            .fetch_all(sql)
            .await
            .map_err(StoreError::sql("read the hosts"))?;
        return if all.is_empty() { Err(Refusal::NoHost.into()) } else { Ok(all) };
    }
    let mut numbers = Vec::with_capacity(names.len());
    for name in names {
        let number = number(sql, "SELECT number FROM hosts WHERE name = ?", name.as_str()).await?;
        numbers.push(number.ok_or_else(|| Refusal::UnknownHost(name.clone()))?);
    }
    Ok(numbers)
}
