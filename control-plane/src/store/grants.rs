//! Grants, read.

use std::collections::{BTreeMap, HashMap};

use proto::types::{
    AccessFilter, Grant, GrantHost, GrantId, GrantState, HostName, Invalid, Request, SubjectId,
};
use sqlx::FromRow;

use super::requests::{push_whose, requests};
use super::sql::{self, Query, Rows, Transaction};
use super::{RequestFilter, Store, StoreError, Whose, decode};
use crate::rules::Refusal;
use crate::rules::grant::{Body, Holding, Life};

impl Store {
    /// Grants, newest first.
    pub async fn grants(&self, filter: &RequestFilter) -> Result<Vec<Grant>, StoreError> {
        let mut query = sql::query_as(GRANTS);
        query.push(if filter.all { " WHERE true" } else { " WHERE grants.state <> 'ended'" });
        push_whose(&mut query, &filter.whose);
        query.push(" ORDER BY grants.id DESC LIMIT ").push_bind(filter.limit);
        let rows = read(&mut self.read().await?, query).await?;
        Ok(rows.into_iter().map(Kept::shown).collect())
    }

    /// The grants by which somebody may have access, or may have had it at the moment that is asked for, with their requests; newest
    /// first, one more than `filter.limit` if there are more.
    pub async fn accesses(
        &self,
        filter: &AccessFilter,
        whose: &Whose,
    ) -> Result<Vec<(Grant, Request)>, StoreError> {
        let AccessFilter { resource, subject, host, at, limit, after } = filter;
        let mut sql = self.read().await?;
        let mut query = sql::query_as(GRANTS);
        match at {
            None => drop(query.push(" WHERE grants.state <> 'ended'")),
            Some(at) => {
                query.push(" WHERE grants.expires_ms > ").push_bind(at.unix_ms());
                query.push(" AND grants.issued_ms <= ").push_bind(at.unix_ms());
                query.push(" AND (grants.ended_ms IS NULL OR grants.ended_ms > ").push_bind(at.unix_ms());
                query.push(")");
            }
        }
        push_whose(&mut query, whose);
        if let Some(after) = after {
            // Of the grant itself there may be more lines.
            query.push(if after.host.is_some() { " AND grants.id <= " } else { " AND grants.id < " });
            query.push_bind(after.grant.to_string());
        }
        if let Some(resource) = resource {
            query.push(" AND resources.name = ").push_bind(resource.as_str());
        }
        if let Some(subject) = subject {
            query.push(" AND subjects.id = ").push_bind(subject.as_str());
        }
        if let Some(host) = host {
            query.push(" AND grants.id IN (SELECT grant_hosts.grant_id FROM grant_hosts ");
            query.push("JOIN hosts ON hosts.number = grant_hosts.host WHERE hosts.name = ");
            query.push_bind(host.as_str()).push(")");
        }
        query.push(" ORDER BY grants.id DESC LIMIT ").push_bind(limit.saturating_add(1));
        let grants: Vec<Grant> = read(&mut sql, query).await?.into_iter().map(Kept::shown).collect();
        let mut requests = requests(&mut sql, grants.iter().map(|grant| grant.request)).await?;
        let with_request = |grant: Grant| {
            let request = requests.remove(&grant.request).ok_or(Refusal::UnknownRequest(grant.request))?;
            Ok((grant, request))
        };
        grants.into_iter().map(with_request).collect()
    }
}

/// A grant as it is kept.
pub(super) struct Kept {
    pub(super) grant: Grant,
    pub(super) life: Life,
    pub(super) requester: SubjectId,
}

impl Kept {
    fn shown(self) -> Grant {
        self.grant
    }
}

/// A grant as people see it.
pub(super) async fn grant(sql: &mut Transaction, id: GrantId) -> Result<Grant, StoreError> {
    Ok(kept(sql, id).await?.shown())
}

/// A grant as it is kept.
pub(super) async fn kept(sql: &mut Transaction, id: GrantId) -> Result<Kept, StoreError> {
    let mut query = sql::query_as(GRANTS);
    query.push(" WHERE grants.id = ").push_bind(id.to_string());
    let found = read(sql, query).await?.pop();
    Ok(found.ok_or(Refusal::UnknownGrant(id))?)
}

pub(super) const GRANTS: &str = "
    SELECT grants.id, grants.state, grants.end_reason, grants.request, resources.name AS resource,
        subjects.id AS subject, requesters.id AS requester, grants.issued_ms, grants.expires_ms, grants.ended_ms,
        requests.idle_s, requests.while_running, requests.run, requests.action, grants.extensions,
        grants.begins_ms, grants.duration_s
    FROM grants
    JOIN requests ON requests.id = grants.request
    JOIN resources ON resources.number = requests.resource
    JOIN subjects ON subjects.number = requests.subject
    JOIN subjects AS requesters ON requesters.number = requests.requester";

#[derive(FromRow)]
pub(super) struct GrantRow {
    id: String,
    state: String,
    end_reason: Option<String>,
    request: String,
    resource: String,
    subject: String,
    requester: String,
    issued_ms: i64,
    expires_ms: i64,
    ended_ms: Option<i64>,
    idle_s: Option<i64>,
    while_running: Option<String>,
    run: Option<String>,
    action: Option<Vec<u8>>,
    extensions: i64,
    begins_ms: Option<i64>,
    duration_s: Option<i64>,
}

/// The grants that a query made from [`GRANTS`] finds.
pub(super) async fn read(
    sql: &mut Transaction,
    query: Query<Rows<GrantRow>>,
) -> Result<Vec<Kept>, StoreError> {
    let rows: Vec<GrantRow> = query.fetch_all(&mut *sql).await.map_err(StoreError::sql("read grants"))?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let mut query = sql::query_as(
        "SELECT grant_hosts.grant_id, hosts.name, grant_hosts.holding, grant_hosts.error FROM grant_hosts
         JOIN hosts ON hosts.number = grant_hosts.host WHERE grant_hosts.grant_id IN ",
    );
    query.push_list(rows.iter().map(|row| &row.id));
    let places: Vec<(String, String, String, String)> =
        query.fetch_all(sql).await.map_err(StoreError::sql("read grants' hosts"))?;
    let mut hosts: HashMap<String, BTreeMap<HostName, Holding>> = HashMap::new();
    for (grant, name, word, error) in places {
        hosts.entry(grant).or_default().insert(decode::text("host", &name)?, holding(&word, error)?);
    }
    let kept = |row: GrantRow| {
        let hosts = hosts.remove(&row.id).unwrap_or_default();
        decode_grant(row, hosts)
    };
    rows.into_iter().map(kept).collect()
}

fn decode_grant(row: GrantRow, hosts: BTreeMap<HostName, Holding>) -> Result<Kept, StoreError> {
    let state = decode::grant_state(&row.state, row.end_reason.as_deref())?;
    let expires = decode::time("expires", row.expires_ms)?;
    let shown = |(name, holding): (&HostName, &Holding)| GrantHost {
        name: name.clone(),
        held: match state {
            GrantState::Scheduled | GrantState::Activating | GrantState::Active => *holding == Holding::Held,
            GrantState::Ending(_) | GrantState::Ended(_) => holding.may_hold(),
        },
        error: holding_words(holding).1.to_owned(),
        // What else bounds it is not in the record alone.
        until: holding.may_hold().then_some(expires),
    };
    let grant = Grant {
        id: decode::text("grant", &row.id)?,
        state,
        request: decode::text("request", &row.request)?,
        resource: decode::text("resource", &row.resource)?,
        subject: decode::text("subject", &row.subject)?,
        hosts: hosts.iter().map(shown).collect(),
        issued: decode::time("issued", row.issued_ms)?,
        expires,
        ended: row.ended_ms.map(|ended| decode::time("ended", ended)).transpose()?,
        idle: decode::seconds("idle", row.idle_s)?,
        while_running: row.while_running.map(|path| decode::text("while_running", &path)).transpose()?,
        run: row.run.map(|id| decode::text("run", &id)).transpose()?,
        action: decode::action(row.action)?,
        extensions: decode::number("extensions", row.extensions)?,
        begins: row.begins_ms.map(|begins| decode::time("begins", begins)).transpose()?,
        duration: decode::seconds("duration", row.duration_s)?.filter(|_| state == GrantState::Scheduled),
    };
    let requester = decode::text("requester", &row.requester)?;
    Ok(Kept { grant, life: Life::kept(state, Body { expires, hosts }), requester })
}

/// As a row says it: the word, and the error of a refusal.
pub(super) fn holding_words(holding: &Holding) -> (&'static str, &str) {
    match holding {
        Holding::Unknown => ("unknown", ""),
        Holding::Held => ("held", ""),
        Holding::Refused(error) => ("refused", error),
        Holding::Free(error) => ("free", error),
    }
}

fn holding(word: &str, error: String) -> Result<Holding, StoreError> {
    match word {
        "unknown" => Ok(Holding::Unknown),
        "held" => Ok(Holding::Held),
        "refused" => Ok(Holding::Refused(error)),
        "free" => Ok(Holding::Free(error)),
        _ => {
            let unknown = Invalid::new("holding", format_args!("`{word}` is not known"));
            Err(StoreError::broken("holding")(unknown))
        }
    }
}
