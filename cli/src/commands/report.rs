//! `portcullis report …`

use std::time::Duration;

use proto::types::{
    GrantId, GrantUse, Page, Period, Request, ResourceName, ReviewedAccess, RoleUse, SubjectId, Timestamp,
    UseFilter, duration_to_wire,
};
use proto::wire::report::{
    ListGrantUsesRequest, ListWaitingRequest, ReviewAccessRequest, SuggestRolesRequest,
};

use super::LIST_MAX;
use crate::Context;
use crate::args::{Format, Since, checked, duration, moment_or_day, since};
use crate::connect::call;
use crate::error::Error;
use crate::output;
use crate::output::reports::{GrantUseRow, ReviewedRow, RoleRow, WaitingRow};

/// How many grants one page has: each can have many hosts and events.
const PAGE: u32 = 100;

/// Report what became of access: used or not, too wide, waiting too long; all of it over a period, for an auditor
///
/// What is used is what kernels let through by a grant, as their hosts' agents have told. Break-glass access that nobody has reviewed is
/// shown by `reviews`.
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    /// Show what was granted in a period, against what was used of it, oldest first
    ///
    /// `unused`: every host says that nobody was let through. `over_wide`: hosts, ports or time of it were not used, and NOTES says which.
    /// `unknown`: that cannot be said, and NOTES says why. HOSTS and TIME are what was used of what there was. Who may call:
    /// auditors and administrators.
    #[command(after_help = "\
Examples:
  portcullis report grants --since 30d
  portcullis report grants --since 90d -o json | jq -r '.[] | select(.usage == \"unused\") | .subject' | sort | uniq -c")]
    Grants(Grants),
    /// Show the roles that were used in a period, and how they could be narrower
    ///
    /// What is not known to be unused counts as used. Nothing is changed: what is suggested goes into `roles.toml` by your own hands.
    /// Who may call: auditors and administrators.
    #[command(after_help = "\
Examples:
  portcullis report roles --since 90d
  portcullis report roles --since 90d --toml > narrower.toml")]
    Roles(Roles),
    /// Show requests that have waited too long, oldest first, and for whom they wait
    ///
    /// Who may call: approvers, auditors and administrators.
    #[command(after_help = "\
Example:
  portcullis report waiting --longer-than 4h")]
    Waiting(Waiting),
    /// The access review: every grant that was live in a period, with all that led to it, and where the audit record says so
    ///
    /// With `-o csv` for a spreadsheet: a cell that could be taken for a formula begins with an apostrophe. It is whole if the exit code is
    /// 0. Who may call: auditors and administrators.
    #[command(after_help = "\
Examples:
  portcullis report review --from 2026-10-01 --to 2026-11-01 -o csv > october.csv
  portcullis report review --from 2026-10-01 --to 2026-11-01 -o json | jq '.[] | select(.approved_by == [])'")]
    Review(Review),
}

/// Since when, and until when.
#[derive(clap::Args, Debug)]
pub struct When {
    /// What was live after this: so long ago, as 30d; or a day, or a moment, in UTC, such as 2026-10-01 or 2026-10-01T08:00:00Z
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Since,
    /// And granted before this: a day or a moment, as `--since`; without it, now
    #[arg(long, value_name = "TIME", value_parser = moment_or_day)]
    until: Option<Timestamp>,
}

/// Arguments of `report grants`.
#[derive(clap::Args, Debug)]
pub struct Grants {
    #[command(flatten)]
    when: When,
    /// Of this one: `user:NAME` or `workload:NAME`; without it, of anybody
    #[arg(long, value_parser = checked::<SubjectId>)]
    subject: Option<SubjectId>,
    /// To this resource; without it, to any
    #[arg(long, value_parser = checked::<ResourceName>)]
    resource: Option<ResourceName>,
}

/// Arguments of `report roles`.
#[derive(clap::Args, Debug)]
pub struct Roles {
    #[command(flatten)]
    when: When,
    /// Print the narrower roles as `roles.toml` has them
    #[arg(long)]
    toml: bool,
}

/// Arguments of `report waiting`.
#[derive(clap::Args, Debug)]
pub struct Waiting {
    /// Those that have waited longer than this
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1h")]
    longer_than: Duration,
}

/// Arguments of `report review`.
#[derive(clap::Args, Debug)]
pub struct Review {
    /// The beginning of the period: a day or a moment, in UTC, such as 2026-10-01 or 2026-10-01T08:00:00Z
    #[arg(long, value_name = "TIME", value_parser = moment_or_day)]
    from: Timestamp,
    /// Its end, which does not belong to it
    #[arg(long, value_name = "TIME", value_parser = moment_or_day)]
    to: Timestamp,
}

impl When {
    fn period(&self, now: Timestamp) -> Result<Period, Error> {
        let from = self.since.moment(now);
        period(from, self.until, "--since", "--until")
    }
}

fn period(
    from: Timestamp,
    to: Option<Timestamp>,
    first: &'static str,
    second: &'static str,
) -> Result<Period, Error> {
    match to.is_some_and(|to| to <= from) {
        true => Err(Error::Usage(format!("`{second}` is not after `{first}`"))),
        false => Ok(Period { from, to }),
    }
}

pub(super) async fn run(verb: Verb, context: &mut Context<'_>) -> Result<(), Error> {
    match verb {
        Verb::Grants(arguments) => grants(arguments, context).await,
        Verb::Roles(arguments) => roles(arguments, context).await,
        Verb::Waiting(arguments) => waiting(arguments, context).await,
        Verb::Review(arguments) => review(arguments, context).await,
    }
}

async fn grants(arguments: Grants, context: &mut Context<'_>) -> Result<(), Error> {
    let what = "report on grants";
    let period = arguments.when.period(context.view().now())?;
    let mut report = context.connect().await?.report();
    let mut pages = Pages::default();
    let mut rows = Vec::new();
    while let Some(page) = pages.next() {
        let filter = UseFilter {
            period,
            subject: arguments.subject.clone(),
            resource: arguments.resource.clone(),
            page,
        };
        let answer = call(what, report.list_grant_uses(ListGrantUsesRequest::from(filter))).await?;
        rows.extend(super::rows::<_, GrantUse, GrantUseRow>(what, answer.grants)?);
        pages.turn(what, &answer.next)?;
    }
    context.print_list(&rows)
}

async fn roles(arguments: Roles, context: &mut Context<'_>) -> Result<(), Error> {
    let what = "report on roles";
    let period = arguments.when.period(context.view().now())?;
    let mut report = context.connect().await?.report();
    let answer = call(what, report.suggest_roles(SuggestRolesRequest::from(period))).await?;
    let rows = super::rows::<_, RoleUse, RoleRow>(what, answer.roles)?;
    match arguments.toml && context.global.output == Format::Table {
        true => {
            let out = &mut *context.surroundings.out;
            for row in rows.iter().filter(|row| !row.suggestion.is_empty()) {
                let printed = writeln!(out, "# {}", output::escape(&row.notes.join("; ")));
                let lines = row.suggestion.lines().map(output::escape);
                let printed =
                    lines.fold(printed, |before, line| before.and_then(|()| writeln!(out, "{line}")));
                printed.and_then(|()| writeln!(out)).map_err(Error::Output)?;
            }
        }
        false => context.print_list(&rows)?,
    }
    if answer.more {
        context.tell("only the oldest 20000 grants of the period were looked at: name a shorter one");
    }
    Ok(())
}

async fn waiting(arguments: Waiting, context: &mut Context<'_>) -> Result<(), Error> {
    let what = "report on requests that wait";
    let mut report = context.connect().await?.report();
    let longer_than = Some(duration_to_wire(arguments.longer_than));
    let asked = ListWaitingRequest { longer_than, limit: LIST_MAX };
    let answer = call(what, report.list_waiting(asked)).await?;
    let rows = super::rows::<_, Request, WaitingRow>(what, answer.requests)?;
    context.print_list(&rows)?;
    if rows.len() >= LIST_MAX as usize {
        context.tell(&format!("only the oldest {LIST_MAX} requests are shown"));
    }
    Ok(())
}

async fn review(arguments: Review, context: &mut Context<'_>) -> Result<(), Error> {
    let what = "review access";
    let period = period(arguments.from, Some(arguments.to), "--from", "--to")?;
    let mut report = context.connect().await?.report();
    let mut printed = output::reports::Review::begin(context.global.output);
    let mut pages = Pages::default();
    while let Some(page) = pages.next() {
        let answer = call(what, report.review_access(ReviewAccessRequest::from((period, page)))).await?;
        let rows = super::rows::<_, ReviewedAccess, ReviewedRow>(what, answer.grants)?;
        // Page by page: a year of a large place need not fit into memory.
        let out = &mut *context.surroundings.out;
        printed.add(out, rows).map_err(Error::Output)?;
        pages.turn(what, &answer.next)?;
    }
    let view = context.view();
    printed.end(context.surroundings.out, &view).map_err(Error::Output)
}

/// From page to page.
#[derive(Default)]
struct Pages {
    after: Option<GrantId>,
    is_last: bool,
}

impl Pages {
    fn next(&self) -> Option<Page> {
        (!self.is_last).then_some(Page { after: self.after, limit: PAGE })
    }

    /// On to the page behind `next`, if there is one. It has to lie further on: else it would never end.
    fn turn(&mut self, what: &str, next: &str) -> Result<(), Error> {
        if next.is_empty() {
            self.is_last = true;
            return Ok(());
        }
        let malformed =
            |error: proto::types::Invalid| Error::Malformed { what: what.to_owned(), source: error.into() };
        let next: GrantId =
            next.parse().map_err(|error: proto::types::Invalid| malformed(error.within("next")))?;
        if self.after.is_some_and(|after| next <= after) {
            return Err(malformed(proto::types::Invalid::new("next", "does not lie further on")));
        }
        self.after = Some(next);
        Ok(())
    }
}
