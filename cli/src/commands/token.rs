//! New tokens: shown once, or written where nobody else can read them.

use std::path::{Path, PathBuf};

use crate::Context;
use crate::args::Format;
use crate::credentials::SecretFile;
use crate::error::{Error, Problem};
use crate::output::{self, rows::TokenRow};

/// Where a new token goes.
#[derive(clap::Args, Debug)]
pub(super) struct Destination {
    /// Write the new token to this file, mode 0600, in place of standard output
    ///
    /// An existing file is replaced in one step, after the token was issued.
    #[arg(long, value_name = "FILE")]
    new_token_file: Option<PathBuf>,
}

/// Whose token it is.
pub(super) enum Owner {
    Subject(String),
    Host(String),
}

/// A destination that was found writable before the token is issued: an issued token cannot be shown again.
pub(super) struct Ready(Option<(PathBuf, SecretFile)>);

impl Destination {
    pub(super) fn prepare(self) -> Result<Ready, Error> {
        let create = |path: PathBuf| {
            let file = SecretFile::create("token file", &path)?;
            Ok((path, file))
        };
        self.new_token_file.map(create).transpose().map(Ready)
    }
}

impl Ready {
    /// Hands the token over. As a table it stands alone on standard output, so that it can be piped.
    pub(super) fn deliver(self, context: &mut Context<'_>, owner: Owner, token: String) -> Result<(), Error> {
        if token.is_empty() {
            let source = Problem("the answer breaks the contract: it holds no token".to_owned());
            return Err(Error::Malformed { what: "read the new token".to_owned(), source });
        }
        let (subject, host) = match owner {
            Owner::Subject(id) => (Some(id), None),
            Owner::Host(name) => (None, Some(name)),
        };
        let token_file = match self.0 {
            None => None,
            Some((path, file)) => {
                file.commit(&format!("{token}\n"))?;
                Some(tell_written(context, &path))
            }
        };
        let token = token_file.is_none().then_some(token);
        let out = &mut *context.surroundings.out;
        match (context.global.output, &token) {
            (Format::Table | Format::Csv, None) => Ok(()),
            (Format::Table | Format::Csv, Some(token)) => writeln!(out, "{}", output::escape(token)),
            (Format::Json, _) => output::json(out, &TokenRow { subject, host, token, token_file }),
        }
        .map_err(Error::Output)
    }
}

fn tell_written(context: &mut Context<'_>, path: &Path) -> String {
    let shown = path.display().to_string();
    context.tell(&format!("wrote the token to `{shown}`"));
    shown
}
