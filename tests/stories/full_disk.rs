//! An agent whose disk takes nothing any more.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use proto::types::Protocol;
use tests::ensure_eq;
use tests::listener::Listener;
use tests::runner::Test;
use tests::stage::{ADMIN, Plan, Stage};

use crate::life::connect;

pub(crate) const TESTS: &[Test] = &[
    ("full_disk::what_cannot_be_written_down_is_not_confirmed", what_cannot_be_written_down_is_not_confirmed),
    (
        "full_disk::a_disk_that_nobody_writes_to_confirms_nothing",
        a_disk_that_nobody_writes_to_confirms_nothing,
    ),
];

/// Long enough for an answer that must not come.
const A_WHILE: Duration = Duration::from_secs(3);

const UNWRITTEN: &str = "the grant set cannot be written down, and is not confirmed";

/// An installation whose agent has a small file system for its state, and one resource.
fn stage() -> Result<(Stage, Listener)> {
    let stage = Stage::start_as(Plan { state_bytes: Some(8 << 20), ..Plan::default() })?;
    let listener = Listener::start(Protocol::Tcp, (stage.sandbox().address(), 0).into())?;
    let (address, port) = (listener.address().ip().to_string(), format!("tcp/{}", listener.address().port()));
    stage.cli(ADMIN)?.run(&["resource", "add", "db", "--address", &address, "--port", &port])?;
    stage.wait_until_applied()?;
    Ok((stage, listener))
}

fn what_cannot_be_written_down_is_not_confirmed() -> Result<()> {
    // 1. Alice and bob have grants, and the agent's disk fills up.
    let (mut stage, listener) = stage()?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    let bob = stage.add_subject_with_cgroup("user:bob")?;
    let grants = [stage.grant("user:alice", "db", "10m")?, stage.grant("user:bob", "db", "10m")?];
    ensure_eq!([connect(&alice, &listener)?, connect(&bob, &listener)?], ["ok", "ok"]);
    let filler = Filler::start(stage.path("agent/filler"))?;

    // 2. Alice's is revoked. Her kernel lets her through no more; but it is not said that this will stay so.
    stage.cli(ADMIN)?.run(&["revoke", &grants[0], "--comment", "incident over"])?;
    stage.wait_for_host_to_say("degraded", UNWRITTEN)?;
    ensure_eq!([connect(&alice, &listener)?, connect(&bob, &listener)?], ["EPERM", "ok"]);
    std::thread::sleep(A_WHILE);
    stage.wait_for_grant(&grants[0], "ending")?;
    stage.wait_for_event("the host's state", |event| {
        event["event"] == "agent.state_changed"
            && event["comment"].as_str().is_some_and(|comment| comment.contains(UNWRITTEN))
    })?;

    // 3. The agent is killed. The next one has no set that counts, and so nobody is let through before the control plane is heard:
    // it does not revive what was revoked.
    stage.kill_control_plane()?;
    stage.kill_agent()?;
    stage.start_agent()?;
    tests::process::wait_for("the next agent to close the gate", Duration::from_secs(30), || {
        Ok((connect(&bob, &listener)? == "EPERM").then_some(()))
    })?;
    ensure_eq!(connect(&alice, &listener)?, "EPERM");

    // 4. There is room again: bob's grant goes on, and hers is over.
    filler.end()?;
    stage.start_control_plane()?;
    stage.wait_for_grant(&grants[0], "ended")?;
    stage.wait_for_host("enforcing")?;
    ensure_eq!([connect(&alice, &listener)?, connect(&bob, &listener)?], ["EPERM", "ok"]);
    Ok(())
}

fn a_disk_that_nobody_writes_to_confirms_nothing() -> Result<()> {
    // 1. Alice has a grant, and the agent's file system becomes one that is only read.
    let (mut stage, listener) = stage()?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    let grant = stage.grant("user:alice", "db", "10m")?;
    ensure_eq!(connect(&alice, &listener)?, "ok");
    let state = stage.path("agent");
    // Not the mount itself, of which something is open for writing, but another one of the same over it.
    mount(Some(&state), &state, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, &state, None::<&str>, read_only, None::<&str>)?;

    // 2. It is revoked: not confirmed, and over in her kernel.
    stage.cli(ADMIN)?.run(&["revoke", &grant, "--comment", "incident over"])?;
    stage.wait_for_host_to_say("degraded", UNWRITTEN)?;
    ensure_eq!(connect(&alice, &listener)?, "EPERM");
    std::thread::sleep(A_WHILE);
    stage.wait_for_grant(&grant, "ending")?;

    // 3. A session that begins anew does not say that it is gone, either.
    stage.kill_control_plane()?;
    stage.start_control_plane()?;
    stage.wait_for_host_to_say("degraded", UNWRITTEN)?;
    std::thread::sleep(A_WHILE);
    stage.wait_for_grant(&grant, "ending")?;

    // 4. It can be written to again.
    umount2(&state, MntFlags::MNT_DETACH)?;
    stage.wait_for_grant(&grant, "ended")?;
    stage.wait_for_host("enforcing")
}

/// Keeps a disk full: whatever becomes free, as of events that have been acknowledged, is taken at once.
struct Filler {
    path: PathBuf,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Filler {
    fn start(path: PathBuf) -> Result<Self> {
        let mut file = File::create(&path)?;
        fill(&mut file)?;
        let ends = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ends);
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                fill(&mut file)?;
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        });
        Ok(Self { path, ends, thread: Some(thread) })
    }

    /// There is room again.
    fn end(mut self) -> Result<()> {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("it does not panic")?;
        }
        Ok(std::fs::remove_file(&self.path)?)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        // Its file goes with the file system.
        self.ends.store(true, Ordering::Relaxed);
    }
}

/// Writes until the disk refuses.
fn fill(file: &mut File) -> Result<()> {
    for bytes in [64 * 1024, 4096, 1] {
        loop {
            match file.write_all(&vec![0; bytes]) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => bail!("the disk cannot be filled: {error}"),
            }
        }
    }
    Ok(())
}
