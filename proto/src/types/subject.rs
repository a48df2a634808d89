//! Who access is for, and how their processes are found.

use std::fmt::{self, Display};
use std::str::FromStr;

use super::{Invalid, SubjectId, SubjectNumber, all, quote};
use crate::wire::access as wire;

/// How many selectors one subject may have.
const SELECTORS_MAX: usize = 16;

/// A Unix account, as a selector names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UnixUser {
    /// By number.
    Uid(u32),
    /// By name, which each host resolves by its own accounts.
    Name(String),
}

/// A cgroup by its path below the cgroup v2 root: absolute, 2..=4095 bytes, not the root itself, no empty, `.` or `..` part, no
/// control character.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CgroupPath(String);

impl CgroupPath {
    /// PATH_MAX of Linux, without its end.
    const MAX_BYTES: usize = 4095;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn check(path: &str) -> Result<(), &'static str> {
        let part_ok = |part: &str| !part.is_empty() && part != "." && part != "..";
        let inner = path.strip_prefix('/').ok_or("is not absolute: start the path with `/`")?;
        if inner.is_empty() {
            return Err("is the root, which every process belongs to");
        }
        if path.len() > Self::MAX_BYTES || path.chars().any(char::is_control) {
            return Err("is longer than 4095 bytes or has a control character");
        }
        match inner.split('/').all(part_ok) {
            true => Ok(()),
            false => Err("has an empty, `.` or `..` part"),
        }
    }
}

impl FromStr for CgroupPath {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse = |problem| Invalid::new("cgroup", format_args!("{} {problem}", quote(text)));
        Self::check(text).map_err(refuse)?;
        Ok(Self(text.to_owned()))
    }
}

impl Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<CgroupPath> for String {
    fn from(path: CgroupPath) -> Self {
        path.0
    }
}

/// A cgroup path that may be absent, which is empty on the wire.
pub(crate) fn optional_cgroup(field: &str, text: &str) -> Result<Option<CgroupPath>, Invalid> {
    let parse = || text.parse().map_err(|error: Invalid| Invalid::new(field, error.problem));
    (!text.is_empty()).then(parse).transpose()
}

/// How a subject's processes are found on a host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    /// The cgroup at this path below the cgroup v2 root, and those within it: `cgroup:/app.slice/job`.
    Cgroup(CgroupPath),
    /// The systemd slice of an account, and what is within it: `unix-user:alice` or `unix-user:1000`.
    UnixUser(UnixUser),
}

impl Selector {
    /// The longest account name of Linux (LOGIN_NAME_MAX less its end).
    const ACCOUNT_MAX_BYTES: usize = 255;

    fn cgroup(path: &str) -> Result<Self, &'static str> {
        CgroupPath::check(path)?;
        Ok(Self::Cgroup(CgroupPath(path.to_owned())))
    }

    fn unix_user(account: &str) -> Result<Self, &'static str> {
        let allowed = |char: char| char.is_ascii_alphanumeric() || "._-+@$".contains(char);
        if account.is_empty() || account.len() > Self::ACCOUNT_MAX_BYTES || !account.chars().all(allowed) {
            return Err("has no account name or uid behind `unix-user:`");
        }
        if !account.starts_with(|char: char| char.is_ascii_digit()) {
            return Ok(Self::UnixUser(UnixUser::Name(account.to_owned())));
        }
        // `(uid_t) -1` means "none" to the kernel.
        match account.parse() {
            Ok(u32::MAX) | Err(_) => Err("starts with a digit and is not a uid"),
            Ok(uid) => Ok(Self::UnixUser(UnixUser::Uid(uid))),
        }
    }
}

impl Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cgroup(path) => write!(f, "cgroup:{path}"),
            Self::UnixUser(UnixUser::Uid(uid)) => write!(f, "unix-user:{uid}"),
            Self::UnixUser(UnixUser::Name(name)) => write!(f, "unix-user:{name}"),
        }
    }
}

impl FromStr for Selector {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let selector = match text.split_once(':') {
            Some(("cgroup", path)) => Self::cgroup(path),
            Some(("unix-user", account)) => Self::unix_user(account),
            _ => Err("is not a selector: write `cgroup:/PATH` or `unix-user:NAME-OR-UID`"),
        };
        selector.map_err(|problem| Invalid::new("selectors", format_args!("{} {problem}", quote(text))))
    }
}

/// What a subject may do at the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SubjectRole {
    /// Asks for itself.
    Member,
    /// Also decides about others' requests and revokes grants.
    Approver,
    /// A member who reads the audit record, and everybody's requests and grants.
    Auditor,
    /// Everything.
    Administrator,
}

impl SubjectRole {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Member, Self::Approver, Self::Auditor, Self::Administrator];

    /// As people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Approver => "approver",
            Self::Auditor => "auditor",
            Self::Administrator => "administrator",
        }
    }
}

impl Display for SubjectRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for SubjectRole {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| {
            Invalid::new(
                "role",
                format_args!("{} is not member, approver, auditor or administrator", quote(text)),
            )
        })
    }
}

impl TryFrom<wire::SubjectRole> for SubjectRole {
    type Error = Invalid;

    fn try_from(wire: wire::SubjectRole) -> Result<Self, Invalid> {
        match wire {
            wire::SubjectRole::Member => Ok(Self::Member),
            wire::SubjectRole::Approver => Ok(Self::Approver),
            wire::SubjectRole::Auditor => Ok(Self::Auditor),
            wire::SubjectRole::Administrator => Ok(Self::Administrator),
            wire::SubjectRole::Unspecified => Err(Invalid::new("role", "is missing or unknown")),
        }
    }
}

impl From<SubjectRole> for wire::SubjectRole {
    fn from(role: SubjectRole) -> Self {
        match role {
            SubjectRole::Member => Self::Member,
            SubjectRole::Approver => Self::Approver,
            SubjectRole::Auditor => Self::Auditor,
            SubjectRole::Administrator => Self::Administrator,
        }
    }
}

/// A subject as somebody asks for it: not stored yet, so without a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSubject {
    /// Its id.
    pub id: SubjectId,
    /// How its processes are found; at most 16, none twice.
    pub selectors: Vec<Selector>,
    /// What it may do at the control plane.
    pub role: SubjectRole,
}

impl TryFrom<wire::Subject> for NewSubject {
    type Error = Invalid;

    fn try_from(wire: wire::Subject) -> Result<Self, Invalid> {
        if wire.number != 0 {
            return Err(Invalid::new(
                "number",
                format_args!("{} was set; the control plane gives it", wire.number),
            ));
        }
        parts(wire)
    }
}

fn parts(wire: wire::Subject) -> Result<NewSubject, Invalid> {
    let role = wire.role().try_into()?;
    let mut selectors = all("selectors", wire.selectors, SELECTORS_MAX, |text| {
        text.parse().map_err(|error: Invalid| Invalid::new("", error.problem))
    })?;
    selectors.sort_unstable();
    selectors.dedup();
    let id = wire.id.parse().map_err(|error: Invalid| Invalid::new("id", error.problem))?;
    Ok(NewSubject { id, selectors, role })
}

/// Somebody or something that access is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// How kernels name it.
    pub number: SubjectNumber,
    /// Its id.
    pub id: SubjectId,
    /// How its processes are found; at most 16, none twice.
    pub selectors: Vec<Selector>,
    /// What it may do at the control plane.
    pub role: SubjectRole,
}

impl Subject {
    /// The subject that `new` becomes under this number.
    pub fn numbered(number: SubjectNumber, new: NewSubject) -> Self {
        Self { number, id: new.id, selectors: new.selectors, role: new.role }
    }
}

impl TryFrom<wire::Subject> for Subject {
    type Error = Invalid;

    fn try_from(wire: wire::Subject) -> Result<Self, Invalid> {
        let number =
            wire.number.try_into().map_err(|error: Invalid| Invalid::new("number", error.problem))?;
        Ok(Self::numbered(number, parts(wire)?))
    }
}

impl From<Subject> for wire::Subject {
    fn from(subject: Subject) -> Self {
        let number = subject.number.get();
        let new = NewSubject { id: subject.id, selectors: subject.selectors, role: subject.role };
        Self { number, ..new.into() }
    }
}

impl From<NewSubject> for wire::Subject {
    fn from(new: NewSubject) -> Self {
        Self {
            id: new.id.into(),
            number: 0,
            selectors: new.selectors.iter().map(ToString::to_string).collect(),
            role: wire::SubjectRole::from(new.role).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors() {
        for good in
            ["cgroup:/a", "cgroup:/a.slice/b:c", "unix-user:alice", "unix-user:0", "unix-user:4294967294"]
        {
            assert_eq!(good.parse::<Selector>().map(|selector| selector.to_string()).as_deref(), Ok(good));
        }
        let bad = [
            "",
            "alice",
            "cgroup:",
            "cgroup:a",
            "cgroup:/",
            "cgroup:/a/",
            "cgroup://a",
            "cgroup:/a/../b",
            "cgroup:/.",
            "cgroup:/a\nb",
            "unix-user:",
            "unix-user:1a",
            "unix-user:4294967295",
            "unix-user:99999999999",
            "unix-user:a/b",
            "run:x",
        ];
        for text in bad {
            assert!(text.parse::<Selector>().is_err(), "{text}");
        }
    }

    #[test]
    fn subjects_survive_the_wire() {
        let new = NewSubject {
            id: "user:alice@example.com".parse().expect("valid"),
            selectors: vec!["unix-user:alice".parse().expect("valid")],
            role: SubjectRole::Approver,
        };
        assert_eq!(NewSubject::try_from(wire::Subject::from(new.clone())), Ok(new.clone()));
        let subject = Subject::numbered(7.try_into().expect("not 0"), new);
        assert_eq!(Subject::try_from(wire::Subject::from(subject.clone())), Ok(subject.clone()));
        assert!(NewSubject::try_from(wire::Subject::from(subject)).is_err());
    }
}
