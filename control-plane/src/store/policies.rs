//! Policies: their versions, the one in force, and what is judged by it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use ::policy::Policy;
use ::policy::decide::Outcome;
use ::policy::facts::{Channel, Device, Stage};
use ::policy::names::GroupName;
use ::policy::plan::{self, LiveGrant};
use prost::Message;
use proto::types::{
    Difference, EndReason, EventKind, GrantId, HostName, Invalid, NewPolicy, NewResource, PlannedEnd,
    PolicyFiles, PolicyPlan, PolicyVersion, RequestId, Resource, ResourceName, Timestamp,
};
use proto::wire::policy as wire;
use sqlx::FromRow;

use super::directory::{refuse_if_taken, resources};
use super::grants::kept;
use super::incidents::moment;
use super::sql::{self, Query, Rows, Transaction};
use super::steps::Cause;
use super::tx::{Tx, caused_by};
use super::{Store, StoreError, decode};
use crate::identity::TokenHash;
use crate::rules::Refusal;
use crate::rules::actor::{Acting, Actor};
use crate::rules::policy::{Circumstances, Numbered, Wish, is_mfa};

/// How many versions are kept in memory, ready to be asked: the one in force, and those by which pending requests were judged.
const READY_MAX: usize = 8;

/// How many live grants are judged at a time.
const LIVE_BATCH: u32 = 500;

/// Of a resource that is only looked at.
const NO_NUMBER: u32 = u32::MAX;

/// The longest comment of an event, in bytes.
const COMMENT_MAX_BYTES: usize = 4096;

/// Versions that were read, the last used one last.
#[derive(Debug, Default)]
pub(super) struct Ready(std::sync::Mutex<Vec<Numbered>>);

impl Ready {
    fn get(&self, version: u64) -> Option<Numbered> {
        let mut ready = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let at = ready.iter().position(|known| known.version == version)?;
        let found = ready.remove(at);
        ready.push(found.clone());
        Some(found)
    }

    fn put(&self, numbered: &Numbered) {
        let mut ready = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        ready.retain(|known| known.version != numbered.version);
        if ready.len() >= READY_MAX {
            ready.remove(0);
        }
        ready.push(numbered.clone());
    }
}

impl Store {
    /// What these files would do if they were put in force.
    pub async fn plan_policy(&self, files: PolicyFiles, now: Timestamp) -> Result<PolicyPlan, StoreError> {
        let policy = compiled(files).await?;
        self.knows_hooks(&policy)?;
        let mut sql = self.read().await?;
        let before = self.in_force(&mut sql).await?;
        Ok(considered(&mut sql, before.as_ref(), &policy, now).await?.plan)
    }

    /// Puts a policy in force.
    pub async fn apply_policy(
        &self,
        new: NewPolicy,
        author: &Acting,
        now: Timestamp,
    ) -> Result<(PolicyVersion, PolicyPlan), StoreError> {
        let NewPolicy { files, before: expected, comment, restores } = new;
        let policy = compiled(files.clone()).await?;
        self.knows_hooks(&policy)?;
        let mut tx = self.write().await?;
        let before = self.in_force(tx.sql()).await?;
        let actual = before.as_ref().map_or(0, |before| before.version);
        if actual != expected {
            return Err(Refusal::OtherPolicy { expected, actual }.into());
        }
        if let Some(unknown) = restores.filter(|restores| *restores > actual) {
            return Err(Refusal::UnknownPolicy(unknown).into());
        }
        let Considered { plan, adds, hardens } = considered(tx.sql(), before.as_ref(), &policy, now).await?;
        let version =
            PolicyVersion { version: actual + 1, author: author.id.clone(), applied: now, comment, restores };
        tx.keep_policy(&version, files).await?;
        let actor: Actor = author.clone().into();
        tx.record(EventKind::PolicyApplied, now, |event| {
            caused_by(event, &actor);
            event.comment = told(&version, &plan);
        });
        let is_guarded_otherwise = !adds.is_empty() || !hardens.is_empty();
        for new in adds {
            tx.insert_resource(new, &actor, now).await?;
        }
        for before in hardens {
            let mut after = before.clone();
            after.options.strict = true;
            tx.change_resource(&before, &after, &actor, now).await?;
        }
        if is_guarded_otherwise {
            tx.raise_all().await?;
        }
        for end in &plan.ends {
            tx.end_by_policy(end.grant, actor.clone(), &end.reason, now).await?;
        }
        tx.wake_access();
        tx.commit().await?;
        self.ready.put(&Numbered { version: version.version, policy: Arc::new(policy) });
        Ok((version, plan))
    }

    /// The newest versions first.
    pub async fn policies(&self, limit: u32) -> Result<Vec<PolicyVersion>, StoreError> {
        let mut query = sql::query_as(VERSIONS);
        query.push(" ORDER BY policies.version DESC LIMIT ").push_bind(limit);
        let rows: Vec<VersionRow> =
            query.fetch_all(&self.readers).await.map_err(StoreError::sql("read the policies"))?;
        rows.into_iter().map(decode_version).collect()
    }

    /// One version with its files; None: the one in force.
    pub async fn policy(&self, version: Option<u64>) -> Result<(PolicyVersion, PolicyFiles), StoreError> {
        let mut sql = self.read().await?;
        let version = match version {
            Some(version) => version,
            None => newest(&mut sql).await?.ok_or(Refusal::UnknownPolicy(1))?,
        };
        let mut query = sql::query_as(VERSIONS);
        query.push(" WHERE policies.version = ").push_bind(decode::sql(version));
        let row: Option<VersionRow> =
            query.fetch_optional(&mut sql).await.map_err(StoreError::sql("read a policy"))?;
        let row = row.ok_or(Refusal::UnknownPolicy(version))?;
        Ok((decode_version(row)?, files(&mut sql, version).await?))
    }

    /// What a session is known by, for policies; of a static token that is nothing.
    pub async fn circumstances(
        &self,
        token: &TokenHash,
        circumstances: Circumstances,
    ) -> Result<Circumstances, StoreError> {
        let row: Option<SignInRow> = sql::query_as(
            "SELECT methods, proven_ms, named_groups, device_managed, device_encrypted FROM sign_ins WHERE hash = ?",
        )
        .bind(token.as_bytes().as_slice())
        .fetch_optional(&self.readers)
        .await
        .map_err(StoreError::sql("look up a session"))?;
        let Some(row) = row else { return Ok(circumstances) };
        Ok(Circumstances {
            mfa: is_mfa(row.methods.split('\n')),
            signed_in: row.proven_ms.map(|proven| decode::time("proven", proven)).transpose()?,
            groups: group_names(&row.named_groups),
            device: device(row.device_managed, row.device_encrypted),
            ..circumstances
        })
    }

    /// Ends live grants that the policy in force does not permit any more. Returns how many.
    pub async fn end_what_is_not_permitted(&self, now: Timestamp) -> Result<usize, StoreError> {
        let mut sql = self.read().await?;
        let Some(in_force) = self.in_force(&mut sql).await? else { return Ok(0) };
        let live = live(&mut sql, &[&*in_force.policy]).await?;
        let seen = moment(&mut sql, now).await?;
        drop(sql);
        let mut ended = 0;
        for (grant, wish) in live {
            if wish.is_permitted(&in_force, Stage::Keep, &seen).is_ok() {
                continue;
            }
            let mut tx = self.write().await?;
            // Another one may have been put in force meanwhile, and have ended it.
            if newest(tx.sql()).await? != Some(in_force.version) {
                return Ok(ended);
            }
            // And an incident may have been opened.
            let moment = moment(tx.sql(), now).await?;
            let Err(refusal) = wish.is_permitted(&in_force, Stage::Keep, &moment) else { continue };
            tx.end_by_policy(grant, Actor::System, &refusal.to_string(), now).await?;
            tx.commit().await?;
            ended += 1;
        }
        Ok(ended)
    }

    /// The policy in force; None: there is none.
    pub(super) async fn in_force(&self, sql: &mut Transaction) -> Result<Option<Numbered>, StoreError> {
        match newest(sql).await? {
            Some(version) => self.numbered(sql, version).await.map(Some),
            None => Ok(None),
        }
    }

    /// One version, ready to be asked.
    pub(super) async fn numbered(&self, sql: &mut Transaction, version: u64) -> Result<Numbered, StoreError> {
        if let Some(ready) = self.ready.get(version) {
            return Ok(ready);
        }
        let policy = compiled(files(sql, version).await?).await?;
        let numbered = Numbered { version, policy: Arc::new(policy) };
        self.ready.put(&numbered);
        Ok(numbered)
    }
}

impl Tx {
    async fn keep_policy(&mut self, version: &PolicyVersion, files: PolicyFiles) -> Result<(), StoreError> {
        let files = wire::GetPolicyResponse { version: None, files: files.into() }.encode_to_vec();
        sql::query(
            "INSERT INTO policies (version, author, applied_ms, comment, restores, files)
             SELECT ?, number, ?, ?, ?, ? FROM subjects WHERE id = ?",
        )
        .bind(decode::sql(version.version))
        .bind(version.applied.unix_ms())
        .bind(&version.comment)
        .bind(version.restores.map(decode::sql))
        .bind(files)
        .bind(version.author.as_str())
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("keep a policy"))?;
        Ok(())
    }

    /// Ends a grant because of the policy; one that has ended meanwhile stays as it is.
    async fn end_by_policy(
        &mut self,
        grant: GrantId,
        actor: Actor,
        why: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let kept = kept(self.sql(), grant).await?;
        if kept.grant.state.end_reason().is_some() {
            return Ok(());
        }
        let cause = Cause { actor, comment: why.to_owned() };
        self.end(kept, EndReason::PolicyChanged, cause, now).await
    }
}

/// A plan, and what it does to resources.
struct Considered {
    plan: PolicyPlan,
    adds: Vec<NewResource>,
    /// As they are now; they become strict.
    hardens: Vec<Resource>,
}

async fn considered(
    sql: &mut Transaction,
    before: Option<&Numbered>,
    policy: &Policy,
    now: Timestamp,
) -> Result<Considered, StoreError> {
    let mut known = resources(sql).await?;
    let is_strict =
        |name: &ResourceName| policy.roles.iter().any(|role| role.strict && role.resources.contains(name));
    let (mut adds, mut hardens) = (Vec::new(), Vec::new());
    for (name, said) in &policy.resources {
        let (addresses, ports) = (said.addresses.clone(), said.ports.clone());
        let new = NewResource::with_unix(name.clone(), addresses, ports, said.unix.clone());
        let mut new = new.map_err(|error| Refusal::BadPolicy { problem: error.to_string(), others: 0 })?;
        match known.iter().find(|known| known.name == *name) {
            Some(known) if !is_there(known, &new) => {
                let said = Resource::numbered(known.number, new).destination();
                let known = known.destination();
                return Err(Refusal::ResourceDiffers { resource: name.clone(), known, said }.into());
            }
            Some(known) if is_strict(name) && !known.options.strict => hardens.push(known.clone()),
            Some(_) => {}
            None => {
                refuse_if_taken(&known, &new)?;
                new.options.strict = is_strict(name);
                // What comes later in the policy must not collide with it; no number is needed for that.
                known.push(Resource::numbered(
                    NO_NUMBER.try_into().map_err(StoreError::broken("number"))?,
                    new.clone(),
                ));
                adds.push(new);
            }
        }
    }
    let asked: Vec<&Policy> = before.map(|before| &*before.policy).into_iter().chain([policy]).collect();
    let live = live(sql, &asked).await?;
    let moment = moment(sql, now).await?;
    let facts: Vec<LiveGrant> = live
        .iter()
        .map(|(grant, wish)| LiveGrant { grant: *grant, facts: wish.facts(Stage::Keep, &moment) })
        .collect();
    let plan::Plan { differences, ends } = plan::plan(before.map(|before| &*before.policy), policy, &facts);
    let mut by_id: HashMap<GrantId, Wish> = live.into_iter().collect();
    let end = |(grant, decision): (GrantId, ::policy::Decision)| {
        let wish = by_id.remove(&grant)?;
        let reason = match decision.outcome {
            Outcome::Denied { reasons } => reasons.first().map(ToString::to_string).unwrap_or_default(),
            Outcome::Permitted(_) => String::new(),
        };
        Some(PlannedEnd { grant, subject: wish.subject, resource: wish.resource, reason })
    };
    let plan = PolicyPlan {
        before: before.map_or(0, |before| before.version),
        differences,
        protects: adds.iter().map(|new| new.name.clone()).collect(),
        strict: hardens.iter().map(|resource| resource.name.clone()).collect(),
        ends: ends.into_iter().filter_map(end).collect(),
    };
    Ok(Considered { plan, adds, hardens })
}

/// Whether a resource is where a policy says.
fn is_there(known: &Resource, new: &NewResource) -> bool {
    (known.addresses(), &known.ports, &known.unix) == (new.addresses(), &new.ports, &new.unix)
}

/// What is said of a version in the record.
fn told(version: &PolicyVersion, plan: &PolicyPlan) -> String {
    let PolicyVersion { version, comment, restores, .. } = version;
    let mut text = format!("version {version}");
    if let Some(restores) = restores {
        text += &format!(", which is version {restores} again");
    }
    if !comment.is_empty() {
        text += &format!(": {comment}");
    }
    let difference = |difference: &Difference| {
        let Difference { kind, name, what } = difference;
        let space = if name.is_empty() { "" } else { " " };
        format!("{kind}{space}{name} {what}")
    };
    let differences: Vec<String> = plan.differences.iter().map(difference).collect();
    text += &format!("; {}", differences.join(", "));
    let end = (0..=COMMENT_MAX_BYTES.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
    text
}

/// Reads a policy; this may take a moment, and others get theirs meanwhile.
async fn compiled(files: PolicyFiles) -> Result<Policy, StoreError> {
    let reading = tokio::task::spawn_blocking(move || ::policy::files::read(files.as_map()));
    let read = reading.await.map_err(|_| StoreError::Abandoned)?;
    read.map_err(|problems| {
        let problem = problems.first().map(ToString::to_string).unwrap_or_default();
        Refusal::BadPolicy { problem, others: problems.len().saturating_sub(1) }.into()
    })
}

async fn newest(sql: &mut Transaction) -> Result<Option<u64>, StoreError> {
    let newest: Option<i64> = sql::query_scalar("SELECT max(version) FROM policies")
        .fetch_one(sql)
        .await
        .map_err(StoreError::sql("read which policy is in force"))?;
    newest.map(|newest| decode::number("version", newest)).transpose()
}

async fn files(sql: &mut Transaction, version: u64) -> Result<PolicyFiles, StoreError> {
    let bytes: Option<Vec<u8>> = sql::query_scalar("SELECT files FROM policies WHERE version = ?")
        .bind(decode::sql(version))
        .fetch_optional(sql)
        .await
        .map_err(StoreError::sql("read a policy"))?;
    let bytes = bytes.ok_or(Refusal::UnknownPolicy(version))?;
    let broken = |_| Invalid::new("files", "are none");
    let files = wire::GetPolicyResponse::decode(bytes.as_slice()).map_err(broken);
    files.and_then(|wire| wire.files.try_into()).map_err(StoreError::broken("policy"))
}

const VERSIONS: &str = "
    SELECT policies.version, subjects.id AS author, policies.applied_ms, policies.comment, policies.restores
    FROM policies JOIN subjects ON subjects.number = policies.author";

#[derive(FromRow)]
struct VersionRow {
    version: i64,
    author: String,
    applied_ms: i64,
    comment: String,
    restores: Option<i64>,
}

fn decode_version(row: VersionRow) -> Result<PolicyVersion, StoreError> {
    Ok(PolicyVersion {
        version: decode::number("version", row.version)?,
        author: decode::text("author", &row.author)?,
        applied: decode::time("applied", row.applied_ms)?,
        comment: row.comment,
        restores: row.restores.map(|restores| decode::number("restores", restores)).transpose()?,
    })
}

/// What is known of a session.
#[derive(FromRow)]
struct SignInRow {
    methods: String,
    proven_ms: Option<i64>,
    named_groups: String,
    device_managed: Option<bool>,
    device_encrypted: Option<bool>,
}

const WISHES: &str = "
    SELECT grants.id AS grant_id, grants.begins_ms, grants.expires_ms, resources.name AS resource,
        subjects.id AS subject, requesters.id AS requester, requests.duration_s, requests.role, requests.channel,
        requests.source, requests.mfa, requests.signed_in_ms, requests.named_groups,
        requests.device_managed, requests.device_encrypted
    FROM requests
    JOIN resources ON resources.number = requests.resource
    JOIN subjects ON subjects.number = requests.subject
    JOIN subjects AS requesters ON requesters.number = requests.requester
    LEFT JOIN grants ON grants.request = requests.id";

#[derive(FromRow)]
struct WishRow {
    grant_id: Option<String>,
    begins_ms: Option<i64>,
    expires_ms: Option<i64>,
    resource: String,
    subject: String,
    requester: String,
    duration_s: i64,
    role: Option<String>,
    channel: Option<String>,
    source: Option<String>,
    mfa: bool,
    signed_in_ms: Option<i64>,
    named_groups: String,
    device_managed: Option<bool>,
    device_encrypted: Option<bool>,
}

/// What a request asks for, as a policy is asked; the caller knows what is left of it.
pub(super) async fn wish(sql: &mut Transaction, request: RequestId) -> Result<Wish, StoreError> {
    let mut query: Query<Rows<WishRow>> = sql::query_as(WISHES);
    query.push(" WHERE requests.id = ").push_bind(request.to_string());
    let row = query.fetch_optional(sql).await.map_err(StoreError::sql("read a request"))?;
    decode_wish(row.ok_or(Refusal::UnknownRequest(request))?, BTreeSet::new())
}

/// Every live grant, as `policies` are asked about it. Groups that none of them has are left out: of many people in many groups they would
/// take much room, and say nothing.
async fn live(sql: &mut Transaction, policies: &[&Policy]) -> Result<Vec<(GrantId, Wish)>, StoreError> {
    let is_known =
        |name: &GroupName| policies.iter().any(|policy| policy.directory.groups.contains_key(name));
    let mut found = Vec::new();
    let mut after = String::new();
    loop {
        let mut query: Query<Rows<WishRow>> = sql::query_as(WISHES);
        query.push(" WHERE grants.state IN ('activating', 'active') AND grants.id > ").push_bind(&after);
        query.push(" ORDER BY grants.id LIMIT ").push_bind(LIVE_BATCH);
        let rows = query.fetch_all(&mut *sql).await.map_err(StoreError::sql("read live grants"))?;
        let Some(last) = rows.last().and_then(|row| row.grant_id.clone()) else { return Ok(found) };
        after = last;
        let mut query = sql::query_as(
            "SELECT grant_hosts.grant_id, hosts.name FROM grant_hosts
             JOIN hosts ON hosts.number = grant_hosts.host WHERE grant_hosts.grant_id IN ",
        );
        query.push_list(rows.iter().filter_map(|row| row.grant_id.as_ref()));
        let pairs: Vec<(String, String)> =
            query.fetch_all(&mut *sql).await.map_err(StoreError::sql("read grants' hosts"))?;
        let mut hosts: HashMap<String, BTreeSet<HostName>> = HashMap::new();
        for (grant, name) in pairs {
            hosts.entry(grant).or_default().insert(decode::text("host", &name)?);
        }
        for row in rows {
            let Some(grant) = row.grant_id.clone() else { continue };
            let hosts = hosts.remove(&grant).unwrap_or_default();
            let mut wish = decode_wish(row, hosts)?;
            wish.circumstances.groups.retain(is_known);
            found.push((decode::text("grant", &grant)?, wish));
        }
    }
}

fn decode_wish(row: WishRow, hosts: BTreeSet<HostName>) -> Result<Wish, StoreError> {
    let duration = match (row.begins_ms, row.expires_ms) {
        (Some(begins), Some(expires)) => {
            Duration::from_millis(decode::number("expires", expires.saturating_sub(begins))?)
        }
        _ => Duration::from_secs(decode::number("duration", row.duration_s)?),
    };
    let source = row.source.map(|source| {
        source.parse().map_err(|error| StoreError::broken("source")(Invalid::new("source", error)))
    });
    let circumstances = Circumstances {
        channel: row.channel.map(|word| decode::text::<Channel>("channel", &word)).transpose()?,
        source: source.transpose()?,
        mfa: row.mfa,
        signed_in: row.signed_in_ms.map(|time| decode::time("signed_in", time)).transpose()?,
        groups: group_names(&row.named_groups),
        device: device(row.device_managed, row.device_encrypted),
    };
    Ok(Wish {
        subject: decode::text("subject", &row.subject)?,
        requester: decode::text("requester", &row.requester)?,
        resource: decode::text("resource", &row.resource)?,
        hosts,
        role: row.role.map(|role| decode::text("role", &role)).transpose()?,
        duration: Some(duration),
        circumstances,
    })
}

/// Groups of an identity provider, a line each. Those that cannot be the name of a group of a policy are none of it.
fn group_names(lines: &str) -> BTreeSet<GroupName> {
    lines.split('\n').filter_map(|line| line.parse().ok()).collect()
}

/// What was said of a device: of both or of neither.
fn device(managed: Option<bool>, encrypted: Option<bool>) -> Option<Device> {
    let (managed, encrypted) = managed.zip(encrypted)?;
    Some(Device { managed, encrypted })
}
