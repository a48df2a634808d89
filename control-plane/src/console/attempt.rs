//! A sign-in that a browser has begun and that the provider has not answered yet.
//!
//! Owns: what the browser remembers of it, and what is made from that. Must not know: providers' answers.
//!
//! Nothing is kept here: the browser has one random secret in a cookie, and `state`, `nonce` and the PKCE verifier are made from it,
//! for one provider, in a way that tells nothing of it. So only the browser that began can finish, strangers fill no memory
//! of ours, and a restart disturbs nobody.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use proto::types::{ProviderName, Timestamp};
use sha2::{Digest as _, Sha256};

use crate::rules::browser::own_path;

/// How long somebody has at the provider.
pub(super) const LIMIT: Duration = Duration::from_secs(10 * 60);

const SECRET_BYTES: usize = 32;

/// What one browser has begun.
#[derive(PartialEq, Eq)]
pub(super) struct Attempt {
    secret: [u8; SECRET_BYTES],
    began: Timestamp,
    /// Where it is led afterwards: a path of ours.
    return_to: String,
}

impl Attempt {
    pub(super) fn new(return_to: &str, now: Timestamp) -> Self {
        Self { secret: rand::random(), began: now, return_to: own_path(return_to).to_owned() }
    }

    /// As the browser keeps it.
    pub(super) fn cookie(&self) -> String {
        let secret = BASE64_URL_SAFE_NO_PAD.encode(self.secret);
        let return_to = BASE64_URL_SAFE_NO_PAD.encode(&self.return_to);
        format!("{secret}.{}.{return_to}", self.began.unix_ms())
    }

    /// The other way round; None: it is none of ours.
    pub(super) fn from_cookie(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '.');
        let (secret, began, return_to) = (parts.next()?, parts.next()?, parts.next()?);
        let secret = BASE64_URL_SAFE_NO_PAD.decode(secret).ok()?.try_into().ok()?;
        let began = Timestamp::from_unix_ms(began.parse().ok()?).ok()?;
        let return_to = String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(return_to).ok()?).ok()?;
        Some(Self { secret, began, return_to: own_path(&return_to).to_owned() })
    }

    /// Whether there is no time left for it.
    pub(super) fn is_over(&self, now: Timestamp) -> bool {
        now < self.began || now.since(self.began) >= LIMIT
    }

    pub(super) fn return_to(&self) -> &str {
        &self.return_to
    }

    pub(super) fn state(&self, provider: &ProviderName) -> String {
        self.derived("state", provider)
    }

    pub(super) fn nonce(&self, provider: &ProviderName) -> String {
        self.derived("nonce", provider)
    }

    /// Of PKCE: 43 characters of base64url.
    pub(super) fn verifier(&self, provider: &ProviderName) -> String {
        self.derived("verifier", provider)
    }

    /// What is told of the verifier at the beginning.
    pub(super) fn challenge(&self, provider: &ProviderName) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(self.verifier(provider)))
    }

    fn derived(&self, what: &str, provider: &ProviderName) -> String {
        // Neither word has a line feed, and the secret is always as long.
        let mut hash = Sha256::new();
        hash.update(format!("portcullis console\n{what}\n{provider}\n"));
        hash.update(self.secret);
        BASE64_URL_SAFE_NO_PAD.encode(hash.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_unix_ms(1_795_000_000_000 + ms).expect("in range")
    }

    fn provider(name: &str) -> ProviderName {
        name.parse().expect("valid")
    }

    #[test]
    fn what_the_browser_keeps_is_enough() {
        let attempt = Attempt::new("/requests/1", at(0));
        let kept = Attempt::from_cookie(&attempt.cookie()).expect("is ours");
        let corp = provider("corp");
        assert_eq!(kept.state(&corp), attempt.state(&corp));
        assert_eq!(kept.return_to(), "/requests/1");
        let all = [kept.state(&corp), kept.nonce(&corp), kept.verifier(&corp), kept.challenge(&corp)];
        assert!(all.iter().all(|text| text.len() == 43));
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), 4);
        assert_ne!(kept.state(&corp), kept.state(&provider("other")), "one provider's is not another's");
        assert_ne!(kept.state(&corp), Attempt::new("/", at(0)).state(&corp));
    }

    #[test]
    fn it_does_not_last() {
        let attempt = Attempt::new("/", at(0));
        assert!(!attempt.is_over(at(599_999)));
        assert!(attempt.is_over(at(600_000)));
        assert!(attempt.is_over(at(-1)), "of a clock that was set back");
    }

    #[test]
    fn what_a_browser_made_up_leads_nowhere_else() {
        let secret = BASE64_URL_SAFE_NO_PAD.encode([7; 32]);
        let elsewhere = BASE64_URL_SAFE_NO_PAD.encode("//evil.example");
        let made_up = Attempt::from_cookie(&format!("{secret}.1.{elsewhere}")).expect("has its shape");
        assert_eq!(made_up.return_to(), "/");
        for bad in ["", "a.b.c", "..", &format!("{secret}.x.Lw"), &format!("{secret}.1"), "AA.1.Lw"] {
            assert!(Attempt::from_cookie(bad).is_none(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_cookie_panics(text in "[-A-Za-z0-9_.]{0,80}|.{0,40}") {
            if let Some(attempt) = Attempt::from_cookie(&text) {
                let _ = attempt.is_over(at(0));
                proptest::prop_assert!(attempt.return_to().starts_with('/'));
            }
        }
    }
}
