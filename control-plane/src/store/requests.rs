//! Requests, read.

use std::collections::HashMap;
use std::time::Duration;

use proto::types::{Grant, HostName, Request, RequestId, RequestState, SubjectId};
use sqlx::FromRow;

use super::sql::{self, Query, Rows, Transaction};
use super::{Store, StoreError, decode, grants};
use crate::rules::Refusal;

/// Whose requests and grants are looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Everybody's.
    Everybodys,
    /// Those for this subject, or asked for by it.
    Of(SubjectId),
}

/// Which requests or grants are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestFilter {
    /// Also decided requests, also ended grants.
    pub all: bool,
    /// Whose.
    pub whose: Whose,
    /// The newest so many.
    pub limit: u32,
}

/// A request and what it led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The request.
    pub request: Request,
    /// None unless approved.
    pub grant: Option<Grant>,
}

impl Store {
    /// Requests, newest first.
    pub async fn requests(&self, filter: &RequestFilter) -> Result<Vec<Request>, StoreError> {
        let mut query = sql::query_as(REQUESTS);
        query.push(if filter.all { " WHERE true" } else { " WHERE requests.state = 'pending'" });
        push_whose(&mut query, &filter.whose);
        query.push(" ORDER BY requests.id DESC LIMIT ").push_bind(filter.limit);
        read_requests(&mut self.read().await?, query).await
    }

    /// A request and its grant as they are now. What is not `whose` is as if it were not there.
    pub async fn view(&self, id: RequestId, whose: &Whose) -> Result<View, StoreError> {
        let mut sql = self.read().await?;
        let mut query = sql::query_as(REQUESTS);
        query.push(" WHERE requests.id = ").push_bind(id.to_string());
        push_whose(&mut query, whose);
        let request = read_requests(&mut sql, query).await?.pop().ok_or(Refusal::UnknownRequest(id))?;
        let grant = match request.grant {
            None => None,
            Some(id) => Some(grants::grant(&mut sql, id).await?),
        };
        Ok(View { request, grant })
    }
}

/// Keeps what concerns a subject; to be added to a condition on `requests`.
pub(super) fn push_whose<O>(query: &mut Query<O>, whose: &Whose) {
    if let Whose::Of(id) = whose {
        query.push(" AND (requests.subject = (SELECT number FROM subjects WHERE id = ");
        query.push_bind(id.to_string());
        query.push(") OR requests.requester = (SELECT number FROM subjects WHERE id = ");
        query.push_bind(id.to_string()).push("))");
    }
}

const REQUESTS: &str = "
    SELECT requests.id, requests.state, resources.name AS resource, subjects.id AS subject,
        requesters.id AS requester, requests.duration_s, requests.reason, requests.created_ms,
        deciders.id AS decided_by, requests.decided_ms, requests.comment, grants.id AS grant_id,
        requests.idle_s, requests.while_running, requests.run, requests.action
    FROM requests
    JOIN resources ON resources.number = requests.resource
    JOIN subjects ON subjects.number = requests.subject
    JOIN subjects AS requesters ON requesters.number = requests.requester
    LEFT JOIN subjects AS deciders ON deciders.number = requests.decided_by
    LEFT JOIN grants ON grants.request = requests.id";

#[derive(FromRow)]
struct RequestRow {
    id: String,
    state: String,
    resource: String,
    subject: String,
    requester: String,
    duration_s: i64,
    reason: String,
    created_ms: i64,
    decided_by: Option<String>,
    decided_ms: Option<i64>,
    comment: String,
    grant_id: Option<String>,
    idle_s: Option<i64>,
    while_running: Option<String>,
    run: Option<String>,
    action: Option<Vec<u8>>,
}

/// One request.
pub(super) async fn request(sql: &mut Transaction, id: RequestId) -> Result<Request, StoreError> {
    let mut query = sql::query_as(REQUESTS);
    query.push(" WHERE requests.id = ").push_bind(id.to_string());
    let found = read_requests(sql, query).await?.pop();
    Ok(found.ok_or(Refusal::UnknownRequest(id))?)
}

async fn read_requests(
    sql: &mut Transaction,
    query: Query<Rows<RequestRow>>,
) -> Result<Vec<Request>, StoreError> {
    let rows: Vec<RequestRow> = query.fetch_all(&mut *sql).await.map_err(StoreError::sql("read requests"))?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let mut query = sql::query_as(
        "SELECT request_hosts.request, hosts.name FROM request_hosts
         JOIN hosts ON hosts.number = request_hosts.host WHERE request_hosts.request IN ",
    );
    query.push_list(rows.iter().map(|row| &row.id));
    query.push(" ORDER BY hosts.name");
    let pairs: Vec<(String, String)> =
        query.fetch_all(sql).await.map_err(StoreError::sql("read requests' hosts"))?;
    let mut hosts: HashMap<String, Vec<HostName>> = HashMap::new();
    for (request, name) in pairs {
        hosts.entry(request).or_default().push(decode::text("host", &name)?);
    }
    let request = |row: RequestRow| {
        let hosts = hosts.remove(&row.id).unwrap_or_default();
        decode_request(row, hosts)
    };
    rows.into_iter().map(request).collect()
}

fn decode_request(row: RequestRow, hosts: Vec<HostName>) -> Result<Request, StoreError> {
    let decided = match (row.decided_by, row.decided_ms) {
        (Some(by), Some(at)) => Some((decode::text("decided_by", &by)?, decode::time("decided", at)?)),
        _ => None,
    };
    Ok(Request {
        id: decode::text("request", &row.id)?,
        state: decode::one_of("state", &RequestState::ALL, RequestState::as_str, &row.state)?,
        resource: decode::text("resource", &row.resource)?,
        subject: decode::text("subject", &row.subject)?,
        hosts,
        duration: Duration::from_secs(decode::number("duration", row.duration_s)?),
        reason: decode::text("reason", &row.reason)?,
        requester: decode::text("requester", &row.requester)?,
        created: decode::time("created", row.created_ms)?,
        decided,
        comment: row.comment,
        grant: row.grant_id.map(|id| decode::text("grant", &id)).transpose()?,
        idle: decode::seconds("idle", row.idle_s)?,
        while_running: row.while_running.map(|path| decode::text("while_running", &path)).transpose()?,
        run: row.run.map(|id| decode::text("run", &id)).transpose()?,
        action: decode::action(row.action)?,
    })
}
