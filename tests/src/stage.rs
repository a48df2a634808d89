//! A whole installation on this machine: control plane, agent and the people who use them, with the real binaries.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use proto::types::Fingerprint;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::confined;
use crate::network::{self, Network};
use crate::other_agent;
use crate::postgres::Postgres;
use crate::process::{Background, output, wait_for};
use crate::sandbox::{Cgroup, Sandbox};
use crate::wall_clock::WallClock;

/// How long a daemon may take until it answers. These machines are shared: it is a bound, not a measure.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How long anything may take that takes milliseconds.
pub const SOON: Duration = Duration::from_secs(60);

/// The name of the one host.
pub const HOST: &str = "stage-1";

/// The configuration of the second control plane.
const REPLICA: &str = "replica.toml";

/// Where the database listens that control planes share.
const DATABASE_PORT: u16 = 5433;

/// The first administrator.
pub const ADMIN: &str = "user:admin";

/// The installation. Dropped, everything is ended and taken away.
pub struct Stage {
    control_plane: Option<Background>,
    /// A second control plane, where there are two.
    replica: Option<Background>,
    agent: Option<Background>,
    network: Option<Network>,
    /// What two control planes share.
    database: Option<Postgres>,
    /// The control plane's own.
    wall_clock: Option<WallClock>,
    sandbox: Sandbox,
}

/// How an installation differs from the usual one.
#[derive(Clone, Copy, Default)]
pub struct Plan<'a> {
    /// More lines of the control plane's configuration.
    pub control_plane: &'a str,
    /// More lines of the agent's configuration, before its tables.
    pub agent: &'a str,
    /// The host is a node of a cluster, and joins by itself with this token of its agent's pod; None: an operator lets it join.
    pub pod_token: Option<&'a str>,
    /// Control plane and host are in network namespaces of their own, and what they say goes over a wire.
    pub is_apart: bool,
    /// The agent's state is on a file system of its own, of so many bytes.
    pub state_bytes: Option<u64>,
    /// There are two control planes on a PostgreSQL database; the agent knows both.
    pub has_replica: bool,
    /// The control plane has a wall clock of its own, which can be set: [`Stage::set_wall_clock`].
    pub has_own_clock: bool,
}

/// A binary of the project, built beside this one.
pub fn binary(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe().context("this program's path")?;
    let found = here.ancestors().skip(1).take(3).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("there is no `{name}` beside {}: run `cargo xtask test`", here.display()))
}

impl Stage {
    /// Makes the database, starts control plane and agent, and waits until the host is enforcing.
    pub fn start() -> Result<Self> {
        Self::start_with("")
    }

    /// The same, with more lines in the agent's configuration.
    pub fn start_with(agent_configuration: &str) -> Result<Self> {
        Self::start_as(Plan { agent: agent_configuration, ..Plan::default() })
    }

    /// The same, by a plan.
    pub fn start_as(plan: Plan<'_>) -> Result<Self> {
        let sandbox = Sandbox::new()?;
        if let Some(bytes) = plan.state_bytes {
            sandbox.mount_state(bytes)?;
        }
        let network = plan.is_apart.then(|| Network::new(sandbox.dir())).transpose()?;
        let server = || Postgres::start(sandbox.dir(), sandbox.address(), DATABASE_PORT);
        let database = plan.has_replica.then(server).transpose()?;
        let wall_clock = plan.has_own_clock.then(|| WallClock::new(sandbox.dir())).transpose()?;
        let mut stage =
            Self { control_plane: None, replica: None, agent: None, network, database, wall_clock, sandbox };
        stage.write_control_plane_configuration(plan.control_plane)?;
        stage.init_control_plane()?;
        stage.start_control_plane()?;
        if plan.has_replica {
            stage.start_replica()?;
        }
        match plan.pod_token {
            None => {
                stage.write_agent_configuration(plan.agent)?;
                let token = stage.cli(ADMIN)?.run(&["host", "add", HOST])?;
                stage.join_with(&token)?;
            }
            Some(token) => {
                let join = stage.write_pod_token(token)?;
                stage.write_agent_configuration(&format!("{}\n{join}", plan.agent))?;
            }
        }
        stage.start_agent()?;
        stage.wait_for_host("enforcing")?;
        Ok(stage)
    }

    /// Where agents find the control plane: an address of this installation alone.
    fn control_plane_address(&self) -> SocketAddr {
        let address = match &self.network {
            None => self.sandbox.address().into(),
            Some(_) => network::CONTROL_PLANE.parse().expect("it is an address"),
        };
        SocketAddr::new(address, 7400)
    }

    /// Where agents find the second control plane.
    fn replica_address(&self) -> SocketAddr {
        SocketAddr::new(self.sandbox.address().into(), 7401)
    }

    fn write_control_plane_configuration(&self, more: &str) -> Result<()> {
        let dir = self.sandbox.dir().display();
        let database = match &self.database {
            None => format!("database = \"{dir}/control-plane.db\""),
            Some(server) => format!(
                "database = {{ url = \"postgresql://demo@{}:{DATABASE_PORT}/postgres\", tls = \"disable\" }}\n\
                 authority = \"{dir}/authority\"",
                server.address()
            ),
        };
        for (name, socket, address) in [
            ("control-plane.toml", "socket", self.control_plane_address()),
            (REPLICA, "replica.socket", self.replica_address()),
        ] {
            let control_plane =
                format!("listen = [\"unix:{dir}/{socket}\", \"{address}\"]\n{database}\n{more}\n");
            fs::write(self.path(name), control_plane)?;
        }
        Ok(())
    }

    /// Gives the host the token of a pod, as Kubernetes does: the table of the agent's configuration that names it.
    pub fn write_pod_token(&self, token: &str) -> Result<String> {
        let file = self.path("pod.token");
        fs::write(&file, token)?;
        let authority = CertificateDer::from_pem_file(self.path("authority/ca.pem"))?;
        let fingerprint = Fingerprint::new(Sha256::digest(&authority).into());
        Ok(format!(
            "[join]\nkubernetes_token_file = \"{}\"\nauthority_fingerprint = \"{fingerprint}\"",
            file.display()
        ))
    }

    fn write_agent_configuration(&self, more: &str) -> Result<()> {
        let dir = self.sandbox.dir().display();
        let mut control_planes = vec![format!("https://{}", self.control_plane_address())];
        if self.database.is_some() {
            control_planes.push(format!("https://{}", self.replica_address()));
        }
        let agent = format!(
            "host = \"{HOST}\"\ncontrol_plane = {control_planes:?}\nstate_dir = \"{dir}/agent\"\n{more}\n\
             [runs]\nsocket = \"{dir}/runs.sock\"\n[kernel]\npin_dir = \"{}\"\n",
            self.sandbox.pin_dir().display()
        );
        fs::write(self.path("agent.toml"), agent)?;
        Ok(())
    }

    /// Has the host join again, as an operator does.
    pub fn join(&self) -> Result<()> {
        self.join_with(&self.cli(ADMIN)?.run(&["host", "join-token", HOST])?)
    }

    /// Has the host join with this token.
    pub fn join_with(&self, token: &str) -> Result<()> {
        let file = self.path("join.token");
        fs::write(&file, token)?;
        let mut command = self.on_the_host(&binary("portcullis-agent")?);
        command.args(["join", "--config"]).arg(self.path("agent.toml")).arg("--token-file").arg(&file);
        output(&mut command).map(drop)
    }

    /// The network between control plane and host, of an installation that has one.
    pub fn network(&self) -> Result<&Network> {
        self.network.as_ref().context("control plane and host are not apart")
    }

    fn on_the_host(&self, program: &Path) -> Command {
        match &self.network {
            None => Command::new(program),
            Some(network) => network.host.command(program),
        }
    }

    /// Makes the database and the authority, with a new token of the administrator.
    pub fn init_control_plane(&self) -> Result<()> {
        let token_file = self.token_file(ADMIN);
        let _ = fs::remove_file(&token_file);
        let mut command = Command::new(binary("portcullis-control-plane")?);
        command.args(["init", "--quiet", "--config"]).arg(self.path("control-plane.toml"));
        output(command.arg("--token-file").arg(token_file)).map(drop)
    }

    /// What it stands on.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// A file of this installation.
    pub fn path(&self, name: &str) -> PathBuf {
        self.sandbox.dir().join(name)
    }

    /// Where the token of a subject is kept.
    fn token_file(&self, subject: &str) -> PathBuf {
        self.path(&format!("{}.token", subject.replace([':', '/'], "-")))
    }

    /// Starts the control plane, and waits until it answers.
    pub fn start_control_plane(&mut self) -> Result<()> {
        self.control_plane = Some(self.serve("control-plane.toml")?);
        Ok(())
    }

    /// Starts the second control plane, and waits until it answers.
    pub fn start_replica(&mut self) -> Result<()> {
        self.replica = Some(self.serve(REPLICA)?);
        Ok(())
    }

    /// A control plane that is up.
    fn serve(&self, configuration: &str) -> Result<Background> {
        let ready = self.path(&format!("{configuration}.ready"));
        let _ = fs::remove_file(&ready);
        let program = binary("portcullis-control-plane")?;
        let mut command = match &self.network {
            None => Command::new(program),
            Some(network) => network.control_plane.command(program),
        };
        command.args(["serve", "--config"]).arg(self.path(configuration)).arg("--ready-file").arg(&ready);
        if let Some(clock) = &self.wall_clock {
            clock.show(&mut command);
        }
        let log = self.path(configuration).with_extension("log");
        let mut process = Background::start("the control plane", &mut command, &log)?;
        if let Some(clock) = &self.wall_clock {
            clock.is_shown_to(process.pid());
        }
        wait_for("the control plane to answer", START_TIMEOUT, || {
            process.ensure_running()?;
            Ok(ready.exists().then_some(()))
        })?;
        Ok(process)
    }

    /// Sets the wall clock of the control plane, of an installation where it has its own, so many seconds before or after what is right.
    pub fn set_wall_clock(&self, off_seconds: i64) -> Result<()> {
        self.wall_clock.as_ref().context("the control plane has no wall clock of its own")?.set(off_seconds)
    }

    /// Starts the agent.
    pub fn start_agent(&mut self) -> Result<()> {
        let mut command = self.on_the_host(&binary("portcullis-agent")?);
        command.args(["run", "--config"]).arg(self.path("agent.toml"));
        self.start_as_agent(&mut command)
    }

    /// Starts the agent where every `openat2` of its fails with `error`.
    pub fn start_agent_without_openat2(&mut self, error: Errno) -> Result<()> {
        let mut command = confined::without_openat2(binary("portcullis-agent")?, error)?;
        command.args(["run", "--config"]).arg(self.path("agent.toml"));
        self.start_as_agent(&mut command)
    }

    /// Starts an agent of another ABI version.
    pub fn start_other_agent(&mut self) -> Result<()> {
        self.start_as_agent(&mut other_agent::command(&self.path("agent.toml"))?)
    }

    fn start_as_agent(&mut self, command: &mut Command) -> Result<()> {
        let log = self.path("agent.log");
        self.agent = Some(Background::start("the agent", command, &log)?);
        Ok(())
    }

    /// Waits until the gate of this ABI version is the only one.
    pub fn wait_for_version(&mut self, abi_version: u32) -> Result<()> {
        let pin_dir = self.sandbox.pin_dir();
        let only = [format!("abi-{abi_version}")];
        let waited = wait_for(&format!("the gate to be {only:?} alone"), START_TIMEOUT, || {
            let names =
                fs::read_dir(&pin_dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            Ok((names.collect::<Result<Vec<_>>>()? == only).then_some(()))
        });
        let log = self.agent.as_ref().map(Background::log).unwrap_or_default();
        waited.with_context(|| format!("the agent's log:\n{log}"))
    }

    /// The running control plane.
    pub fn control_plane(&mut self) -> Result<&mut Background> {
        self.control_plane.as_mut().context("the control plane is not running")
    }

    /// The running agent.
    pub fn agent(&mut self) -> Result<&mut Background> {
        self.agent.as_mut().context("the agent is not running")
    }

    /// Ends the control plane as a crash would.
    pub fn kill_control_plane(&mut self) -> Result<()> {
        self.control_plane.take().context("the control plane is not running")?.kill()
    }

    /// Ends the second control plane as a crash would.
    pub fn kill_replica(&mut self) -> Result<()> {
        self.replica.take().context("the second control plane is not running")?.kill()
    }

    /// Ends the agent as a crash would.
    pub fn kill_agent(&mut self) -> Result<()> {
        self.agent.take().context("the agent is not running")?.kill()
    }

    /// Waits until `status` shows the host in this state.
    pub fn wait_for_host(&mut self, state: &str) -> Result<()> {
        self.wait_for_host_to_say(state, "")
    }

    /// The same, and until its detail has these words.
    pub fn wait_for_host_to_say(&mut self, state: &str, words: &str) -> Result<()> {
        let cli = self.cli(ADMIN)?;
        let waited = wait_for(&format!("the host to be {state}: {words}"), START_TIMEOUT, || {
            let hosts = cli.json(&["status"])?;
            let (now, detail) = (&hosts[0]["state"], hosts[0]["detail"].as_str().unwrap_or_default());
            // The gates of other tests stand at the same root: that their programs run after ours is told, and is right.
            let only_others = detail.split("; ").all(|part| part.contains(" runs after ours at "));
            let is_so = now == state || (state == "enforcing" && now == "degraded" && only_others);
            Ok((is_so && detail.contains(words)).then_some(()))
        });
        let log = self.agent.as_ref().map(Background::log).unwrap_or_default();
        waited.with_context(|| format!("the agent's log:\n{log}"))
    }

    /// Waits until the host's kernel holds what the control plane wants there.
    pub fn wait_until_applied(&self) -> Result<()> {
        let admin = self.cli(ADMIN)?;
        wait_for("the kernel to hold the newest set", SOON, || {
            let hosts = admin.json(&["status"])?;
            let generation =
                |field: &str| hosts[0][field].as_u64().with_context(|| format!("no `{field}` in {hosts}"));
            Ok((generation("applied_generation")? == generation("wanted_generation")?).then_some(()))
        })
    }

    /// Makes a subject known and gives it a token to sign in with.
    pub fn add_subject(&self, id: &str, role: &str, selectors: &[&str]) -> Result<()> {
        let mut arguments = vec!["subject", "add", id, "--role", role];
        arguments.extend(selectors.iter().flat_map(|selector| ["--selector", selector]));
        let admin = self.cli(ADMIN)?;
        admin.run(&arguments)?;
        let token_file = self.token_file(id).display().to_string();
        admin.run(&["subject", "token", id, "--new-token-file", &token_file])?;
        Ok(())
    }

    /// A subject with a cgroup of its own.
    pub fn add_subject_with_cgroup(&self, id: &str) -> Result<Cgroup> {
        let cgroup = self.sandbox.make_cgroup(&id.replace([':', '/'], "-"))?;
        self.add_subject(id, "member", &[&format!("cgroup:{}", cgroup.path)])?;
        Ok(cgroup)
    }

    /// The command line of a subject.
    pub fn cli(&self, subject: &str) -> Result<Cli> {
        let server = match &self.network {
            None => format!("unix:{}", self.path("socket").display()),
            Some(_) => format!("https://{}", self.control_plane_address()),
        };
        let netns = self.network.as_ref().map(|network| network.host.path());
        let ca_file = self.path("authority/ca.pem");
        Ok(Cli {
            program: binary("portcullis")?,
            netns,
            server,
            ca_file,
            token_file: self.token_file(subject),
        })
    }

    /// The same beside the control plane, which no cut of the network keeps it from.
    pub fn cli_here(&self, subject: &str) -> Result<Cli> {
        let server = format!("unix:{}", self.path("socket").display());
        Ok(Cli { server, netns: None, ..self.cli(subject)? })
    }

    /// The command line of a subject at the second control plane.
    pub fn cli_of_replica(&self, subject: &str) -> Result<Cli> {
        let server = format!("unix:{}", self.path("replica.socket").display());
        Ok(Cli { server, ..self.cli(subject)? })
    }

    /// Asks for access as the subject, has the administrator approve, and returns when the kernel holds the grant: its id.
    pub fn grant(&self, subject: &str, resource: &str, duration: &str) -> Result<String> {
        self.cli(ADMIN)?.grant(&self.cli(subject)?, resource, duration)
    }

    /// Waits until a grant is in this state.
    pub fn wait_for_grant(&self, id: &str, state: &str) -> Result<Value> {
        self.cli(ADMIN)?.wait_for_grant(id, state)
    }

    /// All events so far, oldest first.
    pub fn events(&self) -> Result<Vec<Value>> {
        self.cli(ADMIN)?.events()
    }

    /// Waits until an event is in the record.
    pub fn wait_for_event(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
        self.cli(ADMIN)?.wait_for_event(what, is_it)
    }
}

/// A field of a JSON object that is text.
pub fn text(value: &Value, field: &str) -> Result<String> {
    let text = value[field].as_str().with_context(|| format!("no text in `{field}` of {value}"))?;
    Ok(text.to_owned())
}

/// The command line of one subject.
pub struct Cli {
    program: PathBuf,
    /// As `nsenter` takes it; None: the network of this test.
    netns: Option<String>,
    server: String,
    ca_file: PathBuf,
    token_file: PathBuf,
}

impl Cli {
    /// The one that is installed on this host, for a control plane that is.
    pub fn installed(server: &str, ca_file: &Path, token_file: &Path) -> Self {
        let (ca_file, token_file) = (ca_file.to_owned(), token_file.to_owned());
        Self {
            program: "/usr/bin/portcullis".into(),
            netns: None,
            server: server.to_owned(),
            ca_file,
            token_file,
        }
    }

    /// A command, to be changed and run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match &self.netns {
            None => Command::new(&self.program),
            Some(netns) => {
                let mut command = Command::new("nsenter");
                command.arg(netns).arg(&self.program);
                command
            }
        };
        command.args(arguments).stdin(Stdio::null()).env("PORTCULLIS_CA_FILE", &self.ca_file);
        command.env("PORTCULLIS_SERVER", &self.server).env("PORTCULLIS_TOKEN_FILE", &self.token_file);
        command
    }

    /// Runs it; gives back what it printed. Fails if it fails.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        output(&mut self.command(arguments))
    }

    /// Runs it with `-o json`.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let mut arguments = arguments.to_vec();
        arguments.extend(["-o", "json"]);
        serde_json::from_str(&self.run(&arguments)?).context("the CLI printed no JSON")
    }

    /// Runs it; it must fail with this exit code, and its error must have these words.
    pub fn fails(&self, arguments: &[&str], code: i32, words: &str) -> Result<()> {
        let output: Output = self.command(arguments).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        if output.status.code() != Some(code) || !stderr.contains(words) {
            bail!("{arguments:?}: {}, expected exit code {code} and `{words}`:\n{stderr}", output.status);
        }
        Ok(())
    }

    /// As the administrator: approves what somebody asks for, and returns when the kernel holds the grant: its id.
    pub fn grant(&self, somebody: &Self, resource: &str, duration: &str) -> Result<String> {
        let request =
            somebody.json(&["request", resource, "--for", duration, "--reason", "a story needs it"])?;
        let grant = text(&self.json(&["approve", &text(&request, "id")?])?, "id")?;
        self.wait_for_grant(&grant, "active")?;
        Ok(grant)
    }

    /// As the administrator: waits until a grant is in this state.
    pub fn wait_for_grant(&self, id: &str, state: &str) -> Result<Value> {
        wait_for(&format!("grant {id} to be {state}"), SOON, || {
            let grants = self.json(&["grants", "--all"])?;
            let found = grants.as_array().into_iter().flatten().find(|grant| grant["id"] == id);
            Ok(found.filter(|grant| grant["state"] == state).cloned())
        })
    }

    /// As the administrator: all events so far, oldest first.
    pub fn events(&self) -> Result<Vec<Value>> {
        let lines = self.run(&["audit", "tail", "--after", "0", "-o", "json"])?;
        lines.lines().map(|line| serde_json::from_str(line).context("an event is no JSON")).collect()
    }

    /// As the administrator: waits until an event is in the record.
    pub fn wait_for_event(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
        wait_for(what, SOON, || Ok(self.events()?.into_iter().find(|event| is_it(event))))
    }
}
