//! Workloads that sign in, and nodes that join: with tokens as GitHub and Kubernetes shape them, of an issuer that is a real server.

use std::time::{Duration, SystemTime};

use control_plane::config::{IssuerKeys, KeySource, KubernetesCluster, WorkloadIssuer};
use control_plane::rules::workload::{Binding, ClaimPath, Expected, ExpectedAgent, Wanted};
use jsonwebtoken::Algorithm;
use proto::status::ErrorKind;
use proto::types::{AuditEvent, Credential, EventKind, SubjectRole};
use proto::wire::access::RevokeHostRequest;
use proto::wire::identity as wire;
use serde_json::{Value, json};
use tonic::Status;

use super::enrolment::session;
use super::world::{Caller, Trusted, World, hello, refused, within};
use crate::provider::{Key, TestProvider};

struct Ci {
    world: World,
    issuer: TestProvider,
    key: Key,
    nobody: Caller,
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs()
}

/// A change of claims; a null takes one out.
fn with(mut claims: Value, change: Value) -> Value {
    let all = claims.as_object_mut().expect("an object");
    all.extend(change.as_object().expect("an object").clone());
    all.retain(|_, value| !value.is_null());
    claims
}

fn binding(subject: &str, claims: &[(&str, &str)]) -> Binding {
    let claims = claims.iter().map(|(path, text)| (ClaimPath::new(path), Wanted::Text((*text).to_owned())));
    Binding { subject: subject.parse().expect("valid"), claims: claims.collect() }
}

/// An issuer of workloads' tokens, and a cluster, which are the same server.
fn trusted(issuer: &TestProvider, source: KeySource) -> Trusted {
    let keys = IssuerKeys {
        issuer: issuer.issuer.clone(),
        algorithms: vec![Algorithm::ES256],
        source,
        authority: Some(issuer.authority.clone()),
    };
    let expected = Expected {
        issuer: issuer.issuer.clone(),
        audience: "portcullis".to_owned(),
        age_max: Duration::from_secs(3600),
        bindings: vec![
            binding("workload:ci/deploy", &[("repository_id", "74"), ("environment", "production")]),
            binding("workload:ci/test", &[("repository_id", "74"), ("ref", "refs/heads/main")]),
        ],
    };
    let agent = ExpectedAgent {
        issuer: issuer.issuer.clone(),
        audience: "portcullis".to_owned(),
        namespace: "portcullis".to_owned(),
        service_account: "portcullis-agent".to_owned(),
    };
    Trusted {
        notify: Vec::new(),
        hooks: Vec::new(),
        providers: Vec::new(),
        issuers: vec![WorkloadIssuer {
            name: "github".parse().expect("valid"),
            keys: keys.clone(),
            expected,
            session_lifetime: Duration::from_secs(900),
        }],
        clusters: vec![KubernetesCluster {
            name: "prod".parse().expect("valid"),
            keys,
            expected: agent,
            labels: "env=prod".parse().expect("valid"),
        }],
        trust_domains: Vec::new(),
        console: None,
    }
}

impl Ci {
    async fn open() -> Self {
        let key = Key::new("k1");
        let issuer = TestProvider::start(&[&key]).await;
        let world = World::trusting(trusted(&issuer, KeySource::Discovery)).await;
        let nobody = world.caller("").await;
        Self { world, issuer, key, nobody }
    }

    /// As GitHub shapes it.
    fn job(&self, change: Value) -> Value {
        let now = now_s();
        let claims = json!({
            "iss": self.issuer.issuer, "aud": "portcullis", "sub": "repo:acme/app:environment:production",
            "iat": now, "nbf": now - 600, "exp": now + 300, "jti": uuid::Uuid::now_v7().to_string(),
            "repository": "acme/app", "repository_id": "74", "repository_owner_id": "7",
            "environment": "production", "ref": "refs/heads/release", "run_id": "1",
            "job_workflow_ref": "acme/app/.github/workflows/deploy.yml@refs/heads/release",
        });
        with(claims, change)
    }

    /// As Kubernetes shapes it.
    fn pod(&self, node: &str, change: Value) -> Value {
        let now = now_s();
        let claims = json!({
            "iss": self.issuer.issuer, "aud": ["portcullis"], "iat": now, "nbf": now, "exp": now + 600,
            "jti": uuid::Uuid::now_v7().to_string(), "sub": "system:serviceaccount:portcullis:portcullis-agent",
            "kubernetes.io": {
                "namespace": "portcullis", "node": { "name": node, "uid": "n" },
                "pod": { "name": "portcullis-agent-x7", "uid": "p" },
                "serviceaccount": { "name": "portcullis-agent", "uid": "s" },
            },
        });
        with(claims, change)
    }

    async fn show(&mut self, token: &str) -> Result<wire::SignInWorkloadResponse, Status> {
        let sign_in = wire::SignInWorkloadRequest { token: token.to_owned() };
        Ok(within(self.nobody.identity.sign_in_workload(sign_in)).await?.into_inner())
    }
}

#[tokio::test]
async fn a_job_signs_in_asks_and_is_on_record_as_what_it_is() {
    let mut ci = Ci::open().await;
    ci.world.resource("db", "10.0.0.7").await;
    ci.world.host("db-7").await;
    let token = ci.key.sign(&ci.job(json!({})));
    let answer = ci.show(&token).await.expect("is let in");
    let mut job = ci.world.caller(&answer.token).await;
    let identity = job.who_am_i().await.expect("known");
    assert_eq!((identity.subject.as_str(), identity.role), ("workload:ci/deploy", SubjectRole::Member));
    assert_eq!(identity.credential(), Credential::Workload);
    let sign_in = identity.sign_in.expect("a session");
    assert_eq!((sign_in.provider.as_str(), sign_in.expires.since(sign_in.began).as_secs()), ("github", 900));
    job.request(60).await.expect("made");
    let asked = ci.world.last(EventKind::RequestCreated).await;
    assert_eq!((asked.actor.as_str(), asked.credential.as_str()), ("workload:ci/deploy", "workload"));
    let added = ci.world.last(EventKind::SubjectAdded).await;
    assert_eq!((added.subject.as_str(), added.credential.as_str()), ("workload:ci/deploy", "workload"));
    // Its next command shows the same token: it counts, and is told.
    ci.show(&token).await.expect("is let in again");
    let again = ci.world.last(EventKind::SubjectSignedIn).await;
    assert_eq!((again.reason.as_str(), again.expires.is_some()), ("workload", true));
    assert_eq!(
        again.comment,
        "issuer `github`, account `repo:acme/app:environment:production`, use 2 of the token"
    );
    // Its session ends as others do.
    job.identity.sign_out(wire::SignOutRequest {}).await.expect("signed out");
    refused(job.who_am_i().await, ErrorKind::Unauthenticated, "not any more");
}

#[tokio::test]
async fn a_job_is_a_member_whatever_the_directory_says() {
    let mut ci = Ci::open().await;
    ci.world.subject("workload:ci/deploy", SubjectRole::Administrator).await;
    let token = ci.key.sign(&ci.job(json!({})));
    let answer = ci.show(&token).await.expect("is let in");
    let mut job = ci.world.caller(&answer.token).await;
    assert_eq!(job.who_am_i().await.expect("known").role, SubjectRole::Member);
    refused(
        job.directory.list_subjects(proto::wire::access::ListSubjectsRequest {}).await,
        ErrorKind::PermissionDenied,
        "`workload:ci/deploy` may not call",
    );
}

#[tokio::test]
async fn a_token_that_leaks_is_bounded() {
    let mut ci = Ci::open().await;
    let token = ci.key.sign(&ci.job(json!({})));
    for _ in 0..100 {
        ci.show(&token).await.expect("is let in");
    }
    refused(ci.show(&token).await, ErrorKind::Unauthenticated, "used 100 times before");
    assert_eq!(ci.world.last(EventKind::SignInRefused).await.reason, "replayed");
    let another = ci.key.sign(&ci.job(json!({})));
    ci.show(&another).await.expect("another one is let in");
}

#[tokio::test]
async fn bad_tokens_of_jobs_are_refused_and_on_record() {
    let mut ci = Ci::open().await;
    let stranger = Key::new("k1");
    let of = |change: Value| ci.key.sign(&ci.job(change));
    let good = of(json!({}));
    let (header_and_claims, _) = good.rsplit_once('.').expect("three parts");
    let cases = [
        ("unknown_provider", "of no issuer that is known", of(json!({ "iss": "https://evil.example" }))),
        ("unknown_provider", "of no issuer that is known", "no-token".to_owned()),
        ("wrong_audience", "for `sts.amazonaws.com`", of(json!({ "aud": "sts.amazonaws.com" }))),
        ("wrong_audience", "for several", of(json!({ "aud": ["portcullis", "vault"] }))),
        ("expired", "has expired", of(json!({ "exp": now_s() - 61 }))),
        ("too_old", "older than 1h", of(json!({ "iat": now_s() - 3700 }))),
        ("bad_signature", "is not the issuer's", stranger.sign(&ci.job(json!({})))),
        ("bad_signature", "is not the issuer's", format!("{header_and_claims}.")),
        ("unknown_key", "has no key `k2`", Key::new("k2").sign(&ci.job(json!({})))),
        ("malformed", "another kind of token", ci.key.sign_as("at+jwt", &ci.job(json!({})))),
        ("not_bound", "`environment` is another one", of(json!({ "environment": "staging" }))),
        (
            "not_bound",
            "none of them is known here",
            of(json!({ "repository_id": "75", "environment": null })),
        ),
        ("ambiguous", "more than one subject", of(json!({ "ref": "refs/heads/main" }))),
    ];
    for (reason, words, token) in cases {
        let status = ci.show(&token).await.expect_err(reason);
        assert!(status.message().contains(words), "{reason}: {}", status.message());
        let is_told = |event: &AuditEvent| event.kind == EventKind::SignInRefused && event.reason == reason;
        assert!(ci.world.record().await.iter().any(is_told), "{reason}");
    }
    let entered =
        ci.world.record().await.iter().filter(|event| event.kind == EventKind::SubjectSignedIn).count();
    assert_eq!(entered, 0, "nobody got in");
    ci.show(&good).await.expect("the good one is taken");
}

#[tokio::test]
async fn keys_can_be_told_by_address_or_file() {
    let key = Key::new("k1");
    let issuer = TestProvider::start(&[&key]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys.json");
    let address = KeySource::Address(format!("{}/keys", issuer.issuer));
    std::fs::write(&file, json!({ "keys": [key.public()] }).to_string()).expect("written");
    let (mut issuer, mut key) = (issuer, key);
    for source in [address, KeySource::File(file)] {
        let world = World::trusting(trusted(&issuer, source)).await;
        let nobody = world.caller("").await;
        let mut ci = Ci { world, issuer, key, nobody };
        let token = ci.key.sign(&ci.job(json!({})));
        ci.show(&token).await.expect("is let in");
        (issuer, key) = (ci.issuer, ci.key);
    }
    assert_eq!(issuer.asked(), 1, "by address; the file needs nobody");
}

#[tokio::test]
async fn a_node_joins_and_becomes_a_host() {
    let mut ci = Ci::open().await;
    let token = ci.key.sign(&ci.pod("node-1", json!({})));
    let identity = ci.world.join_by_cluster("node-1", &token).await.expect("joined");
    let hosts = ci.world.hosts().await;
    assert_eq!(hosts.len(), 1);
    assert_eq!((hosts[0].name.as_str(), hosts[0].labels.to_string().as_str()), ("node-1", "env=prod"));
    let added = ci.world.last(EventKind::HostAdded).await;
    assert_eq!((added.actor.as_str(), added.reason.as_str()), ("host:node-1", "kubernetes"));
    let joined = ci.world.last(EventKind::HostJoined).await;
    assert_eq!(joined.reason, "kubernetes");
    assert!(joined.comment.ends_with("cluster `prod`, pod `portcullis-agent-x7`"), "{}", joined.comment);
    let first = session(&ci.world, &identity, hello("node-1")).await.expect("a session");

    // Another pod on the node, while the certificate counts: on record as that, pending until it is used,
    let token = ci.key.sign(&ci.pod("node-1", json!({})));
    let second = ci.world.join_by_cluster("node-1", &token).await.expect("joined");
    let joined = ci.world.last(EventKind::HostJoined).await;
    assert!(joined.comment.ends_with("it had another one that counts"), "{}", joined.comment);
    session(&ci.world, &identity, hello("node-1")).await.expect("the one before counts");
    // and from then on the one before is a copy.
    session(&ci.world, &second, hello("node-1")).await.expect("a session");
    drop(first);
    let before = session(&ci.world, &identity, hello("node-1")).await.map(drop);
    refused(before, ErrorKind::Unauthenticated, "this is a copy");
    assert_eq!(ci.world.last(EventKind::HostKeyCopied).await.reason, "superseded");
}

#[tokio::test]
async fn a_clusters_word_is_for_its_own_nodes() {
    let mut ci = Ci::open().await;
    let join = async |ci: &Ci, host: &str, claims: &Value| {
        ci.world.join_by_cluster(host, &ci.key.sign(claims)).await.map(drop)
    };
    // A host that an administrator added is not the cluster's, whatever its nodes are called.
    ci.world.join_token("db-7").await;
    let node = ci.pod("db-7", json!({}));
    refused(join(&ci, "db-7", &node).await, ErrorKind::PermissionDenied, "was not brought by cluster `prod`");
    // Who was revoked does not come back by itself.
    join(&ci, "node-1", &ci.pod("node-1", json!({}))).await.expect("joined");
    let revoke = RevokeHostRequest { host: "node-1".to_owned(), comment: "stolen".to_owned() };
    ci.world.admin.directory.revoke_host(revoke).await.expect("revoked");
    let node = ci.pod("node-1", json!({}));
    refused(join(&ci, "node-1", &node).await, ErrorKind::PermissionDenied, "or was revoked");
    // One token is good for three tries.
    let token = ci.key.sign(&ci.pod("node-2", json!({})));
    for _ in 0..3 {
        ci.world.join_by_cluster("node-2", &token).await.expect("joined");
    }
    refused(
        ci.world.join_by_cluster("node-2", &token).await.map(drop),
        ErrorKind::Unauthenticated,
        "used 3 times before",
    );
}

#[tokio::test]
async fn bad_tokens_of_pods_are_refused_and_on_record() {
    let mut ci = Ci::open().await;
    let mut other = ci.pod("node-1", json!({}))["kubernetes.io"].clone();
    other["serviceaccount"]["name"] = "default".into();
    let mut without = ci.pod("node-1", json!({}))["kubernetes.io"].clone();
    without.as_object_mut().expect("an object").remove("node");
    let of = |change: Value| ci.key.sign(&ci.pod("node-1", change));
    let cases = [
        ("unknown_cluster", "of no cluster that is known", of(json!({ "iss": "https://evil.example" }))),
        (
            "wrong_audience",
            "for `https://kubernetes.default.svc`",
            of(json!({ "aud": ["https://kubernetes.default.svc"] })),
        ),
        ("expired", "has expired", of(json!({ "exp": now_s() - 61 }))),
        (
            "other_service_account",
            "not of service account",
            of(json!({ "sub": "system:serviceaccount:default:default" })),
        ),
        ("other_service_account", "not of service account", of(json!({ "kubernetes.io": other }))),
        ("no_node", "names no node", of(json!({ "kubernetes.io": without }))),
        ("other_node", "of node `node-2`, not of host `node-1`", ci.key.sign(&ci.pod("node-2", json!({})))),
        ("bad_signature", "is not the issuer's", Key::new("k1").sign(&ci.pod("node-1", json!({})))),
    ];
    for (reason, words, token) in cases {
        let status = ci.world.join_by_cluster("node-1", &token).await.map(drop).expect_err(reason);
        assert!(status.message().contains(words), "{reason}: {}", status.message());
        let is_told = |event: &AuditEvent| event.kind == EventKind::CallRefused && event.reason == reason;
        assert!(ci.world.record().await.iter().any(is_told), "{reason}");
    }
    assert!(ci.world.hosts().await.is_empty(), "nobody became a host");
}
