//! `ReportService`: what became of access.

use prost::Message;
use proto::types::{Page, Period, UseFilter, duration_from_wire, page_limit};
use proto::wire::report as wire;
use proto::wire::report::report_service_server::ReportService;
use tonic::{Request, Response, Status};

use super::{Gate, admitted, invalid};
use crate::clock;

/// How large the lines of one answer are at most, but for the first of them: half of what a message can be.
const ANSWER_MAX_BYTES: usize = proto::MESSAGE_MAX_BYTES / 2;

/// Answers with reports.
#[derive(Clone, Debug)]
pub(crate) struct Reports(pub(crate) Gate);

#[tonic::async_trait]
impl ReportService for Reports {
    async fn list_grant_uses(
        &self,
        request: Request<wire::ListGrantUsesRequest>,
    ) -> Result<Response<wire::ListGrantUsesResponse>, Status> {
        let caller = admitted(&request)?;
        let filter: UseFilter = request.into_inner().try_into().map_err(invalid)?;
        match self.0.store.grant_uses(&filter, clock::now()).await {
            Ok((grants, next)) => {
                let grants = grants.into_iter().map(wire::GrantUse::from).collect();
                let next = next.map(|grant| grant.to_string()).unwrap_or_default();
                let (grants, next) = fitting(grants, next, |grant| grant.grant.clone());
                Ok(Response::new(wire::ListGrantUsesResponse { grants, next }))
            }
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn suggest_roles(
        &self,
        request: Request<wire::SuggestRolesRequest>,
    ) -> Result<Response<wire::SuggestRolesResponse>, Status> {
        let caller = admitted(&request)?;
        let period: Period = request.into_inner().try_into().map_err(invalid)?;
        match self.0.store.role_uses(period, clock::now()).await {
            Ok((roles, more)) => {
                let roles = roles.into_iter().map(Into::into).collect();
                let (roles, next) = fitting(roles, String::new(), |role: &wire::RoleUse| role.role.clone());
                Ok(Response::new(wire::SuggestRolesResponse { roles, more: more || !next.is_empty() }))
            }
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn list_waiting(
        &self,
        request: Request<wire::ListWaitingRequest>,
    ) -> Result<Response<wire::ListWaitingResponse>, Status> {
        let caller = admitted(&request)?;
        let wire::ListWaitingRequest { longer_than, limit } = request.into_inner();
        let limit = page_limit(limit).map_err(invalid)?;
        let longer_than = longer_than.map(|it| duration_from_wire("longer_than", Some(it))).transpose();
        let longer_than = longer_than.map_err(invalid)?.unwrap_or_default();
        match self.0.store.waiting(longer_than, limit, clock::now()).await {
            Ok(requests) => {
                let requests = requests.into_iter().map(Into::into).collect();
                Ok(Response::new(wire::ListWaitingResponse { requests }))
            }
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn review_access(
        &self,
        request: Request<wire::ReviewAccessRequest>,
    ) -> Result<Response<wire::ReviewAccessResponse>, Status> {
        let caller = admitted(&request)?;
        let (period, page): (Period, Page) = request.into_inner().try_into().map_err(invalid)?;
        match self.0.store.access_review(period, page, clock::now()).await {
            Ok((grants, next)) => {
                let grants: Vec<wire::ReviewedAccess> = grants.into_iter().map(Into::into).collect();
                let next = next.map(|grant| grant.to_string()).unwrap_or_default();
                let id = |access: &wire::ReviewedAccess| {
                    access.r#use.as_ref().map(|usage| usage.grant.clone()).unwrap_or_default()
                };
                let (grants, next) = fitting(grants, next, id);
                Ok(Response::new(wire::ReviewAccessResponse { grants, next }))
            }
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }
}

/// As many lines as fit into an answer, at least one, and behind which there are more.
fn fitting<T: Message>(mut lines: Vec<T>, next: String, id: impl Fn(&T) -> String) -> (Vec<T>, String) {
    let mut bytes = 0;
    let fits = |line: &&T| {
        bytes += line.encoded_len();
        bytes <= ANSWER_MAX_BYTES
    };
    let count = lines.iter().take_while(fits).count().max(1);
    if count >= lines.len() {
        return (lines, next);
    }
    lines.truncate(count);
    let next = lines.last().map(id).unwrap_or_default();
    (lines, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_bounded() {
        let line = |size: usize| wire::GrantUse { grant: "x".repeat(size), ..wire::GrantUse::default() };
        let fit = |sizes: &[usize]| {
            let lines = sizes.iter().map(|size| line(*size)).collect();
            let (lines, next) = fitting(lines, "last".to_owned(), |line| line.grant.len().to_string());
            (lines.len(), next)
        };
        assert_eq!(fit(&[]), (0, "last".to_owned()));
        assert_eq!(fit(&[1, 2, 3]), (3, "last".to_owned()));
        assert_eq!(fit(&[1, 2, ANSWER_MAX_BYTES]), (2, "2".to_owned()));
        assert_eq!(fit(&[ANSWER_MAX_BYTES, 1]), (1, ANSWER_MAX_BYTES.to_string()));
    }
}
