//! A real PostgreSQL server of one's own.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use nix::unistd::User;

use crate::process::{Background, output, wait_for};

/// A server makes its files, and starts, within a few seconds; more where the disk is busy.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The server. Dropped, it is ended.
pub struct Postgres {
    address: Ipv4Addr,
    port: u16,
    programs: PathBuf,
    process: Background,
}

impl Postgres {
    /// Makes a database cluster in `dir`, and serves it on this address. What is lost with the machine is made again.
    pub fn start(dir: &Path, address: Ipv4Addr, port: u16) -> Result<Self> {
        Self::start_with(dir, address, port, &["fsync=off"])
    }

    /// The same, as a server whose data matter.
    pub fn start_durable(dir: &Path, address: Ipv4Addr, port: u16) -> Result<Self> {
        Self::start_with(dir, address, port, &[])
    }

    fn start_with(dir: &Path, address: Ipv4Addr, port: u16, settings: &[&str]) -> Result<Self> {
        let programs = programs()?;
        // The server refuses to run as root.
        let user =
            User::from_name("postgres")?.context("there is no account `postgres`: install postgresql")?;
        let data = dir.join("postgres");
        fs::create_dir(&data)?;
        chown(&data, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        // So that the account can get there; what lies beside has modes of its own.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o711))?;
        let as_postgres = |program: &str| {
            let mut command = Command::new("/usr/bin/setpriv");
            command
                .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
                .arg(programs.join(program));
            command
        };
        output(
            as_postgres("initdb")
                .args(["--auth=trust", "--username=demo", "--no-sync", "--encoding=UTF8", "--locale=C", "-D"])
                .arg(&data),
        )?;
        let mut command = as_postgres("postgres");
        command.arg("-D").arg(&data).args(["-p", &port.to_string()]);
        command.args(settings.iter().flat_map(|setting| ["-c", setting]));
        command.args(["-c", &format!("listen_addresses={address}"), "-c", "unix_socket_directories="]);
        // A session that computes looks whether its client is still there only if it is asked to.
        command.args(["-c", "client_connection_check_interval=100ms"]);
        let process = Background::start("PostgreSQL", &mut command, &dir.join("postgres.log"))?;
        let mut postgres = Self { address, port, programs, process };
        wait_for("PostgreSQL to answer", START_TIMEOUT, || {
            postgres.process.ensure_running()?;
            let ready =
                Command::new(postgres.programs.join("pg_isready")).args(postgres.arguments()).output()?;
            Ok(ready.status.success().then_some(()))
        })?;
        Ok(postgres)
    }

    /// Where it listens.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Makes a database that nobody has used.
    pub fn create_database(&self, name: &str) -> Result<()> {
        let mut command = Command::new(self.psql());
        command.args(self.arguments()).args(["-qc", &format!("CREATE DATABASE {name}")]);
        output(&mut command).map(drop)
    }

    /// Which version it is.
    pub fn version(&self) -> Result<String> {
        let mut command = Command::new(self.psql());
        Ok(output(command.args(self.arguments()).args(["-tAc", "SHOW server_version"]))?.trim().to_owned())
    }

    /// The client program.
    pub fn psql(&self) -> PathBuf {
        self.programs.join("psql")
    }

    /// The program that measures a server.
    pub fn pgbench(&self) -> PathBuf {
        self.programs.join("pgbench")
    }

    /// How any client of PostgreSQL is told where the server is.
    pub fn arguments(&self) -> Vec<String> {
        let (address, port) = (self.address.to_string(), self.port.to_string());
        ["-h", &address, "-p", &port, "-U", "demo", "-d", "postgres"].map(ToOwned::to_owned).to_vec()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Its "fast" shutdown: it ends its own processes first. Should it not, it is killed.
        if self.process.signal(Signal::SIGINT).is_ok() {
            let _ = self.process.wait();
        }
    }
}

/// Where the newest installed version keeps its programs.
fn programs() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql")
        .context("PostgreSQL is not installed: run `cargo xtask setup`")?;
    let version = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    let installed = versions.filter_map(|entry| Some(entry.ok()?.path()));
    let newest = installed.filter(|path| path.join("bin/postgres").is_file()).max_by_key(version);
    match newest {
        Some(path) => Ok(path.join("bin")),
        None => bail!("no PostgreSQL server in /usr/lib/postgresql: run `cargo xtask setup`"),
    }
}
