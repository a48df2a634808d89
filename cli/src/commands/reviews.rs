//! `portcullis reviews`

use proto::types::Review;
use proto::wire::access::ListReviewsRequest;

use super::LIST_MAX;
use crate::Context;
use crate::connect::call;
use crate::error::Error;
use crate::output::reviews::ReviewRow;

/// Show break-glass access that nobody has reviewed, newest first
///
/// APPROVERS are those whose yes was not asked for: each of them may review it, with `review`. Members see what was for them, or they
/// asked for, and what they may review.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  portcullis reviews --all -o json")]
pub struct Arguments {
    /// Also what was reviewed
    #[arg(long)]
    all: bool,
}

pub(super) async fn run(arguments: Arguments, context: &mut Context<'_>) -> Result<(), Error> {
    let what = "list reviews";
    let mut access = context.connect().await?.access();
    let message = ListReviewsRequest { all: arguments.all, limit: LIST_MAX };
    let answer = call(what, access.list_reviews(message)).await?;
    let rows = super::rows::<_, Review, ReviewRow>(what, answer.reviews)?;
    context.print_list(&rows)?;
    super::tell_if_cut(context, rows.len(), "reviews");
    Ok(())
}
