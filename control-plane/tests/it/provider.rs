//! An identity provider that signs whatever a test wants: its discovery and its keys are a real server over real TLS.
//!
//! How a conforming provider behaves is shown by the stories, which sign in with one.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Form, Json, Router};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use control_plane::config::IdentityProvider;
use control_plane::identity::oidc::Client;
use control_plane::rules::claims::{DeviceClaims, Expected};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use proto::types::{Provider, SubjectRole};
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// A running provider. Dropped, it is gone.
pub(crate) struct TestProvider {
    pub(crate) issuer: String,
    /// PEM, for `ca_file`.
    pub(crate) authority: Vec<u8>,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

struct Shared {
    issuer: String,
    keys: Mutex<Vec<Value>>,
    asked: AtomicUsize,
    /// What codes are worth: the challenge that they were made for, and the ID token. Each counts once.
    codes: Mutex<BTreeMap<String, (String, String)>>,
}

/// A key pair of the provider, or of somebody else.
pub(crate) struct Key {
    id: String,
    pair: rcgen::KeyPair,
}

impl Key {
    pub(crate) fn new(id: &str) -> Self {
        Self { id: id.to_owned(), pair: rcgen::KeyPair::generate().expect("a key") }
    }

    fn signing(&self) -> EncodingKey {
        EncodingKey::from_ec_der(&self.pair.serialize_der())
    }

    pub(crate) fn public(&self) -> Value {
        let mut key = Jwk::from_encoding_key(&self.signing(), Algorithm::ES256).expect("a public key");
        key.common.key_id = Some(self.id.clone());
        serde_json::to_value(key).expect("JSON")
    }

    /// What an attacker has of it.
    pub(crate) fn public_pem(&self) -> String {
        self.pair.public_key_pem()
    }

    /// A token with this key's signature.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_as("JWT", claims)
    }

    /// The same, of another kind of token.
    pub(crate) fn sign_as(&self, kind: &str, claims: &Value) -> String {
        let typ = Some(kind.to_owned());
        let header = Header { kid: Some(self.id.clone()), typ, ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, claims, &self.signing()).expect("signed")
    }
}

impl TestProvider {
    pub(crate) async fn start(keys: &[&Key]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let issuer = format!("https://localhost:{}", listener.local_addr().expect("bound").port());
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let authority = certified.cert.pem().into_bytes();
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).expect("a key");
        let tls =
            rustls::ServerConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_no_client_auth()
                .with_single_cert(vec![certified.cert.der().clone()], key)
                .expect("a certificate and its key");
        let shared = Arc::new(Shared {
            issuer: issuer.clone(),
            keys: Mutex::default(),
            asked: AtomicUsize::new(0),
            codes: Mutex::default(),
        });
        let routes = Router::new()
            .route("/.well-known/openid-configuration", get(metadata))
            .route("/keys", get(published))
            .route("/token", post(redeemed))
            .with_state(Arc::clone(&shared));
        let listener = Secured { listener, acceptor: TlsAcceptor::from(Arc::new(tls)) };
        let serving = tokio::spawn(async move { axum::serve(listener, routes).await.expect("serves") });
        let provider = Self { issuer, authority, shared, serving };
        provider.publish(keys);
        provider
    }

    /// These are its keys from now on.
    pub(crate) fn publish(&self, keys: &[&Key]) {
        *self.shared.keys.lock().expect("no holder panics") = keys.iter().map(|key| key.public()).collect();
    }

    /// Makes a code for who began with this challenge, which is worth this ID token.
    pub(crate) fn code(&self, challenge: &str, id_token: String) -> String {
        let code = uuid::Uuid::now_v7().to_string();
        let worth = (challenge.to_owned(), id_token);
        self.shared.codes.lock().expect("no holder panics").insert(code.clone(), worth);
        code
    }

    /// How often its keys were asked for.
    pub(crate) fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }

    /// As an operator sets it up.
    pub(crate) fn configured(&self) -> IdentityProvider {
        let roles = [("approvers", SubjectRole::Approver), ("admins", SubjectRole::Administrator)];
        IdentityProvider {
            provider: Provider {
                name: "corp".parse().expect("valid"),
                issuer: self.issuer.clone(),
                client_id: "portcullis".to_owned(),
                client_secret: None,
                scopes: vec!["openid".to_owned()],
                max_auth_age: None,
            },
            expected: Expected {
                issuer: self.issuer.clone(),
                client_id: "portcullis".to_owned(),
                subject_claim: "email".to_owned(),
                groups_claim: "groups".to_owned(),
                groups_prefix: String::new(),
                device: DeviceClaims::default(),
                roles: roles
                    .map(|(group, role)| (group.to_owned(), role))
                    .into_iter()
                    .collect::<BTreeMap<_, _>>(),
                default_role: None,
                max_auth_age: None,
            },
            session_lifetime: Duration::from_secs(600),
            algorithms: vec![Algorithm::RS256, Algorithm::ES256],
            authority: Some(self.authority.clone()),
            console: Client { id: "console".to_owned(), secret: Some("hush & hush".to_owned()) },
        }
    }
}

impl Drop for TestProvider {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn metadata(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let at = |path: &str| format!("{}/{path}", shared.issuer);
    Json(json!({
        "issuer": shared.issuer, "jwks_uri": at("keys"), "authorization_endpoint": at("auth"),
        "token_endpoint": at("token"), "end_session_endpoint": at("end"),
        "authorization_response_iss_parameter_supported": true,
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
    }))
}

/// What a code is worth to a client that knows its secret and the verifier.
async fn redeemed(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    Form(form): Form<BTreeMap<String, String>>,
) -> (StatusCode, Json<Value>) {
    let refused = |error: &str| (StatusCode::BAD_REQUEST, Json(json!({ "error": error })));
    let basic = format!("Basic {}", BASE64_STANDARD.encode("console:hush+%26+hush"));
    if headers.get(AUTHORIZATION).is_none_or(|shown| shown.as_bytes() != basic.as_bytes()) {
        return refused("invalid_client");
    }
    let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
    let worth = shared.codes.lock().expect("no holder panics").remove(field("code"));
    let challenge = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(field("code_verifier")));
    let is_ours = field("grant_type") == "authorization_code"
        && field("redirect_uri") == "https://console.test/sign-in/corp/callback";
    match worth {
        Some((expected, id_token)) if is_ours && expected == challenge => (
            StatusCode::OK,
            Json(json!({ "id_token": id_token, "access_token": "a", "token_type": "Bearer" })),
        ),
        _ => refused("invalid_grant"),
    }
}

async fn published(State(shared): State<Arc<Shared>>) -> Json<Value> {
    shared.asked.fetch_add(1, Ordering::SeqCst);
    Json(json!({ "keys": *shared.keys.lock().expect("no holder panics") }))
}

/// A port behind TLS.
struct Secured {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for Secured {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.listener.accept().await.expect("accepts");
            // Whoever does not like the certificate is no reason to stop.
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
