//! `portcullis request`

use std::path::PathBuf;
use std::time::Duration;

use proto::types::{
    CgroupPath, DraftId, HostName, NewRequest, Reason, Request, RequestKey, ResourceName, RoleName, SubjectId,
};
use proto::wire::access::CreateRequestRequest;

use crate::Context;
use crate::args::{checked, duration};
use crate::backoff::Backoff;
use crate::connect::{ControlPlane, call};
use crate::error::Error;
use crate::output::rows::{GrantRow, RequestRow};

/// How often a request is sent at most.
const TRIES: u32 = 3;

/// Ask for access to a resource
///
/// Prints the request, or with `--wait` the grant once it is active. Who decides, with `approve` or `deny`, says the policy, and some
/// requests need nobody; without a policy every approver does. The time counts from the approval.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  portcullis request db-prod --for 30m --reason 'slow query, INC-42'
  portcullis request db-prod --for 30m --reason 'slow query, INC-42' --wait && psql -h db-prod
  portcullis request db-prod --role debug --reason 'slow query, INC-42'
  portcullis request db-prod --for 8h --idle 10m --reason 'on call this week'
  portcullis request --draft 019aac20-1f4e-7d22-8c55-0a9b8c7d6e61 --for 30m --reason 'slow query, INC-42'
  portcullis request db-prod --subject workload:ci/deploy --host ci-1,ci-2 --for 2h --reason 'release 7.3'
  portcullis request db-prod --subject workload:ci/deploy --host ci-1 --for 2h --reason 'job 4711' \\
    --while-running /system.slice/ci-job-4711.service

Exit codes of --wait:
   0  the grant is active: the next connection is let through
  10  the request was denied or withdrawn, or nobody decided in time
  11  the grant ended before it was active
  12  the time to wait is over; the request, or its grant, goes on")]
pub struct Arguments {
    /// The resource, as `resource list` shows it
    #[arg(value_parser = checked::<ResourceName>, required_unless_present = "draft")]
    resource: Option<ResourceName>,
    /// Whose processes are to be let through: `user:NAME` or `workload:NAME`; without it, your own
    #[arg(long, value_parser = checked::<SubjectId>)]
    subject: Option<SubjectId>,
    /// A host from which; give it again for each more, or separate them by commas; without it, every host known now
    #[arg(long = "host", value_name = "HOST", value_delimiter = ',', value_parser = checked::<HostName>)]
    hosts: Vec<HostName>,
    /// For how long, from the approval: whole seconds, such as 90s, 30m, 8h or 1h30m; without it, as the role of the policy says by default
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    duration: Option<Duration>,
    /// End it earlier on a host where nothing was let through by it for so long: whole seconds, less than the whole time
    ///
    /// For long grants that are used now and then: whoever stops working does not leave a door open.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    idle: Option<Duration>,
    /// End it when this cgroup of the one host is empty or gone: a path below the cgroup v2 root
    ///
    /// For a job that should not keep its access when it is done. Needs one `--host`, if more than one is known.
    #[arg(long, value_name = "CGROUP", value_parser = checked::<CgroupPath>)]
    while_running: Option<CgroupPath>,
    /// For one use of one program only: a file that says which, and how it is called. Needs one `--host`
    ///
    /// TOML with `executable` (an absolute path without links), `sha256` (64 digits, as `sha256sum` prints them) and `arguments`: what each
    /// must be, whole; `*` stands for anything, `\*` and `\\` for a star and a backslash. Used by `portcullis run --grant`.
    #[arg(long, value_name = "FILE")]
    action_file: Option<PathBuf>,
    /// By which role of the policy; without it, by the one that fits best
    #[arg(long, value_parser = checked::<RoleName>)]
    role: Option<RoleName>,
    /// Make it once, however often this is run: the same wish with the same key again is the same request
    ///
    /// For scripts. 1 to 64 letters, digits, `.`, `_`, `:` or `-`. Another wish with a key that was used is refused.
    #[arg(long, value_parser = checked::<RequestKey>)]
    key: Option<RequestKey>,
    /// Complete this draft, in the place of a resource and hosts: ask for what you were denied, from where you were: see `drafts`
    #[arg(long, value_name = "DRAFT", value_parser = checked::<DraftId>, conflicts_with_all = ["resource", "subject", "hosts"])]
    draft: Option<DraftId>,
    /// What for: 1 to 1000 characters that approvers and auditors read
    #[arg(long, value_name = "TEXT", value_parser = checked::<Reason>)]
    reason: Reason,
    /// Return when the kernel of every host holds the grant, so that the next connection succeeds
    ///
    /// What happens meanwhile is told on standard error.
    #[arg(long)]
    wait: bool,
    /// How long to wait at most, such as 90s or 1h
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration, requires = "wait")]
    wait_timeout: Duration,
}

pub(super) async fn run(arguments: Arguments, context: &mut Context<'_>) -> Result<(), Error> {
    let Arguments {
        resource,
        subject,
        mut hosts,
        duration,
        idle,
        while_running,
        action_file,
        role,
        key,
        draft,
        reason,
        wait,
        wait_timeout,
    } = arguments;
    let action = action_file.map(|path| super::action::read(&path)).transpose()?;
    let mut connected = None;
    let resource = match (resource, draft) {
        (Some(resource), _) => resource,
        (None, Some(id)) => {
            let control_plane = context.connect().await?;
            let draft = super::draft::find(&control_plane, id).await?;
            connected = Some(control_plane);
            hosts = vec![draft.host];
            draft.resource
        }
        (None, None) => return Err(Error::Usage("no resource, and no draft of one".to_owned())),
    };
    let what = format!("request access to `{resource}`");
    // By way of the wire, which checks the parts as the control plane will.
    let run = None;
    let key = Some(key.unwrap_or_else(random_key));
    let message: CreateRequestRequest = NewRequest {
        resource,
        subject,
        hosts,
        duration,
        reason,
        idle,
        while_running,
        run,
        action,
        role,
        key,
        draft,
    }
    .into();
    NewRequest::try_from(message.clone()).map_err(|error| Error::Usage(format!("cannot {what}: {error}")))?;
    let mut control_plane = match connected {
        Some(control_plane) => control_plane,
        None => context.connect().await?,
    };
    let request = make(context, &mut control_plane, &what, message).await?;
    if !wait {
        return context.print_one(&RequestRow::from(request));
    }
    let grant = super::wait::until_active(context, control_plane, &request, wait_timeout).await?;
    context.print_one(&GrantRow::from(grant))
}

/// Makes the request. Where an answer is missing it is asked again, once or twice: by its key it is one request.
pub(super) async fn make(
    context: &mut Context<'_>,
    control_plane: &mut ControlPlane,
    what: &str,
    message: CreateRequestRequest,
) -> Result<Request, Error> {
    let mut backoff = Backoff::new();
    let mut tries = 1;
    loop {
        match call(what, control_plane.access().create_request(message.clone())).await {
            Ok(answer) => return super::checked(what, answer.request),
            Err(error) if tries < TRIES && error.worth_retrying() => {
                tries += 1;
                tokio::time::sleep(backoff.step()).await;
                // Another control plane may answer there now.
                if let Ok(connected) = context.connect().await {
                    *control_plane = connected;
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// A key that nobody else has.
pub(super) fn random_key() -> RequestKey {
    let number: u128 = rand::random();
    format!("{number:032x}").parse().expect("has the form of one")
}
