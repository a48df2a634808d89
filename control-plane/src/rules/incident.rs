//! Incidents: flags that are up for a time.
//!
//! Owns: whether one is open now, what opening it again means. Must not know: who may open one, what policies make of it, storage.

use proto::types::{Incident, NewIncident, SubjectId, Timestamp};

use super::Refusal;

/// How many can be open at a time: conditions are shown all of them.
pub const OPEN_MAX: usize = 1000;

/// Whether it is open at `now`: it closes by itself, whether or not anybody has looked.
pub fn is_open(incident: &Incident, now: Timestamp) -> bool {
    incident.closed.is_none() && now < incident.until
}

/// What opening one leads to. `before`: the last time that its id was opened; `open`: how many others are open.
pub fn opened(
    new: NewIncident,
    before: Option<&Incident>,
    open: usize,
    by: &SubjectId,
    now: Timestamp,
) -> Result<Incident, Refusal> {
    let NewIncident { id, duration, reason } = new;
    let until = now.plus(duration);
    if let Some(before) = before.filter(|before| is_open(before, now)) {
        let reason = if reason.is_empty() { before.reason.clone() } else { reason };
        return Ok(Incident { until, reason, ..before.clone() });
    }
    if open >= OPEN_MAX {
        return Err(Refusal::TooManyIncidents(open));
    }
    Ok(Incident { id, opened: now, until, reason, by: by.clone(), closed: None })
}

/// That it can be closed.
pub fn closable(incident: &Incident, now: Timestamp) -> Result<(), Refusal> {
    if is_open(incident, now) { Ok(()) } else { Err(Refusal::IncidentClosed(incident.id.clone())) }
}

/// Which one, in words; with what was said about it.
pub fn told(incident: &Incident, said: &str) -> String {
    let colon = if said.is_empty() { "" } else { ": " };
    format!("incident {}{colon}{said}", incident.id)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(minute: u64) -> Timestamp {
        let begin = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
        begin.plus(Duration::from_secs(60 * minute))
    }

    fn new(minutes: u64, reason: &str) -> NewIncident {
        let id = "inc-42".parse().expect("valid");
        NewIncident { id, duration: Duration::from_secs(60 * minutes), reason: reason.to_owned() }
    }

    #[test]
    fn what_is_open_moves_its_end_and_what_is_over_begins_anew() {
        let (bob, eve): (SubjectId, SubjectId) =
            ("user:bob".parse().expect("valid"), "user:eve".parse().expect("valid"));
        let first = opened(new(10, "no login"), None, 0, &bob, at(0)).expect("there is room");
        assert_eq!((first.opened, first.until), (at(0), at(10)));
        assert!(is_open(&first, at(9)) && !is_open(&first, at(10)), "it closes by itself");
        // There is room for one that is there already; sooner, too.
        let moved = opened(new(2, ""), Some(&first), OPEN_MAX, &eve, at(5)).expect("moved");
        assert_eq!(moved, Incident { until: at(7), ..first.clone() });
        let other = opened(new(20, "and no mail"), Some(&first), 0, &eve, at(5)).expect("moved");
        assert_eq!((other.reason.as_str(), &other.by, other.until), ("and no mail", &bob, at(25)));
        let again = opened(new(10, ""), Some(&first), 0, &eve, at(10)).expect("there is room");
        assert_eq!((again.opened, &again.by, again.reason.as_str()), (at(10), &eve, ""));
        let closed = Incident { closed: Some((at(3), None)), ..first };
        assert!(!is_open(&closed, at(4)));
        assert_eq!(opened(new(1, ""), Some(&closed), 0, &eve, at(4)).expect("there is room").opened, at(4));
    }

    #[test]
    fn what_is_closed_is_not_closed_again_and_there_is_no_room_without_end() {
        let bob: SubjectId = "user:bob".parse().expect("valid");
        let incident = opened(new(10, ""), None, OPEN_MAX - 1, &bob, at(0)).expect("there is room");
        assert_eq!(closable(&incident, at(9)), Ok(()));
        assert_eq!(closable(&incident, at(10)), Err(Refusal::IncidentClosed(incident.id.clone())));
        let full = opened(new(10, ""), None, OPEN_MAX, &bob, at(0));
        assert_eq!(full, Err(Refusal::TooManyIncidents(OPEN_MAX)));
        assert_eq!(told(&incident, ""), "incident inc-42");
        assert_eq!(told(&incident, "no login"), "incident inc-42: no login");
    }
}
