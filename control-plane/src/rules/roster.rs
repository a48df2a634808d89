//! Hosts: what may be claimed about each.
//!
//! Owns: how report, session and refusals become the state that people see. Must not know: streams, storage.
//!
//! Invariant: nothing is claimed of a host without a session, and no refused item is kept quiet.

use proto::types::{HostState, Report, ResourceName, SubjectId};

/// Something that a host's kernel could not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// It is not protected there.
    Resource(ResourceName, String),
    /// Its processes are nobody's there.
    Subject(SubjectId, String),
}

impl Missing {
    fn sentence(&self) -> String {
        match self {
            Self::Resource(name, error) => format!("resource {name} is not protected: {error}"),
            Self::Subject(id, error) => format!("subject {id} has no processes: {error}"),
        }
    }
}

/// What a connected agent's word is worth: its report, less what its kernel could not take.
pub fn claimed(report: &Report, missing: &[Missing]) -> Report {
    let state = match report.state {
        HostState::Enforcing if !missing.is_empty() => HostState::Degraded,
        state => state,
    };
    let detail = (!report.detail.is_empty()).then(|| report.detail.clone());
    let sentences: Vec<String> = detail.into_iter().chain(missing.iter().map(Missing::sentence)).collect();
    Report { state, detail: sentences.join("; ") }
}

/// How a host is shown. `disagreement`: in what its kernel was last found to hold something else than it should.
pub fn shown(
    is_connected: bool,
    report: Option<&Report>,
    missing: &[Missing],
    disagreement: Option<&str>,
) -> (HostState, String) {
    match (is_connected, report) {
        (true, Some(report)) => {
            let claimed = claimed(report, missing);
            match (disagreement, claimed.state) {
                (None, state) => (state, claimed.detail),
                (Some(problem), HostState::Enforcing) => (HostState::Degraded, problem.to_owned()),
                (Some(problem), state) => (state, format!("{}; {problem}", claimed.detail)),
            }
        }
        (_, None) => (HostState::Unreachable, "its agent has never connected".to_owned()),
        (false, Some(report)) => {
            let detail = format!("no agent is connected; it last reported {}", report.state);
            (HostState::Unreachable, detail)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(
        is_connected: bool,
        report: Option<(HostState, &str)>,
        is_missing: bool,
        expected: (HostState, &str),
    ) {
        let missing = match is_missing {
            true => vec![Missing::Resource("db".parse().expect("valid"), "map full".to_owned())],
            false => Vec::new(),
        };
        let report = report.map(|(state, detail)| Report { state, detail: detail.to_owned() });
        let (state, detail) = shown(is_connected, report.as_ref(), &missing, None);
        assert_eq!((state, detail.as_str()), expected);
    }

    #[test]
    fn nothing_is_claimed_without_a_session() {
        use HostState::{Degraded, Enforcing, NotEnforcing, Unreachable};
        let refused = "resource db is not protected: map full";
        check(true, Some((Enforcing, "")), false, (Enforcing, ""));
        check(true, Some((Enforcing, "")), true, (Degraded, refused));
        check(true, Some((Degraded, "no LSM")), true, (Degraded, &format!("no LSM; {refused}")));
        check(true, Some((NotEnforcing, "canary")), true, (NotEnforcing, &format!("canary; {refused}")));
        let gone = "no agent is connected; it last reported enforcing";
        check(false, Some((Enforcing, "")), true, (Unreachable, gone));
        check(false, None, false, (Unreachable, "its agent has never connected"));
    }

    #[test]
    fn a_kernel_that_holds_something_else_is_told() {
        let check = |state, detail: &str, expected: (HostState, &str)| {
            let report = Report { state, detail: detail.to_owned() };
            let (state, detail) = shown(true, Some(&report), &[], Some("2 pairs"));
            assert_eq!((state, detail.as_str()), expected);
        };
        check(HostState::Enforcing, "", (HostState::Degraded, "2 pairs"));
        check(HostState::NotEnforcing, "canary", (HostState::NotEnforcing, "canary; 2 pairs"));
    }
}
