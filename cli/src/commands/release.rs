//! `portcullis release`

use proto::types::{Grant, GrantId};
use proto::wire::access::ReleaseGrantRequest;

use crate::Context;
use crate::args::checked;
use crate::connect::call;
use crate::error::Error;
use crate::output::rows::GrantRow;

/// Give a grant back that you hold or asked for
///
/// Prints the grant. It is `ending` until every host has confirmed or its deadline has passed, whichever comes first.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  portcullis release 019aac20-1f4e-7d22-8c55-0a9b8c7d6e5f")]
pub struct Arguments {
    /// The grant, as `grants` shows it
    #[arg(value_name = "ID", value_parser = checked::<GrantId>)]
    grant: GrantId,
}

pub(super) async fn run(arguments: Arguments, context: &mut Context<'_>) -> Result<(), Error> {
    let what = format!("release grant `{}`", arguments.grant);
    let mut access = context.connect().await?.access();
    let message = ReleaseGrantRequest { id: arguments.grant.to_string() };
    let answer = call(&what, access.release_grant(message)).await?;
    let grant: Grant = super::checked(&what, answer.grant)?;
    context.print_one(&GrantRow::from(grant))
}
