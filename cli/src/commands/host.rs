//! `portcullis host …`

use std::time::Duration;

use proto::types::{HostName, Label, Labels, duration_to_wire};
use proto::wire::access::{AddHostRequest, IssueJoinTokenRequest, RevokeHostRequest};

use super::token::{Destination, Owner};
use crate::Context;
use crate::args::{self, checked};
use crate::connect::call;
use crate::error::Error;

/// Machines with an agent: add one, let it join, end what it proves itself by (`status` shows them)
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    /// Make a host known, and issue the token with which its agent joins
    ///
    /// The token counts once, for this host only, and for minutes. It is shown once, alone on standard output; the control plane
    /// keeps its hash only. The key of the host is made there and never leaves it.
    #[command(after_help = "\
Examples:
  portcullis host add db-7 --label env=prod --new-token-file join.token
  portcullis host add db-7 | ssh db-7 portcullis-agent join --token-file -")]
    Add(Add),
    /// Issue another join token for a known host: for one that has lost its certificate, or let it run out
    ///
    /// It ends the join tokens issued before. The certificate that the host has counts until the next one is used.
    #[command(after_help = "\
Example:
  portcullis host join-token db-7 | ssh db-7 portcullis-agent join --token-file -")]
    JoinToken(JoinToken),
    /// End all certificates and join tokens of a host, and its session, at once
    ///
    /// Its kernel goes on with what it has: nobody new is let through, and live grants there end at their deadlines. It comes back
    /// with `host join-token`.
    #[command(after_help = "\
Example:
  portcullis host revoke db-7 --comment 'stolen, INC-42'")]
    Revoke(Revoke),
}

/// How long a join token counts.
#[derive(clap::Args, Debug)]
struct Within {
    /// How long the token counts: 1s to 24h [default: 15m]
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    within: Option<Duration>,
}

/// The arguments of `add`.
#[derive(clap::Args, Debug)]
pub struct Add {
    /// Its name: 1 to 63 of a-z, 0-9, `-` and `.`, with a letter or digit at both ends
    #[arg(value_parser = checked::<HostName>)]
    name: HostName,
    /// What it is, as KEY=VALUE; can be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = checked::<Label>)]
    labels: Vec<Label>,
    #[command(flatten)]
    within: Within,
    #[command(flatten)]
    destination: Destination,
}

/// The arguments of `join-token`.
#[derive(clap::Args, Debug)]
pub struct JoinToken {
    /// Its name
    #[arg(value_parser = checked::<HostName>)]
    name: HostName,
    #[command(flatten)]
    within: Within,
    #[command(flatten)]
    destination: Destination,
}

/// The arguments of `revoke`.
#[derive(clap::Args, Debug)]
pub struct Revoke {
    /// Its name
    #[arg(value_parser = checked::<HostName>)]
    name: HostName,
    /// Why, for the record
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, value_parser = args::comment)]
    comment: String,
}

pub(super) async fn run(verb: Verb, context: &mut Context<'_>) -> Result<(), Error> {
    match verb {
        Verb::Add(arguments) => add(arguments, context).await,
        Verb::JoinToken(arguments) => join_token(arguments, context).await,
        Verb::Revoke(arguments) => revoke(arguments, context).await,
    }
}

async fn add(arguments: Add, context: &mut Context<'_>) -> Result<(), Error> {
    let name = arguments.name.to_string();
    let what = format!("add host `{name}`");
    let labels = Labels::try_from(arguments.labels)
        .map_err(|error| Error::Usage(format!("cannot {what}: {error}")))?;
    let destination = arguments.destination.prepare()?;
    let mut directory = context.connect().await?.directory();
    let message = AddHostRequest {
        name: name.clone(),
        labels: labels.into(),
        join_within: arguments.within.within.map(duration_to_wire),
    };
    let answer = call(what, directory.add_host(message)).await?;
    destination.deliver(context, Owner::Host(name), answer.join_token)
}

async fn join_token(arguments: JoinToken, context: &mut Context<'_>) -> Result<(), Error> {
    let host = arguments.name.to_string();
    let destination = arguments.destination.prepare()?;
    let mut directory = context.connect().await?.directory();
    let what = format!("issue a join token for `{host}`");
    let join_within = arguments.within.within.map(duration_to_wire);
    let message = IssueJoinTokenRequest { host: host.clone(), join_within };
    let answer = call(what, directory.issue_join_token(message)).await?;
    destination.deliver(context, Owner::Host(host), answer.join_token)
}

async fn revoke(arguments: Revoke, context: &mut Context<'_>) -> Result<(), Error> {
    let host = arguments.name.to_string();
    let mut directory = context.connect().await?.directory();
    let what = format!("revoke host `{host}`");
    let message = RevokeHostRequest { host: host.clone(), comment: arguments.comment };
    call(what, directory.revoke_host(message)).await?;
    context.tell(&format!("host `{host}` has to join again: `portcullis host join-token {host}`"));
    Ok(())
}
