//! A Kubernetes API server that says what a script has it say: lists and watches of pods, over TLS, with a certificate of its own.
//!
//! It speaks the real protocol, as far as an agent asks: pages with `continue`, a watch as chunked lines of JSON that goes on
//! from a version, bookmarks, 410 Gone. What the script says besides, a real one would never: garbage, half a line, silence.

use std::collections::VecDeque;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

/// What one request is answered with.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A whole response: status and body.
    Whole(u16, String),
    /// A watch that says these pieces, and then stays open, or ends.
    Watch {
        /// As they go over the wire; a line may be in several.
        pieces: Vec<String>,
        /// Whether it ends after them, as a real one does after some minutes.
        ends: bool,
    },
    /// Nothing at all: the connection is closed.
    Nothing,
}

/// A list of pods as of a version; `next` is what the following page is asked for with.
pub fn list(version: &str, next: &str, pods: &[Value]) -> Answer {
    let metadata = json!({ "resourceVersion": version, "continue": next });
    Answer::Whole(
        200,
        json!({ "kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": pods }).to_string(),
    )
}

/// A line of a watch.
pub fn line(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({ "type": kind, "object": object }))
}

/// A watch that stays open after these lines.
pub fn watch(pieces: Vec<String>) -> Answer {
    Answer::Watch { pieces, ends: false }
}

/// A pod of [`NODE`], with a label `app`.
pub fn pod(uid: &str, version: &str, account: &str, app: &str) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {
            "name": format!("{app}-1"), "namespace": "prod", "uid": uid, "resourceVersion": version,
            "labels": { "app": app }, "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": { "nodeName": NODE, "serviceAccountName": account, "containers": [{ "name": "main", "image": "x" }] },
        "status": { "phase": "Running", "qosClass": "BestEffort" },
    })
}

/// The node that is asked for.
pub const NODE: &str = "node-1";

/// The token that is expected.
pub const TOKEN: &str = "a-token";

/// The server. Dropped, it ends.
pub struct ApiServer {
    address: SocketAddr,
    dir: PathBuf,
    shared: Arc<Shared>,
    _runtime: Runtime,
}

#[derive(Default)]
struct Shared {
    script: Mutex<VecDeque<Answer>>,
    has_more: Notify,
    asked: Mutex<Vec<String>>,
}

impl ApiServer {
    /// Starts it, with its files (`ca.crt`, `token`) in `dir`. It answers each request with the next of its script, and waits
    /// for more when there is none.
    pub fn start(dir: &Path) -> Result<Self> {
        let authority = CertifiedIssuer::self_signed(authority_params()?, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(["127.0.0.1".to_owned()])?.signed_by(&key, &authority)?;
        fs::write(dir.join("ca.crt"), authority.pem())?;
        fs::write(dir.join("token"), format!("{TOKEN}\n"))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        runtime.spawn(serve(listener, TlsAcceptor::from(Arc::new(tls)), Arc::clone(&shared)));
        Ok(Self { address, dir: dir.to_owned(), shared, _runtime: runtime })
    }

    /// How an agent is told of it.
    pub fn settings(&self) -> Result<agent::kubernetes::Settings> {
        Ok(agent::kubernetes::Settings {
            api_server: format!("https://{}", self.address).parse()?,
            token_file: self.dir.join("token"),
            ca_file: self.dir.join("ca.crt"),
            node: NODE.to_owned(),
        })
    }

    /// More for the script.
    pub fn will(&self, answers: impl IntoIterator<Item = Answer>) {
        self.shared.script.lock().expect("no holder panics").extend(answers);
        self.shared.has_more.notify_waiters();
    }

    /// What was asked so far: the queries, in order.
    pub fn asked(&self) -> Vec<String> {
        self.shared.asked.lock().expect("no holder panics").clone()
    }
}

fn authority_params() -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    Ok(params)
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            // A client that goes away in the middle is what some tests are about.
            if let Ok(mut stream) = acceptor.accept(stream).await {
                let _ = talk(&mut stream, &shared).await;
            }
        });
    }
}

type Stream = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;

async fn talk(stream: &mut Stream, shared: &Shared) -> Result<()> {
    loop {
        let request = head(stream).await?;
        let line = request.lines().next().context("an empty request")?;
        let target = line.split(' ').nth(1).context("no target")?;
        let authorized = request.to_lowercase().contains(&format!("authorization: bearer {TOKEN}\r\n"));
        shared.asked.lock().expect("no holder panics").push(target.to_owned());
        let answer = if authorized { next(shared).await } else { Answer::Whole(401, "{}".to_owned()) };
        match answer {
            Answer::Whole(status, body) => {
                let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n", body.len());
                stream.write_all(head.as_bytes()).await?;
                stream.write_all(body.as_bytes()).await?;
            }
            Answer::Watch { pieces, ends } => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
                for piece in pieces {
                    let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
                    stream.write_all(chunk.as_bytes()).await?;
                    stream.flush().await?;
                }
                if !ends {
                    // Until the client goes.
                    stream.read_u8().await?;
                    bail!("it spoke in the middle of a watch");
                }
                stream.write_all(b"0\r\n\r\n").await?;
            }
            Answer::Nothing => return Ok(()),
        }
        stream.flush().await?;
    }
}

async fn next(shared: &Shared) -> Answer {
    loop {
        let more = shared.has_more.notified();
        tokio::pin!(more);
        more.as_mut().enable();
        if let Some(answer) = shared.script.lock().expect("no holder panics").pop_front() {
            return answer;
        }
        more.await;
    }
}

async fn head(stream: &mut Stream) -> Result<String> {
    const HEAD_MAX: usize = 64 * 1024;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
        if head.len() > HEAD_MAX {
            bail!("a head without an end");
        }
    }
    Ok(String::from_utf8(head)?)
}
