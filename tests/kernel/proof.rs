//! What the agent says of its host, and what it puts right, when somebody changes the gate behind its back. The agent runs
//! whole, but for a control plane, on a cgroup of the test's own; what counts is the report that it would send.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use agent::clock::now_boot_ns;
use agent::config::Config;
use agent::kernel::{Demand, Settings};
use agent::memory::{Memory, MemoryFile};
use agent::observe;
use agent::run::{Ground, RunError, run_on};
use agent::spool::{Cursor, Spool};
use agent_ebpf::abi::{map, port_index, protocol};
use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::types::{
    AuditEvent, EventKind, GrantId, GrantSet, Hello, HostState, LiveGrant, NewSubject, Protocol, Report,
    Subject, SubjectRole,
};
use tests::ensure_eq;
use tests::listener::Listener;
use tests::probe::{self, Attempt};
use tests::process::wait_for;
use tests::runner::{Choosy, Outcome, Test};
use tests::sandbox::{Cgroup, Sandbox};
use tests::stranger::Stranger;
use tests::tampering::{Does, Pinned, Word, attach_connect4, connect4_program};
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use crate::fixture::{HOUR, RESOURCE, SUBJECT, reaches, resource};

pub(crate) const TESTS: &[Test] = &[
    ("proof::a_whole_gate_is_enforcing", a_whole_gate_is_enforcing),
    ("proof::a_detached_program_is_put_back", a_detached_program_is_put_back),
    ("proof::a_replaced_program_is_put_back", a_replaced_program_is_put_back),
    ("proof::removed_pins_are_made_again", removed_pins_are_made_again),
    ("proof::an_unmounted_file_system_is_told", an_unmounted_file_system_is_told),
    ("proof::a_program_behind_ours_is_told", a_program_behind_ours_is_told),
    ("proof::a_program_that_forgives_is_seen_through", a_program_that_forgives_is_seen_through),
    ("proof::over_blocking_is_told", over_blocking_is_told),
    ("proof::a_grant_that_opens_nothing_is_told", a_grant_that_opens_nothing_is_told),
    ("proof::without_a_cgroup_the_canary_says_so", without_a_cgroup_the_canary_says_so),
    ("proof::a_killed_canary_comes_back", a_killed_canary_comes_back),
    ("proof::a_forged_grant_ends_with_its_connections", a_forged_grant_ends_with_its_connections),
    ("proof::an_opened_port_is_closed_again", an_opened_port_is_closed_again),
    ("proof::every_map_is_watched", every_map_is_watched),
    ("proof::fifty_thousand_grants_are_watched", fifty_thousand_grants_are_watched),
];

pub(crate) const CHOOSY: &[Choosy] =
    &[("proof::tampering_is_told_and_changes_nothing", tampering_is_told_and_changes_nothing)];

/// How long a change of state may take: an interval, and what a shared machine adds.
const STATE_TIMEOUT: Duration = Duration::from_secs(30);
/// Within which what was changed is put right: what is promised.
const REPAIRED_WITHIN: Duration = Duration::from_secs(10);

/// An agent at work.
pub(crate) struct Running {
    hello: watch::Receiver<Hello>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), RunError>>>,
    pub(crate) pinned: Pinned,
    settings: Settings,
    root: Cgroup,
    pub(crate) sandbox: Sandbox,
}

impl Running {
    /// Over one resource (where `listener` is), with a subject whose cgroup is `subject` below the test's own.
    fn start() -> Result<(Self, Listener)> {
        let sandbox = Sandbox::new()?;
        let listener = Listener::start(Protocol::Tcp, SocketAddr::new(sandbox.address().into(), 0))?;
        let mut resource = resource(RESOURCE, listener.address(), Protocol::Tcp)?;
        // So that all programs are there that every kernel can have.
        resource.options.check_senders = true;
        Ok((Self::with(sandbox, set_of(vec![resource], 1, vec![])?, |_| {})?, listener))
    }

    fn with(sandbox: Sandbox, set: GrantSet, change: impl FnOnce(&mut Settings)) -> Result<Self> {
        Self::with_canary(sandbox, set, std::env::current_exe()?, change)
    }

    fn with_canary(
        sandbox: Sandbox,
        set: GrantSet,
        program: PathBuf,
        change: impl FnOnce(&mut Settings),
    ) -> Result<Self> {
        Self::with_config(sandbox, set, program, |config| change(&mut config.kernel))
    }

    pub(crate) fn with_config(
        sandbox: Sandbox,
        set: GrantSet,
        program: PathBuf,
        change: impl FnOnce(&mut Config),
    ) -> Result<Self> {
        let root = sandbox.make_cgroup("")?;
        let state_dir = sandbox.dir().join("agent");
        fs::create_dir(&state_dir)?;
        let memory = Memory { grants: Some((Uuid::from_u128(1), set)), ..Memory::default() };
        MemoryFile::new(&state_dir, observe::boot_id()?).write(&memory, now_boot_ns())?;
        let mut config = Config {
            host: "proof".parse()?,
            // It has not joined, and so asks nobody.
            control_plane: agent::session::Endpoint::new(["https://127.0.0.1:1"])
                .map_err(anyhow::Error::msg)?,
            join: None,
            state_dir,
            kernel: Settings::new(sandbox.pin_dir()),
            exempt: Vec::new(),
            kubernetes: None,
            runs_socket: None,
            spool_max_bytes: 1 << 24,
        };
        change(&mut config);
        let settings = config.kernel.clone();
        let ground = Ground { cgroup_root: root.directory.clone(), program };
        let (stop, stopped) = oneshot::channel();
        let (to_us, hello) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let shutdown = async move { drop(stopped.await) };
            let watch = move |hello| drop(to_us.send(hello));
            runtime.expect("a runtime").block_on(run_on(ground, config, shutdown, watch))
        });
        let Ok(hello) = hello.recv() else {
            return match thread.join().expect("the agent does not panic") {
                Err(error) => Err(error.into()),
                Ok(()) => bail!("the agent ended at once"),
            };
        };
        let pinned = Pinned::at(&settings.pin_dir);
        let running = Self { hello, stop: Some(stop), thread: Some(thread), pinned, settings, root, sandbox };
        Ok(running)
    }

    pub(crate) fn report(&self) -> Report {
        self.hello.borrow().report.clone()
    }

    /// Waits until it says so.
    pub(crate) fn wait(&self, state: HostState, words: &str) -> Result<Report> {
        let what = format!("a report that the host is {state}: {words}");
        let said = wait_for(&what, STATE_TIMEOUT, || {
            let report = self.report();
            Ok((report.state == state && report.detail.contains(words)).then_some(report))
        });
        said.with_context(|| format!("it says {:?}", self.report()))
    }

    /// Ends it, and gives what it has written down of what it put right.
    fn drifts(self) -> Result<Vec<String>> {
        let drifts = self.events_of(EventKind::HostDrift)?.into_iter();
        Ok(drifts.map(|event| event.comment).collect())
    }

    /// Ends it, and gives the events of this kind that it has written down.
    pub(crate) fn events_of(mut self, kind: EventKind) -> Result<Vec<AuditEvent>> {
        self.end()?;
        let spool = Spool::open(&self.sandbox.dir().join("agent/spool"), observe::boot_id()?, 1 << 24)?;
        let events = spool.read(Cursor::default(), 512)?;
        Ok(events.into_iter().filter(|event| event.kind == kind).collect())
    }

    fn end(&mut self) -> Result<()> {
        drop(self.stop.take());
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => Ok(result?),
            Some(Err(_)) => bail!("the agent panicked"),
            None => Ok(()),
        }
    }

    fn canary_pids(&self) -> Result<Vec<i32>> {
        let path = self.root.directory.join(agent::canary::CGROUP).join("cgroup.procs");
        let text = fs::read_to_string(path)?;
        Ok(text.lines().map(str::parse).collect::<Result<_, _>>()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // What it says was asked for, or the test has failed already.
        let _ = self.end();
    }
}

/// A set with subjects whose cgroups are called `subject-NUMBER`.
fn set_of(resources: Vec<proto::types::Resource>, subjects: u32, grants: Vec<LiveGrant>) -> Result<GrantSet> {
    let subject = |number: u32| {
        let new = NewSubject {
            id: format!("user:u{number}").parse()?,
            selectors: vec![format!("cgroup:/subject-{number}").parse()?],
            role: SubjectRole::Member,
        };
        Ok(Subject::numbered(number.try_into()?, new))
    };
    let subjects = (1..=subjects).map(subject).collect::<Result<_>>()?;
    Ok(GrantSet { generation: 1, resources, subjects, grants })
}

pub(crate) fn live_grant(subject: u32, resource: u32) -> Result<LiveGrant> {
    Ok(LiveGrant {
        id: GrantId::new(),
        subject: subject.try_into()?,
        resource: resource.try_into()?,
        remaining: HOUR,
        idle: None,
        while_running: None,
        run: None,
        action: None,
        extensions: 0,
    })
}

/// Two numbers as a key or value.
pub(crate) fn pair(first: u32, second: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    bytes
}

/// A reference to a slot in an epoch.
fn reference(slot: u32, epoch: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&slot.to_ne_bytes());
    bytes[8..].copy_from_slice(&epoch.to_ne_bytes());
    bytes
}

/// Fails unless one of the texts has these words.
fn ensure_told(texts: &[String], words: &str) -> Result<()> {
    match texts.iter().any(|text| text.contains(words)) {
        true => Ok(()),
        false => bail!("nothing about `{words}` in {texts:?}"),
    }
}

/// With the tamper tier: what a stranger is refused is an event, and what the agent's own helper is refused is none.
fn tampering_is_told_and_changes_nothing() -> Result<Outcome> {
    let sandbox = Sandbox::new()?;
    let stranger = Stranger::new(sandbox.dir())?;
    let set = set_of(Vec::new(), 0, Vec::new())?;
    let mut running = Running::with(sandbox, set, |settings| settings.tamper = Demand::Prefer)?;
    let is_missing = "without tamper protection (";
    if running.report().detail.contains(is_missing) {
        running.wait(HostState::Degraded, is_missing)?;
        return Ok(Outcome::Skipped("this kernel runs no such LSM program"));
    }
    running.wait(HostState::Enforcing, "")?;
    let pin = running.pinned.link("connect4").display().to_string();
    ensure_eq!(stranger.tries(&["unlink", &pin])?, "EPERM");
    // A look at the gate, and a round of the helper's.
    std::thread::sleep(Duration::from_secs(6));
    ensure_eq!(running.report(), Report { state: HostState::Enforcing, detail: String::new() });
    running.end()?;
    let spool = Spool::open(&running.sandbox.dir().join("agent/spool"), observe::boot_id()?, 1 << 24)?;
    let events = spool.read(Cursor::default(), 512)?;
    let kinds: Vec<EventKind> = events.iter().map(|event| event.kind).collect();
    ensure_eq!(kinds, [EventKind::AgentStarted, EventKind::GateTampering]);
    let told = &events[1];
    ensure_eq!((told.reason.as_str(), told.actor.as_str()), ("remove_pin", "host:proof"));
    ensure_eq!(told.comment.starts_with("by stranger (pid "), true, "{}", told.comment);
    Ok(Outcome::Passed)
}

/// The canary is in its cgroup, tries, is granted, and is gone in the end.
fn a_whole_gate_is_enforcing() -> Result<()> {
    let (mut running, listener) = Running::start()?;
    running.wait(HostState::Enforcing, "")?;
    ensure_eq!(running.canary_pids()?.len(), 1);
    let nobody = running.sandbox.make_cgroup("nobody")?;
    ensure_eq!(reaches(&nobody, Attempt::Tcp, listener.address(), &listener)?, false);
    // The round with a grant: its slot has a deadline, and once it is over another epoch.
    let word = |word| Ok::<_, anyhow::Error>(running.pinned.slot(0)?.map(|slot| slot.word(word)));
    wait_for("the canary's grant", STATE_TIMEOUT, || {
        Ok(word(Word::Deadline)?.filter(|deadline| *deadline > now_boot_ns()))
    })?;
    wait_for("the end of the canary's grant", STATE_TIMEOUT, || {
        Ok(word(Word::Epoch)?.filter(|epoch| *epoch > 0))
    })?;
    ensure_eq!(running.report(), Report { state: HostState::Enforcing, detail: String::new() });
    // Nothing of it is in the record, and nothing is left of it.
    let cgroup = running.root.directory.join(agent::canary::CGROUP);
    running.end()?;
    ensure_eq!(cgroup.exists(), false);
    let spool = Spool::open(&running.sandbox.dir().join("agent/spool"), observe::boot_id()?, 1 << 24)?;
    let events = spool.read(Cursor::default(), 512)?;
    let kinds: Vec<EventKind> = events.iter().map(|event| event.kind).collect();
    ensure_eq!(kinds, [EventKind::AgentStarted, EventKind::ConnectionDenied]);
    Ok(())
}

fn a_detached_program_is_put_back() -> Result<()> {
    let (running, listener) = Running::start()?;
    running.wait(HostState::Enforcing, "")?;
    let nobody = running.sandbox.make_cgroup("nobody")?;
    for program in ["connect4", "sendmsg6", "egress", "sock_create", "enlist"] {
        running.pinned.detach(program)?;
        running.wait(HostState::NotEnforcing, &format!("{program} was detached; put back"))?;
        running.wait(HostState::Enforcing, "")?;
    }
    ensure_eq!(reaches(&nobody, Attempt::Tcp, listener.address(), &listener)?, false);
    let drifts = running.drifts()?;
    ensure_told(&drifts, "connect4 was detached; put back")?;
    ensure_told(&drifts, "egress was detached; put back")
}

fn a_replaced_program_is_put_back() -> Result<()> {
    let (running, listener) = Running::start()?;
    running.wait(HostState::Enforcing, "")?;
    running.pinned.replace_connect4(&connect4_program(Does::Nothing)?)?;
    running.wait(HostState::NotEnforcing, "connect4 was replaced by the program stranger")?;
    running.wait(HostState::Enforcing, "")?;
    let nobody = running.sandbox.make_cgroup("nobody")?;
    ensure_eq!(reaches(&nobody, Attempt::Tcp, listener.address(), &listener)?, false);
    ensure_told(&running.drifts()?, "connect4 was replaced by the program stranger")
}

fn removed_pins_are_made_again() -> Result<()> {
    let (running, _listener) = Running::start()?;
    running.wait(HostState::Enforcing, "")?;
    let lost = [running.pinned.link("connect6"), running.pinned.map(map::GRANTS)];
    lost.iter().try_for_each(fs::remove_file)?;
    running.wait(HostState::Degraded, "2 objects are no longer pinned: connect6, GRANTS; pinned again")?;
    ensure_eq!(lost.iter().all(|path| path.exists()), true);
    running.wait(HostState::Enforcing, "")?;
    ensure_told(&running.drifts()?, "no longer pinned")
}

fn an_unmounted_file_system_is_told() -> Result<()> {
    let (running, listener) = Running::start()?;
    running.wait(HostState::Enforcing, "")?;
    let bpffs = running.sandbox.dir().join("bpf");
    umount2(&bpffs, MntFlags::MNT_DETACH)?;
    running.wait(HostState::Degraded, "the gate will not outlive this agent")?;
    let nobody = running.sandbox.make_cgroup("nobody")?;
    ensure_eq!(reaches(&nobody, Attempt::Tcp, listener.address(), &listener)?, false);
    mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>)?;
    running.wait(HostState::Enforcing, "")?;
    ensure_eq!(running.pinned.link("egress").exists(), true);
    Ok(())
}

fn a_program_behind_ours_is_told() -> Result<()> {
    let (running, _listener) = Running::start()?;
    running.wait(HostState::Enforcing, "")?;
    let program = connect4_program(Does::Nothing)?;
    let link = attach_connect4(&program, &running.root.directory)?;
    let report = running.wait(HostState::Degraded, "program stranger (id ")?;
    ensure_eq!(report.detail.ends_with(") runs after ours at connect4"), true, "{report:?}");
    drop(link);
    running.wait(HostState::Enforcing, "")?;
    Ok(())
}

/// Our programs are in their places, and the canary finds the gate open all the same.
fn a_program_that_forgives_is_seen_through() -> Result<()> {
    // Before Linux 5.18 no program can do this.
    let Ok(program) = connect4_program(Does::Forgives) else { return Ok(()) };
    let (running, _listener) = Running::start()?;
    running.wait(HostState::Enforcing, "")?;
    let link = attach_connect4(&program, &running.root.directory)?;
    running.wait(HostState::NotEnforcing, "connect4 lets the canary through")?;
    drop(link);
    running.wait(HostState::Enforcing, "")?;
    Ok(())
}

fn over_blocking_is_told() -> Result<()> {
    let (running, _listener) = Running::start()?;
    running.wait(HostState::Enforcing, "")?;
    let link = attach_connect4(&connect4_program(Does::Refuses)?, &running.root.directory)?;
    running.wait(HostState::Degraded, "the canary cannot reach a port that nobody protects: EPERM")?;
    drop(link);
    running.wait(HostState::Enforcing, "")?;
    Ok(())
}

/// All slots are taken: the canary's grant finds none, and that is told.
fn a_grant_that_opens_nothing_is_told() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let at = SocketAddr::new(sandbox.address().into(), 5432);
    let grants = vec![live_grant(SUBJECT, RESOURCE)?];
    let set = set_of(vec![resource(RESOURCE, at, Protocol::Tcp)?], 1, grants)?;
    let running = Running::with(sandbox, set, |settings| settings.grants_max = 1)?;
    running.wait(HostState::Degraded, "the canary's grant lets nobody through (tcp): no_live_grant")?;
    Ok(())
}

fn without_a_cgroup_the_canary_says_so() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let root = sandbox.make_cgroup("")?;
    fs::write(root.directory.join("cgroup.max.descendants"), "0")?;
    // It stays where it was started, which on a whole host is below the root as well.
    let program = sandbox.dir().join("canary");
    let (here, there) = (std::env::current_exe()?, root.directory.join("cgroup.procs"));
    let script = format!("#!/bin/sh\necho 0 > {} && exec {} \"$@\"\n", there.display(), here.display());
    fs::write(&program, script)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700))?;
    let running = Running::with_canary(sandbox, set_of(vec![], 0, vec![])?, program, |_| {})?;
    running
        .wait(HostState::Degraded, "the canary has no cgroup of its own, and proves no grant: cannot make")?;
    Ok(())
}

fn a_killed_canary_comes_back() -> Result<()> {
    let (running, _listener) = Running::start()?;
    running.wait(HostState::Enforcing, "")?;
    let killed = running.canary_pids()?;
    killed.iter().try_for_each(|pid| kill(Pid::from_raw(*pid), Signal::SIGKILL))?;
    wait_for("another canary", STATE_TIMEOUT, || {
        let pids = running.canary_pids()?;
        Ok((pids.len() == 1 && pids != killed).then_some(()))
    })?;
    running.wait(HostState::Enforcing, "")?;
    Ok(())
}

/// Somebody lets themselves through, by writing a grant, and is out again soon, with the connection.
fn a_forged_grant_ends_with_its_connections() -> Result<()> {
    const SLOT: u32 = 77;
    let (running, listener) = Running::start()?;
    running.wait(HostState::Enforcing, "")?;
    let cgroup = running.sandbox.make_cgroup(&format!("subject-{SUBJECT}"))?;
    wait_for("the subject to be bound", STATE_TIMEOUT, || {
        let key = cgroup.id()?.to_ne_bytes();
        Ok(running.pinned.lookup::<8>(map::SUBJECTS, &key)?)
    })?;
    ensure_eq!(reaches(&cgroup, Attempt::Tcp, listener.address(), &listener)?, false);

    running.pinned.set_slot(SLOT, Word::Deadline, u64::MAX)?;
    running.pinned.update(map::GRANTS, &pair(SUBJECT, RESOURCE), &reference(SLOT, 0))?;
    let began = Instant::now();
    let mut command = probe::command(&cgroup, Attempt::TcpStream, listener.address(), "forged")?;
    let stream = command.stdout(Stdio::piped()).spawn()?;
    running.wait(HostState::NotEnforcing, "map GRANTS: 1 added (subject 1 to resource 1); put right")?;
    let output = String::from_utf8(stream.wait_with_output()?.stdout)?;
    if began.elapsed() > REPAIRED_WITHIN {
        bail!("it took {:?}", began.elapsed());
    }
    ensure_eq!(output, "connected\nECONNABORTED\n");
    ensure_eq!(reaches(&cgroup, Attempt::Tcp, listener.address(), &listener)?, false);
    running.wait(HostState::Enforcing, "")?;
    let drifts = running.drifts()?;
    ensure_told(&drifts, "map GRANTS: 1 added")?;
    ensure_told(&drifts, "map SLOTS: 1 added (deadline of slot 77)")
}

fn an_opened_port_is_closed_again() -> Result<()> {
    let (running, listener) = Running::start()?;
    running.wait(HostState::Enforcing, "")?;
    let nobody = running.sandbox.make_cgroup("nobody")?;
    let port = listener.address().port();
    let index = port_index(protocol::TCP, port).context("TCP has ports")?.to_ne_bytes();
    let began = Instant::now();
    running.pinned.update(map::PORT_CLASSES, &index, &0u32.to_ne_bytes())?;
    ensure_eq!(reaches(&nobody, Attempt::Tcp, listener.address(), &listener)?, true, "the fault is none");
    running.wait(HostState::NotEnforcing, "map PORT_CLASSES: 1 removed")?;
    if began.elapsed() > REPAIRED_WITHIN {
        bail!("it took {:?}", began.elapsed());
    }
    ensure_eq!(reaches(&nobody, Attempt::Tcp, listener.address(), &listener)?, false);
    ensure_told(&running.drifts()?, "map PORT_CLASSES: 1 removed")
}

/// An element added, changed or removed in each map is told, and afterwards is what it was.
fn every_map_is_watched() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let at = SocketAddr::new(sandbox.address().into(), 5432);
    let cgroup = sandbox.make_cgroup(&format!("subject-{SUBJECT}"))?;
    let set = set_of(vec![resource(RESOURCE, at, Protocol::Tcp)?], 1, vec![live_grant(SUBJECT, RESOURCE)?])?;
    let running = Running::with(sandbox, set, |_| {})?;
    running.wait(HostState::Enforcing, "")?;
    let pinned = &running.pinned;
    let index = port_index(protocol::TCP, 5432).context("TCP has ports")?.to_ne_bytes();
    let class: [u8; 4] = pinned.lookup(map::PORT_CLASSES, &index)?.context("the port has a class")?;
    let mut prefix = [0u8; 24];
    prefix[..4].copy_from_slice(&160u32.to_ne_bytes());
    prefix[4..8].copy_from_slice(&class);
    let std::net::IpAddr::V4(address) = at.ip() else { bail!("not IPv4") };
    prefix[8..].copy_from_slice(&address.to_ipv6_mapped().octets());
    let (grant, cgroup_id) = (pair(SUBJECT, RESOURCE), cgroup.id()?.to_ne_bytes());
    let slot = {
        let reference: [u8; 16] = pinned.lookup(map::GRANTS, &grant)?.context("the grant is there")?;
        u32::from_ne_bytes(reference[..4].try_into()?)
    };
    const FAR: u32 = 60_000;
    let far = FAR.to_ne_bytes();

    let told = |words: &str| {
        let began = Instant::now();
        wait_for(&format!("a report of {words}"), REPAIRED_WITHIN, || {
            Ok(running.report().detail.contains(words).then_some(()))
        })
        .with_context(|| format!("after {:?} it says {:?}", began.elapsed(), running.report()))
    };
    pinned.delete(map::RESOURCES, &prefix)?;
    told("map RESOURCES: 1 removed")?;
    pinned.update(map::SUBJECTS, &cgroup_id, &pair(9, 0))?;
    told("map SUBJECTS: 1 changed")?;
    pinned.update(map::SUBJECTS, &1u64.to_ne_bytes(), &pair(SUBJECT, 0))?;
    told("map SUBJECTS: 1 added (cgroup 1)")?;
    pinned.delete(map::GRANTS, &grant)?;
    told("map GRANTS: 1 removed")?;
    pinned.set_slot(FAR, Word::Grant, 7)?;
    told("map SLOTS: 1 added (name of slot 60000)")?;
    pinned.set_slot(slot, Word::Deadline, u64::MAX)?;
    told(&format!("map SLOTS: 1 changed (deadline of slot {slot})"))?;
    pinned.set_slot(FAR, Word::IdleLimit, 5)?;
    told("map SLOTS: 1 added (idle limit of slot 60000)")?;
    pinned.set_slot(FAR, Word::Epoch, 5)?;
    told("map SLOTS: 1 changed (epoch of slot 60000)")?;
    pinned.update(map::PORT_CLASSES, &far, &1u32.to_ne_bytes())?;
    told("map PORT_CLASSES: 1 added")?;
    pinned.update(map::EXEMPT_CGROUPS, &1u64.to_ne_bytes(), &[0; 4])?;
    told("map EXEMPT_CGROUPS: 1 added (cgroup 1)")?;

    running.wait(HostState::Enforcing, "")?;
    let index: Option<[u8; 4]> = pinned.lookup(map::PORT_CLASSES, &far)?;
    ensure_eq!(index, Some([0; 4]));
    ensure_eq!(pinned.lookup::<8>(map::SUBJECTS, &1u64.to_ne_bytes())?, None);
    ensure_eq!(pinned.lookup::<8>(map::SUBJECTS, &cgroup_id)?, Some(pair(SUBJECT, 0)));
    let held: [u8; 16] = pinned.lookup(map::GRANTS, &grant)?.context("the grant is there again")?;
    let slot = pinned.slot(u32::from_ne_bytes(held[..4].try_into()?))?.context("its slot is there")?;
    let left_ns = slot.word(Word::Deadline).saturating_sub(now_boot_ns());
    ensure_eq!(left_ns > 0 && Duration::from_nanos(left_ns) < HOUR, true, "{left_ns} ns are left");
    ensure_eq!(slot.word(Word::Epoch).to_ne_bytes()[..], held[8..]);
    Ok(())
}

/// As many as one host is to hold: what is changed among them is put right in the same time.
fn fifty_thousand_grants_are_watched() -> Result<()> {
    const RESOURCES: u32 = 200;
    const SUBJECTS: u32 = 250;
    let sandbox = Sandbox::new()?;
    let address = sandbox.address();
    let at = |number: u32| SocketAddr::new(address.into(), 10_000 + number as u16);
    let resources =
        (1..=RESOURCES).map(|number| resource(number, at(number), Protocol::Tcp)).collect::<Result<_>>()?;
    let pairs = (1..=SUBJECTS).flat_map(|subject| (1..=RESOURCES).map(move |resource| (subject, resource)));
    let grants = pairs.map(|(subject, resource)| live_grant(subject, resource)).collect::<Result<_>>()?;
    let running = Running::with(sandbox, set_of(resources, SUBJECTS, grants)?, |_| {})?;
    running.wait(HostState::Enforcing, "")?;
    ensure_eq!(running.settings.grants_max >= RESOURCES * SUBJECTS, true);
    let key = pair(SUBJECTS, RESOURCES);
    let held: [u8; 16] = running.pinned.lookup(map::GRANTS, &key)?.context("the last grant")?;
    let began = Instant::now();
    running.pinned.set_slot(u32::from_ne_bytes(held[..4].try_into()?), Word::Epoch, 99)?;
    running.wait(HostState::NotEnforcing, "map SLOTS: 1 ")?;
    if began.elapsed() > REPAIRED_WITHIN {
        bail!("it took {:?}", began.elapsed());
    }
    running.wait(HostState::Enforcing, "")?;
    Ok(())
}
