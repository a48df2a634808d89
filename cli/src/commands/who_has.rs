//! `portcullis who-has`

use proto::types::{
    Access, AccessFilter, AccessPlace, HostName, Invalid, ResourceName, SubjectId, Timestamp,
};
use proto::wire::access::ListAccessRequest;

use super::LIST_MAX;
use crate::Context;
use crate::args::{checked, moment};
use crate::connect::call;
use crate::error::Error;
use crate::output::rows::AccessRow;

/// Show who can reach what, from which host, until when, and why
///
/// A line for each host whose kernel may let somebody through. `held`: it holds the grant, as its agent has confirmed, and nothing that is
/// known says otherwise. `possible`: it may, as the grant is on its way or its end is not confirmed, or the host is not heard; UNTIL is the
/// latest that this can last. With `--at`, `granted`: the grant was live then. Members see what is theirs.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  portcullis who-has
  portcullis who-has orders-db
  portcullis who-has --subject user:alice@example.com -o json | jq -r '.[].resource'
  portcullis who-has orders-db --at 2026-12-01T03:00:00Z")]
pub struct Arguments {
    /// The resource, as `resource list` shows it; without it, any
    #[arg(value_parser = checked::<ResourceName>)]
    resource: Option<ResourceName>,
    /// Whose access: `user:NAME` or `workload:NAME`; without it, anybody's
    #[arg(long, value_parser = checked::<SubjectId>)]
    subject: Option<SubjectId>,
    /// From this host; without it, from any
    #[arg(long, value_parser = checked::<HostName>)]
    host: Option<HostName>,
    /// As of a moment of the past: RFC 3339, such as 2026-12-01T03:00:00Z; without it, now
    #[arg(long, value_name = "TIME", value_parser = moment)]
    at: Option<Timestamp>,
}

pub(super) async fn run(arguments: Arguments, context: &mut Context<'_>) -> Result<(), Error> {
    let what = "list who has access";
    let Arguments { resource, subject, host, at } = arguments;
    let mut filter = AccessFilter { resource, subject, host, at, limit: LIST_MAX, after: None };
    let mut access = context.connect().await?.access();
    let mut rows = Vec::new();
    loop {
        let answer = call(what, access.list_access(ListAccessRequest::from(filter.clone()))).await?;
        rows.extend(super::rows::<_, Access, AccessRow>(what, answer.access)?);
        if answer.next.is_empty() {
            context.print_list(&rows)?;
            // An older control plane has no pages.
            if answer.more {
                context.tell(&format!(
                    "only the newest {LIST_MAX} grants were looked at: name a resource, a subject or a host"
                ));
            }
            return Ok(());
        }
        filter.after = Some(further(&answer.next, filter.after.as_ref()).map_err(|error| {
            Error::Malformed { what: what.to_owned(), source: error.within("next").into() }
        })?);
    }
}

/// Where the next page begins. It has to lie further on: else there would be no end.
fn further(next: &str, before: Option<&AccessPlace>) -> Result<AccessPlace, Invalid> {
    let next: AccessPlace = next.parse()?;
    match before.is_some_and(|before| !next.is_behind(before)) {
        true => Err(Invalid::new("", "does not lie further on")),
        false => Ok(next),
    }
}
