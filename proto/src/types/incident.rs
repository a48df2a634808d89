//! Incidents: flags that people raise, which conditions of policies see.

use std::time::Duration;

use super::request::whole_seconds_up_to;
use super::{IncidentId, Invalid, Reason, SubjectId, Timestamp, duration_to_wire, time};
use crate::wire::access as wire;

/// The longest: whoever needs more opens it again.
const DURATION_MAX: Duration = Duration::from_secs(31 * 24 * 3600);

/// An incident as somebody opens it, or moves its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewIncident {
    /// How people call it.
    pub id: IncidentId,
    /// For how long from now: whole seconds, from one to 31 days.
    pub duration: Duration,
    /// What it is; empty: nobody said, or as it was.
    pub reason: String,
}

impl TryFrom<wire::OpenIncidentRequest> for NewIncident {
    type Error = Invalid;

    fn try_from(wire: wire::OpenIncidentRequest) -> Result<Self, Invalid> {
        let duration = whole_seconds_up_to(DURATION_MAX, "duration", wire.duration)?;
        Ok(Self { id: wire.id.parse()?, duration, reason: Reason::optional("reason", &wire.reason)? })
    }
}

impl From<NewIncident> for wire::OpenIncidentRequest {
    fn from(new: NewIncident) -> Self {
        Self { id: new.id.into(), duration: Some(duration_to_wire(new.duration)), reason: new.reason }
    }
}

/// An incident, as it is kept: of each id, the last time that it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incident {
    /// How people call it.
    pub id: IncidentId,
    /// When it was opened.
    pub opened: Timestamp,
    /// When it closes by itself.
    pub until: Timestamp,
    /// What it is; may be empty.
    pub reason: String,
    /// Who opened it.
    pub by: SubjectId,
    /// When it was closed, and who did that (None: nobody, but time); None: it is open.
    pub closed: Option<(Timestamp, Option<SubjectId>)>,
}

impl TryFrom<wire::Incident> for Incident {
    type Error = Invalid;

    fn try_from(wire: wire::Incident) -> Result<Self, Invalid> {
        let subject = |field: &str, id: String| id.parse::<SubjectId>().map_err(|error| error.within(field));
        let by = (!wire.closed_by.is_empty()).then(|| subject("closed_by", wire.closed_by)).transpose()?;
        Ok(Self {
            id: wire.id.parse()?,
            opened: time::required("opened", wire.opened)?,
            until: time::required("until", wire.until)?,
            reason: Reason::optional("reason", &wire.reason)?,
            by: subject("by", wire.by)?,
            closed: time::optional("closed", wire.closed)?.map(|closed| (closed, by)),
        })
    }
}

impl From<Incident> for wire::Incident {
    fn from(incident: Incident) -> Self {
        let (closed, closed_by) = incident.closed.unzip();
        Self {
            id: incident.id.into(),
            opened: Some(incident.opened.into()),
            until: Some(incident.until.into()),
            reason: incident.reason,
            by: incident.by.into(),
            closed: closed.map(Into::into),
            closed_by: closed_by.flatten().map(Into::into).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(change: impl FnOnce(&mut wire::OpenIncidentRequest), expected: Result<(), &str>) {
        let mut wire = wire::OpenIncidentRequest {
            id: "inc-42".into(),
            duration: Some(duration_to_wire(Duration::from_secs(60))),
            reason: "nobody can log in".into(),
        };
        change(&mut wire);
        match (NewIncident::try_from(wire), expected) {
            (Ok(new), Ok(())) => {
                assert_eq!(NewIncident::try_from(wire::OpenIncidentRequest::from(new.clone())), Ok(new));
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (got, expected) => panic!("{got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn new_incidents() {
        check(|_| {}, Ok(()));
        check(|wire| wire.reason.clear(), Ok(()));
        check(|wire| wire.reason = "a".repeat(1001), Err("reason: "));
        check(|wire| wire.id.clear(), Err("is not a name"));
        // Cyrillic.
        check(|wire| wire.id = "in\u{441}-42".into(), Err("is not a name"));
        check(|wire| wire.id = "INC-42".into(), Err("is not a name"));
        check(|wire| wire.id = "a".repeat(64), Err("is longer than 63 bytes"));
        check(|wire| wire.duration = None, Err("duration: is missing"));
        let month = Some(duration_to_wire(DURATION_MAX + Duration::from_secs(1)));
        check(|wire| wire.duration = month, Err("duration: 2678401 s is above the maximum"));
    }

    #[test]
    fn incidents_survive_the_wire() {
        let now = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
        let by: SubjectId = "user:bob".parse().expect("valid");
        for closed in [None, Some((now, None)), Some((now, Some(by.clone())))] {
            for reason in ["", "nobody can log in"] {
                let incident = Incident {
                    id: "inc-42".parse().expect("valid"),
                    opened: now,
                    until: now,
                    reason: reason.to_owned(),
                    by: by.clone(),
                    closed: closed.clone(),
                };
                assert_eq!(Incident::try_from(wire::Incident::from(incident.clone())), Ok(incident));
            }
        }
    }
}
