//! Warnings while a command runs: that what it was granted is about to end.
//!
//! Owns: when they come, what they say. Must not know: the command.
//!
//! A deadline may have been moved meanwhile, and so is looked up again before anything is said; if nobody can be asked, the last one that
//! was heard counts.

use std::convert::Infallible;
use std::time::Duration;

use proto::types::{Grant, GrantState, Timestamp};
use proto::wire::access::{WatchRequestRequest, WatchRequestResponse};
use tokio::time::sleep;

use crate::Context;
use crate::commands::checked;
use crate::connect::{ControlPlane, STREAM_LIMIT, call, next};
use crate::error::Error;

/// So long before the end; the last one last.
const AHEAD: [Duration; 2] = [Duration::from_secs(5 * 60), Duration::from_secs(60)];

/// Time is looked at this often at least: a machine that has slept wakes up later than it thinks.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// One grant, and what has been said of it.
struct Held {
    grant: Grant,
    /// Of which deadline, and how long before it the last warning was.
    warned: Option<(Timestamp, Duration)>,
}

/// Warns until it is dropped.
pub(super) async fn warn(
    context: &mut Context<'_>,
    mut control_plane: ControlPlane,
    grants: &[Grant],
) -> Infallible {
    let mut held: Vec<Held> =
        grants.iter().map(|grant| Held { grant: grant.clone(), warned: None }).collect();
    loop {
        sleep(LOOK_AGAIN).await;
        let mut over = Vec::new();
        for (index, one) in held.iter_mut().enumerate() {
            if due(one, context.view().now()).is_none() {
                continue;
            }
            match look(context, &mut control_plane, &one.grant).await {
                Some(grant) if grant.state == GrantState::Active => one.grant = grant,
                Some(_) => {
                    over.push(index);
                    continue;
                }
                None => {}
            }
            let now = context.view().now();
            if let Some(ahead) = due(one, now) {
                one.warned = Some((one.grant.expires, ahead));
                let Grant { id, resource, expires, .. } = &one.grant;
                let (left, end) = (context.view().until(*expires), context.view().clock(*expires));
                context.tell(&format!("access to `{resource}` (grant {id}) ends in {left}, at {end}"));
                let _ = context.surroundings.err.flush();
            }
        }
        for index in over.into_iter().rev() {
            held.remove(index);
        }
    }
}

/// Which warning is due now; None: none is.
fn due(held: &Held, now: Timestamp) -> Option<Duration> {
    let Held { grant: Grant { issued, begins, expires, .. }, warned } = held;
    let left = expires.since(now);
    // The last of those whose time has come; the others would only say the same.
    let ahead = AHEAD.into_iter().rfind(|ahead| left <= *ahead)?;
    let is_told = warned.is_some_and(|(of, told)| of == *expires && told <= ahead);
    let is_short = expires.since(begins.unwrap_or(*issued)) <= ahead;
    (!left.is_zero() && !is_told && !is_short).then_some(ahead)
}

/// How it stands with a grant; None: nobody could say.
async fn look(context: &mut Context<'_>, control_plane: &mut ControlPlane, grant: &Grant) -> Option<Grant> {
    let error = match ask(control_plane, grant).await {
        Ok(grant) => return Some(grant),
        Err(error) => error,
    };
    // A session may have ended while the command ran.
    match context.outlive(error, control_plane).await {
        Ok(None) => ask(control_plane, grant).await.ok(),
        Ok(Some(_)) | Err(_) => None,
    }
}

async fn ask(control_plane: &ControlPlane, grant: &Grant) -> Result<Grant, Error> {
    let what = format!("watch request `{}`", grant.request);
    let message = WatchRequestRequest { id: grant.request.to_string() };
    let mut stream = call(&what, control_plane.access().watch_request(message)).await?;
    // The first message says how things are.
    let message = next(&what, &mut stream, Some(STREAM_LIMIT)).await?;
    checked(&what, message.and_then(|WatchRequestResponse { grant, .. }| grant))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_ms(seconds * 1000).expect("in range")
    }

    fn held(length: i64) -> Held {
        let grant = Grant {
            id: "019aac20-1f4e-7d22-8c55-0a9b8c7d6e5f".parse().expect("valid"),
            state: GrantState::Active,
            request: "019aac1e-7b1c-7c10-9f6b-3f2d6c1f7a01".parse().expect("valid"),
            resource: "db-prod".parse().expect("valid"),
            subject: "user:alice".parse().expect("valid"),
            hosts: Vec::new(),
            issued: at(0),
            expires: at(length),
            ended: None,
            idle: None,
            while_running: None,
            run: None,
            action: None,
            extensions: 0,
            begins: Some(at(0)),
            duration: None,
        };
        Held { grant, warned: None }
    }

    #[track_caller]
    fn check(held: &Held, now: i64, expected: Option<u64>) {
        assert_eq!(due(held, at(now)).map(|ahead| ahead.as_secs()), expected, "at {now}");
    }

    #[test]
    fn each_warning_comes_once() {
        let mut held = held(1000);
        check(&held, 699, None);
        check(&held, 700, Some(300));
        held.warned = Some((at(1000), AHEAD[0]));
        check(&held, 710, None);
        check(&held, 939, None);
        check(&held, 940, Some(60));
        held.warned = Some((at(1000), AHEAD[1]));
        check(&held, 950, None);
        check(&held, 1000, None);
        // It was extended.
        held.grant.expires = at(2000);
        check(&held, 1001, None);
        check(&held, 1700, Some(300));
    }

    #[test]
    fn who_comes_late_is_warned_once() {
        let mut held = held(1000);
        check(&held, 950, Some(60));
        held.warned = Some((at(1000), AHEAD[1]));
        check(&held, 951, None);
    }

    #[test]
    fn short_grants_have_fewer_warnings() {
        check(&held(300), 10, None);
        check(&held(300), 240, Some(60));
        check(&held(60), 10, None);
        check(&held(301), 1, Some(300));
    }
}
