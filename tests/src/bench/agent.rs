//! What an agent takes for itself: memory, and the processor while nothing happens.
//!
//! A whole installation with the real binaries: the agent enforces on this machine, and the control plane has given it the grants.
//! Requests and approvals are put into the control plane's database while it is down, by its own code, for making them is not what
//! is measured.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use control_plane::clock;
use control_plane::rules::actor::{Acting, Actor};
use control_plane::rules::calls::Reach;
use control_plane::rules::policy::{Circumstances, Limits};
use control_plane::store::{Known, Store};
use nix::unistd::Pid;
use proto::types::{Credential, NewApproval, NewRequest, NewResource, NewSubject, SubjectId, SubjectRole};

use super::machine::Machine;
use super::report::{Report, Row, Table, Target, progress};
use super::series::Spread;
use crate::process::wait_for;
use crate::sandbox::Cgroup;
use crate::stage::{ADMIN, HOST, Stage};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Subjects, each with a cgroup.
    pub subjects: u32,
    /// Resources, each of which every subject is granted.
    pub resources: u32,
    /// How long nothing happens.
    pub idle: Duration,
    /// How often that is looked at.
    pub rounds: usize,
}

impl Size {
    /// For figures that are kept: some five minutes.
    pub const FULL: Self = Self { subjects: 1000, resources: 10, idle: Duration::from_secs(60), rounds: 3 };
    /// For a look.
    pub const QUICK: Self = Self { subjects: 1000, resources: 10, idle: Duration::from_secs(15), rounds: 1 };
    /// For seeing that everything still works.
    pub const SMOKE: Self = Self { subjects: 5, resources: 2, idle: Duration::from_secs(1), rounds: 1 };

    fn grants(self) -> u32 {
        self.subjects * self.resources
    }
}

/// What a request may be.
const LIMITS: Limits = Limits {
    max_grant_duration: Duration::from_secs(12 * 3600),
    request_lifetime: Duration::from_secs(3600),
};
/// How long anything may take before it is given up.
const PATIENCE: Duration = Duration::from_secs(180);
/// After the set was taken: what it took is given back by then, and the canary has been granted something.
const SETTLED: Duration = Duration::from_secs(10);
/// Clock ticks in a second, as `/proc` counts processor time.
const TICKS: f64 = 100.0;

/// Measures.
pub fn measure(size: Size) -> Result<Report> {
    let mut machine = Machine::look();
    let mut stage = Stage::start()?;
    let empty = Memory::of(stage.agent()?.pid())?;
    let cgroups = (0..size.subjects).map(|number| stage.sandbox().make_cgroup(&format!("s/{number}")));
    let cgroups: Vec<Cgroup> = cgroups.collect::<Result<_>>()?;
    progress(&format!("making {} grants", size.grants()));
    stage.kill_control_plane()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(fill(&stage, size, &cgroups))?;
    let began = Instant::now();
    stage.start_control_plane()?;
    let took_s = wait_for("the agent to take all of it", PATIENCE, || {
        stage.agent()?.ensure_running()?;
        Ok(stage.wait_until_applied().is_ok().then(|| began.elapsed().as_secs_f64()))
    })?;
    std::thread::sleep(SETTLED);

    let (mut own, mut canarys, mut memories) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..size.rounds {
        progress(&format!("nothing happens, {} of {}", round + 1, size.rounds));
        let pid = stage.agent()?.pid();
        let (before, began) = (Times::of(pid)?, Instant::now());
        std::thread::sleep(size.idle);
        let (after, elapsed) = (Times::of(pid)?, began.elapsed().as_secs_f64());
        own.push(100.0 * (after.own_s - before.own_s) / elapsed);
        canarys.push(100.0 * (after.children_s - before.children_s) / elapsed);
        memories.push(Memory::of(pid)?);
    }
    machine.look_again();
    let all = format!("{} grants, {} cgroups", size.grants(), size.subjects);
    let row = |what: &str, with: &str, values: &[f64], target| {
        let value = Spread::of(values).context("nothing was measured")?;
        Ok::<_, anyhow::Error>(Row { target, ..Row::new(what, with, value) })
    };
    let of = |field: fn(&Memory) -> f64| memories.iter().map(field).collect::<Vec<_>>();
    let rows = vec![
        row("MiB resident", "no grant", &[empty.resident_mib], None)?,
        row("MiB resident", &all, &of(|memory| memory.resident_mib), Some(Target::AtMost(40.0)))?,
        row("MiB of that its own", &all, &of(|memory| memory.own_mib), None)?,
        row("MiB of that its program", &all, &of(|memory| memory.program_mib), None)?,
        row("MiB of its canary's own", &all, &of(|memory| memory.canary_mib), None)?,
        row("% of a processor when nothing happens", &all, &own, Some(Target::AtMost(1.0)))?,
        row("% of a processor, its canary", &all, &canarys, None)?,
        row("s from the control plane's start until all is applied", &all, &[took_s], None)?,
    ];
    let effort = format!(
        "a whole installation; {} subjects with a cgroup each, {} resources, {} times {} s in which nothing happens",
        size.subjects,
        size.resources,
        size.rounds,
        size.idle.as_secs()
    );
    Ok(Report { machine, effort, tables: vec![Table { title: "One agent".to_owned(), rows }] })
}

/// Makes subjects, resources, and each one's grant of each.
async fn fill(stage: &Stage, size: Size, cgroups: &[Cgroup]) -> Result<()> {
    let store = Store::open(&stage.path("control-plane.db")).await?;
    let admin = Acting { id: ADMIN.parse()?, credential: Credential::Token };
    let (actor, now) = (Actor::System, clock::now());
    for number in 0..size.resources {
        let port = format!("tcp/{}", 20_000 + number).parse()?;
        // Nobody is there, and nobody asks.
        let address = "198.51.100.7".parse()?;
        let new = NewResource::new(format!("db-{number}").parse()?, vec![address], vec![port])?;
        store.add_resource(new, &actor, now).await?;
    }
    for (number, cgroup) in cgroups.iter().enumerate() {
        let id: SubjectId = format!("workload:w{number}").parse()?;
        let selectors = vec![format!("cgroup:{}", cgroup.path).parse()?];
        store
            .add_subject(NewSubject { id: id.clone(), selectors, role: SubjectRole::Member }, &actor, now)
            .await?;
        for number in 0..size.resources {
            let new = NewRequest {
                resource: format!("db-{number}").parse()?,
                subject: Some(id.clone()),
                hosts: vec![HOST.parse()?],
                duration: Some(Duration::from_secs(4 * 3600)),
                reason: "a measurement".parse()?,
                idle: None,
                while_running: None,
                run: None,
                action: None,
                role: None,
                key: None,
                draft: None,
            };
            let requester = Acting { id: id.clone(), credential: Credential::Token };
            let known = Known { circumstances: &Circumstances::default(), limits: &LIMITS };
            let request = store.create_request(new, &id, &requester, known, clock::now()).await?.id;
            let yes = NewApproval { request, comment: String::new(), duration: None, hosts: Vec::new() };
            store.approve(&yes, &admin, Reach::All, clock::now()).await?;
        }
    }
    store.close().await;
    Ok(())
}

/// What a process takes of the machine's memory.
struct Memory {
    resident_mib: f64,
    own_mib: f64,
    program_mib: f64,
    canary_mib: f64,
}

impl Memory {
    fn of(pid: Pid) -> Result<Self> {
        let status = |pid: i32, name: &str| {
            let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = text.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
            let kib: f64 = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse()?;
            Ok::<_, anyhow::Error>(kib / 1024.0)
        };
        let of_canary = children(pid)?.into_iter().map(|child| status(child, "RssAnon"));
        Ok(Self {
            resident_mib: status(pid.as_raw(), "VmRSS")?,
            own_mib: status(pid.as_raw(), "RssAnon")?,
            program_mib: status(pid.as_raw(), "RssFile")?,
            canary_mib: of_canary.sum::<Result<f64>>()?,
        })
    }
}

/// The processor time that a process has used, and its children.
struct Times {
    own_s: f64,
    children_s: f64,
}

impl Times {
    fn of(pid: Pid) -> Result<Self> {
        let (own_s, ended_s) = times(pid.as_raw())?;
        let children = children(pid)?.into_iter().map(|child| Ok(times(child)?.0));
        Ok(Self { own_s, children_s: ended_s + children.sum::<Result<f64>>()? })
    }
}

/// Its own, and that of children that have ended.
fn times(pid: i32) -> Result<(f64, f64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).context("no time");
    Ok(((ticks(11)? + ticks(12)?) / TICKS, (ticks(13)? + ticks(14)?) / TICKS))
}

fn children(pid: Pid) -> Result<Vec<i32>> {
    let mut children = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("children"))?;
        children.extend(text.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    Ok(children)
}
