//! How often those may try who show no token: they can be anybody, and many.

use std::collections::HashMap;
use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use proto::types::ProviderName;

/// All together: a thousand people who begin their day in the same minute, twice each. Beyond it a caller is told to come back;
/// what an attempt costs (a signature to verify, a line in a second of the record) is small below it.
const CALLS_PER_SECOND: NonZeroU32 = NonZeroU32::new(50).expect("is not 0");
const CALLS_AT_ONCE: NonZeroU32 = NonZeroU32::new(200).expect("is not 0");

/// With one provider: so that a flood with one leaves room at the others.
const SIGN_INS_PER_SECOND: NonZeroU32 = NonZeroU32::new(20).expect("is not 0");
const SIGN_INS_AT_ONCE: NonZeroU32 = NonZeroU32::new(100).expect("is not 0");

/// What is left for whom.
#[derive(Debug)]
pub struct Limits {
    calls: DefaultDirectRateLimiter,
    sign_ins: HashMap<ProviderName, DefaultDirectRateLimiter>,
}

impl Limits {
    pub(super) fn new<'a>(providers: impl Iterator<Item = &'a ProviderName>) -> Self {
        let limiter = |quota| RateLimiter::direct(quota);
        let sign_ins = Quota::per_second(SIGN_INS_PER_SECOND).allow_burst(SIGN_INS_AT_ONCE);
        Self {
            calls: limiter(Quota::per_second(CALLS_PER_SECOND).allow_burst(CALLS_AT_ONCE)),
            sign_ins: providers.map(|name| (name.clone(), limiter(sign_ins))).collect(),
        }
    }

    /// Whether one more call without a token may come.
    pub fn allow_call(&self) -> bool {
        self.calls.check().is_ok()
    }

    /// Whether one more ID token of a provider may be looked at. One that is not known has none.
    pub fn allow_sign_in(&self, provider: &ProviderName) -> bool {
        self.sign_ins.get(provider).is_some_and(|limiter| limiter.check().is_ok())
    }
}
