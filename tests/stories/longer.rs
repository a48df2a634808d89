//! A grant lives longer, and whoever works by it does not notice; or its resource is frozen, and they do.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use tests::ensure_eq;
use tests::probe::{self, Attempt};
use tests::runner::Test;
use tests::stage::{ADMIN, text};

use crate::life::{connect, stage_with_resource};

pub(crate) const TESTS: &[Test] = &[
    ("longer::a_connection_goes_on_across_the_deadline_that_was", across_the_deadline_that_was),
    ("longer::what_is_frozen_ends_and_is_opened_by_nobody", frozen),
];

fn across_the_deadline_that_was() -> Result<()> {
    // 1. Alice has a grant for some seconds, and works by it: a byte every millisecond.
    let (stage, listener) = stage_with_resource()?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    let grant = stage.grant("user:alice", "db", "10s")?;
    let mut command = probe::command(&alice, Attempt::TcpStream, listener.address(), "worker")?;
    let mut worker = command.stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(worker.stdout.take().context("the worker's output")?).lines();
    ensure_eq!(lines.next().context("a line")??, "connected");
    let admin = stage.cli(ADMIN)?;
    let before = admin.json(&["grants"])?;
    let old: SystemTime = text(&before[0], "expires")?.parse::<jiff::Timestamp>()?.into();

    // 2. It is not enough. Whoever approves says yes once more; it is the same grant.
    let asked = stage.cli("user:alice")?.json(&["extend", &grant, "--for", "10m"])?;
    ensure_eq!((&asked["state"], &asked["extends"]), (&"pending".into(), &grant.as_str().into()));
    let longer = admin.json(&["approve", &text(&asked, "id")?])?;
    ensure_eq!((&longer["id"], &longer["extensions"]), (&grant.as_str().into(), &1.into()));

    // 3. The deadline that was passes, and nothing ends.
    while let Ok(left) = old.duration_since(SystemTime::now()) {
        std::thread::sleep(left + Duration::from_secs(1));
    }
    ensure_eq!(worker.try_wait()?, None);
    ensure_eq!(connect(&alice, &listener)?, "ok");
    let after = admin.json(&["grants"])?;
    ensure_eq!((&after[0]["id"], &after[0]["state"]), (&grant.as_str().into(), &"active".into()));
    let extended = stage.wait_for_event("the extension", |event| event["event"] == "grant.extended")?;
    ensure_eq!((&extended["grant"], &extended["expires"]), (&grant.as_str().into(), &after[0]["expires"]));

    // 4. Until it ends, and then her connection does.
    admin.run(&["revoke", &grant])?;
    stage.wait_for_grant(&grant, "ended")?;
    let end = lines.next().context("a line")??;
    ensure_eq!(end.starts_with('E'), true, "{end}");
    worker.wait()?;
    ensure_eq!(connect(&alice, &listener)?, "EPERM");
    Ok(())
}

fn frozen() -> Result<()> {
    // 1. Alice works by a grant.
    let (stage, listener) = stage_with_resource()?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    let grant = stage.grant("user:alice", "db", "10m")?;
    let mut command = probe::command(&alice, Attempt::TcpStream, listener.address(), "worker")?;
    let mut worker = command.stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(worker.stdout.take().context("the worker's output")?).lines();
    ensure_eq!(lines.next().context("a line")??, "connected");

    // 2. The resource is closed: her connection ends, she gets no other, and is told until when.
    let (admin, as_alice) = (stage.cli(ADMIN)?, stage.cli("user:alice")?);
    let freeze = admin.json(&["freeze", "--resource", "db", "--for", "1h", "--reason", "INC-42"])?;
    ensure_eq!(freeze["grants_ended"], 1);
    let end = lines.next().context("a line")??;
    ensure_eq!(end.starts_with('E'), true, "{end}");
    worker.wait()?;
    ensure_eq!(stage.wait_for_grant(&grant, "ended")?["end_reason"], "frozen");
    ensure_eq!(connect(&alice, &listener)?, "EPERM");
    as_alice.fails(&["request", "db", "--for", "1m", "--reason", "x"], 8, "is frozen until")?;

    // 3. It is lifted, and she gets in again.
    admin.run(&["thaw", &text(&freeze, "id")?, "--comment", "credentials replaced"])?;
    stage.grant("user:alice", "db", "1m")?;
    ensure_eq!(connect(&alice, &listener)?, "ok");
    Ok(())
}
