//! Two control planes on one database: whichever of them is killed, what was granted goes on, and the other one does all there is to do.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use proto::types::Protocol;
use tests::ensure_eq;
use tests::listener::Listener;
use tests::probe::{self, Attempt};
use tests::runner::Test;
use tests::sandbox::Cgroup;
use tests::stage::{ADMIN, Cli, Plan, Stage};

use crate::life::connect;

pub(crate) const TESTS: &[Test] =
    &[("replicas::whichever_control_plane_is_killed_the_other_goes_on", whichever_is_killed)];

/// So long an agent may take to be at another control plane.
const HOME_AGAIN: Duration = Duration::from_secs(10);

/// Somebody asks and somebody approves, at the one that is left: the kernel holds the grant in time.
fn granted_in_time(admin: &Cli, engineer: &Cli, cgroup: &Cgroup, listener: &Listener) -> Result<()> {
    let killed = Instant::now();
    ensure_eq!(connect(cgroup, listener)?, "EPERM");
    admin.grant(engineer, "db", "10m")?;
    let took = killed.elapsed();
    ensure_eq!(took < HOME_AGAIN, true, "{took:?}");
    ensure_eq!(connect(cgroup, listener)?, "ok");
    Ok(())
}

fn whichever_is_killed() -> Result<()> {
    // 1. Alice has a grant, and works by it: a byte every millisecond.
    let mut stage = Stage::start_as(Plan { has_replica: true, ..Plan::default() })?;
    let listener = Listener::start(Protocol::Tcp, (stage.sandbox().address(), 0).into())?;
    let (address, port) = (listener.address().ip().to_string(), format!("tcp/{}", listener.address().port()));
    stage.cli(ADMIN)?.run(&["resource", "add", "db", "--address", &address, "--port", &port])?;
    stage.wait_until_applied()?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    let (bob, carol) =
        (stage.add_subject_with_cgroup("user:bob")?, stage.add_subject_with_cgroup("user:carol")?);
    let grant = stage.grant("user:alice", "db", "10m")?;
    let mut command = probe::command(&alice, Attempt::TcpStream, listener.address(), "worker")?;
    let mut worker = command.stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(worker.stdout.take().context("the worker's output")?).lines();
    ensure_eq!(lines.next().context("a line")??, "connected");

    // 2. Each control plane shows the same, whichever has the agent's session.
    let (here, there) = (stage.cli(ADMIN)?, stage.cli_of_replica(ADMIN)?);
    ensure_eq!(there.json(&["grants"])?, here.json(&["grants"])?);
    ensure_eq!(&there.json(&["status"])?[0]["state"], &here.json(&["status"])?[0]["state"]);
    let who_has = ["who-has", "db"];
    ensure_eq!(there.json(&who_has)?, here.json(&who_has)?);

    // 3. The first one is killed. The second one does all there is to do.
    stage.kill_control_plane()?;
    granted_in_time(&there, &stage.cli_of_replica("user:bob")?, &bob, &listener)?;
    ensure_eq!(worker.try_wait()?, None);

    // 4. It comes back, and the second one is killed, which has the agent's session now.
    stage.start_control_plane()?;
    stage.kill_replica()?;
    granted_in_time(&here, &stage.cli("user:carol")?, &carol, &listener)?;
    ensure_eq!(worker.try_wait()?, None);
    stage.wait_for_grant(&grant, "active")?;

    // 5. Nothing has ended, until somebody ends it: and then at once.
    ensure_eq!(stage.events()?.iter().any(|event| event["event"] == "grant.ending"), false);
    here.run(&["revoke", &grant])?;
    stage.wait_for_grant(&grant, "ended")?;
    let end = lines.next().context("a line")??;
    ensure_eq!(end.starts_with('E'), true, "{end}");
    worker.wait()?;
    ensure_eq!(connect(&alice, &listener)?, "EPERM");
    ensure_eq!(connect(&bob, &listener)?, "ok");

    // 6. The record tells that sessions broke off, and has every event once.
    stage.wait_for_event("the first control plane's end", |event| {
        event["event"] == "agent.disconnected"
            && (event["reason"] == "superseded" || event["reason"] == "control_plane_lost")
    })?;
    let events = stage.events()?;
    let ids: std::collections::BTreeSet<String> =
        events.iter().map(|event| event["id"].to_string()).collect();
    ensure_eq!(ids.len(), events.len());
    Ok(())
}
