//! What was denied, as the beginning of a request.

use super::{DraftId, HostName, Invalid, ResourceName, SubjectId, Timestamp, time};
use crate::wire::access as wire;

/// Somebody was denied something on a host, and may make a request of it. It is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// Its id.
    pub id: DraftId,
    /// Who was denied, and alone can make a request of it.
    pub subject: SubjectId,
    /// What.
    pub resource: ResourceName,
    /// Where.
    pub host: HostName,
    /// When the control plane first heard of it.
    pub first: Timestamp,
    /// When it last did.
    pub last: Timestamp,
    /// How many attempts it heard of, from 1.
    pub attempts: u64,
    /// When it is gone by itself.
    pub lapses: Timestamp,
}

impl TryFrom<wire::Draft> for Draft {
    type Error = Invalid;

    fn try_from(wire: wire::Draft) -> Result<Self, Invalid> {
        if wire.attempts == 0 {
            return Err(Invalid::new("attempts", "is 0"));
        }
        Ok(Self {
            id: wire.id.parse()?,
            subject: wire.subject.parse()?,
            resource: wire.resource.parse()?,
            host: wire.host.parse()?,
            first: time::required("first", wire.first)?,
            last: time::required("last", wire.last)?,
            attempts: wire.attempts,
            lapses: time::required("lapses", wire.lapses)?,
        })
    }
}

impl From<Draft> for wire::Draft {
    fn from(draft: Draft) -> Self {
        Self {
            id: draft.id.to_string(),
            subject: draft.subject.into(),
            resource: draft.resource.into(),
            host: draft.host.into(),
            first: Some(draft.first.into()),
            last: Some(draft.last.into()),
            attempts: draft.attempts,
            lapses: Some(draft.lapses.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts() {
        let at = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
        let draft = Draft {
            id: DraftId::new(),
            subject: "user:alice".parse().expect("valid"),
            resource: "db".parse().expect("valid"),
            host: "db-7".parse().expect("valid"),
            first: at,
            last: at,
            attempts: 3,
            lapses: at,
        };
        let wire = wire::Draft::from(draft.clone());
        assert_eq!(Draft::try_from(wire.clone()), Ok(draft));
        let refused = |wire: wire::Draft| Draft::try_from(wire).expect_err("is refused").to_string();
        assert!(refused(wire::Draft { attempts: 0, ..wire.clone() }).contains("attempts: is 0"));
        assert!(refused(wire::Draft { id: "mine".into(), ..wire.clone() }).contains("`mine` is not an id"));
        assert!(refused(wire::Draft { last: None, ..wire }).contains("last: is missing"));
    }
}
