//! Who access is for.

use std::fmt::{self, Display};
use std::str::FromStr;

use super::{Invalid, Selector, SubjectId, SubjectNumber, all, quote};
use crate::wire::access as wire;

/// How many selectors one subject may have.
const SELECTORS_MAX: usize = 16;

/// What a subject may do at the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SubjectRole {
    /// Asks for itself.
    Member,
    /// Also decides about others' requests and revokes grants.
    Approver,
    /// A member who reads the audit record, and everybody's requests and grants.
    Auditor,
    /// Everything.
    Administrator,
}

impl SubjectRole {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Member, Self::Approver, Self::Auditor, Self::Administrator];

    /// As people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Approver => "approver",
            Self::Auditor => "auditor",
            Self::Administrator => "administrator",
        }
    }
}

impl Display for SubjectRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for SubjectRole {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| {
            Invalid::new(
                "role",
                format_args!("{} is not member, approver, auditor or administrator", quote(text)),
            )
        })
    }
}

impl TryFrom<wire::SubjectRole> for SubjectRole {
    type Error = Invalid;

    fn try_from(wire: wire::SubjectRole) -> Result<Self, Invalid> {
        match wire {
            wire::SubjectRole::Member => Ok(Self::Member),
            wire::SubjectRole::Approver => Ok(Self::Approver),
            wire::SubjectRole::Auditor => Ok(Self::Auditor),
            wire::SubjectRole::Administrator => Ok(Self::Administrator),
            wire::SubjectRole::Unspecified => Err(Invalid::new("role", "is missing or unknown")),
        }
    }
}

impl From<SubjectRole> for wire::SubjectRole {
    fn from(role: SubjectRole) -> Self {
        match role {
            SubjectRole::Member => Self::Member,
            SubjectRole::Approver => Self::Approver,
            SubjectRole::Auditor => Self::Auditor,
            SubjectRole::Administrator => Self::Administrator,
        }
    }
}

/// A subject as somebody asks for it: not stored yet, so without a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSubject {
    /// Its id.
    pub id: SubjectId,
    /// How its processes are found; at most 16, none twice.
    pub selectors: Vec<Selector>,
    /// What it may do at the control plane.
    pub role: SubjectRole,
}

impl TryFrom<wire::Subject> for NewSubject {
    type Error = Invalid;

    fn try_from(wire: wire::Subject) -> Result<Self, Invalid> {
        if wire.number != 0 {
            return Err(Invalid::new(
                "number",
                format_args!("{} was set; the control plane gives it", wire.number),
            ));
        }
        parts(wire)
    }
}

fn parts(wire: wire::Subject) -> Result<NewSubject, Invalid> {
    let role = wire.role().try_into()?;
    let mut selectors = all("selectors", wire.selectors, SELECTORS_MAX, |text| {
        text.parse().map_err(|error: Invalid| Invalid::new("", error.problem))
    })?;
    selectors.sort_unstable();
    selectors.dedup();
    let id = wire.id.parse().map_err(|error: Invalid| Invalid::new("id", error.problem))?;
    Ok(NewSubject { id, selectors, role })
}

/// Somebody or something that access is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// How kernels name it.
    pub number: SubjectNumber,
    /// Its id.
    pub id: SubjectId,
    /// How its processes are found; at most 16, none twice.
    pub selectors: Vec<Selector>,
    /// What it may do at the control plane.
    pub role: SubjectRole,
}

impl Subject {
    /// The subject that `new` becomes under this number.
    pub fn numbered(number: SubjectNumber, new: NewSubject) -> Self {
        Self { number, id: new.id, selectors: new.selectors, role: new.role }
    }
}

impl TryFrom<wire::Subject> for Subject {
    type Error = Invalid;

    fn try_from(wire: wire::Subject) -> Result<Self, Invalid> {
        let number =
            wire.number.try_into().map_err(|error: Invalid| Invalid::new("number", error.problem))?;
        Ok(Self::numbered(number, parts(wire)?))
    }
}

impl From<Subject> for wire::Subject {
    fn from(subject: Subject) -> Self {
        let number = subject.number.get();
        let new = NewSubject { id: subject.id, selectors: subject.selectors, role: subject.role };
        Self { number, ..new.into() }
    }
}

impl From<NewSubject> for wire::Subject {
    fn from(new: NewSubject) -> Self {
        Self {
            id: new.id.into(),
            number: 0,
            selectors: new.selectors.iter().map(ToString::to_string).collect(),
            role: wire::SubjectRole::from(new.role).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_survive_the_wire() {
        let new = NewSubject {
            id: "user:alice@example.com".parse().expect("valid"),
            selectors: vec!["unix-user:alice".parse().expect("valid")],
            role: SubjectRole::Approver,
        };
        assert_eq!(NewSubject::try_from(wire::Subject::from(new.clone())), Ok(new.clone()));
        let subject = Subject::numbered(7.try_into().expect("not 0"), new);
        assert_eq!(Subject::try_from(wire::Subject::from(subject.clone())), Ok(subject.clone()));
        assert!(NewSubject::try_from(wire::Subject::from(subject)).is_err());
    }
}
