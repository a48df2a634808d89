//! Device authorization (RFC 8628): the browser is on another machine.

use std::time::Duration;

use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::{Fault, Issuer, Tokens, answer, random};

/// How long to wait between two questions, unless the provider says otherwise.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(5);
const INTERVAL_MAX: Duration = Duration::from_secs(60);

/// By how much a provider that says `slow_down` is asked less often.
const SLOWER: Duration = Duration::from_secs(5);

/// Nobody types a code for longer, whatever a provider allows.
const LIFE_MAX: Duration = Duration::from_secs(30 * 60);

/// What a person has to type, and where.
#[derive(Deserialize)]
pub(crate) struct Codes {
    device_code: String,
    /// What to type.
    pub(crate) user_code: String,
    /// Where.
    pub(crate) verification_uri: String,
    /// The same with the code in it, for who can open it.
    pub(crate) verification_uri_complete: Option<String>,
    expires_in: u64,
    interval: Option<u64>,
}

/// A sign-in that waits for somebody on another machine.
pub(crate) struct Waiting<'a> {
    issuer: &'a Issuer,
    /// What to tell them.
    pub(crate) codes: Codes,
    /// What the ID token will say, if the provider puts it there.
    pub(crate) nonce: String,
}

impl<'a> Waiting<'a> {
    /// Gets the codes.
    pub(crate) async fn start(issuer: &'a Issuer) -> Result<Self, Fault> {
        let address = issuer.metadata.device_authorization_endpoint.as_deref();
        let address =
            address.ok_or(Fault::NotOffered("sign-in from another device; leave `--device` out"))?;
        let (scope, nonce) = (issuer.scope(), random());
        let age = issuer.provider.max_auth_age.map(|age| age.as_secs().to_string());
        let mut form = vec![("scope", scope.as_str()), ("nonce", nonce.as_str())];
        form.extend(age.as_ref().map(|age| ("max_age", age.as_str())));
        if issuer.provider.scopes.iter().any(|scope| scope == "offline_access") {
            form.push(("prompt", "consent"));
        }
        let response = issuer.post(address, &form).await?;
        let codes: Codes = answer(address, Ok(response)).await?;
        Ok(Self { issuer, codes, nonce })
    }

    /// Asks until somebody has said yes or no, or the code is too old.
    pub(crate) async fn finish(self) -> Result<Tokens, Fault> {
        let life = Duration::from_secs(self.codes.expires_in).min(LIFE_MAX);
        let deadline = Instant::now() + life;
        let interval = self.codes.interval.map_or(INTERVAL_DEFAULT, Duration::from_secs);
        let mut interval = interval.clamp(Duration::from_secs(1), INTERVAL_MAX);
        let form = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:device_code"),
            ("device_code", self.codes.device_code.as_str()),
        ];
        loop {
            if Instant::now() + interval > deadline {
                return Err(Fault::TimedOut(life));
            }
            sleep(interval).await;
            match self.issuer.tokens(&form).await {
                Err(Fault::Refused { code, .. }) if code == "authorization_pending" => {}
                Err(Fault::Refused { code, .. }) if code == "slow_down" => {
                    interval = (interval + SLOWER).min(INTERVAL_MAX);
                }
                Err(Fault::Refused { code, .. }) if code == "expired_token" => {
                    return Err(Fault::TimedOut(life));
                }
                // It may be back before the code is too old.
                Err(fault) if fault.worth_retrying() => interval = (interval * 2).min(INTERVAL_MAX),
                settled => return settled,
            }
        }
    }
}
