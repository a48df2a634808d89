//! The life of a request: pending, then approved or denied, and nothing after that.
//!
//! Owns: who may decide, and that there is one decision. Must not know: callers' roles, storage.

use proto::types::{Request, RequestId, RequestState, SubjectId};

use super::Refusal;

/// A request that waits for its decision. Deciding consumes it: there is no second decision.
#[derive(Debug)]
pub struct Pending<'a> {
    request: &'a Request,
}

/// The one decision about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// Which request.
    pub request: RequestId,
    /// `Approved` or `Denied`, never `Pending`.
    pub state: RequestState,
    /// Who decided.
    pub by: SubjectId,
}

impl<'a> Pending<'a> {
    /// The request, if nobody has decided yet.
    pub fn of(request: &'a Request) -> Result<Self, Refusal> {
        match &request.decided {
            None => Ok(Self { request }),
            Some((by, at)) => Err(Refusal::AlreadyDecided {
                request: request.id,
                state: request.state,
                by: by.clone(),
                at: *at,
            }),
        }
    }

    /// Yes.
    pub fn approve(self, approver: &SubjectId) -> Result<Decided, Refusal> {
        self.decide(approver, RequestState::Approved)
    }

    /// No.
    pub fn deny(self, approver: &SubjectId) -> Result<Decided, Refusal> {
        self.decide(approver, RequestState::Denied)
    }

    fn decide(self, approver: &SubjectId, state: RequestState) -> Result<Decided, Refusal> {
        let request = self.request.id;
        let refuse = |tie| Err(Refusal::OwnRequest { approver: approver.clone(), request, tie });
        if *approver == self.request.requester {
            return refuse("it asked for it itself");
        }
        if *approver == self.request.subject {
            return refuse("the access is for itself");
        }
        Ok(Decided { request, state, by: approver.clone() })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proto::types::Timestamp;

    use super::*;

    fn request(state: RequestState) -> Request {
        let at = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
        Request {
            id: "01940000-0000-7000-8000-000000000001".parse().expect("valid"),
            state,
            resource: "db".parse().expect("valid"),
            subject: "user:alice".parse().expect("valid"),
            hosts: vec!["db-7".parse().expect("valid")],
            duration: Duration::from_secs(60),
            reason: "why not".parse().expect("valid"),
            requester: "user:rita".parse().expect("valid"),
            created: at,
            decided: (state != RequestState::Pending).then(|| ("user:dora".parse().expect("valid"), at)),
            comment: String::new(),
            grant: None,
            idle: None,
            while_running: None,
            run: None,
            action: None,
        }
    }

    #[test]
    fn transitions() {
        let mut table = String::new();
        for state in RequestState::ALL {
            for approver in ["user:rita", "user:alice", "user:dora"] {
                let approver: SubjectId = approver.parse().expect("valid");
                let request = request(state);
                for verb in ["approved", "denied"] {
                    let after = Pending::of(&request).and_then(|pending| match verb {
                        "approved" => pending.approve(&approver),
                        _ => pending.deny(&approver),
                    });
                    let after = match after {
                        Ok(decided) => decided.state.to_string(),
                        Err(refusal) => format!("refused: {refusal}"),
                    };
                    table += &format!("{state:8} {verb:8} by {approver:10} -> {after}\n");
                }
            }
        }
        insta::assert_snapshot!(table);
    }
}
