//! Where jobs and pods run: an issuer of tokens, with discovery and keys over https, that also gives a job its token as GitHub
//! Actions does. Its certificate is of an authority of its own.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use axum::{Json, Router};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// What a job shows to be given a token.
pub const PERMIT: &str = "the-jobs-permit";

/// The server. Dropped, it ends.
pub struct Issuer {
    shared: Arc<Shared>,
    /// PEM file of its authority.
    pub ca_file: PathBuf,
    _runtime: Runtime,
}

struct Shared {
    url: String,
    key: EncodingKey,
    public: Value,
    /// What it says of the job that asks, besides what every token has.
    job: Value,
}

impl Issuer {
    /// Starts it, with the PEM of its authority in `dir`; `job` are the claims of its one job.
    pub fn start(dir: &Path, job: Value) -> Result<Self> {
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(["localhost".to_owned()])?.signed_by(&key, &authority)?;
        let ca_file = dir.join("issuer-ca.pem");
        fs::write(&ca_file, authority.pem())?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let url = format!("https://localhost:{}", listener.local_addr()?.port());
        let key = EncodingKey::from_ec_der(&KeyPair::generate()?.serialize_der());
        let mut public = Jwk::from_encoding_key(&key, Algorithm::ES256)?;
        public.common.key_id = Some("k1".to_owned());
        let shared = Arc::new(Shared { url, key, public: serde_json::to_value(public)?, job });
        let routes = Router::new()
            .route("/.well-known/openid-configuration", get(metadata))
            .route("/keys", get(keys))
            .route("/token", get(token))
            .with_state(Arc::clone(&shared));
        let listener = Secured { listener, acceptor: TlsAcceptor::from(Arc::new(tls)) };
        runtime.spawn(async move { axum::serve(listener, routes).await });
        Ok(Self { shared, ca_file, _runtime: runtime })
    }

    /// As it stands in tokens.
    pub fn url(&self) -> &str {
        &self.shared.url
    }

    /// Where a job asks for its token; GitHub's has a query, too.
    pub fn token_address(&self) -> String {
        format!("{}/token?api-version=2.0", self.shared.url)
    }

    /// A token with these claims besides what every token has.
    pub fn sign(&self, audience: &str, claims: &Value) -> Result<String> {
        self.shared.sign(audience, claims)
    }
}

impl Shared {
    fn sign(&self, audience: &str, claims: &Value) -> Result<String> {
        let now = jiff::Timestamp::now().as_second();
        let mut all = json!({
            "iss": self.url, "aud": audience, "iat": now, "nbf": now, "exp": now + 300,
            "jti": uuid::Uuid::now_v7().to_string(),
        });
        let claims = claims.as_object().context("claims are an object")?.clone();
        all.as_object_mut().context("it is an object")?.extend(claims);
        let header = Header { kid: Some("k1".to_owned()), ..Header::new(Algorithm::ES256) };
        Ok(jsonwebtoken::encode(&header, &all, &self.key)?)
    }
}

async fn metadata(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({ "issuer": shared.url, "jwks_uri": format!("{}/keys", shared.url) }))
}

async fn keys(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({ "keys": [shared.public] }))
}

#[derive(Deserialize)]
struct Asked {
    audience: String,
}

/// As GitHub Actions gives it to a job that may have one.
async fn token(
    State(shared): State<Arc<Shared>>,
    Query(Asked { audience }): Query<Asked>,
    headers: HeaderMap,
) -> Result<Json<Value>, StatusCode> {
    let shown = headers.get("authorization").and_then(|shown| shown.to_str().ok());
    if shown != Some(&format!("Bearer {PERMIT}")) {
        return Err(StatusCode::UNAUTHORIZED);
    }
    let token = shared.sign(&audience, &shared.job).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(Json(json!({ "value": token })))
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
            // Whoever does not like the certificate is no reason to stop.
            let Ok((stream, address)) = self.listener.accept().await else { continue };
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
