//! Resources that are closed for a time.

use std::collections::BTreeSet;
use std::time::Duration;

use super::request::whole_seconds_up_to;
use super::{FreezeId, Invalid, Reason, ResourceName, SubjectId, Timestamp, all, duration_to_wire, time};
use crate::wire::access as wire;

/// How many resources one freeze names at most.
const RESOURCES_MAX: usize = 1000;

/// The longest: whoever needs more does it again, or takes the resource out of the policy.
const DURATION_MAX: Duration = Duration::from_secs(31 * 24 * 3600);

/// What is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frozen {
    /// Every resource, also those that are not protected yet.
    All,
    /// These; never empty.
    These(BTreeSet<ResourceName>),
}

impl Frozen {
    /// Whether this resource is among them.
    pub fn contains(&self, resource: &ResourceName) -> bool {
        match self {
            Self::All => true,
            Self::These(names) => names.contains(resource),
        }
    }

    fn into_wire(self) -> Vec<String> {
        match self {
            Self::All => Vec::new(),
            Self::These(names) => names.into_iter().map(Into::into).collect(),
        }
    }
}

fn names(wire: Vec<String>) -> Result<BTreeSet<ResourceName>, Invalid> {
    let names = all("resources", wire, RESOURCES_MAX, |name| {
        name.parse().map_err(|error: Invalid| Invalid::new("", error.problem))
    })?;
    Ok(names.into_iter().collect())
}

/// A freeze as somebody begins it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFreeze {
    /// What is to be closed.
    pub what: Frozen,
    /// For how long: whole seconds, from one to 31 days.
    pub duration: Duration,
    /// Why.
    pub reason: Reason,
    /// Live grants do not end.
    pub keep_live: bool,
}

impl TryFrom<wire::FreezeRequest> for NewFreeze {
    type Error = Invalid;

    fn try_from(wire: wire::FreezeRequest) -> Result<Self, Invalid> {
        let what = match (wire.all, wire.resources.is_empty()) {
            (true, true) => Frozen::All,
            (false, false) => Frozen::These(names(wire.resources)?),
            (true, false) => return Err(Invalid::new("resources", "are named, and all are meant, too")),
            (false, true) => return Err(Invalid::new("resources", "are none: name some, or mean all")),
        };
        let duration = whole_seconds_up_to(DURATION_MAX, "duration", wire.duration)?;
        Ok(Self { what, duration, reason: wire.reason.parse()?, keep_live: wire.keep_live })
    }
}

impl From<NewFreeze> for wire::FreezeRequest {
    fn from(new: NewFreeze) -> Self {
        Self {
            all: new.what == Frozen::All,
            resources: new.what.into_wire(),
            duration: Some(duration_to_wire(new.duration)),
            reason: new.reason.as_str().to_owned(),
            keep_live: new.keep_live,
        }
    }
}

/// A freeze, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freeze {
    /// Its id.
    pub id: FreezeId,
    /// What is closed.
    pub what: Frozen,
    /// When it began.
    pub began: Timestamp,
    /// When it lifts by itself.
    pub until: Timestamp,
    /// Why.
    pub reason: Reason,
    /// Who began it.
    pub by: SubjectId,
    /// What was live then was not ended.
    pub keep_live: bool,
    /// When it ended, and who lifted it (None: nobody, but time); None: it holds.
    pub ended: Option<(Timestamp, Option<SubjectId>)>,
}

impl TryFrom<wire::Freeze> for Freeze {
    type Error = Invalid;

    fn try_from(wire: wire::Freeze) -> Result<Self, Invalid> {
        let subject = |field: &str, id: String| id.parse::<SubjectId>().map_err(|error| error.within(field));
        let what = match wire.resources.is_empty() {
            true => Frozen::All,
            false => Frozen::These(names(wire.resources)?),
        };
        let ended_by = (!wire.ended_by.is_empty()).then(|| subject("ended_by", wire.ended_by)).transpose()?;
        Ok(Self {
            id: wire.id.parse()?,
            what,
            began: time::required("began", wire.began)?,
            until: time::required("until", wire.until)?,
            reason: wire.reason.parse()?,
            by: subject("by", wire.by)?,
            keep_live: wire.keep_live,
            ended: time::optional("ended", wire.ended)?.map(|ended| (ended, ended_by)),
        })
    }
}

impl From<Freeze> for wire::Freeze {
    fn from(freeze: Freeze) -> Self {
        let (ended, ended_by) = freeze.ended.unzip();
        Self {
            id: freeze.id.to_string(),
            resources: freeze.what.into_wire(),
            began: Some(freeze.began.into()),
            until: Some(freeze.until.into()),
            reason: freeze.reason.as_str().to_owned(),
            by: freeze.by.into(),
            keep_live: freeze.keep_live,
            ended: ended.map(Into::into),
            ended_by: ended_by.flatten().map(Into::into).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(change: impl FnOnce(&mut wire::FreezeRequest), expected: Result<(), &str>) {
        let mut wire = wire::FreezeRequest {
            resources: vec!["db".into()],
            all: false,
            duration: Some(duration_to_wire(Duration::from_secs(60))),
            reason: "incident".into(),
            keep_live: false,
        };
        change(&mut wire);
        match (NewFreeze::try_from(wire), expected) {
            (Ok(new), Ok(())) => {
                assert_eq!(NewFreeze::try_from(wire::FreezeRequest::from(new.clone())), Ok(new));
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (got, expected) => panic!("{got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn new_freezes() {
        check(|_| {}, Ok(()));
        let all = |wire: &mut wire::FreezeRequest| {
            wire.resources.clear();
            wire.all = true;
        };
        check(all, Ok(()));
        check(|wire| wire.all = true, Err("resources: are named, and all are meant, too"));
        check(|wire| wire.resources.clear(), Err("resources: are none"));
        check(|wire| wire.resources = vec!["a".into(); 1001], Err("resources: has 1001 entries"));
        // Cyrillic.
        check(|wire| wire.resources = vec!["d\u{440}".into()], Err("is not a name"));
        check(|wire| wire.duration = None, Err("duration: is missing"));
        let month = Some(duration_to_wire(DURATION_MAX + Duration::from_secs(1)));
        check(|wire| wire.duration = month, Err("duration: 2678401 s is above the maximum"));
        check(|wire| wire.reason.clear(), Err("reason: is empty"));
    }

    #[test]
    fn freezes_survive_the_wire() {
        let now = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
        let names = ["a", "b"].map(|name| name.parse().expect("valid")).into();
        let by: SubjectId = "user:bob".parse().expect("valid");
        for what in [Frozen::All, Frozen::These(names)] {
            for ended in [None, Some((now, None)), Some((now, Some(by.clone())))] {
                let freeze = Freeze {
                    id: FreezeId::new(),
                    what: what.clone(),
                    began: now,
                    until: now,
                    reason: "incident".parse().expect("valid"),
                    by: by.clone(),
                    keep_live: true,
                    ended,
                };
                assert_eq!(Freeze::try_from(wire::Freeze::from(freeze.clone())), Ok(freeze));
            }
        }
    }
}
