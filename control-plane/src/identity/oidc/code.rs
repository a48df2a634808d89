//! Signing in with a provider in a browser: where the browser is sent, what its code is worth, where it signs out.
//!
//! Owns: what is asked of a provider's endpoints, and when. Must not know: cookies, pages, what claims mean.
//!
//! A code is worth an ID token only together with the verifier of the browser that began (PKCE, RFC 7636), whether or not the
//! provider knows a secret of ours.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use proto::status::ErrorKind;
use reqwest::StatusCode;
use serde::Deserialize;
use tokio::time::Instant;
use url::{Url, form_urlencoded};

use super::fetch::{FetchError, Fetcher};
use super::keys::shown;

/// How long what a provider says of its endpoints is believed.
const ENDPOINTS_AGE_MAX: Duration = Duration::from_secs(60 * 60);

/// How often a provider that does not answer is asked for them, and so many times at once.
const QUESTION_PAUSE: Duration = Duration::from_secs(10);
const QUESTIONS_AT_ONCE: NonZeroU32 = NonZeroU32::new(3).expect("is not 0");

/// The client that the console is at a provider.
#[derive(Clone, PartialEq, Eq)]
pub struct Client {
    /// For whom ID tokens are.
    pub id: String,
    /// Only the provider and we know it; None: PKCE alone says who we are.
    pub secret: Option<String>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Why a code is worth nothing, or a browser cannot be sent to the provider.
#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    /// The provider cannot be asked.
    #[error("the identity provider cannot be asked")]
    Unreachable(#[source] FetchError),
    /// It could not be asked just now, and is not asked again so soon.
    #[error("the identity provider could not be asked just now")]
    AskedJustNow,
    /// What it says of itself is of no use.
    #[error("the identity provider names no usable {0}")]
    Endpoint(&'static str),
    /// It does not take the code.
    #[error("the identity provider does not take the code: it said `{0}`")]
    Refused(String),
    /// It gave something else.
    #[error("the identity provider gave no ID token for the code")]
    NoIdToken,
}

impl CodeError {
    /// As one word, for the record.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable(_) | Self::AskedJustNow | Self::Endpoint(_) => "provider_unreachable",
            Self::Refused(_) => "code_refused",
            Self::NoIdToken => "malformed",
        }
    }

    /// What sort of error it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unreachable(_) | Self::AskedJustNow | Self::Endpoint(_) => ErrorKind::Unavailable,
            Self::Refused(_) | Self::NoIdToken => ErrorKind::Unauthenticated,
        }
    }

    /// What to do next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unreachable(_) | Self::AskedJustNow => {
                "try again in a moment; the control plane's log says what went wrong"
            }
            Self::Endpoint(_) => {
                "an operator compares `issuer` in the control plane's configuration with the provider's"
            }
            Self::Refused(_) => {
                "sign in again; if that does not help, an operator compares client, secret and redirect at the provider with the control plane's configuration"
            }
            Self::NoIdToken => "an operator looks at the client's settings at the provider",
        }
    }
}

/// What a browser began, as far as the provider is told of it.
#[derive(Clone, Debug)]
pub struct Begun<'a> {
    /// Comes back with the code.
    pub state: &'a str,
    /// Comes back in the ID token.
    pub nonce: &'a str,
    /// The SHA-256 of the verifier, in base64url.
    pub challenge: &'a str,
    /// Where the provider sends the browser back to.
    pub callback: &'a str,
}

/// What an operator expects of a sign-in by code.
#[derive(Debug)]
pub struct Codes {
    issuer: String,
    client: Client,
    scopes: String,
    max_auth_age: Option<Duration>,
    fetcher: Fetcher,
    questions: DefaultDirectRateLimiter,
    /// What was last heard. Held while the provider is asked, so that it is asked once.
    endpoints: tokio::sync::Mutex<Option<(Instant, Arc<Endpoints>)>>,
}

#[derive(Debug)]
struct Endpoints {
    authorization: Url,
    token: Url,
    end_session: Option<Url>,
    says_who_answers: bool,
    secret_in_form: bool,
}

/// As discovery has it (OpenID Connect Discovery, RFC 8414, RP-Initiated Logout, RFC 9207).
#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    end_session_endpoint: Option<String>,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

#[derive(Deserialize)]
struct Tokens {
    id_token: Option<String>,
}

#[derive(Deserialize)]
struct TokenRefusal {
    error: String,
}

impl Codes {
    pub(super) fn new(
        issuer: String,
        client: Client,
        scopes: &[String],
        max_auth_age: Option<Duration>,
        fetcher: Fetcher,
    ) -> Self {
        // A session of a browser is not renewed behind its back.
        let scopes: Vec<&str> =
            scopes.iter().map(String::as_str).filter(|scope| *scope != "offline_access").collect();
        let quota = Quota::with_period(QUESTION_PAUSE).expect("is not 0").allow_burst(QUESTIONS_AT_ONCE);
        let questions = RateLimiter::direct(quota);
        let scopes = scopes.join(" ");
        Self {
            issuer,
            client,
            scopes,
            max_auth_age,
            fetcher,
            questions,
            endpoints: tokio::sync::Mutex::default(),
        }
    }

    /// Where the browser is sent to sign in.
    pub async fn address(&self, begun: &Begun<'_>) -> Result<Url, CodeError> {
        let mut address = self.endpoints().await?.authorization.clone();
        let mut query = address.query_pairs_mut();
        query
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.client.id)
            .append_pair("redirect_uri", begun.callback)
            .append_pair("scope", &self.scopes)
            .append_pair("state", begun.state)
            .append_pair("nonce", begun.nonce)
            .append_pair("code_challenge", begun.challenge)
            .append_pair("code_challenge_method", "S256");
        if let Some(age) = self.max_auth_age {
            query.append_pair("max_age", &age.as_secs().to_string());
        }
        drop(query);
        Ok(address)
    }

    /// Whether an answer is this provider's, by the `iss` that came with it (RFC 9207).
    pub async fn is_answer_of(&self, issuer: Option<&str>) -> Result<bool, CodeError> {
        match issuer {
            Some(issuer) => Ok(issuer == self.issuer),
            None => Ok(!self.endpoints().await?.says_who_answers),
        }
    }

    /// The ID token that a code is worth.
    pub async fn redeem(&self, code: &str, verifier: &str, callback: &str) -> Result<String, CodeError> {
        let endpoints = self.endpoints().await?;
        let mut form = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", callback),
            ("code_verifier", verifier),
        ];
        let Client { id, secret } = &self.client;
        let basic = match secret {
            None => {
                form.push(("client_id", id));
                None
            }
            Some(secret) if endpoints.secret_in_form => {
                form.extend([("client_id", id.as_str()), ("client_secret", secret)]);
                None
            }
            Some(secret) => Some((encoded(id), encoded(secret))),
        };
        let (status, body) = self
            .fetcher
            .post(endpoints.token.as_str(), &form, basic)
            .await
            .map_err(CodeError::Unreachable)?;
        if status == StatusCode::OK {
            let tokens: Tokens = serde_json::from_slice(&body).map_err(|_| CodeError::NoIdToken)?;
            return tokens.id_token.ok_or(CodeError::NoIdToken);
        }
        match serde_json::from_slice::<TokenRefusal>(&body) {
            Ok(refusal) => Err(CodeError::Refused(shown(&refusal.error))),
            Err(_) => Err(CodeError::Refused(status.to_string())),
        }
    }

    /// Where the browser signs out at the provider too, and is sent back from; None: it cannot, or the provider is away.
    pub async fn end_session(&self, back: &str) -> Option<Url> {
        let mut address = self.endpoints().await.ok()?.end_session.clone()?;
        address
            .query_pairs_mut()
            .append_pair("client_id", &self.client.id)
            .append_pair("post_logout_redirect_uri", back);
        Some(address)
    }

    async fn endpoints(&self) -> Result<Arc<Endpoints>, CodeError> {
        let mut known = self.endpoints.lock().await;
        if let Some((got, endpoints)) = &*known
            && got.elapsed() < ENDPOINTS_AGE_MAX
        {
            return Ok(Arc::clone(endpoints));
        }
        if self.questions.check().is_err() {
            return Err(CodeError::AskedJustNow);
        }
        let now = Instant::now();
        let endpoints = match self.ask().await {
            Ok(endpoints) => Arc::new(endpoints),
            Err(error) => {
                let source = &error as &dyn std::error::Error;
                tracing::warn!(error = source, issuer = self.issuer, "cannot get a provider's endpoints");
                return Err(error);
            }
        };
        *known = Some((now, Arc::clone(&endpoints)));
        Ok(endpoints)
    }

    async fn ask(&self) -> Result<Endpoints, CodeError> {
        let address = format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'));
        let metadata: Metadata = self.fetcher.get(&address).await.map_err(CodeError::Unreachable)?;
        if metadata.issuer != self.issuer {
            let found = shown(&metadata.issuer);
            return Err(CodeError::Unreachable(FetchError::OtherIssuer {
                found,
                expected: self.issuer.clone(),
            }));
        }
        let methods = metadata.token_endpoint_auth_methods_supported.unwrap_or_default();
        let has = |method: &str| methods.iter().any(|known| known == method);
        Ok(Endpoints {
            authorization: https(&metadata.authorization_endpoint)
                .ok_or(CodeError::Endpoint("authorization_endpoint"))?,
            token: https(&metadata.token_endpoint).ok_or(CodeError::Endpoint("token_endpoint"))?,
            end_session: metadata.end_session_endpoint.as_deref().and_then(https),
            says_who_answers: metadata.authorization_response_iss_parameter_supported,
            secret_in_form: has("client_secret_post") && !has("client_secret_basic"),
        })
    }
}

fn https(address: &str) -> Option<Url> {
    Url::parse(address).ok().filter(|url| url.scheme() == "https" && url.has_host())
}

/// As both halves of the header are written (RFC 6749, 2.3.1).
fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_is_an_endpoint() {
        assert!(https("https://login.example.com/auth?a=b").is_some());
        for bad in ["http://login.example.com/auth", "javascript:alert(1)", "/auth", "", "https://"] {
            assert!(https(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        let client = Client { id: "console".to_owned(), secret: Some("hush".to_owned()) };
        assert!(!format!("{client:?}").contains("hush"));
        assert_eq!(encoded("a b:ü"), "a+b%3A%C3%BC");
    }
}
