//! An agent that is killed, again and again, while connections are tried faster than it can tell: each of them is in its record,
//! once, or in a gap that says how many are not.

use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use agent::clock::now_boot_ns;
use agent::memory::{Memory, MemoryFile};
use agent::observe;
use agent::spool::{Cursor, Spool};
use anyhow::{Context, Result, bail};
use proto::types::{AuditEvent, EventKind, GrantSet, Protocol};
use tests::ensure_eq;
use tests::listener::Listener;
use tests::other_agent;
use tests::probe::{self, Attempt};
use tests::process::{Background, wait_for};
use tests::runner::Test;
use tests::sandbox::Sandbox;
use uuid::Uuid;

use crate::fixture::{RESOURCE, resource};

pub(crate) const TESTS: &[Test] =
    &[("killed::events_and_gaps_are_all_attempts", events_and_gaps_are_all_attempts)];

/// How often it is killed in the midst of it.
const KILLS: u32 = 6;
/// After how much of its record: some hundred events.
const WRITTEN_BYTES: u64 = 40_000;
/// How long an agent may take to read the ring after it was started.
const START_TIMEOUT: Duration = Duration::from_secs(60);
const SPOOL_MAX_BYTES: u64 = 1 << 30;

fn events_and_gaps_are_all_attempts() -> Result<()> {
    // A ring for some 800 records: full a quarter of a second after nobody reads it any more.
    let (sandbox, listener) = prepare("ring_bytes = 131072")?;
    let spool = sandbox.dir().join("agent/spool");
    let mut agent = start(&sandbox)?;
    let nobody = sandbox.make_cgroup("nobody")?;
    let mut attempts = 0;
    wait_for("the gate", START_TIMEOUT, || {
        agent.ensure_running()?;
        let denied = probe::run(&nobody, Attempt::Tcp, listener.address(), "marker")? == "EPERM";
        attempts += u64::from(denied);
        Ok(denied.then_some(()))
    })?;

    let mut command = probe::command(&nobody, Attempt::TcpFlood, listener.address(), "")?;
    let mut flood = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    for kill in 0..KILLS {
        // Once it writes, it is in the midst of it; at which step, chance says.
        let before = size(&spool)?;
        wait_for("the agent to write", START_TIMEOUT, || {
            agent.ensure_running()?;
            Ok((size(&spool)? > before + WRITTEN_BYTES).then_some(()))
        })?;
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_micros(3700 * u64::from(kill)) {
            std::hint::spin_loop();
        }
        agent.kill()?;
        agent = start(&sandbox)?;
    }
    drop(flood.stdin.take());
    let mut told = String::new();
    flood.stdout.take().context("the flood's output")?.read_to_string(&mut told)?;
    flood.wait()?;
    let counts: Vec<u64> = told.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [refused, all] = counts.as_slice() else { bail!("the flood says {told:?}") };
    ensure_eq!(refused, all, "nobody is let through while there is no agent");
    attempts += all;

    // The last one reads the rings to their end.
    let complete = || Ok((account(&spool)?.total() >= attempts).then_some(()));
    let waited = wait_for("all of it to be in the record", START_TIMEOUT, complete);
    agent.stop()?;
    let account = account(&spool)?;
    waited.with_context(|| format!("{account:?} of {attempts}"))?;
    ensure_eq!(account.total(), attempts, "{account:?}");
    ensure_eq!(account.repeated, 0);
    ensure_eq!(account.events > 0 && account.lost > 0, true, "both ways were gone: {account:?}");
    tell(&account);
    Ok(())
}

/// A sandbox with a state directory whose memory protects what a listener serves.
fn prepare(kernel: &str) -> Result<(Sandbox, Listener)> {
    let sandbox = Sandbox::new()?;
    let listener = Listener::start(Protocol::Tcp, SocketAddr::new(sandbox.address().into(), 0))?;
    let state_dir = sandbox.dir().join("agent");
    fs::create_dir(&state_dir)?;
    let resources = vec![resource(RESOURCE, listener.address(), Protocol::Tcp)?];
    let set = GrantSet { generation: 1, resources, subjects: vec![], grants: vec![] };
    let memory = Memory { grants: Some((Uuid::from_u128(1), set)), ..Memory::default() };
    MemoryFile::new(&state_dir, observe::boot_id()?).write(&memory, now_boot_ns())?;
    // It has not joined, and so asks nobody.
    let configuration = format!(
        "host = \"killed\"\ncontrol_plane = \"https://127.0.0.1:1\"\nstate_dir = \"{}\"\n\
         [kernel]\npin_dir = \"{}\"\n{kernel}\n[spool]\nmax_bytes = {SPOOL_MAX_BYTES}\n",
        state_dir.display(),
        sandbox.pin_dir().display()
    );
    fs::write(sandbox.dir().join("agent.toml"), configuration)?;
    Ok((sandbox, listener))
}

fn start(sandbox: &Sandbox) -> Result<Background> {
    let root = sandbox.make_cgroup("")?;
    let mut command = other_agent::command_on(&root.directory, &sandbox.dir().join("agent.toml"))?;
    Background::start("the agent", &mut command, &sandbox.dir().join("agent.log"))
}

/// Bytes of the events of this boot.
fn size(spool: &std::path::Path) -> Result<u64> {
    let dir = spool.join(observe::boot_id()?.to_string());
    let files = fs::read_dir(dir)?.map(|file| Ok(file?.metadata()?.len()));
    files.sum()
}

/// What the record says.
#[derive(Debug, Default)]
struct Account {
    events: u64,
    /// Of them, those that are there twice.
    repeated: u64,
    lost: u64,
    gaps: u64,
}

impl Account {
    fn total(&self) -> u64 {
        self.events + self.lost
    }
}

/// Reads the record of an agent that may be writing.
fn account(spool: &std::path::Path) -> Result<Account> {
    // A copy: what is opened is mended.
    let copy = tempfile::tempdir()?;
    let boot_id = observe::boot_id()?;
    let here = copy.path().join(boot_id.to_string());
    fs::create_dir(&here)?;
    for file in fs::read_dir(spool.join(boot_id.to_string()))? {
        let file = file?;
        fs::copy(file.path(), here.join(file.file_name()))?;
    }
    let spool = Spool::open(copy.path(), boot_id, SPOOL_MAX_BYTES)?;
    let (mut account, mut seen, mut cursor) = (Account::default(), HashSet::new(), Cursor::default());
    loop {
        let events: Vec<AuditEvent> = spool.read(cursor, 4096)?;
        let Some(last) = events.last() else { return Ok(account) };
        cursor.after = Some((last.id.epoch, last.id.sequence));
        for event in events {
            match (event.kind, event.connection, event.gap) {
                (EventKind::ConnectionDenied, Some(connection), _) => {
                    account.events += 1;
                    account.repeated +=
                        u64::from(!seen.insert((connection.socket_cookie, connection.boot_time_ns)));
                }
                (EventKind::AuditGap, _, Some(gap)) => {
                    ensure_eq!(gap.place, "kernel.deny");
                    account.lost += gap.lost;
                    account.gaps += 1;
                }
                _ => {}
            }
        }
    }
}

#[allow(clippy::print_stdout, reason = "figures are for whoever reads the log of a run")]
fn tell(account: &Account) {
    let Account { events, lost, gaps, .. } = account;
    println!("{KILLS} kills: {events} events, and {lost} records in {gaps} gaps");
}
