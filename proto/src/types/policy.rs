//! Policies as they travel: files, versions, and what one does when it is put in force.
//!
//! What the files mean is not known here.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use super::{GrantId, Invalid, Reason, ResourceName, SubjectId, Timestamp, all, quote, time};
use crate::wire::policy as wire;

/// How many parts of a policy can differ: all that a policy can have, and as many that are gone.
const DIFFERENCES_MAX: usize = 100_000;
/// How many live grants a plan names.
const ENDS_MAX: usize = 100_000;
/// How many resources a policy can have.
const RESOURCES_MAX: usize = 10_000;

/// The files of a policy: paths in its folder, with `/`, and texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyFiles(BTreeMap<String, String>);

impl PolicyFiles {
    /// How many files there can be.
    pub const MAX: usize = 256;
    /// How large one can be, in bytes.
    pub const FILE_MAX_BYTES: usize = 1 << 20;
    /// How large all can be together, in bytes.
    pub const MAX_BYTES: usize = 8 << 20;
    /// How long a path can be, in bytes.
    const PATH_MAX_BYTES: usize = 255;

    /// Checks that there are not too many, nor too large ones.
    pub fn new(files: BTreeMap<String, String>) -> Result<Self, Invalid> {
        let refuse = |problem: &dyn Display| Err(Invalid::new("files", problem));
        if files.len() > Self::MAX {
            return refuse(&format_args!("{} are more than {}", files.len(), Self::MAX));
        }
        let mut bytes = 0;
        for (path, text) in &files {
            if path.is_empty() || path.len() > Self::PATH_MAX_BYTES || path.chars().any(char::is_control) {
                return refuse(&format_args!("{} is no path of a file", quote(path)));
            }
            if text.len() > Self::FILE_MAX_BYTES {
                return refuse(&format_args!(
                    "{} is larger than {} bytes",
                    quote(path),
                    Self::FILE_MAX_BYTES
                ));
            }
            bytes += text.len();
        }
        if bytes > Self::MAX_BYTES {
            return refuse(&format_args!("{bytes} bytes together are more than {}", Self::MAX_BYTES));
        }
        Ok(Self(files))
    }

    /// By path.
    pub fn as_map(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    /// By path.
    pub fn into_map(self) -> BTreeMap<String, String> {
        self.0
    }
}

impl TryFrom<Vec<wire::PolicyFile>> for PolicyFiles {
    type Error = Invalid;

    fn try_from(wire: Vec<wire::PolicyFile>) -> Result<Self, Invalid> {
        let mut files = BTreeMap::new();
        for wire::PolicyFile { path, text } in wire {
            if files.contains_key(&path) {
                return Err(Invalid::new("files", format_args!("{} is there twice", quote(&path))));
            }
            files.insert(path, text);
        }
        Self::new(files)
    }
}

impl From<PolicyFiles> for Vec<wire::PolicyFile> {
    fn from(files: PolicyFiles) -> Self {
        files.0.into_iter().map(|(path, text)| wire::PolicyFile { path, text }).collect()
    }
}

/// A policy that is to be put in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPolicy {
    /// All of it.
    pub files: PolicyFiles,
    /// The version that must be in force; 0: none.
    pub before: u64,
    /// Why; may be empty.
    pub comment: String,
    /// Of which version the files are; None: they are new.
    pub restores: Option<u64>,
}

impl TryFrom<wire::ApplyPolicyRequest> for NewPolicy {
    type Error = Invalid;

    fn try_from(wire: wire::ApplyPolicyRequest) -> Result<Self, Invalid> {
        Ok(Self {
            files: wire.files.try_into()?,
            before: wire.before,
            comment: Reason::optional("comment", &wire.comment)?,
            restores: (wire.restores != 0).then_some(wire.restores),
        })
    }
}

impl From<NewPolicy> for wire::ApplyPolicyRequest {
    fn from(new: NewPolicy) -> Self {
        let NewPolicy { files, before, comment, restores } = new;
        Self { files: files.into(), before, comment, restores: restores.unwrap_or(0) }
    }
}

/// A policy that was put in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyVersion {
    /// From 1; the largest is in force.
    pub version: u64,
    /// Who applied it.
    pub author: SubjectId,
    /// When.
    pub applied: Timestamp,
    /// Why; may be empty.
    pub comment: String,
    /// Of which version its files are; None: they were new.
    pub restores: Option<u64>,
}

impl TryFrom<wire::PolicyVersion> for PolicyVersion {
    type Error = Invalid;

    fn try_from(wire: wire::PolicyVersion) -> Result<Self, Invalid> {
        if wire.version == 0 {
            return Err(Invalid::missing("version"));
        }
        Ok(Self {
            version: wire.version,
            author: wire.author.parse::<SubjectId>().map_err(|error| error.within("author"))?,
            applied: time::required("applied", wire.applied)?,
            comment: wire.comment,
            restores: (wire.restores != 0).then_some(wire.restores),
        })
    }
}

impl From<PolicyVersion> for wire::PolicyVersion {
    fn from(version: PolicyVersion) -> Self {
        let PolicyVersion { version, author, applied, comment, restores } = version;
        Self {
            version,
            author: author.into(),
            applied: Some(applied.into()),
            comment,
            restores: restores.unwrap_or(0),
        }
    }
}

/// What happens to a part of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// It is new.
    Added,
    /// It is not what it was.
    Changed,
    /// It is gone.
    Removed,
}

impl Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Removed => "removed",
        })
    }
}

/// One difference between two policies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// `resource`, `host`, `subject`, `group`, `on_call`, `role`, `limits`, `window`, `maintenance` or `condition`.
    pub kind: String,
    /// Which one; empty for `limits`.
    pub name: String,
    /// What happens to it.
    pub what: What,
}

impl TryFrom<wire::PolicyDifference> for Difference {
    type Error = Invalid;

    fn try_from(wire: wire::PolicyDifference) -> Result<Self, Invalid> {
        let what = match wire.action() {
            wire::PolicyAction::Added => What::Added,
            wire::PolicyAction::Changed => What::Changed,
            wire::PolicyAction::Removed => What::Removed,
            wire::PolicyAction::Unspecified => return Err(Invalid::new("action", "is missing or unknown")),
        };
        Ok(Self { kind: wire.kind, name: wire.name, what })
    }
}

impl From<Difference> for wire::PolicyDifference {
    fn from(difference: Difference) -> Self {
        let Difference { kind, name, what } = difference;
        let action = match what {
            What::Added => wire::PolicyAction::Added,
            What::Changed => wire::PolicyAction::Changed,
            What::Removed => wire::PolicyAction::Removed,
        };
        Self { kind, name, action: action.into() }
    }
}

/// A live grant that a policy would not permit any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedEnd {
    /// Which.
    pub grant: GrantId,
    /// Whose.
    pub subject: SubjectId,
    /// For what.
    pub resource: ResourceName,
    /// Why, in words.
    pub reason: String,
}

impl TryFrom<wire::PolicyEnd> for PlannedEnd {
    type Error = Invalid;

    fn try_from(wire: wire::PolicyEnd) -> Result<Self, Invalid> {
        let wire::PolicyEnd { grant, subject, resource, reason } = wire;
        Ok(Self { grant: grant.parse()?, subject: subject.parse()?, resource: resource.parse()?, reason })
    }
}

impl From<PlannedEnd> for wire::PolicyEnd {
    fn from(end: PlannedEnd) -> Self {
        let PlannedEnd { grant, subject, resource, reason } = end;
        Self { grant: grant.to_string(), subject: subject.into(), resource: resource.into(), reason }
    }
}

/// What a policy does when it is put in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyPlan {
    /// The version in force; 0: none.
    pub before: u64,
    /// Against that one, in order of kind and name.
    pub differences: Vec<Difference>,
    /// Resources that are not protected yet.
    pub protects: Vec<ResourceName>,
    /// Protected resources that become strict.
    pub strict: Vec<ResourceName>,
    /// Live grants that end.
    pub ends: Vec<PlannedEnd>,
}

impl PolicyPlan {
    /// Whether everything would be as it is.
    pub fn is_nothing(&self) -> bool {
        let Self { before: _, differences, protects, strict, ends } = self;
        differences.is_empty() && protects.is_empty() && strict.is_empty() && ends.is_empty()
    }
}

impl TryFrom<wire::PolicyPlan> for PolicyPlan {
    type Error = Invalid;

    fn try_from(wire: wire::PolicyPlan) -> Result<Self, Invalid> {
        let name = |name: String| name.parse::<ResourceName>();
        Ok(Self {
            before: wire.before,
            differences: all("differences", wire.differences, DIFFERENCES_MAX, TryInto::try_into)?,
            protects: all("protects", wire.protects, RESOURCES_MAX, name)?,
            strict: all("strict", wire.strict, RESOURCES_MAX, name)?,
            ends: all("ends", wire.ends, ENDS_MAX, TryInto::try_into)?,
        })
    }
}

impl From<PolicyPlan> for wire::PolicyPlan {
    fn from(plan: PolicyPlan) -> Self {
        let PolicyPlan { before, differences, protects, strict, ends } = plan;
        Self {
            before,
            differences: differences.into_iter().map(Into::into).collect(),
            protects: protects.into_iter().map(Into::into).collect(),
            strict: strict.into_iter().map(Into::into).collect(),
            ends: ends.into_iter().map(Into::into).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> wire::PolicyFile {
        wire::PolicyFile { path: path.to_owned(), text: text.to_owned() }
    }

    #[track_caller]
    fn check(files: Vec<wire::PolicyFile>, expected: Result<usize, &str>) {
        let files = PolicyFiles::try_from(files).map(|files| files.as_map().len());
        assert_eq!(files.map_err(|error| error.to_string()), expected.map_err(str::to_owned));
    }

    #[test]
    fn files_are_bounded() {
        check(vec![], Ok(0));
        check(vec![file("limits.toml", ""), file("conditions/a.cedar", "x")], Ok(2));
        check(vec![file("a", ""), file("a", "x")], Err("files: `a` is there twice"));
        check(vec![file("", "")], Err("files: `` is no path of a file"));
        check(vec![file("a\nb", "")], Err("files: `a\\nb` is no path of a file"));
        let large = "x".repeat(PolicyFiles::FILE_MAX_BYTES + 1);
        check(vec![file("a", &large)], Err("files: `a` is larger than 1048576 bytes"));
        let many = |count: usize, text: &str| {
            (0..count).map(|number| file(&number.to_string(), text)).collect::<Vec<_>>()
        };
        check(many(257, ""), Err("files: 257 are more than 256"));
        let each = "x".repeat(PolicyFiles::FILE_MAX_BYTES);
        check(many(9, &each), Err("files: 9437184 bytes together are more than 8388608"));
    }

    #[test]
    fn a_plan_survives_the_wire() {
        let plan = PolicyPlan {
            before: 3,
            differences: vec![
                Difference { kind: "limits".to_owned(), name: String::new(), what: What::Changed },
                Difference { kind: "role".to_owned(), name: "debug".to_owned(), what: What::Removed },
            ],
            protects: vec!["db".parse().expect("valid")],
            strict: vec![],
            ends: vec![PlannedEnd {
                grant: GrantId::new(),
                subject: "user:alice".parse().expect("valid"),
                resource: "db".parse().expect("valid"),
                reason: "no role".to_owned(),
            }],
        };
        assert_eq!(PolicyPlan::try_from(wire::PolicyPlan::from(plan.clone())), Ok(plan));
    }
}
