//! The LSM tier on a host: what an operator turns on, and what the host says it lacks.

use std::fs::{self, File};
use std::io::Write;

use agent_ebpf::family::PACKET;
use anyhow::{Context, Result, bail};
use socket2::Type;
use tests::ensure_eq;
use tests::process::wait_for;
use tests::runner::Test;
use tests::sandbox::Cgroup;
use tests::socket_probe::ask;
use tests::stage::{ADMIN, SOON, Stage, text};
use tests::unix_probe::{self, Attempt, UnixServer};

use crate::life::{connect, stage_with_resource};

pub(crate) const TESTS: &[Test] = &[
    ("lsm::a_host_has_what_it_wants_or_says_what_it_lacks", what_it_wants_or_says_what_it_lacks),
    ("lsm::a_unix_socket_that_cannot_be_guarded_is_refused_by_name", a_unix_socket_is_guarded_or_refused),
];

fn what_it_wants_or_says_what_it_lacks() -> Result<()> {
    // 1. A host without the tier is enforcing. Anybody who may have packet sockets has them.
    let (mut stage, listener) = stage_with_resource()?;
    let somebody = stage.sandbox().make_cgroup("somebody")?;
    ensure_eq!(packet(&somebody)?, "ok");

    // 2. An operator prefers to have it. Where the kernel runs it, the host is enforcing; elsewhere it is degraded, and says
    //    without what, and why.
    let configuration = fs::read_to_string(stage.path("agent.toml"))?;
    restart_with(&mut stage, &configuration, "prefer")?;
    let (state, detail) = wait_for("the host to say how it is", SOON, || {
        let host = &stage.cli(ADMIN)?.json(&["status"])?[0];
        let said = (text(host, "state")?, text(host, "detail").unwrap_or_default());
        // What was there before the agent was stopped is not meant.
        let is_new = said.0 == "degraded" || packet(&somebody)? == "EPERM";
        Ok(is_new.then_some(said))
    })?;
    let has_packets = !detail.contains("without packet sockets (");
    let has_all = has_packets && !detail.contains("without ");
    if !has_all {
        ensure_eq!(state, "degraded", "{detail}");
    }

    // 3. It is as it says. A refusal is on the record, with the family.
    ensure_eq!(packet(&somebody)?, if has_packets { "EPERM" } else { "ok" }, "{detail}");
    if has_packets {
        let event = stage.wait_for_event("the refusal", |event| event["reason"] == "family_refused")?;
        let connection = &event["connection"];
        ensure_eq!((&event["event"], &connection["protocol"]), (&"conn.deny".into(), &"packet".into()));
        ensure_eq!((connection.get("port"), event.get("resource")), (None, None));
    }
    ensure_eq!(connect(&somebody, &listener)?, "EPERM");

    // 4. She requires it. Where the kernel has not all of it, the agent does not start, says what to do, and leaves the gate
    //    as it is.
    restart_with(&mut stage, &configuration, "require")?;
    if has_all {
        stage.wait_for_host("enforcing")?;
    } else {
        let status = stage.agent()?.wait()?;
        let log = stage.agent()?.log();
        let says = ["this host would be without", "unix sockets (", "set it to \"prefer\""];
        if status.success() || !says.iter().all(|words| log.contains(words)) {
            bail!("{status}:\n{log}");
        }
    }
    ensure_eq!(connect(&somebody, &listener)?, "EPERM");
    Ok(())
}

fn a_unix_socket_is_guarded_or_refused() -> Result<()> {
    // 1. An administrator names a unix socket. A host without the tier does not pretend to guard it.
    let (mut stage, listener) = stage_with_resource()?;
    let path = stage.path("server");
    let server = UnixServer::start(Type::STREAM, &path)?;
    let shown = path.display().to_string();
    stage.cli(ADMIN)?.run(&["resource", "add", "local-db", "--unix", &shown])?;
    let listed = stage.cli(ADMIN)?.json(&["resource", "list"])?;
    let listed = listed.as_array().context("a list")?.iter().find(|one| one["name"] == "local-db");
    ensure_eq!(listed.context("it is listed")?["unix"], serde_json::json!([shown]));
    let refused = "its unix sockets cannot be protected: ";
    let says = |stage: &Stage, words: &str| {
        let host = &stage.cli(ADMIN)?.json(&["status"])?[0];
        Ok(text(host, "detail").unwrap_or_default())
            .map(|detail: String| detail.contains(words).then_some(detail))
    };
    wait_for("the host to refuse it", SOON, || says(&stage, &format!("{refused}`kernel.lsm` is \"off\"")))?;
    let nobody = stage.sandbox().make_cgroup("nobody")?;
    ensure_eq!(unix_probe::reaches(&nobody, Attempt::Stream, &path, &server)?, true);
    // What else it guards it goes on guarding.
    ensure_eq!(connect(&nobody, &listener)?, "EPERM");

    // 2. With the tier it does, or says by name what it does not, and why.
    let configuration = fs::read_to_string(stage.path("agent.toml"))?;
    restart_with(&mut stage, &configuration, "prefer")?;
    let lacks = format!("{refused}the kernel");
    let is_open = wait_for("the host to say how it is", SOON, || {
        let is_open = unix_probe::reaches(&nobody, Attempt::Stream, &path, &server)?;
        let is_said = says(&stage, &lacks)?.is_some() && says(&stage, "without unix sockets (")?.is_some();
        Ok((is_said || !is_open).then_some(is_open))
    })?;
    if !is_open {
        let event = stage.wait_for_event("the refusal", |event| event["connection"]["path"] == *shown)?;
        let connection = &event["connection"];
        ensure_eq!((&event["event"], &event["resource"]), (&"conn.deny".into(), &"local-db".into()));
        ensure_eq!((&connection["hook"], &connection["protocol"]), (&"unix_connect".into(), &"unix".into()));
        ensure_eq!((connection.get("port"), connection.get("address")), (None, None));
    }
    Ok(())
}

fn packet(cgroup: &Cgroup) -> Result<String> {
    ask(cgroup, PACKET, Type::RAW, 0)
}

/// The tier is for this stage: everybody else on the machine is exempt.
fn restart_with(stage: &mut Stage, configuration: &str, demand: &str) -> Result<()> {
    stage.agent()?.kill()?;
    let strangers = tests::sandbox::strangers()?.into_values();
    let exempt: Vec<String> = strangers.map(|name| format!("\"cgroup:/{name}\"")).collect();
    let mut file = File::create(stage.path("agent.toml")).context("the configuration can be written")?;
    // Its last part is `[kernel]`.
    write!(file, "{configuration}lsm = \"{demand}\"\nlsm_exempt = [{}]\n", exempt.join(", "))?;
    stage.start_agent()
}
