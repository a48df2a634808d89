//! `portcullis withdraw`

use proto::types::{Request, RequestId};
use proto::wire::access::WithdrawRequestRequest;

use crate::Context;
use crate::args::checked;
use crate::connect::call;
use crate::error::Error;
use crate::output::rows::RequestRow;

/// Take a request back that you made, or that is for you
///
/// Prints the request. What was approved already is given back with `release`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  portcullis withdraw 019aac1e-7b1c-7c10-9f6b-3f2d6c1f7a01")]
pub struct Arguments {
    /// The request, as `requests` shows it
    #[arg(value_name = "ID", value_parser = checked::<RequestId>)]
    request: RequestId,
}

pub(super) async fn run(arguments: Arguments, context: &mut Context<'_>) -> Result<(), Error> {
    let what = format!("withdraw request `{}`", arguments.request);
    let mut access = context.connect().await?.access();
    let message = WithdrawRequestRequest { id: arguments.request.to_string() };
    let answer = call(&what, access.withdraw_request(message)).await?;
    let request: Request = super::checked(&what, answer.request)?;
    context.print_one(&RequestRow::from(request))
}
