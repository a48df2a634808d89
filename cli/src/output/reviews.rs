//! Break-glass access and who has reviewed it, as people and programs see it.

use proto::types::{Review, Timestamp};
use serde::Serialize;

use super::text::{cut, words};
use super::{Row, View, utc};

/// How much of a reason fits a line of a table.
const TEXT_SHOWN_MAX: usize = 60;

/// Access that somebody had without the yes of those who would have had to say it.
#[derive(Serialize)]
#[allow(missing_docs, reason = "as in access.proto; an absent part was left out")]
pub struct ReviewRow {
    pub grant: String,
    pub request: String,
    pub subject: String,
    pub requester: String,
    pub resource: String,
    pub role: String,
    pub policy: u64,
    pub reason: String,
    pub used: String,
    pub approvers: Vec<String>,
    pub others: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reviewed: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reviewed_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    #[serde(skip)]
    at: Timestamp,
}

impl From<Review> for ReviewRow {
    fn from(review: Review) -> Self {
        let (policy, role) = review.judged;
        let reviewed = review.reviewed.as_ref();
        Self {
            grant: review.grant.to_string(),
            request: review.request.to_string(),
            subject: review.subject.to_string(),
            requester: review.requester.to_string(),
            resource: review.resource.to_string(),
            role: role.to_string(),
            policy,
            reason: review.reason,
            used: utc(review.used),
            approvers: review.approvers.iter().map(ToString::to_string).collect(),
            others: review.others,
            reviewed: reviewed.map(|(_, at, _)| utc(*at)),
            reviewed_by: reviewed.map(|(by, ..)| by.to_string()),
            comment: reviewed.map(|(.., comment)| comment.clone()),
            at: review.used,
        }
    }
}

impl Row for ReviewRow {
    const HEADER: &'static [&'static str] =
        &["GRANT", "AGE", "SUBJECT", "RESOURCE", "ROLE", "APPROVERS", "REVIEWED-BY", "REASON"];

    fn cells(&self, view: &View) -> Vec<String> {
        let others = if self.others > 0 { format!(",+{}", self.others) } else { String::new() };
        vec![
            self.grant.clone(),
            view.since(self.at),
            self.subject.clone(),
            self.resource.clone(),
            self.role.clone(),
            format!("{}{others}", words(&self.approvers)),
            self.reviewed_by.clone().unwrap_or_default(),
            cut(&self.reason, TEXT_SHOWN_MAX),
        ]
    }
}
