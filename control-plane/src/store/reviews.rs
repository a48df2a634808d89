//! Access by roles for emergencies, and who has looked at it afterwards.

use std::collections::BTreeSet;

use proto::types::{EventKind, GrantId, Reason, Request, RequestId, Review, SubjectId, Timestamp};

use super::grants::grant;
use super::requests::request;
use super::sql::{self, Query, Rows, Transaction};
use super::tx::{Tx, caused_by};
use super::{Store, StoreError, Whose, decode};
use crate::rules::actor::{Acting, Actor};
use crate::rules::{Refusal, policy, review as rules};

/// How many open reviews are looked through for somebody who may do some of them.
const LOOKED_THROUGH_MAX: u32 = 1000;

impl Store {
    /// Newest first; `all`: also those that were done. Somebody's own are those that they may do, too.
    pub async fn reviews(&self, all: bool, whose: &Whose, limit: u32) -> Result<Vec<Review>, StoreError> {
        let mut sql = self.read().await?;
        let mut query = sql::query_as(REVIEWS);
        query.push(if all { " WHERE true" } else { " WHERE reviews.reviewed_ms IS NULL" });
        let looked_through = match whose {
            Whose::Everybodys => limit,
            Whose::Of(_) => limit.max(LOOKED_THROUGH_MAX),
        };
        query.push(" ORDER BY reviews.grant_id DESC LIMIT ").push_bind(looked_through);
        let mut found = Vec::new();
        for (review, may) in self.read_reviews(&mut sql, query).await? {
            let concerns = match whose {
                Whose::Everybodys => true,
                Whose::Of(who) => {
                    [&review.subject, &review.requester].contains(&who)
                        || may.contains(who)
                        || review.reviewed.as_ref().is_some_and(|(by, ..)| by == who)
                }
            };
            if concerns {
                found.push(review);
            }
            if found.len() >= limit as usize {
                break;
            }
        }
        Ok(found)
    }

    /// Somebody has looked at it.
    pub async fn review(
        &self,
        id: GrantId,
        comment: &Reason,
        by: &Acting,
        now: Timestamp,
    ) -> Result<Review, StoreError> {
        let mut tx = self.write().await?;
        let (before, may) = self.review_of(tx.sql(), id).await?;
        rules::permitted(&before, &may, &by.id)?;
        sql::query(
            "UPDATE reviews SET reviewed_ms = ?, comment = ?,
             reviewer = (SELECT number FROM subjects WHERE id = ?) WHERE grant_id = ?",
        )
        .bind(now.unix_ms())
        .bind(comment.as_str())
        .bind(by.id.as_str())
        .bind(id.to_string())
        .execute(tx.sql())
        .await
        .map_err(StoreError::sql("note a review"))?;
        let reviewed = grant(tx.sql(), id).await?;
        tx.record_grant(EventKind::BreakGlassReviewed, &reviewed, now, |event| {
            caused_by(event, &by.clone().into());
            event.comment = comment.to_string();
        });
        let (after, _) = self.review_of(tx.sql(), id).await?;
        tx.commit().await?;
        Ok(after)
    }

    /// Somebody has access without the yes of those who would have had to say it: they are to look at it.
    pub(super) async fn open_review(
        &self,
        tx: &mut Tx,
        id: RequestId,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let used = request(tx.sql(), id).await?;
        let made = grant(tx.sql(), used.grant.ok_or(Refusal::UnknownRequest(id))?).await?;
        sql::query("INSERT INTO reviews (grant_id, used_ms) VALUES (?, ?)")
            .bind(made.id.to_string())
            .bind(now.unix_ms())
            .execute(tx.sql())
            .await
            .map_err(StoreError::sql("open a review"))?;
        let skipped = self.skipped(tx.sql(), &used).await?;
        let by_what =
            used.judged.as_ref().map(|(version, role)| format!("role {role} (policy version {version})"));
        tx.record_grant(EventKind::BreakGlassUsed, &made, now, |event| {
            caused_by(event, actor);
            let by_what = by_what.unwrap_or_default();
            event.comment = format!("{by_what}: {}; not asked: {}", used.reason, rules::told(skipped));
        });
        Ok(())
    }

    /// Who would have had to approve a request, by the policy that it was judged by. Of a version that cannot be read any more: nobody.
    async fn skipped(
        &self,
        sql: &mut Transaction,
        used: &Request,
    ) -> Result<BTreeSet<SubjectId>, StoreError> {
        let Some((version, role)) = &used.judged else { return Ok(BTreeSet::new()) };
        let steps = match self.numbered(sql, *version).await {
            Ok(numbered) => policy::steps(&numbered.policy, role, &used.subject, &used.requester),
            Err(StoreError::Refused(Refusal::BadPolicy { .. })) => None,
            Err(error) => return Err(error),
        };
        Ok(rules::skipped(&steps.unwrap_or_default(), used))
    }

    /// Those, and who has to approve the role by the policy that is in force now: people come and go.
    async fn reviewers(
        &self,
        sql: &mut Transaction,
        used: &Request,
    ) -> Result<BTreeSet<SubjectId>, StoreError> {
        let mut may = self.skipped(sql, used).await?;
        if let (Some((_, role)), Some(in_force)) = (&used.judged, self.in_force(sql).await?) {
            let steps = policy::steps(&in_force.policy, role, &used.subject, &used.requester);
            may.extend(rules::skipped(&steps.unwrap_or_default(), used));
        }
        Ok(may)
    }

    async fn review_of(
        &self,
        sql: &mut Transaction,
        id: GrantId,
    ) -> Result<(Review, BTreeSet<SubjectId>), StoreError> {
        // What is no grant at all is told as such.
        grant(sql, id).await?;
        let mut query = sql::query_as(REVIEWS);
        query.push(" WHERE reviews.grant_id = ").push_bind(id.to_string());
        let found = self.read_reviews(sql, query).await?.pop();
        Ok(found.ok_or(Refusal::NotBrokenGlass(id))?)
    }

    async fn read_reviews(
        &self,
        sql: &mut Transaction,
        query: Query<Rows<ReviewRow>>,
    ) -> Result<Vec<(Review, BTreeSet<SubjectId>)>, StoreError> {
        let rows: Vec<ReviewRow> =
            query.fetch_all(&mut *sql).await.map_err(StoreError::sql("read reviews"))?;
        let mut found = Vec::with_capacity(rows.len());
        for (id, of, used_ms, reviewed_ms, reviewer, comment) in rows {
            let used = request(sql, decode::text("request", &of)?).await?;
            let may = self.reviewers(sql, &used).await?;
            let (approvers, others) = rules::shown(may.clone());
            let reviewed = match (reviewed_ms, reviewer) {
                (Some(at), Some(by)) => {
                    Some((decode::text("reviewer", &by)?, decode::time("reviewed", at)?, comment))
                }
                _ => None,
            };
            let review = Review {
                grant: decode::text("grant", &id)?,
                request: used.id,
                subject: used.subject,
                requester: used.requester,
                resource: used.resource,
                judged: used.judged.ok_or(Refusal::UnknownRequest(used.id))?,
                reason: used.reason.to_string(),
                used: decode::time("used", used_ms)?,
                approvers,
                others,
                reviewed,
            };
            found.push((review, may));
        }
        Ok(found)
    }
}

const REVIEWS: &str = "
    SELECT reviews.grant_id, grants.request, reviews.used_ms, reviews.reviewed_ms, reviewers.id AS reviewer,
        reviews.comment
    FROM reviews
    JOIN grants ON grants.id = reviews.grant_id
    LEFT JOIN subjects AS reviewers ON reviewers.number = reviews.reviewer";

/// Grant, request, used, reviewed, by whom, comment.
type ReviewRow = (String, String, i64, Option<i64>, Option<String>, String);
