//! Denied, requested, approved, connected, ended, audited.

use anyhow::{Context, Result};
use proto::types::Protocol;
use serde_json::Value;
use tests::ensure_eq;
use tests::listener::Listener;
use tests::probe::{self, Attempt};
use tests::runner::Test;
use tests::sandbox::{Cgroup, remove_cgroup};
use tests::stage::{ADMIN, HOST, Stage, text};

pub(crate) const TESTS: &[Test] = &[
    ("life::denied_requested_approved_connected_revoked_audited", denied_to_audited),
    ("life::the_holder_gives_it_back", the_holder_gives_it_back),
    ("life::a_denied_request_opens_nothing", a_denied_request_opens_nothing),
    ("life::a_cgroup_that_comes_later_is_bound", a_cgroup_that_comes_later_is_bound),
    ("life::a_unix_user_is_found_by_its_slice", a_unix_user_is_found_by_its_slice),
    ("life::a_contested_cgroup_is_nobodys", a_contested_cgroup_is_nobodys),
    ("life::detaching_lifts_the_gate_on_the_record", detaching_lifts_the_gate_on_the_record),
];

/// A stage on which the sandbox's address is protected as `db`, with a server behind it.
pub(crate) fn stage_with_resource() -> Result<(Stage, Listener)> {
    let stage = Stage::start()?;
    let listener = Listener::start(Protocol::Tcp, (stage.sandbox().address(), 0).into())?;
    let (address, port) = (listener.address().ip().to_string(), format!("tcp/{}", listener.address().port()));
    stage.cli(ADMIN)?.run(&["resource", "add", "db", "--address", &address, "--port", &port])?;
    stage.wait_until_applied()?;
    Ok((stage, listener))
}

pub(crate) fn connect(cgroup: &Cgroup, listener: &Listener) -> Result<String> {
    probe::run(cgroup, Attempt::Tcp, listener.address(), "marker")
}

fn denied_to_audited() -> Result<()> {
    // 1. A database is protected; alice's processes are in a cgroup of hers.
    let (stage, listener) = stage_with_resource()?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    stage.add_subject("user:bob", "approver", &[])?;

    // 2. Without a grant the kernel refuses her.
    wait_until_known(&stage, &alice, &listener)?;

    // 3. She asks. She cannot approve it herself; bob can.
    let (as_alice, as_bob) = (stage.cli("user:alice")?, stage.cli("user:bob")?);
    let request = as_alice.json(&["request", "db", "--for", "10m", "--reason", "slow query"])?;
    let request_id = text(&request, "id")?;
    as_alice.fails(&["approve", &request_id], 6, "approve")?;
    ensure_eq!(connect(&alice, &listener)?, "EPERM");
    let grant = text(&as_bob.json(&["approve", &request_id, "--comment", "go ahead"])?, "id")?;

    // 4. As soon as it is active, she gets through.
    stage.wait_for_grant(&grant, "active")?;
    ensure_eq!(connect(&alice, &listener)?, "ok");

    // 5. Bob takes it away, and she is refused again.
    as_bob.run(&["revoke", &grant, "--comment", "incident over"])?;
    stage.wait_for_grant(&grant, "ended")?;
    ensure_eq!(connect(&alice, &listener)?, "EPERM");

    // 6. The record tells it, in this order, with who, what, where and why.
    let last = stage.wait_for_event("the last denial", |event| {
        event["event"] == "conn.deny"
            && event["subject"] == "user:alice"
            && event["reason"] == "no_live_grant"
            && { event["position"].as_u64() > position_of(&stage, "grant.ended") }
    })?;
    let events = stage.events()?;
    let story: Vec<(&str, &str)> = events
        .iter()
        .filter(|event| event["subject"] == "user:alice" || event["request"] == request_id)
        .map(|event| (event["event"].as_str().unwrap_or(""), event["reason"].as_str().unwrap_or("")))
        .filter(|(event, _)| {
            let aside = ["subject", "token", "workload.entered", "call.refused"];
            !aside.iter().any(|aside| event.starts_with(aside))
        })
        .collect();
    let denied_at_first = story.iter().take_while(|(event, _)| *event == "conn.deny").count();
    ensure_eq!(denied_at_first >= 1, true, "{story:?}");
    // The host's receipt comes by another way, and so before or after the grant's end.
    let milestones: Vec<&str> = story
        .iter()
        .map(|(event, _)| *event)
        .filter(|event| !event.starts_with("conn.") && *event != "grant.receipt")
        .collect();
    ensure_eq!(
        milestones,
        [
            "request.created",
            "request.approved",
            "grant.issued",
            "grant.active",
            "grant.ending",
            "grant.ended"
        ]
    );
    let allow = events.iter().find(|event| event["event"] == "conn.allow").context("an allow")?;
    ensure_eq!((allow["grant"].as_str(), allow["reason"].as_str()), (Some(grant.as_str()), Some("granted")));
    ensure_eq!(last["host"], HOST);
    ensure_eq!(last["resource"], "db");
    ensure_eq!(last["connection"]["cgroup_path"], Value::from(alice.path.as_str()));
    ensure_eq!(last["connection"]["port"], listener.address().port());
    ensure_eq!(
        last["connection"]["command"].as_str().map(|command| command.starts_with("stories-")),
        Some(true)
    );
    Ok(())
}

/// Waits until a denial of this cgroup is known to be the subject's: the agent has bound it.
fn wait_until_known(stage: &Stage, cgroup: &Cgroup, listener: &Listener) -> Result<()> {
    tests::process::wait_for("the cgroup to be bound", tests::stage::SOON, || {
        ensure_eq!(connect(cgroup, listener)?, "EPERM");
        let events = stage.events()?;
        Ok(events
            .iter()
            .any(|event| event["event"] == "conn.deny" && event["reason"] == "no_live_grant")
            .then_some(()))
    })
}

fn position_of(stage: &Stage, kind: &str) -> Option<u64> {
    stage.events().ok()?.iter().find(|event| event["event"] == kind)?["position"].as_u64()
}

fn the_holder_gives_it_back() -> Result<()> {
    let (stage, listener) = stage_with_resource()?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    stage.add_subject("user:carol", "member", &[])?;
    let grant = stage.grant("user:alice", "db", "10m")?;
    ensure_eq!(connect(&alice, &listener)?, "ok");
    stage.cli("user:carol")?.fails(&["release", &grant], 6, "release")?;
    stage.cli("user:alice")?.run(&["release", &grant])?;
    let ended = stage.wait_for_grant(&grant, "ended")?;
    ensure_eq!(ended["end_reason"], "released");
    ensure_eq!(connect(&alice, &listener)?, "EPERM");
    Ok(())
}

fn a_denied_request_opens_nothing() -> Result<()> {
    let (stage, listener) = stage_with_resource()?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    let request = stage.cli("user:alice")?.json(&["request", "db", "--for", "10m", "--reason", "curious"])?;
    let id = text(&request, "id")?;
    let admin = stage.cli(ADMIN)?;
    admin.run(&["deny", &id, "--comment", "not without a ticket"])?;
    admin.fails(&["approve", &id], 8, "denied")?;
    ensure_eq!(connect(&alice, &listener)?, "EPERM");
    ensure_eq!(admin.json(&["grants", "--all"])?, Value::from(Vec::<Value>::new()));
    Ok(())
}

fn a_cgroup_that_comes_later_is_bound() -> Result<()> {
    let (stage, listener) = stage_with_resource()?;
    let base = stage.sandbox().make_cgroup("")?;
    let path = format!("{}/later", base.path);
    stage.add_subject("user:alice", "member", &[&format!("cgroup:{path}")])?;
    stage.grant("user:alice", "db", "10m")?;
    // It comes, it goes, and another one comes in its place.
    for _ in 0..2 {
        let cgroup = stage.sandbox().make_cgroup_at(path.clone())?;
        tests::process::wait_for("the new cgroup to be bound", tests::stage::SOON, || {
            Ok((connect(&cgroup, &listener)? == "ok").then_some(()))
        })?;
        remove_cgroup(&cgroup.directory)?;
    }
    Ok(())
}

fn a_unix_user_is_found_by_its_slice() -> Result<()> {
    let (stage, listener) = stage_with_resource()?;
    // An account that no machine has; systemd would have made its slice.
    let uid = 4_000_000_000 + u64::from(std::process::id());
    let slice = stage.sandbox().make_cgroup_at(format!("/user.slice/user-{uid}.slice"))?;
    let _guard = Removed(&slice);
    let session = stage.sandbox().make_cgroup_at(format!("{}/session-1.scope", slice.path))?;
    stage.add_subject("user:alice", "member", &[&format!("unix-user:{uid}")])?;
    stage.grant("user:alice", "db", "10m")?;
    ensure_eq!(connect(&session, &listener)?, "ok");
    Ok(())
}

/// A cgroup outside the sandbox's own, taken away at the end.
struct Removed<'a>(&'a Cgroup);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        let slices = self.0.directory.parent().map(ToOwned::to_owned);
        let _ = remove_cgroup(&self.0.directory);
        // `user.slice` goes too if nothing else is in it; the kernel refuses otherwise.
        let _ = slices.map(std::fs::remove_dir);
    }
}

fn a_contested_cgroup_is_nobodys() -> Result<()> {
    let (mut stage, listener) = stage_with_resource()?;
    let cgroup = stage.add_subject_with_cgroup("user:alice")?;
    stage.grant("user:alice", "db", "10m")?;
    ensure_eq!(connect(&cgroup, &listener)?, "ok");
    // Another way to name the same cgroup, for somebody else.
    let uid = 4_100_000_000 + u64::from(std::process::id());
    let slice = stage.sandbox().make_cgroup_at(format!("/user.slice/user-{uid}.slice"))?;
    let _guard = Removed(&slice);
    stage.add_subject("user:bob", "member", &[&format!("cgroup:{}", slice.path)])?;
    stage.add_subject("user:carol", "member", &[&format!("unix-user:{uid}")])?;
    stage.wait_for_host("degraded")?;
    let status = stage.cli(ADMIN)?.run(&["status"])?;
    ensure_eq!(status.contains("is claimed by 2 subjects"), true, "{status}");
    // Nobody else is disturbed.
    ensure_eq!(connect(&cgroup, &listener)?, "ok");
    Ok(())
}

fn detaching_lifts_the_gate_on_the_record() -> Result<()> {
    let (mut stage, listener) = stage_with_resource()?;
    let nobody = stage.sandbox().make_cgroup("nobody")?;
    let agent = tests::stage::binary("portcullis-agent")?;
    let configuration = stage.path("agent.toml");
    let detach = || {
        let mut command = std::process::Command::new(&agent);
        command.args(["detach", "--config"]).arg(&configuration);
        command
    };
    // 1. Not under a running agent.
    ensure_eq!(
        tests::process::output(&mut detach()).is_err_and(|error| error.to_string().contains("stop it first")),
        true
    );
    // 2. Stopping the agent opens nothing.
    stage.agent()?.stop()?;
    ensure_eq!(connect(&nobody, &listener)?, "EPERM");
    // 3. Detaching does, at once.
    tests::process::output(&mut detach())?;
    ensure_eq!(connect(&nobody, &listener)?, "ok");
    // 4. The next agent puts it up again, and tells that it was down.
    stage.start_agent()?;
    stage.wait_for_event("the detachment in the record", |event| event["event"] == "agent.detached")?;
    stage.wait_for_host("enforcing")?;
    ensure_eq!(connect(&nobody, &listener)?, "EPERM");
    Ok(())
}
