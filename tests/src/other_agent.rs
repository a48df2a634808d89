//! An agent of another ABI version: this program, as the agent that it is made of.
//!
//! Started with [`FLAG`] the test binary runs the agent's own code under another version number, and with maps of another
//! size, which an agent of one version would refuse to adopt.

use std::path::Path;
use std::process::Command;

use agent::config::Config;
use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

/// The first argument of such an agent.
pub const FLAG: &str = "--as-agent";

/// A version that is no real one's.
pub const ABI_VERSION: u32 = 4_000_000;

/// The command of an agent with this configuration and [`ABI_VERSION`].
pub fn command(configuration: &Path) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("this program's path")?);
    command.arg(FLAG).arg(configuration);
    Ok(command)
}

/// Runs as an agent, and ends the process, if it was started as one.
pub fn run_if_asked() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|flag| flag == FLAG) {
        let result = arguments.next().context("a configuration").and_then(|path| run(Path::new(&path)));
        std::process::exit(match result {
            Ok(()) => 0,
            Err(error) => {
                complain(&format!("agent: {error:#}"));
                1
            }
        });
    }
}

fn run(configuration: &Path) -> Result<()> {
    let mut config = Config::load(configuration, String::new)?;
    config.kernel.abi_version = ABI_VERSION;
    config.kernel.connections_max /= 2;
    config.kernel.grants_max /= 2;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let shutdown = async move {
            terminate.recv().await;
        };
        agent::run::run(config, shutdown).await?;
        Ok(())
    })
}

#[allow(clippy::print_stderr, reason = "goes to the log that a failing test shows")]
fn complain(text: &str) {
    eprintln!("{text}");
}
