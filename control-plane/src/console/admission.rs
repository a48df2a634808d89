//! The way in of every request: is it for us, does it come from where it may, who asks, may they, and not too often.
//!
//! Owns: that order. Must not know: what handlers do.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{CONTENT_LENGTH, HOST, ORIGIN};
use axum::http::{HeaderMap, Method as Verb, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use tokio::time::timeout;
use url::form_urlencoded;

use super::problem::Problem;
use super::{Console, cookies};
use crate::clock;
use crate::identity::TokenHash;
use crate::listen::Peer;
use crate::rules::browser::{Foreign, Source, own_path};
use crate::rules::calls::{Caller, Method, Reach};
use crate::rules::throttle::Key;
use crate::store::{BrowserSession, StoreError};

/// The largest body. Our forms have none to speak of.
const BODY_MAX_BYTES: usize = 16 * 1024;

/// How long a browser has to send it.
const BODY_LIMIT: Duration = Duration::from_secs(10);

/// How long an answer may take: two questions to a provider, and the record.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Somebody who may have what they ask for.
#[derive(Clone, Debug)]
pub(super) struct Visitor {
    /// Whose things they may see there.
    pub(super) reach: Reach,
    /// None: they have not signed in, or their session has ended.
    pub(super) session: Option<Arc<Session>>,
}

/// A session, and by what it is known.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) token: TokenHash,
    pub(super) of: BrowserSession,
}

impl Visitor {
    /// The table of calls lets nobody without a session to the routes that ask for one.
    pub(super) fn session(&self) -> Result<&Session, Problem> {
        let missing =
            || Problem::new(StatusCode::FORBIDDEN, "this page is for people who have signed in", "");
        self.session.as_deref().ok_or_else(missing)
    }
}

pub(super) async fn admit(State(console): State<Console>, request: Request, next: Next) -> Response {
    match console.admitted(request).await {
        Ok(request) => timeout(ANSWER_LIMIT, next.run(request)).await.unwrap_or_else(|_| {
            let hint = "load the page again in a moment";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the answer took too long", hint).into_response()
        }),
        Err(answer) => answer,
    }
}

impl Console {
    async fn admitted(&self, request: Request) -> Result<Request, Response> {
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        let Some(method) = self.row(&request) else {
            self.limit(&Caller::Nobody, &peer, "a page that is not there").await?;
            self.note("unknown_method", "a page that is not there", "").await;
            // What comes next is the page that says so.
            return Ok(request);
        };
        if let Err(foreign) = self.check_source(&request) {
            self.limit(&Caller::Nobody, &peer, method.as_str()).await?;
            self.note("foreign_page", method.as_str(), &foreign.to_string()).await;
            let hint =
                "begin at the start page; if that does not help, look where the link or the form came from";
            return Err(Problem::new(StatusCode::FORBIDDEN, foreign, hint).into_response());
        }
        if !self.is_for_us(&request) {
            let hint = format!("go to {}", self.place.origin);
            let message = "the console is not known by this name";
            return Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, message, hint).into_response());
        }
        let session = match self.session(request.headers()).await {
            Ok(session) => session.map(Arc::new),
            Err(error) => return Err(failed(&error).into_response()),
        };
        let caller = session.as_ref().map_or(Caller::Nobody, |session| Caller::Subject {
            id: session.of.subject.clone(),
            role: session.of.role,
            credential: session.of.sign_in.by.credential(),
        });
        self.limit(&caller, &peer, method.as_str()).await?;
        let reach = method.reach(&caller);
        if reach == Reach::No {
            return Err(self.turn_away(method, &caller, request.uri()).await);
        }
        let mut request = with_body(request).await?;
        request.extensions_mut().insert(Visitor { reach, session });
        Ok(request)
    }

    /// The row of a request in the table of calls. To be asked for the head of a page is to be asked for the page.
    fn row(&self, request: &Request) -> Option<Method> {
        let pattern = request.extensions().get::<MatchedPath>()?;
        let verb = if request.method() == Verb::HEAD { &Verb::GET } else { request.method() };
        Method::by_route(verb.as_str(), pattern.as_str())
    }

    fn check_source(&self, request: &Request) -> Result<(), Foreign> {
        let header = |name| request.headers().get(name).map(|value| value.to_str().unwrap_or("?"));
        let source = Source {
            origin: request.headers().get(ORIGIN).map(|value| value.to_str().unwrap_or("?")),
            site: header("sec-fetch-site"),
            mode: header("sec-fetch-mode"),
            destination: header("sec-fetch-dest"),
        };
        match *request.method() {
            Verb::GET | Verb::HEAD => source.check_read(),
            _ => source.check_change(&self.place.origin),
        }
    }

    /// Whoever reaches us by another name would have cookies and sign-ins for that one.
    fn is_for_us(&self, request: &Request) -> bool {
        let said = match request.uri().authority() {
            Some(authority) => Some(authority.as_str()),
            None => request.headers().get(HOST).and_then(|host| host.to_str().ok()),
        };
        said.is_some_and(|said| said.eq_ignore_ascii_case(&self.place.authority))
    }

    /// Whose session came with a request.
    async fn session(&self, headers: &HeaderMap) -> Result<Option<Session>, StoreError> {
        let Some(secret) = cookies::value(headers, cookies::SESSION) else { return Ok(None) };
        let token = TokenHash::of(secret);
        let session = self.gate.store.browser_session(&token, self.place.idle_limit, clock::now()).await?;
        Ok(session.map(|of| Session { token, of }))
    }

    async fn limit(&self, caller: &Caller, peer: &Peer, what: &'static str) -> Result<(), Response> {
        if self.gate.limits.allow(caller, peer) {
            return Ok(());
        }
        let key = Key { caller: caller.actor(), reason: "too_many_calls", what };
        self.gate.put_on_record(key, "").await;
        Err(Problem::too_often(format!("`{caller}` asks too often")).into_response())
    }

    /// Puts on record that nobody in particular was refused something.
    pub(super) async fn note(&self, reason: &'static str, what: &'static str, detail: &str) {
        self.gate.put_on_record(Key { caller: None, reason, what }, detail).await;
    }

    async fn turn_away(&self, method: Method, caller: &Caller, uri: &Uri) -> Response {
        if *caller == Caller::Nobody {
            self.gate.refused(None, "unauthenticated", method).await;
            let back = uri.path_and_query().map_or("/", |path| own_path(path.as_str()));
            let query =
                form_urlencoded::Serializer::new(String::new()).append_pair("return_to", back).finish();
            // A form that is sent again after a sign-in would be one that nobody has looked at.
            return match method {
                Method::EndSession => Redirect::to("/").into_response(),
                _ => Redirect::to(&format!("/sign-in?{query}")).into_response(),
            };
        }
        self.gate.refused(caller.actor(), "permission_denied", method).await;
        let message = format!("`{caller}` may not see this page");
        Problem::new(StatusCode::FORBIDDEN, message, "ask an administrator").into_response()
    }
}

/// What the store did not do, as a page. What is our fault goes to our log whole.
pub(super) fn failed(error: &StoreError) -> Problem {
    use proto::status::ErrorKind;

    if error.kind() == ErrorKind::Internal {
        tracing::error!(error = error as &dyn std::error::Error, "a page could not be made");
    }
    Problem::of(error.kind(), error, error.hint())
}

/// The request with its body, read to its end.
async fn with_body(request: Request) -> Result<Request, Response> {
    let too_large = || {
        let message = format!("the form is larger than {BODY_MAX_BYTES} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, message, "send less").into_response()
    };
    let told = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if told.is_some_and(|length: u64| length > BODY_MAX_BYTES as u64) {
        return Err(too_large());
    }
    let (parts, body) = request.into_parts();
    match timeout(BODY_LIMIT, to_bytes(body, BODY_MAX_BYTES)).await {
        Ok(Ok(body)) => Ok(Request::from_parts(parts, Body::from(body))),
        Ok(Err(_)) => Err(too_large()),
        Err(_) => {
            let message = "the form did not come in time";
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, message, "send it again").into_response())
        }
    }
}
