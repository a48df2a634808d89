//! Requests, read.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use policy::approval::Step;
use proto::types::{
    Grant, HookAnswer, HostName, Request, RequestId, RequestState, SubjectId, Timestamp, Vote,
};
use sqlx::FromRow;

use super::sql::{self, Query, Rows, Transaction};
use super::{Store, StoreError, decode, grants};
use crate::rules::Refusal;
use crate::rules::policy::steps;
use crate::rules::request::{Pending, may_decide};

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

/// How many pending requests are looked through for somebody who may decide about some of them.
const LOOKED_THROUGH_MAX: u32 = 1000;

impl Store {
    /// Requests, newest first. Somebody's own are those that they may decide about, too, or have.
    pub async fn requests(&self, filter: &RequestFilter, now: Timestamp) -> Result<Vec<Request>, StoreError> {
        let mut sql = self.read().await?;
        let mut query = sql::query_as(REQUESTS);
        query.push(if filter.all { " WHERE (true" } else { " WHERE (requests.state = 'pending'" });
        let looked_through = match &filter.whose {
            Whose::Everybodys => filter.limit,
            Whose::Of(id) => {
                push_whose(&mut query, &filter.whose);
                query.push(") OR (requests.state = 'pending' AND requests.policy IS NOT NULL");
                if filter.all {
                    query.push(") OR (requests.id IN (SELECT votes.request FROM votes ");
                    query.push("JOIN subjects AS voters ON voters.number = votes.person WHERE voters.id = ");
                    query.push_bind(id.as_str()).push(")");
                }
                filter.limit.max(LOOKED_THROUGH_MAX)
            }
        };
        query.push(") ORDER BY requests.id DESC LIMIT ").push_bind(looked_through);
        let mut found = Vec::new();
        for mut request in read_requests(&mut sql, query).await? {
            let steps = self.steps(&mut sql, &request).await?;
            if !concerns(&request, &steps, &filter.whose) {
                continue;
            }
            note_waiting(&mut request, steps, now);
            found.push(request);
            if found.len() >= filter.limit as usize {
                break;
            }
        }
        Ok(found)
    }

    /// Pending requests that have waited for so long, oldest first, with whom they wait for.
    pub async fn waiting(
        &self,
        longer_than: Duration,
        limit: u32,
        now: Timestamp,
    ) -> Result<Vec<Request>, StoreError> {
        let mut sql = self.read().await?;
        let waited_ms = i64::try_from(longer_than.as_millis()).unwrap_or(i64::MAX);
        let mut query = sql::query_as(REQUESTS);
        query.push(" WHERE requests.state = 'pending' AND requests.created_ms <= ");
        query.push_bind(now.unix_ms().saturating_sub(waited_ms));
        query.push(" ORDER BY requests.id LIMIT ").push_bind(limit);
        let mut found = read_requests(&mut sql, query).await?;
        for request in &mut found {
            let steps = self.steps(&mut sql, request).await?;
            note_waiting(request, steps, now);
        }
        Ok(found)
    }

    /// A request and its grant as they are now. What is not `whose` is as if it were not there.
    pub async fn view(&self, id: RequestId, whose: &Whose, now: Timestamp) -> Result<View, StoreError> {
        let mut sql = self.read().await?;
        let mut request = request(&mut sql, id).await?;
        let steps = self.steps(&mut sql, &request).await?;
        if !concerns(&request, &steps, whose) {
            return Err(Refusal::UnknownRequest(id).into());
        }
        note_waiting(&mut request, steps, now);
        let grant = match request.grant {
            None => None,
            Some(id) => Some(grants::grant(&mut sql, id).await?),
        };
        Ok(View { request, grant })
    }

    /// Who has to say yes, by the policy that a request was judged by; None: there was none, or it is decided. Of a version that cannot be
    /// read any more, as a newer control plane may be stricter, nobody can: the request lapses, and the others go on.
    pub(super) async fn steps(
        &self,
        sql: &mut Transaction,
        request: &Request,
    ) -> Result<Option<Vec<Step>>, StoreError> {
        let Some((version, role)) = request.judged.as_ref().filter(|_| request.decided.is_none()) else {
            return Ok(None);
        };
        let steps = match self.numbered(sql, *version).await {
            Ok(numbered) => steps(&numbered.policy, role, &request.subject, &request.requester),
            Err(StoreError::Refused(problem)) => {
                tracing::error!(version, %problem, "cannot read the policy that a pending request was judged by");
                None
            }
            Err(error) => return Err(error),
        };
        let nobody =
            || vec![Step { approvers: BTreeSet::new(), hooks: BTreeSet::new(), count: 1, after: None }];
        Ok(Some(steps.unwrap_or_else(nobody)))
    }
}

/// Whether a request is one of those that are asked for.
fn concerns(request: &Request, steps: &Option<Vec<Step>>, whose: &Whose) -> bool {
    let Whose::Of(who) = whose else { return true };
    [&request.subject, &request.requester].contains(&who)
        || steps.as_ref().is_some_and(|steps| may_decide(steps, who))
        || request.votes.iter().any(|vote| vote.by == *who)
}

fn note_waiting(request: &mut Request, steps: Option<Vec<Step>>, now: Timestamp) {
    let waiting = steps.and_then(|steps| Pending::of(request, steps).ok()?.waiting(now));
    request.waiting = waiting;
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
        requests.idle_s, requests.while_running, requests.run, requests.action, requests.policy, requests.role,
        requests.lapses_ms, requests.extends
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
    policy: Option<i64>,
    role: Option<String>,
    lapses_ms: Option<i64>,
    extends: Option<String>,
}

/// One vote: of which request, whose, when, yes, comment, duration, hosts.
type VoteRow = (String, String, i64, bool, String, Option<i64>, String);

/// One answer: of which request, whose, when, yes, comment.
type AnswerRow = (String, String, i64, bool, String);

/// One request.
pub(super) async fn request(sql: &mut Transaction, id: RequestId) -> Result<Request, StoreError> {
    let mut query = sql::query_as(REQUESTS);
    query.push(" WHERE requests.id = ").push_bind(id.to_string());
    let found = read_requests(sql, query).await?.pop();
    Ok(found.ok_or(Refusal::UnknownRequest(id))?)
}

/// Requests by their ids.
pub(super) async fn requests(
    sql: &mut Transaction,
    ids: impl IntoIterator<Item = RequestId>,
) -> Result<HashMap<RequestId, Request>, StoreError> {
    let ids: Vec<String> = ids.into_iter().map(|id| id.to_string()).collect();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let mut query = sql::query_as(REQUESTS);
    query.push(" WHERE requests.id IN ").push_list(ids.iter());
    let found = read_requests(sql, query).await?;
    Ok(found.into_iter().map(|request| (request.id, request)).collect())
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
        query.fetch_all(&mut *sql).await.map_err(StoreError::sql("read requests' hosts"))?;
    let mut hosts: HashMap<String, Vec<HostName>> = HashMap::new();
    for (request, name) in pairs {
        hosts.entry(request).or_default().push(decode::text("host", &name)?);
    }
    let mut query = sql::query_as(
        "SELECT votes.request, subjects.id, votes.at_ms, votes.yes, votes.comment, votes.duration_s, votes.hosts
         FROM votes JOIN subjects ON subjects.number = votes.person WHERE votes.request IN ",
    );
    query.push_list(rows.iter().map(|row| &row.id));
    query.push(" ORDER BY votes.at_ms");
    let cast: Vec<VoteRow> = query.fetch_all(&mut *sql).await.map_err(StoreError::sql("read votes"))?;
    let mut votes: HashMap<String, Vec<Vote>> = HashMap::new();
    for row in cast {
        votes.entry(row.0.clone()).or_default().push(decode_vote(row)?);
    }
    let mut query =
        sql::query_as("SELECT request, hook, at_ms, yes, comment FROM hook_answers WHERE request IN ");
    query.push_list(rows.iter().map(|row| &row.id));
    query.push(" ORDER BY at_ms, hook");
    let said: Vec<AnswerRow> = query.fetch_all(sql).await.map_err(StoreError::sql("read answers"))?;
    let mut answers: HashMap<String, Vec<HookAnswer>> = HashMap::new();
    for (request, hook, at, yes, comment) in said {
        let (hook, at) = (decode::text("hook", &hook)?, decode::time("at", at)?);
        answers.entry(request).or_default().push(HookAnswer { hook, at, yes, comment });
    }
    let request = |row: RequestRow| {
        let hosts = hosts.remove(&row.id).unwrap_or_default();
        let votes = votes.remove(&row.id).unwrap_or_default();
        let answers = answers.remove(&row.id).unwrap_or_default();
        Ok(Request { answers, ..decode_request(row, hosts, votes)? })
    };
    rows.into_iter().map(request).collect()
}

fn decode_vote((_, by, at, yes, comment, duration, hosts): VoteRow) -> Result<Vote, StoreError> {
    let hosts = hosts.split(' ').filter(|name| !name.is_empty()).map(|name| decode::text("hosts", name));
    Ok(Vote {
        by: decode::text("person", &by)?,
        at: decode::time("at", at)?,
        yes,
        comment,
        duration: decode::seconds("duration", duration)?,
        hosts: hosts.collect::<Result<_, _>>()?,
    })
}

fn decode_request(row: RequestRow, hosts: Vec<HostName>, votes: Vec<Vote>) -> Result<Request, StoreError> {
    let decided = match row.decided_ms {
        Some(at) => {
            let by = row.decided_by.map(|by| decode::text("decided_by", &by)).transpose()?;
            Some((by, decode::time("decided", at)?))
        }
        None => None,
    };
    let judged = match (row.policy, row.role) {
        (Some(version), Some(role)) => {
            Some((decode::number("policy", version)?, decode::text("role", &role)?))
        }
        _ => None,
    };
    let state = decode::one_of("state", &RequestState::ALL, RequestState::as_str, &row.state)?;
    // What it led to is the grant that it has made longer.
    let led_to = match state {
        RequestState::Approved => row.grant_id.or_else(|| row.extends.clone()),
        _ => row.grant_id,
    };
    Ok(Request {
        id: decode::text("request", &row.id)?,
        state,
        resource: decode::text("resource", &row.resource)?,
        subject: decode::text("subject", &row.subject)?,
        hosts,
        duration: Duration::from_secs(decode::number("duration", row.duration_s)?),
        reason: decode::text("reason", &row.reason)?,
        requester: decode::text("requester", &row.requester)?,
        created: decode::time("created", row.created_ms)?,
        decided,
        comment: row.comment,
        grant: led_to.map(|id| decode::text("grant", &id)).transpose()?,
        idle: decode::seconds("idle", row.idle_s)?,
        while_running: row.while_running.map(|path| decode::text("while_running", &path)).transpose()?,
        run: row.run.map(|id| decode::text("run", &id)).transpose()?,
        action: decode::action(row.action)?,
        judged,
        lapses: row.lapses_ms.map(|lapses| decode::time("lapses", lapses)).transpose()?,
        votes,
        answers: Vec::new(),
        waiting: None,
        extends: row.extends.map(|id| decode::text("extends", &id)).transpose()?,
    })
}
