//! `portcullis host …`

use proto::types::HostName;
use proto::wire::access::AddHostRequest;

use super::token::{Destination, Owner};
use crate::Context;
use crate::args::checked;
use crate::connect::call;
use crate::error::Error;

/// Machines with an agent: add one (`status` shows them)
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    /// Make a host known and issue the token with which its agent signs in
    ///
    /// The token is shown once, alone on standard output; the control plane keeps its hash only.
    #[command(after_help = "\
Examples:
  portcullis host add db-7 --new-token-file /etc/portcullis/agent.token
  portcullis host add db-7 | ssh db-7 'umask 077; cat > /etc/portcullis/agent.token'")]
    Add(Add),
}

/// The arguments of `add`.
#[derive(clap::Args, Debug)]
pub struct Add {
    /// Its name: 1 to 63 of a-z, 0-9, `-` and `.`, with a letter or digit at both ends
    #[arg(value_parser = checked::<HostName>)]
    name: HostName,
    #[command(flatten)]
    destination: Destination,
}

pub(super) async fn run(verb: Verb, context: &mut Context<'_>) -> Result<(), Error> {
    match verb {
        Verb::Add(arguments) => add(arguments, context).await,
    }
}

async fn add(arguments: Add, context: &mut Context<'_>) -> Result<(), Error> {
    let name = arguments.name.to_string();
    let destination = arguments.destination.prepare()?;
    let mut directory = context.connect().await?.directory();
    let what = format!("add host `{name}`");
    let answer = call(what, directory.add_host(AddHostRequest { name: name.clone() })).await?;
    destination.deliver(context, Owner::Host(name), answer.token)
}
