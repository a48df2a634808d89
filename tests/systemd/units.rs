//! The units as they are shipped.

use anyhow::{Context, Result, bail};
use tests::ensure_eq;
use tests::process::wait_for;
use tests::runner::Test;
use tests::stage::SOON;

use crate::host::{host, send, sh};

pub(crate) const TESTS: &[Test] = &[
    ("units::they_enforce_as_they_are_shipped", they_enforce_as_they_are_shipped),
    ("units::an_agent_that_is_killed_comes_back_and_nothing_was_open", an_agent_that_is_killed_comes_back),
    ("units::the_gate_comes_up_by_itself", the_gate_comes_up_by_itself),
];

fn property(unit: &str, name: &str) -> Result<String> {
    Ok(sh(&format!("systemctl show --value -p {name} {unit}"))?.trim().to_owned())
}

/// A service of the host's own; it is nobody's.
fn is_refused(marker: &str) -> Result<bool> {
    let mut command = std::process::Command::new("/bin/bash");
    command.args(["-c", &send(marker)]);
    host()?.gets_through(marker, command).map(|gets_through| !gets_through)
}

/// Nothing in their sandboxes is in the way: the host lacks nothing, the canary is let through by its own grant, connections are
/// on record, and neither was started twice.
fn they_enforce_as_they_are_shipped() -> Result<()> {
    let host = host()?;
    for unit in ["portcullis-control-plane", "portcullis-agent", "portcullis-gate"] {
        ensure_eq!(property(unit, "ActiveState")?, "active", "{unit}");
    }
    for unit in ["portcullis-control-plane", "portcullis-agent"] {
        ensure_eq!(property(unit, "NRestarts")?, "0", "{unit}");
    }
    // It stays, so that there is something to be read of it.
    let mut command = std::process::Command::new("/bin/bash");
    command.args(["-c", &format!("{} || {{ sleep 5; false; }}", send("as-shipped"))]);
    ensure_eq!(host.gets_through("as-shipped", command)?, false);
    let event = host.admin.wait_for_event("the denial", |event| event["event"] == "conn.deny")?;
    // What is read of other processes.
    ensure_eq!(event["connection"]["executable"], "/usr/bin/bash", "{event}");
    Ok(())
}

/// The gate stays shut meanwhile; systemd starts another agent, which takes it over.
fn an_agent_that_is_killed_comes_back() -> Result<()> {
    let host = host()?;
    let pid = property("portcullis-agent", "MainPID")?;
    sh("systemctl kill --signal=KILL --kill-who=main portcullis-agent")?;
    ensure_eq!(is_refused("killed")?, true);
    wait_for("another agent", SOON, || {
        let now = property("portcullis-agent", "MainPID")?;
        Ok((now != "0" && now != pid).then_some(()))
    })?;
    host.wait_until_enforcing()?;
    ensure_eq!(is_refused("another")?, true);
    Ok(())
}

/// What is remembered is shut by the unit that runs at boot, with neither agent nor control plane.
fn the_gate_comes_up_by_itself() -> Result<()> {
    let host = host()?;
    sh("systemctl stop portcullis-agent portcullis-control-plane")?;
    ensure_eq!(is_refused("stopped")?, true);
    // As after a boot: nothing is left of it.
    sh("systemctl stop portcullis-gate && portcullis-agent detach")?;
    ensure_eq!(is_refused("detached")?, false);
    sh("systemctl start portcullis-gate")?;
    ensure_eq!(is_refused("raised")?, true);
    sh("systemctl start portcullis-control-plane portcullis-agent")?;
    host.wait_until_enforcing().context("after the gate came up by itself")?;
    let lifted = host.admin.wait_for_event("that it was lifted", |event| event["event"] == "agent.detached");
    if lifted.is_err() {
        let kinds: Vec<String> =
            host.admin.events()?.iter().map(|event| event["event"].to_string()).collect();
        bail!("no event says that the gate was lifted, of {}", kinds.join(" "));
    }
    Ok(())
}
