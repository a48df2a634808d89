//! `portcullis logout`

use proto::wire::identity::SignOutRequest;

use crate::Context;
use crate::connect::{ControlPlane, call};
use crate::credentials::{self, Credentials, Session};
use crate::error::{Error, Kind};
use crate::oidc::Issuer;

/// End the session of the last `login`, and forget it
///
/// The control plane ends the session and the identity provider the means to renew it, if it can. What is stored here is removed
/// in any case; if one of them cannot be told, the exit code says so, and the session there ends with its time. A static token is
/// only forgotten: an administrator ends it with `portcullis subject token`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  portcullis logout")]
pub struct Arguments {}

pub(super) async fn run(_: Arguments, context: &mut Context<'_>) -> Result<(), Error> {
    let config_dir = context.config_dir()?;
    let lock = credentials::lock(&config_dir).await?;
    // A file that cannot be read is forgotten all the same.
    let stored = credentials::load(&config_dir, context.surroundings.err);
    let was_there = credentials::remove(&config_dir)?;
    drop(lock);
    let Some(credentials) = stored? else {
        context.tell(if was_there { "forgotten" } else { "nobody is signed in" });
        return Ok(());
    };
    let server = &credentials.server;
    let Some(session) = &credentials.session else {
        context.tell(&format!("forgot the token for `{server}`; it stays what it is there"));
        return Ok(());
    };
    // Each is told, whatever the other says.
    let (ended, revoked) = (end_session(&credentials).await, end_renewal(session).await);
    ended.and(revoked)?;
    context.tell(&format!("signed out at `{server}`"));
    Ok(())
}

/// At the control plane. A session that it does not know any more has ended.
async fn end_session(credentials: &Credentials) -> Result<(), Error> {
    let what = format!("sign out at `{}`", credentials.server);
    let mut identity = ControlPlane::connect(credentials).await?.identity();
    match call(what, identity.sign_out(SignOutRequest {})).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == Kind::Unauthenticated => Ok(()),
        Err(error) => Err(error),
    }
}

/// At the identity provider.
async fn end_renewal(session: &Session) -> Result<(), Error> {
    let Some(refresh_token) = &session.refresh_token else { return Ok(()) };
    let issuer = Issuer::discover(session.provider()?, session.provider_ca_file.as_deref()).await?;
    issuer.revoke(refresh_token).await.map_err(|fault| issuer.failed(fault))
}
