//! `portcullis requests`

use proto::types::Request;
use proto::wire::access::ListRequestsRequest;

use super::LIST_MAX;
use crate::Context;
use crate::connect::call;
use crate::error::Error;
use crate::output::rows::RequestRow;

/// Show pending requests, newest first
///
/// Members see their own; approvers, auditors and administrators see everybody's.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  portcullis requests
  portcullis requests --all -o json | jq '.[] | select(.state == \"denied\")'")]
pub struct Arguments {
    /// Also those that were decided
    #[arg(long)]
    all: bool,
}

pub(super) async fn run(arguments: Arguments, context: &mut Context<'_>) -> Result<(), Error> {
    let what = "list requests";
    let mut access = context.connect().await?.access();
    let message = ListRequestsRequest { all: arguments.all, limit: LIST_MAX };
    let answer = call(what, access.list_requests(message)).await?;
    let rows = super::rows::<_, Request, RequestRow>(what, answer.requests)?;
    context.print_list(&rows)?;
    super::tell_if_cut(context, rows.len(), "requests");
    Ok(())
}
