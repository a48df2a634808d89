//! `portcullis revoke`

use proto::types::{Grant, GrantId};
use proto::wire::access::RevokeGrantRequest;

use crate::Context;
use crate::args::{checked, comment};
use crate::connect::call;
use crate::error::Error;
use crate::output::rows::GrantRow;

/// End a grant of anybody before its time
///
/// Prints the grant. It is `ending` until every host has confirmed or its deadline has passed, whichever comes first.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  portcullis revoke 019aac20-1f4e-7d22-8c55-0a9b8c7d6e5f --comment 'laptop lost'")]
pub struct Arguments {
    /// The grant, as `grants` shows it
    #[arg(value_name = "ID", value_parser = checked::<GrantId>)]
    grant: GrantId,
    /// A remark for the record; at most 1000 characters
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, value_parser = comment)]
    comment: String,
}

pub(super) async fn run(arguments: Arguments, context: &mut Context<'_>) -> Result<(), Error> {
    let what = format!("revoke grant `{}`", arguments.grant);
    let mut access = context.connect().await?.access();
    let message = RevokeGrantRequest { id: arguments.grant.to_string(), comment: arguments.comment };
    let answer = call(&what, access.revoke_grant(message)).await?;
    let grant: Grant = super::checked(&what, answer.grant)?;
    context.print_one(&GrantRow::from(grant))
}
