//! Signing in and out with a browser: by the provider, with a code and PKCE, to a session that a cookie stands for.
//!
//! Owns: the order of it. Must not know: what claims mean, what the provider was asked.

use std::error::Error;

use axum::Extension;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::header::{REFRESH, SET_COOKIE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{AppendHeaders, Html, IntoResponse, Redirect, Response};
use proto::status::ErrorKind;
use proto::types::ProviderName;
use url::form_urlencoded;

use super::admission::{Visitor, failed};
use super::attempt::{self, Attempt};
use super::problem::Problem;
use super::{Console, cookies, pages};
use crate::clock;
use crate::identity::oidc::{Begun, CodeError, Known};
use crate::identity::{Token, TokenHash};
use crate::rules::browser::own_path;
use crate::rules::calls::Method;
use crate::sign_in::{NotSignedIn, Shown};
use crate::store::HeldBy;

/// The longest code that is sent on to a provider. Entra's have 1.5 KiB.
const CODE_MAX_BYTES: usize = 4096;

/// How much is shown of what a provider says.
const SAID_MAX_CHARS: usize = 200;

type Named = Result<Path<String>, PathRejection>;

/// Why an answer of a provider leads to no session.
#[derive(Debug, thiserror::Error)]
enum Unfinished {
    #[error("this sign-in was not begun in this browser, or another one was begun since")]
    OtherBrowser,
    #[error("this sign-in took longer than {}", humantime::format_duration(attempt::LIMIT))]
    TookTooLong,
    #[error("the answer is not from the identity provider that was asked")]
    OtherProvider,
    #[error("the identity provider did not sign you in: it said `{0}`")]
    Said(String),
    #[error("the identity provider sent no code that could be used")]
    NoCode,
    #[error(transparent)]
    Code(CodeError),
    #[error("{}", .0.message())]
    NotSignedIn(NotSignedIn),
}

impl Unfinished {
    /// As one word, for the record; None: it is no refusal.
    fn reason(&self) -> Option<&'static str> {
        match self {
            Self::OtherBrowser => Some("other_browser"),
            Self::TookTooLong => Some("took_too_long"),
            Self::OtherProvider => Some("wrong_issuer"),
            Self::Said(_) => Some("provider_refused"),
            Self::NoCode => Some("malformed"),
            Self::Code(error) => Some(error.reason()),
            Self::NotSignedIn(error) => error.reason(),
        }
    }

    fn problem(&self) -> Problem {
        let (kind, hint) = match self {
            Self::OtherBrowser | Self::TookTooLong => {
                (ErrorKind::InvalidArgument, "sign in again; if you did not begin this, close this page")
            }
            Self::OtherProvider => {
                (ErrorKind::InvalidArgument, "sign in again; tell an administrator if it happens again")
            }
            Self::Said(_) | Self::NoCode => (ErrorKind::Unauthenticated, ""),
            Self::Code(error) => (error.kind(), error.hint()),
            Self::NotSignedIn(error) => (error.kind(), error.hint()),
        };
        let problem = Problem::of(kind, self, hint).of_sign_in();
        match self {
            // Whoever had the browser come here has no say in what it has begun itself.
            Self::OtherBrowser => problem,
            _ => problem.that_ends_it(),
        }
    }
}

/// The providers to choose from. One alone is no choice.
pub(super) async fn choose(State(console): State<Console>, RawQuery(query): RawQuery) -> Response {
    let return_to = single(query.as_deref(), "return_to").unwrap_or_default();
    let return_to = own_path(&return_to);
    let mut ways = console.gate.providers.iter().map(|known| way(&known.provider.name, return_to));
    match (ways.next(), ways.next()) {
        (Some(way), None) => Redirect::to(&way.1).into_response(),
        (first, second) => {
            pages::providers(&first.into_iter().chain(second).chain(ways).collect::<Vec<_>>()).into_response()
        }
    }
}

/// A provider's name, and where a browser begins with it.
pub(super) fn way(provider: &ProviderName, return_to: &str) -> (String, String) {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("return_to", return_to);
    (provider.to_string(), format!("/sign-in/{provider}?{}", query.finish()))
}

/// Sends the browser to the provider.
pub(super) async fn begin(
    State(console): State<Console>,
    named: Named,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let known = console.named(named)?;
    let provider = &known.provider.name;
    let return_to = single(query.as_deref(), "return_to").unwrap_or_default();
    let attempt = Attempt::new(&return_to, clock::now());
    let begun = Begun {
        state: &attempt.state(provider),
        nonce: &attempt.nonce(provider),
        challenge: &attempt.challenge(provider),
        callback: &console.callback(provider),
    };
    match known.codes.address(&begun).await {
        Ok(address) => {
            let cookie = cookies::given(cookies::ATTEMPT, &attempt.cookie(), Some(attempt::LIMIT.as_secs()));
            Ok((AppendHeaders([(SET_COOKIE, cookie)]), Redirect::to(address.as_str())).into_response())
        }
        Err(error) => Err(console.refuse(Method::BeginSignIn, provider, &Unfinished::Code(error)).await),
    }
}

/// Takes the provider's answer: the browser gets a session, whatever it had before is over.
pub(super) async fn finish(
    State(console): State<Console>,
    named: Named,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let known = console.named(named)?;
    let token = Token::for_browser();
    match console.finish(known, query.as_deref(), &headers, token.hash()).await {
        Ok(attempt) => {
            let given = cookies::given(cookies::SESSION, &token.reveal(), None);
            let taken = cookies::taken(cookies::ATTEMPT);
            let cookies = AppendHeaders([(SET_COOKIE, given), (SET_COOKIE, taken)]);
            Ok((cookies, Redirect::to(attempt.return_to())).into_response())
        }
        Err(error) => Err(console.refuse(Method::FinishSignIn, &known.provider.name, &error).await),
    }
}

/// Ends the session. The provider's own goes on until the browser has been there, which the next page leads it to.
pub(super) async fn end(
    State(console): State<Console>,
    Extension(visitor): Extension<Visitor>,
) -> Result<Response, Problem> {
    let session = visitor.session()?;
    let ended = console.gate.store.sign_out(&session.token, &session.of.acting(), clock::now()).await;
    ended.map_err(|error| failed(&error))?;
    let next = format!("/signed-out?from={}", session.of.sign_in.provider);
    Ok((AppendHeaders([(SET_COOKIE, cookies::taken(cookies::SESSION))]), Redirect::to(&next)).into_response())
}

/// Says so, and leads the browser on to the provider, if it has a place to sign out. By a page, not by a redirect: to where forms
/// lead in the end is bounded by the page that they are on (`form-action`).
pub(super) async fn ended(State(console): State<Console>, RawQuery(query): RawQuery) -> Response {
    let from = single(query.as_deref(), "from").and_then(|from| from.parse::<ProviderName>().ok());
    let known = from.and_then(|from| console.gate.providers.get(&from));
    let back = format!("{}/signed-out", console.place.origin);
    let address = match known {
        Some(known) => {
            known.codes.end_session(&back).await.map(|address| (known.provider.name.to_string(), address))
        }
        None => None,
    };
    let page: Html<String> =
        pages::signed_out(address.as_ref().map(|(name, address)| (name.as_str(), address.as_str())));
    let refresh: Option<(HeaderName, HeaderValue)> = address
        .and_then(|(_, address)| Some((REFRESH, HeaderValue::from_str(&format!("1; url={address}")).ok()?)));
    (AppendHeaders(refresh), page).into_response()
}

impl Console {
    fn named(&self, named: Named) -> Result<&Known, Problem> {
        let unknown = || {
            let hint = "begin at the start page, which lists those that there are";
            Problem::new(StatusCode::NOT_FOUND, "there is no such identity provider", hint)
        };
        let name = named.ok().and_then(|Path(name)| name.parse::<ProviderName>().ok());
        name.and_then(|name| self.gate.providers.get(&name)).ok_or_else(unknown)
    }

    async fn finish(
        &self,
        known: &Known,
        query: Option<&str>,
        headers: &HeaderMap,
        token: TokenHash,
    ) -> Result<Attempt, Unfinished> {
        let provider = &known.provider.name;
        let attempt = cookies::value(headers, cookies::ATTEMPT).and_then(Attempt::from_cookie);
        let attempt = attempt.ok_or(Unfinished::OtherBrowser)?;
        if single(query, "state").is_none_or(|state| state != attempt.state(provider)) {
            return Err(Unfinished::OtherBrowser);
        }
        if attempt.is_over(clock::now()) {
            return Err(Unfinished::TookTooLong);
        }
        let answered_by = single(query, "iss");
        if !known.codes.is_answer_of(answered_by.as_deref()).await.map_err(Unfinished::Code)? {
            return Err(Unfinished::OtherProvider);
        }
        if let Some(error) = single(query, "error") {
            let description = single(query, "error_description").map(|text| format!(": {text}"));
            return Err(Unfinished::Said(shown(&(error + &description.unwrap_or_default()))));
        }
        let code = single(query, "code").filter(|code| (1..=CODE_MAX_BYTES).contains(&code.len()));
        let code = code.ok_or(Unfinished::NoCode)?;
        self.gate.provider(provider).map_err(Unfinished::NotSignedIn)?;
        let redeemed = known.codes.redeem(&code, &attempt.verifier(provider), &self.callback(provider)).await;
        let shown = Shown {
            known,
            expected: &known.expected_of_browsers,
            id_token: &redeemed.map_err(Unfinished::Code)?,
            nonce: Some(&attempt.nonce(provider)),
            token,
            held_by: HeldBy::Browser,
            // Of whoever it was: this browser has one session.
            replaces: cookies::value(headers, cookies::SESSION).map(TokenHash::of),
        };
        self.gate.sign_in(shown).await.map_err(Unfinished::NotSignedIn)?;
        Ok(attempt)
    }

    /// Puts the refusal on record, and gives the page for it.
    async fn refuse(&self, method: Method, provider: &ProviderName, error: &Unfinished) -> Problem {
        if let Unfinished::Code(source) = error {
            tracing::warn!(error = source as &dyn Error, %provider, "a sign-in could not be finished");
        }
        if let Some(reason) = error.reason() {
            self.note(reason, method.as_str(), &format!("provider `{provider}`: {error}")).await;
        }
        error.problem()
    }
}

/// The value of a parameter; None: there is none, or more than one.
fn single(query: Option<&str>, name: &str) -> Option<String> {
    let mut found = form_urlencoded::parse(query?.as_bytes()).filter(|(key, _)| key == name);
    let (_, value) = found.next()?;
    found.next().is_none().then(|| value.into_owned())
}

/// A text of the provider's: cut, and without what could steer a terminal.
fn shown(text: &str) -> String {
    text.chars().take(SAID_MAX_CHARS).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_counts_once() {
        assert_eq!(single(Some("a=b&state=c%20d"), "state").as_deref(), Some("c d"));
        assert_eq!(single(Some("state=a&state=a"), "state"), None);
        assert_eq!(single(Some("states=a"), "state"), None);
        assert_eq!(single(None, "state"), None);
    }
}
