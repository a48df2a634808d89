//! May a live grant live longer, and until when?
//!
//! Owns: what bounds an extension: the grant's own life, its role, and the operator's maximum for the grant in all. Must not know:
//! who may ask, storage.

use std::time::Duration;

use policy::decide::Terms;
use proto::types::{Grant, GrantState, Timestamp};

use super::Refusal;

/// When a grant would end that lives longer by `by`, and how long it would live in all.
pub fn deadline(
    grant: &Grant,
    by: Duration,
    latest: Timestamp,
    now: Timestamp,
) -> Result<(Timestamp, Duration), Refusal> {
    let Some(begins) = grant.begins.filter(|_| grant.state != GrantState::Scheduled) else {
        return Err(Refusal::NotBegun(grant.id));
    };
    if grant.state.end_reason().is_some() || grant.expires <= now {
        return Err(Refusal::NotLive { grant: grant.id, state: grant.state });
    }
    let until = grant.expires.plus(by);
    let total = until.since(begins);
    match until > latest {
        true => {
            let maximum = latest.since(begins);
            Err(Refusal::ExtendedTooLong { grant: grant.id, total, maximum })
        }
        false => Ok((until, total)),
    }
}

/// Whether its role lets it be extended by so much, once more.
pub fn permitted(terms: &Terms, grant: &Grant, by: Duration) -> Result<(), Refusal> {
    let extension = terms.extension.ok_or_else(|| Refusal::NoExtension(terms.role.clone()))?;
    if grant.extensions >= extension.times {
        return Err(Refusal::ExtendedEnough { grant: grant.id, times: grant.extensions });
    }
    match by > extension.by {
        true => Err(Refusal::ExtensionTooLong { asked: by, maximum: extension.by }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use policy::model::{ClockStart, Extension};
    use proto::types::{EndReason, GrantId, RequestId};

    use super::*;

    fn at(minute: u64) -> Timestamp {
        let begin = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
        begin.plus(minutes(minute))
    }

    fn minutes(minutes: u64) -> Duration {
        Duration::from_secs(60 * minutes)
    }

    /// From minute 0 to minute 30.
    fn grant(state: GrantState, extensions: u32) -> Grant {
        Grant {
            id: GrantId::new(),
            state,
            request: RequestId::new(),
            resource: "db".parse().expect("valid"),
            subject: "user:alice".parse().expect("valid"),
            hosts: Vec::new(),
            issued: at(0),
            expires: at(30),
            ended: None,
            idle: None,
            while_running: None,
            run: None,
            action: None,
            extensions,
            begins: (state != GrantState::Scheduled).then(|| at(0)),
            duration: None,
        }
    }

    #[test]
    fn until_when() {
        let told = |state, by, latest, now| {
            let mut grant = grant(state, 0);
            grant.id = "01940000-0000-7000-8000-000000000001".parse().expect("valid");
            let judged = deadline(&grant, minutes(by), at(latest), at(now));
            judged.map(|(until, total)| (until == at(30 + by), total)).map_err(|refusal| refusal.to_string())
        };
        let active = GrantState::Active;
        assert_eq!(told(active, 30, 60, 29), Ok((true, minutes(60))));
        assert_eq!(told(GrantState::Activating, 1, 60, 0), Ok((true, minutes(31))));
        let grant = "grant 01940000-0000-7000-8000-000000000001";
        let too_long = format!("{grant} would live for 1h 1m in all, and 1h is the maximum");
        assert_eq!(told(active, 31, 60, 29), Err(too_long));
        assert_eq!(told(active, 1, 60, 30), Err(format!("{grant} is active already")));
        assert_eq!(told(GrantState::Scheduled, 1, 60, 0), Err(format!("{grant} has not begun")));
        let ending = GrantState::Ending(EndReason::Released);
        assert_eq!(told(ending, 1, 60, 1), Err(format!("{grant} is ending (released) already")));
    }

    #[test]
    fn how_often_and_by_how_much() {
        let terms = |extension| Terms {
            role: "debug".parse().expect("valid"),
            duration: minutes(60),
            maximum_duration: minutes(120),
            idle: None,
            strict: false,
            clock: ClockStart::Approval,
            extension,
            steps: Vec::new(),
            break_glass: false,
        };
        let twice = Some(Extension { times: 2, by: minutes(30), approval: true });
        let told = |extension, extensions, by| {
            let judged = permitted(&terms(extension), &grant(GrantState::Active, extensions), minutes(by));
            judged.map_err(|refusal| refusal.to_string())
        };
        assert_eq!(told(twice, 0, 30), Ok(()));
        assert_eq!(told(twice, 1, 1), Ok(()));
        assert!(told(twice, 2, 1).is_err_and(|text| {
            text.ends_with("has been extended 2 times, which is all that its role permits")
        }));
        assert_eq!(
            told(twice, 0, 31),
            Err("31m is above the 30m by which its role lets it be extended".to_owned())
        );
        assert_eq!(told(None, 0, 1), Err("role `debug` lets nothing be extended".to_owned()));
    }
}
