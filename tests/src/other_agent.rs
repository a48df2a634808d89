//! An agent of another ABI version, or on a part of the host: this program, as the agent that it is made of.
//!
//! Started with [`FLAG`] the test binary runs the agent's own code under another version number, and with maps of another
//! size, which an agent of one version would refuse to adopt. With [`GROUND_FLAG`] it runs it as it is, for the processes in one
//! cgroup, and without a canary, whose records would be among those that are counted.

use std::path::{Path, PathBuf};
use std::process::Command;

use agent::config::Config;
use agent::run::Ground;
use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

/// The first argument of such an agent.
pub const FLAG: &str = "--as-agent";

/// The first argument of an agent on a part of the host.
pub const GROUND_FLAG: &str = "--as-agent-on";

/// A version that is no real one's.
pub const ABI_VERSION: u32 = 4_000_000;

/// The command of an agent with this configuration and [`ABI_VERSION`].
pub fn command(configuration: &Path) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("this program's path")?);
    command.arg(FLAG).arg(configuration);
    Ok(command)
}

/// The command of an agent with this configuration, for the processes in this cgroup and below.
pub fn command_on(cgroup: &Path, configuration: &Path) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("this program's path")?);
    command.arg(GROUND_FLAG).arg(configuration).arg(cgroup);
    Ok(command)
}

/// Runs as an agent, and ends the process, if it was started as one.
pub fn run_if_asked() {
    let mut arguments = std::env::args_os().skip(1);
    let flag = arguments.next().unwrap_or_default();
    if flag == FLAG || flag == GROUND_FLAG {
        let configuration = arguments.next().context("a configuration");
        let ground = arguments.next().map(PathBuf::from);
        let result = configuration.and_then(|path| run(Path::new(&path), ground));
        std::process::exit(match result {
            Ok(()) => 0,
            Err(error) => {
                complain(&format!("agent: {error:#}"));
                1
            }
        });
    }
}

fn run(configuration: &Path, ground: Option<PathBuf>) -> Result<()> {
    let mut config = Config::load(configuration, String::new)?;
    let ground = match ground {
        Some(cgroup_root) => Ground { cgroup_root, program: "/bin/false".into() },
        None => {
            config.kernel.abi_version = ABI_VERSION;
            config.kernel.connections_max /= 2;
            config.kernel.grants_max /= 2;
            Ground::of_host()?
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let shutdown = async move {
            terminate.recv().await;
        };
        agent::run::run_on(ground, config, shutdown, drop).await?;
        Ok(())
    })
}

#[allow(clippy::print_stderr, reason = "goes to the log that a failing test shows")]
fn complain(text: &str) {
    eprintln!("{text}");
}
