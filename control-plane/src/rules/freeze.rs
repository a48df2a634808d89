//! Resources that are closed for a time: what that refuses.
//!
//! Owns: whether something is closed now, and by which freeze. Must not know: who may close what, storage.

use proto::types::{Freeze, FreezeId, Frozen, ResourceName, Timestamp};

use super::Refusal;

/// How many can hold at a time.
pub const HOLDING_MAX: usize = 1000;

/// Whether it holds at `now`: it lifts by itself, whether or not anybody has looked.
pub fn holds(freeze: &Freeze, now: Timestamp) -> bool {
    freeze.ended.is_none() && now < freeze.until
}

/// That no freeze closes the resource. Of several that do, the one that lasts longest is told.
pub fn open(freezes: &[Freeze], resource: &ResourceName, now: Timestamp) -> Result<(), Refusal> {
    let closes = |freeze: &&Freeze| holds(freeze, now) && freeze.what.contains(resource);
    match freezes.iter().filter(closes).max_by_key(|freeze| freeze.until) {
        None => Ok(()),
        Some(freeze) => Err(Refusal::Frozen {
            resource: resource.clone(),
            until: freeze.until,
            by: freeze.by.clone(),
            reason: freeze.reason.to_string(),
        }),
    }
}

/// That there can be one more.
pub fn room(holding: usize) -> Result<(), Refusal> {
    if holding < HOLDING_MAX { Ok(()) } else { Err(Refusal::TooManyFreezes(holding)) }
}

/// That it can be lifted.
pub fn liftable(freeze: &Freeze, now: Timestamp) -> Result<(), Refusal> {
    if holds(freeze, now) { Ok(()) } else { Err(Refusal::FreezeOver(freeze.id)) }
}

/// What is closed, in words.
pub fn told(id: FreezeId, what: &Frozen) -> String {
    const SHOWN_MAX: usize = 20;
    match what {
        Frozen::All => format!("freeze {id} of all resources"),
        Frozen::These(names) => {
            let shown: Vec<&str> = names.iter().take(SHOWN_MAX).map(ResourceName::as_str).collect();
            let others = names.len().saturating_sub(SHOWN_MAX);
            let more = if others > 0 { format!(" and {others} more") } else { String::new() };
            format!("freeze {id} of {}{more}", shown.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(minute: u64) -> Timestamp {
        let begin = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
        begin.plus(Duration::from_secs(60 * minute))
    }

    fn freeze(names: &[&str], until: u64, reason: &str) -> Freeze {
        let names = names.iter().map(|name| name.parse().expect("valid")).collect();
        Freeze {
            id: FreezeId::new(),
            what: Frozen::These(names),
            began: at(0),
            until: at(until),
            reason: reason.parse().expect("valid"),
            by: "user:bob".parse().expect("valid"),
            keep_live: false,
            ended: None,
        }
    }

    #[test]
    fn what_is_closed_and_until_when() {
        let lifted = Freeze { ended: Some((at(1), None)), ..freeze(&["db"], 90, "lifted") };
        let all = [freeze(&["db"], 10, "short"), freeze(&["db", "vault"], 20, "long"), lifted];
        let told = |name: &str, minute| {
            open(&all, &name.parse().expect("valid"), at(minute)).map_err(|refusal| refusal.to_string())
        };
        let refusal = told("db", 5).expect_err("it is closed");
        let ends = " by `user:bob`: long";
        assert!(
            refusal.starts_with("resource `db` is frozen until 20") && refusal.ends_with(ends),
            "{refusal}"
        );
        assert!(told("vault", 19).is_err());
        assert_eq!(told("db", 20), Ok(()), "it lifts by itself");
        assert_eq!(told("cache", 5), Ok(()));
        let everything = Freeze { what: Frozen::All, ..freeze(&[], 10, "all") };
        assert!(open(&[everything], &"cache".parse().expect("valid"), at(5)).is_err());
    }

    #[test]
    fn what_is_over_is_not_lifted() {
        let freeze = freeze(&["db"], 10, "x");
        assert_eq!(liftable(&freeze, at(9)), Ok(()));
        assert_eq!(liftable(&freeze, at(10)), Err(Refusal::FreezeOver(freeze.id)));
        assert!(room(HOLDING_MAX - 1).is_ok() && room(HOLDING_MAX).is_err());
    }
}
