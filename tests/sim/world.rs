//! The whole: hosts, the control plane, the network between them, and the time.
//!
//! Owns: true time and every clock, what is on the way, and what each event does. Must not know: what ought to be true.
//!
//! One thread, no clock, no chance: the same events lead to the same world. A connection carries messages in order; when one
//! side gives it up, what that side had sent before may arrive yet, at any later moment, until the other side gives it up, too.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use prost::Message;
use proto::types::{
    CgroupPath, GrantId, NewResource, NewSubject, Resource, Selector, Subject, SubjectRole, Timestamp,
    Welcome,
};
use proto::wire::agent as wire;
use proto::wire::agent::session_request::Message as Said;
use proto::wire::agent::session_response::Message as Says;
use uuid::Uuid;

use crate::central::{Ask, Central, End};
use crate::faults::{Broken, Event};
use crate::host::{Host, Say, cgroup_of};

pub(crate) const HOSTS: usize = 3;
pub(crate) const SUBJECTS: u32 = 2;
pub(crate) const RESOURCES: u32 = 3;
/// What becomes of grants without the control plane, by resource; [`Event::Outage`] changes it.
const OUTAGES: [&str; 3] = ["hold", "shrink:60s", "cut"];
/// The control plane's clock at the beginning.
const BEGAN_UNIX_MS: i64 = 1_795_000_000_000;
/// How long a session may be silent.
const SILENCE_NS: u64 = 45 * SECOND;
pub(crate) const SECOND: u64 = 1_000_000_000;

/// A wall clock that is off by so much.
pub(crate) fn wall(now_ns: u64, offset_ms: i64) -> Timestamp {
    let unix_ms = BEGAN_UNIX_MS + i64::try_from(now_ns / 1_000_000).unwrap_or(i64::MAX / 2) + offset_ms;
    Timestamp::from_unix_ms(unix_ms).expect("it is some year")
}

/// A stream between an agent and the control plane.
#[derive(Debug)]
struct Connection {
    number: u64,
    up: VecDeque<Vec<u8>>,
    /// With when it was sent.
    down: VecDeque<(u64, Vec<u8>)>,
    /// Which side still has it.
    agent: bool,
    central: bool,
}

/// A grant by true time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Issued {
    pub(crate) at_ns: u64,
    pub(crate) duration_ns: u64,
    /// How far the control plane's clock was off, and has been since at the lowest.
    pub(crate) offset_ms: i64,
    pub(crate) lowest_offset_ms: i64,
}

/// One host's place in the network.
#[derive(Debug, Default)]
pub(crate) struct Line {
    connections: Vec<Connection>,
    is_cut: bool,
    /// The longest that a set was under way.
    pub(crate) slowest_ns: u64,
}

/// Everything.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now_ns: u64,
    pub(crate) offset_ms: i64,
    /// The control plane's clock was set at some time.
    pub(crate) has_stepped: bool,
    pub(crate) hosts: Vec<Host>,
    pub(crate) lines: Vec<Line>,
    pub(crate) central: Central,
    pub(crate) issued: BTreeMap<GrantId, Issued>,
    /// Each verdict of a kernel that needs a record, by its socket's cookie, and where it was.
    pub(crate) verdicts: BTreeMap<u64, usize>,
    /// What an agent was refused for; none ever is.
    pub(crate) refused: Option<String>,
    next: u64,
}

impl World {
    pub(crate) fn new(broken: Broken) -> Self {
        let names: Vec<_> = (0..HOSTS).map(|host| format!("h{host}").parse().expect("valid")).collect();
        let hosts = names.iter().enumerate().map(|(index, name): (usize, &proto::types::HostName)| {
            // The last one is of the version before.
            let protocol = if index + 1 == HOSTS { 1 } else { 2 };
            Host::new(name.clone(), protocol, broken, index as u128 + 1, 0)
        });
        let resources = (1..=RESOURCES).map(|number| resource(number, OUTAGES[number as usize - 1]));
        let hosts = hosts.collect();
        Self {
            now_ns: 0,
            offset_ms: 0,
            has_stepped: false,
            hosts,
            lines: (0..HOSTS).map(|_| Line::default()).collect(),
            central: Central::new(&names, resources.collect(), (1..=SUBJECTS).map(subject).collect(), broken),
            issued: BTreeMap::new(),
            verdicts: BTreeMap::new(),
            refused: None,
            next: 0,
        }
    }

    /// The control plane's clock.
    pub(crate) fn wall(&self) -> Timestamp {
        wall(self.now_ns, self.offset_ms)
    }

    fn give_number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Lets something happen.
    pub(crate) fn happen(&mut self, event: Event) {
        let host = |number: u32| number as usize % HOSTS;
        match event {
            Event::Ask { hosts, pair, seconds, limit } => self.ask(hosts, pair, seconds, limit),
            Event::Revoke { which } => {
                // One of the newest: the others are mostly over.
                let id = self.central.db.grants.keys().nth_back(which as usize % 4).copied();
                let now = self.wall();
                id.into_iter().for_each(|id| self.central.revoke(id, now));
            }
            Event::Outage { resource: number, limit } => {
                let outage = OUTAGES[limit as usize % OUTAGES.len()];
                self.central.replace(resource(number % RESOURCES + 1, outage));
            }
            Event::Connect { host: number } => self.connect(host(number)),
            Event::Exchange { host: number } => self.exchange(host(number)),
            Event::Up { host: number, count } => (0..=count % 4).for_each(|_| self.up(host(number))),
            Event::Down { host: number, count } => (0..=count % 4).for_each(|_| self.down(host(number))),
            Event::Push { host: number } => self.push(host(number)),
            Event::Tick { host: number } => self.act(host(number), Host::tick),
            Event::AgentBreaks { host: number } => self.agent_breaks(host(number)),
            Event::ControlPlaneBreaks { host: number } => {
                if let Some(connection) = self.central.connection(host(number)) {
                    self.central_breaks(host(number), connection);
                }
            }
            Event::Cut { host: number } => self.lines[host(number)].is_cut = true,
            Event::Heal { host: number } => self.lines[host(number)].is_cut = false,
            Event::CrashAgent { host: number, effects } => self.crash_agent(host(number), effects),
            Event::StartAgent { host: number } => self.act(host(number), Host::start),
            Event::Reboot { host: number } => {
                self.hosts[host(number)].reboot(self.now_ns);
                self.drop_agents_side(host(number));
            }
            Event::CrashControlPlane {} => self.crash_control_plane(),
            Event::StartControlPlane {} => {
                self.central.is_up = true;
                self.central.expire(self.wall());
            }
            Event::FailCommits { count } => self.central.failing = 1 + count % 3,
            Event::StepClock { seconds } => self.step_clock(i64::from(seconds % 7) * 1200 - 3600),
            Event::FillMaps { host: number } => self.hosts[host(number)].kernel.is_full = true,
            Event::FreeMaps { host: number } => self.hosts[host(number)].kernel.is_full = false,
            Event::FillDisk { host: number } => self.hosts[host(number)].disk.is_full = true,
            Event::FreeDisk { host: number } => self.hosts[host(number)].disk.is_full = false,
            Event::Try { host: number, pair } => self.attempt(host(number), pair),
            Event::Flood { host: number, pair } => (0..20).for_each(|_| self.attempt(host(number), pair)),
            Event::ExitTask { host: number, again } => self.exit_task(host(number), again),
            Event::Wait { how_long } => self.wait(match how_long % 4 {
                0 => u64::from(how_long) * 1_000_000,
                1 | 2 => u64::from(how_long % 20 + 1) * SECOND,
                _ => u64::from(how_long % 180 + 1) * SECOND,
            }),
        }
    }

    fn ask(&mut self, hosts: u32, pair: u32, seconds: u32, limit: u32) {
        let number = self.give_number();
        // Ids grow with time.
        let id = GrantId::from_bytes((u128::from(number) << 64).to_be_bytes()).expect("not 0");
        let task = limit
            .is_multiple_of(5)
            .then(|| -> CgroupPath { format!("/job-{number}").parse().expect("valid") });
        let mut hosts: BTreeSet<usize> = (0..HOSTS).filter(|host| (hosts % 7 + 1) >> host & 1 == 1).collect();
        if let Some(path) = &task {
            // A task runs on one host.
            hosts = hosts.into_iter().take(1).collect();
            for host in &hosts {
                self.hosts[*host].tasks.insert(path.clone(), number);
            }
        }
        let duration = Duration::from_secs(u64::from([5, 20, 60, 600][seconds as usize % 4] + seconds % 3));
        let ask = Ask {
            id,
            hosts,
            subject: (pair % SUBJECTS + 1).try_into().expect("not 0"),
            resource: (pair / SUBJECTS % RESOURCES + 1).try_into().expect("not 0"),
            duration,
            idle: (limit % 5 == 1).then(|| Duration::from_secs(u64::from(limit % 30 + 5))),
            while_running: task,
        };
        if self.central.issue(ask, self.wall()) {
            let duration_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
            let (at_ns, offset_ms) = (self.now_ns, self.offset_ms);
            self.issued.insert(id, Issued { at_ns, duration_ns, offset_ms, lowest_offset_ms: offset_ms });
        }
    }

    /// The agent does something, and what it says goes on its way; unless it ends in the midst of it.
    fn act(&mut self, host: usize, action: impl FnOnce(&mut Host, u64)) {
        action(&mut self.hosts[host], self.now_ns);
        self.carry(host);
        if self.hosts[host].bury() {
            self.drop_agents_side(host);
        }
    }

    fn carry(&mut self, host: usize) {
        let said = std::mem::take(&mut self.hosts[host].said);
        let Some(connection) = self.lines[host].connections.iter_mut().find(|it| it.agent) else { return };
        connection.up.extend(said.into_iter().map(|say| to_wire(say).encode_to_vec()));
    }

    fn crash_agent(&mut self, host: usize, effects: u32) {
        let effects = effects % 40;
        self.hosts[host].crash(effects);
        if effects == 0 {
            self.drop_agents_side(host);
        }
    }

    fn drop_agents_side(&mut self, host: usize) {
        for connection in &mut self.lines[host].connections {
            connection.agent = false;
            connection.down.clear();
        }
        self.lines[host].connections.retain(|connection| connection.central);
    }

    fn agent_breaks(&mut self, host: usize) {
        self.drop_agents_side(host);
        self.act(host, |host, _| host.disconnected());
    }

    fn central_breaks(&mut self, host: usize, number: u64) {
        self.central.close(host, number);
        for connection in self.lines[host].connections.iter_mut().filter(|it| it.number == number) {
            connection.central = false;
            connection.up.clear();
        }
        self.lines[host].connections.retain(|connection| connection.agent || connection.central);
    }

    fn crash_control_plane(&mut self) {
        self.central.crash();
        for host in 0..HOSTS {
            let numbers: Vec<u64> = self.lines[host].connections.iter().map(|it| it.number).collect();
            numbers.into_iter().for_each(|number| self.central_breaks(host, number));
        }
    }

    fn connect(&mut self, host: usize) {
        let has_one = self.lines[host].connections.iter().any(|connection| connection.agent);
        if has_one || self.lines[host].is_cut || !self.central.is_up {
            return;
        }
        let Some(hello) = self.hosts[host].hello(self.now_ns) else { return };
        let number = self.give_number();
        let hello = wire::SessionRequest { message: Some(Said::Hello(hello.into())) };
        let up = [hello.encode_to_vec()].into();
        let connection = Connection { number, up, down: VecDeque::new(), agent: true, central: true };
        self.lines[host].connections.push(connection);
    }

    /// The next message from an agent arrives.
    fn up(&mut self, host: usize) {
        if self.lines[host].is_cut || !self.central.is_up {
            return;
        }
        let waits = |connection: &&mut Connection| connection.central && !connection.up.is_empty();
        let Some(connection) = self.lines[host].connections.iter_mut().find(waits) else { return };
        let (number, bytes) = (connection.number, connection.up.pop_front().expect("it is not empty"));
        let said = wire::SessionRequest::decode(bytes.as_slice()).expect("it was encoded");
        if matches!(said.message, Some(Said::Hello(_))) {
            // The session before this one has ended, and said so.
            let older: Vec<u64> = self.lines[host].connections.iter().map(|it| it.number).collect();
            older.into_iter().filter(|it| *it < number).for_each(|it| self.central_breaks(host, it));
        }
        match self.central.hear(host, number, said, self.now_ns, self.wall()) {
            Ok(answers) => self.send(host, number, answers),
            Err(end) => {
                if let End::Refused(why) = end {
                    self.refused = Some(why);
                }
                self.central_breaks(host, number);
            }
        }
    }

    fn send(&mut self, host: usize, number: u64, answers: Vec<Says>) {
        let now_ns = self.now_ns;
        let connection = self.lines[host].connections.iter_mut().find(|it| it.number == number && it.agent);
        let encode = |message| (now_ns, wire::SessionResponse { message: Some(message) }.encode_to_vec());
        connection.into_iter().for_each(|it| it.down.extend(answers.iter().cloned().map(encode)));
    }

    fn push(&mut self, host: usize) {
        if !self.central.is_up {
            return;
        }
        let news = self.central.push(host, self.wall());
        if let (Some(news), Some(number)) = (news, self.central.connection(host)) {
            self.send(host, number, vec![news]);
        }
    }

    /// The next message to an agent arrives, or it learns that there will be none.
    fn down(&mut self, host: usize) {
        if self.lines[host].is_cut || self.hosts[host].agent.is_none() {
            return;
        }
        let Some(connection) = self.lines[host].connections.iter_mut().find(|it| it.agent) else { return };
        let Some((sent_ns, bytes)) = connection.down.pop_front() else {
            if !connection.central {
                self.agent_breaks(host);
            }
            return;
        };
        let said = wire::SessionResponse::decode(bytes.as_slice()).expect("it was encoded");
        let is_set = matches!(said.message, Some(Says::GrantSet(_) | Says::Delta(_)));
        if is_set {
            let line = &mut self.lines[host];
            line.slowest_ns = line.slowest_ns.max(self.now_ns - sent_ns);
        }
        self.act(host, |host, now_ns| tell(host, said, now_ns));
    }

    fn step_clock(&mut self, seconds: i64) {
        self.has_stepped |= self.offset_ms != seconds * 1000;
        self.offset_ms = seconds * 1000;
        for issued in self.issued.values_mut() {
            issued.lowest_offset_ms = issued.lowest_offset_ms.min(self.offset_ms);
        }
        if self.central.is_up {
            self.central.expire(self.wall());
        }
    }

    fn attempt(&mut self, host: usize, pair: u32) {
        let cookie = self.give_number();
        let (subject, number) = (pair % SUBJECTS + 1, pair / SUBJECTS % RESOURCES + 1);
        let boot_ns = self.hosts[host].boot_ns(self.now_ns);
        let kernel = &mut self.hosts[host].kernel;
        if kernel.connect(cgroup_of(subject), port(number), cookie, boot_ns) {
            self.verdicts.insert(cookie, host);
        }
    }

    fn exit_task(&mut self, host: usize, again: u32) {
        let number = self.give_number();
        let tasks = &mut self.hosts[host].tasks;
        if let Some((path, _)) = tasks.pop_first()
            && again % 2 == 1
        {
            tasks.insert(path, number);
        }
    }

    pub(crate) fn wait(&mut self, ns: u64) {
        self.now_ns += ns;
        if self.central.is_up {
            self.central.expire(self.wall());
            for (host, number) in self.central.silent(self.now_ns, SILENCE_NS) {
                self.central_breaks(host, number);
            }
        }
    }

    /// All faults end, and everybody talks for as long as it takes: some ticks.
    pub(crate) fn settle(&mut self) {
        self.central.failing = 0;
        self.happen(Event::StartControlPlane {});
        for host in 0..HOSTS {
            self.lines[host].is_cut = false;
            self.hosts[host].kernel.is_full = false;
            self.hosts[host].disk.is_full = false;
            // A fuse that still burns is one more crash.
            self.crash_agent(host, 0);
            self.act(host, Host::start);
        }
    }

    /// Five seconds in which nothing goes wrong.
    pub(crate) fn talk(&mut self) {
        for host in 0..HOSTS {
            self.act(host, Host::tick);
            self.exchange(host);
        }
        self.wait(5 * SECOND);
    }

    fn exchange(&mut self, host: usize) {
        self.connect(host);
        for _ in 0..4 {
            (0..8).for_each(|_| self.up(host));
            self.push(host);
            (0..8).for_each(|_| self.down(host));
        }
    }
}

fn tell(host: &mut Host, said: wire::SessionResponse, now_ns: u64) {
    match said.message.expect("the control plane says something") {
        Says::Welcome(welcome) => {
            let Welcome { timeline, protocol } = welcome.try_into().expect("it checks");
            host.welcomed(timeline, protocol, now_ns);
        }
        Says::GrantSet(set) => host.set(set.try_into().expect("it checks"), now_ns),
        Says::Delta(delta) => host.delta(&delta.try_into().expect("it checks"), now_ns),
        Says::Heard(heard) => host.answered(heard.number, now_ns),
        Says::AuditAck(ack) => {
            host.acknowledged(Uuid::try_parse(&ack.epoch).expect("it checks"), ack.sequence);
        }
    }
}

fn to_wire(say: Say) -> wire::SessionRequest {
    let message = match say {
        Say::Applied(applied) => Said::Applied(applied.into()),
        Say::Ended(ended) => Said::Ended(ended.into()),
        Say::Report(number, report) => Said::Report(wire::Report { number, ..report.into() }),
        Say::Audit(events) => {
            Said::Audit(wire::AuditBatch { events: events.into_iter().map(Into::into).collect() })
        }
        Say::Digest(digest) => Said::Digest(digest.into()),
        Say::Resync(reason) => Said::Resync(wire::Resync { reason }),
    };
    wire::SessionRequest { message: Some(message) }
}

/// The port of a resource.
pub(crate) fn port(number: u32) -> u16 {
    5000 + number as u16
}

fn resource(number: u32, outage: &str) -> Resource {
    let ports = vec![format!("tcp/{}", port(number)).parse().expect("valid")];
    let addresses = vec!["10.0.0.1".parse().expect("valid")];
    let name = format!("db-{number}").parse().expect("valid");
    let mut new = NewResource::new(name, addresses, ports).expect("valid");
    new.options.outage = outage.parse().expect("valid");
    Resource::numbered(number.try_into().expect("not 0"), new)
}

fn subject(number: u32) -> Subject {
    let path = format!("/{}", cgroup_of(number)).parse().expect("valid");
    let id = format!("user:u{number}").parse().expect("valid");
    let new = NewSubject { id, selectors: vec![Selector::Cgroup(path)], role: SubjectRole::Member };
    Subject::numbered(number.try_into().expect("not 0"), new)
}
