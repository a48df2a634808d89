//! From a request to an active grant: what a watch says, and when it is over.

use std::time::Duration;

use proto::types::{EndReason, Grant, GrantState, Request, RequestId, RequestState, SubjectId, Waiting};
use proto::wire::access::{WatchRequestRequest, WatchRequestResponse};
use tokio::time::{sleep, timeout};

use crate::Context;
use crate::backoff::Backoff;
use crate::connect::{ControlPlane, STREAM_LIMIT, call, next};
use crate::error::{Error, Problem};

/// Where a request stands, as far as waiting for it goes.
#[derive(Debug, PartialEq)]
enum Step {
    /// Not settled; in words.
    Going(String),
    /// Every host's kernel holds the grant.
    Active(Box<Grant>),
    /// It led to no grant, and will not.
    Denied,
    /// It will not become active any more; what hosts said.
    Ended(Box<Grant>, EndReason, String),
}

fn step(request: &Request, grant: Option<Grant>) -> Step {
    let by = || {
        let by = request.decided.as_ref().and_then(|(by, _)| by.as_ref());
        by.map(|by| format!(" by {by}")).unwrap_or_default()
    };
    match (request.state, grant) {
        (RequestState::Denied | RequestState::Withdrawn | RequestState::Lapsed, _) => Step::Denied,
        (RequestState::Pending, _) => {
            let who = request.waiting.as_ref().map_or("an approver".to_owned(), approvers);
            Step::Going(format!(
                "request {0} is pending: {who} decides with `portcullis approve {0}`",
                request.id
            ))
        }
        (RequestState::Approved, None) => Step::Going(format!("request {} is approved{}", request.id, by())),
        (RequestState::Approved, Some(grant)) => match grant.state {
            GrantState::Active => Step::Active(Box::new(grant)),
            GrantState::Scheduled => Step::Going(match grant.begins {
                Some(begins) => {
                    let begins = proto::json::utc(begins);
                    format!(
                        "request {} is approved{}; grant {} begins at {begins}",
                        request.id,
                        by(),
                        grant.id
                    )
                }
                None => format!(
                    "request {} is approved{}; the time of grant {} begins with `portcullis activate {}`",
                    request.id,
                    by(),
                    grant.id,
                    grant.id
                ),
            }),
            GrantState::Activating => Step::Going(format!(
                "request {} is approved{}; grant {} is activating, {}",
                request.id,
                by(),
                grant.id,
                missing(&grant)
            )),
            GrantState::Ending(reason) | GrantState::Ended(reason) => {
                let detail = errors(&grant);
                Step::Ended(Box::new(grant), reason, detail)
            }
        },
    }
}

/// Whose yes is waited for.
fn approvers(waiting: &Waiting) -> String {
    if waiting.approvers.is_empty() && !waiting.hooks.is_empty() {
        let hooks: Vec<String> = waiting.hooks.iter().map(|hook| format!("hook:{hook}")).collect();
        return hooks.join(", ");
    }
    let names: Vec<&str> = waiting.approvers.iter().map(SubjectId::as_str).collect();
    let others = if waiting.others > 0 { format!(" or {} others", waiting.others) } else { String::new() };
    let names = format!("{}{others}", names.join(", "));
    match (waiting.more, waiting.approvers.len()) {
        (1, 1) if waiting.others == 0 => names,
        (1, _) => format!("one of {names}"),
        (more, _) => format!("each of {more} out of {names}"),
    }
}

fn errors(grant: &Grant) -> String {
    let failed = grant.hosts.iter().filter(|host| !host.error.is_empty());
    failed.map(|host| format!("{}: {}", host.name, host.error)).collect::<Vec<_>>().join("; ")
}

/// Which hosts have not confirmed.
fn missing(grant: &Grant) -> String {
    let waiting = grant.hosts.iter().filter(|host| !host.held);
    let waiting: Vec<String> = waiting.map(|host| host.name.to_string()).collect();
    let errors = errors(grant);
    match (waiting.is_empty(), errors.is_empty()) {
        (true, _) => "every host has confirmed".to_owned(),
        (false, true) => format!("not confirmed by {}", waiting.join(", ")),
        (false, false) => format!("not confirmed by {} ({errors})", waiting.join(", ")),
    }
}

/// Waits until the grant of `request` is active, telling each step. A control plane that goes away is asked again when it is
/// back: the request outlives it.
pub(super) async fn until_active(
    context: &mut Context<'_>,
    control_plane: ControlPlane,
    request: &Request,
    limit: Duration,
) -> Result<Grant, Error> {
    let mut told = String::new();
    let waited = timeout(limit, watch_on(context, control_plane, request.id, &mut told)).await;
    waited.unwrap_or_else(|_| {
        let source = Problem(if told.is_empty() { "nothing was heard of it".to_owned() } else { told });
        Err(Error::WaitTimedOut { request: request.id, limit, source })
    })
}

async fn watch_on(
    context: &mut Context<'_>,
    mut control_plane: ControlPlane,
    request: RequestId,
    told: &mut String,
) -> Result<Grant, Error> {
    let mut backoff = Backoff::new();
    let mut trouble = String::new();
    loop {
        let error = match watch(context, &control_plane, request, told).await {
            Ok(Some(grant)) => return Ok(grant),
            Ok(None) => None,
            Err(error) => match context.outlive(error, &mut control_plane).await? {
                None => {
                    sleep(backoff.step()).await;
                    continue;
                }
                error => error,
            },
        };
        let now = error.map_or("the control plane ended the watch".to_owned(), |error| error.with_cause());
        if now != trouble {
            context.tell(&format!("{now}; trying again"));
            trouble = now;
        }
        sleep(backoff.step()).await;
    }
}

/// One watch. None: it ended and nothing is settled.
async fn watch(
    context: &mut Context<'_>,
    control_plane: &ControlPlane,
    request: RequestId,
    told: &mut String,
) -> Result<Option<Grant>, Error> {
    let what = format!("watch request `{request}`");
    let message = WatchRequestRequest { id: request.to_string() };
    let mut stream = call(&what, control_plane.access().watch_request(message)).await?;
    // The first message says how things are and comes at once; the others come when something changes.
    let mut limit = Some(STREAM_LIMIT);
    while let Some(message) = next(&what, &mut stream, limit.take()).await? {
        let WatchRequestResponse { request, grant } = message;
        let request: Request = super::checked(&what, request)?;
        let grant = grant.map(|grant| super::checked(&what, Some(grant))).transpose()?;
        match step(&request, grant) {
            Step::Active(grant) => {
                let expires = context.view().clock(grant.expires);
                context.tell(&format!("grant {} is active until {expires}", grant.id));
                return Ok(Some(*grant));
            }
            Step::Denied => {
                let decided_by = request.decided.and_then(|(by, _)| by);
                let (id, state, comment) = (request.id, request.state, request.comment);
                return Err(Error::Denied { request: id, state, decided_by, comment });
            }
            Step::Ended(grant, reason, detail) => {
                return Err(Error::EndedBeforeActive { grant: grant.id, reason, detail });
            }
            Step::Going(words) if words != *told => {
                context.tell(&words);
                *told = words;
            }
            Step::Going(_) => {}
        }
    }
    Ok(None)
}
