//! `portcullis review`

use proto::types::{GrantId, Reason, Review};
use proto::wire::access::ReviewGrantRequest;

use crate::Context;
use crate::args::checked;
use crate::connect::call;
use crate::error::Error;
use crate::output::reviews::ReviewRow;

/// Say what you have found of somebody's break-glass access
///
/// For those whom the policy names approvers of its role; not for who used it.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  portcullis review 019aac20-1f4e-7d22-8c55-0a9b8c7d6e5f --comment 'INC-42, as discussed with the team'")]
pub struct Arguments {
    /// The grant, as `reviews` shows it
    #[arg(value_name = "ID", value_parser = checked::<GrantId>)]
    grant: GrantId,
    /// What you have found: 1 to 1000 characters, for the record
    #[arg(long, value_name = "TEXT", value_parser = checked::<Reason>)]
    comment: Reason,
}

pub(super) async fn run(arguments: Arguments, context: &mut Context<'_>) -> Result<(), Error> {
    let Arguments { grant, comment } = arguments;
    let what = format!("review grant `{grant}`");
    let mut access = context.connect().await?.access();
    let message = ReviewGrantRequest { id: grant.to_string(), comment: comment.to_string() };
    let answer = call(&what, access.review_grant(message)).await?;
    let review: Review = super::checked(&what, answer.review)?;
    context.print_one(&ReviewRow::from(review))
}
