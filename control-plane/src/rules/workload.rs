//! What a workload's token says → which subject it is, or which node of a cluster it runs on, or why neither.
//!
//! Owns: every rule about the claims of workloads. Must not know: how a token came, whose signature it has, who is in the
//! directory.
//!
//! Invariants: a claim counts only if it is equal to what an operator wrote, whole and of the same type: there are no patterns.
//! A token that could be two subjects is none. What other entries want is never told.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::time::Duration;

use proto::status::ErrorKind;
use proto::types::{HostName, Invalid, SubjectId, Timestamp};
use serde_json::{Map, Value};
use spiffe::SpiffeId;

use super::claims::{ClaimsError, account, check_issuer, check_times, malformed, shown, texts};

/// How old the token of an agent's pod may be: Kubernetes replaces it at four fifths of its life, which is an hour unless told
/// otherwise. One that leaks later is of no use.
pub const NODE_TOKEN_AGE_MAX: Duration = Duration::from_secs(60 * 60);

/// Where a claim is: `NAME`, or `/OUTER/INNER` for what lies within others (a JSON pointer, RFC 6901: `~1` stands for `/` and `~0`
/// for `~`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClaimPath {
    written: String,
    names: Vec<String>,
}

impl ClaimPath {
    /// As an operator wrote it.
    pub fn new(written: &str) -> Self {
        let names = match written.strip_prefix('/') {
            None => vec![written.to_owned()],
            Some(inner) => inner.split('/').map(|name| name.replace("~1", "/").replace("~0", "~")).collect(),
        };
        Self { written: written.to_owned(), names }
    }

    /// The claim's name, or the outermost one's.
    pub fn outermost(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    fn find<'a>(&self, claims: &'a Map<String, Value>) -> Option<&'a Value> {
        let (last, outer) = self.names.split_last()?;
        let within = outer.iter().try_fold(claims, |claims, name| claims.get(name)?.as_object())?;
        within.get(last)
    }
}

impl Display for ClaimPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.written)
    }
}

/// What a claim has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// This text, whole.
    Text(String),
    /// This number.
    Number(i64),
    /// True or false.
    Flag(bool),
}

impl Wanted {
    /// A number is no text, even if it looks like it.
    fn is(&self, found: &Value) -> bool {
        match self {
            Self::Text(text) => found.as_str() == Some(text),
            Self::Number(number) => found.as_i64() == Some(*number),
            Self::Flag(flag) => found.as_bool() == Some(*flag),
        }
    }
}

/// Who a workload is whose token has all of these claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The subject.
    pub subject: SubjectId,
    /// Never empty.
    pub claims: BTreeMap<ClaimPath, Wanted>,
}

/// What an operator expects of the tokens of one issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Exactly as it stands in tokens.
    pub issuer: String,
    /// For whom tokens are; for nobody else.
    pub audience: String,
    /// How old a token may be, whatever it says itself.
    pub age_max: Duration,
    /// Who its workloads are; who is none of them is refused.
    pub bindings: Vec<Binding>,
}

/// What a workload's token proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// Who it is.
    pub subject: SubjectId,
    /// What the issuer calls it (`sub`).
    pub account: String,
    /// From when on the token is refused for its age.
    pub usable_until: Timestamp,
}

/// What an operator expects of the tokens of one cluster's agents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedAgent {
    /// The cluster's issuer, exactly as it stands in tokens.
    pub issuer: String,
    /// For whom tokens are; for nobody else.
    pub audience: String,
    /// The namespace of the agents' service account.
    pub namespace: String,
    /// The service account's name.
    pub service_account: String,
}

/// What the token of an agent's pod proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenNode {
    /// The node, which is the host.
    pub host: HostName,
    /// The pod; empty: the token does not say.
    pub pod: String,
    /// From when on the token is refused for its age.
    pub usable_until: Timestamp,
}

/// Why a workload's token is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say it")]
pub enum WorkloadError {
    #[error(transparent)]
    Claims(#[from] ClaimsError),
    #[error("the token is for several, `{0}`: one that is for others too could come from any of them")]
    SeveralAudiences(String),
    #[error("no subject is bound to the claims of the token: {0}")]
    NotBound(String),
    #[error("no subject is bound to `{0}`")]
    IdNotBound(SpiffeId),
    #[error("the connection has shown no certificate of a workload")]
    NoCertificate,
    #[error("the claims of the token are bound to more than one subject")]
    Ambiguous,
    #[error("the token is of `{found}`, not of service account `{expected}`")]
    OtherServiceAccount { found: String, expected: String },
    #[error("the token names no node: claim `/kubernetes.io/node/name` is missing")]
    NoNode,
    #[error("the token is of node `{node}`, not of host `{asking}`")]
    OtherNode { node: String, asking: HostName },
    #[error("node `{node}` cannot be a host: the name {problem}")]
    UnusableNode { node: String, problem: String },
}

impl WorkloadError {
    /// As one word, for the record.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Claims(error) => error.reason(),
            Self::SeveralAudiences(_) => "wrong_audience",
            Self::NotBound(_) | Self::IdNotBound(_) => "not_bound",
            Self::NoCertificate => "no_certificate",
            Self::Ambiguous => "ambiguous",
            Self::OtherServiceAccount { .. } => "other_service_account",
            Self::NoNode => "no_node",
            Self::OtherNode { .. } => "other_node",
            Self::UnusableNode { .. } => "unusable_node",
        }
    }

    /// What sort of error it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Claims(_) | Self::SeveralAudiences(_) | Self::NoNode | Self::NoCertificate => {
                ErrorKind::Unauthenticated
            }
            Self::NotBound(_)
            | Self::IdNotBound(_)
            | Self::Ambiguous
            | Self::OtherServiceAccount { .. }
            | Self::OtherNode { .. }
            | Self::UnusableNode { .. } => ErrorKind::PermissionDenied,
        }
    }

    /// What to do next; empty: nothing that would help is known.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Claims(ClaimsError::Expired | ClaimsError::TooOld { .. }) => {
                "get another token where this runs: a job's counts for a part of the job only"
            }
            Self::Claims(ClaimsError::NotYetValid) => {
                "compare the clocks of the control plane and the issuer"
            }
            Self::Claims(ClaimsError::WrongAudience { .. }) | Self::SeveralAudiences(_) => {
                "ask for a token whose only audience is the one that the control plane's configuration names"
            }
            Self::Claims(_) => "",
            Self::NotBound(_) => {
                "an operator compares the token's claims with `[[workload_issuer.subject]]` in the control plane's configuration"
            }
            Self::IdNotBound(_) => {
                "an operator binds it with `[[spiffe_trust_domain.subject]]` in the control plane's configuration"
            }
            Self::NoCertificate => {
                "call the control plane at an address, with the X.509-SVID of a trust domain that its configuration names"
            }
            Self::Ambiguous => {
                "an operator makes the entries of `[[workload_issuer.subject]]` exclude each other"
            }
            Self::OtherServiceAccount { .. } => {
                "an operator compares `service_account` in the control plane's configuration with the agent's pods"
            }
            Self::NoNode => "Kubernetes puts it there from 1.30 on; before, use a join token",
            Self::OtherNode { .. } => {
                "leave `host` out of the agent's configuration, or write the node's name"
            }
            Self::UnusableNode { .. } => "use a join token, with another name",
        }
    }
}

/// Checks the claims of a workload's token whose signature is right.
pub fn check(
    claims: &Map<String, Value>,
    expected: &Expected,
    now: Timestamp,
) -> Result<Proven, WorkloadError> {
    check_issuer(claims, &expected.issuer)?;
    check_audience(claims, &expected.audience)?;
    let usable_until = check_times(claims, expected.age_max, now)?;
    let account = account(claims)?.to_owned();
    let subject = bound(claims, &expected.bindings)?.clone();
    Ok(Proven { subject, account, usable_until })
}

/// Which subject a workload is whose certificate names this id, and was checked. `now` tells that it still counts.
pub fn check_id(
    id: &SpiffeId,
    not_after: Timestamp,
    subjects: &BTreeMap<SpiffeId, SubjectId>,
    now: Timestamp,
) -> Result<Proven, WorkloadError> {
    if not_after <= now {
        // A connection outlives the certificate that it was opened with.
        return Err(ClaimsError::Expired.into());
    }
    let subject = subjects.get(id).ok_or_else(|| WorkloadError::IdNotBound(id.clone()))?;
    Ok(Proven { subject: subject.clone(), account: id.to_string(), usable_until: not_after })
}

/// Checks the claims of the token of an agent's pod whose signature is right, and that it is of the host that asks.
pub fn check_agent(
    claims: &Map<String, Value>,
    expected: &ExpectedAgent,
    asking: &HostName,
    now: Timestamp,
) -> Result<ProvenNode, WorkloadError> {
    check_issuer(claims, &expected.issuer)?;
    check_audience(claims, &expected.audience)?;
    let usable_until = check_times(claims, NODE_TOKEN_AGE_MAX, now)?;
    check_service_account(claims, expected)?;
    let node = kubernetes(claims, "/kubernetes.io/node/name")?.ok_or(WorkloadError::NoNode)?;
    let host: HostName = node.parse().map_err(|error: Invalid| WorkloadError::UnusableNode {
        node: shown(node),
        problem: error.problem,
    })?;
    if host != *asking {
        return Err(WorkloadError::OtherNode { node: node.to_owned(), asking: asking.clone() });
    }
    let pod = kubernetes(claims, "/kubernetes.io/pod/name")?.map(shown).unwrap_or_default();
    Ok(ProvenNode { host, pod, usable_until })
}

/// The audience is ours alone: another one that the token is for too could show it here.
fn check_audience(claims: &Map<String, Value>, expected: &str) -> Result<(), WorkloadError> {
    let audience = texts(claims, "aud")?.ok_or_else(|| malformed("aud", "is missing"))?;
    let found = shown(&audience.join(", "));
    match audience[..] {
        [one] if one == expected => Ok(()),
        _ if audience.contains(&expected) => Err(WorkloadError::SeveralAudiences(found)),
        _ => Err(ClaimsError::WrongAudience { found, expected: expected.to_owned() }.into()),
    }
}

/// The one subject of all entries of which every claim is there.
fn bound<'a>(claims: &Map<String, Value>, bindings: &'a [Binding]) -> Result<&'a SubjectId, WorkloadError> {
    let mut found = bindings.iter().filter(|binding| lacking(claims, binding).next().is_none());
    let Some(Binding { subject, .. }) = found.next() else {
        return Err(WorkloadError::NotBound(nearest(claims, bindings)));
    };
    match found.all(|other| other.subject == *subject) {
        true => Ok(subject),
        false => Err(WorkloadError::Ambiguous),
    }
}

/// The claims that keep a token from being the subject of an entry.
fn lacking<'a>(claims: &Map<String, Value>, binding: &'a Binding) -> impl Iterator<Item = &'a ClaimPath> {
    let is_other =
        |path: &ClaimPath, wanted: &Wanted| !path.find(claims).is_some_and(|found| wanted.is(found));
    binding.claims.iter().filter(move |(path, wanted)| is_other(path, wanted)).map(|(path, _)| path)
}

/// For people: what keeps the token from the entry that it fits best, by the names of the claims. Neither what they should be nor
/// that there are other entries is told, and nothing to somebody of whom not one claim fits.
fn nearest(claims: &Map<String, Value>, bindings: &[Binding]) -> String {
    let fit = |binding: &&Binding| binding.claims.len() - lacking(claims, binding).count();
    // Of several that fit alike, the first: backwards, as the last of the greatest is taken.
    let Some(best) = bindings.iter().rev().max_by_key(fit).filter(|best| fit(best) > 0) else {
        return "none of them is known here".to_owned();
    };
    let problems = lacking(claims, best).map(|path| match path.find(claims) {
        None => format!("`{path}` is missing"),
        Some(_) => format!("`{path}` is another one"),
    });
    problems.collect::<Vec<_>>().join(", ")
}

/// The account's name says both; what the cluster adds must not say anything else.
fn check_service_account(claims: &Map<String, Value>, expected: &ExpectedAgent) -> Result<(), WorkloadError> {
    let ExpectedAgent { namespace, service_account, .. } = expected;
    let account = account(claims)?;
    let is_it = account == format!("system:serviceaccount:{namespace}:{service_account}")
        && kubernetes(claims, "/kubernetes.io/namespace")? == Some(namespace)
        && kubernetes(claims, "/kubernetes.io/serviceaccount/name")? == Some(service_account);
    match is_it {
        true => Ok(()),
        false => Err(WorkloadError::OtherServiceAccount {
            found: shown(account),
            expected: format!("{namespace}/{service_account}"),
        }),
    }
}

fn kubernetes<'a>(claims: &'a Map<String, Value>, path: &str) -> Result<Option<&'a str>, WorkloadError> {
    match ClaimPath::new(path).find(claims) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(malformed(path, "is not a text").into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW_S: i64 = 1_795_000_000;

    fn now() -> Timestamp {
        Timestamp::from_unix_ms(NOW_S * 1000).expect("in range")
    }

    fn binding(subject: &str, claims: &[(&str, Wanted)]) -> Binding {
        let claims = claims.iter().map(|(path, wanted)| (ClaimPath::new(path), wanted.clone()));
        Binding { subject: subject.parse().expect("valid"), claims: claims.collect() }
    }

    fn text(text: &str) -> Wanted {
        Wanted::Text(text.to_owned())
    }

    fn expected() -> Expected {
        Expected {
            issuer: "https://token.actions.githubusercontent.com".to_owned(),
            audience: "portcullis".to_owned(),
            age_max: Duration::from_secs(3600),
            bindings: vec![
                binding(
                    "workload:ci/deploy",
                    &[("repository_id", text("74")), ("environment", text("production"))],
                ),
                binding(
                    "workload:ci/test",
                    &[("repository_id", text("74")), ("ref", text("refs/heads/main"))],
                ),
                binding(
                    "workload:numbers",
                    &[("project_id", Wanted::Number(7)), ("protected", Wanted::Flag(true))],
                ),
                binding("workload:pod", &[("/kubernetes.io/serviceaccount/uid", text("u1"))]),
                binding("workload:whole", &[("sub", text("repo:acme/app:ref:refs/heads/main"))]),
            ],
        }
    }

    /// A token as GitHub shapes it, with a change; null takes a claim out.
    fn changed(mut claims: Value, change: &Value) -> Map<String, Value> {
        let all = claims.as_object_mut().expect("an object");
        for (claim, value) in change.as_object().expect("an object") {
            match value {
                Value::Null => all.remove(claim),
                value => all.insert(claim.clone(), value.clone()),
            };
        }
        all.clone()
    }

    fn checked(change: &Value) -> Result<Proven, WorkloadError> {
        let claims = json!({
            "iss": "https://token.actions.githubusercontent.com", "aud": "portcullis",
            "sub": "repo:acme/app:environment:production", "iat": NOW_S - 5, "nbf": NOW_S - 600, "exp": NOW_S + 295,
            "repository": "acme/app", "repository_id": "74", "environment": "production", "ref": "refs/heads/release",
        });
        check(&changed(claims, change), &expected(), now())
    }

    #[track_caller]
    fn taken(subject: &str, change: Value) {
        let proven = checked(&change).expect("is taken");
        assert_eq!(proven.subject.as_str(), subject);
    }

    #[track_caller]
    fn refused(reason: &str, words: &str, change: Value) {
        let error = checked(&change).expect_err("is refused");
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }

    #[test]
    fn claims_make_a_subject() {
        taken("workload:ci/deploy", json!({}));
        taken("workload:ci/test", json!({"environment": null, "ref": "refs/heads/main"}));
        taken("workload:numbers", json!({"repository_id": null, "project_id": 7, "protected": true}));
        taken(
            "workload:pod",
            json!({"repository_id": null, "kubernetes.io": {"serviceaccount": {"uid": "u1"}}}),
        );
        taken("workload:whole", json!({"repository_id": null, "sub": "repo:acme/app:ref:refs/heads/main"}));
    }

    #[test]
    fn only_what_is_equal_counts() {
        refused("not_bound", "`environment` is another one", json!({"environment": "production2"}));
        refused("not_bound", "`environment` is another one", json!({"environment": "Production"}));
        refused("not_bound", "`environment` is another one", json!({"environment": ["production"]}));
        refused("not_bound", "", json!({"environment": null}));
        refused("not_bound", "none of them is known here", json!({"repository_id": 74, "environment": null}));
        let number = |number: Value| json!({"repository_id": null, "environment": null, "project_id": number, "protected": true});
        refused("not_bound", "`project_id` is another one", number(json!("7")));
        refused("not_bound", "`project_id` is another one", number(json!(7.5)));
        refused("not_bound", "`project_id` is missing", number(Value::Null));
        // A name that begins, or goes on, like the one that is bound.
        let sub = |sub: &str| json!({"repository_id": null, "environment": null, "sub": sub});
        for other in [
            "repo:acme/app:ref:refs/heads/main2",
            "repo:acme/app:ref:refs/heads",
            "xrepo:acme/app:ref:refs/heads/main",
        ] {
            refused("not_bound", "none of them is known here", sub(other));
        }
        // What lies within others is no claim with that name.
        let flat =
            json!({"repository_id": null, "environment": null, "/kubernetes.io/serviceaccount/uid": "u1"});
        refused("not_bound", "none of them is known here", flat);
    }

    #[test]
    fn a_token_that_is_two_is_none() {
        refused("ambiguous", "more than one subject", json!({"ref": "refs/heads/main"}));
        let twice = Expected {
            bindings: vec![
                binding("workload:a", &[("x", text("1"))]),
                binding("workload:a", &[("y", text("2"))]),
            ],
            ..expected()
        };
        let claims = json!({"iss": twice.issuer, "aud": "portcullis", "sub": "s", "iat": NOW_S, "exp": NOW_S + 60, "x": "1", "y": "2"});
        let proven = check(claims.as_object().expect("an object"), &twice, now()).expect("one subject");
        assert_eq!(proven.subject.as_str(), "workload:a");
    }

    #[test]
    fn it_is_for_us_alone_and_for_now() {
        refused("wrong_issuer", "`https://evil.example`", json!({"iss": "https://evil.example"}));
        refused("wrong_audience", "for `sts.amazonaws.com`", json!({"aud": "sts.amazonaws.com"}));
        refused("wrong_audience", "for several", json!({"aud": ["portcullis", "vault"]}));
        refused("wrong_audience", "", json!({"aud": []}));
        refused("malformed", "`aud` is missing", json!({"aud": null}));
        refused("expired", "", json!({"exp": NOW_S - 60}));
        refused("too_old", "older than 1h", json!({"iat": NOW_S - 3660, "exp": NOW_S + 3600}));
        refused("malformed", "`exp` is missing", json!({"exp": null}));
        refused("malformed", "`sub` is missing", json!({"sub": null}));
        taken("workload:ci/deploy", json!({"aud": ["portcullis"], "iat": NOW_S - 3659, "exp": NOW_S + 3600}));
    }

    #[test]
    fn paths_are_json_pointers() {
        let claims = json!({"a/b": {"c~d": 1}, "x": [1], "": {"": 2}});
        let find = |path: &str| ClaimPath::new(path).find(claims.as_object().expect("an object")).cloned();
        assert_eq!(find("/a~1b/c~0d"), Some(json!(1)));
        assert_eq!(find("//"), Some(json!(2)));
        for nowhere in ["a/b/c~d", "/a/b", "/x/0", "/x/0/1", ""] {
            assert_ne!(find(nowhere), Some(json!(1)), "{nowhere}");
        }
    }

    fn agent(change: &Value) -> Result<ProvenNode, WorkloadError> {
        let expected = ExpectedAgent {
            issuer: "https://kubernetes.default.svc".to_owned(),
            audience: "portcullis".to_owned(),
            namespace: "portcullis".to_owned(),
            service_account: "portcullis-agent".to_owned(),
        };
        let claims = json!({
            "iss": expected.issuer, "aud": ["portcullis"], "iat": NOW_S, "nbf": NOW_S, "exp": NOW_S + 600,
            "sub": "system:serviceaccount:portcullis:portcullis-agent",
            "kubernetes.io": within(json!({})),
        });
        check_agent(&changed(claims, change), &expected, &"node-1".parse().expect("valid"), now())
    }

    /// The cluster's own claims, with a change.
    fn within(change: Value) -> Value {
        let claims = json!({
            "namespace": "portcullis", "node": {"name": "node-1", "uid": "n1"},
            "pod": {"name": "portcullis-agent-x7", "uid": "p1"},
            "serviceaccount": {"name": "portcullis-agent", "uid": "s1"},
        });
        changed(claims, &change).into()
    }

    #[track_caller]
    fn no_agent(reason: &str, change: Value) {
        let error = agent(&change).expect_err("is refused");
        assert_eq!(error.reason(), reason, "{error}");
    }

    #[test]
    fn an_agents_token_names_its_node() {
        let proven = agent(&json!({})).expect("is taken");
        assert_eq!((proven.host.as_str(), proven.pod.as_str()), ("node-1", "portcullis-agent-x7"));
        let inner = |change: Value| json!({"kubernetes.io": within(change)});
        no_agent("no_node", inner(json!({"node": null})));
        no_agent("malformed", inner(json!({"node": {"name": 1}})));
        no_agent("other_node", inner(json!({"node": {"name": "node-2"}})));
        no_agent("unusable_node", inner(json!({"node": {"name": "Node 1"}})));
        no_agent("other_service_account", inner(json!({"serviceaccount": {"name": "default"}})));
        no_agent("other_service_account", inner(json!({"namespace": "default"})));
        no_agent("other_service_account", json!({"sub": "system:serviceaccount:default:portcullis-agent"}));
        no_agent("other_service_account", json!({"kubernetes.io": null}));
        no_agent("wrong_issuer", json!({"iss": "https://other.example"}));
        no_agent("wrong_audience", json!({"aud": ["https://kubernetes.default.svc"]}));
        no_agent("wrong_audience", json!({"aud": ["portcullis", "https://kubernetes.default.svc"]}));
        no_agent("expired", json!({"exp": NOW_S - 60}));
        no_agent("malformed", json!({"exp": null}));
        no_agent("too_old", json!({"iat": NOW_S - 3660, "exp": NOW_S + 86_400}));
    }

    proptest::proptest! {
        #[test]
        fn no_claims_panic(claim in "(aud|exp|sub|repository_id|kubernetes.io)", value in "[-0-9\"a-z{}\\[\\],:.e]{0,12}", path in "[/~01a]{0,8}") {
            if let Ok(value) = serde_json::from_str::<Value>(&value) {
                let change = json!({ claim: value });
                let _ = checked(&change);
                let _ = agent(&change);
                let _ = ClaimPath::new(&path).find(change.as_object().expect("an object"));
            }
        }
    }
}
