//! `portcullis drafts`

use proto::types::Draft;
use proto::wire::access::ListDraftsRequest;

use super::LIST_MAX;
use crate::Context;
use crate::connect::call;
use crate::error::Error;
use crate::output::drafts::DraftRow;

/// Show what was denied and can be asked for, newest first
///
/// Where a resource wants it (`resource set --drafts`), a denied attempt is the draft of a request, for 24 hours. Its subject completes it
/// with `portcullis request --draft ID --reason TEXT`; nobody can approve it before. Approvers, auditors and administrators see everybody's.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  portcullis drafts -o json | jq -r '.[].id'")]
pub struct Arguments {}

pub(super) async fn run(_: Arguments, context: &mut Context<'_>) -> Result<(), Error> {
    let what = "list drafts";
    let mut access = context.connect().await?.access();
    let answer = call(what, access.list_drafts(ListDraftsRequest { own: false, limit: LIST_MAX })).await?;
    let rows = super::rows::<_, Draft, DraftRow>(what, answer.drafts)?;
    context.print_list(&rows)?;
    super::tell_if_cut(context, rows.len(), "drafts");
    if answer.left_out > 0 {
        context.tell(&format!("{} denied attempts found no room for a draft so far", answer.left_out));
    }
    Ok(())
}
