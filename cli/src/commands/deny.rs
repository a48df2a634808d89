//! `portcullis deny`

use proto::types::{Request, RequestId};
use proto::wire::access::DenyRequestRequest;

use crate::Context;
use crate::args::{checked, comment};
use crate::connect::call;
use crate::error::Error;
use crate::output::rows::RequestRow;

/// Deny a request, for good
///
/// Nobody denies what they asked for, nor what is for themselves. Prints the request.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  portcullis deny 019aac1e-7b1c-7c10-9f6b-3f2d6c1f7a01 --comment 'use the replica'")]
pub struct Arguments {
    /// The request, as `requests` shows it
    #[arg(value_name = "ID", value_parser = checked::<RequestId>)]
    request: RequestId,
    /// A remark for the record and for who asked; at most 1000 characters
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, value_parser = comment)]
    comment: String,
}

pub(super) async fn run(arguments: Arguments, context: &mut Context<'_>) -> Result<(), Error> {
    let what = format!("deny request `{}`", arguments.request);
    let mut access = context.connect().await?.access();
    let message = DenyRequestRequest { id: arguments.request.to_string(), comment: arguments.comment };
    let answer = call(&what, access.deny_request(message)).await?;
    let request: Request = super::checked(&what, answer.request)?;
    context.print_one(&RequestRow::from(request))
}
