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

mod backoff;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches};

use args::{Arguments, Format};
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
}

/// Runs one command line and gives its exit code. Errors are printed to `err` here.
pub async fn run(args: impl IntoIterator<Item = OsString>, mut surroundings: Surroundings<'_>) -> u8 {
    let arguments = Arguments::command().try_get_matches_from(args);
    let arguments = match arguments.and_then(|matches| Arguments::from_arg_matches(&matches)) {
        Ok(arguments) => arguments,
        Err(error) => return tell_usage(&mut surroundings, &error),
    };
    let Arguments { global, command } = arguments;
    let mut context = Context { global, surroundings };
    let result = commands::run(command, &mut context).await;
    let Surroundings { out, err, .. } = context.surroundings;
    let result = result.and_then(|()| out.flush().map_err(Error::Output));
    match result {
        Ok(()) => 0,
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

/// What every command works with.
pub struct Context<'a> {
    global: args::Global,
    surroundings: Surroundings<'a>,
}

impl Context<'_> {
    /// The session's server and token: the arguments before the environment before what `login` stored.
    fn credentials(&mut self) -> Result<Credentials, Error> {
        // Who names all needs no stored ones, and a broken file must not stand in the way.
        let stored = match &self.surroundings.config_dir {
            Some(dir)
                if self.global.server.is_none()
                    || self.global.token_file.is_none()
                    || self.global.ca_file.is_none() =>
            {
                credentials::load(dir, self.surroundings.err)?
            }
            _ => None,
        };
        let server = self.global.server.clone();
        let server = server.or_else(|| stored.as_ref().map(|stored| stored.server.clone()));
        let server = server.unwrap_or_else(Server::standard);
        // As with a token: what was stored is about one control plane.
        let stored = stored.filter(|stored| stored.server == server);
        let authorities = match &self.global.ca_file {
            Some(path) => Some(Authorities::read(path)?),
            None => stored.as_ref().and_then(|stored| stored.authorities.clone()),
        };
        let token = match (&self.global.token_file, stored) {
            (Some(path), _) => Token::read(path, self.surroundings.input)?,
            // A token is for the control plane that issued it: it is never shown to another one.
            (None, Some(stored)) => stored.token,
            (None, None) => return Err(Error::NoToken { server }),
        };
        Ok(Credentials { server, token, authorities })
    }

    async fn connect(&mut self) -> Result<ControlPlane, Error> {
        ControlPlane::connect(&self.credentials()?).await
    }

    fn view(&self) -> View {
        View { now: (self.surroundings.now)(), zone: self.surroundings.zone.clone() }
    }

    fn print_list<R: Row>(&mut self, rows: &[R]) -> Result<(), Error> {
        let view = self.view();
        match self.global.output {
            Format::Table => output::table(self.surroundings.out, rows, &view),
            Format::Json => output::json(self.surroundings.out, &rows),
        }
        .map_err(Error::Output)
    }

    fn print_one<R: Row>(&mut self, row: &R) -> Result<(), Error> {
        match self.global.output {
            Format::Table => self.print_list(std::slice::from_ref(row)),
            Format::Json => output::json(self.surroundings.out, row).map_err(Error::Output),
        }
    }

    /// A line for people, on standard error. That it cannot be written is no reason to fail.
    fn tell(&mut self, line: &str) {
        let _ = writeln!(self.surroundings.err, "{}", output::escape(line));
    }
}
