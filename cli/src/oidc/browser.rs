//! Authorization code with PKCE, on a loopback redirect (RFC 8252, RFC 7636).

use std::net::Ipv4Addr;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Router, serve};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use url::Url;

use super::{Fault, Issuer, Tokens, has_nonce, random, refused};

/// How long somebody has in the browser: a second factor may have to be fetched.
const BROWSER_LIMIT: Duration = Duration::from_secs(10 * 60);

/// How long the browser has to take its last page.
const FAREWELL_LIMIT: Duration = Duration::from_secs(2);

const PATH: &str = "/callback";

const FAREWELL: &str =
    "The identity provider has answered. You can close this page: the terminal says how it went.\n";

/// What the browser brings back.
#[derive(Deserialize)]
struct Callback {
    code: Option<String>,
    state: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
    iss: Option<String>,
}

/// A sign-in that waits for the browser.
pub(crate) struct Waiting<'a> {
    issuer: &'a Issuer,
    /// Where somebody has to go.
    pub(crate) address: Url,
    /// What the ID token will say.
    pub(crate) nonce: String,
    redirect: String,
    verifier: String,
    callbacks: mpsc::Receiver<Callback>,
    /// Dropped, the listener ends.
    stop: oneshot::Sender<()>,
    serving: tokio::task::JoinHandle<()>,
}

/// What the listener knows.
#[derive(Clone)]
struct Expecting {
    state: String,
    callbacks: mpsc::Sender<Callback>,
}

impl<'a> Waiting<'a> {
    /// Listens, and says where to go.
    pub(crate) async fn start(issuer: &'a Issuer) -> Result<Self, Fault> {
        let endpoint = issuer.metadata.authorization_endpoint.as_deref();
        let endpoint = endpoint.ok_or(Fault::NotOffered("sign-in by browser; try `--device`"))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(Fault::Listen)?;
        let port = listener.local_addr().map_err(Fault::Listen)?.port();
        let redirect = format!("http://127.0.0.1:{port}{PATH}");
        let (state, nonce, verifier) = (random(), random(), random());
        let address = address(issuer, endpoint, &redirect, &state, &nonce, &verifier)?;
        let (callbacks, received) = mpsc::channel(1);
        let (stop, stopped) = oneshot::channel::<()>();
        let routes = Router::new().route(PATH, get(callback)).with_state(Expecting { state, callbacks });
        let serving = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            // It ends when it is told to; what else could end it, the wait for an answer shows.
            let _ = serve(listener, routes).with_graceful_shutdown(stopped).await;
        });
        Ok(Self { issuer, address, nonce, redirect, verifier, callbacks: received, stop, serving })
    }

    /// Waits for the browser, and turns what it brings into tokens.
    pub(crate) async fn finish(mut self) -> Result<Tokens, Fault> {
        let callback = timeout(BROWSER_LIMIT, self.callbacks.recv()).await;
        let callback = callback.ok().flatten().ok_or(Fault::TimedOut(BROWSER_LIMIT));
        drop(self.stop);
        // A browser that does not take its page is no reason to wait.
        let _ = timeout(FAREWELL_LIMIT, self.serving).await;
        let code = code(self.issuer, callback?)?;
        let form = [
            ("grant_type", "authorization_code"),
            ("code", code.as_str()),
            ("redirect_uri", self.redirect.as_str()),
            ("code_verifier", self.verifier.as_str()),
        ];
        let tokens = self.issuer.tokens(&form).await?;
        // Here the provider has to repeat it (OpenID Connect Core, 3.1.3.6). Whether it is the same, the control plane says.
        match tokens.id_token.as_deref().is_some_and(has_nonce) {
            true => Ok(tokens),
            false => Err(Fault::Malformed {
                address: self.issuer.metadata.token_endpoint.clone(),
                problem: "the ID token is missing, or has no nonce".to_owned(),
            }),
        }
    }
}

fn address(
    issuer: &Issuer,
    endpoint: &str,
    redirect: &str,
    state: &str,
    nonce: &str,
    verifier: &str,
) -> Result<Url, Fault> {
    let malformed = |problem: &str| Fault::Malformed {
        address: issuer.provider.issuer.clone(),
        problem: format!("its `authorization_endpoint` {problem}"),
    };
    let mut address = Url::parse(endpoint).map_err(|_| malformed("is not a URL"))?;
    if address.scheme() != "https" {
        return Err(malformed("is not https"));
    }
    let challenge = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()));
    let scope = issuer.scope();
    let mut query = address.query_pairs_mut();
    query.extend_pairs([
        ("response_type", "code"),
        ("client_id", issuer.provider.client_id.as_str()),
        ("redirect_uri", redirect),
        ("scope", scope.as_str()),
        ("state", state),
        ("nonce", nonce),
        ("code_challenge", challenge.as_str()),
        ("code_challenge_method", "S256"),
    ]);
    // OpenID Connect Core, 11: without a fresh consent there is no refresh token.
    if issuer.provider.scopes.iter().any(|scope| scope == "offline_access") {
        query.append_pair("prompt", "consent");
    }
    // So that the provider asks again in time, and says when it did.
    if let Some(age) = issuer.provider.max_auth_age {
        query.append_pair("max_age", &age.as_secs().to_string());
    }
    drop(query);
    Ok(address)
}

/// Only who knows the state is listened to: any page and any program of this machine can come here.
async fn callback(
    State(expecting): State<Expecting>,
    Query(callback): Query<Callback>,
) -> (StatusCode, &'static str) {
    if callback.state.as_deref() != Some(expecting.state.as_str()) {
        return (StatusCode::BAD_REQUEST, "This is not the answer that is waited for.\n");
    }
    // A second answer finds the place taken, and is dropped.
    let _ = expecting.callbacks.try_send(callback);
    (StatusCode::OK, FAREWELL)
}

fn code(issuer: &Issuer, callback: Callback) -> Result<String, Fault> {
    if let Some(error) = callback.error {
        return Err(refused(&error, callback.error_description.as_deref().unwrap_or_default()));
    }
    let malformed = |problem: &str| Fault::Malformed {
        address: issuer.provider.issuer.clone(),
        problem: problem.to_owned(),
    };
    // RFC 9207: who mixes up providers, or is made to, would give a code to the wrong one.
    let must_tell = issuer.metadata.authorization_response_iss_parameter_supported;
    match callback.iss {
        Some(iss) if iss != issuer.provider.issuer => {
            return Err(malformed("the answer is of another issuer"));
        }
        None if must_tell => return Err(malformed("the answer does not say of which issuer it is")),
        Some(_) | None => {}
    }
    callback.code.ok_or_else(|| malformed("the browser brought no code"))
}
