//! `request --wait`: what is told meanwhile, and each outcome.

use proto::status::ErrorKind;
use proto::wire::access::{EndReason, Grant, GrantState, RequestState, WatchRequestResponse};

use crate::canned::{Canned, Script, World, active, grant, request};

fn seen(state: RequestState, grant: Option<Grant>) -> Script<WatchRequestResponse> {
    vec![Ok(WatchRequestResponse { request: Some(request(state)), grant })]
}

async fn check(name: &str, watches: Vec<Script<WatchRequestResponse>>, more: &[&str]) {
    let world = World::start(Canned::default()).await;
    world.canned.watches.lock().unwrap().extend(watches);
    let line = ["request", "db-prod", "--for=90m", "--reason=x", "--wait"];
    insta::assert_snapshot!(name, world.run(&[&line, more].concat()).await);
}

fn activating(hosts: [(bool, &str); 2]) -> Script<WatchRequestResponse> {
    let grant = grant(GrantState::Activating, EndReason::Unspecified, hosts);
    seen(RequestState::Approved, Some(grant))
}

#[tokio::test]
async fn until_active() {
    let whole: Script<_> = [
        seen(RequestState::Pending, None),
        seen(RequestState::Pending, None),
        activating([(false, ""), (false, "")]),
        activating([(true, ""), (false, "map GRANTS is full")]),
        seen(RequestState::Approved, Some(active())),
    ]
    .into_iter()
    .flatten()
    .collect();
    check("wait_until_active", vec![whole], &[]).await;
}

/// The control plane goes away in the middle: once with an error, once without a word.
#[tokio::test]
async fn across_a_restart() {
    let mut broken = seen(RequestState::Pending, None);
    broken.push(Err((ErrorKind::Unavailable, "the control plane is stopping", "")));
    let watches = vec![broken, vec![], seen(RequestState::Approved, Some(active()))];
    check("wait_across_a_restart", watches, &["-o", "json"]).await;
}

#[tokio::test]
async fn until_denied() {
    check("wait_until_denied", vec![seen(RequestState::Denied, None)], &[]).await;
}

#[tokio::test]
async fn until_nobody_decided() {
    let watches = vec![[seen(RequestState::Pending, None), seen(RequestState::Lapsed, None)].concat()];
    check("wait_until_nobody_decided", watches, &[]).await;
}

#[tokio::test]
async fn until_ended() {
    let hosts = [(false, "map GRANTS is full (65536 entries)"), (true, "")];
    let ended = grant(GrantState::Ending, EndReason::ActivationFailed, hosts);
    check("wait_until_ended", vec![seen(RequestState::Approved, Some(ended))], &[]).await;
}

#[tokio::test]
async fn until_the_time_is_over() {
    let watches = (0..20).map(|_| activating([(true, ""), (false, "")])).collect();
    check("wait_until_the_time_is_over", watches, &["--wait-timeout", "1s"]).await;
}

/// A refusal that trying again cannot mend ends the wait.
#[tokio::test]
async fn until_refused() {
    let refused = vec![Err((ErrorKind::PermissionDenied, "your token has been replaced", ""))];
    check("wait_until_refused", vec![refused], &[]).await;
}
