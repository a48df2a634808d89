//! How many may sign in at once with one issuer, from wherever they come: who has no token can be anybody, and many.

use std::collections::HashMap;
use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use proto::types::ProviderName;

/// A thousand people who begin their day in the same minute. What an attempt costs (a signature to verify, a line in a second of
/// the record) is small below it; a flood with one provider leaves room at the others.
const SIGN_INS_PER_SECOND: NonZeroU32 = NonZeroU32::new(20).expect("is not 0");
const SIGN_INS_AT_ONCE: NonZeroU32 = NonZeroU32::new(100).expect("is not 0");

/// What is left for whom.
#[derive(Debug)]
pub struct Limits(HashMap<ProviderName, DefaultDirectRateLimiter>);

impl Limits {
    /// For these.
    pub fn new<'a>(providers: impl Iterator<Item = &'a ProviderName>) -> Self {
        let quota = Quota::per_second(SIGN_INS_PER_SECOND).allow_burst(SIGN_INS_AT_ONCE);
        Self(providers.map(|name| (name.clone(), RateLimiter::direct(quota))).collect())
    }

    /// Whether one more ID token of a provider may be looked at. One that is not known has none.
    pub fn allow_sign_in(&self, provider: &ProviderName) -> bool {
        self.0.get(provider).is_some_and(|limiter| limiter.check().is_ok())
    }
}
