//! The policy in force: how it gets there, what it decides, whom it lets decide, and what it ends.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::status::ErrorKind;
use proto::types::{
    EndReason, EventKind, GrantState, NewPolicy, PolicyFiles, PolicyPlan, PolicyVersion, RequestState,
    SubjectId, SubjectRole,
};
use proto::wire::access as wire;
use proto::wire::policy as policy_wire;
use tonic::Status;

use super::world::{Caller, FakeAgent, Story, World, refused, until};

const LIMITS: &str = "maximum_duration = \"8h\"\n";
const HOSTS: &str = "[[host]]\nname = \"db-7\"\n[[host]]\nname = \"db-8\"\n";
const SUBJECTS: &str = r#"
[[subject]]
id = "user:alice"
[[subject]]
id = "user:emil"
[[subject]]
id = "user:fay"
[[subject]]
id = "workload:ci"
[[group]]
name = "dba"
members = ["user:alice", "user:emil", "user:fay"]
"#;
pub(crate) const TWO_STEPS: &str = r#"
[[role]]
name = "debug"
to = ["group:dba"]
resources = ["db"]
hosts = ["*"]
maximum_duration = "30m"
idle = "10m"
[[role.step]]
approvers = ["group:dba"]
[[role.step]]
approvers = ["user:fay"]
"#;
pub(crate) const AUTOMATIC: &str = r#"
[[role]]
name = "routine"
to = ["user:alice"]
resources = ["db"]
hosts = ["*"]
maximum_duration = "10m"
automatic = true
"#;

/// The `db` of [`Story`], and what else there is.
pub(crate) fn files(roles: &str, more: &[(&str, &str)]) -> PolicyFiles {
    let db = "[[resource]]\nname = \"db\"\naddresses = [\"10.0.0.7\"]\nports = [\"tcp/5432\"]\n";
    let files = [
        ("limits.toml", LIMITS),
        ("hosts.toml", HOSTS),
        ("subjects.toml", SUBJECTS),
        ("resources.toml", db),
        ("roles.toml", roles),
    ];
    let mut all: BTreeMap<String, String> =
        files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
    for (path, text) in more {
        all.entry((*path).to_owned()).or_default().push_str(text);
    }
    PolicyFiles::new(all).expect("within bounds")
}

pub(crate) async fn apply(
    caller: &mut Caller,
    before: u64,
    files: PolicyFiles,
) -> Result<(PolicyVersion, PolicyPlan), Status> {
    let new = NewPolicy { files, before, comment: "as agreed".to_owned(), restores: None };
    let answer = caller.policy.apply_policy(policy_wire::ApplyPolicyRequest::from(new)).await?.into_inner();
    let version = answer.version.expect("is there").try_into().expect("valid");
    Ok((version, answer.plan.expect("is there").try_into().expect("valid")))
}

pub(crate) async fn plan(caller: &mut Caller, files: PolicyFiles) -> Result<PolicyPlan, Status> {
    let request = policy_wire::PlanPolicyRequest { files: files.into() };
    let answer = caller.policy.plan_policy(request).await?.into_inner();
    Ok(answer.plan.expect("is there").try_into().expect("valid"))
}

fn ids(names: &[&str]) -> Vec<SubjectId> {
    names.iter().map(|name| name.parse().expect("valid")).collect()
}

#[tokio::test]
async fn versions_follow_each_other() {
    let mut world = World::new().await;
    let _story: Story = world.story().await;
    let mut auditor = world.subject("user:otto", SubjectRole::Auditor).await;
    let admin = &mut world.admin;
    let more = (
        "resources.toml",
        "[[resource]]\nname = \"logs\"\naddresses = [\"192.0.2.7\"]\nports = [\"tcp/22\"]\n",
    );
    let roles = TWO_STEPS.replace("[\"db\"]", "[\"db\", \"logs\"]\nstrict = true");
    let planned = plan(admin, files(&roles, &[more])).await.expect("planned");
    assert_eq!((planned.before, planned.ends.len()), (0, 0));
    assert_eq!((planned.protects[0].as_str(), planned.strict[0].as_str()), ("logs", "db"));
    assert!(planned.differences.iter().any(|it| (it.kind.as_str(), it.name.as_str()) == ("role", "debug")));
    let listed =
        admin.policy.list_policies(policy_wire::ListPoliciesRequest { limit: 0 }).await.expect("listed");
    assert_eq!(listed.into_inner().versions, [], "a plan changes nothing");

    let (first, done) = apply(admin, 0, files(&roles, &[more])).await.expect("applied");
    assert_eq!((first.version, done), (1, planned));
    let listed = admin.directory.list_resources(wire::ListResourcesRequest {}).await.expect("listed");
    let strict: Vec<_> = listed
        .into_inner()
        .resources
        .into_iter()
        .map(|it| (it.name, it.options.expect("is there").strict))
        .collect();
    assert_eq!(strict, [("db".to_owned(), true), ("logs".to_owned(), true)]);

    // Somebody else was first, the files are not valid, they contradict what is there, or ask for what is not done here.
    let again = apply(admin, 0, files(TWO_STEPS, &[])).await;
    refused(again, ErrorKind::FailedPrecondition, "version 1 of the policy is in force, not 0");
    let invalid = files(TWO_STEPS, &[("roles.toml", "[[role]]\nname = \"x\"\n")]);
    refused(
        apply(admin, 1, invalid).await,
        ErrorKind::InvalidArgument,
        "the policy is not valid: roles.toml:",
    );
    let mut elsewhere = files(TWO_STEPS, &[]).into_map();
    elsewhere.insert(
        "resources.toml".to_owned(),
        "[[resource]]\nname = \"db\"\naddresses = [\"192.0.2.9\"]\nports = [\"tcp/5432\"]\n".to_owned(),
    );
    let elsewhere = PolicyFiles::new(elsewhere).expect("within bounds");
    refused(
        apply(admin, 1, elsewhere).await,
        ErrorKind::FailedPrecondition,
        "and the policy says 192.0.2.9 on tcp/5432",
    );
    let destination = |name: &str, address: &str, ports: &str| {
        format!("[[resource]]\nname = \"{name}\"\naddresses = [\"{address}\"]\nports = [\"{ports}\"]\n")
    };
    let with_another = destination("x", "192.0.2.7", "tcp/20-30");
    let with_each_other = destination("y", "192.0.2.8", "tcp/22") + &destination("z", "192.0.2.8", "tcp/22");
    for (more, words) in [
        (with_another, "192.0.2.7 on tcp/22 belongs to resource `logs`"),
        (with_each_other, "192.0.2.8 on tcp/22 belongs to resource `y`"),
    ] {
        let collides = files(TWO_STEPS, &[("resources.toml", &more)]);
        refused(apply(admin, 1, collides).await, ErrorKind::FailedPrecondition, words);
    }

    let (second, _) = apply(admin, 1, files(AUTOMATIC, &[])).await.expect("applied");
    assert_eq!(second.version, 2);
    let get = policy_wire::GetPolicyRequest { version: 1 };
    let answer = auditor.policy.get_policy(get).await.expect("allowed").into_inner();
    let of_first: PolicyFiles = answer.files.try_into().expect("valid");
    assert_eq!(of_first, files(&roles, &[more]));
    let restored = NewPolicy { files: of_first, before: 2, comment: String::new(), restores: Some(1) };
    let restored = admin.policy.apply_policy(policy_wire::ApplyPolicyRequest::from(restored)).await;
    assert_eq!(restored.expect("applied").into_inner().version.expect("is there").restores, 1);
    let event = world.last(EventKind::PolicyApplied).await;
    assert!(event.comment.starts_with("version 3, which is version 1 again; "), "{}", event.comment);
    assert_eq!(event.actor, "user:admin");
    // It survives a restart, and nobody else may look at it.
    world.restart().await;
    let listed = world.admin.policy.list_policies(policy_wire::ListPoliciesRequest { limit: 2 }).await;
    let versions: Vec<u64> =
        listed.expect("listed").into_inner().versions.iter().map(|it| it.version).collect();
    assert_eq!(versions, [3, 2]);
    let mut dora = world.subject("user:eve", SubjectRole::Approver).await;
    let denied = dora.policy.get_policy(get).await;
    refused(denied, ErrorKind::PermissionDenied, "may not call PolicyService.GetPolicy");
}

/// Whoever is an approver here and not in the policy decides nothing; whoever is one there decides, whatever they are here.
#[tokio::test]
async fn people_whom_the_policy_names_decide() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    world.host("db-8").await;
    let (mut emil, mut fay) = (
        world.subject("user:emil", SubjectRole::Member).await,
        world.subject("user:fay", SubjectRole::Member).await,
    );
    let mut mallory = world.subject("user:mallory", SubjectRole::Member).await;
    let mut ci = world.subject("workload:ci", SubjectRole::Approver).await;
    apply(&mut world.admin, 0, files(TWO_STEPS, &[])).await.expect("applied");

    let nothing = mallory.request(600).await;
    refused(nothing, ErrorKind::PermissionDenied, "no role gives `user:mallory` access to `db`");
    let long = story.alice.request(3600).await;
    refused(long, ErrorKind::PermissionDenied, "rule `role:debug`: 1h is longer than 30m");
    let request = story.alice.request(900).await.expect("made");
    assert_eq!(request.idle, Some(Duration::from_secs(600)));
    let (version, role) = request.judged.clone().expect("judged");
    assert_eq!((version, role.as_str()), (1, "debug"));

    // Who may decide sees it, and for whom it waits.
    let seen = emil.requests(false).await.remove(0);
    let waiting = seen.waiting.expect("waits");
    assert_eq!((waiting.step, waiting.steps, waiting.more), (1, 2, 1));
    assert_eq!(waiting.approvers, ids(&["user:emil", "user:fay"]));
    assert_eq!(mallory.requests(true).await, []);
    refused(mallory.approve(request.id).await, ErrorKind::PermissionDenied, "is no approver of any step");
    refused(story.dora.approve(request.id).await, ErrorKind::PermissionDenied, "is no approver of any step");
    refused(world.admin.approve(request.id).await, ErrorKind::PermissionDenied, "is no approver of any step");
    refused(story.alice.approve(request.id).await, ErrorKind::PermissionDenied, "it asked for it itself");
    refused(ci.approve(request.id).await, ErrorKind::PermissionDenied, "only people approve");

    let wider = emil.say_yes(request.id, Some(Duration::from_secs(901)), &[]).await;
    refused(wider, ErrorKind::InvalidArgument, "may narrow, never widen");
    let (half, grant) = emil.say_yes(request.id, Some(Duration::from_secs(60)), &[]).await.expect("counted");
    assert_eq!((half.state, grant), (RequestState::Pending, None));
    assert_eq!(world.last(EventKind::ApprovalGiven).await.comment, "go ahead; for 1m");
    refused(emil.approve(request.id).await, ErrorKind::FailedPrecondition, "counts once in all steps");
    let waiting = story.alice.requests(false).await.remove(0).waiting.expect("waits");
    assert_eq!((waiting.step, waiting.approvers), (2, ids(&["user:fay"])));
    // What is pinned stays: another version in between changes nothing about who decides.
    apply(&mut world.admin, 1, files(&TWO_STEPS.replace("[\"user:fay\"]", "[\"user:emil\"]"), &[]))
        .await
        .expect("applied");
    let (approved, grant) = fay.say_yes(request.id, None, &["db-7"]).await.expect("counted");
    assert_eq!((approved.state, approved.votes.len()), (RequestState::Approved, 2));
    let grant = grant.expect("nobody else has to");
    assert_eq!(grant.expires.since(grant.issued), Duration::from_secs(60));
    assert_eq!(grant.hosts.iter().map(|host| host.name.as_str()).collect::<Vec<_>>(), ["db-7"]);
    assert_eq!(emil.requests(true).await.len(), 1, "who has voted can look it up");

    // A no of any step is final.
    let request = story.alice.request(900).await.expect("made");
    let deny = wire::DenyRequestRequest { id: request.id.to_string(), comment: "not today".to_owned() };
    emil.access.deny_request(deny.clone()).await.expect("denied");
    refused(fay.approve(request.id).await, ErrorKind::FailedPrecondition, "is denied already: `user:emil`");

    // Also of somebody who has said yes before.
    let request = story.alice.request(900).await.expect("made");
    fay.say_yes(request.id, None, &[]).await.expect("counted");
    let deny = wire::DenyRequestRequest { id: request.id.to_string(), ..deny };
    fay.access.deny_request(deny).await.expect("denied");
    let votes = story.alice.requests(true).await.remove(0).votes;
    assert_eq!(votes.iter().map(|vote| vote.yes).collect::<Vec<_>>(), [true, false]);
}

/// One leaves one host, the other another one.
#[tokio::test]
async fn what_nobody_leaves_anything_of_is_denied() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    world.host("db-8").await;
    let mut emil = world.subject("user:emil", SubjectRole::Member).await;
    let mut fay = world.subject("user:fay", SubjectRole::Member).await;
    apply(&mut world.admin, 0, files(TWO_STEPS, &[])).await.expect("applied");
    let request = story.alice.request(900).await.expect("made");
    emil.say_yes(request.id, None, &["db-7"]).await.expect("counted");
    let (denied, grant) = fay.say_yes(request.id, None, &["db-8"]).await.expect("counted");
    assert_eq!((denied.state, grant), (RequestState::Denied, None));
    let told = world.last(EventKind::RequestDenied).await;
    assert_eq!(
        (told.actor.as_str(), told.comment.as_str()),
        ("system", "nothing is left of it that all approve")
    );
}

#[tokio::test]
async fn what_needs_nobodys_yes_is_approved_at_once() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let mut new = wire::CreateRequestRequest {
        resource: "db".into(),
        duration: Some(prost_types::Duration { seconds: 300, nanos: 0 }),
        reason: "routine".into(),
        role: "routine".into(),
        ..wire::CreateRequestRequest::default()
    };
    let refused_role = story.alice.create(new.clone()).await;
    refused(refused_role, ErrorKind::InvalidArgument, "role `routine` is not known: no policy is in force");
    apply(&mut world.admin, 0, files(&[TWO_STEPS, AUTOMATIC].concat(), &[])).await.expect("applied");
    // Without a name the role that needs the fewest people fits best.
    for role in ["routine", ""] {
        new.role = role.into();
        let request = story.alice.create(new.clone()).await.expect("made");
        assert_eq!(request.state, RequestState::Approved);
        assert_eq!(request.decided.as_ref().map(|(by, _)| by.clone()), Some(None), "no person decided");
        assert!(request.grant.is_some());
        assert_eq!(world.last(EventKind::RequestApproved).await.actor, "system");
    }
    new.role = "debug".into();
    assert_eq!(story.alice.create(new.clone()).await.expect("made").state, RequestState::Pending);
}

/// How long, nobody has said: the role does, and what is on record is that.
#[tokio::test]
async fn a_request_that_does_not_say_how_long() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let mut new = wire::CreateRequestRequest {
        resource: "db".into(),
        reason: "slow query".into(),
        key: "4711".into(),
        ..wire::CreateRequestRequest::default()
    };
    let nothing = story.alice.create(new.clone()).await;
    refused(
        nothing,
        ErrorKind::InvalidArgument,
        "duration: is missing, and no policy is in force that has a default",
    );
    let with_default = TWO_STEPS.replace("idle = ", "default_duration = \"20m\"\nidle = ");
    let roles = [&with_default, AUTOMATIC].concat();
    apply(&mut world.admin, 0, files(&roles, &[])).await.expect("applied");
    // The role that fits best has none, and another one is not taken for that.
    let best = story.alice.create(new.clone()).await;
    refused(
        best,
        ErrorKind::InvalidArgument,
        "duration: is missing, and role `routine` (policy version 1) has no default",
    );
    new.role = "debug".into();
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let idle = wire::CreateRequestRequest { idle: seconds(1200), ..new.clone() };
    let idle = story.alice.create(idle).await;
    refused(idle, ErrorKind::InvalidArgument, "idle: 20m is not less than the duration, 20m");

    let made = story.alice.create(new.clone()).await.expect("made");
    assert_eq!((made.duration, made.idle), (Duration::from_secs(1200), Some(Duration::from_secs(600))));
    assert_eq!(story.alice.create(new.clone()).await.expect("is there").id, made.id, "the same wish");
    let named = wire::CreateRequestRequest { duration: seconds(1200), ..new.clone() };
    let named = story.alice.create(named).await;
    refused(named, ErrorKind::AlreadyExists, "key `4711` is that of request");

    // The operator's cap holds for what a role says, too.
    let long =
        TWO_STEPS.replace("\"30m\"", "\"8h\"").replace("idle = ", "default_duration = \"7h\"\nidle = ");
    apply(&mut world.admin, 1, files(&long, &[])).await.expect("applied");
    new.key = String::new();
    refused(
        story.alice.create(new).await,
        ErrorKind::InvalidArgument,
        "duration: 7h is above the maximum of 1h",
    );
}

#[tokio::test]
async fn a_request_is_withdrawn_or_lapses() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let mut emil = world.subject("user:emil", SubjectRole::Member).await;
    let soon = TWO_STEPS
        .replace("approvers = [\"user:fay\"]", "approvers = [\"user:fay\"]\nafter = \"1s\"\nthen = \"deny\"");
    apply(&mut world.admin, 0, files(&soon, &[])).await.expect("applied");
    let request = story.alice.request(600).await.expect("made");
    let withdraw = |id: proto::types::RequestId| wire::WithdrawRequestRequest { id: id.to_string() };
    refused(
        emil.access.withdraw_request(withdraw(request.id)).await,
        ErrorKind::PermissionDenied,
        "did not ask for it",
    );
    story.alice.access.withdraw_request(withdraw(request.id)).await.expect("withdrawn");
    let seen = story.alice.requests(true).await.remove(0);
    assert_eq!(seen.state, RequestState::Withdrawn);
    refused(emil.approve(request.id).await, ErrorKind::FailedPrecondition, "is withdrawn already");

    // Nobody comes in the second step, which denies by itself.
    let request = story.alice.request(600).await.expect("made");
    emil.say_yes(request.id, None, &[]).await.expect("counted");
    until(async || story.alice.clone().requests(false).await.is_empty()).await;
    let seen = story.alice.requests(true).await.remove(0);
    assert_eq!(
        (seen.id, seen.state, seen.decided.map(|(by, _)| by)),
        (request.id, RequestState::Denied, Some(None))
    );
    let told = world.last(EventKind::RequestDenied).await;
    assert_eq!((told.actor.as_str(), told.comment.as_str()), ("system", "time passed"));
}

/// A grant lives as long as the policy permits it: another policy ends it at once.
#[tokio::test]
async fn what_the_policy_does_not_permit_any_more_ends() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let (mut agent, first) = FakeAgent::start(&world, &story.host).await;
    agent.applied(first.generation).await;
    apply(&mut world.admin, 0, files(AUTOMATIC, &[])).await.expect("applied");
    let request = story.alice.request(300).await.expect("made");
    let grant = request.grant.expect("approved");
    let set = agent.set_with(1).await;
    agent.applied(set.generation).await;

    let forbid = "@id(\"stop\") @help(\"wait\")\nforbid (principal, action, resource);\n";
    let next = files(AUTOMATIC, &[("conditions/stop.cedar", forbid)]);
    let planned = plan(&mut world.admin, next.clone()).await.expect("planned");
    assert_eq!((planned.ends.len(), planned.ends[0].grant), (1, grant));
    assert_eq!(planned.ends[0].reason, "rule `stop`: forbids it");
    apply(&mut world.admin, 1, next).await.expect("applied");
    let without = agent.set_with(0).await;
    agent.applied(without.generation).await;
    until(async || story.alice.clone().grants(false).await.is_empty()).await;
    let ended = story.alice.grants(true).await.remove(0);
    assert_eq!(ended.state, GrantState::Ended(EndReason::PolicyChanged));
    refused(
        story.alice.request(300).await,
        ErrorKind::PermissionDenied,
        "rule `stop`: forbids it (what would help: wait)",
    );
}

/// What a condition permits only for a while ends when the while is over, though nobody touches the policy.
#[tokio::test]
async fn conditions_are_asked_again_while_a_grant_lives() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let end = jiff_in(3);
    let limits =
        format!("[[maintenance]]\nname = \"now\"\nfrom = \"2026-01-01T00:00:00Z\"\nto = \"{end}\"\n");
    let condition = "@id(\"only-now\")\nforbid (principal, action == Action::\"keep\", resource) unless { context.maintenance.contains(Window::\"now\") };\n";
    let policy = files(AUTOMATIC, &[("limits.toml", &limits), ("conditions/now.cedar", condition)]);
    apply(&mut world.admin, 0, policy).await.expect("applied");
    let request = story.alice.request(300).await.expect("made");
    assert_eq!(request.state, RequestState::Approved);
    // Without a word of its host: as long as that may hold it, it is ending.
    let limit = Duration::from_secs(60);
    let looked = async {
        while story.alice.grants(false).await.iter().any(|grant| grant.state.end_reason().is_none()) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(limit, looked).await.expect("within a minute");
    let state = story.alice.grants(true).await.remove(0).state;
    assert_eq!(state.end_reason(), Some(EndReason::PolicyChanged));
    let told = world.last(EventKind::GrantEnding).await;
    assert!(told.comment.contains("rule `only-now`: forbids it"), "{}", told.comment);
}

/// So many seconds from now, as policies write it.
fn jiff_in(seconds: u64) -> String {
    let then = std::time::SystemTime::now() + Duration::from_secs(seconds);
    humantime::format_rfc3339_seconds(then).to_string()
}
