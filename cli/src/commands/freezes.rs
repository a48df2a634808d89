//! `portcullis freezes`

use proto::types::Freeze;
use proto::wire::access::ListFreezesRequest;

use super::LIST_MAX;
use crate::Context;
use crate::connect::call;
use crate::error::Error;
use crate::output::freezes::FreezeRow;

/// Show what is closed for a time, newest first
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  portcullis freezes --all -o json")]
pub struct Arguments {
    /// Also what is over
    #[arg(long)]
    all: bool,
}

pub(super) async fn run(arguments: Arguments, context: &mut Context<'_>) -> Result<(), Error> {
    let what = "list freezes";
    let mut access = context.connect().await?.access();
    let message = ListFreezesRequest { all: arguments.all, limit: LIST_MAX };
    let answer = call(what, access.list_freezes(message)).await?;
    let rows = super::rows::<_, Freeze, FreezeRow>(what, answer.freezes)?;
    context.print_list(&rows)?;
    super::tell_if_cut(context, rows.len(), "freezes");
    Ok(())
}
