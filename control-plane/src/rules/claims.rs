//! What an ID token says → who signs in, with which role, and what conditions may judge by; or why not.
//!
//! Owns: every rule about claims. Must not know: how a token came, whose signature it has, who is in the directory.
//!
//! Invariants: what is not proven is refused, by name; a claim that is there and cannot be read is never taken for absent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ::policy::facts::Device;
use ::policy::names::GroupName;
use proto::types::{Invalid, SubjectId, SubjectRole, Timestamp};
use serde_json::{Map, Value};

/// How far two clocks may be apart that both are said to be right.
pub const LEEWAY: Duration = Duration::from_secs(60);

/// How old an ID token may be: it is presented as soon as the provider has made it. A token that leaks later is of no use here,
/// however long the provider lets it live, and what was used need not be remembered for longer.
pub const AGE_MAX: Duration = Duration::from_secs(10 * 60);

/// How much of a text of the provider's is kept: its name for the account, a way of proving who one is.
const ACCOUNT_MAX_CHARS: usize = 255;
const METHODS_MAX: usize = 16;
const METHOD_MAX_CHARS: usize = 64;

/// How many groups one person may have that a policy could name: each session and each request keeps all of them. A name has 63 bytes at
/// most, so that all of them and what separates them fit into 64 KiB.
const GROUPS_MAX: usize = 1000;

/// What an operator expects of the tokens of one provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Exactly as it stands in tokens.
    pub issuer: String,
    /// For whom tokens are.
    pub client_id: String,
    /// The claim that names the person.
    pub subject_claim: String,
    /// The claim that lists the person's groups.
    pub groups_claim: String,
    /// Only groups that begin with it count, and they are named without it.
    pub groups_prefix: String,
    /// The claims that say something of the person's device.
    pub device: DeviceClaims,
    /// What a group's members may do.
    pub roles: BTreeMap<String, SubjectRole>,
    /// What somebody may do who is in none of these groups and not in the directory; None: they are refused.
    pub default_role: Option<SubjectRole>,
    /// How long ago a person may have proven who they are; None: no limit.
    pub max_auth_age: Option<Duration>,
}

/// What the claims are called that say something of the device that somebody signs in from; None: there is none that says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceClaims {
    /// It belongs to those that somebody looks after.
    pub managed: Option<String>,
    /// Its disk is encrypted.
    pub encrypted: Option<String>,
}

/// What a token proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// Who it is.
    pub subject: SubjectId,
    /// What the provider calls the account: the one claim that no other person of this issuer ever gets.
    pub account: String,
    /// The highest role of their groups; None: no group of theirs has one.
    pub role: Option<SubjectRole>,
    /// The groups of theirs that have a role, as the operator named them; none has a line feed.
    pub groups: Vec<String>,
    /// All groups of theirs that a policy could name, with a role or without.
    pub named_groups: BTreeSet<GroupName>,
    /// What is said of their device; None: nothing.
    pub device: Option<Device>,
    /// When they proved who they are; None: the provider did not say.
    pub proven: Option<Timestamp>,
    /// How they did (`amr`), in the provider's words.
    pub methods: Vec<String>,
    /// From when on the same token is refused for its age, whatever is remembered of it.
    pub usable_until: Timestamp,
}

/// Why a token is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say it")]
pub enum ClaimsError {
    #[error("claim `{claim}` {problem}")]
    Malformed { claim: String, problem: &'static str },
    #[error("the token was issued by `{found}`, not by `{expected}`")]
    WrongIssuer { found: String, expected: String },
    #[error("the token is for `{found}`, not for `{expected}`")]
    WrongAudience { found: String, expected: String },
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYetValid,
    #[error("the token is older than {}", humantime::format_duration(*maximum))]
    TooOld { maximum: Duration },
    #[error("the token was not made for this sign-in: its nonce is another one")]
    WrongNonce,
    #[error("the token does not say when its holder proved who they are, and `max_auth_age` wants to know")]
    NoAuthTime,
    #[error("its holder proved who they are more than {} ago", humantime::format_duration(*maximum))]
    StaleAuthentication { maximum: Duration },
    #[error("the provider has not verified the address in claim `email`")]
    UnverifiedEmail,
    #[error("claim `{claim}` names nobody that can be a subject: {problem}")]
    UnusableSubject { claim: String, problem: String },
    #[error(
        "the provider left the groups out of the token, as there are too many (`{marker}`): which roles they give, and what a policy \
         forbids them, is not known"
    )]
    TooManyGroups { marker: &'static str },
    #[error(
        "claim `{claim}` names {found} groups that a policy could name, above the maximum of {GROUPS_MAX}"
    )]
    GroupsBeyondMaximum { claim: String, found: usize },
}

impl ClaimsError {
    /// As one word, for the record.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "malformed",
            Self::WrongIssuer { .. } => "wrong_issuer",
            Self::WrongAudience { .. } => "wrong_audience",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::TooOld { .. } => "too_old",
            Self::WrongNonce => "wrong_nonce",
            Self::NoAuthTime | Self::StaleAuthentication { .. } => "stale_authentication",
            Self::UnverifiedEmail => "unverified_email",
            Self::UnusableSubject { .. } => "unusable_subject",
            Self::TooManyGroups { .. } | Self::GroupsBeyondMaximum { .. } => "too_many_groups",
        }
    }

    /// What to do next; empty: nothing that would help is known.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Expired | Self::TooOld { .. } | Self::WrongNonce | Self::StaleAuthentication { .. } => {
                "run `portcullis login` again"
            }
            Self::NotYetValid => "compare the clocks of the control plane and the identity provider",
            Self::WrongIssuer { .. } | Self::WrongAudience { .. } => {
                "an operator compares `issuer` and `client_id` in the control plane's configuration with the provider's"
            }
            Self::NoAuthTime => {
                "an operator has the provider put `auth_time` into ID tokens, or drops `max_auth_age`"
            }
            Self::UnverifiedEmail => "verify the address at the identity provider",
            Self::UnusableSubject { .. } => {
                "an operator chooses another `subject_claim`; a subject's name has a-z, 0-9, `.`, `_`, `-`, `@`, `/`, `+` only"
            }
            Self::TooManyGroups { .. } => {
                "an operator limits the groups in the token to those assigned to the application, or uses app roles"
            }
            Self::GroupsBeyondMaximum { .. } => {
                "an operator has the provider put only the groups into the token that are used here, or sets `groups_prefix`"
            }
            Self::Malformed { .. } => "",
        }
    }
}

/// Checks the claims of a token whose signature is right.
pub fn check(
    claims: &Map<String, Value>,
    expected: &Expected,
    nonce: Option<&str>,
    now: Timestamp,
) -> Result<Proven, ClaimsError> {
    check_issuer(claims, &expected.issuer)?;
    check_audience(claims, expected)?;
    let usable_until = check_times(claims, AGE_MAX, now)?;
    if text(claims, "nonce")? != nonce {
        return Err(ClaimsError::WrongNonce);
    }
    let proven = check_authentication(claims, expected, now)?;
    let account = account(claims)?;
    let subject = subject(claims, expected)?;
    let groups = groups(claims, expected)?;
    let known: BTreeMap<&String, &SubjectRole> =
        groups.iter().filter_map(|group| expected.roles.get_key_value(*group)).collect();
    Ok(Proven {
        subject,
        account: account.to_owned(),
        role: known.values().copied().max().copied(),
        groups: known.into_keys().cloned().collect(),
        named_groups: named_groups(&groups, &expected.groups_claim)?,
        device: device(claims, &expected.device)?,
        proven,
        methods: methods(claims)?,
        usable_until,
    })
}

/// What the issuer calls whom the token is of.
pub(super) fn account(claims: &Map<String, Value>) -> Result<&str, ClaimsError> {
    let account = text(claims, "sub")?.ok_or_else(|| malformed("sub", "is missing"))?;
    match account.is_empty() || account.chars().count() > ACCOUNT_MAX_CHARS {
        true => Err(malformed("sub", "is empty or longer than 255 characters")),
        false => Ok(account),
    }
}

/// What somebody may do who has signed in; None: they are not let in. What the groups give comes before what the directory
/// says, and both before the default. `directory` is None also for somebody whom only a sign-in has put there: when the groups
/// are gone, so is what they gave.
pub fn role(proven: &Proven, expected: &Expected, directory: Option<SubjectRole>) -> Option<SubjectRole> {
    proven.role.or(directory).or(expected.default_role)
}

pub(super) fn malformed(claim: &str, problem: &'static str) -> ClaimsError {
    ClaimsError::Malformed { claim: claim.to_owned(), problem }
}

/// A text of the token's, for an error: cut, and without what could steer a terminal.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(120).flat_map(char::escape_debug).collect()
}

fn text<'a>(claims: &'a Map<String, Value>, claim: &str) -> Result<Option<&'a str>, ClaimsError> {
    match claims.get(claim) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(malformed(claim, "is not a text")),
    }
}

/// One text, or a list of texts: both are usual.
pub(super) fn texts<'a>(
    claims: &'a Map<String, Value>,
    claim: &str,
) -> Result<Option<Vec<&'a str>>, ClaimsError> {
    let refuse = || malformed(claim, "is neither a text nor a list of texts");
    match claims.get(claim) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(vec![text])),
        Some(Value::Array(list)) => {
            list.iter().map(|item| item.as_str().ok_or_else(refuse)).collect::<Result<_, _>>().map(Some)
        }
        Some(_) => Err(refuse()),
    }
}

/// True or false. Some providers write a boolean as a text.
fn truth(claims: &Map<String, Value>, claim: &str) -> Result<Option<bool>, ClaimsError> {
    match claims.get(claim) {
        None => Ok(None),
        Some(Value::Bool(truth)) => Ok(Some(*truth)),
        Some(Value::String(text)) if text == "true" => Ok(Some(true)),
        Some(Value::String(text)) if text == "false" => Ok(Some(false)),
        Some(_) => Err(malformed(claim, "is neither true nor false")),
    }
}

/// A moment: seconds since 1970, perhaps with a fraction, which is dropped.
fn moment(claims: &Map<String, Value>, claim: &str) -> Result<Option<Timestamp>, ClaimsError> {
    let Some(value) = claims.get(claim) else { return Ok(None) };
    // A float beyond what fits is cut to the largest number, which is no moment.
    let seconds = value.as_i64().or_else(|| value.as_f64().map(|seconds| seconds as i64));
    let moment = seconds.and_then(|seconds| seconds.checked_mul(1000)).map(Timestamp::from_unix_ms);
    match moment {
        Some(Ok(moment)) => Ok(Some(moment)),
        Some(Err(_)) | None => Err(malformed(claim, "is not a moment: seconds since 1970")),
    }
}

fn required(claims: &Map<String, Value>, claim: &str) -> Result<Timestamp, ClaimsError> {
    moment(claims, claim)?.ok_or_else(|| malformed(claim, "is missing"))
}

pub(super) fn check_issuer(claims: &Map<String, Value>, expected: &str) -> Result<(), ClaimsError> {
    let found = text(claims, "iss")?.ok_or_else(|| malformed("iss", "is missing"))?;
    match found == expected {
        true => Ok(()),
        false => Err(ClaimsError::WrongIssuer { found: shown(found), expected: expected.to_owned() }),
    }
}

/// The client is the audience; where there are others too, it has to be the one that the token was made for.
fn check_audience(claims: &Map<String, Value>, expected: &Expected) -> Result<(), ClaimsError> {
    let audience = texts(claims, "aud")?.ok_or_else(|| malformed("aud", "is missing"))?;
    let wrong = |found: &str| ClaimsError::WrongAudience {
        found: shown(found),
        expected: expected.client_id.clone(),
    };
    if !audience.contains(&expected.client_id.as_str()) {
        return Err(wrong(&audience.join(", ")));
    }
    match text(claims, "azp")? {
        Some(party) if party != expected.client_id => Err(wrong(party)),
        None if audience.len() > 1 => Err(malformed("azp", "is missing, and the token is for several")),
        Some(_) | None => Ok(()),
    }
}

/// Until when a token that may be so old could be used, if nobody had seen it.
pub(super) fn check_times(
    claims: &Map<String, Value>,
    age_max: Duration,
    now: Timestamp,
) -> Result<Timestamp, ClaimsError> {
    let expires = required(claims, "exp")?.plus(LEEWAY);
    let issued = required(claims, "iat")?;
    let usable_until = expires.min(issued.plus(age_max + LEEWAY));
    if now >= expires {
        return Err(ClaimsError::Expired);
    }
    if now >= usable_until {
        return Err(ClaimsError::TooOld { maximum: age_max });
    }
    let begins = moment(claims, "nbf")?.unwrap_or(issued).max(issued);
    match begins > now.plus(LEEWAY) {
        true => Err(ClaimsError::NotYetValid),
        false => Ok(usable_until),
    }
}

fn check_authentication(
    claims: &Map<String, Value>,
    expected: &Expected,
    now: Timestamp,
) -> Result<Option<Timestamp>, ClaimsError> {
    let proven = moment(claims, "auth_time")?;
    let Some(maximum) = expected.max_auth_age else { return Ok(proven) };
    let at = proven.ok_or(ClaimsError::NoAuthTime)?;
    match now > at.plus(maximum + LEEWAY) || at > now.plus(LEEWAY) {
        true => Err(ClaimsError::StaleAuthentication { maximum }),
        false => Ok(proven),
    }
}

/// The person's subject: `user:` and the claim in lower case. Only ASCII is put in lower case: a look-alike of a letter stays
/// what it is, and is refused.
fn subject(claims: &Map<String, Value>, expected: &Expected) -> Result<SubjectId, ClaimsError> {
    let claim = &expected.subject_claim;
    let name = text(claims, claim)?.ok_or_else(|| malformed(claim, "is missing"))?;
    if claim == "email" {
        match claims.get("email_verified") {
            // Some providers write a boolean as a text.
            None | Some(Value::Bool(true)) => {}
            Some(Value::String(text)) if text == "true" => {}
            Some(_) => return Err(ClaimsError::UnverifiedEmail),
        }
    }
    let id = format!("user:{}", name.to_ascii_lowercase());
    id.parse().map_err(|error: Invalid| ClaimsError::UnusableSubject {
        claim: claim.clone(),
        problem: error.problem,
    })
}

/// The groups that count, by the names that the operator gave them. They are looked at whether or not any has a role: a policy can
/// forbid something to any of them.
fn groups<'a>(claims: &'a Map<String, Value>, expected: &Expected) -> Result<Vec<&'a str>, ClaimsError> {
    let claim = expected.groups_claim.as_str();
    refuse_overage(claims, claim)?;
    let all = texts(claims, claim)?.unwrap_or_default();
    Ok(all.into_iter().filter_map(|group| group.strip_prefix(&expected.groups_prefix)).collect())
}

/// Entra leaves the groups out when there are too many, and says so in one of two ways. Without this check such a person would
/// look like one without groups, be let in by the directory or the default with another role than the groups give, and have what a
/// policy forbids to one of them.
fn refuse_overage(claims: &Map<String, Value>, groups_claim: &str) -> Result<(), ClaimsError> {
    let named_elsewhere = claims.get("_claim_names").is_some_and(|names| names.get(groups_claim).is_some());
    if named_elsewhere {
        return Err(ClaimsError::TooManyGroups { marker: "_claim_names" });
    }
    match claims.get("hasgroups") {
        None | Some(Value::Bool(false)) => Ok(()),
        Some(_) => Err(ClaimsError::TooManyGroups { marker: "hasgroups" }),
    }
}

/// Those whose name a group of a policy can have; no policy says anything of the others.
fn named_groups(groups: &[&str], claim: &str) -> Result<BTreeSet<GroupName>, ClaimsError> {
    let named: BTreeSet<GroupName> = groups.iter().filter_map(|group| group.parse().ok()).collect();
    match named.len() {
        0..=GROUPS_MAX => Ok(named),
        found => Err(ClaimsError::GroupsBeyondMaximum { claim: claim.to_owned(), found }),
    }
}

/// What is said of the device; None: nothing. Of what is not said nobody has said yes.
fn device(claims: &Map<String, Value>, names: &DeviceClaims) -> Result<Option<Device>, ClaimsError> {
    let said = |claim: &Option<String>| claim.as_deref().map_or(Ok(None), |claim| truth(claims, claim));
    Ok(match (said(&names.managed)?, said(&names.encrypted)?) {
        (None, None) => None,
        (managed, encrypted) => {
            Some(Device { managed: managed.unwrap_or(false), encrypted: encrypted.unwrap_or(false) })
        }
    })
}

fn methods(claims: &Map<String, Value>) -> Result<Vec<String>, ClaimsError> {
    let methods = texts(claims, "amr")?.unwrap_or_default();
    let is_fit =
        |method: &&str| method.chars().count() <= METHOD_MAX_CHARS && !method.contains(char::is_control);
    match methods.len() <= METHODS_MAX && methods.iter().all(is_fit) {
        true => Ok(methods.into_iter().map(str::to_owned).collect()),
        false => Err(malformed("amr", "has more than 16 entries, or one that is too long")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW_S: i64 = 1_795_000_000;

    fn expected() -> Expected {
        let role = |group: &str, role| (group.to_owned(), role);
        Expected {
            issuer: "https://idp.example".to_owned(),
            client_id: "portcullis".to_owned(),
            subject_claim: "email".to_owned(),
            groups_claim: "groups".to_owned(),
            groups_prefix: "pc-".to_owned(),
            device: DeviceClaims {
                managed: Some("managed".to_owned()),
                encrypted: Some("https://idp.example/encrypted".to_owned()),
            },
            roles: [role("approvers", SubjectRole::Approver), role("admins", SubjectRole::Administrator)]
                .into(),
            default_role: None,
            max_auth_age: Some(Duration::from_secs(3600)),
        }
    }

    fn claims() -> Value {
        json!({
            "iss": "https://idp.example", "aud": "portcullis", "sub": "00u1", "nonce": "n",
            "iat": NOW_S, "exp": NOW_S + 300, "auth_time": NOW_S - 10,
            "email": "Alice@Example.com", "email_verified": true,
            "groups": ["pc-approvers", "admins", "staff"], "amr": ["pwd", "otp"],
        })
    }

    fn checked(change: &Value) -> Result<Proven, ClaimsError> {
        let mut claims = claims();
        let all = claims.as_object_mut().expect("an object");
        for (claim, value) in change.as_object().expect("an object") {
            match value {
                Value::Null => all.remove(claim),
                value => all.insert(claim.clone(), value.clone()),
            };
        }
        let now = Timestamp::from_unix_ms(NOW_S * 1000).expect("in range");
        check(all, &expected(), Some("n"), now)
    }

    #[track_caller]
    fn taken(change: Value) -> Proven {
        checked(&change).expect("is taken")
    }

    /// A change of the claims; null takes one out.
    #[track_caller]
    fn refused(reason: &str, words: &str, change: Value) {
        let error = checked(&change).expect_err("is refused");
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }

    #[test]
    fn a_good_token_proves_who_it_is() {
        let proven = taken(json!({}));
        assert_eq!(proven.subject.as_str(), "user:alice@example.com");
        assert_eq!((proven.account.as_str(), proven.role), ("00u1", Some(SubjectRole::Approver)));
        assert_eq!(proven.groups, ["approvers"], "those that have a role");
        assert_eq!(named(&proven), ["approvers"]);
        assert_eq!(proven.device, None);
        assert_eq!(proven.methods, ["pwd", "otp"]);
        assert_eq!(proven.proven.map(Timestamp::unix_ms), Some((NOW_S - 10) * 1000));
        assert_eq!(proven.usable_until.unix_ms(), (NOW_S + 360) * 1000);
    }

    fn named(proven: &Proven) -> Vec<&str> {
        proven.named_groups.iter().map(GroupName::as_str).collect()
    }

    #[test]
    fn issuer_and_audience_are_ours() {
        refused("wrong_issuer", "`https://evil.example`", json!({"iss": "https://evil.example"}));
        refused("wrong_issuer", "", json!({"iss": "https://idp.example/"}));
        refused("malformed", "`iss` is missing", json!({"iss": null}));
        refused("wrong_audience", "for `other`", json!({"aud": "other"}));
        refused("wrong_audience", "for `a, b`", json!({"aud": ["a", "b"], "azp": "portcullis"}));
        refused("malformed", "`aud` is missing", json!({"aud": null}));
        refused("malformed", "`azp` is missing", json!({"aud": ["portcullis", "other"]}));
        refused("wrong_audience", "for `other`", json!({"azp": "other"}));
        taken(json!({"aud": ["portcullis"]}));
        taken(json!({"aud": ["portcullis", "other"], "azp": "portcullis"}));
    }

    #[test]
    fn times_are_kept() {
        refused("expired", "", json!({"exp": NOW_S - 60}));
        taken(json!({"exp": NOW_S - 59}));
        refused("malformed", "`exp` is missing", json!({"exp": null}));
        refused("malformed", "`exp` is not a moment", json!({"exp": "soon"}));
        refused("malformed", "`exp` is not a moment", json!({"exp": 1e300}));
        refused("malformed", "`exp` is not a moment", json!({"exp": -1}));
        refused("malformed", "`iat` is missing", json!({"iat": null}));
        refused("too_old", "10m", json!({"iat": NOW_S - 660, "exp": NOW_S + 3600}));
        taken(json!({"iat": NOW_S - 659, "exp": NOW_S + 3600}));
        refused("not_yet_valid", "", json!({"iat": NOW_S + 61}));
        refused("not_yet_valid", "", json!({"nbf": NOW_S + 61}));
        taken(json!({"nbf": NOW_S + 60, "exp": NOW_S as f64 + 300.5}));
    }

    #[test]
    fn the_nonce_is_the_one_that_was_sent() {
        refused("wrong_nonce", "", json!({"nonce": "m"}));
        refused("wrong_nonce", "", json!({"nonce": null}));
        refused("malformed", "`nonce` is not a text", json!({"nonce": 1}));
        let claims = claims();
        let now = Timestamp::from_unix_ms(NOW_S * 1000).expect("in range");
        let without = check(claims.as_object().expect("an object"), &expected(), None, now);
        assert_eq!(without, Err(ClaimsError::WrongNonce));
    }

    #[test]
    fn proof_of_who_it_is_must_be_recent() {
        refused("stale_authentication", "more than 1h", json!({"auth_time": NOW_S - 3661}));
        refused("stale_authentication", "does not say when", json!({"auth_time": null}));
        refused("stale_authentication", "", json!({"auth_time": NOW_S + 61}));
        refused("malformed", "`amr`", json!({"amr": [1]}));
        refused("malformed", "`amr`", json!({"amr": vec!["x"; 17]}));
        taken(json!({"auth_time": NOW_S - 3660, "amr": null}));
    }

    #[test]
    fn names_are_what_a_subject_can_have() {
        refused("unverified_email", "", json!({"email_verified": false}));
        refused("unverified_email", "", json!({"email_verified": "false"}));
        refused("malformed", "`email` is missing", json!({"email": null}));
        // Cyrillic а, the Kelvin sign, a full-width l, a combining accent.
        for look_alike in
            ["\u{430}lice@example.com", "\u{212a}im@example.com", "a\u{ff4c}ice@x", "alic\u{301}e@x"]
        {
            refused("unusable_subject", "claim `email`", json!({"email": look_alike}));
        }
        refused("unusable_subject", "", json!({"email": "alice@example.com\n"}));
        refused("unusable_subject", "", json!({"email": "a:b"}));
        refused("unusable_subject", "", json!({"email": ""}));
        refused("malformed", "`sub` is missing", json!({"sub": null}));
        refused("malformed", "`sub` is empty", json!({"sub": "x".repeat(256)}));
        taken(json!({"email_verified": null}));
    }

    #[test]
    fn groups_give_roles() {
        let role = |groups: Value| taken(json!({"groups": groups})).role;
        assert_eq!(role(json!(["pc-admins", "pc-approvers"])), Some(SubjectRole::Administrator));
        assert_eq!(role(json!("pc-approvers")), Some(SubjectRole::Approver));
        assert_eq!(role(json!(["approvers", "pc-", "PC-admins"])), None);
        assert_eq!(role(Value::Null), None);
        refused("malformed", "`groups` is neither", json!({"groups": ["pc-admins", 7]}));
        let elsewhere = json!({"groups": null, "_claim_names": {"groups": "src1"}});
        refused("too_many_groups", "_claim_names", elsewhere);
        refused("too_many_groups", "hasgroups", json!({"groups": null, "hasgroups": true}));
        taken(json!({"_claim_names": {"address": "src1"}}));
    }

    #[test]
    fn conditions_see_every_group_that_a_policy_could_name() {
        let long = "x".repeat(63);
        let groups = json!([
            "pc-staff",
            "pc-approvers",
            "staff-too",
            "pc-Night Shift",
            "pc-staff",
            "pc-",
            format!("pc-{long}"),
            format!("pc-{long}x"),
            "pc-on\ncall",
            "pc-db\u{430}"
        ]);
        let proven = taken(json!({"groups": groups}));
        assert_eq!(named(&proven), ["approvers", "staff", long.as_str()]);
        assert_eq!(proven.groups, ["approvers"]);
        assert!(taken(json!({"groups": null})).named_groups.is_empty());

        let many = |count: usize| -> Vec<String> {
            (0..count).map(|index| format!("pc-{index:0>63}")).chain(["Others".to_owned()]).collect()
        };
        let kept = taken(json!({"groups": many(1000)}));
        assert_eq!(kept.named_groups.len(), 1000);
        assert!(named(&kept).join("\n").len() <= 64 * 1024);
        let words = "claim `groups` names 1001 groups that a policy could name, above the maximum of 1000";
        refused("too_many_groups", words, json!({"groups": many(1001)}));
    }

    /// A policy can forbid something to a group that has no role.
    #[test]
    fn groups_that_were_left_out_are_missed_without_roles_too() {
        let without = Expected { roles: BTreeMap::new(), ..expected() };
        let now = Timestamp::from_unix_ms(NOW_S * 1000).expect("in range");
        let judged = |claim: &str, value: Value| {
            let mut claims = claims();
            claims[claim] = value;
            check(claims.as_object().expect("an object"), &without, Some("n"), now)
        };
        let proven = judged("amr", json!("mfa")).expect("is taken");
        assert_eq!((proven.role, named(&proven)), (None, vec!["approvers"]));
        assert_eq!(judged("hasgroups", json!(true)), Err(ClaimsError::TooManyGroups { marker: "hasgroups" }));
        assert_eq!(
            judged("_claim_names", json!({"groups": "src1"})),
            Err(ClaimsError::TooManyGroups { marker: "_claim_names" })
        );
        assert!(matches!(judged("groups", json!([7])), Err(ClaimsError::Malformed { .. })));
    }

    #[test]
    fn a_device_is_what_the_token_says_of_it() {
        const ENCRYPTED: &str = "https://idp.example/encrypted";
        let check = |managed: Value, encrypted: Value, device| {
            assert_eq!(taken(json!({"managed": managed, ENCRYPTED: encrypted})).device, device);
        };
        let device = |managed, encrypted| Some(Device { managed, encrypted });
        check(json!(true), json!(true), device(true, true));
        check(json!("true"), json!("false"), device(true, false));
        check(json!(false), json!("true"), device(false, true));
        // What one claim does not say is no yes.
        check(json!(true), Value::Null, device(true, false));
        check(Value::Null, json!(true), device(false, true));
        check(json!(false), Value::Null, device(false, false));
        check(Value::Null, Value::Null, None);
        for bad in [json!("yes"), json!("True"), json!(""), json!(1), json!([true]), json!({"a": true})] {
            refused("malformed", "`managed` is neither true nor false", json!({"managed": bad}));
        }
        refused("malformed", ENCRYPTED, json!({"managed": true, ENCRYPTED: 0}));

        // A null is there, and says nothing.
        let mut claims = claims();
        claims["managed"] = Value::Null;
        let now = Timestamp::from_unix_ms(NOW_S * 1000).expect("in range");
        let judged = |expected: &Expected| {
            super::check(claims.as_object().expect("an object"), expected, Some("n"), now)
        };
        assert!(matches!(judged(&expected()), Err(ClaimsError::Malformed { .. })));
        // Nobody has said that these claims are about a device.
        let without = Expected { device: DeviceClaims::default(), ..expected() };
        assert_eq!(judged(&without).expect("is taken").device, None);
    }

    #[test]
    fn roles_come_from_groups_then_the_directory_then_the_default() {
        use SubjectRole::{Administrator, Approver, Auditor, Member};
        let check = |group: Option<SubjectRole>, directory, default_role, role_is| {
            let proven = Proven { role: group, ..taken(json!({})) };
            let expected = Expected { default_role, ..expected() };
            assert_eq!(role(&proven, &expected, directory), role_is);
        };
        check(Some(Approver), Some(Administrator), Some(Member), Some(Approver));
        check(None, Some(Auditor), Some(Member), Some(Auditor));
        check(None, None, Some(Member), Some(Member));
        check(None, None, None, None);
    }

    proptest::proptest! {
        #[test]
        fn no_claims_panic(claim in "(iss|aud|azp|exp|iat|nbf|nonce|auth_time|amr|sub|email|groups|_claim_names|hasgroups|managed)",
                           value in "[-0-9\"a-z{}\\[\\],:.e]{0,12}") {
            if let Ok(value) = serde_json::from_str::<Value>(&value) {
                let _ = checked(&json!({ claim: value }));
            }
        }
    }
}
