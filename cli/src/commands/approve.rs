//! `portcullis approve`

use std::time::Duration;

use proto::types::{Grant, HostName, NewApproval, Request, RequestId};
use proto::wire::access::ApproveRequestRequest;

use crate::Context;
use crate::args::{checked, comment, duration};
use crate::connect::call;
use crate::error::Error;
use crate::output::rows::{GrantRow, RequestRow};

/// Approve a request, as it is or for less
///
/// Who may, says the policy; without one, every approver and administrator. Nobody approves what they asked for, nor what is for
/// themselves, and everybody counts once. Prints the grant, which is sent to its hosts; or, while others have to approve it too, the
/// request.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  portcullis approve 019aac1e-7b1c-7c10-9f6b-3f2d6c1f7a01 --comment 'agreed in INC-42'
  portcullis approve 019aac1e-7b1c-7c10-9f6b-3f2d6c1f7a01 --for 15m --host db-7")]
pub struct Arguments {
    /// The request, as `requests` shows it
    #[arg(value_name = "ID", value_parser = checked::<RequestId>)]
    request: RequestId,
    /// For so long at most; without it, as long as was asked for
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    duration: Option<Duration>,
    /// On this host alone; give it again for each more, or separate them by commas; without it, on all that were asked for
    #[arg(long = "host", value_name = "HOST", value_delimiter = ',', value_parser = checked::<HostName>)]
    hosts: Vec<HostName>,
    /// A remark for the record; at most 1000 characters
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, value_parser = comment)]
    comment: String,
}

pub(super) async fn run(arguments: Arguments, context: &mut Context<'_>) -> Result<(), Error> {
    let Arguments { request, duration, hosts, comment } = arguments;
    let what = format!("approve request `{request}`");
    // By way of the wire, which checks the parts as the control plane will.
    let message = ApproveRequestRequest::from(NewApproval { request, comment, duration, hosts });
    NewApproval::try_from(message.clone())
        .map_err(|error| Error::Usage(format!("cannot {what}: {error}")))?;
    let mut access = context.connect().await?.access();
    let answer = call(&what, access.approve_request(message)).await?;
    if let Some(grant) = answer.grant {
        let grant: Grant = super::checked(&what, Some(grant))?;
        return context.print_one(&GrantRow::from(grant));
    }
    let request: Request = super::checked(&what, answer.request)?;
    context.tell("others have to approve it, too");
    context.print_one(&RequestRow::from(request))
}
