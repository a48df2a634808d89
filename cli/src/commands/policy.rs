//! `portcullis policy …`

mod folder;
mod versions;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use policy::facts::{Channel, Device, Facts, Stage};
use policy::names::{GroupName, IncidentId, RoleName};
use policy::{Policy, cases, explain, lint};
use proto::types::{HostName, ResourceName, SubjectId, Timestamp};

use crate::Context;
use crate::args::{Format, checked, duration, moment};
use crate::error::Error;
use crate::output::policy::{CaseRow, ExplanationRow, FindingRow};

/// Policy as files: check them, run their cases, explain a decision; put them in force
///
/// A policy is a folder: who there is, what there is, roles, limits, conditions in Cedar, and cases that say what should be
/// decided. `validate`, `test` and `explain` ask no control plane. Versions that were in force are kept.
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    /// Check the files of a policy, and show everything that is wrong or odd
    ///
    /// An `error` is what keeps the policy from being accepted; a `warning` is odd: a role that nobody can get, or that has no
    /// bound, a condition that changes nothing.
    #[command(after_help = "\
Exit codes:
  0  the policy is valid; there may be warnings
  1  it is not, or cannot be read

Examples:
  portcullis policy validate
  portcullis policy validate docs/policies/contractor -o json | jq '.[] | select(.severity == \"warning\")'")]
    Validate(Folder),
    /// Run the cases under `tests/`, and show how each went
    #[command(after_help = "\
Exit codes:
  0  every case is decided as it says
  1  one is not, or the policy is not valid

Examples:
  portcullis policy test
  portcullis policy test docs/policies/contractor -o json | jq '.[] | select(.passed == false)'")]
    Test(Folder),
    /// Show what would be decided about a request, by which rules, and what would change it
    ///
    /// It shows rules that the requester would not be told of: it is for those who keep the policy.
    #[command(after_help = "\
Exit codes:
  0  it was explained, whether it would be permitted or denied
  1  the policy is not valid, or cannot be read

Examples:
  portcullis policy explain --subject user:alice@example.com --resource orders-db --host app-1
  portcullis policy explain docs/policies/on-call-incident --subject user:olga@example.com \\
    --resource orders-db --incident inc-42 --mfa --at 2026-12-01T03:00:00Z -o json | jq .outcome")]
    Explain(Box<Explain>),
    /// Show what a policy would change at the control plane, and whose live grants it would end
    ///
    /// Nothing is changed by it. Who may call: administrators.
    #[command(after_help = "\
Examples:
  portcullis policy plan
  portcullis policy plan policy/ -o json | jq '.ends[].subject'")]
    Plan(Folder),
    /// Put a policy in force
    ///
    /// What it does is shown first, on standard error. Resources that are not protected yet are, from then on. All of it is in force, or,
    /// after an error, nothing. If somebody else was quicker, it is refused. Who may call: administrators.
    #[command(after_help = "\
Examples:
  portcullis policy apply --comment 'infra#211'
  portcullis policy apply policy/ --end-grants")]
    Apply(versions::Apply),
    /// Show the versions that were put in force, newest first
    #[command(after_help = "\
Example:
  portcullis policy history -o json | jq '.[0].version'")]
    History,
    /// Show the files of a version
    #[command(after_help = "\
Examples:
  portcullis policy show
  portcullis policy show 7 --to /tmp/policy-7
  portcullis policy show -o json | jq -r '.[] | select(.path == \"roles.toml\") | .text'")]
    Show(versions::Show),
    /// Put an earlier version in force again, as a new one
    #[command(after_help = "\
Example:
  portcullis policy rollback 6 --comment 'INC-42'")]
    Rollback(versions::Rollback),
}

/// Where a policy is.
#[derive(clap::Args, Debug)]
pub struct Folder {
    /// The folder with `limits.toml`, `roles.toml` and the others
    #[arg(value_name = "DIR", default_value = ".")]
    folder: PathBuf,
}

/// The arguments of `explain`: what is known of the request.
#[derive(clap::Args, Debug)]
pub struct Explain {
    #[command(flatten)]
    folder: Folder,
    /// Who the access is for: `user:NAME` or `workload:NAME`
    #[arg(long, value_parser = checked::<SubjectId>)]
    subject: SubjectId,
    /// What is to be reached
    #[arg(long, value_parser = checked::<ResourceName>)]
    resource: ResourceName,
    /// Who asks; without it, the subject itself
    #[arg(long, value_name = "SUBJECT", value_parser = checked::<SubjectId>)]
    requester: Option<SubjectId>,
    /// A host from which; give it again for each more, or separate them by commas; without it, every host of the policy
    #[arg(long = "host", value_name = "HOST", value_delimiter = ',', value_parser = checked::<HostName>)]
    hosts: Vec<HostName>,
    /// By which role; without it, by the one that fits best
    #[arg(long, value_parser = checked::<RoleName>)]
    role: Option<RoleName>,
    /// For how long; without it, as long as the role says
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    duration: Option<Duration>,
    /// What is asked: may it be asked for (`request`), may the grant begin (`activate`), may it live on (`keep`)
    #[arg(long, default_value = "request", value_parser = checked::<Stage>)]
    stage: Stage,
    /// When: RFC 3339, such as 2026-12-01T03:00:00Z; without it, now
    #[arg(long, value_name = "TIME", value_parser = moment)]
    at: Option<Timestamp>,
    /// A group of the subject's by its identity provider, beside those in the files; again for each more
    #[arg(long = "group", value_name = "GROUP", value_delimiter = ',', value_parser = checked::<GroupName>)]
    groups: Vec<GroupName>,
    /// By which way it comes: cli, api, web or workload
    #[arg(long, default_value = "cli", value_parser = checked::<Channel>)]
    channel: Channel,
    /// From which address it comes
    #[arg(long, value_name = "ADDRESS")]
    source: Option<IpAddr>,
    /// The sign-in was by more than one factor
    #[arg(long)]
    mfa: bool,
    /// How long ago the sign-in was
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    login_age: Option<Duration>,
    /// What is known of the device: `managed`, `encrypted`, both with a comma, or `unmanaged`
    #[arg(long, value_parser = device)]
    device: Option<Device>,
    /// The id of an incident that is active; again for each more
    #[arg(long = "incident", value_name = "ID", value_delimiter = ',', value_parser = checked::<IncidentId>)]
    incidents: Vec<IncidentId>,
    /// How many people have said yes so far
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    approvals: u32,
}

fn device(text: &str) -> Result<Device, String> {
    let mut device = Device { managed: false, encrypted: false };
    for word in text.split(',') {
        match word {
            "managed" => device.managed = true,
            "encrypted" => device.encrypted = true,
            "unmanaged" => device.managed = false,
            _ => return Err("it is managed, encrypted, unmanaged, or several of them with commas".to_owned()),
        }
    }
    Ok(device)
}

pub(super) async fn run(verb: Verb, context: &mut Context<'_>) -> Result<(), Error> {
    match verb {
        Verb::Validate(Folder { folder }) => validate(folder, context),
        Verb::Test(Folder { folder }) => test(folder, context),
        Verb::Explain(arguments) => explain(*arguments, context),
        Verb::Plan(folder) => versions::plan(folder, context).await,
        Verb::Apply(arguments) => versions::apply(arguments, context).await,
        Verb::History => versions::history(context).await,
        Verb::Show(arguments) => versions::show(arguments, context).await,
        Verb::Rollback(arguments) => versions::rollback(arguments, context).await,
    }
}

/// The files in a folder, and the policy that they are. What is wrong with it is printed: on standard output if that is what was asked for.
fn read(
    folder: PathBuf,
    findings: bool,
    context: &mut Context<'_>,
) -> Result<(BTreeMap<String, String>, Policy), Error> {
    let files = folder::read(&folder)?;
    match policy::files::read(&files) {
        Ok(policy) => Ok((files, policy)),
        Err(problems) => {
            match findings {
                true => {
                    let rows: Vec<FindingRow> = problems.iter().map(FindingRow::error).collect();
                    context.print_list(&rows)?;
                }
                false => problems.iter().for_each(|problem| context.tell(&problem.to_string())),
            }
            Err(Error::BadPolicy { folder, problems: problems.len() })
        }
    }
}

fn validate(folder: PathBuf, context: &mut Context<'_>) -> Result<(), Error> {
    let shown = folder.display().to_string();
    let (_, policy) = read(folder, true, context)?;
    let warnings: Vec<FindingRow> = lint::lint(&policy).iter().map(FindingRow::warning).collect();
    context.print_list(&warnings)?;
    let counts = [
        (policy.roles.len(), "roles"),
        (policy.resources.len(), "resources"),
        (policy.hosts.len(), "hosts"),
        (policy.directory.subjects.len(), "subjects"),
        (policy.conditions(), "conditions"),
        (policy.cases.len(), "cases"),
    ];
    let counts: Vec<String> = counts.iter().map(|(count, what)| format!("{what} {count}")).collect();
    context.tell(&format!("the policy in `{shown}` is valid ({})", counts.join(", ")));
    Ok(())
}

fn test(folder: PathBuf, context: &mut Context<'_>) -> Result<(), Error> {
    let (_, policy) = read(folder, false, context)?;
    let rows: Vec<CaseRow> = cases::run(&policy).into_iter().map(Into::into).collect();
    context.print_list(&rows)?;
    let failed = rows.iter().filter(|row| !row.passed).count();
    match failed {
        0 => {
            context.tell(&format!("cases: {}, each decided as it says", rows.len()));
            Ok(())
        }
        _ => Err(Error::CasesFailed { failed, cases: rows.len() }),
    }
}

fn explain(arguments: Explain, context: &mut Context<'_>) -> Result<(), Error> {
    let Explain { folder, subject, resource, at, .. } = arguments;
    let (_, policy) = read(folder.folder, false, context)?;
    let now = at.unwrap_or_else(|| {
        let now = (context.surroundings.now)().as_millisecond();
        Timestamp::from_unix_ms(now).unwrap_or_else(|_| std::time::UNIX_EPOCH.into())
    });
    // Active: longer than the moment that is asked about.
    let end = now.plus(Duration::from_secs(1));
    let facts = Facts {
        stage: arguments.stage,
        requester: arguments.requester.unwrap_or_else(|| subject.clone()),
        groups: arguments.groups.into_iter().collect(),
        hosts: arguments.hosts.into_iter().collect(),
        role: arguments.role,
        duration: arguments.duration,
        channel: arguments.channel,
        source: arguments.source,
        mfa: arguments.mfa,
        login_age: arguments.login_age,
        device: arguments.device,
        incidents: Arc::new(arguments.incidents.into_iter().map(|id| (id, end)).collect()),
        approvals: arguments.approvals,
        ..Facts::new(now, subject, resource)
    };
    let row = ExplanationRow::from(explain::explain(&policy, &facts));
    match context.global.output {
        Format::Table | Format::Csv => context.print_list(&row.lines()),
        Format::Json => context.print_one(&row),
    }
}
