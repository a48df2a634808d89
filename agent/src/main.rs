//! `portcullis-agent`: arguments, log, exit codes.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use agent::canary;
use agent::config::Config;
use agent::detach::{describe, detach, record_lift};
use agent::identity::Identities;
use agent::kernel::{self, program_costs};
use agent::observe;
use agent::raise::{Raised, raise};
use agent::run::{StateLock, run};
use agent::session::{EnrolmentError, join};
use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use proto::types::{Evidence, JoinToken};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Keeps the gate of this host: connections to protected ports are denied unless a live grant says otherwise.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

/// Far above any token.
const JOIN_TOKEN_MAX_BYTES: u64 = 4096;

const EXAMPLES: &str = "\
Examples:
  portcullis-agent check                       is the configuration usable?
  portcullis-agent join --token-file FILE      make this host known to the control plane, once
  portcullis-agent run                         what the service runs
  systemctl stop portcullis-agent && portcullis-agent detach
                                               lift the gate for good

Stopping the agent does not lift the gate: programs and maps stay pinned, what is granted ends at its deadline, and
everything else stays denied.

The log goes to standard error; RUST_LOG sets how much (default: info).";

#[derive(Subcommand)]
enum Verb {
    /// Put up the gate, or take over the one that is up, and follow the control plane
    Run {
        #[command(flatten)]
        configuration: Configuration,
    },
    /// Put up the gate as it was when this host went down, with no grant, and end: for the boot, before the network
    ///
    /// Protects what the last grant set protected, and lets nobody through; the agent takes it over. A gate that is up is
    /// left as it is. Needs no control plane.
    Raise {
        #[command(flatten)]
        configuration: Configuration,
    },
    /// Join the control plane: trade a join token for a certificate, with which the agent proves to be this host
    ///
    /// `portcullis host add` shows the token. The key is made here and does not leave this host; it lies in `identity` below the
    /// state directory. An agent that runs takes it up by itself.
    Join {
        #[command(flatten)]
        configuration: Configuration,
        /// The file with the token; `-`: standard input
        #[arg(long, value_name = "FILE")]
        token_file: PathBuf,
    },
    /// Check the configuration and say what it means
    Check {
        #[command(flatten)]
        configuration: Configuration,
    },
    /// Lift the gate: detach the programs and forget the maps. The agent must not be running
    Detach {
        #[command(flatten)]
        configuration: Configuration,
    },
    /// The tamper tier: programs that keep everybody but the agent from the gate
    Tamper {
        #[command(subcommand)]
        verb: TamperVerb,
    },
    /// Load the kernel programs without attaching them, and print what each costs, as JSON
    #[command(hide = true)]
    Programs,
    /// Try what only the agent may, as the running agent asks on standard input
    #[command(hide = true)]
    TamperHelper,
    /// Try what must be denied and what must not, as the running agent asks on standard input
    #[command(hide = true)]
    Canary {
        /// The cgroup to be in
        cgroup: PathBuf,
    },
}

#[derive(Subcommand)]
enum TamperVerb {
    /// Refuse nobody anything for a time, so that root can change the gate or put another agent in place; on the record
    Lift {
        #[command(flatten)]
        configuration: Configuration,
        /// How long, in minutes; 0: refuse again
        #[arg(long = "for", value_name = "MINUTES", default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=60))]
        minutes: u64,
    },
}

#[derive(clap::Args)]
struct Configuration {
    /// The configuration file
    #[arg(long = "config", value_name = "FILE", default_value = "/etc/portcullis/agent.toml")]
    path: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")))
        .init();
    let result = match arguments.verb {
        Verb::Run { configuration } => start(&configuration.path),
        Verb::Raise { configuration } => shut(&configuration.path),
        Verb::Join { configuration, token_file } => join_control_plane(&configuration.path, &token_file),
        Verb::Check { configuration } => check(&configuration.path),
        Verb::Detach { configuration } => lift(&configuration.path),
        Verb::Tamper { verb: TamperVerb::Lift { configuration, minutes } } => {
            lift_tamper(&configuration.path, minutes)
        }
        Verb::TamperHelper => kernel::serve_tamper_helper().context("the helper cannot go on"),
        Verb::Programs => programs(),
        Verb::Canary { cgroup } => canary::serve(&cgroup).context("the canary cannot go on"),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say_error(&error);
            ExitCode::FAILURE
        }
    }
}

#[allow(clippy::print_stderr, reason = "this is where errors are told to people")]
fn say_error(error: &anyhow::Error) {
    eprintln!("error: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("  caused by: {cause}");
    }
    if let Some(hint) = error.downcast_ref::<EnrolmentError>().and_then(EnrolmentError::hint) {
        eprintln!("hint: {hint}");
    }
}

#[allow(clippy::print_stdout, reason = "this is where results are told to people")]
fn say(text: &str) {
    println!("{text}");
}

fn load(path: &Path) -> Result<Config> {
    Ok(Config::load(path, observe::hostname)?)
}

#[tokio::main(flavor = "current_thread")]
async fn start(path: &Path) -> Result<()> {
    let config = load(path)?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let shutdown = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    Ok(run(config, shutdown).await?)
}

#[tokio::main(flavor = "current_thread")]
async fn join_control_plane(path: &Path, token_file: &Path) -> Result<()> {
    let config = load(path)?;
    let token = match token_file.as_os_str() == "-" {
        true => std::io::read_to_string(std::io::stdin().take(JOIN_TOKEN_MAX_BYTES)),
        false => std::fs::read_to_string(token_file),
    };
    let token = token.with_context(|| format!("cannot read the join token {}", token_file.display()))?;
    let token: JoinToken =
        token.parse().map_err(|error: proto::types::Invalid| anyhow::anyhow!(error.problem))?;
    let (evidence, identities) =
        (Evidence::JoinToken(token.secret().to_owned()), Identities::new(&config.state_dir));
    join(&config.control_plane, &config.host, evidence, token.authority, &identities).await?;
    say(&format!("host `{}` has joined {}", config.host, config.control_plane));
    Ok(())
}

fn check(path: &Path) -> Result<()> {
    let config = load(path)?;
    say(&format!(
        "host `{}`, control plane {}: the configuration is usable",
        config.host, config.control_plane
    ));
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn shut(path: &Path) -> Result<()> {
    let config = load(path)?;
    let _lock = StateLock::take(&config)?;
    match raise(&config)? {
        Raised::WasUp => say("a gate is up: it is left as it is"),
        Raised::Shut(0) => say("the gate is up; nothing is known yet that should be protected"),
        Raised::Shut(resources) => {
            say(&format!("the gate is up; resources that nobody gets to: {resources}"))
        }
    }
    Ok(())
}

fn lift(path: &Path) -> Result<()> {
    let config = load(path)?;
    let _lock = StateLock::take(&config)?;
    match detach(&config)?.as_slice() {
        [] => say("there is no gate"),
        lowered => say(&format!(
            "the gate is lifted: nothing is protected on this host any more\ndetached: {}",
            describe(lowered)
        )),
    }
    Ok(())
}

fn lift_tamper(path: &Path, minutes: u64) -> Result<()> {
    let config = load(path)?;
    let duration = Duration::from_secs(60 * minutes);
    if !kernel::lift_tamper(&config.kernel.pin_dir, duration)? {
        say("there is no tamper tier");
        return Ok(());
    }
    // The agent, if one runs, sees it and writes it down.
    if let Ok(_lock) = StateLock::take(&config) {
        record_lift(&config, minutes)?;
    }
    say(&match minutes {
        0 => "the tamper tier refuses again".to_owned(),
        minutes => format!("the tamper tier refuses nobody anything for {minutes} min"),
    });
    Ok(())
}

/// JSON by hand: four fields, none of which needs escaping.
fn programs() -> Result<()> {
    let costs = program_costs()?;
    let lines: Vec<String> = costs
        .iter()
        .map(|cost| {
            let verified = cost.verified_instructions.map_or("null".to_owned(), |count| count.to_string());
            format!(
                r#"  {{"name": "{}", "instructions": {}, "verified_instructions": {verified}, "jited_bytes": {}}}"#,
                cost.name, cost.instructions, cost.jited_bytes
            )
        })
        .collect();
    say(&format!("[\n{}\n]", lines.join(",\n")));
    Ok(())
}
