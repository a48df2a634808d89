//! `PolicyService`: which policy is in force.

use proto::types::{NewPolicy, PolicyFiles, page_limit};
use proto::wire::policy as wire;
use proto::wire::policy::policy_service_server::PolicyService;
use tonic::{Request, Response, Status};

use super::{Gate, admitted, invalid};
use crate::clock;

/// Answers for policies.
#[derive(Clone, Debug)]
pub(crate) struct Policies(pub(crate) Gate);

#[tonic::async_trait]
impl PolicyService for Policies {
    async fn plan_policy(
        &self,
        request: Request<wire::PlanPolicyRequest>,
    ) -> Result<Response<wire::PlanPolicyResponse>, Status> {
        let caller = admitted(&request)?;
        let files: PolicyFiles = request.into_inner().files.try_into().map_err(invalid)?;
        match self.0.store.plan_policy(files, clock::now()).await {
            Ok(plan) => Ok(Response::new(wire::PlanPolicyResponse { plan: Some(plan.into()) })),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn apply_policy(
        &self,
        request: Request<wire::ApplyPolicyRequest>,
    ) -> Result<Response<wire::ApplyPolicyResponse>, Status> {
        let caller = admitted(&request)?;
        let new: NewPolicy = request.into_inner().try_into().map_err(invalid)?;
        match self.0.store.apply_policy(new, &caller.subject()?, clock::now()).await {
            Ok((version, plan)) => Ok(Response::new(wire::ApplyPolicyResponse {
                version: Some(version.into()),
                plan: Some(plan.into()),
            })),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn list_policies(
        &self,
        request: Request<wire::ListPoliciesRequest>,
    ) -> Result<Response<wire::ListPoliciesResponse>, Status> {
        let caller = admitted(&request)?;
        let limit = page_limit(request.into_inner().limit).map_err(invalid)?;
        match self.0.store.policies(limit).await {
            Ok(versions) => {
                let versions = versions.into_iter().map(Into::into).collect();
                Ok(Response::new(wire::ListPoliciesResponse { versions }))
            }
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn get_policy(
        &self,
        request: Request<wire::GetPolicyRequest>,
    ) -> Result<Response<wire::GetPolicyResponse>, Status> {
        let caller = admitted(&request)?;
        let version = Some(request.into_inner().version).filter(|version| *version != 0);
        match self.0.store.policy(version).await {
            Ok((version, files)) => Ok(Response::new(wire::GetPolicyResponse {
                version: Some(version.into()),
                files: files.into(),
            })),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }
}
