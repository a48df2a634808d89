//! May this be asked for? The request and what is allowed in general → yes, or no with the reason.
//!
//! Owns: the limits that hold for every request. Must not know: storage, who is asked to approve.

use std::time::Duration;

use proto::types::{NewRequest, SubjectId};

use super::Refusal;
use super::calls::Reach;

/// What holds for every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The longest that a grant may live.
    pub max_grant_duration: Duration,
}

impl Policy {
    /// Whom the request is for, if `caller` may ask for it.
    pub fn judge(&self, new: &NewRequest, caller: &SubjectId, reach: Reach) -> Result<SubjectId, Refusal> {
        let maximum = self.max_grant_duration;
        if new.duration > maximum {
            return Err(Refusal::TooLong { asked: new.duration, maximum });
        }
        let subject = new.subject.as_ref().unwrap_or(caller);
        if subject != caller && reach != Reach::All {
            return Err(Refusal::ForSomebodyElse { caller: caller.clone(), subject: subject.clone() });
        }
        Ok(subject.clone())
    }
}

/// Whether a request may be for so many hosts.
pub fn place(new: &NewRequest, hosts: usize) -> Result<(), Refusal> {
    let is_of_one = new.while_running.is_some() || new.run.is_some() || new.action.is_some();
    match is_of_one && hosts != 1 {
        true => Err(Refusal::OneHostOnly(hosts)),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(minutes: u64, subject: Option<&str>, reach: Reach, expected: Result<&str, &str>) {
        let policy = Policy { max_grant_duration: Duration::from_secs(30 * 60) };
        let new = NewRequest {
            resource: "db".parse().expect("valid"),
            subject: subject.map(|subject| subject.parse().expect("valid")),
            hosts: Vec::new(),
            duration: Duration::from_secs(60 * minutes),
            reason: "why not".parse().expect("valid"),
            idle: None,
            while_running: None,
            run: None,
            action: None,
        };
        let judged = policy.judge(&new, &"user:alice".parse().expect("valid"), reach);
        let judged = judged.map(|subject| subject.to_string()).map_err(|refusal| refusal.to_string());
        assert_eq!(judged, expected.map(str::to_owned).map_err(str::to_owned));
    }

    #[test]
    fn requests_are_judged() {
        check(30, None, Reach::Own, Ok("user:alice"));
        check(30, Some("user:alice"), Reach::Own, Ok("user:alice"));
        check(30, Some("user:bob"), Reach::All, Ok("user:bob"));
        check(30, Some("user:bob"), Reach::Own, Err("subject `user:alice` may not ask for `user:bob`"));
        check(31, None, Reach::All, Err("duration: 31m is above the maximum of 30m"));
    }
}
