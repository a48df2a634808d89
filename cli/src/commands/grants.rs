//! `portcullis grants`

use proto::types::Grant;
use proto::wire::access::ListGrantsRequest;

use super::LIST_MAX;
use crate::Context;
use crate::connect::call;
use crate::error::Error;
use crate::output::rows::GrantRow;

/// Show grants that have not ended, newest first
///
/// HELD tells how many of its hosts hold a grant in their kernel; it is active when all do. REMAINING counts down to
/// EXPIRES (local time), the longest it can live on any host; IDLE is how long nothing may be let through by it until it ends
/// on a host. Members see their own.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  portcullis grants
  portcullis grants --all -o json | jq -r '.[] | select(.end_reason == \"revoked\").id'")]
pub struct Arguments {
    /// Also those that have ended
    #[arg(long)]
    all: bool,
}

pub(super) async fn run(arguments: Arguments, context: &mut Context<'_>) -> Result<(), Error> {
    let what = "list grants";
    let mut access = context.connect().await?.access();
    let message = ListGrantsRequest { all: arguments.all, limit: LIST_MAX };
    let answer = call(what, access.list_grants(message)).await?;
    let rows = super::rows::<_, Grant, GrantRow>(what, answer.grants)?;
    context.print_list(&rows)?;
    super::tell_if_cut(context, rows.len(), "grants");
    Ok(())
}
