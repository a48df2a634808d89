//! `portcullis run`

mod expiry;
mod follow;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use proto::types::{
    Grant, GrantId, HostName, NewRequest, Reason, Request, ResourceName, RoleName, RunId, RunPass,
};
use proto::wire::access::{CreateRequestRequest, ReleaseGrantRequest};
use proto::wire::identity::IssueRunPassRequest;

use super::action;
use crate::Context;
use crate::agent::{Agent, SOCKET};
use crate::args::{checked, duration};
use crate::child;
use crate::connect::{ControlPlane, call};
use crate::error::{Error, Kind};

/// Run a command on this host as yourself, with access that it alone has
///
/// The agent of this host puts the command into a cgroup of its own, whatever user or session it is started from. What is asked for
/// with `--resource` is for this command and what it starts, and for no other process of yours; it ends with them. What you have been
/// granted otherwise counts there, too. The command keeps the terminal, its signals and its exit code.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  portcullis run --resource db-prod --for 30m --reason 'slow query, INC-42' -- psql -h db-prod
  portcullis run --resource db-prod,cache --for 1h --reason 'release 7.3' -- ./migrate
  portcullis run --exactly --resource db-prod --for 5m --reason 'nightly copy' -- /usr/bin/rsync -a /var/db /backup
  portcullis run -- bash

Five minutes and one minute before what was granted ends, a line on standard
error says so.

What the command leaves running in the background is still in the run, and keeps
what was granted until it ends, or the time is over; `portcullis release` ends
that at once.

Exit codes: those of the command; 128 and the signal's number if one ended it;
127 if there is no such command, 126 if it cannot be run. Before it has begun:
   1  there is no agent here, or it did not answer
   6  the agent refused
  10  an approver denied a request
  11  a grant ended before it was active
  12  the time to wait is over; the request goes on, and opens nothing")]
pub struct Arguments {
    /// A resource to ask for; give it again for each more, or separate them by commas; without it, nothing is asked for
    #[arg(
        long = "resource",
        value_name = "RESOURCE",
        value_delimiter = ',',
        value_parser = checked::<ResourceName>,
        requires = "reason"
    )]
    resources: Vec<ResourceName>,
    /// For how long at most, from the approval: whole seconds, such as 90s, 30m, 8h or 1h30m; without it, as the role of the policy says by
    /// default
    #[arg(long = "for", value_name = "DURATION", value_parser = duration, requires = "resources")]
    duration: Option<Duration>,
    /// End it earlier when nothing was let through by it for so long: whole seconds, less than the whole time
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "resources")]
    idle: Option<Duration>,
    /// By which role of the policy; without it, by the one that fits best
    #[arg(long, value_parser = checked::<RoleName>, requires = "resources")]
    role: Option<RoleName>,
    /// What for: 1 to 1000 characters that approvers and auditors read
    #[arg(long, value_name = "TEXT", value_parser = checked::<Reason>, requires = "resources")]
    reason: Option<Reason>,
    /// Ask for exactly this command, once: this executable as it is now, with these arguments
    ///
    /// For one `--resource`. The command is named by its whole path, and gets a small environment: `HOME`, `USER`, `LOGNAME`, `LANG`, `LC_…`,
    /// `TERM` and a `PATH` of the system's own folders.
    #[arg(long, requires = "resources")]
    exactly: bool,
    /// Use up a grant of one action that was approved before: see `request --action-file`
    #[arg(long, value_name = "GRANT", value_parser = checked::<GrantId>, conflicts_with_all = ["resources", "exactly"])]
    grant: Option<GrantId>,
    /// How long to wait for approvals at most, such as 90s or 1h
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    wait_timeout: Duration,
    /// Where the agent of this host listens
    #[arg(
        long,
        value_name = "FILE",
        env = "PORTCULLIS_AGENT_SOCKET",
        hide_env_values = true,
        default_value = SOCKET
    )]
    agent_socket: PathBuf,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(super) async fn run(arguments: Arguments, context: &mut Context<'_>) -> Result<(), Error> {
    let mut wishes = wishes(&arguments)?;
    let Arguments { wait_timeout, agent_socket, mut command, exactly, mut grant, .. } = arguments;
    if exactly || grant.is_some() {
        name_by_its_path(&mut command)?;
    }
    if exactly {
        let [wish] = wishes.as_mut_slice() else {
            return Err(Error::Usage("`--exactly` is for one `--resource`".to_owned()));
        };
        let (program, arguments) =
            command.split_first().ok_or_else(|| Error::Usage("no command".to_owned()))?;
        wish.action = Some(action::of(program.as_ref(), arguments)?);
    }
    let mut control_plane = context.connect().await?;
    let mut agent = Agent::connect(&agent_socket)?;
    let pass = pass(&control_plane, &agent).await?;
    let run = agent.open(pass)?;
    let mut requests = Vec::new();
    for wish in wishes {
        requests.push(ask(context, &mut control_plane, wish, run, &agent.host).await?);
    }
    let mut grants: Vec<Grant> = Vec::new();
    for request in &requests {
        let waited = super::wait::until_active(context, control_plane.clone(), request, wait_timeout);
        grants.push(waited.await?);
    }
    if exactly {
        grant = grants.first().map(|grant| grant.id);
    }
    // What is told is read before the command has the terminal.
    let _ = context.surroundings.err.flush();
    let child = child::command(&agent_socket, run, grant, &command);
    let following = tokio::task::spawn_blocking(move || follow::to_the_end(child));
    let ended = tokio::select! {
        ended = following => ended,
        never = expiry::warn(context, control_plane, &grants) => match never {},
    };
    let ended = ended.map_err(std::io::Error::other).and_then(|ended| ended).map_err(Error::Follow)?;
    context.exit_code = ended;
    finish(context, &mut agent, run, &grants).await
}

/// As the kernel will say it.
fn name_by_its_path(command: &mut [OsString]) -> Result<(), Error> {
    if let Some(program) = command.first_mut() {
        *program = action::executable(program)?.into_os_string();
    }
    Ok(())
}

/// What is to be asked for, without what only the host knows.
fn wishes(arguments: &Arguments) -> Result<Vec<NewRequest>, Error> {
    let Arguments { resources, duration, idle, role, reason, .. } = arguments;
    let wish = |resource: &ResourceName| {
        let Some(reason) = reason else {
            return Err(Error::Usage("`--resource` needs `--reason`".to_owned()));
        };
        let wish = NewRequest {
            resource: resource.clone(),
            subject: None,
            hosts: Vec::new(),
            duration: *duration,
            reason: reason.clone(),
            idle: *idle,
            while_running: None,
            run: None,
            action: None,
            role: role.clone(),
            key: None,
            draft: None,
        };
        // By way of the wire, which checks the parts as the control plane will.
        let message = CreateRequestRequest::from(wish.clone());
        let refused = |error| Error::Usage(format!("cannot request access to `{resource}`: {error}"));
        NewRequest::try_from(message).map_err(refused)
    };
    resources.iter().map(wish).collect()
}

/// The control plane's word for the agent.
async fn pass(control_plane: &ControlPlane, agent: &Agent) -> Result<RunPass, Error> {
    let what = format!("prove to host `{}` who runs the command", agent.host);
    let message = IssueRunPassRequest { host: agent.host.to_string(), challenge: agent.challenge.0.to_vec() };
    let answer = call(&what, control_plane.identity().issue_run_pass(message)).await?;
    super::checked(&what, answer.pass)
}

async fn ask(
    context: &mut Context<'_>,
    control_plane: &mut ControlPlane,
    wish: NewRequest,
    run: RunId,
    host: &HostName,
) -> Result<Request, Error> {
    let what = format!("request access to `{}`", wish.resource);
    let key = Some(super::request::random_key());
    let message = NewRequest { run: Some(run), hosts: vec![host.clone()], key, ..wish };
    super::request::make(context, control_plane, &what, message.into()).await
}

/// The host ends what was granted with the run. If it cannot be asked whether it does, that is done here.
async fn finish(
    context: &mut Context<'_>,
    agent: &mut Agent,
    run: RunId,
    grants: &[Grant],
) -> Result<(), Error> {
    match agent.finish() {
        Ok(0) => {}
        // What was held never began to run.
        Err(error @ Error::AgentRefused { .. }) => return Err(error),
        Ok(processes) => context.tell(&format!(
            "{processes} of the command's processes are still running, with what it was granted: run {run} goes on until they \
             end, or the time is over; `portcullis release` ends it at once"
        )),
        Err(_) if grants.is_empty() => {}
        Err(error) => {
            context.tell(&format!("{}; giving back what was granted", error.with_cause()));
            if let Err(error) = release(context, grants).await {
                context.tell(&error.with_cause());
            }
        }
    }
    Ok(())
}

async fn release(context: &mut Context<'_>, grants: &[Grant]) -> Result<(), Error> {
    let control_plane = context.connect().await?;
    for id in grants.iter().map(|grant| grant.id) {
        match release_one(&control_plane, id).await {
            // It has ended by itself.
            Err(error) if error.kind() == Kind::Conflict => {}
            released => released?,
        }
    }
    Ok(())
}

async fn release_one(control_plane: &ControlPlane, id: GrantId) -> Result<(), Error> {
    let message = ReleaseGrantRequest { id: id.to_string() };
    call(format!("release grant `{id}`"), control_plane.access().release_grant(message)).await.map(drop)
}
