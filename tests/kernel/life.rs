//! The gate without its agent, and its next agent.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agent::kernel::{Gate, KernelError, Settings, lower};
use anyhow::{Context, Result, bail};
use proto::types::Protocol;
use tests::ensure_eq;
use tests::probe::{self, Attempt};
use tests::runner::Test;
use tests::sandbox::Sandbox;

use crate::fixture::{Fixture, HOUR, reaches};

pub(crate) const TESTS: &[Test] = &[
    ("life::the_gate_stays_up_without_an_agent", the_gate_stays_up_without_an_agent),
    ("life::a_taken_over_gate_keeps_its_grants", a_taken_over_gate_keeps_its_grants),
    ("life::taking_over_leaves_no_open_instant", taking_over_leaves_no_open_instant),
    ("life::maps_of_another_shape_are_refused", maps_of_another_shape_are_refused),
    ("life::pins_want_a_bpf_file_system", pins_want_a_bpf_file_system),
    ("life::lowering_opens", lowering_opens),
];

fn raise(settings: &Settings, sandbox: &Sandbox) -> Result<Gate, KernelError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { Gate::raise(settings, sandbox.cgroup_root()) }).map(|(gate, _)| gate)
}

fn the_gate_stays_up_without_an_agent() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let (granted, nobody) = (fixture.subject("subject")?, fixture.sandbox.make_cgroup("nobody")?);
    fixture.grant(HOUR)?;
    // All that the agent's process holds.
    let Fixture { gate, allow, deny, sandbox, .. } = fixture;
    drop((gate, allow, deny));
    ensure_eq!(reaches(&granted, Attempt::Tcp, listener.address(), &listener)?, true);
    ensure_eq!(reaches(&nobody, Attempt::Tcp, listener.address(), &listener)?, false);
    drop(sandbox);
    Ok(())
}

fn a_taken_over_gate_keeps_its_grants() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let cgroup = fixture.subject("subject")?;
    fixture.grant(HOUR)?;
    let next = raise(&fixture.settings, &fixture.sandbox)?;
    ensure_eq!(next.took_over(), true);
    let mut read = next.read()?;
    // Slots and epochs that nothing refers to need not come back.
    read.slots.retain(|slot, _| fixture.entries.slots.contains_key(slot));
    read.deadlines.retain(|slot, _| fixture.entries.deadlines.contains_key(slot));
    // Nor does it matter when something was active that may be idle.
    let mut held = fixture.entries.clone();
    held.active.retain(|slot, _| held.idle_limits.contains_key(slot));
    ensure_eq!(read, held);
    ensure_eq!(reaches(&cgroup, Attempt::Tcp, listener.address(), &listener)?, true);
    Ok(())
}

/// A prober without a grant connects every millisecond while the gate is taken over again and again.
fn taking_over_leaves_no_open_instant() -> Result<()> {
    const TIMES: usize = 20;
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let cgroup = fixture.sandbox.make_cgroup("nobody")?;
    let mut command = probe::command(&cgroup, Attempt::TcpEveryMillisecond, listener.address(), "prober")?;
    let mut prober = command.stdout(Stdio::piped()).spawn()?;
    let stdout = prober.stdout.take().context("the prober's output")?;
    let done = AtomicBool::new(false);
    let attempts = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut results = Vec::new();
            for line in BufReader::new(stdout).lines() {
                results.push(line?);
                if done.load(Ordering::Relaxed) {
                    break;
                }
            }
            anyhow::Ok(results)
        });
        let result = (0..TIMES).try_for_each(|_| raise(&fixture.settings, &fixture.sandbox).map(drop));
        done.store(true, Ordering::Relaxed);
        let results = reader.join().expect("the reader does not panic");
        result?;
        results
    });
    prober.kill()?;
    prober.wait()?;
    let attempts = attempts?;
    let open: Vec<&String> = attempts.iter().filter(|line| !line.ends_with(" EPERM")).collect();
    if !open.is_empty() || attempts.len() < TIMES {
        bail!("{} of {} attempts were not denied: {open:?}", open.len(), attempts.len());
    }
    Ok(())
}

fn maps_of_another_shape_are_refused() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let other = Settings { grants_max: 7, ..fixture.settings.clone() };
    match raise(&other, &fixture.sandbox) {
        Err(KernelError::Shape { name: "GRANTS", field: "capacity", wanted: 7, .. }) => {}
        Err(error) => bail!("{error}"),
        Ok(_) => bail!("a map of another size was taken over"),
    }
    let cgroup = fixture.sandbox.make_cgroup("nobody")?;
    ensure_eq!(reaches(&cgroup, Attempt::Tcp, listener.address(), &listener)?, false);
    Ok(())
}

fn pins_want_a_bpf_file_system() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let settings = Settings::new(sandbox.dir().join("elsewhere"));
    match raise(&settings, &sandbox) {
        Err(KernelError::NoBpffs { path }) => ensure_eq!(path, sandbox.dir()),
        Err(error) => bail!("{error}"),
        Ok(_) => bail!("pins were made outside a BPF file system"),
    }
    Ok(())
}

fn lowering_opens() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let cgroup = fixture.sandbox.make_cgroup("nobody")?;
    ensure_eq!(reaches(&cgroup, Attempt::Tcp, listener.address(), &listener)?, false);
    let Fixture { gate, allow, deny, settings, sandbox, .. } = fixture;
    drop((gate, allow, deny));
    ensure_eq!(lower(&settings.pin_dir)?, true);
    ensure_eq!(lower(&settings.pin_dir)?, false);
    // Unlinking a pinned link takes effect a little later on old kernels.
    tests::process::wait_for("the gate to open", Duration::from_secs(5), || {
        Ok(reaches(&cgroup, Attempt::Tcp, listener.address(), &listener)?.then_some(()))
    })?;
    drop(sandbox);
    Ok(())
}
