//! Signing in with a provider: who is let in and as what, who is not, and what is on record of it.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use control_plane::clock;
use control_plane::config::IdentityProvider;
use control_plane::rules::claims::{DeviceClaims, Expected};
use control_plane::store::{RequestFilter, Store, Whose};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use proto::status::ErrorKind;
use proto::types::{
    AuditEvent, Credential, EndReason, EventKind, GrantId, PolicyFiles, SubjectIdentity, SubjectRole,
};
use proto::wire::access::{
    CreateRequestRequest, DisableSubjectRequest, EnableSubjectRequest, UnbindSubjectRequest,
};
use proto::wire::audit::TailRequest;
use proto::wire::identity as wire;
use proto::wire::policy::{ApplyPolicyRequest, PolicyFile};
use serde_json::{Value, json};
use tonic::Status;

use super::policy::{apply, plan};
use super::world::{Caller, World, refused, within};
use crate::provider::{Key, TestProvider};

struct Office {
    world: World,
    provider: TestProvider,
    key: Key,
    nobody: Caller,
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs()
}

impl Office {
    async fn open() -> Self {
        Self::open_with(|_| {}).await
    }

    async fn open_with(change: impl FnOnce(&mut IdentityProvider)) -> Self {
        let key = Key::new("k1");
        let provider = TestProvider::start(&[&key]).await;
        let mut configured = provider.configured();
        change(&mut configured);
        let world = World::with_providers(vec![configured]).await;
        let nobody = world.caller("").await;
        Self { world, provider, key, nobody }
    }

    /// What the provider says of Alice, who approves; a null takes a claim out.
    fn claims(&self, change: Value) -> Value {
        let now = now_s();
        let mut claims = json!({
            "iss": self.provider.issuer, "aud": "portcullis", "sub": "00u1", "nonce": "n",
            "iat": now, "exp": now + 300, "email": "Alice@example.com", "groups": ["approvers"],
            // No two tokens are the same.
            "jti": uuid::Uuid::now_v7().to_string(),
        });
        let all = claims.as_object_mut().expect("an object");
        for (claim, value) in change.as_object().expect("an object").clone() {
            all.insert(claim, value);
        }
        all.retain(|_, value| !value.is_null());
        claims
    }

    fn token(&self, change: Value) -> String {
        self.key.sign(&self.claims(change))
    }

    async fn present(&mut self, id_token: String) -> Result<wire::SignInResponse, Status> {
        self.renew(id_token, "").await
    }

    async fn renew(&mut self, id_token: String, replaces: &str) -> Result<wire::SignInResponse, Status> {
        let sign_in = wire::SignInRequest {
            provider: "corp".to_owned(),
            id_token,
            nonce: "n".to_owned(),
            replaces: replaces.to_owned(),
        };
        Ok(within(self.nobody.identity.sign_in(sign_in)).await?.into_inner())
    }

    /// Signs somebody in: their session.
    async fn sign_in(&mut self, change: Value) -> (Caller, SubjectIdentity) {
        let answer = self.present(self.token(change)).await.expect("is let in");
        let identity = answer.identity.expect("is there").try_into().expect("valid");
        (self.world.caller(&answer.token).await, identity)
    }
}

#[tokio::test]
async fn a_session_from_its_beginning_to_its_end() {
    let mut office = Office::open().await;
    let listed = office.nobody.identity.list_providers(wire::ListProvidersRequest {}).await.expect("listed");
    let names: Vec<String> = listed.into_inner().providers.into_iter().map(|listed| listed.name).collect();
    assert_eq!(names, ["corp"]);

    let (mut alice, identity) = office.sign_in(json!({ "amr": ["pwd", "otp"] })).await;
    assert!(alice.token.starts_with("pcs_"), "{}", alice.token.len());
    assert_eq!((identity.subject.as_str(), identity.role), ("user:alice@example.com", SubjectRole::Approver));
    assert_eq!(alice.who_am_i().await.expect("known"), identity);
    let sign_in = identity.sign_in.expect("a session");
    assert_eq!(sign_in.expires.since(sign_in.began), Duration::from_secs(600));

    let added = office.world.last(EventKind::SubjectAdded).await;
    assert_eq!((added.actor.as_str(), added.credential.as_str()), ("user:alice@example.com", "session"));
    let begun = office.world.last(EventKind::SubjectSignedIn).await;
    assert_eq!((begun.subject.as_str(), begun.reason.as_str()), ("user:alice@example.com", "signed_in"));
    assert_eq!(begun.comment, "provider `corp`, account `00u1`, role approver, by pwd otp");
    assert_eq!(begun.expires, Some(sign_in.expires));

    // What she does carries how she is known, and so does what the bootstrap token does.
    office.world.resource("db", "10.0.0.7").await;
    office.world.host("db-7").await;
    alice.request(60).await.expect("made");
    let asked = office.world.last(EventKind::RequestCreated).await;
    assert_eq!((asked.actor.as_str(), asked.credential.as_str()), ("user:alice@example.com", "session"));
    assert_eq!(office.world.last(EventKind::ResourceAdded).await.credential, "token");
    let admin = office.world.admin.who_am_i().await.expect("known");
    assert_eq!((admin.credential(), admin.sign_in), (Credential::Token, None));

    // It outlives a restart, but not the sign-out.
    office.world.restart().await;
    let mut alice = office.world.caller(&alice.token).await;
    alice.identity.sign_out(wire::SignOutRequest {}).await.expect("signed out");
    refused(alice.who_am_i().await, ErrorKind::Unauthenticated, "not any more");
    let ended = office.world.last(EventKind::SubjectSignedOut).await;
    assert_eq!((ended.actor.as_str(), ended.credential.as_str()), ("user:alice@example.com", "session"));
    let out = office.world.admin.identity.sign_out(wire::SignOutRequest {}).await;
    refused(out, ErrorKind::FailedPrecondition, "static token");
}

#[tokio::test]
async fn a_session_ends_with_its_time_and_takes_its_streams_along() {
    let mut office =
        Office::open_with(|configured| configured.session_lifetime = Duration::from_secs(2)).await;
    let (mut admin, _) = office.sign_in(json!({ "groups": ["admins"] })).await;
    let tail = TailRequest { follow: true, ..TailRequest::default() };
    let mut stream = admin.audit.tail(tail).await.expect("allowed").into_inner();
    let end = loop {
        match within(stream.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ends with a reason"),
            Err(status) => break status,
        }
    };
    refused::<()>(Err(end), ErrorKind::Unauthenticated, "sign in with `portcullis login`");
    refused(admin.who_am_i().await, ErrorKind::Unauthenticated, "not any more");
}

#[tokio::test]
async fn a_renewed_session_takes_the_place_of_the_one_before() {
    let mut office = Office::open().await;
    let (mut first, _) = office.sign_in(json!({})).await;
    let (mut others, _) = office.sign_in(json!({ "email": "dora@example.com", "sub": "00u2" })).await;
    let token = office.token(json!({}));
    let second = office.renew(token, &first.token).await.expect("renewed");
    assert_eq!(office.world.last(EventKind::SubjectSignedIn).await.reason, "renewed");
    refused(first.who_am_i().await, ErrorKind::Unauthenticated, "not any more");
    office.world.caller(&second.token).await.who_am_i().await.expect("known");
    // Nobody ends a session of somebody else's.
    let token = office.token(json!({}));
    office.renew(token, &others.token).await.expect("signed in");
    assert_eq!(office.world.last(EventKind::SubjectSignedIn).await.reason, "signed_in");
    others.who_am_i().await.expect("known");
}

#[tokio::test]
async fn the_oldest_of_too_many_sessions_ends() {
    let mut office = Office::open().await;
    let (mut first, _) = office.sign_in(json!({})).await;
    for _ in 0..31 {
        office.sign_in(json!({})).await;
    }
    first.who_am_i().await.expect("32 sessions are possible");
    office.sign_in(json!({})).await;
    refused(first.who_am_i().await, ErrorKind::Unauthenticated, "not any more");
}

#[tokio::test]
async fn roles_follow_the_groups() {
    let mut office = Office::open().await;
    let role = |identity: SubjectIdentity| identity.role;
    assert_eq!(role(office.sign_in(json!({})).await.1), SubjectRole::Approver);
    assert_eq!(
        role(office.sign_in(json!({ "groups": ["admins", "approvers"] })).await.1),
        SubjectRole::Administrator
    );
    // Out of the groups: what they gave is gone, although she is in the directory now.
    let token = office.token(json!({ "groups": [] }));
    refused(office.present(token).await, ErrorKind::PermissionDenied, "no group of theirs has a role");
    let event = office.world.last(EventKind::SignInRefused).await;
    assert_eq!((event.reason.as_str(), event.actor.as_str()), ("not_let_in", ""));
    assert!(event.comment.contains("`user:alice@example.com` is not let in"), "{}", event.comment);
    // Whom only her groups have put there, an administrator can still add.
    office.world.subject("user:alice@example.com", SubjectRole::Member).await;
    assert_eq!(role(office.sign_in(json!({ "groups": [] })).await.1), SubjectRole::Member);
    // Whom an administrator has added needs no group, but a group comes before what the directory says.
    office.world.subject("user:bob@example.com", SubjectRole::Auditor).await;
    let bob = |groups: Value| json!({ "email": "bob@example.com", "sub": "00u3", "groups": groups });
    assert_eq!(role(office.sign_in(bob(json!([]))).await.1), SubjectRole::Auditor);
    assert_eq!(role(office.sign_in(bob(json!(["approvers"]))).await.1), SubjectRole::Approver);
    assert_eq!(role(office.sign_in(bob(json!([]))).await.1), SubjectRole::Auditor);
}

#[tokio::test]
async fn strangers_get_the_default_role_where_there_is_one() {
    let mut office = Office::open_with(|configured| {
        let Expected { default_role, .. } = &mut configured.expected;
        *default_role = Some(SubjectRole::Member);
    })
    .await;
    assert_eq!(office.sign_in(json!({ "groups": null })).await.1.role, SubjectRole::Member);
}

#[tokio::test]
async fn a_name_stays_with_its_account() {
    let mut office = Office::open().await;
    let bound_elsewhere = "belongs to another account of this identity provider";
    // 1. Alice signs in for the first time: her name is her account's.
    let (mut alice, _) = office.sign_in(json!({})).await;
    let event = office.world.last(EventKind::SubjectBound).await;
    assert_eq!((event.subject.as_str(), event.credential.as_str()), ("user:alice@example.com", "session"));
    let issuer = office.provider.issuer.clone();
    assert_eq!(event.comment, format!("provider `corp`, issuer `{issuer}`, account `00u1`"));
    office.sign_in(json!({})).await;
    // 2. She leaves, and her address is given to somebody else, who is not her, with whatever groups.
    let other = json!({ "sub": "00u8", "groups": ["admins"] });
    let token = office.token(other.clone());
    refused(office.present(token).await, ErrorKind::PermissionDenied, bound_elsewhere);
    let event = office.world.last(EventKind::SignInRefused).await;
    assert_eq!((event.reason.as_str(), event.actor.as_str()), ("bound_elsewhere", ""));
    assert!(
        event.comment.contains("`user:alice@example.com` belongs to another account"),
        "{}",
        event.comment
    );
    alice.who_am_i().await.expect("her sessions are hers");
    // 3. Nor is she a second person under another name, who could approve what she asked for.
    let token = office.token(json!({ "email": "alice.smith@example.com" }));
    let words = "belongs to `user:alice@example.com`, and cannot also be `user:alice.smith@example.com`";
    refused(office.present(token).await, ErrorKind::PermissionDenied, words);
    let names: Vec<String> = office.world.subjects().await;
    assert!(!names.contains(&"user:alice.smith@example.com".to_owned()), "{names:?}");
    // 4. Only an administrator lets the next account have the name; her sessions end.
    let unbind =
        |subject: &str| UnbindSubjectRequest { subject: subject.to_owned(), comment: "HR-311".to_owned() };
    let (mut dora, _) = office.sign_in(json!({ "sub": "00u2", "email": "dora@example.com" })).await;
    let denied = dora.directory.unbind_subject(unbind("user:alice@example.com")).await;
    refused(denied, ErrorKind::PermissionDenied, "may not call");
    let admin = &mut office.world.admin;
    admin.directory.unbind_subject(unbind("user:alice@example.com")).await.expect("unbound");
    refused(alice.who_am_i().await, ErrorKind::Unauthenticated, "not any more");
    dora.who_am_i().await.expect("others' go on");
    let event = office.world.last(EventKind::SubjectUnbound).await;
    assert_eq!((event.actor.as_str(), event.credential.as_str()), ("user:admin", "token"));
    assert_eq!(event.comment, format!("issuer `{issuer}`, account `00u1`, 2 sessions ended: HR-311"));
    office.sign_in(other).await;
    let token = office.token(json!({}));
    refused(office.present(token).await, ErrorKind::PermissionDenied, bound_elsewhere);
    // 5. What is not bound cannot be unbound.
    let admin = &mut office.world.admin;
    let again = admin.directory.unbind_subject(unbind("user:admin")).await;
    refused(again, ErrorKind::FailedPrecondition, "belongs to no account");
    let nobody = admin.directory.unbind_subject(unbind("user:nobody")).await;
    refused(nobody, ErrorKind::NotFound, "`user:nobody` is not known");
}

#[tokio::test]
async fn two_providers_share_no_name() {
    let (key, other_key) = (Key::new("k1"), Key::new("k1"));
    let (provider, other) = (TestProvider::start(&[&key]).await, TestProvider::start(&[&other_key]).await);
    let mut configured = other.configured();
    configured.provider.name = "other".parse().expect("valid");
    let world = World::with_providers(vec![provider.configured(), configured]).await;
    let nobody = world.caller("").await;
    let mut office = Office { world, provider, key, nobody };
    // Whom an administrator has added is bound when they first sign in.
    office.world.subject("user:alice@example.com", SubjectRole::Administrator).await;
    office.sign_in(json!({ "groups": null })).await;
    let mut claims = office.claims(json!({}));
    claims["iss"] = other.issuer.clone().into();
    let sign_in = wire::SignInRequest {
        provider: "other".to_owned(),
        id_token: other_key.sign(&claims),
        nonce: "n".to_owned(),
        ..wire::SignInRequest::default()
    };
    let refusal = office.nobody.identity.sign_in(sign_in).await;
    refused(refusal, ErrorKind::PermissionDenied, "another account, at another identity provider");
    assert_eq!(office.world.last(EventKind::SignInRefused).await.reason, "bound_elsewhere");
}

/// A token without a signature, or with one that its public key is enough for.
fn forged(algorithm: &str, claims: &Value, key: &Key) -> String {
    let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    if algorithm == "HS256" {
        let header = Header { kid: Some("k1".to_owned()), ..Header::new(Algorithm::HS256) };
        let secret = EncodingKey::from_secret(key.public_pem().as_bytes());
        return jsonwebtoken::encode(&header, claims, &secret).expect("signed");
    }
    format!("{}.{}.", encode(&json!({ "alg": algorithm, "kid": "k1" })), encode(claims))
}

#[tokio::test]
async fn bad_tokens_are_refused_and_on_record() {
    let mut office = Office::open_with(|configured| {
        configured.expected.max_auth_age = Some(Duration::from_secs(3600));
    })
    .await;
    let fresh = json!({ "auth_time": now_s() });
    let claims = |change: Value| {
        let mut all = fresh.clone();
        all.as_object_mut().expect("an object").extend(change.as_object().expect("an object").clone());
        office.claims(all)
    };
    let of = |change: Value| office.key.sign(&claims(change));
    let stranger = Key::new("k1");
    let good = of(json!({}));
    let cut = &good[..good.rfind('.').expect("three parts") + 1];
    let another = BASE64_URL_SAFE_NO_PAD.encode(claims(json!({ "groups": ["admins"] })).to_string());
    let parts: Vec<&str> = good.split('.').collect();
    let cases = [
        ("expired", "has expired", of(json!({ "exp": now_s() - 61 }))),
        ("too_old", "older than 10m", of(json!({ "iat": now_s() - 3600 }))),
        ("not_yet_valid", "not valid yet", of(json!({ "nbf": now_s() + 600 }))),
        ("wrong_issuer", "issued by `https://evil.example`", of(json!({ "iss": "https://evil.example" }))),
        ("wrong_audience", "for `another-application`", of(json!({ "aud": "another-application" }))),
        ("wrong_nonce", "its nonce is another one", of(json!({ "nonce": "m" }))),
        ("wrong_nonce", "its nonce is another one", of(json!({ "nonce": null }))),
        ("stale_authentication", "more than 1h ago", of(json!({ "auth_time": now_s() - 3700 }))),
        ("unverified_email", "has not verified", of(json!({ "email_verified": false }))),
        (
            "unusable_subject",
            "names nobody that can be a subject",
            of(json!({ "email": "\u{430}lice@example.com" })),
        ),
        (
            "too_many_groups",
            "left the groups out",
            of(json!({ "groups": null, "_claim_names": { "groups": "src1" } })),
        ),
        (
            "too_many_groups",
            "names 1001 groups that a policy could name",
            of(json!({ "groups": (0..1001).map(|index| format!("g{index}")).collect::<Vec<_>>() })),
        ),
        ("not_let_in", "`user:alice@example.com` is not let in", of(json!({ "groups": ["staff"] }))),
        ("wrong_algorithm", "algorithm `none`", forged("none", &claims(json!({})), &office.key)),
        ("wrong_algorithm", "algorithm `None`", forged("None", &claims(json!({})), &office.key)),
        ("wrong_algorithm", "algorithm `HS256`", forged("HS256", &claims(json!({})), &office.key)),
        ("unknown_key", "has no key `k1` that may sign", forged("RS256", &claims(json!({})), &office.key)),
        ("bad_signature", "is not the issuer's", stranger.sign(&claims(json!({})))),
        ("bad_signature", "is not the issuer's", cut.to_owned()),
        ("bad_signature", "is not the issuer's", [parts[0], &another, parts[2]].join(".")),
        ("malformed", "another kind of token", office.key.sign_as("at+jwt", &claims(json!({})))),
        ("malformed", "not three parts", "no-token".to_owned()),
        ("malformed", "`exp` is not a moment", of(json!({ "exp": "soon" }))),
        ("malformed", "`sub` is missing", of(json!({ "sub": null }))),
    ];
    for (reason, words, token) in cases {
        let status = office.present(token).await.expect_err(reason);
        assert!(status.message().contains(words), "{reason}: {}", status.message());
        // Lines of one reason are a second apart; what comes in between is counted in the next.
        let recorded = office.world.record().await;
        let is_told =
            recorded.iter().any(|event| event.kind == EventKind::SignInRefused && event.reason == reason);
        assert!(is_told, "{reason}");
    }
    let count =
        office.world.record().await.iter().filter(|event| event.kind == EventKind::SubjectSignedIn).count();
    assert_eq!(count, 0, "nobody got in");
    office.present(good).await.expect("the good one is taken");
}

/// (r, s) and (r, n - s) are signatures of the same.
fn with_other_signature(token: &str) -> String {
    const N: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa,
        0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    let (signed, signature) = token.rsplit_once('.').expect("three parts");
    let mut signature = BASE64_URL_SAFE_NO_PAD.decode(signature).expect("base64url");
    let mut borrow = 0;
    for (digit, n) in signature[32..].iter_mut().zip(N).rev() {
        let difference = i16::from(n) - i16::from(*digit) - borrow;
        borrow = i16::from(difference < 0);
        *digit = difference.rem_euclid(256) as u8;
    }
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test]
async fn an_id_token_is_taken_once() {
    let mut office = Office::open().await;
    let token = office.token(json!({}));
    office.present(token.clone()).await.expect("is let in");
    refused(office.present(token.clone()).await, ErrorKind::Unauthenticated, "was used before");
    // The same token with the other of the two signatures that there are for every one of ECDSA.
    refused(
        office.present(with_other_signature(&token)).await,
        ErrorKind::Unauthenticated,
        "was used before",
    );
    office.world.restart().await;
    office.nobody = office.world.caller("").await;
    refused(office.present(token).await, ErrorKind::Unauthenticated, "was used before");
    assert_eq!(office.world.last(EventKind::SignInRefused).await.reason, "replayed");
}

#[tokio::test]
async fn a_new_key_is_found_and_made_up_ones_do_not_make_us_ask() {
    let mut office = Office::open().await;
    office.sign_in(json!({})).await;
    assert_eq!(office.provider.asked(), 1);
    // The provider changes its key.
    let next = Key::new("k2");
    office.provider.publish(&[&next]);
    let token = next.sign(&office.claims(json!({})));
    office.present(token).await.expect("is let in");
    assert_eq!(office.provider.asked(), 2);
    // What was withdrawn is not taken any more.
    let token = office.token(json!({}));
    refused(office.present(token).await, ErrorKind::Unauthenticated, "has no key `k1`");
    for index in 0..60 {
        let token = Key::new(&format!("made-up-{index}")).sign(&office.claims(json!({})));
        refused(office.present(token).await, ErrorKind::Unauthenticated, "has no key `made-up-");
    }
    // Three at once, and one more for each ten seconds that this took.
    assert!(office.provider.asked() <= 5, "asked {} times", office.provider.asked());
    let known = next.sign(&office.claims(json!({})));
    office.present(known).await.expect("who has a known key is let in all the same");
}

#[tokio::test]
async fn a_flood_is_held_back_and_counted() {
    let mut office = Office::open().await;
    let mut held_back = 0;
    for _ in 0..300 {
        match office.present("no-token".to_owned()).await {
            Err(status) if ErrorKind::from_code(status.code()) == ErrorKind::ResourceExhausted => {
                held_back += 1
            }
            answer => refused(answer, ErrorKind::Unauthenticated, "three parts"),
        }
    }
    assert!(held_back > 0, "nobody was held back");
    let too_many = |event: &&AuditEvent| event.kind == EventKind::SignInRefused && event.reason == "too_many";
    let record = office.world.record().await;
    let lines = record.iter().filter(too_many).count();
    assert!((1..60).contains(&lines), "{lines} lines for {held_back}");
    // Who is known is not held up by those who are not.
    office.world.admin.who_am_i().await.expect("known");
}

#[tokio::test]
async fn a_provider_that_is_not_there_is_told() {
    let mut office = Office::open_with(|configured| {
        configured.provider.issuer = "https://localhost:1".to_owned();
    })
    .await;
    let token = office.token(json!({}));
    refused(office.present(token).await, ErrorKind::Unavailable, "the keys of the issuer cannot be had");
    assert_eq!(office.world.last(EventKind::SignInRefused).await.reason, "provider_unreachable");
    // Another authority than the one that was named is no authority.
    let mut office = Office::open_with(|configured| {
        let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        configured.authority = Some(other.cert.pem().into_bytes());
    })
    .await;
    let token = office.token(json!({}));
    refused(office.present(token).await, ErrorKind::Unavailable, "cannot be had");
    assert_eq!(office.provider.asked(), 0);
}

#[tokio::test]
async fn nobody_may_do_nothing_else() {
    let mut office = Office::open().await;
    refused(office.nobody.who_am_i().await, ErrorKind::Unauthenticated, "sign in with `portcullis login`");
    let unknown = wire::SignInRequest {
        provider: "other".to_owned(),
        id_token: "a.b.c".to_owned(),
        ..wire::SignInRequest::default()
    };
    refused(office.nobody.identity.sign_in(unknown).await, ErrorKind::NotFound, "`other` is not known");
    let (mut alice, _) = office.sign_in(json!({ "groups": ["approvers"] })).await;
    let tail = alice.audit.tail(TailRequest::default()).await;
    refused(tail, ErrorKind::PermissionDenied, "`user:alice@example.com` may not call");
    let event = office.world.last(EventKind::CallRefused).await;
    assert_eq!((event.actor.as_str(), event.credential.as_str()), ("user:alice@example.com", "session"));
}

#[tokio::test]
async fn whoever_is_disabled_does_not_sign_in() {
    let mut office = Office::open().await;
    let (mut alice, identity) = office.sign_in(json!({})).await;
    let subject = identity.subject.to_string();
    let disable = DisableSubjectRequest { subject: subject.clone(), comment: String::new() };
    office.world.admin.directory.disable_subject(disable).await.expect("disabled");
    refused(alice.who_am_i().await, ErrorKind::Unauthenticated, "not any more");
    let token = office.token(json!({}));
    refused(office.present(token).await, ErrorKind::PermissionDenied, "`user:alice@example.com` is disabled");
    assert_eq!(office.world.last(EventKind::SignInRefused).await.reason, "disabled");
    let enable = EnableSubjectRequest { subject, comment: String::new() };
    office.world.admin.directory.enable_subject(enable).await.expect("enabled");
    office.sign_in(json!({})).await;
}

/// What the provider says of a sign-in, the policy is asked with: how it was, and when.
#[tokio::test]
async fn a_policy_knows_how_somebody_signed_in() {
    let mut office = Office::open().await;
    office.world.resource("db", "10.0.0.7").await;
    office.world.host("db-7").await;
    let files = [
        ("limits.toml", "maximum_duration = \"8h\"\n"),
        ("hosts.toml", "[[host]]\nname = \"db-7\"\n"),
        (
            "resources.toml",
            "[[resource]]\nname = \"db\"\naddresses = [\"10.0.0.7\"]\nports = [\"tcp/5432\"]\n",
        ),
        ("subjects.toml", "[[subject]]\nid = \"user:alice@example.com\"\n"),
        (
            "roles.toml",
            "[[role]]\nname = \"debug\"\nto = [\"user:alice@example.com\"]\nresources = [\"db\"]\nhosts = [\"*\"]\nautomatic = true\n",
        ),
        (
            "conditions/mfa.cedar",
            "@id(\"mfa\")\nforbid (principal, action, resource) unless { context.mfa };\n\
             @id(\"fresh\")\nforbid (principal, action == Action::\"request\", resource)\n\
             unless { context has login_age && context.login_age < 3600 };\n",
        ),
    ];
    let files = files.map(|(path, text)| PolicyFile { path: path.to_owned(), text: text.to_owned() }).into();
    let apply = ApplyPolicyRequest { files, ..ApplyPolicyRequest::default() };
    office.world.admin.policy.apply_policy(apply).await.expect("applied");
    let now = clock::now().unix_ms() / 1000;
    let (mut alice, _) = office.sign_in(json!({ "amr": ["pwd", "otp"], "auth_time": now })).await;
    refused(alice.request(60).await, ErrorKind::PermissionDenied, "rule `mfa`: forbids it");
    let (mut alice, _) = office.sign_in(json!({ "amr": ["pwd", "mfa"], "auth_time": now - 7200 })).await;
    refused(alice.request(60).await, ErrorKind::PermissionDenied, "rule `fresh`: forbids it");
    let (mut alice, _) = office.sign_in(json!({ "amr": ["pwd", "mfa"], "auth_time": now })).await;
    alice.request(60).await.expect("permitted");
}

/// A role is for people with a managed device, another one for a group that has no role at the control plane; `else_if` lets others in. The
/// names of the rules end with `mark`.
fn by_device_and_by_group(mark: &str, else_if: &str) -> PolicyFiles {
    let people = ["alice", "bob", "carol"].map(|name| format!("user:{name}@example.com"));
    let subjects = people.each_ref().map(|id| format!("[[subject]]\nid = \"{id}\"\n")).concat();
    let role = |name: &str| {
        format!(
            "[[role]]\nname = \"{name}\"\nto = {people:?}\nresources = [\"db\"]\nhosts = [\"*\"]\nautomatic = true\n\
             extension = {{ times = 1, by = \"10m\", approval = false }}\n"
        )
    };
    let conditions = format!(
        "@id(\"managed{mark}\")\nforbid (principal, action, resource == Role::\"by-device\")\n\
         unless {{ {else_if}(context has device && context.device.managed) }};\n\
         @id(\"responders{mark}\")\nforbid (principal, action, resource == Role::\"by-group\")\n\
         unless {{ {else_if}principal in Group::\"responders\" }};\n"
    );
    let files = [
        ("limits.toml", "maximum_duration = \"8h\"\n".to_owned()),
        ("hosts.toml", "[[host]]\nname = \"db-7\"\n".to_owned()),
        (
            "resources.toml",
            "[[resource]]\nname = \"db\"\naddresses = [\"10.0.0.7\"]\nports = [\"tcp/5432\"]\n".to_owned(),
        ),
        ("subjects.toml", subjects + "[[group]]\nname = \"responders\"\nmembers = []\n"),
        ("roles.toml", role("by-device") + &role("by-group")),
        ("conditions/facts.cedar", conditions),
    ];
    PolicyFiles::new(files.map(|(path, text)| (path.to_owned(), text)).into()).expect("within bounds")
}

async fn ask_for(caller: &mut Caller, role: &str) -> Result<GrantId, Status> {
    let new = CreateRequestRequest {
        resource: "db".into(),
        duration: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
        reason: "why not".into(),
        role: role.into(),
        ..CreateRequestRequest::default()
    };
    let request = caller.create(new).await?;
    Ok(request.grant.expect("nobody has to approve it"))
}

/// What the provider says of somebody's device, and all groups that it names: at the request, under another version of the policy, and
/// while grants live.
#[tokio::test]
async fn a_policy_knows_devices_and_groups_without_a_role() {
    let mut office = Office::open_with(|configured| {
        let Expected { device, default_role, .. } = &mut configured.expected;
        *device = DeviceClaims { managed: Some("managed".to_owned()), encrypted: None };
        *default_role = Some(SubjectRole::Member);
    })
    .await;
    office.world.resource("db", "10.0.0.7").await;
    office.world.host("db-7").await;
    let files = by_device_and_by_group("", "context.incident_active || ");
    apply(&mut office.world.admin, 0, files).await.expect("applied");

    // 1. Alice has a managed device, and is in a group that gives her no role.
    let claims = json!({ "groups": ["responders", "Night Shift"], "managed": "true" });
    let (mut alice, identity) = office.sign_in(claims).await;
    assert_eq!(identity.role, SubjectRole::Member);
    let told = office.world.last(EventKind::SubjectSignedIn).await.comment;
    assert_eq!(told, "provider `corp`, account `00u1`, role member, device managed");
    let roles = ["by-device", "by-group"];
    let mut kept = BTreeSet::new();
    for role in roles {
        let grant = ask_for(&mut alice, role).await.expect("permitted");
        alice.extend(grant, 60).await.expect("permitted");
        kept.insert(grant);
    }
    // 2. Bob has another device and another group; of Carol's device no claim says anything that an operator has named.
    let bob = json!({ "email": "bob@example.com", "sub": "00u2", "groups": ["approvers"], "managed": false });
    let carol = json!({ "email": "carol@example.com", "sub": "00u3", "groups": null, "encrypted": true });
    let mut others = [office.sign_in(bob).await.0, office.sign_in(carol).await.0];
    for other in &mut others {
        for (role, rule) in [("by-device", "managed"), ("by-group", "responders")] {
            let words = format!("rule `{rule}`: forbids it");
            refused(ask_for(other, role).await, ErrorKind::PermissionDenied, &words);
        }
    }
    // 3. A claim that cannot be read is not taken for absent.
    let token = office.token(json!({ "managed": "yes" }));
    refused(office.present(token).await, ErrorKind::Unauthenticated, "`managed` is neither true nor false");
    assert_eq!(office.world.last(EventKind::SignInRefused).await.reason, "malformed");
    // 4. In an incident all are let through. A policy that knows none would end what the others have, and nothing else.
    let mut admin = office.world.admin.clone();
    admin.open_incident("inc-42", 900).await.expect("opened");
    let mut lost = BTreeSet::new();
    for other in &mut others {
        for role in roles {
            lost.insert(ask_for(other, role).await.expect("permitted"));
        }
    }
    let planned = plan(&mut admin, by_device_and_by_group("", "")).await.expect("planned");
    let ends: BTreeSet<GrantId> = planned.ends.iter().map(|end| end.grant).collect();
    assert_eq!((&ends, ends.len()), (&lost, 4));
    let files = by_device_and_by_group("-again", "context.incident_active || ");
    let (_, planned) = apply(&mut admin, 1, files).await.expect("applied");
    assert_eq!(planned.ends, []);
    // 5. The incident is over, and Alice has signed out: what was known of each request is so still.
    alice.identity.sign_out(wire::SignOutRequest {}).await.expect("signed out");
    admin.close_incident("inc-42").await.expect("closed");
    office.world.stop().await;
    let store = Store::open(&office.world.database.database).await.expect("opens");
    store.end_what_is_not_permitted(clock::now()).await.expect("asked");
    let filter = RequestFilter { all: true, whose: Whose::Everybodys, limit: 100 };
    for grant in store.grants(&filter).await.expect("reads") {
        let expected = (!kept.contains(&grant.id)).then_some(EndReason::PolicyChanged);
        assert_eq!(grant.state.end_reason(), expected, "{grant:?}");
        assert!(kept.contains(&grant.id) || lost.contains(&grant.id));
    }
    let events = store.events(0, 1000).await.expect("reads");
    let ended = events.iter().filter(|event| event.kind == EventKind::GrantEnding);
    let mut why: Vec<&str> = ended.map(|event| event.comment.as_str()).collect();
    why.sort_unstable();
    let told =
        |rule: &str| format!("the policy (version 2) does not permit it: rule `{rule}-again`: forbids it");
    assert_eq!(why, [told("managed"), told("managed"), told("responders"), told("responders")]);
    store.close().await;
}

/// Who signs in again, in other groups, is judged by those: what a group gave ends when the provider does not name it any more.
#[tokio::test]
async fn who_has_left_a_group_loses_what_it_gave() {
    let mut office = Office::open_with(|configured| {
        configured.expected.default_role = Some(SubjectRole::Member);
        configured.expected.device = DeviceClaims { managed: Some("managed".to_owned()), encrypted: None };
    })
    .await;
    office.world.resource("db", "10.0.0.7").await;
    office.world.host("db-7").await;
    apply(&mut office.world.admin, 0, by_device_and_by_group("", "")).await.expect("applied");
    let (mut alice, _) = office.sign_in(json!({ "groups": ["responders", "staff"], "managed": true })).await;
    let by_group = ask_for(&mut alice, "by-group").await.expect("permitted");
    let by_device = ask_for(&mut alice, "by-device").await.expect("permitted");
    let bob = json!({ "email": "bob@example.com", "sub": "00u2", "groups": ["responders"] });
    let (mut bob, _) = office.sign_in(bob).await;
    let of_bob = ask_for(&mut bob, "by-group").await.expect("permitted");

    let (mut alice, _) = office.sign_in(json!({ "groups": ["staff"] })).await;
    let words = "rule `responders`: forbids it";
    refused(ask_for(&mut alice, "by-group").await, ErrorKind::PermissionDenied, words);
    office.world.stop().await;
    let store = Store::open(&office.world.database.database).await.expect("opens");
    store.end_what_is_not_permitted(clock::now()).await.expect("asked");
    let filter = RequestFilter { all: true, whose: Whose::Everybodys, limit: 100 };
    let grants = store.grants(&filter).await.expect("reads");
    let ends = |id| grants.iter().find(|grant| grant.id == id).and_then(|grant| grant.state.end_reason());
    assert_eq!(ends(by_group), Some(EndReason::PolicyChanged));
    // What was said of a device at the request stays with it, and Bob's groups are his own.
    assert_eq!((ends(by_device), ends(of_bob)), (None, None));
    store.close().await;
}

/// Whoever asks for somebody else does not bring them their own groups.
#[tokio::test]
async fn groups_are_nobody_elses() {
    let mut office = Office::open().await;
    office.world.resource("db", "10.0.0.7").await;
    office.world.host("db-7").await;
    office.world.subject("user:bob", SubjectRole::Member).await;
    let files = [
        ("limits.toml", "maximum_duration = \"8h\"\n"),
        ("hosts.toml", "[[host]]\nname = \"db-7\"\n"),
        (
            "resources.toml",
            "[[resource]]\nname = \"db\"\naddresses = [\"10.0.0.7\"]\nports = [\"tcp/5432\"]\n",
        ),
        ("subjects.toml", "[[subject]]\nid = \"user:bob\"\n[[group]]\nname = \"admins\"\nmembers = []\n"),
        (
            "roles.toml",
            "[[role]]\nname = \"debug\"\nto = [\"group:admins\"]\nresources = [\"db\"]\nhosts = [\"*\"]\nautomatic = true\n",
        ),
    ];
    let files = files.map(|(path, text)| PolicyFile { path: path.to_owned(), text: text.to_owned() }).into();
    let apply = ApplyPolicyRequest { files, ..ApplyPolicyRequest::default() };
    office.world.admin.policy.apply_policy(apply).await.expect("applied");
    let (mut alice, identity) = office.sign_in(json!({ "groups": ["admins"] })).await;
    assert_eq!(identity.role, SubjectRole::Administrator);
    alice.request(60).await.expect("she is in the group");
    let for_bob = CreateRequestRequest {
        resource: "db".into(),
        subject: "user:bob".into(),
        duration: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        reason: "for him".into(),
        ..CreateRequestRequest::default()
    };
    refused(alice.create(for_bob).await, ErrorKind::PermissionDenied, "no role gives `user:bob` access");
}
