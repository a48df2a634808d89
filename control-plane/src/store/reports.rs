//! Reports: what was granted, what was used of it, and what the record says of it.
//!
//! Owns: how grants of a period are found, page by page, with what is known of each. Must not know: what may be said of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ::policy::Policy;
use proto::types::{
    AuditEvent, EVENTS_SHOWN_MAX, EventKind, EventReference, Grant, GrantId, GrantUse, Page, Period, Request,
    RequestId, Resource, ResourceName, ReviewedAccess, RoleName, RoleUse, SubjectId, Timestamp, UseFilter,
    Vote,
};

use super::directory::resources;
use super::grants::{GRANTS, read};
use super::requests::requests;
use super::sql::{self, Transaction};
use super::{Store, StoreError, audit, decode};
use crate::rules::Refusal;
use crate::rules::report::{Facts, Judged, Tally, judge, shown};
use crate::rules::uses::{Receipts, Use};

/// How many grants are looked at in one go: each can have thousands of hosts.
const GO_MAX: u32 = 100;

/// How many grants a report about roles looks at.
const TALLY_MAX: u32 = 20_000;

/// How many votes one grant's line has at most; more people than can approve anything.
const VOTES_MAX: usize = 1000;

/// A grant with what is known of it.
struct Found {
    grant: Grant,
    request: Request,
    judged: Judged,
}

/// Which grants.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    period: Period,
    subject: Option<&'a SubjectId>,
    resource: Option<&'a ResourceName>,
}

impl Store {
    /// The grants that were live in a period, against what was used of them, oldest first; and behind which there are more.
    pub async fn grant_uses(
        &self,
        filter: &UseFilter,
        now: Timestamp,
    ) -> Result<(Vec<GrantUse>, Option<GrantId>), StoreError> {
        let UseFilter { period, subject, resource, page } = filter;
        let wanted = Wanted { period: *period, subject: subject.as_ref(), resource: resource.as_ref() };
        let mut sql = self.read().await?;
        let resources = by_name(resources(&mut sql).await?);
        let (mut uses, mut after) = (Vec::new(), page.after);
        loop {
            let left = page.limit.saturating_sub(u32::try_from(uses.len()).unwrap_or(u32::MAX));
            let go = Page { after, limit: left.min(GO_MAX) };
            let (found, next) = find(&mut sql, wanted, go, &resources, now).await?;
            uses.extend(found.iter().map(|found| {
                let resource = resources.get(&found.grant.resource);
                shown(&found.grant, &found.request, resource, &found.judged)
            }));
            after = next;
            if after.is_none() || left <= GO_MAX {
                return Ok((uses, after));
            }
        }
    }

    /// The roles of the policy in force by which grants of a period were had, by name; and whether there were more grants than were
    /// looked at.
    pub async fn role_uses(
        &self,
        period: Period,
        now: Timestamp,
    ) -> Result<(Vec<RoleUse>, bool), StoreError> {
        let wanted = Wanted { period, subject: None, resource: None };
        let policy: Arc<Policy> = {
            let mut sql = self.read().await?;
            self.in_force(&mut sql).await?.ok_or(Refusal::UnknownPolicy(1))?.policy
        };
        let (mut tallies, mut after, mut looked_at) = (BTreeMap::<RoleName, Tally>::new(), None, 0);
        let is_cut = loop {
            // A state for each go: one for all of them would be held against writers for long.
            let mut sql = self.read().await?;
            let resources = by_name(resources(&mut sql).await?);
            let go = Page { after, limit: GO_MAX };
            let (found, next) = find(&mut sql, wanted, go, &resources, now).await?;
            for Found { grant, request, judged } in found {
                if let Some((_, role)) = request.judged {
                    tallies.entry(role).or_default().add(&grant, &judged);
                }
            }
            looked_at += GO_MAX;
            after = next;
            match after {
                None => break false,
                Some(_) if looked_at >= TALLY_MAX => break true,
                Some(_) => {}
            }
        };
        let of_role = |(name, tally): (RoleName, Tally)| {
            // One that the policy has no more needs no narrower one.
            policy.role(&name).map(|role| tally.shown(&policy, role))
        };
        Ok((tallies.into_iter().filter_map(of_role).collect(), is_cut))
    }

    /// The grants that were live in a period, with all that led to them, oldest first; and behind which there are more. At most a
    /// hundred.
    pub async fn access_review(
        &self,
        period: Period,
        page: Page,
        now: Timestamp,
    ) -> Result<(Vec<ReviewedAccess>, Option<GrantId>), StoreError> {
        let wanted = Wanted { period, subject: None, resource: None };
        let mut sql = self.read().await?;
        let resources = by_name(resources(&mut sql).await?);
        let page = Page { limit: page.limit.min(GO_MAX), ..page };
        let (found, next) = find(&mut sql, wanted, page, &resources, now).await?;
        let mut longer = extensions(&mut sql, found.iter().map(|found| found.grant.id)).await?;
        let about = found.iter().flat_map(|found| [found.grant.id.to_string(), found.request.id.to_string()]);
        let of_extensions = longer.values().flatten().map(|request| request.id.to_string());
        let mut events = references(&mut sql, about.chain(of_extensions).collect()).await?;
        let reviewed = found.into_iter().map(|Found { grant, request, judged }| {
            let resource = resources.get(&grant.resource);
            let longer = longer.remove(&grant.id).unwrap_or_default();
            let ids = [request.id].into_iter().chain(longer.iter().map(|request| request.id));
            let ids = ids.map(|id| id.to_string()).chain([grant.id.to_string()]);
            let mut events: Vec<AuditEvent> = ids.filter_map(|id| events.remove(&id)).flatten().collect();
            events.sort_by_key(|event| event.position);
            reviewed(grant, request, longer, resource, &judged, events)
        });
        Ok((reviewed.collect(), next))
    }
}

fn by_name(resources: Vec<Resource>) -> HashMap<ResourceName, Resource> {
    resources.into_iter().map(|resource| (resource.name.clone(), resource)).collect()
}

fn reviewed(
    grant: Grant,
    request: Request,
    longer: Vec<Request>,
    resource: Option<&Resource>,
    judged: &Judged,
    events: Vec<AuditEvent>,
) -> ReviewedAccess {
    let usage = shown(&grant, &request, resource, judged);
    let active = events.iter().find(|event| event.kind == EventKind::GrantActive).map(|event| event.time);
    let votes: Vec<Vote> =
        request.votes.into_iter().chain(longer.into_iter().flat_map(|it| it.votes)).collect();
    let more_events = events.len() > EVENTS_SHOWN_MAX;
    let reference = |event: AuditEvent| EventReference {
        position: event.position,
        id: event.id.to_string(),
        event: event.kind.to_string(),
        time: event.time,
    };
    ReviewedAccess {
        usage,
        requester: request.requester,
        policy: request.judged.as_ref().map(|(version, _)| *version),
        reason: request.reason.to_string(),
        requested: request.created,
        approved: request.decided.map(|(_, at)| at),
        active,
        ended: grant.ended,
        state: grant.state.to_string(),
        votes: votes.into_iter().take(VOTES_MAX).collect(),
        hosts: grant.hosts.into_iter().map(|host| host.name).collect(),
        extensions: grant.extensions,
        events: events.into_iter().take(EVENTS_SHOWN_MAX).map(reference).collect(),
        more_events,
    }
}

/// A page of the grants that are wanted, by id, which is the order in which they were made.
async fn find(
    sql: &mut Transaction,
    wanted: Wanted<'_>,
    page: Page,
    resources: &HashMap<ResourceName, Resource>,
    now: Timestamp,
) -> Result<(Vec<Found>, Option<GrantId>), StoreError> {
    let Wanted { period: Period { from, to }, subject, resource } = wanted;
    let mut query = sql::query_as(GRANTS);
    // One whose time has not begun, or never did, was not live.
    query.push(" WHERE grants.state <> 'scheduled' AND (grants.ended_ms IS NULL OR grants.ended_ms > grants.begins_ms)");
    query.push(" AND grants.expires_ms > ").push_bind(from.unix_ms());
    query.push(" AND (grants.ended_ms IS NULL OR grants.ended_ms > ").push_bind(from.unix_ms());
    query.push(") AND grants.begins_ms < ").push_bind(to.map_or(i64::MAX, Timestamp::unix_ms));
    if let Some(after) = page.after {
        query.push(" AND grants.id > ").push_bind(after.to_string());
    }
    if let Some(subject) = subject {
        query.push(" AND subjects.id = ").push_bind(subject.as_str());
    }
    if let Some(resource) = resource {
        query.push(" AND resources.name = ").push_bind(resource.as_str());
    }
    query.push(" ORDER BY grants.id LIMIT ").push_bind(page.limit.saturating_add(1));
    let mut grants: Vec<Grant> = read(sql, query).await?.into_iter().map(|kept| kept.grant).collect();
    let has_more = grants.len() > page.limit as usize;
    grants.truncate(page.limit as usize);
    let next = grants.last().filter(|_| has_more).map(|grant| grant.id);
    let mut requests = requests(sql, grants.iter().map(|grant| grant.request)).await?;
    let mut facts = facts(sql, &grants, now).await?;
    let found = grants.into_iter().map(|grant| {
        let request = requests.remove(&grant.request).ok_or(Refusal::UnknownRequest(grant.request))?;
        let facts = facts.remove(&grant.id).unwrap_or_default();
        let judged = judge(&grant, resources.get(&grant.resource), &facts);
        Ok(Found { grant, request, judged })
    });
    Ok((found.collect::<Result<_, StoreError>>()?, next))
}

/// A use: of which grant, on which host, where, first, last, how often.
type UseRow = (String, String, String, i64, i64, i64);

/// Receipts: of which grant, of which host, of processes, of others, last use.
type ReceiptRow = (String, String, i64, i64, Option<i64>);

/// What is known of the use of grants.
async fn facts(
    sql: &mut Transaction,
    grants: &[Grant],
    now: Timestamp,
) -> Result<HashMap<GrantId, Facts>, StoreError> {
    let mut facts: HashMap<GrantId, Facts> = HashMap::new();
    if grants.is_empty() {
        return Ok(facts);
    }
    let ids: Vec<String> = grants.iter().map(|grant| grant.id.to_string()).collect();
    // What was granted before references were written has none.
    let mut query = sql::query_scalar("SELECT about FROM event_refs WHERE kind = ");
    query.push_bind(EventKind::GrantIssued.as_str()).push(" AND about IN ").push_list(&ids);
    let counted: Vec<String> =
        query.fetch_all(&mut *sql).await.map_err(StoreError::sql("read which uses are counted"))?;
    for id in counted {
        facts.entry(decode::text("grant", &id)?).or_default().is_counted = true;
    }
    let mut query = sql::query_as(
        "SELECT grant_uses.grant_id, hosts.name, grant_uses.place, grant_uses.first_ms, grant_uses.last_ms,
             grant_uses.connections
         FROM grant_uses JOIN hosts ON hosts.number = grant_uses.host WHERE grant_uses.grant_id IN ",
    );
    query.push_list(&ids);
    let uses: Vec<UseRow> =
        query.fetch_all(&mut *sql).await.map_err(StoreError::sql("read what grants were used for"))?;
    for (grant, host, place, first, last, connections) in uses {
        let seen = Use {
            first: decode::time("first", first)?,
            last: decode::time("last", last)?,
            connections: decode::number("connections", connections)?,
        };
        let of_grant = facts.entry(decode::text("grant", &grant)?).or_default();
        of_grant.uses.entry(decode::text("host", &host)?).or_default().insert(place, seen);
    }
    let mut query = sql::query_as(
        "SELECT grant_receipts.grant_id, hosts.name, grant_receipts.exits, grant_receipts.ends,
             grant_receipts.admitted_ms
         FROM grant_receipts JOIN hosts ON hosts.number = grant_receipts.host WHERE grant_receipts.grant_id IN ",
    );
    query.push_list(&ids);
    let receipts: Vec<ReceiptRow> =
        query.fetch_all(&mut *sql).await.map_err(StoreError::sql("read hosts' receipts"))?;
    for (grant, host, exits, ends, admitted) in receipts {
        let receipts = Receipts {
            exits: decode::number("exits", exits)?,
            ends: decode::number("ends", ends)?,
            admitted: admitted.map(|at| decode::time("admitted", at)).transpose()?,
        };
        let of_grant = facts.entry(decode::text("grant", &grant)?).or_default();
        of_grant.receipts.insert(decode::text("host", &host)?, receipts);
    }
    // An hour more: a loss is told of after it has happened.
    let mut query = sql::query_as(
        "SELECT DISTINCT grant_hosts.grant_id, hosts.name FROM grant_hosts
         JOIN grants ON grants.id = grant_hosts.grant_id
         JOIN hosts ON hosts.number = grant_hosts.host
         JOIN use_gaps ON use_gaps.host = grant_hosts.host AND use_gaps.hour_ms > grants.begins_ms - 3600000
             AND use_gaps.hour_ms < coalesce(grants.ended_ms, grants.expires_ms) + 3600000
         WHERE use_gaps.hour_ms <= ",
    );
    query.push_bind(now.unix_ms()).push(" AND grant_hosts.grant_id IN ").push_list(&ids);
    let lossy: Vec<(String, String)> =
        query.fetch_all(sql).await.map_err(StoreError::sql("read which verdicts were lost"))?;
    for (grant, host) in lossy {
        let of_grant = facts.entry(decode::text("grant", &grant)?).or_default();
        of_grant.lossy.insert(decode::text("host", &host)?);
    }
    Ok(facts)
}

/// The requests by which grants were made to live longer, or were to be, oldest first.
async fn extensions(
    sql: &mut Transaction,
    grants: impl Iterator<Item = GrantId>,
) -> Result<HashMap<GrantId, Vec<Request>>, StoreError> {
    let grants: Vec<String> = grants.map(|grant| grant.to_string()).collect();
    let mut longer: HashMap<GrantId, Vec<Request>> = HashMap::new();
    if grants.is_empty() {
        return Ok(longer);
    }
    let mut query = sql::query_scalar("SELECT id FROM requests WHERE extends IN ");
    query.push_list(&grants).push(" ORDER BY id LIMIT ").push_bind(i64::from(TALLY_MAX));
    let ids: Vec<String> =
        query.fetch_all(&mut *sql).await.map_err(StoreError::sql("read grants' extensions"))?;
    let ids: Vec<RequestId> = ids.iter().map(|id| decode::text("request", id)).collect::<Result<_, _>>()?;
    let mut found = requests(sql, ids.iter().copied()).await?;
    for request in ids.iter().filter_map(|id| found.remove(id)) {
        if let Some(grant) = request.extends {
            longer.entry(grant).or_default().push(request);
        }
    }
    Ok(longer)
}

/// The events that are about these, each with one more than are shown if there are more.
async fn references(
    sql: &mut Transaction,
    about: Vec<String>,
) -> Result<HashMap<String, Vec<AuditEvent>>, StoreError> {
    let mut events: HashMap<String, Vec<AuditEvent>> = HashMap::new();
    if about.is_empty() {
        return Ok(events);
    }
    let mut query = sql::query_as(
        "SELECT refs.about, refs.position, audit_events.payload
         FROM (
             SELECT about, position, row_number() OVER (PARTITION BY about ORDER BY position) AS place
             FROM event_refs WHERE about IN ",
    );
    query.push_list(&about);
    query.push(") AS refs JOIN audit_events ON audit_events.position = refs.position WHERE refs.place <= ");
    query.push_bind(u32::try_from(EVENTS_SHOWN_MAX).unwrap_or(u32::MAX).saturating_add(1));
    let rows: Vec<(String, i64, Vec<u8>)> =
        query.fetch_all(sql).await.map_err(StoreError::sql("read what the record says of grants"))?;
    for (about, position, payload) in rows {
        events.entry(about).or_default().push(audit::event(position, &payload)?);
    }
    Ok(events)
}
