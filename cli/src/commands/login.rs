//! `portcullis login`

use std::path::PathBuf;
use std::process::{Command, Stdio};

use proto::types::{Provider, ProviderName, SubjectIdentity};
use proto::wire::identity::{ListProvidersRequest, WhoAmIRequest};

use crate::args::checked;
use crate::connect::{ControlPlane, call, newcomer};
use crate::credentials::{self, Credentials, Session};
use crate::error::Error;
use crate::oidc::{Issuer, Tokens, browser, device};
use crate::renew;
use crate::workload;
use crate::{Context, Place};

/// Sign in, so that later calls need neither server nor token
///
/// By default with an identity provider of the control plane: the command shows an address, opens it in a browser where there is
/// one, and waits. The session is short; later calls renew it while the provider lets them. With `--token-file`, a static token is
/// checked instead: an administrator issues those to begin with, for services, and to break glass. With `--workload-token-file`, a
/// job signs in with the token that it was given where it runs; that session lasts some minutes and is not renewed.
///
/// Server and token are kept in `$XDG_CONFIG_HOME/portcullis/credentials.toml` (else ~/.config), which only you can read, and the
/// authority of `--ca-file` with them. Nothing is stored unless signing in succeeds.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  portcullis login --server https://portcullis.example:7400
  portcullis login --server https://10.0.0.7:7400 --ca-file ca.pem --provider corp --device
  portcullis login --token-file alice.token
  portcullis login --workload-token-file /var/run/secrets/tokens/portcullis
  pass portcullis | portcullis login --token-file - --server unix:/run/portcullis/api.sock")]
pub struct Arguments {
    /// With which identity provider, if the control plane has several
    #[arg(long, value_name = "NAME", value_parser = checked::<ProviderName>)]
    provider: Option<ProviderName>,
    /// Show a code to type in a browser on another machine, and wait
    #[arg(long)]
    device: bool,
    /// Only show the address; open no browser
    #[arg(long, conflicts_with = "device")]
    no_browser: bool,
    /// PEM file with the authority of the provider's certificate, if the system does not know it
    #[arg(long, value_name = "FILE")]
    provider_ca_file: Option<PathBuf>,
}

impl Arguments {
    /// Whether it says how a person signs in.
    fn is_for_a_person(&self) -> bool {
        let Self { provider, device, no_browser, provider_ca_file } = self;
        provider.is_some() || *device || *no_browser || provider_ca_file.is_some()
    }
}

pub(super) async fn run(arguments: Arguments, context: &mut Context<'_>) -> Result<(), Error> {
    let config_dir = context.config_dir()?;
    let (credentials, identity) = if context.global.token_file.is_some() {
        with_token(&arguments, context).await?
    } else if let Some(source) = context.workload()?.filter(|_| !arguments.is_for_a_person()) {
        workload::sign_in(context, &source).await?
    } else {
        with_provider(arguments, context).await?
    };
    let lock = credentials::lock(&config_dir).await?;
    let path = credentials::store(&config_dir, &credentials)?;
    drop(lock);
    let SubjectIdentity { subject, role, sign_in } = identity;
    let until = match sign_in {
        Some(sign_in) => format!(" until {}", context.view().clock(sign_in.expires)),
        None => String::new(),
    };
    let server = &credentials.server;
    context.tell(&format!(
        "signed in at `{server}` as `{subject}` ({role}){until}; stored in `{}`",
        path.display()
    ));
    Ok(())
}

async fn with_token(
    arguments: &Arguments,
    context: &mut Context<'_>,
) -> Result<(Credentials, SubjectIdentity), Error> {
    if arguments.is_for_a_person() {
        let problem = "`--token-file` (or PORTCULLIS_TOKEN_FILE) signs in without a provider: leave out the one or the other";
        return Err(Error::Usage(problem.to_owned()));
    }
    let credentials = context.credentials()?;
    let what = format!("sign in at `{}`", credentials.server);
    let mut identity = ControlPlane::connect(&credentials).await?.identity();
    let answer = call(&what, identity.who_am_i(WhoAmIRequest {})).await?;
    Ok((credentials, super::checked(&what, answer.identity)?))
}

async fn with_provider(
    arguments: Arguments,
    context: &mut Context<'_>,
) -> Result<(Credentials, SubjectIdentity), Error> {
    let place = context.place()?;
    let provider = choose(&place, arguments.provider.as_ref()).await?;
    let authority = arguments.provider_ca_file.map(std::path::absolute).transpose();
    let authority = authority.map_err(|error| Error::Usage(format!("--provider-ca-file: {error}")))?;
    let issuer = Issuer::discover(provider.clone(), authority.as_deref()).await?;
    let (tokens, nonce) = match arguments.device {
        true => by_device(&issuer, context).await?,
        false => by_browser(&issuer, arguments.no_browser, context).await?,
    };
    let session = Session::new(&provider, nonce, authority.as_deref());
    renew::begin(place, session, tokens, (context.surroundings.now)()).await
}

/// The provider of this name, or the only one.
async fn choose(place: &Place, wanted: Option<&ProviderName>) -> Result<Provider, Error> {
    let Place { server, authorities, .. } = place;
    let what = format!("ask `{server}` for its identity providers");
    let mut newcomer = newcomer(server, authorities.as_ref()).await?;
    let answer = call(&what, newcomer.list_providers(ListProvidersRequest {})).await?;
    let mut providers: Vec<Provider> = super::rows::<_, Provider, Provider>(&what, answer.providers)?;
    let names: Vec<String> = providers.iter().map(|known| format!("`{}`", known.name)).collect();
    let at = match wanted {
        _ if providers.is_empty() => return Err(Error::NoProvider { server: server.clone() }),
        None if providers.len() == 1 => Some(0),
        None => None,
        Some(wanted) => providers.iter().position(|known| known.name == *wanted),
    };
    let name = |wanted: &ProviderName| format!("identity provider `{wanted}` is not known");
    let problem = wanted.map_or_else(|| "there are several identity providers".to_owned(), name);
    at.map(|at| providers.swap_remove(at))
        .ok_or_else(|| Error::Usage(format!("{problem}: choose one by `--provider`: {}", names.join(", "))))
}

async fn by_browser(
    issuer: &Issuer,
    no_browser: bool,
    context: &mut Context<'_>,
) -> Result<(Tokens, String), Error> {
    let waiting = browser::Waiting::start(issuer).await.map_err(|fault| issuer.failed(fault))?;
    let address = waiting.address.as_str();
    let program = context.surroundings.browser.clone().filter(|_| !no_browser);
    context.tell("open this address in a browser on this machine, and sign in there:");
    context.tell(&format!("  {address}"));
    if let Some(program) = program {
        // The address is shown anyway.
        let mut command = Command::new(program);
        let _ = command.arg(address).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    }
    let nonce = waiting.nonce.clone();
    Ok((waiting.finish().await.map_err(|fault| issuer.failed(fault))?, nonce))
}

async fn by_device(issuer: &Issuer, context: &mut Context<'_>) -> Result<(Tokens, String), Error> {
    let waiting = device::Waiting::start(issuer).await.map_err(|fault| issuer.failed(fault))?;
    let codes = &waiting.codes;
    context.tell(&format!(
        "open {} in any browser, and type the code {}",
        codes.verification_uri, codes.user_code
    ));
    if let Some(address) = &codes.verification_uri_complete {
        context.tell(&format!("or open {address}"));
    }
    let nonce = waiting.nonce.clone();
    Ok((waiting.finish().await.map_err(|fault| issuer.failed(fault))?, nonce))
}
