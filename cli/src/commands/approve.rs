//! `portcullis approve`

use proto::types::{Grant, RequestId};
use proto::wire::access::ApproveRequestRequest;

use crate::Context;
use crate::args::{checked, comment};
use crate::connect::call;
use crate::error::Error;
use crate::output::rows::GrantRow;

/// Approve a request: its grant is made and sent to its hosts
///
/// Nobody approves what they asked for, nor what is for themselves. Prints the grant.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  portcullis approve 019aac1e-7b1c-7c10-9f6b-3f2d6c1f7a01 --comment 'agreed in INC-42'")]
pub struct Arguments {
    /// The request, as `requests` shows it
    #[arg(value_name = "ID", value_parser = checked::<RequestId>)]
    request: RequestId,
    /// A remark for the record; at most 1000 characters
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, value_parser = comment)]
    comment: String,
}

pub(super) async fn run(arguments: Arguments, context: &mut Context<'_>) -> Result<(), Error> {
    let what = format!("approve request `{}`", arguments.request);
    let mut access = context.connect().await?.access();
    let message = ApproveRequestRequest { id: arguments.request.to_string(), comment: arguments.comment };
    let answer = call(&what, access.approve_request(message)).await?;
    let grant: Grant = super::checked(&what, answer.grant)?;
    context.print_one(&GrantRow::from(grant))
}
