//! Somebody is gone for a while: the gate stays as it was, and nothing is lost from the record.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;
use tests::ensure_eq;
use tests::runner::Test;
use tests::stage::{ADMIN, SOON, Stage};

use crate::life::{connect, stage_with_resource};

pub(crate) const TESTS: &[Test] = &[
    ("outages::without_the_control_plane_grants_live_on_and_no_event_is_lost", control_plane_gone),
    ("outages::an_agent_that_crashed_goes_on_where_it_was", agent_gone),
    ("outages::an_agent_starts_without_a_control_plane", agent_starts_alone),
];

/// The host's events, checked to be numbered without a hole and without a repeat.
fn host_events(stage: &Stage) -> Result<Vec<Value>> {
    let mut next: BTreeMap<String, u64> = BTreeMap::new();
    let mut events = Vec::new();
    for event in stage.events()? {
        let id = event["id"].as_str().context("an event's id")?.to_owned();
        let (source, sequence) = id.rsplit_once('/').context("an id has parts")?;
        let expected = next.entry(source.to_owned()).or_insert(1);
        ensure_eq!(sequence.parse::<u64>()?, *expected, "{id}");
        *expected += 1;
        events.push(event);
    }
    Ok(events)
}

fn count(events: &[Value], kind: &str) -> usize {
    events.iter().filter(|event| event["event"] == kind).count()
}

/// Waits until that many verdicts of a kind are in the record, and sees that no more come.
fn wait_for_count(stage: &Stage, kind: &str, expected: usize) -> Result<()> {
    tests::process::wait_for(&format!("{expected} of {kind}"), SOON, || {
        Ok((count(&host_events(stage)?, kind) >= expected).then_some(()))
    })?;
    ensure_eq!(count(&host_events(stage)?, kind), expected, "{kind}");
    Ok(())
}

fn control_plane_gone() -> Result<()> {
    const TIMES: usize = 20;
    // 1. Alice has a grant, bob has none.
    let (mut stage, listener) = stage_with_resource()?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    let bob = stage.add_subject_with_cgroup("user:bob")?;
    let grant = stage.grant("user:alice", "db", "10m")?;
    let denied_before = count(&host_events(&stage)?, "conn.deny");

    // 2. The control plane crashes. The gate is as it was.
    stage.kill_control_plane()?;
    for _ in 0..TIMES {
        ensure_eq!(connect(&alice, &listener)?, "ok");
        ensure_eq!(connect(&bob, &listener)?, "EPERM");
    }

    // 3. It comes back, and hears of every single verdict once.
    stage.start_control_plane()?;
    stage.wait_for_host("enforcing")?;
    wait_for_count(&stage, "conn.allow", TIMES)?;
    let denied = count(&host_events(&stage)?, "conn.deny");
    ensure_eq!(denied >= denied_before + TIMES, true, "{denied} of {denied_before} + {TIMES}");

    // 4. The grant is still what it was, and can be ended.
    stage.wait_for_grant(&grant, "active")?;
    stage.cli(ADMIN)?.run(&["revoke", &grant])?;
    stage.wait_for_grant(&grant, "ended")?;
    ensure_eq!(connect(&alice, &listener)?, "EPERM");
    Ok(())
}

fn agent_gone() -> Result<()> {
    const TIMES: usize = 20;
    let (mut stage, listener) = stage_with_resource()?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    let nobody = stage.sandbox().make_cgroup("nobody")?;
    let grant = stage.grant("user:alice", "db", "10m")?;

    // 1. The agent crashes. The gate stays up, and records.
    stage.kill_agent()?;
    for _ in 0..TIMES {
        ensure_eq!(connect(&alice, &listener)?, "ok");
        ensure_eq!(connect(&nobody, &listener)?, "EPERM");
    }
    stage.wait_for_host("unreachable")?;

    // 2. What is ended meanwhile is ending, not ended: nobody has confirmed it.
    stage.cli(ADMIN)?.run(&["revoke", &grant])?;
    stage.wait_for_grant(&grant, "ending")?;
    ensure_eq!(connect(&alice, &listener)?, "ok");

    // 3. The next agent takes the gate over, ends the grant, and ships what the kernel had recorded.
    stage.start_agent()?;
    stage.wait_for_grant(&grant, "ended")?;
    ensure_eq!(connect(&alice, &listener)?, "EPERM");
    wait_for_count(&stage, "conn.allow", TIMES + 1)?;
    let events = host_events(&stage)?;
    ensure_eq!(count(&events, "agent.started"), 2);
    ensure_eq!(count(&events, "audit.gap"), 0);
    let named =
        events.iter().filter(|event| event["event"] == "conn.allow" && event["subject"] == "user:alice");
    ensure_eq!(named.count(), TIMES + 1, "verdicts from the time without an agent have names");
    Ok(())
}

/// What was protected and granted is remembered, though nobody can be asked.
fn agent_starts_alone() -> Result<()> {
    let (mut stage, listener) = stage_with_resource()?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    let nobody = stage.sandbox().make_cgroup("nobody")?;
    stage.grant("user:alice", "db", "10m")?;
    stage.kill_control_plane()?;
    stage.kill_agent()?;
    stage.start_agent()?;
    let process = stage.agent()?;
    tests::process::wait_for("the agent to be up", SOON, || {
        process.ensure_running()?;
        Ok(process.log().contains("no session with the control plane").then_some(()))
    })?;
    ensure_eq!(connect(&alice, &listener)?, "ok");
    ensure_eq!(connect(&nobody, &listener)?, "EPERM");
    Ok(())
}
