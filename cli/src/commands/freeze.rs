//! `portcullis freeze`

use std::time::Duration;

use proto::types::{Freeze, Frozen, NewFreeze, Reason, ResourceName};
use proto::wire::access::FreezeRequest;

use crate::Context;
use crate::args::{checked, duration};
use crate::connect::call;
use crate::error::Error;
use crate::output::freezes::FreezeRow;

/// Close resources for a time
///
/// What is asked for, approved or extended for them meanwhile is refused, break-glass access included. Live grants end at once, unless
/// they are kept. It lifts by itself, and stands in the record with its reason.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  portcullis freeze --resource db-prod,vault --for 2h --reason 'INC-42: credentials leaked'
  portcullis freeze --all --for 30m --keep-live --reason 'failover'")]
pub struct Arguments {
    /// A resource; give it again for each more, or separate them by commas
    #[arg(
        long = "resource",
        value_name = "RESOURCE",
        value_delimiter = ',',
        value_parser = checked::<ResourceName>,
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    resources: Vec<ResourceName>,
    /// Every resource, also those that are not protected yet
    #[arg(long)]
    all: bool,
    /// For how long: whole seconds, such as 90s, 30m, 8h or 1h30m; at most 31 days
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    duration: Duration,
    /// What for: 1 to 1000 characters, which whoever is refused reads, too
    #[arg(long, value_name = "TEXT", value_parser = checked::<Reason>)]
    reason: Reason,
    /// Do not end what is live
    #[arg(long)]
    keep_live: bool,
}

pub(super) async fn run(arguments: Arguments, context: &mut Context<'_>) -> Result<(), Error> {
    let Arguments { resources, all, duration, reason, keep_live } = arguments;
    let what = "freeze resources";
    let frozen = if all { Frozen::All } else { Frozen::These(resources.into_iter().collect()) };
    // By way of the wire, which checks the parts as the control plane will.
    let message = FreezeRequest::from(NewFreeze { what: frozen, duration, reason, keep_live });
    NewFreeze::try_from(message.clone()).map_err(|error| Error::Usage(format!("cannot {what}: {error}")))?;
    let mut access = context.connect().await?.access();
    let answer = call(what, access.freeze(message)).await?;
    let freeze: Freeze = super::checked(what, answer.freeze)?;
    context.print_one(&FreezeRow::new(freeze, Some(answer.grants)))
}
