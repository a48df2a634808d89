//! How resources are guarded, and grants that end by themselves.

use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use proto::types::Protocol;
use serde_json::{Value, json};
use tests::ensure_eq;
use tests::listener::Listener;
use tests::probe::{self, Attempt};
use tests::process::{in_cgroup, wait_for};
use tests::runner::Test;
use tests::sandbox::Cgroup;
use tests::stage::{ADMIN, SOON, Stage, text};

use crate::life::{connect, stage_with_resource};

pub(crate) const TESTS: &[Test] = &[
    ("options::how_a_resource_is_guarded_is_changed_on_the_record", changed_on_the_record),
    ("options::what_is_wrong_is_named_and_changes_nothing", wrong_values),
    ("options::a_resource_is_removed_once_nobody_holds_a_grant", removed),
    ("options::any_local_address_is_protected", any_local_address),
    ("options::an_idle_grant_ends", an_idle_grant_ends),
    ("options::a_grant_ends_with_its_task", a_grant_ends_with_its_task),
    ("options::what_ended_on_a_host_does_not_come_back", what_ended_does_not_come_back),
];

fn changed_on_the_record() -> Result<()> {
    // 1. A resource is added to be observed only: nobody is refused, and the record tells who would be.
    let stage = Stage::start()?;
    let listener = Listener::start(Protocol::Tcp, (stage.sandbox().address(), 0).into())?;
    let (address, port) = (listener.address().ip().to_string(), format!("tcp/{}", listener.address().port()));
    let admin = stage.cli(ADMIN)?;
    admin.run(&["resource", "add", "db", "--address", &address, "--port", &port, "--mode", "observe"])?;
    ensure_eq!(options(&admin.json(&["resource", "list"])?), json!(["observe", false, false]));
    stage.wait_until_applied()?;
    let nobody = stage.sandbox().make_cgroup("nobody")?;
    ensure_eq!(connect(&nobody, &listener)?, "ok");
    stage.wait_for_event("who would be denied", |event| event["event"] == "conn.would_deny")?;

    // 2. It is enforced, and strictly; every host gets it, and whoever has no grant is refused.
    let changed = admin.json(&["resource", "set", "db", "--mode", "enforce", "--strict"])?;
    ensure_eq!(options(&json!([changed])), json!(["enforce", true, false]));
    stage.wait_until_applied()?;
    ensure_eq!(connect(&nobody, &listener)?, "EPERM");
    stage.wait_for_event("who is denied", |event| event["event"] == "conn.deny")?;

    // 3. What is so already changes nothing; what is not named stays.
    admin.run(&["resource", "set", "db", "--mode", "enforce"])?;
    admin.run(&["resource", "set", "db", "--strict=false", "--check-senders"])?;
    ensure_eq!(options(&admin.json(&["resource", "list"])?), json!(["enforce", false, true]));

    // 4. The record says who changed what.
    let changes: Vec<Value> =
        stage.events()?.into_iter().filter(|event| event["event"] == "resource.changed").collect();
    let told: Vec<&Value> = changes.iter().map(|event| &event["changes"]).collect();
    let change = |setting, was, is| json!({"setting": setting, "was": was, "is": is});
    let expected = [
        json!([change("mode", "observe", "enforce"), change("strict", "false", "true")]),
        json!([change("strict", "true", "false"), change("check_senders", "false", "true")]),
    ];
    ensure_eq!(told, expected.iter().collect::<Vec<_>>());
    ensure_eq!((&changes[0]["resource"], &changes[0]["actor"]), (&json!("db"), &json!(ADMIN)));
    let line = admin.run(&["audit", "tail", "--last", "20"])?;
    ensure_eq!(line.contains("mode observe → enforce"), true, "{line}");
    Ok(())
}

/// Mode, strict and check senders of the first resource.
fn options(resources: &Value) -> Value {
    let resource = &resources[0];
    json!([resource["mode"], resource["strict"], resource["check_senders"]])
}

fn wrong_values() -> Result<()> {
    let (stage, _listener) = stage_with_resource()?;
    stage.add_subject("user:alice", "member", &[])?;
    let (admin, alice) = (stage.cli(ADMIN)?, stage.cli("user:alice")?);
    let before = stage.events()?.len();
    admin.fails(&["resource", "set", "nope", "--strict"], 7, "nope")?;
    admin.fails(&["resource", "set", "db"], 2, "--mode")?;
    admin.fails(&["resource", "set", "db", "--mode", "ignore"], 2, "ignore")?;
    admin.fails(&["resource", "remove", "nope"], 7, "nope")?;
    let local = ["resource", "add", "x", "--address", "local", "--port", "tcp/1"];
    alice.fails(&local, 6, "administrator")?;
    alice.fails(&["resource", "set", "db", "--mode", "observe"], 6, "administrator")?;
    alice.fails(&["resource", "remove", "db"], 6, "administrator")?;
    let request =
        |more: &[&'static str]| [&["request", "db", "--for", "1m", "--reason", "r"][..], more].concat();
    alice.fails(&request(&["--idle", "1m"]), 2, "is not less than the duration")?;
    alice.fails(&request(&["--idle", "0s"]), 2, "0s")?;
    alice.fails(&request(&["--while-running", "job"]), 2, "is not absolute")?;
    let refused_calls = |event: &Value| event["event"] == "call.refused";
    let changes = stage.events()?.into_iter().skip(before).filter(|event| !refused_calls(event)).count();
    ensure_eq!(changes, 0, "a refused call changed something");

    // A cgroup is on one host: with two of them known, one has to be named.
    let token = stage.path("other.token").display().to_string();
    admin.run(&["host", "add", "stage-2", "--new-token-file", &token])?;
    alice.fails(&request(&["--while-running", "/job"]), 2, "the request is for 2")?;
    alice.run(&request(&["--while-running", "/job", "--host", "stage-1"]))?;
    Ok(())
}

fn removed() -> Result<()> {
    // 1. A database, a grant for it, and another wish.
    let (stage, listener) = stage_with_resource()?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    let grant = stage.grant("user:alice", "db", "10m")?;
    let as_alice = stage.cli("user:alice")?;
    let wish = as_alice.json(&["request", "db", "--for", "1m", "--reason", "more"])?;
    let nobody = stage.sandbox().make_cgroup("nobody")?;
    ensure_eq!(connect(&nobody, &listener)?, "EPERM");

    // 2. It cannot be removed under somebody's feet.
    let admin = stage.cli(ADMIN)?;
    admin.fails(&["resource", "remove", "db"], 8, &grant)?;
    admin.run(&["revoke", &grant])?;
    stage.wait_for_grant(&grant, "ended")?;

    // 3. Once it is, everybody reaches it, and no grant for it can be made any more.
    admin.run(&["resource", "remove", "db"])?;
    stage.wait_until_applied()?;
    ensure_eq!(connect(&nobody, &listener)?, "ok");
    ensure_eq!(admin.json(&["resource", "list"])?, json!([]));
    admin.fails(&["approve", &text(&wish, "id")?], 8, "was removed")?;
    as_alice.fails(&["request", "db", "--for", "1m", "--reason", "r"], 7, "db")?;
    admin.fails(&["resource", "remove", "db"], 7, "db")?;
    let event = stage.wait_for_event("the removal", |event| event["event"] == "resource.removed")?;
    ensure_eq!((&event["resource"], &event["actor"]), (&json!("db"), &json!(ADMIN)));

    // 4. The name can be given again, to another destination; the past keeps its own.
    let (address, port) = (listener.address().ip().to_string(), format!("tcp/{}", listener.address().port()));
    admin.run(&["resource", "add", "db", "--address", &address, "--port", &port])?;
    stage.grant("user:alice", "db", "10m")?;
    ensure_eq!(connect(&alice, &listener)?, "ok");
    ensure_eq!(connect(&nobody, &listener)?, "EPERM");
    Ok(())
}

fn any_local_address() -> Result<()> {
    // 1. A service listens on every address of this host.
    let stage = Stage::start()?;
    let listener = Listener::start(Protocol::Tcp, ([0, 0, 0, 0], 0).into())?;
    let port = format!("tcp/{}", listener.address().port());
    let admin = stage.cli(ADMIN)?;
    admin.run(&["resource", "add", "own", "--address", "local", "--port", &port])?;
    stage.wait_until_applied()?;
    ensure_eq!(admin.json(&["resource", "list"])?[0]["addresses"], json!(["local"]));

    // 2. None of them is a way round the gate.
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    let mut addresses = agent::addresses::LocalAddresses::default();
    addresses.look(true);
    ensure_eq!(addresses.error(), None);
    let single = |prefix: &proto::types::Prefix| prefix.to_string().parse::<std::net::Ipv4Addr>().ok();
    let mut known: Vec<std::net::Ipv4Addr> = addresses.known().iter().filter_map(single).collect();
    known.push(stage.sandbox().address());
    for address in &known {
        let to = (*address, listener.address().port()).into();
        let result = probe::run(&alice, Attempt::Tcp, to, "marker")?;
        // Nobody connects to a broadcast address, gate or not.
        ensure_eq!(
            ["EPERM", "EACCES", "ENETUNREACH"].contains(&result.as_str()),
            true,
            "{address}: {result}"
        );
    }

    // 3. A grant opens them.
    stage.grant("user:alice", "own", "10m")?;
    let to = (stage.sandbox().address(), listener.address().port()).into();
    ensure_eq!(probe::run(&alice, Attempt::Tcp, to, "marker")?, "ok");
    Ok(())
}

/// Asks for access with more arguments, has it approved, and waits until it is active: the grant's id.
fn grant_with(stage: &Stage, more: &[&str]) -> Result<String> {
    let request = [&["request", "db", "--for", "10m", "--reason", "a story needs it"][..], more].concat();
    let request = text(&stage.cli("user:alice")?.json(&request)?, "id")?;
    let grant = text(&stage.cli(ADMIN)?.json(&["approve", &request])?, "id")?;
    stage.wait_for_grant(&grant, "active")?;
    Ok(grant)
}

fn wait_until_closed(alice: &Cgroup, listener: &Listener, within: Duration) -> Result<()> {
    wait_for("the door to close", within, || Ok((connect(alice, listener)? == "EPERM").then_some(())))
}

fn an_idle_grant_ends() -> Result<()> {
    // 1. Ten minutes, unless nothing happens for three seconds.
    let (stage, listener) = stage_with_resource()?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    let grant = grant_with(&stage, &["--idle", "3s"])?;
    let shown = stage.wait_for_grant(&grant, "active")?;
    ensure_eq!(shown["idle_s"], json!(3));

    // 2. While she works it goes on, well beyond the limit.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(6) {
        ensure_eq!(connect(&alice, &listener)?, "ok", "after {:?}", began.elapsed());
        std::thread::sleep(Duration::from_millis(300));
    }

    // 3. She stops, and the host ends it; the control plane and the record know why.
    let ended = stage.wait_for_grant(&grant, "ended")?;
    ensure_eq!(ended["end_reason"], json!("idle"));
    ensure_eq!(connect(&alice, &listener)?, "EPERM");
    let is_of_grant = |kind: &'static str| {
        let grant = grant.clone();
        move |event: &Value| event["event"] == kind && event["grant"] == grant.as_str()
    };
    let event = stage.wait_for_event("the end in the record", is_of_grant("grant.ended"))?;
    ensure_eq!((&event["reason"], &event["actor"]), (&json!("idle"), &json!("host:stage-1")));
    let receipt = stage.wait_for_event("the receipt", is_of_grant("grant.receipt"))?;
    ensure_eq!(receipt["reason"], json!("idle"));
    Ok(())
}

/// A process that is nothing but there, ended when dropped.
struct Task(Child);

impl Task {
    fn start(cgroup: &Cgroup) -> Result<Self> {
        let child = in_cgroup(cgroup, "/bin/sleep").arg("600").spawn().context("cannot start a task")?;
        let task = Self(child);
        let events = cgroup.directory.join("cgroup.events");
        wait_for("the task to be in its cgroup", SOON, || {
            Ok(std::fs::read_to_string(&events)?.contains("populated 1").then_some(()))
        })?;
        Ok(task)
    }

    fn end(mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn a_grant_ends_with_its_task() -> Result<()> {
    // 1. A job runs in a cgroup, and its grant lasts as long as it does.
    let (stage, listener) = stage_with_resource()?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    let job = stage.sandbox().make_cgroup("job")?;
    let task = Task::start(&job)?;
    let grant = grant_with(&stage, &["--while-running", &job.path])?;
    ensure_eq!(connect(&alice, &listener)?, "ok");

    // 2. The job ends, and within a second its access has.
    task.end()?;
    let ended = Instant::now();
    wait_until_closed(&alice, &listener, SOON)?;
    let took = ended.elapsed();
    ensure_eq!(took < Duration::from_secs(1), true, "it took {took:?}");
    ensure_eq!(stage.wait_for_grant(&grant, "ended")?["end_reason"], json!("task_exit"));
    let event = stage.wait_for_event("the end in the record", |event| {
        event["event"] == "grant.ended" && event["grant"] == grant.as_str()
    })?;
    ensure_eq!((&event["reason"], &event["actor"]), (&json!("task_exit"), &json!("host:stage-1")));

    // 3. For a job that has ended before it was approved nothing opens at all, and who waits is told.
    let cli = stage.cli("user:alice")?;
    let wish = ["request", "db", "--for", "1m", "--reason", "r", "--while-running", &job.path];
    let request = text(&cli.json(&wish)?, "id")?;
    let late = text(&stage.cli(ADMIN)?.json(&["approve", &request])?, "id")?;
    ensure_eq!(stage.wait_for_grant(&late, "ended")?["end_reason"], json!("task_exit"));
    let active = |event: &Value| event["event"] == "grant.active" && event["grant"] == late.as_str();
    ensure_eq!(stage.events()?.iter().any(active), false, "it was never active");
    Ok(())
}

fn what_ended_does_not_come_back() -> Result<()> {
    // 1. The control plane is gone when the job ends; the host ends the grant all the same.
    let (mut stage, listener) = stage_with_resource()?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    let job = stage.sandbox().make_cgroup("job")?;
    let task = Task::start(&job)?;
    let grant = grant_with(&stage, &["--while-running", &job.path])?;
    stage.kill_control_plane()?;
    task.end()?;
    wait_until_closed(&alice, &listener, SOON)?;

    // 2. The agent crashes, and another job is in the cgroup when the next one starts. Nothing comes back.
    stage.kill_agent()?;
    let _another = Task::start(&job)?;
    stage.start_agent()?;
    let process = stage.agent()?;
    wait_for("the agent to be up", SOON, || {
        process.ensure_running()?;
        Ok(process.log().contains("the gate is up").then_some(()))
    })?;
    ensure_eq!(connect(&alice, &listener)?, "EPERM");

    // 3. The control plane comes back, and hears of it.
    stage.start_control_plane()?;
    ensure_eq!(stage.wait_for_grant(&grant, "ended")?["end_reason"], json!("task_exit"));
    ensure_eq!(connect(&alice, &listener)?, "EPERM");
    Ok(())
}
