//! Messages: bytes → wire message → checked type → wire message → the same checked type.

use std::fmt::Debug;

use prost::Message;
use proto::types::{
    Access, AccessFilter, Applied, AuditEvent, Delta, EndedGrant, Grant, GrantSet, Hello, Host, Identity,
    Join, NewApproval, NewPolicy, NewRequest, NewResource, NewSubject, PolicyPlan, PolicyVersion, Refused,
    Report, Request, Resource, ResourceChange, Subject, SubjectIdentity, Welcome,
};
use proto::wire;

use crate::choice;

/// In the order in which the first byte of an input counts them; a new one goes to the end, so that inputs keep their meaning.
const DECODERS: [fn(&[u8]); 30] = [
    checked::<wire::agent::Hello, Hello>,
    checked::<wire::agent::Welcome, Welcome>,
    checked::<wire::agent::GrantSet, GrantSet>,
    checked::<wire::agent::Delta, Delta>,
    checked::<wire::agent::Report, Report>,
    checked::<wire::agent::Applied, Applied>,
    checked::<wire::agent::Refused, Refused>,
    checked::<wire::agent::EndedGrant, EndedGrant>,
    checked::<wire::audit::AuditEvent, AuditEvent>,
    checked::<wire::access::CreateRequestRequest, NewRequest>,
    checked::<wire::access::Request, Request>,
    checked::<wire::access::Grant, Grant>,
    checked::<wire::access::Resource, Resource>,
    checked::<wire::access::Resource, NewResource>,
    checked::<wire::access::SetResourceRequest, ResourceChange>,
    checked::<wire::access::Subject, Subject>,
    checked::<wire::access::Subject, NewSubject>,
    checked::<wire::access::Host, Host>,
    checked::<wire::enrolment::JoinRequest, Join>,
    checked::<wire::enrolment::Identity, Identity>,
    checked::<wire::identity::Identity, SubjectIdentity>,
    decoded::<wire::agent::SessionRequest>,
    decoded::<wire::agent::SessionResponse>,
    decoded::<wire::identity::SignInRequest>,
    checked::<wire::access::ApproveRequestRequest, NewApproval>,
    checked::<wire::access::ListAccessRequest, AccessFilter>,
    checked::<wire::access::Access, Access>,
    checked::<wire::policy::ApplyPolicyRequest, NewPolicy>,
    checked::<wire::policy::PolicyVersion, PolicyVersion>,
    checked::<wire::policy::PolicyPlan, PolicyPlan>,
];

pub(crate) fn run(bytes: &[u8]) {
    if let Some((which, bytes)) = choice(bytes, DECODERS.len()) {
        DECODERS[which](bytes);
    }
}

fn checked<M, T>(bytes: &[u8])
where
    M: Message + Default + From<T>,
    T: TryFrom<M, Error = proto::types::Invalid> + Clone + PartialEq + Debug,
{
    let Ok(message) = M::decode(bytes) else { return };
    let Ok(value) = T::try_from(message) else { return };
    let written = M::from(value.clone()).encode_to_vec();
    let again = M::decode(&*written).map(T::try_from);
    match again {
        Ok(Ok(again)) => assert_eq!(again, value),
        Ok(Err(error)) => panic!("{value:?} is refused when it comes back: {error}"),
        Err(error) => panic!("{value:?} cannot be decoded when it comes back: {error}"),
    }
}

/// One that is looked at in parts.
fn decoded<M: Message + Default>(bytes: &[u8]) {
    let _ = M::decode(bytes);
}
