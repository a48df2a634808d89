//! `portcullis activate`

use proto::types::{Grant, GrantId};
use proto::wire::access::ActivateGrantRequest;

use crate::Context;
use crate::args::checked;
use crate::connect::call;
use crate::error::Error;
use crate::output::rows::GrantRow;

/// Begin the time of a grant that you hold or asked for
///
/// For those whose role says that their time begins with this. The policy is asked once more, with what is known of you now. Prints the
/// grant, which is `activating` until the kernel of every host holds it.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  portcullis activate 019aac20-1f4e-7d22-8c55-0a9b8c7d6e5f")]
pub struct Arguments {
    /// The grant, as `grants` shows it
    #[arg(value_name = "ID", value_parser = checked::<GrantId>)]
    grant: GrantId,
}

pub(super) async fn run(arguments: Arguments, context: &mut Context<'_>) -> Result<(), Error> {
    let what = format!("activate grant `{}`", arguments.grant);
    let mut access = context.connect().await?.access();
    let message = ActivateGrantRequest { id: arguments.grant.to_string() };
    let answer = call(&what, access.activate_grant(message)).await?;
    let grant: Grant = super::checked(&what, answer.grant)?;
    context.print_one(&GrantRow::from(grant))
}
