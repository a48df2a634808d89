//! The host: control plane and agent installed by the steps that the documentation names, once for all tests.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use proto::types::Protocol;
use tests::listener::Listener;
use tests::process::{output, wait_for};
use tests::stage::Cli;

/// What is protected, on an address of this machine alone, and who serves it.
const RESOURCE: &str = "db";
const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(127, 78, 0, 1)), 5432);

/// Units start within seconds; where the processor is software, in some more.
const START_TIMEOUT: Duration = Duration::from_secs(300);

const UNITS: [(&str, &str); 3] = [
    (
        "portcullis-control-plane.service",
        include_str!("../../deploy/systemd/portcullis-control-plane.service"),
    ),
    ("portcullis-agent.service", include_str!("../../deploy/systemd/portcullis-agent.service")),
    ("portcullis-gate.service", include_str!("../../deploy/systemd/portcullis-gate.service")),
];
const CONFIGURATIONS: [(&str, &str); 2] = [
    ("control-plane.toml", include_str!("../../deploy/etc/control-plane.toml")),
    ("agent.toml", include_str!("../../deploy/etc/agent.toml")),
];
const SYSUSERS: &str = include_str!("../../deploy/sysusers.d/portcullis.conf");

/// The installation, with one protected server.
pub(crate) struct Host {
    pub(crate) admin: Cli,
    listener: Listener,
}

/// The one that there is.
pub(crate) fn host() -> Result<&'static Host> {
    static HOST: OnceLock<Result<Host, String>> = OnceLock::new();
    let host = HOST.get_or_init(|| Host::install().map_err(|error| format!("{error:#}")));
    host.as_ref().map_err(|error| anyhow!("cannot install: {error}"))
}

/// A line of shell, as root.
pub(crate) fn sh(line: &str) -> Result<String> {
    output(Command::new("/bin/bash").args(["-c", line]))
}

/// A line of shell in a session of a person's, by ssh.
pub(crate) fn session(person: &str, line: &str) -> Command {
    let mut ssh = Command::new("ssh");
    ssh.args([
        "-oBatchMode=yes",
        "-oStrictHostKeyChecking=no",
        "-oUserKnownHostsFile=/dev/null",
        "-oLogLevel=ERROR",
    ]);
    ssh.arg(format!("{person}@127.0.0.1")).arg(line);
    ssh
}

/// A line of bash that sends a marker to the protected server, and fails if it cannot connect.
pub(crate) fn send(marker: &str) -> String {
    format!("exec 3<>/dev/tcp/{}/{} && echo -n {marker} >&3", SERVER.ip(), SERVER.port())
}

/// The same, once it can connect, or after half a minute. A cgroup that has just been made is found within 100 ms of a processor's time;
/// where the processor is software, that takes longer.
pub(crate) fn send_patiently(marker: &str) -> String {
    let tried = format!("(exec 3<>/dev/tcp/{}/{}) 2>/dev/null", SERVER.ip(), SERVER.port());
    format!("for try in {{1..150}}; do {tried} && break; sleep 0.2; done; {}", send(marker))
}

/// By which the administrator signs in.
const TOKEN: &str = "/run/made/token";

impl Host {
    fn install() -> Result<Self> {
        // Another process of tests was here before.
        if !Path::new(TOKEN).exists() {
            install()?;
        }
        let host = Self { admin: cli(TOKEN), listener: Listener::start(Protocol::Tcp, SERVER)? };
        host.wait_until_enforcing()?;
        host.wait_until_applied()?;
        Ok(host)
    }

    /// Waits until the canary has proven the gate, and the host lacks nothing.
    pub(crate) fn wait_until_enforcing(&self) -> Result<()> {
        let waited = wait_for("the host to be enforcing", START_TIMEOUT, || {
            // A control plane that has just been started cannot be reached yet.
            let Ok(hosts) = self.admin.json(&["status"]) else { return Ok(None) };
            Ok((hosts[0]["state"] == "enforcing").then_some(()))
        });
        waited.with_context(|| self.story())
    }

    /// What the parts say of themselves, for whoever reads why a test has failed.
    fn story(&self) -> String {
        let status = self.admin.run(&["status"]).unwrap_or_default();
        let log = sh(
            "journalctl --no-pager -n 60 -u portcullis-agent -u portcullis-gate -u portcullis-control-plane",
        );
        let cgroups = sh("systemd-cgls --no-pager --all");
        let denials: Vec<String> = self
            .admin
            .events()
            .unwrap_or_default()
            .iter()
            .rev()
            .filter(|event| event["event"] == "conn.deny")
            .take(3)
            .map(ToString::to_string)
            .collect();
        let (log, cgroups) = (log.unwrap_or_default(), cgroups.unwrap_or_default());
        format!("{status}\n{}\n{log}\n{cgroups}", denials.join("\n"))
    }

    fn wait_until_applied(&self) -> Result<()> {
        wait_for("the kernel to hold the newest set", START_TIMEOUT, || {
            let hosts = self.admin.json(&["status"])?;
            Ok((hosts[0]["applied_generation"] == hosts[0]["wanted_generation"]).then_some(()))
        })
    }

    /// A subject, which another test may have made known already: what two of them claim would be nobody's.
    pub(crate) fn subject(&self, id: &str, selector: &str) -> Result<Cli> {
        let token_file = format!("/run/made/{}", id.replace([':', '/'], "-"));
        if !Path::new(&token_file).exists() {
            self.admin.run(&["subject", "add", id, "--role", "member", "--selector", selector])?;
            self.admin.run(&["subject", "token", id, "--new-token-file", &token_file])?;
            self.wait_until_applied()?;
        }
        Ok(cli(&token_file))
    }

    /// Alice, by her name.
    pub(crate) fn alice(&self) -> Result<Cli> {
        self.subject("user:alice", "unix-user:alice")
    }

    /// Has somebody let through for ten minutes: the grant's id.
    pub(crate) fn grant(&self, somebody: &Cli) -> Result<String> {
        self.admin.grant(somebody, RESOURCE, "10m")
    }

    /// Ends a grant, and waits until the kernel has let go of it.
    pub(crate) fn revoke(&self, grant: &str) -> Result<()> {
        self.admin.run(&["revoke", grant, "--comment", "the test is over"])?;
        self.admin.wait_for_grant(grant, "ended").map(drop)
    }

    /// Whether a marker gets from there to the server: what the command says of it, and what has arrived, must agree.
    pub(crate) fn gets_through(&self, marker: &str, mut command: Command) -> Result<bool> {
        let result = command.output().with_context(|| format!("cannot run {command:?}"))?;
        let errors = String::from_utf8_lossy(&result.stderr).into_owned();
        if result.status.success() {
            if !self.listener.has_received(marker) {
                bail!("{command:?} succeeded, and nothing arrived: {errors}");
            }
            return Ok(true);
        }
        if self.listener.arrived(marker) {
            bail!("{command:?} failed, and its marker arrived: {errors}");
        }
        // A command that could not run at all proves nothing.
        let is_refusal =
            ["Operation not permitted", "not permitted"].iter().any(|words| errors.contains(words));
        if is_refusal { Ok(false) } else { bail!("{command:?}: {}: {errors}", result.status) }
    }

    /// Checks that it does, for a command that is patient.
    pub(crate) fn is_let_through(&self, marker: &str, command: Command) -> Result<()> {
        match self.gets_through(marker, command)? {
            true => Ok(()),
            false => bail!("`{marker}` does not get through:\n{}", self.story()),
        }
    }

    /// Whether a session of a person's gets there.
    pub(crate) fn reaches(&self, person: &str, marker: &str) -> Result<bool> {
        self.gets_through(marker, session(person, &send(marker)))
    }

    /// Checks that it does.
    pub(crate) fn lets_through(&self, person: &str, marker: &str) -> Result<()> {
        self.is_let_through(marker, session(person, &send_patiently(marker)))
    }
}

/// As the documentation says.
fn install() -> Result<()> {
    let configuration = Path::new("/etc/portcullis");
    fs::create_dir_all(configuration)?;
    for (name, text) in UNITS {
        fs::write(Path::new("/etc/systemd/system").join(name), text)?;
    }
    // Where the processor is software, the kernel's verifier takes its time.
    let patience = Path::new("/etc/systemd/system/portcullis-gate.service.d");
    fs::create_dir_all(patience)?;
    fs::write(patience.join("patience.conf"), "[Service]\nTimeoutStartSec=5min\n")?;
    for (name, text) in CONFIGURATIONS {
        // The only thing that everybody has to change.
        fs::write(configuration.join(name), text.replace("portcullis.example.com", "localhost"))?;
    }
    fs::create_dir_all("/etc/sysusers.d")?;
    fs::write("/etc/sysusers.d/portcullis.conf", SYSUSERS)?;
    sh("systemd-sysusers && systemctl daemon-reload")?;
    sh("install -d -o portcullis -g portcullis -m 0700 /var/lib/portcullis")?;
    // Where the tokens of the tests are made.
    sh("install -d -o portcullis /run/made")?;
    sh("runuser -u portcullis -- portcullis-control-plane init --quiet \
            --config /etc/portcullis/control-plane.toml --token-file /run/made/token")?;
    sh("systemctl start portcullis-control-plane")?;
    let socket = Path::new("/run/portcullis/control-plane.sock");
    wait_for("the control plane's socket", START_TIMEOUT, || Ok(socket.exists().then_some(())))?;
    let admin = cli(TOKEN);
    let join = admin.run(&["host", "add", &hostname()?, "--label", "env=test"])?;
    fs::write("/run/join.token", join)?;
    sh("portcullis-agent join --token-file - </run/join.token")?;
    sh("systemctl enable --now portcullis-gate portcullis-agent")?;
    let (address, port) = (SERVER.ip().to_string(), format!("tcp/{}", SERVER.port()));
    admin.run(&["resource", "add", RESOURCE, "--address", &address, "--port", &port])?;
    prepare_ssh()
}

fn cli(token_file: &str) -> Cli {
    let ca_file = Path::new("/var/lib/portcullis/authority/ca.pem");
    Cli::installed("unix:/run/portcullis/control-plane.sock", ca_file, Path::new(token_file))
}

fn hostname() -> Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned())
}

/// Root may sign in as everybody.
fn prepare_ssh() -> Result<()> {
    sh(
        "[ -e ~/.ssh/id_ed25519 ] || { install -d -m 0700 ~/.ssh && ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519; }",
    )?;
    for person in ["alice", "bob"] {
        sh(&format!(
            "install -d -o {person} -g {person} -m 0700 /home/{person}/.ssh && \
             install -o {person} -g {person} -m 0600 ~/.ssh/id_ed25519.pub /home/{person}/.ssh/authorized_keys"
        ))?;
    }
    sh("systemctl start ssh").map(drop)
}
