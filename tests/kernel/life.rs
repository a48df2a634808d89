//! The gate without its agent, and its next agent.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agent::clock::now_boot_ns;
use agent::kernel::{Fault, Gate, KernelError, Lowered, Settings, lower};
use agent::rules::plan::{Entries, Wanted, reconcile};
use agent_ebpf::abi::{ConnectionEntry, GrantKey};
use anyhow::{Context, Result, bail};
use proto::types::Protocol;
use tests::ensure_eq;
use tests::listener::StreamServer;
use tests::other_agent::ABI_VERSION as OTHER;
use tests::probe::{self, Attempt};
use tests::process::{Background, wait_for};
use tests::runner::Test;
use tests::sandbox::{Sandbox, remove_cgroup};
use tests::tampering::{Pinned, map_by_id};

use crate::fixture::{Fixture, HOUR, RESOURCE, grant, own_faults, reaches, resource};

pub(crate) const TESTS: &[Test] = &[
    ("life::the_gate_stays_up_without_an_agent", the_gate_stays_up_without_an_agent),
    ("life::a_taken_over_gate_keeps_its_grants", a_taken_over_gate_keeps_its_grants),
    ("life::taking_over_leaves_no_open_instant", taking_over_leaves_no_open_instant),
    ("life::a_link_that_is_ours_gets_its_new_program", a_link_that_is_ours_gets_its_new_program),
    ("life::links_that_were_mixed_up_are_replaced", links_that_were_mixed_up_are_replaced),
    ("life::links_elsewhere_or_nowhere_are_replaced", links_elsewhere_or_nowhere_are_replaced),
    ("life::another_abi_version_waits_and_takes_over", another_abi_version_waits_and_takes_over),
    ("life::a_version_change_revives_nothing", a_version_change_revives_nothing),
    ("life::a_gate_that_is_not_whole_replaces_none", a_gate_that_is_not_whole_replaces_none),
    ("life::maps_of_another_shape_are_refused", maps_of_another_shape_are_refused),
    ("life::pins_want_a_bpf_file_system", pins_want_a_bpf_file_system),
    ("life::lowering_opens", lowering_opens),
    ("life::what_was_lowered_leaves_nothing_in_the_kernel", what_was_lowered_leaves_nothing_in_the_kernel),
    ("life::what_cannot_be_detached_is_unlinked", what_cannot_be_detached_is_unlinked),
];

pub(crate) fn raise(settings: &Settings, sandbox: &Sandbox) -> Result<Gate, KernelError> {
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
    read.names.retain(|slot, _| fixture.entries.names.contains_key(slot));
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
    // An emulated machine takes half a minute to verify the programs each time.
    const TIMES: usize = 5;
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

/// What the kernel says of a pinned link, by name.
fn pinned_link(path: &Path) -> Result<BTreeMap<String, String>> {
    const BPF_OBJ_GET: i32 = 7;
    let name = CString::new(path.as_os_str().as_bytes())?;
    let link = tests::raw::bpf(BPF_OBJ_GET, &mut [name.as_ptr() as u64, 0])?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", link.as_raw_fd()))?;
    let fields = info.lines().filter_map(|line| line.split_once(':'));
    Ok(fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
}

/// The same of every link of a gate at a cgroup: id, program, cgroup and attach type.
fn pinned_links(settings: &Settings) -> Result<BTreeMap<String, [String; 4]>> {
    let dir = link_dir(settings);
    let mut links = BTreeMap::new();
    for entry in fs::read_dir(&dir)? {
        let path = entry?.path();
        let info = pinned_link(&path)?;
        // What sees migrations is at no cgroup, and its link keeps its program.
        if info.contains_key("tp_name") {
            continue;
        }
        let field = |name: &str| info.get(name).cloned().with_context(|| format!("no {name} in {info:?}"));
        let name = path.file_name().context("a name")?.to_string_lossy().into_owned();
        links
            .insert(name, [field("link_id")?, field("prog_id")?, field("cgroup_id")?, field("attach_type")?]);
    }
    Ok(links)
}

pub(crate) fn link_dir(settings: &Settings) -> PathBuf {
    settings.pin_dir.join(format!("abi-{}/links", settings.abi_version))
}

/// Every program keeps its place among other people's: its link stays, and only its program changes.
fn a_link_that_is_ours_gets_its_new_program() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let before = pinned_links(&fixture.settings)?;
    ensure_eq!(before.len(), fixture.gate.attached());
    let next = raise(&fixture.settings, &fixture.sandbox)?;
    let after = pinned_links(&fixture.settings)?;
    ensure_eq!(after.len(), next.attached());
    for (name, [link, program, cgroup, attach_type]) in &before {
        let [link_after, program_after, cgroup_after, attach_type_after] =
            after.get(name).with_context(|| format!("no link {name}"))?;
        ensure_eq!(link_after, link, "{name}");
        ensure_eq!((cgroup_after, attach_type_after), (cgroup, attach_type), "{name}");
        ensure_eq!(program_after == program, false, "{name} has its old program");
    }
    let nobody = fixture.sandbox.make_cgroup("nobody")?;
    ensure_eq!(reaches(&nobody, Attempt::Tcp, listener.address(), &listener)?, false);
    Ok(())
}

/// The kernel would take any program of the same type for them, and one hook would be gone.
fn links_that_were_mixed_up_are_replaced() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let tcp = fixture.protected(Protocol::Tcp)?;
    let udp = fixture.protected(Protocol::Udp)?;
    let right = pinned_links(&fixture.settings)?;
    let at = |name: &str| link_dir(&fixture.settings).join(name);
    for (from, to) in [("connect4", "aside"), ("sendmsg4", "connect4"), ("aside", "sendmsg4")] {
        fs::rename(at(from), at(to))?;
    }
    let _next = raise(&fixture.settings, &fixture.sandbox)?;
    for (name, [.., cgroup, attach_type]) in pinned_links(&fixture.settings)? {
        ensure_eq!(
            right.get(&name).map(|[.., cgroup, kind]| (cgroup, kind)),
            Some((&cgroup, &attach_type)),
            "{name}"
        );
    }
    let nobody = fixture.sandbox.make_cgroup("nobody")?;
    ensure_eq!(reaches(&nobody, Attempt::Tcp, tcp.address(), &tcp)?, false);
    ensure_eq!(reaches(&nobody, Attempt::UdpSend, udp.address(), &udp)?, false);
    Ok(())
}

/// Links at a cgroup that is not the root, which is gone moreover.
fn links_elsewhere_or_nowhere_are_replaced() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let settings = Settings::new(sandbox.pin_dir());
    for is_gone in [false, true] {
        let elsewhere = sandbox.make_cgroup("elsewhere")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        drop(runtime.block_on(async { Gate::raise(&settings, &elsewhere.directory) })?);
        let id = elsewhere.id()?.to_string();
        ensure_eq!(pinned_links(&settings)?.values().all(|[.., cgroup, _]| *cgroup == id), true);
        if is_gone {
            remove_cgroup(&elsewhere.directory)?;
            wait_for("the links to be detached", Duration::from_secs(5), || {
                Ok(pinned_links(&settings)?.values().all(|[.., cgroup, _]| cgroup == "0").then_some(()))
            })?;
        }
        let gate = raise(&settings, &sandbox)?;
        let links = pinned_links(&settings)?;
        ensure_eq!(links.len(), gate.attached());
        let root = fs::metadata(sandbox.cgroup_root())?.ino().to_string();
        ensure_eq!(links.values().all(|[.., cgroup, _]| *cgroup == root), true, "{links:?}");
    }
    Ok(())
}

/// A gate of another ABI version, over the fixture's.
pub(crate) struct OtherGate {
    gate: Gate,
    entries: Entries,
    settings: Settings,
}

impl OtherGate {
    pub(crate) fn raise(fixture: &Fixture) -> Result<Self> {
        // Another size of a map stands for another layout: the same version would be refused.
        let settings = Settings { abi_version: OTHER, connections_max: 1000, ..fixture.settings.clone() };
        let gate = raise(&settings, &fixture.sandbox)?;
        let entries = gate.read()?;
        Ok(Self { gate, entries, settings })
    }

    pub(crate) fn apply(&mut self, wanted: &Wanted) -> Result<()> {
        let slots_max = self.gate.slots_max();
        let gate = &mut self.gate;
        let outcome =
            reconcile(&mut self.entries, wanted, slots_max, now_boot_ns(), |write| gate.write(write));
        ensure_eq!((outcome.refused.len(), outcome.failed.len()), (0, 0), "{outcome:?}");
        Ok(())
    }

    fn stand_beside(&mut self) -> Result<()> {
        let entries = &self.entries;
        let heir = |connection: &ConnectionEntry| {
            let pair = GrantKey { subject: connection.subject, resource: connection.resource };
            entries.grants.get(&pair).copied()
        };
        Ok(self.gate.stand_beside(heir)?)
    }

    /// Takes the place of the other one.
    pub(crate) fn succeed(&mut self) -> Result<()> {
        self.stand_beside()?;
        self.gate.lower_predecessors()?;
        while !self.gate.read_predecessors(100).is_empty() {}
        self.gate.forget_predecessors()?;
        Ok(())
    }
}

/// A client that has connected and writes all the time.
fn stream(fixture: &Fixture, attempt: Attempt, server: &StreamServer) -> Result<Background> {
    let cgroup = fixture.sandbox.make_cgroup("subject")?;
    let mut command = probe::command(&cgroup, attempt, server.address(), "x")?;
    let log = fixture.sandbox.dir().join(format!("{attempt:?}.log"));
    let client = Background::start("the client", &mut command, &log)?;
    wait_for(
        "the client to be served",
        Duration::from_secs(10),
        || Ok((server.arrived() > 0).then_some(())),
    )?;
    Ok(client)
}

/// Fails unless more arrives from now on.
fn goes_on(client: &mut Background, server: &StreamServer) -> Result<()> {
    let before = server.arrived();
    wait_for("more to arrive", Duration::from_secs(5), || {
        client.ensure_running()?;
        Ok((server.arrived() > before + 3).then_some(()))
    })
}

fn another_abi_version_waits_and_takes_over() -> Result<()> {
    // 1. A gate of this version, with a grant and two connections by it.
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let (granted, nobody) = (fixture.subject("subject")?, fixture.sandbox.make_cgroup("nobody")?);
    let address = fixture.sandbox.address();
    let tcp = StreamServer::start(Protocol::Tcp, (address, 0).into())?;
    let udp = StreamServer::start(Protocol::Udp, (address, 0).into())?;
    for (number, server, protocol) in [(2, &tcp, Protocol::Tcp), (3, &udp, Protocol::Udp)] {
        fixture.wanted.resources.push(resource(number, server.address(), protocol)?);
    }
    for number in 1..=3 {
        fixture.grant_to(1, number, HOUR)?;
    }
    let mut over_tcp = stream(&fixture, Attempt::TcpStream, &tcp)?;
    let mut over_udp = stream(&fixture, Attempt::UdpStream, &udp)?;
    let reach = |cgroup| reaches(cgroup, Attempt::Tcp, listener.address(), &listener);

    // 2. One of another version waits until it knows what to hold: the first decides alone.
    let mut other = OtherGate::raise(&fixture)?;
    ensure_eq!((other.gate.is_waiting(), other.gate.attached()), (true, 0));
    ensure_eq!(other.gate.inspect(), [], "what waits is not missed");
    ensure_eq!((reach(&granted)?, reach(&nobody)?), (true, false));

    // 3. Both decide, and then the other alone. Connections go on.
    other.apply(&fixture.wanted)?;
    other.stand_beside()?;
    ensure_eq!((reach(&granted)?, reach(&nobody)?), (true, false));
    goes_on(&mut over_tcp, &tcp)?;
    other.succeed()?;
    ensure_eq!((other.gate.is_waiting(), other.gate.predecessors()), (false, vec![]));
    ensure_eq!(own_faults(&mut other.gate), []);
    ensure_eq!(
        fixture.settings.pin_dir.join(format!("abi-{}", fixture.settings.abi_version)).exists(),
        false
    );
    ensure_eq!((reach(&granted)?, reach(&nobody)?), (true, false));
    goes_on(&mut over_tcp, &tcp)?;
    goes_on(&mut over_udp, &udp)?;

    // 4. They are the other's connections now: they end with their grants there.
    let connections = other.gate.connections()?;
    ensure_eq!(connections.iter().filter(|(_, entry)| entry.resource != RESOURCE).count(), 2);
    let mut wanted = fixture.wanted.clone();
    wanted.grants.clear();
    other.apply(&wanted)?;
    let (arrived_tcp, arrived_udp) = (tcp.arrived(), udp.arrived());
    std::thread::sleep(Duration::from_millis(300));
    // What was on its way when the epoch was raised.
    ensure_eq!(tcp.arrived() <= arrived_tcp + 2 && udp.arrived() <= arrived_udp + 2, true);
    ensure_eq!((reach(&granted)?, reach(&nobody)?), (false, false));

    // 5. And the way back: what is connected meanwhile goes on again.
    other.apply(&fixture.wanted)?;
    let tcp = StreamServer::start(Protocol::Tcp, (address, 0).into())?;
    fixture.wanted.resources.push(resource(4, tcp.address(), Protocol::Tcp)?);
    fixture.wanted.grants.push(grant(1, 4, HOUR)?);
    other.apply(&fixture.wanted)?;
    let mut over_tcp = stream(&fixture, Attempt::TcpStream, &tcp)?;
    drop(other);
    let back = raise(&fixture.settings, &fixture.sandbox)?;
    let entries = back.read()?;
    let mut back = OtherGate { gate: back, entries, settings: fixture.settings.clone() };
    back.apply(&fixture.wanted)?;
    back.succeed()?;
    goes_on(&mut over_tcp, &tcp)?;
    ensure_eq!((reach(&granted)?, reach(&nobody)?), (true, false));
    ensure_eq!(fs::read_dir(&back.settings.pin_dir)?.count(), 1, "only this version's pins are left");
    Ok(())
}

/// A connection that had ended stays ended, though the pair has a grant again, there and here.
fn a_version_change_revives_nothing() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let tcp = StreamServer::start(Protocol::Tcp, (fixture.sandbox.address(), 0).into())?;
    fixture.wanted.resources.push(resource(RESOURCE, tcp.address(), Protocol::Tcp)?);
    fixture.subject("subject")?;
    fixture.grant(HOUR)?;
    let _client = stream(&fixture, Attempt::TcpStream, &tcp)?;
    fixture.revoke_all()?;
    let arrived = tcp.arrived();
    fixture.grant(HOUR)?;
    let mut other = OtherGate::raise(&fixture)?;
    other.apply(&fixture.wanted)?;
    other.succeed()?;
    std::thread::sleep(Duration::from_millis(300));
    ensure_eq!(tcp.arrived() <= arrived + 2, true, "{} after {arrived}", tcp.arrived());
    // It is known as ended, so that it can be closed.
    let [(_, entry)] = other.gate.connections()?[..] else { bail!("not one connection") };
    ensure_eq!(other.entries.counts(entry.slot, entry.epoch, now_boot_ns()), false);
    Ok(())
}

/// Beside another gate one may be as small as it likes: it opens nothing.
fn a_gate_that_is_not_whole_replaces_none() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let nobody = fixture.sandbox.make_cgroup("nobody")?;
    let mut other = OtherGate::raise(&fixture)?;
    other.stand_beside()?;
    ensure_eq!(reaches(&nobody, Attempt::Tcp, listener.address(), &listener)?, false);
    ensure_eq!(other.gate.is_waiting(), true);
    // Its agent ends, and one of the first's version goes on. The other's programs come after its own, and are no strangers.
    let of_link = |[_, program, ..]: [String; 4]| format!("(id {program})");
    let theirs: Vec<String> = pinned_links(&other.settings)?.into_values().map(of_link).collect();
    drop(other);
    let mut back = raise(&fixture.settings, &fixture.sandbox)?;
    back.stand_beside(|_| None)?;
    // Gates of other tests are at the root as well, and strangers indeed.
    let is_meant = |fault: &Fault| {
        fault.opens || fault.repaired || theirs.iter().any(|program| fault.text.contains(program))
    };
    let faults: Vec<Fault> = back.inspect().into_iter().filter(is_meant).collect();
    ensure_eq!(faults, []);
    // Somebody lifts both.
    drop(back);
    let lowered = lower(&fixture.settings.pin_dir)?;
    let versions: Vec<(u32, usize)> =
        lowered.iter().map(|Lowered { abi_version, programs }| (*abi_version, programs.len())).collect();
    // With the one that sees migrations.
    let attached = fixture.gate.attached() + 1;
    ensure_eq!(versions, [(fixture.settings.abi_version, attached), (OTHER, attached)]);
    ensure_eq!(reaches(&nobody, Attempt::Tcp, listener.address(), &listener)?, true);
    ensure_eq!(lower(&fixture.settings.pin_dir)?, []);
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
    let lowered = lower(&settings.pin_dir)?;
    ensure_eq!(lowered.len(), 1, "{lowered:?}");
    ensure_eq!(lower(&settings.pin_dir)?, []);
    // At once, on every kernel.
    ensure_eq!(reaches(&cgroup, Attempt::Tcp, listener.address(), &listener)?, true);
    drop(sandbox);
    Ok(())
}

/// Pins a link of a tracing program among those of a gate. Like the links of the LSM tier it is at no cgroup, and the kernel
/// detaches it only when nobody holds it any more. Gives its number.
fn pin_undetachable(settings: &Settings, name: &str) -> Result<u64> {
    const PROG_LOAD: i32 = 5;
    const OBJ_PIN: i32 = 6;
    const RAW_TRACEPOINT_OPEN: i32 = 17;
    const RAW_TRACEPOINT: u64 = 17;
    // `r0 = 0`, `exit`.
    let code = [0xb7_u64, 0x95];
    let mut attributes =
        [RAW_TRACEPOINT | (code.len() as u64) << 32, code.as_ptr() as u64, c"GPL".as_ptr() as u64];
    let program = tests::raw::bpf(PROG_LOAD, &mut attributes)?;
    let mut attributes = [c"sched_process_exit".as_ptr() as u64, program.as_raw_fd() as u64];
    let link = tests::raw::bpf(RAW_TRACEPOINT_OPEN, &mut attributes)?;
    let path = link_dir(settings).join(name);
    let text = CString::new(path.as_os_str().as_bytes())?;
    tests::raw::bpf_done(OBJ_PIN, &mut [text.as_ptr() as u64, link.as_raw_fd() as u64])?;
    Ok(pinned_link(&path)?.get("link_id").context("the link's number")?.parse()?)
}

/// Waits until there is no link of this number.
fn wait_until_gone(link: u64) -> Result<()> {
    const LINK_GET_FD_BY_ID: i32 = 30;
    wait_for("the link to go", Duration::from_secs(5), || {
        match tests::raw::bpf(LINK_GET_FD_BY_ID, &mut [link]) {
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(())),
            Err(error) => Err(error.into()),
        }
    })
}

/// A map that something still holds keeps some 20 MiB of the kernel's memory.
fn what_was_lowered_leaves_nothing_in_the_kernel() -> Result<()> {
    let Fixture { gate, allow, deny, closed, sandbox, settings, .. } = Fixture::new()?;
    let maps = Pinned::at(&settings.pin_dir).map_ids()?;
    ensure_eq!(maps.len() > 10, true);
    drop((gate, allow, deny, closed));
    lower(&settings.pin_dir)?;
    drop(sandbox);
    wait_for("the kernel to free the maps", Duration::from_secs(20), || {
        let left: Vec<u32> = maps.iter().copied().filter(|id| map_by_id(*id).is_ok()).collect();
        Ok(left.is_empty().then_some(()))
    })
}

fn what_cannot_be_detached_is_unlinked() -> Result<()> {
    const NAME: &str = "elsewhere";
    // By a gate of another version, which takes the place of the first.
    let fixture = Fixture::new()?;
    let link = pin_undetachable(&fixture.settings, NAME)?;
    let mut other = OtherGate::raise(&fixture)?;
    other.succeed()?;
    wait_until_gone(link)?;
    // And with the gate.
    let link = pin_undetachable(&other.settings, NAME)?;
    let attached = other.gate.attached();
    drop(other);
    let lowered = lower(&fixture.settings.pin_dir)?;
    let [Lowered { abi_version: OTHER, programs }] = &lowered[..] else { bail!("{lowered:?}") };
    ensure_eq!(
        (programs.len(), programs.iter().any(|name| name == NAME)),
        (attached + 2, true),
        "{programs:?}"
    );
    wait_until_gone(link)
}
