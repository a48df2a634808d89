//! `portcullis status`

use proto::types::{Host, HostState};
use proto::wire::access::ListHostsRequest;

use crate::Context;
use crate::connect::call;
use crate::error::Error;
use crate::output::rows::HostRow;

/// Show hosts and whether each is enforcing
///
/// STATE is `enforcing` (its agent has just proven it), `degraded` (enforcing, but without what DETAIL names),
/// `not_enforcing` (DETAIL says why) or `unreachable` (no agent is connected; its kernel keeps enforcing what it had).
/// APPLIED is the generation of the grant set that the host's kernel holds, WANTED the one it should hold.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  portcullis status
  portcullis status --check > /dev/null || page-somebody")]
pub struct Arguments {
    /// Exit with 3 unless there is a host and every host is `enforcing`
    #[arg(long)]
    check: bool,
}

pub(super) async fn run(arguments: Arguments, context: &mut Context<'_>) -> Result<(), Error> {
    let what = "list hosts";
    let mut directory = context.connect().await?.directory();
    let answer = call(what, directory.list_hosts(ListHostsRequest {})).await?;
    let hosts: Vec<Host> = super::rows::<_, Host, Host>(what, answer.hosts)?;
    let enforcing = hosts.iter().filter(|host| host.state == HostState::Enforcing).count();
    let count = hosts.len();
    let rows: Vec<HostRow> = hosts.into_iter().map(Into::into).collect();
    context.print_list(&rows)?;
    match arguments.check && (count == 0 || enforcing < count) {
        true => Err(Error::NotEnforcing { unready: count - enforcing, hosts: count }),
        false => Ok(()),
    }
}
