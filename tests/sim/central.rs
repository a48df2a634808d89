//! The control plane: its database, and its sessions.
//!
//! Owns: what one transaction holds, as `control_plane::store` has it, between the real rules of lives, sets and numbering; a
//! session's order, as `control_plane::rpc` has it. Must not know: hosts, the network.
//!
//! A commit that fails loses the change and its events, and whoever waited for it is told nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use control_plane::rules::grant::{Activating, Answer, Body, Holding, Life, NotLive, Step, Stepped};
use control_plane::rules::numbering;
use control_plane::rules::placement::{self, Plan, Removal, Span, Wanted};
use control_plane::rules::session::{Judgement, News, Told};
use proto::types::{
    Applied, AuditEvent, CgroupPath, Digest, EndReason, EndedGrant, GrantId, GrantState, Hello, HostName,
    PROTOCOL, Resource, ResourceNumber, Subject, SubjectNumber, Timestamp, Welcome,
};
use proto::wire::agent as wire;
use proto::wire::agent::session_request::Message as Said;
use proto::wire::agent::session_response::Message as Says;
use uuid::Uuid;

use crate::faults::Broken;

/// Whose generations these are.
pub(crate) const TIMELINE: Uuid = Uuid::from_u128(0xca57_1e00);

/// A host's row.
#[derive(Clone, Debug)]
pub(crate) struct HostRow {
    pub(crate) name: HostName,
    pub(crate) generation: u64,
    /// Of which boot the last hello was.
    pub(crate) boot: Uuid,
}

/// A grant's row.
#[derive(Clone, Debug)]
pub(crate) struct GrantRow {
    pub(crate) life: Life,
    spans: BTreeMap<usize, Span>,
    pub(crate) subject: SubjectNumber,
    pub(crate) resource: ResourceNumber,
    idle: Option<Duration>,
    while_running: Option<CgroupPath>,
    /// Its deadline had passed by the control plane's clock when it ended.
    pub(crate) ended_by_clock: bool,
}

/// All that survives a crash.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    pub(crate) hosts: Vec<HostRow>,
    pub(crate) grants: BTreeMap<GrantId, GrantRow>,
    pub(crate) resources: Arc<[Resource]>,
    pub(crate) subjects: Arc<[Subject]>,
    /// The events of grants, in order.
    pub(crate) log: Vec<(GrantId, GrantState)>,
    /// The last number of each host and boot.
    sequences: BTreeMap<(usize, Uuid), u64>,
    /// What hosts have said.
    pub(crate) received: Vec<AuditEvent>,
}

/// A wish that was approved.
pub(crate) struct Ask {
    pub(crate) id: GrantId,
    pub(crate) hosts: BTreeSet<usize>,
    pub(crate) subject: SubjectNumber,
    pub(crate) resource: ResourceNumber,
    pub(crate) duration: Duration,
    pub(crate) idle: Option<Duration>,
    pub(crate) while_running: Option<CgroupPath>,
}

impl Database {
    fn raise(&mut self, host: usize) -> u64 {
        self.hosts[host].generation += 1;
        self.hosts[host].generation
    }

    fn index(&self, name: &HostName) -> usize {
        self.hosts.iter().position(|host| host.name == *name).expect("its hosts are known")
    }

    fn issue(&mut self, ask: Ask, now: Timestamp) {
        let expires = now.plus(ask.duration);
        let names = ask.hosts.iter().map(|host| self.hosts[*host].name.clone());
        let life = Life::Activating(Activating::new(expires, names));
        let spans =
            ask.hosts.iter().map(|host| (*host, Span { since: self.raise(*host), until: None })).collect();
        let row = GrantRow {
            life,
            spans,
            subject: ask.subject,
            resource: ask.resource,
            idle: ask.idle,
            while_running: ask.while_running,
            ended_by_clock: false,
        };
        self.grants.insert(ask.id, row);
        self.log.push((ask.id, GrantState::Activating));
    }

    fn step(&mut self, id: GrantId, step: Step, now: Timestamp) -> Result<(), NotLive> {
        let before = self.grants[&id].life.clone();
        let Stepped { life, entered } = before.clone().step(step, now)?;
        if life == before {
            return Ok(());
        }
        let hosts: Vec<usize> = self.grants[&id].spans.keys().copied().collect();
        match placement::removal(&before, &life, &entered) {
            Removal::Nowhere => {}
            Removal::Early => hosts.iter().for_each(|host| {
                let generation = self.raise(*host);
                self.take_out(id, *host, generation, false);
            }),
            Removal::AtDeadline => hosts.iter().for_each(|host| {
                let generation = self.hosts[*host].generation + 1;
                self.take_out(id, *host, generation, false);
            }),
            Removal::Of(names) => names.iter().for_each(|name| {
                let host = self.index(name);
                let generation = self.raise(host);
                self.take_out(id, host, generation, true);
            }),
        }
        let row = self.grants.get_mut(&id).expect("it was just read");
        if matches!(life.state(), GrantState::Ended(_)) && !matches!(before.state(), GrantState::Ended(_)) {
            row.ended_by_clock = now >= life.body().expires;
        }
        row.life = life;
        self.log.extend(entered.into_iter().map(|state| (id, state)));
        Ok(())
    }

    fn take_out(&mut self, id: GrantId, host: usize, generation: u64, again: bool) {
        let span = self.grants.get_mut(&id).and_then(|row| row.spans.get_mut(&host));
        if let Some(span) = span.filter(|span| again || span.until.is_none()) {
            span.until = Some(generation);
        }
    }

    fn heard(&mut self, id: GrantId, host: usize, answer: Answer, now: Timestamp) {
        let name = self.hosts[host].name.clone();
        self.step(id, Step::Heard(name, answer), now).expect("only ending what has ended is refused");
    }

    /// The grants that a host's kernel may hold.
    fn open(&self, host: usize) -> Vec<(GrantId, Span)> {
        let name = &self.hosts[host].name;
        let may_hold = |row: &GrantRow| row.life.body().hosts.get(name).is_some_and(Holding::may_hold);
        let open = self.grants.iter().filter(|(_, row)| may_hold(row));
        open.filter_map(|(id, row)| Some((*id, *row.spans.get(&host)?))).collect()
    }

    /// All that a host should enforce.
    pub(crate) fn plan(&self, host: usize) -> Plan {
        let wanted = |(id, span): (GrantId, Span)| {
            let row = &self.grants[&id];
            let Body { expires, .. } = row.life.body();
            span.until.is_none().then(|| Wanted {
                id,
                subject: row.subject,
                resource: row.resource,
                expires: *expires,
                idle: row.idle,
                while_running: row.while_running.clone(),
                run: None,
                action: None,
                extensions: 0,
            })
        };
        Plan {
            generation: self.hosts[host].generation,
            resources: self.resources.clone(),
            subjects: self.subjects.clone(),
            grants: self.open(host).into_iter().filter_map(wanted).collect(),
        }
    }

    fn agent_connected(&mut self, host: usize, hello: &Hello, now: Timestamp) {
        let held = hello.applied.filter(|(timeline, _)| *timeline == TIMELINE).map(|(_, held)| held);
        self.hosts[host].boot = hello.boot_id;
        for (id, span) in self.open(host) {
            if let Some(answer) = placement::greeted(span, held) {
                self.heard(id, host, answer, now);
            }
        }
    }

    fn agent_applied(&mut self, host: usize, applied: &Applied, left_out: &[GrantId], now: Timestamp) {
        for (id, answer) in placement::answers(applied, left_out, &self.open(host)) {
            self.heard(id, host, answer, now);
        }
    }

    fn agent_ended(&mut self, host: usize, ended: &[EndedGrant], now: Timestamp) {
        let open: BTreeSet<GrantId> = self.open(host).into_iter().map(|(id, _)| id).collect();
        for EndedGrant { grant, reason } in ended.iter().filter(|ended| open.contains(&ended.grant)) {
            self.heard(*grant, host, Answer::Ends(*reason), now);
        }
    }

    fn receive(&mut self, host: usize, events: Vec<AuditEvent>) -> Result<(Uuid, u64), String> {
        let refused = |refusal: control_plane::rules::Refusal| refusal.to_string();
        let epoch = numbering::epoch(&self.hosts[host].name, &events).map_err(refused)?;
        let stored = self.sequences.entry((host, epoch)).or_insert(0);
        let new = numbering::continuation(*stored, events).map_err(refused)?;
        *stored = new.last().map_or(*stored, |last| last.id.sequence);
        self.received.extend(new);
        Ok((epoch, *stored))
    }
}

/// Why a session ended, if the control plane has ended it.
#[derive(Debug)]
pub(crate) enum End {
    /// The database failed.
    Failed,
    /// The agent said what it may not say: none of ours ever does.
    Refused(String),
}

#[derive(Debug)]
struct Session {
    connection: u64,
    told: Told,
    heard_ns: u64,
}

/// The control plane.
#[derive(Debug)]
pub(crate) struct Central {
    pub(crate) db: Database,
    pub(crate) is_up: bool,
    /// How many of the next commits fail.
    pub(crate) failing: u32,
    sessions: BTreeMap<usize, Session>,
    broken: Broken,
}

impl Central {
    pub(crate) fn new(
        names: &[HostName],
        resources: Vec<Resource>,
        subjects: Vec<Subject>,
        broken: Broken,
    ) -> Self {
        let host = |name: &HostName| HostRow { name: name.clone(), generation: 1, boot: Uuid::nil() };
        let db = Database {
            hosts: names.iter().map(host).collect(),
            grants: BTreeMap::new(),
            resources: resources.into(),
            subjects: subjects.into(),
            log: Vec::new(),
            sequences: BTreeMap::new(),
            received: Vec::new(),
        };
        Self { db, is_up: true, failing: 0, sessions: BTreeMap::new(), broken }
    }

    fn write<R>(&mut self, change: impl FnOnce(&mut Database) -> R) -> Result<R, End> {
        if self.failing == 0 {
            return Ok(change(&mut self.db));
        }
        self.failing -= 1;
        let result = change(&mut self.db.clone());
        match self.broken {
            Broken::Commits => Ok(result),
            _ => Err(End::Failed),
        }
    }

    pub(crate) fn crash(&mut self) {
        self.is_up = false;
        self.sessions.clear();
    }

    pub(crate) fn issue(&mut self, ask: Ask, now: Timestamp) -> bool {
        self.is_up && self.write(|db| db.issue(ask, now)).is_ok()
    }

    pub(crate) fn revoke(&mut self, id: GrantId, now: Timestamp) {
        if self.is_up {
            // What is over already is refused.
            let _ = self.write(|db| db.step(id, Step::End(EndReason::Revoked), now));
        }
    }

    /// Every host's set changes with a resource.
    pub(crate) fn replace(&mut self, resource: Resource) {
        if self.is_up {
            let _ = self.write(|db| {
                let mut resources = db.resources.to_vec();
                resources.retain(|known| known.number != resource.number);
                resources.push(resource);
                db.resources = resources.into();
                (0..db.hosts.len()).for_each(|host| _ = db.raise(host));
            });
        }
    }

    /// Ends what is over by the clock.
    pub(crate) fn expire(&mut self, now: Timestamp) {
        let is_over = |row: &GrantRow| {
            !matches!(row.life.state(), GrantState::Ended(_)) && row.life.body().expires <= now
        };
        let over: Vec<GrantId> =
            self.db.grants.iter().filter(|(_, row)| is_over(row)).map(|(id, _)| *id).collect();
        if self.is_up && !over.is_empty() {
            let _ = self.write(|db| {
                for id in &over {
                    // Only ending what has ended is refused.
                    let _ = db.step(*id, Step::Wait, now);
                }
            });
        }
    }

    /// The connection of a host's session.
    pub(crate) fn connection(&self, host: usize) -> Option<u64> {
        self.sessions.get(&host).map(|session| session.connection)
    }

    pub(crate) fn close(&mut self, host: usize, connection: u64) {
        if self.connection(host) == Some(connection) {
            self.sessions.remove(&host);
        }
    }

    /// Hosts whose sessions were silent for too long at `now_ns`.
    pub(crate) fn silent(&self, now_ns: u64, limit_ns: u64) -> Vec<(usize, u64)> {
        let is_silent = |session: &Session| now_ns.saturating_sub(session.heard_ns) > limit_ns;
        let silent = self.sessions.iter().filter(|(_, session)| is_silent(session));
        silent.map(|(host, session)| (*host, session.connection)).collect()
    }

    /// A session looks whether there is something to tell.
    pub(crate) fn push(&mut self, host: usize, now: Timestamp) -> Option<Says> {
        let plan = self.db.plan(host);
        let session = self.sessions.get_mut(&host)?;
        if self.broken == Broken::Changes && plan.generation > 4 {
            return None;
        }
        session.told.tell(plan, now).map(|news| match news {
            News::Set(set) => Says::GrantSet(set.into()),
            News::Delta(delta) => Says::Delta(delta.into()),
        })
    }

    /// What an agent says on one of its connections, and what it is answered.
    pub(crate) fn hear(
        &mut self,
        host: usize,
        connection: u64,
        said: wire::SessionRequest,
        now_ns: u64,
        now: Timestamp,
    ) -> Result<Vec<Says>, End> {
        let message = said.message.ok_or_else(|| End::Refused("nothing is said".to_owned()))?;
        if let Said::Hello(hello) = message {
            return self.welcome(host, connection, checked(hello)?, now_ns, now);
        }
        let Some(session) = self.sessions.get_mut(&host).filter(|it| it.connection == connection) else {
            return Ok(Vec::new());
        };
        session.heard_ns = now_ns;
        match message {
            Said::Hello(_) => Ok(Vec::new()),
            Said::Applied(applied) => self.applied(host, checked(applied)?, now),
            Said::Ended(ended) => {
                let ended: Vec<EndedGrant> = checked(ended)?;
                self.write(|db| db.agent_ended(host, &ended, now))?;
                self.told(host).note_ended(&ended);
                Ok(Vec::new())
            }
            Said::Digest(digest) => {
                let digest: Digest = checked(digest)?;
                match self.told(host).judge(&digest, now) {
                    Judgement::Wrong { anew: true, .. } => self.resync(host),
                    Judgement::Nothing | Judgement::Right | Judgement::Wrong { .. } => Ok(Vec::new()),
                }
            }
            Said::Resync(_) => self.resync(host),
            Said::Report(report) => Ok(vec![Says::Heard(wire::Heard { number: report.number })]),
            Said::Audit(batch) => {
                let events = batch.events.into_iter().map(checked).collect::<Result<Vec<_>, End>>()?;
                let (epoch, sequence) = self.write(|db| db.receive(host, events))?.map_err(End::Refused)?;
                Ok(vec![Says::AuditAck(wire::AuditAck { epoch: epoch.to_string(), sequence })])
            }
        }
    }

    fn told(&mut self, host: usize) -> &mut Told {
        &mut self.sessions.get_mut(&host).expect("its session was just found").told
    }

    fn welcome(
        &mut self,
        host: usize,
        connection: u64,
        hello: Hello,
        now_ns: u64,
        now: Timestamp,
    ) -> Result<Vec<Says>, End> {
        self.sessions.remove(&host);
        self.write(|db| db.agent_connected(host, &hello, now))?;
        let protocol = hello.protocol.min(PROTOCOL);
        let session = Session { connection, told: Told::new(protocol), heard_ns: now_ns };
        self.sessions.insert(host, session);
        let welcome = Says::Welcome(Welcome { timeline: TIMELINE, protocol }.into());
        Ok([Some(welcome), self.push(host, now)].into_iter().flatten().collect())
    }

    fn applied(&mut self, host: usize, applied: Applied, now: Timestamp) -> Result<Vec<Says>, End> {
        if let Some(left_out) = self.told(host).answered(applied.generation) {
            self.write(|db| db.agent_applied(host, &applied, &left_out, now))?;
            self.told(host).note_applied(applied);
        }
        Ok(Vec::new())
    }

    fn resync(&mut self, host: usize) -> Result<Vec<Says>, End> {
        self.told(host).tell_anew();
        self.write(|db| db.raise(host))?;
        Ok(Vec::new())
    }
}

fn checked<T, U>(wire: T) -> Result<U, End>
where
    U: TryFrom<T, Error = proto::types::Invalid>,
{
    U::try_from(wire).map_err(|error| End::Refused(error.to_string()))
}
