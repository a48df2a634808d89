//! Hosts: what is wanted there, and how they were last seen.

use std::collections::HashMap;
use std::sync::Arc;

use proto::types::{HostName, HostState, Labels, Report, Resource, Subject, Timestamp};
use sqlx::FromRow;

use super::replicas::SessionNumber;
use super::sql::{self, Transaction};
use super::{Store, StoreError, decode, directory};
use crate::rules::placement::{Plan, Wanted};
use crate::rules::roster::Missing;

/// A host as it was last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRecord {
    /// Its name.
    pub name: HostName,
    /// Of the grant set wanted there.
    pub generation: u64,
    /// Of the grant set its kernel holds; 0: none.
    pub applied_generation: u64,
    /// The last message that was noted. Not every message is.
    pub seen: Option<Timestamp>,
    /// Empty: never seen.
    pub agent_version: String,
    /// Empty: never seen.
    pub kernel_release: String,
    /// What its agent last reported; None: nothing yet.
    pub report: Option<Report>,
    /// What its kernel could not take.
    pub missing: Vec<Missing>,
    /// What it is.
    pub labels: Labels,
}

#[derive(FromRow)]
struct HostRow {
    number: i64,
    name: String,
    generation: i64,
    applied_generation: i64,
    seen_ms: Option<i64>,
    agent_version: String,
    kernel_release: String,
    reported_state: Option<String>,
    reported_detail: String,
    labels: String,
}

#[derive(FromRow)]
struct WantedRow {
    id: String,
    subject: i64,
    resource: i64,
    expires_ms: i64,
    idle_s: Option<i64>,
    while_running: Option<String>,
    run: Option<String>,
    action: Option<Vec<u8>>,
    extensions: i64,
}

const HOSTS: &str = "SELECT number, name, generation, applied_generation, seen_ms, agent_version, \
                     kernel_release, reported_state, reported_detail, labels FROM hosts ORDER BY name";
const HOST: &str = "SELECT number, name, generation, applied_generation, seen_ms, agent_version, \
                    kernel_release, reported_state, reported_detail, labels FROM hosts WHERE name = ?";

impl Store {
    /// By name.
    pub async fn hosts(&self) -> Result<Vec<HostRecord>, StoreError> {
        let mut sql = self.read().await?;
        let rows: Vec<HostRow> =
            sql::query_as(HOSTS).fetch_all(&mut sql).await.map_err(StoreError::sql("read the hosts"))?;
        let mut missing = missing(&mut sql, None).await?;
        rows.into_iter()
            .map(|row| {
                let missing = missing.remove(&row.number).unwrap_or_default();
                record(row, missing)
            })
            .collect()
    }

    /// One host, which is known.
    pub async fn host(&self, name: &HostName) -> Result<HostRecord, StoreError> {
        Ok(host(&mut self.read().await?, name).await?.1)
    }

    /// All that a host should enforce, as of one moment; for the session that it has, not for an earlier one.
    pub async fn plan(&self, name: &HostName, session: SessionNumber) -> Result<Plan, StoreError> {
        let mut sql = self.read().await?;
        let (generation, current, revision): (i64, i64, i64) = sql::query_as(
            "SELECT generation, session, directory_revision FROM hosts, timeline WHERE name = ?",
        )
        .bind(name.as_str())
        .fetch_one(&mut sql)
        .await
        .map_err(StoreError::sql("read a host's generation"))?;
        if current != session.0 {
            return Err(StoreError::Superseded(name.clone()));
        }
        let rows: Vec<WantedRow> = sql::query_as(
            "SELECT grants.id, requests.subject, requests.resource, grants.expires_ms, requests.idle_s,
                 requests.while_running, requests.run, requests.action, grants.extensions
             FROM grant_hosts
             JOIN hosts ON hosts.number = grant_hosts.host
             JOIN grants ON grants.id = grant_hosts.grant_id
             JOIN requests ON requests.id = grants.request
             WHERE hosts.name = ? AND grant_hosts.holding <> 'free'
             AND grant_hosts.until_generation IS NULL",
        )
        .bind(name.as_str())
        .fetch_all(&mut sql)
        .await
        .map_err(StoreError::sql("read a host's grants"))?;
        let wanted = |row: WantedRow| {
            Ok(Wanted {
                id: decode::text("grant", &row.id)?,
                subject: decode::id_number("subject", row.subject)?,
                resource: decode::id_number("resource", row.resource)?,
                expires: decode::time("expires", row.expires_ms)?,
                idle: decode::seconds("idle", row.idle_s)?,
                while_running: row
                    .while_running
                    .map(|path| decode::text("while_running", &path))
                    .transpose()?,
                run: row.run.map(|id| decode::text("run", &id)).transpose()?,
                action: decode::action(row.action)?,
                extensions: decode::number("extensions", row.extensions)?,
            })
        };
        let Directory { resources, subjects, .. } = self.directory(&mut sql, revision).await?;
        Ok(Plan {
            generation: decode::number("generation", generation)?,
            resources,
            subjects,
            grants: rows.into_iter().map(wanted).collect::<Result<_, StoreError>>()?,
        })
    }
}

/// What is in every host's set.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    revision: i64,
    resources: Arc<[Resource]>,
    subjects: Arc<[Subject]>,
}

impl Store {
    /// The directory of this revision, which is the one that `sql` sees. A thousand hosts that get their sets at once read it
    /// once.
    async fn directory(&self, sql: &mut Transaction, revision: i64) -> Result<Directory, StoreError> {
        let mut known = self.directory.lock().await;
        match &*known {
            Some(directory) if directory.revision == revision => Ok(directory.clone()),
            _ => {
                let resources = directory::resources_of_hosts(sql).await?.into();
                let subjects = directory::subjects(sql).await?.into();
                Ok(known.insert(Directory { revision, resources, subjects }).clone())
            }
        }
    }
}

/// One host, which is known, with its number.
pub(super) async fn host(sql: &mut Transaction, name: &HostName) -> Result<(i64, HostRecord), StoreError> {
    let row: HostRow = sql::query_as(HOST)
        .bind(name.as_str())
        .fetch_one(&mut *sql)
        .await
        .map_err(StoreError::sql("read a host"))?;
    let number = row.number;
    let missing = missing(sql, Some(number)).await?.remove(&number).unwrap_or_default();
    Ok((number, record(row, missing)?))
}

/// What kernels could not take, by host: of one host, or of all.
async fn missing(sql: &mut Transaction, host: Option<i64>) -> Result<HashMap<i64, Vec<Missing>>, StoreError> {
    let mut query = sql::query_as(
        "SELECT host_refusals.host, resources.name, subjects.id, host_refusals.error FROM host_refusals
         LEFT JOIN resources ON resources.number = host_refusals.resource
         LEFT JOIN subjects ON subjects.number = host_refusals.subject",
    );
    if let Some(host) = host {
        query.push(" WHERE host_refusals.host = ").push_bind(host);
    }
    query.push(" ORDER BY resources.name NULLS FIRST, subjects.id NULLS FIRST");
    let rows: Vec<(i64, Option<String>, Option<String>, String)> =
        query.fetch_all(sql).await.map_err(StoreError::sql("read what hosts refused"))?;
    let mut missing: HashMap<i64, Vec<Missing>> = HashMap::new();
    for row in rows {
        let (host, item) = match row {
            (host, Some(name), _, error) => {
                (host, Missing::Resource(decode::text("resource", &name)?, error))
            }
            (host, _, Some(id), error) => (host, Missing::Subject(decode::text("subject", &id)?, error)),
            (_, None, None, _) => continue,
        };
        missing.entry(host).or_default().push(item);
    }
    Ok(missing)
}

fn record(row: HostRow, missing: Vec<Missing>) -> Result<HostRecord, StoreError> {
    let report = match row.reported_state {
        None => None,
        Some(state) => Some(Report {
            state: decode::one_of("reported_state", &HostState::ALL, HostState::as_str, &state)?,
            detail: row.reported_detail,
        }),
    };
    Ok(HostRecord {
        name: decode::text("host", &row.name)?,
        generation: decode::number("generation", row.generation)?,
        applied_generation: decode::number("applied_generation", row.applied_generation)?,
        seen: row.seen_ms.map(|seen| decode::time("seen", seen)).transpose()?,
        agent_version: row.agent_version,
        kernel_release: row.kernel_release,
        report,
        missing,
        labels: decode::text("labels", &row.labels)?,
    })
}
