//! `portcullis incident …`

use std::time::Duration;

use proto::types::{Incident, IncidentId, NewIncident};
use proto::wire::access::{CloseIncidentRequest, OpenIncidentRequest};

use crate::Context;
use crate::args::{checked, comment, duration};
use crate::connect::call;
use crate::error::Error;
use crate::output::incidents::IncidentRow;

/// Flags that the conditions of the policy see: raise one, lower it (`incidents` shows them)
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    /// Open an incident for a time; of one that is open, move its end
    ///
    /// What the policy lets somebody have in an incident can be had from then on. It closes by itself, and stands in the record.
    #[command(after_help = "\
Example:
  portcullis incident open inc-42 --for 4h --reason 'nobody can log in'")]
    Open(Open),
    /// Close an incident before its time
    ///
    /// Live grants that the policy does not permit without it end within a minute.
    #[command(after_help = "\
Example:
  portcullis incident close inc-42 --comment 'rolled back'")]
    Close(Close),
}

/// The arguments of `open`.
#[derive(clap::Args, Debug)]
pub struct Open {
    /// How it is called: 1 to 63 of a-z, 0-9, `-` and `.`, with a letter or digit at both ends
    #[arg(value_name = "ID", value_parser = checked::<IncidentId>)]
    id: IncidentId,
    /// For how long from now: whole seconds, such as 90s, 30m, 8h or 1h30m; at most 31 days
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    duration: Duration,
    /// What it is, which everybody can read; at most 1000 characters. Left out, that of one that is open stays
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, value_parser = comment)]
    reason: String,
}

/// The arguments of `close`.
#[derive(clap::Args, Debug)]
pub struct Close {
    /// The incident, as `incidents` shows it
    #[arg(value_name = "ID", value_parser = checked::<IncidentId>)]
    id: IncidentId,
    /// A remark for the record; at most 1000 characters
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, value_parser = comment)]
    comment: String,
}

pub(super) async fn run(verb: Verb, context: &mut Context<'_>) -> Result<(), Error> {
    let incident: Incident = match verb {
        Verb::Open(Open { id, duration, reason }) => {
            let what = format!("open incident `{id}`");
            // By way of the wire, which checks the parts as the control plane will.
            let message = OpenIncidentRequest::from(NewIncident { id, duration, reason });
            NewIncident::try_from(message.clone())
                .map_err(|error| Error::Usage(format!("cannot {what}: {error}")))?;
            let mut access = context.connect().await?.access();
            super::checked(&what, call(&what, access.open_incident(message)).await?.incident)?
        }
        Verb::Close(Close { id, comment }) => {
            let what = format!("close incident `{id}`");
            let message = CloseIncidentRequest { id: id.into(), comment };
            let mut access = context.connect().await?.access();
            super::checked(&what, call(&what, access.close_incident(message)).await?.incident)?
        }
    };
    context.print_one(&IncidentRow::from(incident))
}
