//! Resources and subjects.

use std::collections::HashMap;
use std::fmt::Display;

use proto::types::{
    Address, Change, EventKind, HostName, Labels, NewResource, NewSubject, Resource, ResourceChange,
    ResourceMode, ResourceName, ResourceOptions, Selector, Subject, SubjectId, SubjectRole, Timestamp,
};
use sqlx::FromRow;

use super::enrolment::NewJoinToken;
use super::grants::{GRANTS, read};
use super::sql::{self, Transaction};
use super::tx::{Tx, caused_by};
use super::{Store, StoreError, decode};
use crate::rules::Refusal;
use crate::rules::actor::Actor;

impl Store {
    /// Adds a resource; every host's set is another one then.
    pub async fn add_resource(
        &self,
        new: NewResource,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<Resource, StoreError> {
        let mut tx = self.write().await?;
        refuse_if_taken(&resources(tx.sql()).await?, &new)?;
        let resource = tx.insert_resource(new, actor, now).await?;
        tx.raise_all().await?;
        tx.commit().await?;
        Ok(resource)
    }

    /// Changes how a resource is guarded; every host's set is another one then. What is so already changes nothing.
    pub async fn set_resource(
        &self,
        change: &ResourceChange,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<Resource, StoreError> {
        let mut tx = self.write().await?;
        let before = resource(tx.sql(), &change.name).await?;
        let after = Resource { options: change.applied_to(&before.options), ..before.clone() };
        if after == before {
            return Ok(after);
        }
        tx.change_resource(&before, &after, actor, now).await?;
        tx.raise_all().await?;
        tx.commit().await?;
        Ok(after)
    }

    /// Ends the protection of a resource; every host's set is another one then. Refused while a grant for it has not ended.
    pub async fn remove_resource(
        &self,
        name: &ResourceName,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let resource = resource(tx.sql(), name).await?;
        tx.refuse_if_granted(&resource).await?;
        sql::query("UPDATE resources SET removed_ms = ? WHERE number = ?")
            .bind(now.unix_ms())
            .bind(resource.number.get())
            .execute(tx.sql())
            .await
            .map_err(StoreError::sql("remove a resource"))?;
        sql::query("DELETE FROM drafts WHERE resource = ?")
            .bind(resource.number.get())
            .execute(tx.sql())
            .await
            .map_err(StoreError::sql("forget drafts of a resource"))?;
        sql::query("DELETE FROM host_refusals WHERE resource = ?")
            .bind(resource.number.get())
            .execute(tx.sql())
            .await
            .map_err(StoreError::sql("forget what hosts refused"))?;
        tx.raise_all().await?;
        tx.record(EventKind::ResourceRemoved, now, |event| {
            event.resource = resource.name.to_string();
            caused_by(event, actor);
            event.comment = resource.destination();
            event.comment.truncate(COMMENT_MAX_BYTES);
        });
        tx.commit().await
    }

    /// By name.
    pub async fn resources(&self) -> Result<Vec<Resource>, StoreError> {
        resources(&mut self.read().await?).await
    }

    /// Adds a subject; every host's set is another one then. With a token's hash, it can sign in at once.
    pub async fn add_subject(
        &self,
        new: NewSubject,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<Subject, StoreError> {
        let mut tx = self.write().await?;
        let subject = tx.add_subject(new, actor, now).await?;
        tx.raise_all().await?;
        tx.commit().await?;
        Ok(subject)
    }

    /// By id.
    pub async fn subjects(&self) -> Result<Vec<Subject>, StoreError> {
        subjects(&mut self.read().await?).await
    }

    /// Makes a host known; its agent signs in with the token of this hash.
    pub async fn add_host(
        &self,
        name: &HostName,
        labels: &Labels,
        token: &NewJoinToken,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let added = sql::query(
            "INSERT INTO hosts (name, labels, added_ms) VALUES (?, ?, ?) ON CONFLICT (name) DO NOTHING",
        )
        .bind(name.as_str())
        .bind(labels.to_string())
        .bind(now.unix_ms())
        .execute(tx.sql())
        .await
        .map_err(StoreError::sql("add a host"))?;
        if added == 0 {
            return Err(Refusal::HostExists(name.clone()).into());
        }
        tx.record(EventKind::HostAdded, now, |event| {
            event.host = name.to_string();
            caused_by(event, actor);
            event.comment = labels.to_string();
        });
        tx.issue_join_token(name, token, actor, now).await?;
        tx.commit().await
    }
}

/// The longest comment of an event, in bytes; destinations and selectors are ASCII or cut at a character by their types.
const COMMENT_MAX_BYTES: usize = 4096;

/// The options in words.
fn settings(options: &ResourceOptions) -> String {
    let settings = options.settings().map(|(setting, value)| format!("{setting} {value}"));
    settings.join(", ")
}

/// What is another one after than before.
fn changes(before: &ResourceOptions, after: &ResourceOptions) -> Vec<Change> {
    let pairs = before.settings().into_iter().zip(after.settings());
    pairs
        .filter(|((_, was), (_, is))| was != is)
        .map(|((setting, was), (_, is))| Change { setting: setting.to_owned(), was, is })
        .collect()
}

/// That a resource can be there beside those that are.
pub(super) fn refuse_if_taken(known: &[Resource], new: &NewResource) -> Result<(), Refusal> {
    for known in known {
        if known.name == new.name {
            return Err(Refusal::ResourceExists(new.name.clone()));
        }
        if let Some(destination) = known.conflict(new) {
            return Err(Refusal::DestinationTaken { destination, resource: known.name.clone() });
        }
    }
    Ok(())
}

impl Tx {
    /// Adds a resource for which there is room; the caller raises every host's generation.
    pub(super) async fn insert_resource(
        &mut self,
        new: NewResource,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<Resource, StoreError> {
        let number: i64 = sql::query_scalar(
            "INSERT INTO resources (name, addresses, ports, unix, mode, strict, check_senders, serve_only,
                 outage, drafts, added_ms)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING number",
        )
        .bind(new.name.as_str())
        .bind(join(&new.addresses()))
        .bind(join(&new.ports))
        .bind(join(&new.unix))
        .bind(new.options.mode.as_str())
        .bind(new.options.strict)
        .bind(new.options.check_senders)
        .bind(join(&new.options.serve_only))
        .bind(new.options.outage.to_string())
        .bind(new.options.drafts)
        .bind(now.unix_ms())
        .fetch_one(self.sql())
        .await
        .map_err(StoreError::sql("add a resource"))?;
        let resource = Resource::numbered(decode::id_number("number", number)?, new);
        self.record(EventKind::ResourceAdded, now, |event| {
            event.resource = resource.name.to_string();
            caused_by(event, actor);
            event.comment = format!("{}; {}", settings(&resource.options), resource.destination());
            event.comment.truncate(COMMENT_MAX_BYTES);
        });
        Ok(resource)
    }

    /// Changes how a resource is guarded; the caller raises every host's generation.
    pub(super) async fn change_resource(
        &mut self,
        before: &Resource,
        after: &Resource,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sql::query(
            "UPDATE resources SET mode = ?, strict = ?, check_senders = ?, serve_only = ?, outage = ?,
                 drafts = ?
             WHERE number = ?",
        )
        .bind(after.options.mode.as_str())
        .bind(after.options.strict)
        .bind(after.options.check_senders)
        .bind(join(&after.options.serve_only))
        .bind(after.options.outage.to_string())
        .bind(after.options.drafts)
        .bind(after.number.get())
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("change a resource"))?;
        self.record(EventKind::ResourceChanged, now, |event| {
            event.resource = after.name.to_string();
            caused_by(event, actor);
            event.changes = changes(&before.options, &after.options);
        });
        Ok(())
    }

    async fn refuse_if_granted(&mut self, resource: &Resource) -> Result<(), StoreError> {
        let mut query = sql::query_as(GRANTS);
        query
            .push(" WHERE grants.state <> 'ended' AND requests.resource = ")
            .push_bind(resource.number.get());
        query.push(" ORDER BY grants.id");
        let live = read(self.sql(), query).await?;
        let Some(first) = live.first() else { return Ok(()) };
        Err(Refusal::StillGranted {
            resource: resource.name.clone(),
            grant: first.grant.id,
            subject: first.grant.subject.clone(),
            state: first.grant.state,
            others: live.len() as u64 - 1,
        }
        .into())
    }

    /// Whom only a sign-in has put into the directory, an administrator can still add.
    pub(super) async fn add_subject(
        &mut self,
        new: NewSubject,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<Subject, StoreError> {
        let number: Option<i64> = sql::query_scalar(
            "INSERT INTO subjects (id, role, added_ms) VALUES (?, ?, ?)
             ON CONFLICT (id) DO UPDATE SET role = excluded.role, provider = NULL
             WHERE subjects.provider IS NOT NULL
             RETURNING number",
        )
        .bind(new.id.as_str())
        .bind(new.role.as_str())
        .bind(now.unix_ms())
        .fetch_optional(self.sql())
        .await
        .map_err(StoreError::sql("add a subject"))?;
        let Some(number) = number else { return Err(Refusal::SubjectExists(new.id).into()) };
        for selector in &new.selectors {
            self.add_selector(number, selector).await?;
        }
        let subject = Subject::numbered(decode::id_number("number", number)?, new);
        self.record(EventKind::SubjectAdded, now, |event| {
            event.subject = subject.id.to_string();
            caused_by(event, actor);
            event.comment = format!("role {}", subject.role);
        });
        Ok(subject)
    }

    async fn add_selector(&mut self, subject: i64, selector: &Selector) -> Result<(), StoreError> {
        let selector = selector.to_string();
        let owner: Option<String> = sql::query_scalar(
            "SELECT subjects.id FROM selectors JOIN subjects ON subjects.number = selectors.subject
             WHERE selector = ?",
        )
        .bind(&selector)
        .fetch_optional(self.sql())
        .await
        .map_err(StoreError::sql("look up a selector"))?;
        if let Some(owner) = owner {
            return Err(Refusal::SelectorTaken { selector, subject: decode::text("subject", &owner)? }.into());
        }
        sql::query("INSERT INTO selectors (selector, subject) VALUES (?, ?)")
            .bind(selector)
            .bind(subject)
            .execute(self.sql())
            .await
            .map_err(StoreError::sql("add a selector"))?;
        Ok(())
    }
}

fn join<T: Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// The other way round; nothing is an empty list.
fn parts(joined: &str) -> impl Iterator<Item = &str> {
    joined.split(' ').filter(|part| !part.is_empty())
}

#[derive(FromRow)]
struct ResourceRow {
    number: i64,
    name: String,
    addresses: String,
    ports: String,
    unix: String,
    mode: String,
    strict: bool,
    check_senders: bool,
    serve_only: String,
    outage: String,
    drafts: bool,
}

/// All resources that are protected, by name.
pub(super) async fn resources(sql: &mut Transaction) -> Result<Vec<Resource>, StoreError> {
    let rows: Vec<ResourceRow> = sql::query_as(
        "SELECT number, name, addresses, ports, unix, mode, strict, check_senders, serve_only, outage,
             drafts
         FROM resources WHERE removed_ms IS NULL ORDER BY name",
    )
    .fetch_all(sql)
    .await
    .map_err(StoreError::sql("read the resources"))?;
    rows.into_iter().map(decode_resource).collect()
}

/// The same, as hosts are told of them: without what only the control plane does, so that agents of any age agree on what they hold.
pub(super) async fn resources_of_hosts(sql: &mut Transaction) -> Result<Vec<Resource>, StoreError> {
    let mut resources = resources(sql).await?;
    for resource in &mut resources {
        resource.options.drafts = false;
    }
    Ok(resources)
}

/// The resource of this name that is protected.
pub(super) async fn resource(sql: &mut Transaction, name: &ResourceName) -> Result<Resource, StoreError> {
    let found = resources(sql).await?.into_iter().find(|resource| resource.name == *name);
    Ok(found.ok_or_else(|| Refusal::UnknownResource(name.clone()))?)
}

fn decode_resource(row: ResourceRow) -> Result<Resource, StoreError> {
    let addresses = parts(&row.addresses).map(|part| decode::text::<Address>("addresses", part));
    let ports = parts(&row.ports).map(|part| decode::text("ports", part));
    let unix = parts(&row.unix).map(|part| decode::text("unix", part));
    let new = NewResource::with_unix(
        decode::text("resource", &row.name)?,
        addresses.collect::<Result<_, _>>()?,
        ports.collect::<Result<_, _>>()?,
        unix.collect::<Result<_, _>>()?,
    );
    let peers = parts(&row.serve_only).map(|part| decode::text("serve_only", part));
    let peers = peers.collect::<Result<_, _>>()?;
    let options = ResourceOptions {
        mode: decode::text::<ResourceMode>("mode", &row.mode)?,
        strict: row.strict,
        check_senders: row.check_senders,
        serve_only: ResourceOptions::peers(peers).map_err(StoreError::broken("serve_only"))?,
        outage: decode::text("outage", &row.outage)?,
        drafts: row.drafts,
    };
    let new = NewResource { options, ..new.map_err(StoreError::broken("resource"))? };
    Ok(Resource::numbered(decode::id_number("number", row.number)?, new))
}

/// All subjects, by id.
pub(super) async fn subjects(sql: &mut Transaction) -> Result<Vec<Subject>, StoreError> {
    let rows: Vec<(i64, String, String)> = sql::query_as("SELECT number, id, role FROM subjects ORDER BY id")
        .fetch_all(&mut *sql)
        .await
        .map_err(StoreError::sql("read the subjects"))?;
    let selectors: Vec<(i64, String)> = sql::query_as("SELECT subject, selector FROM selectors")
        .fetch_all(sql)
        .await
        .map_err(StoreError::sql("read the selectors"))?;
    let mut by_subject: HashMap<i64, Vec<Selector>> = HashMap::new();
    for (subject, selector) in selectors {
        by_subject.entry(subject).or_default().push(decode::text("selector", &selector)?);
    }
    let subject = |(number, id, role): (i64, String, String)| {
        let mut selectors = by_subject.remove(&number).unwrap_or_default();
        selectors.sort_unstable();
        Ok(Subject {
            number: decode::id_number("number", number)?,
            id: decode::text::<SubjectId>("subject", &id)?,
            selectors,
            role: decode::text::<SubjectRole>("role", &role)?,
        })
    };
    rows.into_iter().map(subject).collect()
}
