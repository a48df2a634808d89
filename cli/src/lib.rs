//! What people type: `portcullis` as a library, so that tests can run it with a clock and streams of their own.
//!
//! Owns: arguments, the calls to the control plane, tables and JSON, error texts and exit codes. Must not know: the
//! environment and the standard streams, which `main.rs` hands in (clap alone reads the variables that `--help` names).
//!
//! Invariants: an argument that breaks a rule is refused before any call; text from elsewhere never reaches a terminal with
//! its control characters; standard output holds results only, everything else goes to standard error.

pub mod args;
pub mod commands;
pub mod connect;
pub mod credentials;
pub mod error;
pub mod output;

mod agent;
mod backoff;
mod child;
mod oidc;
mod renew;
mod workload;

pub use child::{as_child, is_child};
pub use workload::Job;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches};

use args::{Arguments, Format, Global};
use connect::{Authorities, ControlPlane, Server};
use credentials::{Credentials, Token};
use error::{Error, Kind};
use output::{Row, View};

/// All that the process gives to one run.
pub struct Surroundings<'a> {
    /// Where results go.
    pub out: &'a mut dyn Write,
    /// Where progress and errors go.
    pub err: &'a mut dyn Write,
    /// What `--token-file -` reads.
    pub input: &'a mut dyn Read,
    /// The wall clock.
    pub now: fn() -> jiff::Timestamp,
    /// In which tables show times.
    pub zone: jiff::tz::TimeZone,
    /// Where `credentials.toml` lies; None: neither `XDG_CONFIG_HOME` nor `HOME` is set.
    pub config_dir: Option<PathBuf>,
    /// What the environment says of a job's tokens.
    pub job: Job,
    /// The program that shows an address to people; None: there is none, or nobody sits before it.
    pub browser: Option<OsString>,
}

/// Runs one command line and gives its exit code. Errors are printed to `err` here.
pub async fn run(args: impl IntoIterator<Item = OsString>, mut surroundings: Surroundings<'_>) -> u8 {
    let arguments = Arguments::command().try_get_matches_from(args);
    let arguments = match arguments.and_then(|matches| Arguments::from_arg_matches(&matches)) {
        Ok(arguments) => arguments,
        Err(error) => return tell_usage(&mut surroundings, &error),
    };
    let Arguments { global, command } = arguments;
    let mut context = Context { global, surroundings, presented: None, exit_code: 0 };
    let result = commands::run(command, &mut context).await;
    let exit_code = context.exit_code;
    let Surroundings { out, err, .. } = context.surroundings;
    let result = result.and_then(|()| out.flush().map_err(Error::Output));
    match result {
        Ok(()) => exit_code,
        Err(error) => {
            // What was written before the error belongs to the result, and a failure here changes nothing any more.
            let _ = out.flush();
            let _ = error::print(err, &error);
            error.kind().exit_code()
        }
    }
}

/// Help and version go to standard output; what clap refuses goes to standard error. Both without colours.
fn tell_usage(surroundings: &mut Surroundings<'_>, error: &clap::Error) -> u8 {
    let text = error.render().to_string();
    let stream = if error.use_stderr() { &mut surroundings.err } else { &mut surroundings.out };
    let written = stream.write_all(text.as_bytes()).and_then(|()| stream.flush());
    match (written, error.use_stderr()) {
        (Err(error), _) => Error::Output(error).kind().exit_code(),
        (Ok(()), true) => Kind::Usage.exit_code(),
        (Ok(()), false) => 0,
    }
}

/// A control plane, and what is known of it.
struct Place {
    server: Server,
    authorities: Option<Authorities>,
    /// What the last `login` stored, if it was there.
    stored: Option<Credentials>,
}

/// What every command works with.
pub struct Context<'a> {
    global: Global,
    surroundings: Surroundings<'a>,
    /// The token that was last signed in with.
    presented: Option<Token>,
    /// Of a command that was run, and ended.
    exit_code: u8,
}

impl Context<'_> {
    /// Which control plane: the arguments before the environment before what `login` stored; and what is stored about it.
    fn place(&mut self) -> Result<Place, Error> {
        // Who names all needs no stored ones, and a broken file must not stand in the way.
        let stored = match &self.surroundings.config_dir {
            Some(dir) if self.global.server.is_none() || !self.has_token() => {
                credentials::load(dir, self.surroundings.err)?
            }
            _ => None,
        };
        let server = self.global.server.clone();
        let server = server.or_else(|| stored.as_ref().map(|stored| stored.server.clone()));
        let server = server.unwrap_or_else(Server::standard);
        // A token is for the control plane that issued it: it is never shown to another one; nor is what was stored about
        // one believed of another.
        let stored = stored.filter(|stored| stored.server == server);
        let authorities = match &self.global.ca_file {
            Some(path) => Some(Authorities::read(path)?),
            None => stored.as_ref().and_then(|stored| stored.authorities.clone()),
        };
        Ok(Place { server, authorities, stored })
    }

    /// The server, and with what to sign in there.
    fn credentials(&mut self) -> Result<Credentials, Error> {
        let Place { server, authorities, stored } = self.place()?;
        match (&self.global.token_file, stored) {
            (Some(path), _) => {
                let token = Token::read(path, self.surroundings.input)?;
                Ok(Credentials { server, token, authorities, session: None })
            }
            (None, Some(stored)) => Ok(Credentials { authorities, ..stored }),
            (None, None) => Err(Error::NoToken { server }),
        }
    }

    /// By what a job signs in; None: somebody else calls. What a job is told comes before what `login` stored, and that before
    /// what the place where it runs offers, which is shown to nobody but a control plane that was named.
    fn workload(&mut self) -> Result<Option<workload::Source>, Error> {
        let Surroundings { job, .. } = &self.surroundings;
        if self.global.token_file.is_some() {
            return Ok(None);
        }
        if let Some(told) = workload::Source::told(self.global.workload_token_file.as_ref(), job) {
            return Ok(Some(told));
        }
        let offered = workload::Source::offered(job).filter(|_| self.global.server.is_some());
        match offered {
            Some(offered) if self.place()?.stored.is_none() => Ok(Some(offered)),
            Some(_) | None => Ok(None),
        }
    }

    /// For a job with its session, for anybody else with it renewed, if it is nearly over.
    async fn connect(&mut self) -> Result<ControlPlane, Error> {
        let credentials = match self.workload()? {
            Some(source) => workload::sign_in(self, &source).await?.0,
            None => {
                let credentials = self.credentials()?;
                renew::if_nearly_over(self, credentials).await?
            }
        };
        self.presented = Some(credentials.token.clone());
        ControlPlane::connect(&credentials).await
    }

    /// What takes long outlives its session, and a control plane that goes away for a while. After `error`, whether to try
    /// again:
    ///
    /// - `Ok(None)`: yes, as the session was over and `control_plane` is one with another session now;
    /// - `Ok(Some(error))`: yes, as this may mend itself;
    /// - `Err`: no.
    ///
    /// Wait before each try, after `Ok(None)` too: a control plane that gives out sessions and refuses them must not be asked
    /// without a pause.
    async fn outlive(
        &mut self,
        error: Error,
        control_plane: &mut ControlPlane,
    ) -> Result<Option<Error>, Error> {
        let error = match error.kind() {
            Kind::Unauthenticated => match self.reconnect(error).await {
                Ok(renewed) => {
                    *control_plane = renewed;
                    return Ok(None);
                }
                Err(error) => error,
            },
            _ => error,
        };
        if error.worth_retrying() { Ok(Some(error)) } else { Err(error) }
    }

    /// Connects with another session than the one that `error` says is over. Gives the error back if there is no other.
    async fn reconnect(&mut self, error: Error) -> Result<ControlPlane, Error> {
        let before = self.presented.clone();
        // Who reads the token from standard input cannot read it again.
        let is_lost = self.workload()?.is_some_and(|source| !source.lasts());
        if self.global.token_file.is_some() || is_lost {
            return Err(error);
        }
        let control_plane = self.connect().await?;
        if self.presented == before { Err(error) } else { Ok(control_plane) }
    }

    /// Whether the command line or the environment says by what to be known.
    fn has_token(&self) -> bool {
        let Global { token_file, workload_token_file, .. } = &self.global;
        token_file.is_some() || workload_token_file.is_some() || self.surroundings.job.token.is_some()
    }

    fn config_dir(&self) -> Result<PathBuf, Error> {
        self.surroundings.config_dir.clone().ok_or(Error::NoConfigDir)
    }

    fn view(&self) -> View {
        View { now: (self.surroundings.now)(), zone: self.surroundings.zone.clone() }
    }

    fn print_list<R: Row>(&mut self, rows: &[R]) -> Result<(), Error> {
        let view = self.view();
        match self.global.output {
            Format::Json => output::json(self.surroundings.out, &rows),
            Format::Table | Format::Csv => output::table(self.surroundings.out, rows, &view),
        }
        .map_err(Error::Output)
    }

    fn print_one<R: Row>(&mut self, row: &R) -> Result<(), Error> {
        match self.global.output {
            Format::Json => output::json(self.surroundings.out, row).map_err(Error::Output),
            Format::Table | Format::Csv => self.print_list(std::slice::from_ref(row)),
        }
    }

    /// A line for people, on standard error. That it cannot be written is no reason to fail.
    fn tell(&mut self, line: &str) {
        let _ = writeln!(self.surroundings.err, "{}", output::escape(line));
    }
}
