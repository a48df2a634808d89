//! `portcullis incidents`

use proto::types::Incident;
use proto::wire::access::ListIncidentsRequest;

use super::LIST_MAX;
use crate::Context;
use crate::connect::call;
use crate::error::Error;
use crate::output::incidents::IncidentRow;

/// Show the incidents that are open, the last opened first
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  portcullis incidents --all -o json")]
pub struct Arguments {
    /// Also what is closed
    #[arg(long)]
    all: bool,
}

pub(super) async fn run(arguments: Arguments, context: &mut Context<'_>) -> Result<(), Error> {
    let what = "list incidents";
    let mut access = context.connect().await?.access();
    let message = ListIncidentsRequest { all: arguments.all, limit: LIST_MAX };
    let answer = call(what, access.list_incidents(message)).await?;
    let rows = super::rows::<_, Incident, IncidentRow>(what, answer.incidents)?;
    context.print_list(&rows)?;
    super::tell_if_cut(context, rows.len(), "incidents");
    Ok(())
}
