//! Workloads that sign in with certificates of another trust domain.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use control_plane::config::SpiffeTrustDomain;
use proto::status::ErrorKind;
use proto::types::{Credential, EventKind};
use proto::wire::identity::SignInWithCertificateRequest;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use tonic::Status;

use super::enrolment::session;
use super::world::{Caller, HostIdentity, Trusted, World, hello, refused, within};

const DEPLOY: &str = "spiffe://prod.example/ns/ci/sa/deploy";

struct Signer {
    key: KeyPair,
    params: CertificateParams,
}

impl Signer {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self { key: KeyPair::generate().expect("a key"), params }
    }

    fn bundle(&self) -> String {
        self.params.self_signed(&self.key).expect("signed").pem()
    }

    fn svid(&self, id: &str, lifetime: Duration) -> HostIdentity {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().expect("ASCII"))];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.not_after = (SystemTime::now() + lifetime).into();
        let key = KeyPair::generate().expect("a key");
        let certificate =
            params.signed_by(&key, &Issuer::from_params(&self.params, &self.key)).expect("signed");
        HostIdentity::of(&key, certificate.der().to_vec())
    }
}

struct Prod {
    world: World,
    signer: Signer,
    _folder: tempfile::TempDir,
}

impl Prod {
    async fn open() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let signer = Signer::new();
        let bundle_file = folder.path().join("bundle.pem");
        std::fs::write(&bundle_file, signer.bundle()).expect("written");
        let subject = "workload:ci/deploy".parse().expect("valid");
        let subjects = BTreeMap::from([(DEPLOY.parse().expect("valid"), subject)]);
        let prod = SpiffeTrustDomain {
            name: "prod".parse().expect("valid"),
            trust_domain: "prod.example".try_into().expect("valid"),
            bundle_file,
            session_lifetime: Duration::from_secs(900),
            subjects,
        };
        let world = World::trusting(Trusted { trust_domains: vec![prod], ..Trusted::default() }).await;
        Self { world, signer, _folder: folder }
    }

    async fn sign_in(&self, identity: &HostIdentity) -> Result<Caller, Status> {
        let mut connection = self.world.agent(identity).await;
        let answer = connection.identity.sign_in_with_certificate(SignInWithCertificateRequest {}).await?;
        Ok(self.world.caller(&answer.into_inner().token).await)
    }
}

#[tokio::test]
async fn a_certificate_is_a_session() {
    let mut prod = Prod::open().await;
    let svid = prod.signer.svid(DEPLOY, Duration::from_secs(3600));
    let mut job = prod.sign_in(&svid).await.expect("signed in");
    let who = job.who_am_i().await.expect("somebody");
    assert_eq!((who.subject.as_str(), who.credential()), ("workload:ci/deploy", Credential::Workload));
    assert_eq!(who.sign_in.expect("a session").provider.as_str(), "prod");
    // Again, with another connection: a certificate is not used up.
    prod.sign_in(&svid).await.expect("signed in");
    let event = prod.world.last(EventKind::SubjectSignedIn).await;
    assert_eq!(event.reason, "workload");
    assert!(event.comment.contains(DEPLOY) && event.comment.contains("by certificate"), "{}", event.comment);
}

#[tokio::test]
async fn a_session_ends_with_its_certificate() {
    let prod = Prod::open().await;
    let mut job = prod.sign_in(&prod.signer.svid(DEPLOY, Duration::from_secs(60))).await.expect("signed in");
    let session = job.who_am_i().await.expect("somebody").sign_in.expect("a session");
    let lasts_ms = session.expires.unix_ms() - session.began.unix_ms();
    assert!((0..=60_000).contains(&lasts_ms), "{session:?}");
    // It is presented with the handshake, and one that is over is not taken.
    let over = prod.world.agent(&prod.signer.svid(DEPLOY, Duration::ZERO)).await;
    over.identity
        .clone()
        .sign_in_with_certificate(SignInWithCertificateRequest {})
        .await
        .expect_err("is over");
}

#[tokio::test]
async fn who_is_not_bound_is_refused() {
    let mut prod = Prod::open().await;
    let lifetime = Duration::from_secs(3600);
    for id in [
        "spiffe://prod.example/ns/ci/sa/deploy2",
        "spiffe://prod.example/ns/ci/sa",
        "spiffe://prod.example/NS/ci/sa/deploy",
    ] {
        let other = prod.signer.svid(id, lifetime);
        let words = format!("no subject is bound to `{id}`");
        refused(prod.sign_in(&other).await.map(drop), ErrorKind::PermissionDenied, &words);
    }
    let event = prod.world.last(EventKind::SignInRefused).await;
    assert_eq!(event.reason, "not_bound");
    // Nobody else's connection is one of a workload: neither without a certificate, nor a host's.
    let mut nobody = prod.world.caller("").await;
    let no_certificate = nobody.identity.sign_in_with_certificate(SignInWithCertificateRequest {}).await;
    refused(no_certificate.map(drop), ErrorKind::Unauthenticated, "no certificate of a workload");
    let host = prod.world.host("db-7").await;
    refused(prod.sign_in(&host).await.map(drop), ErrorKind::PermissionDenied, "may not call");
}

#[tokio::test]
async fn other_signers_are_not_let_in() {
    let prod = Prod::open().await;
    let lifetime = Duration::from_secs(3600);
    let other = Signer::new();
    for (signer, id) in [
        (&other, DEPLOY),
        (&prod.signer, "spiffe://other.example/ns/ci/sa/deploy"),
        // Who signs for workloads does not sign for hosts.
        (&prod.signer, "spiffe://portcullis/host/db-7"),
    ] {
        let connection = prod.world.agent(&signer.svid(id, lifetime)).await;
        let answer =
            connection.identity.clone().sign_in_with_certificate(SignInWithCertificateRequest {}).await;
        answer.expect_err(id);
    }
    let mut world = prod.world;
    let event = within(async {
        loop {
            let refused = world.record().await;
            if let Some(event) = refused.into_iter().find(|event| event.kind == EventKind::CallRefused) {
                return event;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(event.comment.contains("certificate"), "{event:?}");
}

#[tokio::test]
async fn a_workload_is_no_agent() {
    let prod = Prod::open().await;
    let svid = prod.signer.svid(DEPLOY, Duration::from_secs(3600));
    refused(
        session(&prod.world, &svid, hello("db-7")).await.map(drop),
        ErrorKind::Unauthenticated,
        "no token came",
    );
}
