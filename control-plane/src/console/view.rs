//! What a visitor sees of the record: themselves, their requests, their grants.
//!
//! Owns: what is read for which page. Must not know: how it looks.

use axum::Extension;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{Html, IntoResponse, Response};
use proto::types::{Request, RequestId};

use super::admission::{Visitor, failed};
use super::problem::Problem;
use super::sign_in::way;
use super::{Console, pages};
use crate::clock;
use crate::rules::calls::Reach;
use crate::store::{RequestFilter, Whose};

/// The newest so many are shown.
const ROWS_MAX: u32 = 100;

/// Whoever has not signed in may do so; whoever has sees who they are, and what they may reach.
pub(super) async fn home(
    State(console): State<Console>,
    Extension(visitor): Extension<Visitor>,
) -> Result<Response, Problem> {
    let Some(session) = visitor.session.as_deref() else {
        let ways: Vec<_> =
            console.gate.providers.iter().map(|known| way(&known.provider.name, "/")).collect();
        return Ok(pages::welcome(&ways).into_response());
    };
    let whose = Whose::Of(session.of.subject.clone());
    let filter = RequestFilter { all: false, whose, limit: ROWS_MAX };
    let grants = console.gate.store.grants(&filter).await.map_err(|error| failed(&error))?;
    let requests =
        console.gate.store.requests(&filter, clock::now()).await.map_err(|error| failed(&error))?;
    let own = |request: &Request| [&request.subject, &request.requester].contains(&&session.of.subject);
    let (own, others): (Vec<_>, Vec<_>) = requests.into_iter().partition(own);
    Ok(pages::home(&session.of, &grants, &own, &others, clock::now()).into_response())
}

/// One request, and the grant that it led to.
pub(super) async fn request(
    State(console): State<Console>,
    Extension(visitor): Extension<Visitor>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Html<String>, Problem> {
    let session = visitor.session()?;
    let id: Option<RequestId> = id.ok().and_then(|Path(id)| id.parse().ok());
    let id = id.ok_or_else(Problem::not_found)?;
    let whose = match visitor.reach {
        Reach::All => Whose::Everybodys,
        Reach::Own | Reach::No => Whose::Of(session.of.subject.clone()),
    };
    let view = console.gate.store.view(id, &whose, clock::now()).await.map_err(|error| failed(&error))?;
    Ok(pages::request(&session.of, &view, clock::now()))
}
