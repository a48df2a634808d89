//! `portcullis login`

use proto::wire::access::ListHostsRequest;

use crate::Context;
use crate::connect::{ControlPlane, call};
use crate::credentials;
use crate::error::Error;

/// Check a token and store it with its server, so that later calls need neither
///
/// The token is tried at the control plane first; nothing is stored if it does not know it. Both are kept in
/// `$XDG_CONFIG_HOME/portcullis/credentials.toml` (else ~/.config), which only you can read, and the authority of `--ca-file` with
/// them.
#[derive(clap::Args, Debug)]
#[command(override_usage = "portcullis login --token-file <FILE> [--server <URL>]")]
#[command(after_help = "\
Examples:
  portcullis login --server https://portcullis.example:7400 --token-file alice.token
  portcullis login --server https://10.0.0.7:7400 --ca-file ca.pem --token-file alice.token
  pass portcullis | portcullis login --token-file - --server unix:/run/portcullis/api.sock")]
pub struct Arguments {}

pub(super) async fn run(_: Arguments, context: &mut Context<'_>) -> Result<(), Error> {
    if context.global.token_file.is_none() {
        let problem =
            "`login` needs `--token-file FILE` (or PORTCULLIS_TOKEN_FILE); `-` reads standard input";
        return Err(Error::Usage(problem.to_owned()));
    }
    let config_dir = context.surroundings.config_dir.clone().ok_or(Error::NoConfigDir)?;
    let credentials = context.credentials()?;
    let control_plane = ControlPlane::connect(&credentials).await?;
    let what = format!("sign in at `{}`", credentials.server);
    // The cheapest call that anyone with a token may make.
    call(what, control_plane.directory().list_hosts(ListHostsRequest {})).await?;
    let path = credentials::store(&config_dir, &credentials)?;
    context.tell(&format!("signed in at `{}`; stored in `{}`", credentials.server, path.display()));
    Ok(())
}
