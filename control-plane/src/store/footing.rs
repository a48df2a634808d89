//! What a new request stands on: names, hosts, what is closed or open now, and which policy is in force.
//!
//! Owns: reading all of it at once, as requests are among the few things that come by the thousand. Must not know: what is concluded
//! from it.

use std::collections::BTreeSet;

use proto::types::{HostName, NewRequest, SubjectId, Timestamp};
use sqlx::FromRow;

use super::sql::{self, Transaction};
use super::{StoreError, decode};
use crate::rules::Refusal;

/// What there is for a new request.
#[derive(FromRow)]
pub(super) struct Footing {
    /// The number of what is asked for; None: it is not protected.
    pub(super) resource: Option<i64>,
    /// The number of whom it is for; None: nobody knows them.
    pub(super) subject: Option<i64>,
    pub(super) is_disabled: bool,
    /// The number of who asks.
    pub(super) requester: Option<i64>,
    /// Whether some freeze holds, of whatever resource.
    pub(super) is_something_frozen: bool,
    /// Whether some incident is open.
    pub(super) is_incident_open: bool,
    policy: Option<i64>,
}

impl Footing {
    /// The version in force; None: there is none.
    pub(super) fn policy(&self) -> Result<Option<u64>, StoreError> {
        self.policy.map(|version| decode::number("policy", version)).transpose()
    }
}

/// The same beside each host that it could be for; None: beside none.
#[derive(FromRow)]
struct FootingRow {
    host: Option<i64>,
    host_name: Option<String>,
    #[sqlx(flatten)]
    footing: Footing,
}

/// What a new request stands on, and the hosts that it names, or without names every host, by their names, each with its number.
pub(super) async fn footing(
    sql: &mut Transaction,
    new: &NewRequest,
    subject: &SubjectId,
    requester: &SubjectId,
    now: Timestamp,
) -> Result<(Footing, Vec<(i64, HostName)>), StoreError> {
    let mut query = sql::query_as(
        "SELECT (SELECT number FROM resources WHERE name = ? AND removed_ms IS NULL) AS resource,
             (SELECT number FROM subjects WHERE id = ?) AS subject,
             EXISTS (SELECT 1 FROM subjects WHERE id = ? AND disabled_ms IS NOT NULL) AS is_disabled,
             (SELECT number FROM subjects WHERE id = ?) AS requester,
             EXISTS (SELECT 1 FROM freezes WHERE ended_ms IS NULL AND until_ms > ?) AS is_something_frozen,
             EXISTS (SELECT 1 FROM incidents WHERE closed_ms IS NULL AND until_ms > ?) AS is_incident_open,
             (SELECT max(version) FROM policies) AS policy, hosts.number AS host, hosts.name AS host_name
         FROM timeline LEFT JOIN hosts ON ",
    )
    .bind(new.resource.as_str())
    .bind(subject.as_str())
    .bind(subject.as_str())
    .bind(requester.as_str())
    .bind(now.unix_ms())
    .bind(now.unix_ms());
    match new.hosts.is_empty() {
        true => query.push("true"),
        false => query.push("hosts.name IN ").push_list(new.hosts.iter().map(HostName::as_str)),
    };
    query.push(" ORDER BY hosts.name");
    let rows: Vec<FootingRow> =
        query.fetch_all(sql).await.map_err(StoreError::sql("look up what a request is about"))?;
    let mut found = Vec::with_capacity(rows.len());
    let mut footing = None;
    for row in rows {
        if let (Some(number), Some(name)) = (row.host, row.host_name) {
            found.push((number, decode::text("host", &name)?));
        }
        footing = Some(row.footing);
    }
    let footing = footing.ok_or_else(|| StoreError::sql("read the timeline")(sqlx::Error::RowNotFound))?;
    Ok((footing, found))
}

/// That every host is there that is named, and that there is one.
pub(super) fn all_of(
    names: &[HostName],
    found: Vec<(i64, HostName)>,
) -> Result<Vec<(i64, HostName)>, Refusal> {
    let known: BTreeSet<&HostName> = found.iter().map(|(_, name)| name).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        return Err(Refusal::UnknownHost(unknown.clone()));
    }
    if found.is_empty() { Err(Refusal::NoHost) } else { Ok(found) }
}
