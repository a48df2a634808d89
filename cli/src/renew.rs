//! Sessions: beginning one with what a provider gave, and renewing one that is nearly over.
//!
//! Owns: the order in which provider, control plane and file learn of a session. Must not know: how a provider is asked.
//!
//! Invariant: a refresh token is in the file before anything else is done with what came with it; a run that is broken off
//! loses a session at most, never the means to renew it.

use std::path::Path;
use std::time::Duration;

use proto::types::{Provider, ProviderName, SignIn, SubjectIdentity};
use proto::wire::identity as wire;

use crate::connect::{call, newcomer};
use crate::credentials::{self, Credentials, Session, Token};
use crate::error::{Error, Problem};
use crate::oidc::{Issuer, Tokens, has_nonce};
use crate::{Context, Place};

/// So long before its end a session is renewed: a command should not end in the middle of one.
const NEARLY_OVER: Duration = Duration::from_secs(60);

/// The credentials as they are, or with a new session if theirs is nearly over.
pub(crate) async fn if_nearly_over(
    context: &mut Context<'_>,
    credentials: Credentials,
) -> Result<Credentials, Error> {
    if !is_nearly_over(context, &credentials) {
        return Ok(credentials);
    }
    let config_dir = context.config_dir()?;
    let lock = credentials::lock(&config_dir).await?;
    // Another run may have renewed it while this one waited.
    let stored = credentials::load(&config_dir, &mut std::io::sink())?;
    let credentials = stored.filter(|stored| stored.server == credentials.server).unwrap_or(credentials);
    if !is_nearly_over(context, &credentials) {
        return Ok(credentials);
    }
    let renewed = renew(&config_dir, &credentials, (context.surroundings.now)()).await;
    drop(lock);
    match renewed {
        Ok(renewed) => Ok(renewed),
        Err(error) if is_over(context, &credentials) => Err(error),
        // It is good for this command.
        Err(error) => {
            context.tell(&format!("warning: {error}; run `portcullis login` soon"));
            Ok(credentials)
        }
    }
}

fn is_nearly_over(context: &Context<'_>, credentials: &Credentials) -> bool {
    ends_within(context, credentials, NEARLY_OVER)
}

fn is_over(context: &Context<'_>, credentials: &Credentials) -> bool {
    ends_within(context, credentials, Duration::ZERO)
}

/// A static token has no end that is known here.
fn ends_within(context: &Context<'_>, credentials: &Credentials, time: Duration) -> bool {
    let now = (context.surroundings.now)();
    let expires = credentials.session.as_ref().and_then(|session| session.expires().ok());
    expires.is_some_and(|expires| expires.duration_since(now) <= time.try_into().unwrap_or_default())
}

async fn renew(
    config_dir: &Path,
    credentials: &Credentials,
    now: jiff::Timestamp,
) -> Result<Credentials, Error> {
    let server = credentials.server.clone();
    let over =
        |source: Option<Error>| Error::SessionOver { server: server.clone(), source: source.map(Box::new) };
    let Some(session) = &credentials.session else { return Err(over(None)) };
    let Some(refresh_token) = &session.refresh_token else { return Err(over(None)) };
    let issuer = Issuer::discover(session.provider()?, session.provider_ca_file.as_deref()).await?;
    let tokens = match issuer.refresh(refresh_token).await {
        Ok(tokens) => tokens,
        Err(fault) if fault.worth_retrying() => return Err(issuer.failed(fault)),
        Err(fault) => return Err(over(Some(issuer.failed(fault)))),
    };
    let mut kept = credentials.clone();
    if let (Some(session), Some(next)) = (&mut kept.session, &tokens.refresh_token) {
        session.refresh_token = Some(next.clone());
        credentials::store(config_dir, &kept)?;
    }
    let Some(session) = kept.session.clone() else { return Err(over(None)) };
    let (server, authorities) = (kept.server.clone(), kept.authorities.clone());
    let began = begin(Place { server, authorities, stored: Some(kept) }, session, tokens, now).await;
    let (renewed, _) = began.map_err(|error| match error.kind() {
        crate::error::Kind::Unauthenticated => over(Some(error)),
        _ => error,
    })?;
    credentials::store(config_dir, &renewed)?;
    Ok(renewed)
}

impl Session {
    /// One that is still to begin.
    pub(crate) fn new(provider: &Provider, nonce: String, provider_ca_file: Option<&Path>) -> Self {
        Self {
            provider: provider.name.to_string(),
            expires: String::new(),
            issuer: provider.issuer.clone(),
            client_id: provider.client_id.clone(),
            client_secret: provider.client_secret.clone(),
            refresh_token: None,
            nonce: Some(nonce),
            provider_ca_file: provider_ca_file.map(Path::to_owned),
        }
    }

    /// A workload's, which nobody renews: it signs in again with its token.
    pub(crate) fn of_workload(issuer: &ProviderName, expires: jiff::Timestamp) -> Self {
        Self {
            provider: issuer.to_string(),
            expires: expires.to_string(),
            issuer: String::new(),
            client_id: String::new(),
            client_secret: None,
            refresh_token: None,
            nonce: None,
            provider_ca_file: None,
        }
    }

    /// As far as it has to be known for asking it: what was stored when it was signed in with, so that no one else is shown the
    /// refresh token, whatever the control plane says by then.
    pub(crate) fn provider(&self) -> Result<Provider, Error> {
        let wire = wire::Provider {
            name: self.provider.clone(),
            issuer: self.issuer.clone(),
            client_id: self.client_id.clone(),
            client_secret: self.client_secret.clone().unwrap_or_default(),
            scopes: Vec::new(),
            max_auth_age: None,
        };
        wire.try_into().map_err(|error: proto::types::Invalid| Error::Malformed {
            what: "use the stored session".to_owned(),
            source: Problem(error.to_string()),
        })
    }
}

/// When a session that has just begun ends, by the clock of this machine: another one's may be wrong, or ours.
pub(crate) fn ends_here(sign_in: &SignIn, now: jiff::Timestamp) -> jiff::Timestamp {
    let lifetime = sign_in.expires.since(sign_in.began);
    now.checked_add(lifetime).unwrap_or(now)
}

/// Signs in at the control plane with what the provider gave. A session that is replaced ends there.
pub(crate) async fn begin(
    place: Place,
    session: Session,
    tokens: Tokens,
    now: jiff::Timestamp,
) -> Result<(Credentials, SubjectIdentity), Error> {
    let Place { server, authorities, stored } = place;
    let what = format!("sign in at `{server}`");
    let malformed =
        |problem: &str| Error::Malformed { what: what.clone(), source: Problem(problem.to_owned()) };
    let id_token = tokens.id_token.ok_or_else(|| malformed("the identity provider gave no ID token"))?;
    let nonce = session.nonce.clone().filter(|_| has_nonce(&id_token));
    let replaced = stored.as_ref().filter(|stored| stored.session.is_some());
    let message = wire::SignInRequest {
        provider: session.provider.clone(),
        id_token,
        nonce: nonce.unwrap_or_default(),
        replaces: replaced.map(|replaced| replaced.token.expose().to_owned()).unwrap_or_default(),
    };
    let answer = call(&what, newcomer(&server, authorities.as_ref()).await?.sign_in(message)).await?;
    let identity: SubjectIdentity = crate::commands::checked(&what, answer.identity)?;
    let Some(sign_in) = &identity.sign_in else {
        return Err(malformed("the answer breaks the contract: it is of no session"));
    };
    let token =
        Token::new(&answer.token).map_err(|source| Error::Malformed { what: what.clone(), source })?;
    let session = Session {
        expires: ends_here(sign_in, now).to_string(),
        refresh_token: tokens.refresh_token.or(session.refresh_token),
        ..session
    };
    Ok((Credentials { server, token, authorities, session: Some(session) }, identity))
}
