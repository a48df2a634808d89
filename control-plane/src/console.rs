//! The web console: what people see and do with a browser.
//!
//! Owns: its routes, cookies, headers and pages. Must not know: SQL, who may do what (`rules/calls`), what claims mean.
//!
//! Invariants: every request passes [`admission`] before a handler sees it, and every answer, refusals included, gets the headers
//! of [`headers`]; whatever is written into a page is escaped by its template.

mod admission;
mod attempt;
mod connections;
mod cookies;
mod headers;
mod pages;
mod problem;
mod sign_in;
mod view;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::handler::Handler;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{MethodFilter, MethodRouter, on};
use proto::types::ProviderName;

use crate::config::ConsoleConfig;
use crate::rpc::Gate;
pub(crate) use connections::serve;
use problem::Problem;

/// What every handler works with. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Console {
    gate: Gate,
    place: Arc<Place>,
}

/// Where the console is, for browsers.
#[derive(Debug)]
struct Place {
    /// `https://HOST[:PORT]`.
    origin: String,
    /// `HOST[:PORT]`.
    authority: String,
    /// After so long without a request a session ends.
    idle_limit: Duration,
}

impl Console {
    pub(crate) fn new(gate: Gate, config: &ConsoleConfig) -> Self {
        let ConsoleConfig { origin, authority, idle_limit, .. } = config.clone();
        Self { gate, place: Arc::new(Place { origin, authority, idle_limit }) }
    }

    /// Where a provider sends browsers back to: each has a place of its own, so that the answer of one is not taken for another's.
    fn callback(&self, provider: &ProviderName) -> String {
        format!("{}/sign-in/{provider}/callback", self.place.origin)
    }
}

/// The routes, by their rows in the table of calls.
fn routes() -> Vec<(&'static str, MethodRouter<Console>)> {
    vec![
        route("GET /", view::home),
        route("GET /requests/{id}", view::request),
        route("GET /sign-in", sign_in::choose),
        route("GET /sign-in/{provider}", sign_in::begin),
        route("GET /sign-in/{provider}/callback", sign_in::finish),
        route("POST /sign-out", sign_in::end),
        route("GET /signed-out", sign_in::ended),
    ]
}

fn route<H, T>(name: &'static str, handler: H) -> (&'static str, MethodRouter<Console>)
where
    H: Handler<T, Console>,
    T: 'static,
{
    let verb = if name.starts_with("POST ") { MethodFilter::POST } else { MethodFilter::GET };
    (name, on(verb, handler))
}

/// The names of the routes: one that has no row in the table of calls does not start.
pub(crate) fn names() -> Vec<String> {
    routes().into_iter().map(|(name, _)| name.to_owned()).collect()
}

/// All of it.
pub(crate) fn router(console: Console) -> Router {
    let mut router = Router::new();
    for (name, handler) in routes() {
        let pattern = name.split_once(' ').map_or(name, |(_, pattern)| pattern);
        router = router.route(pattern, handler);
    }
    router
        .fallback(|| async { Problem::not_found() })
        .method_not_allowed_fallback(|| async { Problem::wrong_method() })
        .layer(from_fn_with_state(console.clone(), admission::admit))
        .layer(from_fn(headers::add))
        .with_state(console)
}
