//! Hosts: how one joins, keeps its certificate fresh, loses it, and comes back.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use tests::ensure_eq;
use tests::issuer::Issuer;
use tests::network::CONTROL_PLANE;
use tests::process::{in_cgroup, wait_for};
use tests::runner::Test;
use tests::sandbox::Cgroup;
use tests::stage::{ADMIN, HOST, Plan, SOON, Stage, text};

pub(crate) const TESTS: &[Test] = &[
    ("hosts::a_host_joins_over_a_network_and_is_granted_access", over_a_network),
    ("hosts::what_a_partition_does_is_what_each_resource_says", partition),
    ("hosts::a_certificate_is_renewed_and_nobody_notices", renewal),
    ("hosts::a_host_whose_certificate_ran_out_joins_again", run_out),
    ("hosts::a_node_joins_with_the_token_of_its_pod", node),
    ("hosts::an_agent_believes_no_other_control_plane", other_control_plane),
];

/// The shortest life that a certificate can have.
const SHORT: Plan<'_> = Plan {
    control_plane: SHORT_LIFETIME,
    agent: "",
    pod_token: None,
    is_apart: false,
    state_bytes: None,
    has_replica: false,
    has_own_clock: false,
};
const SHORT_LIFETIME: &str = "host_certificate_lifetime = \"10s\"";

fn over_a_network() -> Result<()> {
    // 1. Control plane and host are two machines, as far as the network is concerned; the host joins over TLS.
    let stage = Stage::start_as(Plan { is_apart: true, ..Plan::default() })?;
    let joined = stage.wait_for_event("the host to join", |event| event["event"] == "host.joined")?;
    ensure_eq!(joined["host"].as_str(), Some(HOST));
    // 2. Over the same wire, somebody asks for access and gets it.
    let admin = stage.cli(ADMIN)?;
    admin.run(&["resource", "add", "db", "--address", CONTROL_PLANE, "--port", "tcp/5432"])?;
    let cgroup = stage.add_subject_with_cgroup("user:alice")?;
    stage.wait_until_applied()?;
    ensure_eq!(connect(&stage, &cgroup)?, "Operation not permitted");
    stage.grant("user:alice", "db", "5m")?;
    ensure_eq!(connect(&stage, &cgroup)?, "Connection refused");
    // 3. Without the authority's certificate nobody is believed.
    let mut command = stage.cli(ADMIN)?.command(&["status"]);
    let output = command.env("PORTCULLIS_CA_FILE", "/dev/null").output()?;
    ensure!(!output.status.success(), "it believes anybody");
    Ok(())
}

/// Three resources, by what becomes of them while the control plane cannot be heard.
const RESOURCES: [(&str, u16, &str); 3] =
    [("held", 5001, "hold"), ("shrunk", 5002, "shrink:25s"), ("cut", 5003, "cut")];

fn partition() -> Result<()> {
    // 1. One subject has a grant for each of three resources.
    let stage = Stage::start_as(Plan { is_apart: true, ..Plan::default() })?;
    let admin = stage.cli(ADMIN)?;
    let address = stage.sandbox().address().to_string();
    for (name, port, outage) in RESOURCES {
        let port = format!("tcp/{port}");
        admin.run(&["resource", "add", name, "--address", &address, "--port", &port, "--outage", outage])?;
    }
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    let grant = |(name, ..): &(&str, u16, &str)| stage.grant("user:alice", name, "10m");
    let grants: Vec<String> = RESOURCES.iter().map(grant).collect::<Result<_>>()?;
    let who_passes = || -> Result<[bool; 3]> {
        let mut passes = [false; 3];
        for (passes, (_, port, _)) in passes.iter_mut().zip(RESOURCES) {
            *passes = attempt(&stage, &alice, &address, port)? == "Connection refused";
        }
        Ok(passes)
    };
    ensure_eq!(who_passes()?, [true, true, true]);

    // 2. The wire is cut, and one of the grants is revoked meanwhile: the API says how long it can live on that host.
    stage.network()?.cut()?;
    let began = Instant::now();
    let here = stage.cli_here(ADMIN)?;
    here.run(&["revoke", &grants[1]])?;
    let shown = here.json(&["grants", "--all"])?;
    let revoked = shown.as_array().into_iter().flatten().find(|grant| grant["id"] == grants[1].as_str());
    let revoked = revoked.context("the revoked grant is not shown")?;
    ensure_eq!(text(revoked, "state")?, "ending");
    let until = text(&revoked["host_until"], HOST)?;
    ensure!(until < text(revoked, "expires")?, "nothing bounds it: {revoked}");
    wait_for("`cut` to end", SOON * 2, || Ok((who_passes()? == [true, true, false]).then_some(())))?;
    wait_for("`shrink` to end", SOON * 2, || Ok((who_passes()? == [true, false, false]).then_some(())))?;
    let after = began.elapsed();
    ensure!(after >= Duration::from_secs(15), "it ended too early: {after:?}");

    // 3. It heals: the revoked grant is confirmed to have ended, what is still granted is let through again, and host and control
    // plane find that they mean the same.
    stage.network()?.heal()?;
    let healed = Timestamp::now();
    // The two ends find each other again.
    wait_for("the way to be there", SOON, || Ok(admin.run(&["status"]).ok()))?;
    stage.wait_for_grant(&grants[1], "ended")?;
    wait_for(
        "the rest to pass again",
        SOON * 2,
        || Ok((who_passes()? == [true, false, true]).then_some(())),
    )?;
    wait_for("the host to be found right", SOON, || {
        let confirmed =
            admin.json(&["status"])?[0]["confirmed"].as_str().map(str::parse::<Timestamp>).transpose()?;
        Ok(confirmed.filter(|confirmed| *confirmed > healed))
    })?;
    let disagreements =
        stage.events()?.into_iter().filter(|event| event["event"] == "host.disagrees").count();
    ensure_eq!(disagreements, 0);
    Ok(())
}

/// What a connection from the host to the resource comes to; nobody serves there.
fn connect(stage: &Stage, cgroup: &Cgroup) -> Result<&'static str> {
    attempt(stage, cgroup, CONTROL_PLANE, 5432)
}

fn attempt(stage: &Stage, cgroup: &Cgroup, address: &str, port: u16) -> Result<&'static str> {
    let mut command = in_cgroup(cgroup, "nsenter");
    command.arg(stage.network()?.host.path());
    let output = command.args(["bash", "-c", &format!("exec 3<>/dev/tcp/{address}/{port}")]).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let known =
        ["Operation not permitted", "Connection refused"].into_iter().find(|words| said.contains(words));
    known.with_context(|| format!("it came to something else: {said}"))
}

fn renewal() -> Result<()> {
    let mut stage = Stage::start_as(SHORT)?;
    stage.cli(ADMIN)?.run(&["resource", "add", "db", "--address", "127.1.2.3", "--port", "tcp/5432"])?;
    stage.add_subject_with_cgroup("user:alice")?;
    let grant = stage.grant("user:alice", "db", "5m")?;
    let renewals = |stage: &Stage| -> Result<usize> {
        Ok(stage.events()?.iter().filter(|event| event["event"] == "host.renewed").count())
    };
    wait_for("the second renewal", SOON, || Ok((renewals(&stage)? >= 2).then_some(())))?;
    // It comes back at once with the new one, and what was granted stays.
    stage.wait_for_host("enforcing")?;
    stage.wait_for_grant(&grant, "active")?;
    // Each new one was used before the one before ran out, and nothing was taken for a copy.
    ensure!(stage.events()?.iter().all(|event| event["event"] != "host.key_copied"));
    let names: Vec<_> = fs::read_dir(stage.path("agent/identity"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    ensure!(names.iter().all(|name| name.ends_with(".pem")), "something is left over: {names:?}");
    stage.agent()?.stop()?;
    Ok(())
}

fn run_out() -> Result<()> {
    let mut stage = Stage::start_as(SHORT)?;
    // 1. The control plane is away for longer than the certificate counts.
    stage.kill_control_plane()?;
    sleep(Duration::from_secs(11));
    stage.start_control_plane()?;
    // 2. The agent says so, and goes on with the gate.
    let agent = stage.agent()?;
    wait_for("the agent to say it", SOON, || {
        agent.ensure_running()?;
        Ok(agent.log().contains("this host's certificate is over").then_some(()))
    })?;
    stage.wait_for_host("unreachable")?;
    // 3. An operator lets it join again; the running agent takes it up.
    stage.join()?;
    stage.wait_for_host("enforcing")
}

fn other_control_plane() -> Result<()> {
    let mut stage = Stage::start()?;
    let token = stage.cli(ADMIN)?.run(&["host", "join-token", HOST])?;
    // 1. Somebody puts another control plane in the place of ours.
    stage.kill_control_plane()?;
    for name in ["authority", "control-plane.db"] {
        fs::rename(stage.path(name), stage.path(&format!("{name}.away")))?;
    }
    stage.init_control_plane()?;
    stage.start_control_plane()?;
    // 2. The agent turns away from it.
    let agent = stage.agent()?;
    wait_for("the agent to turn away", SOON, || {
        agent.ensure_running()?;
        Ok(agent.log().contains("invalid peer certificate").then_some(()))
    })?;
    // 3. Nor does a host show it a token that is of ours.
    let joined = stage.join_with(&token).map_err(|error| format!("{error:#}"));
    let error = joined.err().context("it joined another control plane")?;
    ensure!(error.contains("invalid peer certificate: UnknownIssuer"), "{error}");
    Ok(())
}

/// What a cluster says of an agent's pod on the one node.
fn pod() -> Value {
    json!({
        "sub": "system:serviceaccount:portcullis:portcullis-agent",
        "kubernetes.io": {
            "namespace": "portcullis", "node": { "name": HOST, "uid": "n" },
            "pod": { "name": "portcullis-agent-x7", "uid": "p" },
            "serviceaccount": { "name": "portcullis-agent", "uid": "s" },
        },
    })
}

fn node() -> Result<()> {
    // 1. A node that nobody has heard of joins by itself, with its cluster's word.
    let folder = tempfile::tempdir()?;
    let cluster = Issuer::start(folder.path(), json!({}))?;
    let control_plane = format!(
        "{SHORT_LIFETIME}\n[[kubernetes_cluster]]\nname = \"prod\"\nissuer = \"{}\"\nca_file = \"{}\"\n\
         labels = {{ env = \"prod\" }}",
        cluster.url(),
        cluster.ca_file.display(),
    );
    let token = cluster.sign("portcullis", &pod())?;
    let mut stage =
        Stage::start_as(Plan { control_plane: &control_plane, pod_token: Some(&token), ..Plan::default() })?;
    let added = stage.wait_for_event("the host", |event| event["event"] == "host.added")?;
    ensure_eq!((added["host"].as_str(), added["reason"].as_str()), (Some(HOST), Some("kubernetes")));
    // 2. Its agent was away until the certificate had run out: with the pod's next token it comes back.
    let away = |stage: &mut Stage| -> Result<()> {
        stage.kill_agent()?;
        sleep(Duration::from_secs(11));
        stage.write_pod_token(&cluster.sign("portcullis", &pod())?)?;
        stage.start_agent()
    };
    away(&mut stage)?;
    stage.wait_for_host("enforcing")?;
    let joined = stage.events()?.iter().filter(|event| event["event"] == "host.joined").count();
    ensure_eq!(joined, 2);
    // 3. Revoked, it stays away, whatever its cluster says.
    stage.cli(ADMIN)?.run(&["host", "revoke", HOST, "--comment", "stolen"])?;
    away(&mut stage)?;
    stage.wait_for_event("the refusal", |event| {
        let comment = event["comment"].as_str().unwrap_or_default();
        event["reason"] == "permission_denied" && comment.contains("EnrolmentService.Join")
    })?;
    Ok(())
}
