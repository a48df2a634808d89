//! `portcullis audit …`

use std::error::Error as _;

use proto::json::AuditRow;
use proto::types::AuditEvent;
use proto::wire::audit::{TailRequest, TailResponse};
use tokio::time::sleep;

use crate::Context;
use crate::args::Format;
use crate::backoff::Backoff;
use crate::connect::{ControlPlane, STREAM_LIMIT, call, next};
use crate::error::Error;
use crate::output;

/// The audit record: verdicts of every kernel, and what became of requests and grants
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    /// Print audit events, oldest first: the newest 20 unless told otherwise
    ///
    /// With `-o json` each event is one object a line, written out at once; docs/audit-events.md describes the fields. A
    /// collector keeps the `position` of the last line it has stored and starts again with `--after`. Events come at least
    /// once: `id` is always the same for the same event. Who may call: auditors and administrators.
    #[command(after_help = "\
Examples:
  portcullis audit tail
  portcullis audit tail --last 100 --follow
  portcullis audit tail --after 41873 --follow -o json | my-collector
  portcullis audit tail --after 0 -o json | jq -c 'select(.event == \"conn.deny\")'")]
    Tail(Tail),
}

/// The arguments of `tail`.
#[derive(clap::Args, Debug)]
pub struct Tail {
    /// Stay, and print events as they are stored; come back by itself when the control plane was away
    #[arg(short, long)]
    follow: bool,
    /// How many of the newest events to begin with, 1 to 10000
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 20, conflicts_with = "after")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    last: u32,
    /// Begin behind the event at this position; 0: with the first one that is kept
    #[arg(long, value_name = "POSITION")]
    after: Option<u64>,
}

pub(super) async fn run(verb: Verb, context: &mut Context<'_>) -> Result<(), Error> {
    match verb {
        Verb::Tail(arguments) => tail(arguments, context).await,
    }
}

/// How far the printing has come.
struct Progress {
    /// What to ask for next.
    ask: TailRequest,
    /// Events that came and could not be understood.
    unreadable: u64,
    way: Way,
}

/// Whether there is a stream.
#[derive(PartialEq)]
enum Way {
    Untried,
    Open,
    Broken,
}

async fn tail(arguments: Tail, context: &mut Context<'_>) -> Result<(), Error> {
    let ask = match arguments.after {
        Some(after_position) => TailRequest { after_position, follow: arguments.follow, last: 0 },
        None => TailRequest { after_position: 0, follow: arguments.follow, last: arguments.last },
    };
    let mut progress = Progress { ask, unreadable: 0, way: Way::Untried };
    let control_plane = context.connect().await?;
    match arguments.follow {
        true => follow(context, control_plane, &mut progress).await?,
        false => print_stream(context, &control_plane, &mut progress).await?,
    }
    match progress.unreadable {
        0 => Ok(()),
        count => Err(Error::UnreadableEvents { count }),
    }
}

/// Prints until something happens that trying again cannot mend.
async fn follow(
    context: &mut Context<'_>,
    mut control_plane: ControlPlane,
    progress: &mut Progress,
) -> Result<(), Error> {
    let mut backoff = Backoff::new();
    loop {
        let error = match print_stream(context, &control_plane, progress).await {
            Ok(()) => None,
            // The first try has to succeed: a wrong address or token is told at once, not tried for ever.
            Err(error) if progress.way == Way::Untried => return Err(error),
            Err(error) => match context.outlive(error, &mut control_plane).await? {
                None => {
                    sleep(backoff.step()).await;
                    continue;
                }
                error => error,
            },
        };
        let trouble =
            error.map_or("the control plane ended the audit stream".to_owned(), |error| error.with_cause());
        if progress.way == Way::Open {
            context.tell(&format!("{trouble}; trying again from position {}", progress.ask.after_position));
            backoff = Backoff::new();
        }
        progress.way = Way::Broken;
        sleep(backoff.step()).await;
    }
}

const READ: &str = "read the audit stream";

/// Prints one stream to its end.
async fn print_stream(
    context: &mut Context<'_>,
    control_plane: &ControlPlane,
    progress: &mut Progress,
) -> Result<(), Error> {
    let mut audit = control_plane.audit();
    let mut stream = call("open the audit stream", audit.tail(progress.ask)).await?;
    if progress.way == Way::Broken {
        context.tell("the audit stream is open again");
    }
    progress.way = Way::Open;
    // Without `follow` everything is there already; with it, silence is normal and pings find a dead peer.
    let limit = (!progress.ask.follow).then_some(STREAM_LIMIT);
    while let Some(TailResponse { event }) = next(READ, &mut stream, limit).await? {
        let position = event.as_ref().map_or(0, |event| event.position);
        match super::checked::<_, AuditEvent>(READ, event) {
            Ok(event) => print(context, event)?,
            // One bad event never stops the others; the hole is told, and seen in the positions.
            Err(error) => {
                progress.unreadable += 1;
                let cause = error.source().map(ToString::to_string).unwrap_or_default();
                context.tell(&format!("cannot read the event at position {position}: {cause}"));
            }
        }
        if position > 0 {
            progress.ask = TailRequest { after_position: position, last: 0, ..progress.ask };
        }
    }
    Ok(())
}

/// Prints one line and writes it out at once, so that a collector has it when we say so by coming to the next.
fn print(context: &mut Context<'_>, event: AuditEvent) -> Result<(), Error> {
    let view = context.view();
    let out = &mut *context.surroundings.out;
    let printed = match context.global.output {
        Format::Table | Format::Csv => writeln!(out, "{}", output::audit::line(&event, &view)),
        Format::Json => output::json(out, &AuditRow::from(event)),
    };
    printed.and_then(|()| out.flush()).map_err(Error::Output)
}
