//! Signing in with an identity provider, as its client: discovery, codes, tokens.
//!
//! Owns: what is said to the provider. Must not know: the control plane, files.
//!
//! Invariants: over https only; no redirect is followed; every answer is bounded in size and time; no error shows a secret.

pub(crate) mod browser;
pub(crate) mod device;

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use proto::types::{ID_TOKEN_MAX_BYTES, Provider};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Problem};

/// For one answer of the provider. It may have to ask elsewhere.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// The largest answer. Discovery documents have a few KiB, tokens with many groups a few more.
const ANSWER_MAX_BYTES: usize = 256 * 1024;

/// The longest refresh token that is kept. Those of Entra have 2 KiB.
const REFRESH_TOKEN_MAX_BYTES: usize = 16 * 1024;

/// Why the provider gave no token.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say it")]
pub enum Fault {
    #[error("cannot prepare to ask it")]
    Prepare(#[source] reqwest::Error),
    #[error("cannot wait for the browser on this machine")]
    Listen(#[source] io::Error),
    #[error("`{address}` does not answer")]
    Unreachable { address: String, source: reqwest::Error },
    #[error("`{address}` answered {status}")]
    Status { address: String, status: StatusCode },
    #[error("the identity provider said `{code}`{}", described(description))]
    Refused { code: String, description: String },
    #[error("`{address}` gave an answer that is not understood: {problem}")]
    Malformed { address: String, problem: String },
    #[error("it offers no {0}")]
    NotOffered(&'static str),
    #[error("nobody finished it within {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
}

fn described(description: &str) -> String {
    if description.is_empty() { String::new() } else { format!(": {description}") }
}

impl Fault {
    /// Whether the same may succeed in a moment.
    pub(crate) fn worth_retrying(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status { status, .. } => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            Self::Prepare(_)
            | Self::Listen(_)
            | Self::Refused { .. }
            | Self::Malformed { .. }
            | Self::NotOffered(_)
            | Self::TimedOut(_) => false,
        }
    }
}

/// The part of a discovery document that counts here.
#[derive(Debug, Deserialize)]
struct Metadata {
    issuer: String,
    authorization_endpoint: Option<String>,
    token_endpoint: String,
    device_authorization_endpoint: Option<String>,
    revocation_endpoint: Option<String>,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

/// What signing in ends with.
#[derive(Deserialize)]
pub(crate) struct Tokens {
    pub(crate) id_token: Option<String>,
    pub(crate) refresh_token: Option<String>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens(…)")
    }
}

/// What an OAuth endpoint says when it refuses (RFC 6749, 5.2).
#[derive(Deserialize)]
struct Refusal {
    error: String,
    #[serde(default)]
    error_description: String,
}

/// A provider that has told what it can do.
#[derive(Debug)]
pub(crate) struct Issuer {
    provider: Provider,
    metadata: Metadata,
    http: Client,
}

/// What is random about one sign-in: nobody else can finish it, and its token is of no use for another one.
pub(crate) fn random() -> String {
    BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())
}

impl Issuer {
    /// Asks the issuer what it can do. `authority`: a PEM file with certificates that are taken beside the system's.
    pub(crate) async fn discover(provider: Provider, authority: Option<&Path>) -> Result<Self, Error> {
        let what = format!("sign in with `{}`", provider.name);
        let failed = |source| Error::Provider { what: what.clone(), source };
        let mut builder = Client::builder().https_only(true).redirect(Policy::none()).timeout(ANSWER_LIMIT);
        if let Some(path) = authority {
            builder = builder.tls_certs_merge(certificates(path)?);
        }
        let http = builder.build().map_err(|source| failed(Fault::Prepare(source)))?;
        let address = format!("{}/.well-known/openid-configuration", provider.issuer.trim_end_matches('/'));
        let metadata: Metadata = answer(&address, http.get(&address).send().await).await.map_err(failed)?;
        if metadata.issuer != provider.issuer {
            let problem = format!("it calls itself `{}`, not `{}`", metadata.issuer, provider.issuer);
            return Err(failed(Fault::Malformed { address, problem }));
        }
        Ok(Self { provider, metadata, http })
    }

    /// Completes "cannot …".
    pub(crate) fn failed(&self, source: Fault) -> Error {
        Error::Provider { what: format!("sign in with `{}`", self.provider.name), source }
    }

    /// New tokens for a refresh token.
    pub(crate) async fn refresh(&self, refresh_token: &str) -> Result<Tokens, Fault> {
        self.tokens(&[("grant_type", "refresh_token"), ("refresh_token", refresh_token)]).await
    }

    /// Ends a refresh token. A provider that offers no way to do so is left alone.
    pub(crate) async fn revoke(&self, refresh_token: &str) -> Result<(), Fault> {
        let Some(address) = &self.metadata.revocation_endpoint else { return Ok(()) };
        let form = [("token", refresh_token), ("token_type_hint", "refresh_token")];
        let response = self.post(address, &form).await?;
        match response.status().is_success() {
            true => Ok(()),
            false => Err(refusal(address, response).await),
        }
    }

    /// Asks the token endpoint.
    async fn tokens(&self, form: &[(&str, &str)]) -> Result<Tokens, Fault> {
        let address = &self.metadata.token_endpoint;
        let response = self.post(address, form).await?;
        let tokens: Tokens = answer(address, Ok(response)).await?;
        let is_fit = |token: &Option<String>, max: usize| {
            token.as_ref().is_none_or(|token| {
                !token.is_empty() && token.len() <= max && token.bytes().all(|byte| byte.is_ascii_graphic())
            })
        };
        match is_fit(&tokens.id_token, ID_TOKEN_MAX_BYTES)
            && is_fit(&tokens.refresh_token, REFRESH_TOKEN_MAX_BYTES)
        {
            true => Ok(tokens),
            false => Err(Fault::Malformed {
                address: address.clone(),
                problem: "a token is too long or not visible ASCII".to_owned(),
            }),
        }
    }

    /// As the client that we are: with its secret, if it has one, in the way that the provider takes.
    async fn post(&self, address: &str, form: &[(&str, &str)]) -> Result<Response, Fault> {
        let Provider { client_id, client_secret, .. } = &self.provider;
        let mut form = form.to_vec();
        let mut request = self.http.post(address).header("accept", "application/json");
        let supported = self.metadata.token_endpoint_auth_methods_supported.as_deref().unwrap_or_default();
        match client_secret {
            None => form.push(("client_id", client_id)),
            Some(secret) if supported.iter().any(|method| method == "client_secret_post") => {
                form.extend([("client_id", client_id.as_str()), ("client_secret", secret.as_str())]);
            }
            Some(secret) => {
                // RFC 6749, 2.3.1: both are form-encoded before they are put together.
                let encoded =
                    |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
                request = request.basic_auth(encoded(client_id), Some(encoded(secret)));
            }
        }
        let sent = request.form(&form).send().await;
        sent.map_err(|source| Fault::Unreachable {
            address: address.to_owned(),
            source: source.without_url(),
        })
    }

    fn scope(&self) -> String {
        self.provider.scopes.join(" ")
    }
}

/// One answer for somebody who shows a permit.
pub(crate) async fn ask_with<T: DeserializeOwned>(url: &url::Url, permit: &str) -> Result<T, Fault> {
    let address = url.origin().ascii_serialization();
    let http = Client::builder().https_only(true).redirect(Policy::none()).timeout(ANSWER_LIMIT);
    let http = http.build().map_err(Fault::Prepare)?;
    answer(&address, http.get(url.clone()).bearer_auth(permit).send().await).await
}

fn certificates(path: &Path) -> Result<Vec<Certificate>, Error> {
    let what = "certificates";
    let pem =
        std::fs::read(path).map_err(|source| Error::ReadFile { what, path: path.to_owned(), source })?;
    match Certificate::from_pem_bundle(&pem) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) | Err(_) => {
            let source = Problem("it holds no certificates in PEM form".to_owned());
            Err(Error::BadFile { what, path: path.to_owned(), source })
        }
    }
}

/// A successful answer of the kind that is expected.
async fn answer<T: DeserializeOwned>(
    address: &str,
    sent: Result<Response, reqwest::Error>,
) -> Result<T, Fault> {
    let unreachable = |source: reqwest::Error| Fault::Unreachable {
        address: address.to_owned(),
        source: source.without_url(),
    };
    let response = sent.map_err(unreachable)?;
    if !response.status().is_success() {
        return Err(refusal(address, response).await);
    }
    let body = body(address, response).await?;
    // serde's text could quote a token.
    serde_json::from_slice(&body).map_err(|error| Fault::Malformed {
        address: address.to_owned(),
        problem: format!("not the JSON that is expected (line {}, column {})", error.line(), error.column()),
    })
}

/// What an endpoint says when it does not do what it was asked.
async fn refusal(address: &str, response: Response) -> Fault {
    let status = response.status();
    let otherwise = Fault::Status { address: address.to_owned(), status };
    // A server error may have any body.
    if !status.is_client_error() {
        return otherwise;
    }
    let Ok(body) = body(address, response).await else { return otherwise };
    match serde_json::from_slice::<Refusal>(&body) {
        Ok(refusal) => refused(&refusal.error, &refusal.error_description),
        Err(_) => otherwise,
    }
}

/// A refusal in the provider's words, cut where they grow unreadable.
fn refused(code: &str, description: &str) -> Fault {
    let cut = |text: &str| text.chars().take(300).collect();
    Fault::Refused { code: cut(code), description: cut(description) }
}

async fn body(address: &str, mut response: Response) -> Result<Vec<u8>, Fault> {
    let unreachable = |source: reqwest::Error| Fault::Unreachable {
        address: address.to_owned(),
        source: source.without_url(),
    };
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > ANSWER_MAX_BYTES {
            let problem = format!("it is larger than {ANSWER_MAX_BYTES} bytes");
            return Err(Fault::Malformed { address: address.to_owned(), problem });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Whether an ID token has a nonce at all: those of a renewal or a device may have none, and then none is presented. Whether it
/// is the right one, and whether anything of the token is true, is for the control plane to say.
pub(crate) fn has_nonce(id_token: &str) -> bool {
    let payload = id_token.split('.').nth(1).unwrap_or_default();
    let claims = BASE64_URL_SAFE_NO_PAD.decode(payload).unwrap_or_default();
    serde_json::from_slice::<Value>(&claims).is_ok_and(|claims| claims.get("nonce").is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_texts_are_long_and_different() {
        assert_eq!(random().len(), 43);
        assert_ne!(random(), random());
    }

    #[test]
    fn nonces_are_seen() {
        let token = |claims: &str| format!("e30.{}.sig", BASE64_URL_SAFE_NO_PAD.encode(claims));
        assert!(has_nonce(&token(r#"{"nonce":"n"}"#)));
        for without in [token("{}"), token("null"), token("!"), "a".to_owned(), String::new()] {
            assert!(!has_nonce(&without), "{without}");
        }
    }
}
