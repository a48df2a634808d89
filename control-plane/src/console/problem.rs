//! Why somebody does not get the page that they wanted, as a page.

use std::fmt;

use axum::http::header::{HeaderName, RETRY_AFTER, SET_COOKIE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use proto::status::ErrorKind;

use super::{cookies, pages};

/// What could not be done, with what value, and the next step.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    message: String,
    hint: String,
    /// Whether to begin anew is what helps.
    sign_in_again: bool,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, message: impl fmt::Display, hint: impl Into<String>) -> Self {
        let (message, hint) = (message.to_string(), hint.into());
        Self { status, message, hint, sign_in_again: false, headers: Vec::new() }
    }

    /// Of an error that callers of all kinds can meet.
    pub(super) fn of(kind: ErrorKind, message: impl fmt::Display, hint: &str) -> Self {
        // Whoever reads this has no command line.
        let hint = if hint.starts_with("run `portcullis login`") { "" } else { hint };
        Self::new(status(kind), message, hint)
    }

    pub(super) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "there is no such page", "begin at the start page")
    }

    pub(super) fn wrong_method() -> Self {
        let hint = "begin at the start page";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "this page cannot be asked for in this way", hint)
    }

    pub(super) fn too_often(message: impl fmt::Display) -> Self {
        let mut problem =
            Self::new(StatusCode::TOO_MANY_REQUESTS, message, "wait a second, then load the page again");
        problem.headers.push((RETRY_AFTER, HeaderValue::from_static("1")));
        problem
    }

    /// Of a sign-in: it takes a new one.
    pub(super) fn of_sign_in(mut self) -> Self {
        self.sign_in_again = true;
        self
    }

    /// The same, and what the browser remembers of this one is gone.
    pub(super) fn that_ends_it(mut self) -> Self {
        self.headers.push((SET_COOKIE, cookies::taken(cookies::ATTEMPT)));
        self
    }
}

fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::InvalidArgument | ErrorKind::OutOfRange => StatusCode::BAD_REQUEST,
        // A browser that is told 401 would have to be told how to answer it.
        ErrorKind::Unauthenticated | ErrorKind::PermissionDenied => StatusCode::FORBIDDEN,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::AlreadyExists | ErrorKind::FailedPrecondition | ErrorKind::Aborted => StatusCode::CONFLICT,
        ErrorKind::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let page = pages::problem(self.status, &self.message, &self.hint, self.sign_in_again);
        let mut response = (self.status, page).into_response();
        for (name, value) in self.headers {
            response.headers_mut().append(name, value);
        }
        response
    }
}
