//! Whoever is told of events: a real HTTP server, over TLS or not, that does to each message what a test wants.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::LOCATION;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use control_plane::config::{Endpoint, SigningSecrets};
use hmac::{Hmac, KeyInit, Mac};
use rustls::pki_types::PrivateKeyDer;
use serde_json::Value;
use sha2::Sha256;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// What it shares with whoever signs, decoded and as it is written.
pub(crate) const SECRET: &str = "whsec_bm90aWZpY2F0aW9ucyBhcmUgc2lnbmVkIHdpdGggdGhpcw==";
const SECRET_BYTES: &[u8] = b"notifications are signed with this";

/// What it does to one message.
#[derive(Clone, Debug)]
pub(crate) enum Does {
    Answer(u16),
    /// Sends whoever comes somewhere else.
    Redirect,
    /// Never answers.
    Hang,
    /// Says this.
    Say(&'static str),
}

/// One message that came.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Received {
    pub(crate) fn id(&self) -> &str {
        &self.headers["webhook-id"]
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// Whether somebody who knows the secret has signed it.
    pub(crate) fn is_signed(&self) -> bool {
        let mut mac = Hmac::<Sha256>::new_from_slice(SECRET_BYTES).expect("a key");
        mac.update(format!("{}.{}.", self.id(), self.headers["webhook-timestamp"]).as_bytes());
        mac.update(&self.body);
        let expected = format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()));
        self.headers["webhook-signature"].split(' ').any(|signature| signature == expected)
    }
}

/// The server. Dropped, it is gone.
pub(crate) struct Receiver {
    pub(crate) url: String,
    authority: Option<Vec<u8>>,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    received: Mutex<Vec<Received>>,
    /// What it does next, one for each message; then what it does always.
    next: Mutex<VecDeque<Does>>,
    always: Mutex<Option<Does>>,
}

impl Receiver {
    /// Over TLS, with a certificate of its own.
    pub(crate) async fn secure() -> Self {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).expect("a key");
        let provider = rustls::crypto::aws_lc_rs::default_provider().into();
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .expect("a certificate and its key");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("https://localhost:{}/hook", listener.local_addr().expect("bound").port());
        let (shared, routes) = routes();
        let listener = Secured { listener, acceptor: TlsAcceptor::from(Arc::new(tls)) };
        let serving = tokio::spawn(async move { axum::serve(listener, routes).await.expect("serves") });
        Self { url, authority: Some(certified.cert.pem().into_bytes()), shared, serving }
    }

    /// On this machine, without TLS.
    pub(crate) async fn plain() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/hook", listener.local_addr().expect("bound"));
        let (shared, routes) = routes();
        let serving = tokio::spawn(async move { axum::serve(listener, routes).await.expect("serves") });
        Self { url, authority: None, shared, serving }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint { url: self.url.parse().expect("a URL"), authority: self.authority.clone() }
    }

    pub(crate) fn secrets() -> SigningSecrets {
        SigningSecrets::parse(SECRET).expect("a secret")
    }

    /// What it does to the next messages.
    pub(crate) fn next(&self, does: impl IntoIterator<Item = Does>) {
        self.shared.next.lock().expect("no holder panics").extend(does);
    }

    /// What it does to all others.
    pub(crate) fn always(&self, does: Does) {
        *self.shared.always.lock().expect("no holder panics") = Some(does);
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.shared.received.lock().expect("no holder panics").clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn routes() -> (Arc<Shared>, Router) {
    let shared = Arc::new(Shared::default());
    (Arc::clone(&shared), Router::new().fallback(receive).with_state(shared))
}

async fn receive(State(shared): State<Arc<Shared>>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let headers = headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().expect("ASCII").to_owned()))
        .collect();
    let received = Received { path: uri.path().to_owned(), headers, body: body.to_vec() };
    shared.received.lock().expect("no holder panics").push(received);
    let next = shared.next.lock().expect("no holder panics").pop_front();
    let next = next.or_else(|| shared.always.lock().expect("no holder panics").clone());
    match next.unwrap_or(Does::Answer(204)) {
        Does::Answer(status) => StatusCode::from_u16(status).expect("a status").into_response(),
        Does::Redirect => (StatusCode::TEMPORARY_REDIRECT, [(LOCATION, "/elsewhere")]).into_response(),
        Does::Hang => std::future::pending().await,
        Does::Say(text) => text.into_response(),
    }
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
