//! Access by a role for emergencies, and who has looked at it afterwards.

use super::{GrantId, Invalid, RequestId, ResourceName, RoleName, SubjectId, Timestamp, Waiting, all, time};
use crate::wire::access as wire;

/// Access that somebody had without the yes of those who would have had to say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Review {
    /// Of which grant.
    pub grant: GrantId,
    /// What it came from.
    pub request: RequestId,
    /// Who had it.
    pub subject: SubjectId,
    /// Who asked.
    pub requester: SubjectId,
    /// To what.
    pub resource: ResourceName,
    /// By which version of the policy, and which role of it.
    pub judged: (u64, RoleName),
    /// What it was asked for.
    pub reason: String,
    /// When.
    pub used: Timestamp,
    /// Whose yes was not asked for, and who may review it: the first by name, at most [`Waiting::SHOWN_MAX`].
    pub approvers: Vec<SubjectId>,
    /// And so many others.
    pub others: u32,
    /// Who has reviewed it, when, and what they said; None: nobody has.
    pub reviewed: Option<(SubjectId, Timestamp, String)>,
}

impl TryFrom<wire::Review> for Review {
    type Error = Invalid;

    fn try_from(wire: wire::Review) -> Result<Self, Invalid> {
        let subject = |field: &str, id: String| id.parse::<SubjectId>().map_err(|error| error.within(field));
        let reviewed = match time::optional("reviewed", wire.reviewed)? {
            None => None,
            Some(at) => Some((subject("reviewed_by", wire.reviewed_by)?, at, wire.comment)),
        };
        Ok(Self {
            grant: wire.grant.parse()?,
            request: wire.request.parse()?,
            subject: wire.subject.parse()?,
            requester: subject("requester", wire.requester)?,
            resource: wire.resource.parse()?,
            judged: (wire.policy, wire.role.parse()?),
            reason: wire.reason,
            used: time::required("used", wire.used)?,
            approvers: all("approvers", wire.approvers, Waiting::SHOWN_MAX, |id| id.parse::<SubjectId>())?,
            others: wire.others,
            reviewed,
        })
    }
}

impl From<Review> for wire::Review {
    fn from(review: Review) -> Self {
        let (reviewed_by, reviewed, comment) = match review.reviewed {
            None => (String::new(), None, String::new()),
            Some((by, at, comment)) => (by.into(), Some(at.into()), comment),
        };
        let (policy, role) = review.judged;
        Self {
            grant: review.grant.to_string(),
            request: review.request.to_string(),
            subject: review.subject.into(),
            requester: review.requester.into(),
            resource: review.resource.into(),
            role: role.into(),
            policy,
            reason: review.reason,
            used: Some(review.used.into()),
            approvers: review.approvers.into_iter().map(Into::into).collect(),
            others: review.others,
            reviewed,
            reviewed_by,
            comment,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reviews_survive_the_wire() {
        let now = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
        let person = |name: &str| -> SubjectId { format!("user:{name}").parse().expect("valid") };
        for reviewed in [None, Some((person("bob"), now, "as it should be".to_owned()))] {
            let review = Review {
                grant: GrantId::new(),
                request: RequestId::new(),
                subject: person("alice"),
                requester: person("alice"),
                resource: "db".parse().expect("valid"),
                judged: (7, "break-glass".parse().expect("valid")),
                reason: "INC-42".to_owned(),
                used: now,
                approvers: vec![person("bob"), person("eve")],
                others: 3,
                reviewed,
            };
            assert_eq!(Review::try_from(wire::Review::from(review.clone())), Ok(review));
        }
    }
}
