//! Somebody tampers with the gate of a host, and whoever asks for the status sees it.

use anyhow::Result;
use tests::ensure_eq;
use tests::runner::Test;
use tests::stage::HOST;
use tests::tampering::Pinned;

use crate::life::{connect, stage_with_resource};

pub(crate) const TESTS: &[Test] = &[("proof::tampering_is_seen_in_the_status", tampering_is_seen)];

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
