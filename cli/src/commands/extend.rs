//! `portcullis extend`

use std::time::Duration;

use proto::types::{Grant, GrantId, NewExtension, Reason, Request, RequestState};
use proto::wire::access::ExtendGrantRequest;

use crate::Context;
use crate::args::{checked, duration};
use crate::connect::call;
use crate::error::Error;
use crate::output::rows::{GrantRow, RequestRow};

/// Have a live grant for longer that you hold or asked for
///
/// The deadline of the same grant moves, and its connections go on. By a policy its role says how often, by how much, and whether
/// somebody has to approve it; without one an approver has to. Prints the grant, or, if it has to be approved, the request.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  portcullis extend 019aac20-1f4e-7d22-8c55-0a9b8c7d6e5f --for 30m")]
pub struct Arguments {
    /// The grant, as `grants` shows it
    #[arg(value_name = "ID", value_parser = checked::<GrantId>)]
    grant: GrantId,
    /// By how much, from its deadline on: whole seconds, such as 90s, 30m, 8h or 1h30m
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    by: Duration,
    /// What for: 1 to 1000 characters that approvers and auditors read; without it, what it was asked for
    #[arg(long, value_name = "TEXT", value_parser = checked::<Reason>)]
    reason: Option<Reason>,
}

pub(super) async fn run(arguments: Arguments, context: &mut Context<'_>) -> Result<(), Error> {
    let Arguments { grant, by, reason } = arguments;
    let what = format!("extend grant `{grant}`");
    let mut access = context.connect().await?.access();
    let message = ExtendGrantRequest::from(NewExtension { grant, by, reason });
    let answer = call(&what, access.extend_grant(message)).await?;
    let request: Request = super::checked(&what, answer.request)?;
    let grant: Grant = super::checked(&what, answer.grant)?;
    match request.state {
        RequestState::Approved => context.print_one(&GrantRow::from(grant)),
        _ => context.print_one(&RequestRow::from(request)),
    }
}
