//! Agents are killed, restarted, upgraded and downgraded: nobody notices, with a grant or without.

use std::fs;
use std::process::Command;
use std::time::Duration;

use agent_ebpf::abi::ABI_VERSION;
use anyhow::{Context, Result, bail};
use proto::types::Protocol;
use serde_json::Value;
use tests::ensure_eq;
use tests::listener::StreamServer;
use tests::other_agent;
use tests::probe::{self, Attempt};
use tests::process::{Background, output, wait_for};
use tests::runner::Test;
use tests::sandbox::Cgroup;
use tests::stage::{ADMIN, SOON, Stage, binary, text};

use crate::life::{connect, stage_with_resource};

pub(crate) const TESTS: &[Test] = &[
    ("upgrades::nobody_notices_an_upgrade_or_the_way_back", nobody_notices_an_upgrade_or_the_way_back),
    ("upgrades::another_version_that_remembers_nothing_waits", another_version_that_remembers_nothing_waits),
    ("upgrades::at_boot_the_gate_is_shut_before_the_agent_comes", at_boot_the_gate_is_shut),
    ("upgrades::a_damaged_memory_is_told_at_boot", a_damaged_memory_is_told_at_boot),
];

/// Clients that go on for as long as a story lasts, and the servers they talk to.
struct Clients {
    /// Without a grant, every millisecond.
    nobody: Background,
    /// With one, every millisecond.
    alice: Background,
    /// Long connections with a grant.
    flows: Vec<(Background, StreamServer)>,
}

impl Clients {
    fn start(stage: &Stage, alice: &Cgroup, nobody: &Cgroup, to: std::net::SocketAddr) -> Result<Self> {
        let start = |name: &str, cgroup: &Cgroup, attempt, to| {
            let mut command = probe::command(cgroup, attempt, to, "marker")?;
            Background::start(name, &mut command, &stage.path(&format!("{name}.log")))
        };
        let mut flows = Vec::new();
        for (protocol, attempt) in [(Protocol::Tcp, Attempt::TcpStream), (Protocol::Udp, Attempt::UdpStream)]
        {
            let server = StreamServer::start(protocol, (stage.sandbox().address(), 0).into())?;
            let name = format!("flow-{protocol}");
            let address = server.address();
            stage.cli(ADMIN)?.run(&[
                "resource",
                "add",
                &name,
                "--address",
                &address.ip().to_string(),
                "--port",
                &format!("{protocol}/{}", address.port()),
            ])?;
            stage.grant("user:alice", &name, "1h")?;
            flows.push((start(&name, alice, attempt, address)?, server));
        }
        let clients = Self {
            nobody: start("nobody", nobody, Attempt::TcpEveryMillisecond, to)?,
            alice: start("alice", alice, Attempt::TcpEveryMillisecond, to)?,
            flows,
        };
        for (_, server) in &clients.flows {
            wait_for("a flow to arrive", SOON, || Ok((server.arrived() > 0).then_some(())))?;
        }
        Ok(clients)
    }

    /// Fails unless both flows go on, now.
    fn flows_go_on(&mut self) -> Result<()> {
        for (client, server) in &mut self.flows {
            let before = server.arrived();
            wait_for("a flow to go on", SOON, || {
                client.ensure_running()?;
                Ok((server.arrived() > before + 3).then_some(()))
            })?;
        }
        Ok(())
    }

    /// Fails if anything was let through that must not be, or refused that must not be. Gives how often each tried.
    fn judge(&mut self) -> Result<[usize; 2]> {
        self.flows_go_on()?;
        let mut counts = [0; 2];
        for (index, (client, expected)) in
            [(&mut self.nobody, "EPERM"), (&mut self.alice, "ok")].into_iter().enumerate()
        {
            client.ensure_running()?;
            client.kill()?;
            let log = client.log();
            // The last line may be cut off.
            let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let others: Vec<&str> = whole.lines().filter(|line| !line.ends_with(expected)).collect();
            counts[index] = whole.lines().count();
            if !others.is_empty() {
                bail!("{} of {} attempts were not {expected}: {others:?}", others.len(), counts[index]);
            }
        }
        Ok(counts)
    }
}

fn nobody_notices_an_upgrade_or_the_way_back() -> Result<()> {
    // 1. A grant, two flows by it, somebody with the grant and somebody without who connect every millisecond.
    let (mut stage, listener) = stage_with_resource()?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    let nobody = stage.sandbox().make_cgroup("nobody")?;
    stage.grant("user:alice", "db", "1h")?;
    let mut clients = Clients::start(&stage, &alice, &nobody, listener.address())?;

    // 2. The agent is killed and restarted.
    for _ in 0..2 {
        stage.kill_agent()?;
        stage.start_agent()?;
        stage.wait_for_host("enforcing")?;
    }
    clients.flows_go_on()?;

    // 3. It is upgraded, and downgraded again, twice.
    for _ in 0..2 {
        stage.kill_agent()?;
        stage.start_other_agent()?;
        stage.wait_for_version(other_agent::ABI_VERSION)?;
        clients.flows_go_on()?;
        stage.kill_agent()?;
        stage.start_agent()?;
        stage.wait_for_version(ABI_VERSION)?;
        clients.flows_go_on()?;
    }

    // 4. The same with agents that are killed in the middle of it.
    for round in 1..=12 {
        stage.kill_agent()?;
        match round % 3 {
            0 => stage.start_agent()?,
            _ => stage.start_other_agent()?,
        }
        std::thread::sleep(Duration::from_millis(25 * round));
    }
    stage.kill_agent()?;
    stage.start_agent()?;
    stage.wait_for_version(ABI_VERSION)?;
    stage.wait_for_host("enforcing")?;

    // 5. Nobody noticed.
    let counts = clients.judge()?;
    ensure_eq!(counts.iter().all(|count| *count > 100), true, "{counts:?}");
    let is_refusal_of_alice = |event: &Value| {
        event["event"] == "conn.deny" && event["connection"]["cgroup_path"] == alice.path.as_str()
    };
    ensure_eq!(stage.events()?.into_iter().find(is_refusal_of_alice), None);

    // 6. The flows are alice's still, and end with their grants.
    let grants = stage.cli("user:alice")?.json(&["grants"])?;
    for grant in grants.as_array().context("grants")? {
        stage.cli(ADMIN)?.run(&["revoke", &text(grant, "id")?])?;
    }
    for (client, _) in &mut clients.flows {
        client.wait()?;
    }
    Ok(())
}

/// What the agent remembers is lost, and the control plane cannot be asked.
fn another_version_that_remembers_nothing_waits() -> Result<()> {
    // 1. A gate is up, with a grant.
    let (mut stage, listener) = stage_with_resource()?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    let nobody = stage.sandbox().make_cgroup("nobody")?;
    stage.grant("user:alice", "db", "1h")?;
    let mut clients = Clients::start(&stage, &alice, &nobody, listener.address())?;

    // 2. The next agent has another ABI version, and knows nothing. It lets the old gate be.
    stage.kill_control_plane()?;
    stage.kill_agent()?;
    fs::remove_file(stage.path("agent").join("grant-set"))?;
    stage.start_other_agent()?;
    let both = stage.sandbox().pin_dir();
    wait_for("the other agent's maps", SOON, || Ok((fs::read_dir(&both)?.count() == 2).then_some(())))?;
    clients.flows_go_on()?;
    ensure_eq!(
        (connect(&alice, &listener)?.as_str(), connect(&nobody, &listener)?.as_str()),
        ("ok", "EPERM")
    );

    // 3. The control plane is back, and tells it: it takes the old one's place, and nobody notices.
    stage.start_control_plane()?;
    stage.wait_for_version(other_agent::ABI_VERSION)?;
    stage.wait_for_host("enforcing")?;
    clients.judge()?;
    Ok(())
}

fn raise(stage: &Stage) -> Result<Command> {
    let mut command = Command::new(binary("portcullis-agent")?);
    command.args(["raise", "--config"]).arg(stage.path("agent.toml"));
    Ok(command)
}

fn detach(stage: &Stage) -> Result<String> {
    let mut command = Command::new(binary("portcullis-agent")?);
    output(command.args(["detach", "--config"]).arg(stage.path("agent.toml")))
}

fn at_boot_the_gate_is_shut() -> Result<()> {
    // 1. A host with a resource and a grant goes down: nothing is left in the kernel.
    let (mut stage, listener) = stage_with_resource()?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    let nobody = stage.sandbox().make_cgroup("nobody")?;
    stage.grant("user:alice", "db", "1h")?;
    stage.agent()?.stop()?;
    let told = detach(&stage)?;
    ensure_eq!(
        told.contains(&format!("ABI version {ABI_VERSION} (")) && told.contains("egress"),
        true,
        "{told}"
    );
    ensure_eq!(detach(&stage)?, "there is no gate\n");
    ensure_eq!(connect(&nobody, &listener)?, "ok");

    // 2. At boot the gate is shut to everybody, from a file, with no control plane.
    stage.kill_control_plane()?;
    ensure_eq!(output(&mut raise(&stage)?)?, "the gate is up; resources that nobody gets to: 1\n");
    ensure_eq!(
        (connect(&alice, &listener)?.as_str(), connect(&nobody, &listener)?.as_str()),
        ("EPERM", "EPERM")
    );
    ensure_eq!(output(&mut raise(&stage)?)?, "a gate is up: it is left as it is\n");

    // 3. The agent takes it over without an open instant, and lets in again whom it should.
    let mut command = probe::command(&nobody, Attempt::TcpEveryMillisecond, listener.address(), "marker")?;
    let mut prober = Background::start("the prober", &mut command, &stage.path("prober.log"))?;
    stage.start_control_plane()?;
    stage.start_agent()?;
    stage.wait_for_host("enforcing")?;
    wait_for("alice to get through", SOON, || Ok((connect(&alice, &listener)? == "ok").then_some(())))?;
    ensure_eq!(
        output(&mut raise(&stage)?).is_err_and(|error| error.to_string().contains("stop it first")),
        true
    );
    prober.ensure_running()?;
    prober.kill()?;
    let log = prober.log();
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    ensure_eq!(whole.lines().find(|line| !line.ends_with("EPERM")), None);
    ensure_eq!(whole.is_empty(), false);
    Ok(())
}

fn a_damaged_memory_is_told_at_boot() -> Result<()> {
    let (mut stage, _listener) = stage_with_resource()?;
    stage.agent()?.stop()?;
    detach(&stage)?;
    let memory = stage.path("agent").join("grant-set");
    let mut bytes = fs::read(&memory)?;
    *bytes.last_mut().context("a file that is not empty")? ^= 1;
    fs::write(&memory, bytes)?;
    // Nobody knows what to shut, and so nothing is claimed to be.
    let failed = output(&mut raise(&stage)?);
    ensure_eq!(failed.is_err_and(|error| error.to_string().contains("is damaged")), true);
    ensure_eq!(fs::read_dir(stage.sandbox().pin_dir())?.count(), 0);
    // Before the first start nothing is known, and that is no mistake.
    fs::remove_file(&memory)?;
    ensure_eq!(output(&mut raise(&stage)?)?.contains("nothing is known yet"), true);
    // The agent asks, and shuts.
    stage.start_agent()?;
    stage.wait_for_host("enforcing")
}
