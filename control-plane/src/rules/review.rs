//! Access by a role for emergencies: who looks at it afterwards.
//!
//! Owns: who was not asked, and who may review. Must not know: storage, where approvers are named.

use std::collections::BTreeSet;

use policy::approval::{Step, Then};
use proto::types::{Request, Review, SubjectId, Waiting};

use super::Refusal;

/// All approvers of these steps, without who asked and whom it was for.
pub fn skipped(steps: &[Step], request: &Request) -> BTreeSet<SubjectId> {
    let more = |step: &Step| match &step.after {
        Some((_, Then::Escalate(more))) => more.clone(),
        _ => BTreeSet::new(),
    };
    let mut all: BTreeSet<SubjectId> =
        steps.iter().flat_map(|step| step.approvers.iter().cloned().chain(more(step))).collect();
    all.retain(|who| *who != request.subject && *who != request.requester);
    all
}

/// The first of them, and how many others there are.
pub fn shown(skipped: BTreeSet<SubjectId>) -> (Vec<SubjectId>, u32) {
    let others = u32::try_from(skipped.len().saturating_sub(Waiting::SHOWN_MAX)).unwrap_or(u32::MAX);
    (skipped.into_iter().take(Waiting::SHOWN_MAX).collect(), others)
}

/// The same, in words.
pub fn told(skipped: BTreeSet<SubjectId>) -> String {
    let (names, others) = shown(skipped);
    let names: Vec<&str> = names.iter().map(SubjectId::as_str).collect();
    match others {
        0 => names.join(", "),
        others => format!("{} and {others} more", names.join(", ")),
    }
}

/// That this one may review it. `may`: all who may, by the policy.
pub fn permitted(review: &Review, may: &BTreeSet<SubjectId>, by: &SubjectId) -> Result<(), Refusal> {
    if let Some((who, at, _)) = &review.reviewed {
        return Err(Refusal::AlreadyReviewed { grant: review.grant, by: who.clone(), at: *at });
    }
    let is_theirs = [&review.subject, &review.requester].contains(&by);
    match !is_theirs && may.contains(by) {
        true => Ok(()),
        false => Err(Refusal::NotReviewer { caller: by.clone(), grant: review.grant }),
    }
}

#[cfg(test)]
mod tests {
    use proto::types::{GrantId, RequestId, Timestamp};

    use super::*;

    fn id(name: &str) -> SubjectId {
        format!("user:{name}").parse().expect("valid")
    }

    #[test]
    fn who_may_review() {
        let at = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
        let mut review = Review {
            grant: GrantId::new(),
            request: RequestId::new(),
            subject: id("alice"),
            requester: id("rita"),
            resource: "db".parse().expect("valid"),
            judged: (7, "break-glass".parse().expect("valid")),
            reason: "INC-42".to_owned(),
            used: at,
            approvers: Vec::new(),
            others: 0,
            reviewed: None,
        };
        // Whatever the policy says of them: not who used it.
        let may: BTreeSet<SubjectId> = ["alice", "rita", "bob"].map(id).into();
        let told = |review: &Review, by: &str| permitted(review, &may, &id(by)).is_ok();
        assert_eq!(
            ["alice", "rita", "mallory", "bob"].map(|by| told(&review, by)),
            [false, false, false, true]
        );
        review.reviewed = Some((id("bob"), at, "fine".to_owned()));
        assert!(matches!(permitted(&review, &may, &id("bob")), Err(Refusal::AlreadyReviewed { .. })));
    }

    #[test]
    fn many_are_counted() {
        let many: BTreeSet<SubjectId> = (10..35).map(|number| id(&format!("p{number}"))).collect();
        assert_eq!((shown(many.clone()).0.len(), shown(many.clone()).1), (20, 5));
        assert!(told(many).ends_with("user:p29 and 5 more"));
        assert_eq!(told(["bob", "eve"].map(id).into()), "user:bob, user:eve");
    }
}
