//! Something is not as it should be on a host, and whoever asks for the status sees it.

use anyhow::Result;
use nix::errno::Errno;
use tests::ensure_eq;
use tests::runner::Test;
use tests::stage::HOST;
use tests::tampering::Pinned;

use crate::life::{connect, stage_with_resource};

pub(crate) const TESTS: &[Test] = &[
    ("proof::tampering_is_seen_in_the_status", tampering_is_seen),
    ("proof::a_host_that_cannot_open_cgroups_says_so", a_host_that_cannot_open_cgroups_says_so),
];

fn tampering_is_seen() -> Result<()> {
    let (mut stage, listener) = stage_with_resource()?;
    let nobody = stage.sandbox().make_cgroup("nobody")?;
    let pinned = Pinned::at(&stage.sandbox().pin_dir());
    // 1. Root detaches a program. The status turns red, and says what happened.
    pinned.detach("connect4")?;
    stage.wait_for_host_to_say("not_enforcing", "connect4 was detached; put back")?;
    // 2. It was put back at once: nobody gets through.
    ensure_eq!(connect(&nobody, &listener)?, "EPERM");
    stage.wait_for_host("enforcing")?;
    // 3. The record has it, with the state that it led to.
    stage.wait_for_event("the tampering in the record", |event| {
        event["event"] == "host.drift"
            && event["host"] == HOST
            && event["comment"] == "connect4 was detached; put back"
    })?;
    stage.wait_for_event("the change of state in the record", |event| {
        event["event"] == "agent.state_changed" && event["reason"] == "not_enforcing"
    })?;
    Ok(())
}

fn a_host_that_cannot_open_cgroups_says_so() -> Result<()> {
    let (mut stage, listener) = stage_with_resource()?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    stage.grant("user:alice", "db", "10m")?;
    ensure_eq!(connect(&alice, &listener)?, "ok");
    // systemd's filters say the first of these, those of container runtimes the other.
    for error in [Errno::ENOSYS, Errno::EPERM] {
        // 1. The agent starts again under a filter that takes from it how it opens cgroups. The status names what is missing.
        stage.kill_agent()?;
        stage.start_agent_without_openat2(error)?;
        stage.wait_for_host_to_say("degraded", "cgroups cannot be opened")?;
        // 2. Nobody is taken for somebody: the gate is shut even to whoever has a grant.
        ensure_eq!(connect(&alice, &listener)?, "EPERM", "{error}");
        // 3. It starts without the filter, and she is let through by the same grant.
        stage.kill_agent()?;
        stage.start_agent()?;
        stage.wait_for_host("enforcing")?;
        stage.wait_until_applied()?;
        ensure_eq!(connect(&alice, &listener)?, "ok", "{error}");
    }
    Ok(())
}
