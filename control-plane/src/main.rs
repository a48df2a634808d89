//! `portcullis-control-plane`: arguments, the configuration file, signals, exit codes.
//!
//! Exit codes: 0 done; 1 it could not be done; 2 the arguments or the configuration are wrong.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::{Args, Parser, Subcommand};
use control_plane::config::{Config, ConfigError, Database, Listen};
use control_plane::identity::Token;
use control_plane::identity::authority::{Authority, AuthorityError, TRUST_DOMAIN};
use control_plane::store::{Store, StoreError};
use control_plane::{Bound, ServeError, clock};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proto::types::Fingerprint;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// For all the connections that are taken, and the database.
const OPEN_FILES_WANTED: u64 = 12_500;

/// The control plane of Portcullis: requests, approvals, grants, the audit record.
#[derive(Parser)]
#[command(name = "portcullis-control-plane", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes the database, the authority that signs hosts' certificates, and the first administrator, `user:admin`, and shows the
    /// administrator's token once
    Init(Init),
    /// Runs the control plane until SIGTERM or SIGINT
    Serve(Serve),
    /// Copies a SQLite database, whole and as of one moment, while it is used or not
    Backup(Backup),
}

#[derive(Args)]
struct Init {
    #[command(flatten)]
    place: Place,
    /// Write the token to a new file that only you can read, instead of to standard output
    #[arg(long, value_name = "PATH")]
    token_file: Option<PathBuf>,
    /// In which domain hosts are named, as `spiffe://DOMAIN/host/NAME`; it is the authority's, and cannot be changed later
    #[arg(long, value_name = "DOMAIN", default_value = TRUST_DOMAIN)]
    trust_domain: String,
    /// Say nothing but the token
    #[arg(long)]
    quiet: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Place {
    /// The configuration that names database and authority
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A SQLite database; the authority is made beside it
    #[arg(long, value_name = "PATH")]
    database: Option<PathBuf>,
}

#[derive(Args)]
struct Serve {
    /// The configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Write the addresses here, one a line, as soon as callers are answered
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
}

#[derive(Args)]
struct Backup {
    #[command(flatten)]
    place: Place,
    /// The copy, which must not be there; only you can read it
    copy: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_log();
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::from(if error.is::<ConfigError>() { 2 } else { 1 })
        }
    }
}

fn start_log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

/// The error, what it comes from, and what to do next.
fn report(error: &anyhow::Error) {
    let mut text = format!("error: {error}\n");
    for cause in error.chain().skip(1) {
        text += &format!("  caused by: {cause}\n");
    }
    let hint = error
        .downcast_ref::<StoreError>()
        .map(StoreError::hint)
        .or_else(|| error.downcast_ref::<ServeError>().map(ServeError::hint))
        .or_else(|| error.downcast_ref::<AuthorityError>().map(AuthorityError::hint))
        .unwrap_or_default();
    if !hint.is_empty() {
        text += &format!("hint: {hint}\n");
    }
    // Nobody is left to tell if this fails.
    let _ = io::stderr().write_all(text.as_bytes());
}

fn run(command: Command) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    match command {
        Command::Init(init) => runtime.block_on(initialise(&init)),
        Command::Serve(serve) => runtime.block_on(run_server(serve)),
        Command::Backup(backup) => runtime.block_on(copy(&backup)),
    }
}

/// The database, and the folder of the authority.
fn find(place: &Place) -> anyhow::Result<(Database, PathBuf)> {
    match (&place.config, &place.database) {
        (_, Some(path)) => Ok((Database::from(path), Config::authority_beside(path))),
        (Some(config), None) => {
            let Config { database, authority, .. } = Config::read(config)?;
            Ok((database, authority))
        }
        (None, None) => Err(anyhow!("neither --config nor --database was given")),
    }
}

async fn copy(backup: &Backup) -> anyhow::Result<()> {
    let (database, _) = find(&backup.place)?;
    Ok(Store::backup(&database, &backup.copy).await?)
}

async fn initialise(init: &Init) -> anyhow::Result<()> {
    let (database, authority) = find(&init.place)?;
    // Before the database: a token that nobody can be shown would be lost.
    let mut file = init.token_file.as_deref().map(new_token_file).transpose()?;
    let token = Token::for_subject();
    let fingerprint = match make(&database, &authority, &init.trust_domain, &token).await {
        Ok(fingerprint) => fingerprint,
        Err(error) => {
            if let Some(path) = &init.token_file {
                // The error that matters is the first one.
                let _ = std::fs::remove_file(path);
            }
            return Err(error);
        }
    };
    let token = format!("{}\n", token.reveal());
    let shown = match &mut file {
        Some(file) => file.write_all(token.as_bytes()),
        None => io::stdout().write_all(token.as_bytes()),
    };
    shown.with_context(|| {
        format!(
            "cannot write the token, which nobody can sign in without: remove `{database}` and run init again"
        )
    })?;
    if !init.quiet {
        let place = init.token_file.as_ref().map(|path| format!("in {}", path.display()));
        let text = format!(
            "made {database} and {}, whose fingerprint is {fingerprint}\n\
             the token of `user:admin` is {}; it is not shown again\n\
             next: `portcullis-control-plane serve --config FILE`, then \
             `portcullis login --token-file FILE --ca-file {}`\n",
            authority.display(),
            place.as_deref().unwrap_or("the line on standard output"),
            authority.join("ca.pem").display(),
        );
        io::stderr().write_all(text.as_bytes()).context("cannot write to standard error")?;
    }
    Ok(())
}

/// The database, and the authority unless there is one: hosts that know it go on knowing it.
async fn make(
    database: &Database,
    authority: &Path,
    trust_domain: &str,
    token: &Token,
) -> anyhow::Result<Fingerprint> {
    let was_there = authority.exists();
    let made = match was_there {
        true => Authority::open(authority)?,
        false => Authority::create(authority, trust_domain, clock::system_now())?,
    };
    if let Err(error) = Store::create(database, &token.hash(), clock::now()).await {
        if !was_there {
            Authority::discard(authority);
        }
        return Err(error.into());
    }
    Ok(made.fingerprint())
}

fn new_token_file(path: &Path) -> anyhow::Result<std::fs::File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.with_context(|| format!("cannot make token file `{}`", path.display()))
}

async fn run_server(arguments: Serve) -> anyhow::Result<()> {
    let config = Config::read(&arguments.config)?;
    raise_open_files();
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen to signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen to signals")?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let ready = |bound: &Bound| {
        let Some(path) = &arguments.ready_file else { return };
        if let Err(error) = write_ready(path, &bound.listen) {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, path = %path.display(), "cannot write the ready file");
        }
    };
    Ok(control_plane::serve(config, ready, shutdown).await?)
}

/// As many open files as the system lets this process have: each connection is one, and the usual soft limit is 1024.
fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        Ok(hard)
    });
    match raised {
        Ok(files) if files < OPEN_FILES_WANTED => {
            tracing::warn!(
                files,
                wanted = OPEN_FILES_WANTED,
                "few files can be open at once, and so few connections"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot tell how many files can be open at once"),
    }
}

/// The file is there whole or not at all.
fn write_ready(path: &Path, bound: &[Listen]) -> io::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let lines: String = bound.iter().map(|listen| format!("{listen}\n")).collect();
    std::fs::write(&unfinished, lines)?;
    std::fs::rename(&unfinished, path)
}
