//! Cedar policies: checked against the schema, found by scope, asked.
//!
//! Owns: all that is said to Cedar. Must not know: files, roles' contents, what a decision is.
//!
//! Invariants: every policy has an `@id` of its own, under which everything names it. A policy that cannot be evaluated is told,
//! never passed over: Cedar itself would skip a `forbid` that fails.
//!
//! Cedar asks every policy of a set. So the policies lie in a set for each (action, role, principal) that their scopes name, and
//! a question goes only to the sets that can have an answer.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::str::FromStr;
use std::sync::LazyLock;

use cedar_policy::ffi::DetailedError;
use cedar_policy::{
    ActionConstraint, Authorizer, Context, Effect, Entities, Entity, EntityId, EntityTypeName, EntityUid,
    PolicySet, PrincipalConstraint, Request, ResourceConstraint, RestrictedExpression, Schema,
    ValidationMode, ValidationWarning, Validator,
};
use proto::types::SubjectId;

use crate::facts::{Facts, Stage};
use crate::model::Policy;
use crate::names::{ConditionId, GroupName, RoleName};
use crate::problem::{Problem, position, quote};

/// The schema as text, which users read too.
pub const SCHEMA: &str = include_str!("../schema.cedarschema");

/// How many Cedar policies there may be.
const CONDITIONS_MAX: usize = 10_000;
/// How long the text of `@help` may be.
const HELP_MAX_CHARS: usize = 200;
/// How deep brackets may lie in each other: what checks and evaluates them goes as deep on the stack.
const DEPTH_MAX: usize = 32;
/// How many operators and accesses a file may chain in one policy, for the same reason.
const CHAIN_MAX: usize = 500;

/// What Cedar is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Action {
    At(Stage),
    /// Is it approved without anybody's yes?
    Approve,
}

impl Action {
    const ALL: [Self; 4] =
        [Self::At(Stage::Request), Self::At(Stage::Activate), Self::At(Stage::Keep), Self::Approve];

    fn as_str(self) -> &'static str {
        match self {
            Self::At(stage) => stage.as_str(),
            Self::Approve => "approve",
        }
    }
}

/// Whom a policy's scope names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Scope {
    Anybody,
    Subject(SubjectId),
    Group(GroupName),
}

/// One Cedar policy, as far as it is looked at outside Cedar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) id: ConditionId,
    pub(crate) forbids: bool,
    /// What would help, by its `@help`.
    pub(crate) help: Option<String>,
    pub(crate) actions: Vec<Action>,
    pub(crate) scope: Scope,
    /// Only for this one of the policy's roles.
    pub(crate) role: Option<RoleName>,
    /// No `when` and no `unless`.
    pub(crate) is_bare: bool,
    pub(crate) file: String,
    pub(crate) line: usize,
    pub(crate) column: usize,
    /// As it is written, without white space that means nothing.
    pub(crate) text: String,
    /// For every kind of principal that its scope could mean.
    pub(crate) is_for_all_kinds: bool,
}

type Sets = HashMap<Scope, PolicySet>;

/// All Cedar policies.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conditions {
    all: BTreeMap<String, Condition>,
    /// By action and role; the role None: for whatever role.
    sets: HashMap<(Action, Option<RoleName>), Sets>,
    /// What Cedar noticed and does not refuse: the policies that can never apply.
    pub(crate) never: Vec<(ConditionId, String)>,
}

/// What the policies said.
#[derive(Debug, Default)]
pub(crate) struct Answer<'a> {
    pub(crate) permits: Vec<&'a Condition>,
    pub(crate) forbids: Vec<&'a Condition>,
    /// Those that could not be evaluated, with Cedar's word for it.
    pub(crate) failed: Vec<(&'a Condition, String)>,
}

/// What is there to be named by policies.
pub(crate) struct Known<'a> {
    pub(crate) subjects: &'a dyn Fn(&SubjectId) -> bool,
    pub(crate) groups: &'a dyn Fn(&str) -> bool,
    pub(crate) roles: &'a dyn Fn(&str) -> bool,
    pub(crate) hosts: &'a dyn Fn(&str) -> bool,
    pub(crate) windows: &'a dyn Fn(&str) -> bool,
    pub(crate) resources: &'a dyn Fn(&str) -> bool,
}

struct Reading<'a> {
    problems: &'a mut Vec<Problem>,
    all: BTreeMap<String, (Condition, cedar_policy::Policy)>,
}

/// Reads and checks every policy of `files` (path → text). Problems are added to `problems`; with any, the result is of no use.
pub(crate) fn read(
    files: &BTreeMap<&str, &str>,
    known: &Known<'_>,
    problems: &mut Vec<Problem>,
) -> Conditions {
    let schema = match Schema::from_cedarschema_str(SCHEMA) {
        Ok((schema, _)) => schema,
        Err(error) => {
            problems.push(whole(
                "schema.cedarschema",
                error.to_string(),
                "this is a fault of Portcullis: report it",
            ));
            return Conditions::default();
        }
    };
    let mut reading = Reading { problems, all: BTreeMap::new() };
    for (file, text) in files {
        reading.file(file, text, known);
    }
    let Reading { problems, all } = reading;
    if all.len() > CONDITIONS_MAX {
        let text = format!("{} Cedar policies are more than {CONDITIONS_MAX}", all.len());
        problems.push(whole("conditions", text, "say with one policy for a group what is the same for many"));
        return Conditions::default();
    }
    check(&all, files, schema, problems)
}

/// Validates all together, and sorts them into sets.
fn check(
    all: &BTreeMap<String, (Condition, cedar_policy::Policy)>,
    files: &BTreeMap<&str, &str>,
    schema: Schema,
    problems: &mut Vec<Problem>,
) -> Conditions {
    let mut conditions = Conditions::default();
    let mut together = PolicySet::new();
    for (condition, policy) in all.values() {
        if let Err(error) = together.add(policy.clone()) {
            problems.push(at_condition(condition, error.to_string(), "give it another `@id`"));
        }
    }
    let result = Validator::new(schema).validate(&together, ValidationMode::Strict);
    let place = |id: &str, detail: &DetailedError| {
        let condition = all.get(id).map(|(condition, _)| condition)?;
        let text = files.get(condition.file.as_str())?;
        let start = detail.source_locations.first().map(|label| label.loc.start);
        let (line, column) = start.map_or((condition.line, condition.column), |start| position(text, start));
        Some((condition, line, column))
    };
    for error in result.validation_errors() {
        let detail = DetailedError::from(error);
        if let Some((condition, line, column)) = place(AsRef::<str>::as_ref(error.policy_id()), &detail) {
            let help = detail
                .help
                .clone()
                .unwrap_or_else(|| "see the schema for what conditions may speak of".to_owned());
            let text = format!("policy `{}`: {}", condition.id, without_id(&detail.message));
            problems.push(Problem {
                file: condition.file.clone(),
                line,
                column,
                text,
                help: without_id(&help),
            });
        }
    }
    for warning in result.validation_warnings() {
        let detail = DetailedError::from(warning);
        let Some((condition, line, column)) = place(AsRef::<str>::as_ref(warning.policy_id()), &detail)
        else {
            continue;
        };
        match warning {
            ValidationWarning::ImpossiblePolicy(_) | ValidationWarning::InvalidActionApplication(_) => {
                conditions.never.push((condition.id.clone(), without_id(&detail.message)));
            }
            _ => problems.push(Problem {
                file: condition.file.clone(),
                line,
                column,
                text: format!("policy `{}`: {}", condition.id, without_id(&detail.message)),
                help: "write it with letters that cannot be taken for others".to_owned(),
            }),
        }
    }
    for (id, (condition, policy)) in all {
        for action in &condition.actions {
            let sets = conditions.sets.entry((*action, condition.role.clone())).or_default();
            // The ids were found unique above.
            let _ = sets.entry(condition.scope.clone()).or_default().add(policy.clone());
        }
        conditions.all.insert(id.clone(), condition.clone());
    }
    conditions
}

impl Reading<'_> {
    fn file(&mut self, file: &str, text: &str, known: &Known<'_>) {
        if let Some((byte, what)) = too_deep(text) {
            let (line, column) = position(text, byte);
            let text = format!("the policy is too complicated: {what}");
            let help = "write several policies in its place".to_owned();
            self.problems.push(Problem { file: file.to_owned(), line, column, text, help });
            return;
        }
        let set = match PolicySet::from_str(text) {
            Ok(set) => set,
            Err(errors) => {
                for error in errors.iter() {
                    let detail = DetailedError::from(error);
                    let start = detail.source_locations.first().map_or(0, |label| label.loc.start);
                    let (line, column) = position(text, start);
                    let help = detail.help.unwrap_or_else(|| "correct the Cedar syntax".to_owned());
                    let text = one_line(&detail.message);
                    self.problems.push(Problem {
                        file: file.to_owned(),
                        line,
                        column,
                        text,
                        help: one_line(&help),
                    });
                }
                return;
            }
        };
        if set.templates().next().is_some() {
            let help = "name the principal and the role, or leave them open";
            self.problems.push(whole(
                file,
                "a template (`?principal`, `?resource`) is no policy here".to_owned(),
                help,
            ));
        }
        for policy in set.policies() {
            self.policy(file, text, policy, known);
        }
    }

    fn policy(&mut self, file: &str, text: &str, policy: &cedar_policy::Policy, known: &Known<'_>) {
        let written = policy.to_cedar().unwrap_or_default();
        let (line, column) = text.find(written.trim()).map_or((0, 0), |start| position(text, start));
        let place = |text: String, help: &str| Problem {
            file: file.to_owned(),
            line,
            column,
            text,
            help: help.to_owned(),
        };
        let Some(id) = policy.annotation("id") else {
            self.problems.push(place(
                "a policy has no `@id`".to_owned(),
                "write `@id(\"NAME\")` before it: refusals name it",
            ));
            return;
        };
        let id: ConditionId = match id.parse() {
            Ok(id) => id,
            Err(error) => {
                let help = "write an `@id` of a-z, 0-9, `-` and `.`";
                self.problems.push(place(format!("`@id`: {}", error.problem), help));
                return;
            }
        };
        for (key, value) in policy.annotations() {
            if !["id", "help", "description"].contains(&key) {
                let text = format!("policy `{id}`: the annotation {} is not known", quote(key));
                self.problems.push(place(text, "use `@id`, `@help` and `@description`"));
            }
            if value.chars().count() > HELP_MAX_CHARS || value.chars().any(char::is_control) {
                let text = format!(
                    "policy `{id}`: `@{key}` has more than {HELP_MAX_CHARS} characters, or control characters"
                );
                self.problems.push(place(text, "say it shorter, in one line"));
            }
        }
        for literal in policy.entity_literals() {
            if let Some(problem) = unknown(&literal, known) {
                self.problems.push(place(
                    format!("policy `{id}`: {problem}"),
                    "correct the name, or add it to its file",
                ));
            }
        }
        if let Some((other, _)) = self.all.get(id.as_str()) {
            let text = format!("policy `{id}` is there twice, also at {}:{}", other.file, other.line);
            self.problems.push(place(text, "give one of them another `@id`"));
            return;
        }
        let Some((scope, role)) = scope(policy) else {
            let text = format!("policy `{id}`: its scope names what can be no principal, or no role");
            self.problems
                .push(place(text, "name a User, a Workload or a Group as principal, and a Role as resource"));
            return;
        };
        let condition = Condition {
            forbids: policy.effect() == Effect::Forbid,
            help: policy.annotation("help").filter(|text| !text.is_empty()).map(str::to_owned),
            actions: actions(policy),
            scope,
            role,
            text: one_line(&written),
            is_bare: !written.contains('{'),
            is_for_all_kinds: !matches!(
                policy.principal_constraint(),
                PrincipalConstraint::Is(_) | PrincipalConstraint::IsIn(..)
            ),
            file: file.to_owned(),
            line,
            column,
            id,
        };
        let policy = policy.new_id(cedar_policy::PolicyId::new(condition.id.as_str()));
        self.all.insert(condition.id.to_string(), (condition, policy));
    }
}

/// Whose and which role's a policy is, by its scope. None: of nothing that can be.
fn scope(policy: &cedar_policy::Policy) -> Option<(Scope, Option<RoleName>)> {
    let who = match policy.principal_constraint() {
        PrincipalConstraint::Any | PrincipalConstraint::Is(_) => Scope::Anybody,
        PrincipalConstraint::Eq(uid) | PrincipalConstraint::In(uid) | PrincipalConstraint::IsIn(_, uid) => {
            match uid.type_name().to_string().as_str() {
                "Group" => Scope::Group(uid.id().unescaped().parse().ok()?),
                _ => Scope::Subject(subject(&uid)?),
            }
        }
    };
    let role = match policy.resource_constraint() {
        ResourceConstraint::Any | ResourceConstraint::Is(_) => None,
        ResourceConstraint::Eq(uid) | ResourceConstraint::In(uid) | ResourceConstraint::IsIn(_, uid) => {
            let is_role = uid.type_name().to_string() == "Role";
            Some(is_role.then(|| uid.id().unescaped().parse().ok()).flatten()?)
        }
    };
    Some((who, role))
}

fn actions(policy: &cedar_policy::Policy) -> Vec<Action> {
    let named = match policy.action_constraint() {
        ActionConstraint::Any => return Action::ALL.to_vec(),
        ActionConstraint::In(uids) => uids,
        ActionConstraint::Eq(uid) => vec![uid],
    };
    let is_named = |action: &Action| named.iter().any(|uid| uid.id().unescaped() == action.as_str());
    Action::ALL.into_iter().filter(is_named).collect()
}

fn subject(uid: &EntityUid) -> Option<SubjectId> {
    let kind = match uid.type_name().to_string().as_str() {
        "User" => "user",
        "Workload" => "workload",
        _ => return None,
    };
    format!("{kind}:{}", uid.id().unescaped()).parse().ok()
}

/// What is wrong with the name of something that a policy names.
fn unknown(uid: &EntityUid, known: &Known<'_>) -> Option<String> {
    let (kind, name) = (uid.type_name().to_string(), uid.id().unescaped());
    let (is_known, file) = match kind.as_str() {
        "User" | "Workload" => (subject(uid).is_some_and(|id| (known.subjects)(&id)), "subjects.toml"),
        "Group" => ((known.groups)(name), "subjects.toml"),
        "Role" => ((known.roles)(name), "roles.toml"),
        "Host" => ((known.hosts)(name), "hosts.toml"),
        "Window" => ((known.windows)(name), "limits.toml"),
        "Resource" => ((known.resources)(name), "resources.toml"),
        // Actions, channels and types that do not exist: the schema knows them.
        _ => return None,
    };
    (!is_known).then(|| format!("{kind} {} is not in {file}", quote(name)))
}

/// What would take too much stack to check: the byte at which it is too much. Strings and comments do not count.
fn too_deep(text: &str) -> Option<(usize, String)> {
    let (mut depth, mut chain) = (0_usize, 0_usize);
    let mut bytes = text.bytes().enumerate().peekable();
    let mut before = b' ';
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => loop {
                match bytes.next() {
                    Some((_, b'\\')) => drop(bytes.next()),
                    Some((_, b'"')) | None => break,
                    Some(_) => {}
                }
            },
            b'/' if bytes.peek().is_some_and(|(_, next)| *next == b'/') => {
                while bytes.next_if(|(_, byte)| *byte != b'\n').is_some() {}
            }
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b';' => chain = 0,
            b'&' | b'|' | b'.' | b'!' | b'-' | b'+' | b'*' | b'?' => chain += 1,
            // `if … then … else if …`, `has`, `in`, `like`, `is`: a word that begins here.
            b'i' | b'h' | b'l' if !before.is_ascii_alphanumeric() && before != b'_' => chain += 1,
            _ => {}
        }
        before = byte;
        if depth > DEPTH_MAX {
            return Some((at, format!("brackets lie more than {DEPTH_MAX} deep")));
        }
        if chain > CHAIN_MAX {
            return Some((at, format!("it has more than {CHAIN_MAX} operators")));
        }
    }
    None
}

fn whole(file: &str, text: String, help: &str) -> Problem {
    Problem { file: file.to_owned(), line: 0, column: 0, text, help: help.to_owned() }
}

fn at_condition(condition: &Condition, text: String, help: &str) -> Problem {
    let Condition { file, line, column, .. } = condition;
    Problem { file: file.clone(), line: *line, column: *column, text, help: help.to_owned() }
}

/// Cedar says which policy it is, in several ways, which is said already; and each thing again for every action.
fn without_id(message: &str) -> String {
    let mut text = one_line(message);
    for (start, end) in [("for policy `", "`, "), ("for policy `", "`: "), (" for Action::\"", "\"")] {
        while let Some(at) = text.find(start) {
            let Some(length) = text[at + start.len()..].find(end) else { break };
            text.replace_range(at..at + start.len() + length + end.len(), "");
        }
    }
    text
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The facts of one request, made ready for Cedar when it is first asked.
pub(crate) struct Question<'a> {
    policy: &'a Policy,
    facts: &'a Facts,
    groups: &'a BTreeSet<GroupName>,
    scopes: Vec<Scope>,
    ready: OnceCell<Result<Ready, String>>,
    /// The context for each (duration, approvals) that was asked about: making one takes longer than asking most policies.
    contexts: RefCell<Vec<((i64, u32), Context)>>,
}

struct Ready {
    principal: EntityUid,
    entities: Entities,
    authorizer: Authorizer,
    /// All facts but the duration, which roles decide.
    context: Vec<(String, RestrictedExpression)>,
}

impl<'a> Question<'a> {
    pub(crate) fn new(policy: &'a Policy, facts: &'a Facts, groups: &'a BTreeSet<GroupName>) -> Self {
        let own = [Scope::Anybody, Scope::Subject(facts.subject.clone())];
        let scopes = own.into_iter().chain(groups.iter().cloned().map(Scope::Group)).collect();
        Self { policy, facts, groups, scopes, ready: OnceCell::new(), contexts: RefCell::default() }
    }

    fn sets(&self, action: Action, role: &RoleName) -> impl Iterator<Item = &'a PolicySet> {
        let conditions = &self.policy.conditions;
        let places = [(action, None), (action, Some(role.clone()))];
        let sets = places.into_iter().filter_map(|place| conditions.sets.get(&place));
        sets.flat_map(|sets| self.scopes.iter().filter_map(|scope| sets.get(scope)))
    }

    /// Whether a policy can permit the role to this subject, if only its conditions are met.
    pub(crate) fn could_permit(&self, action: Action, role: &RoleName) -> bool {
        self.sets(action, role).flat_map(PolicySet::policies).any(|policy| policy.effect() == Effect::Permit)
    }

    /// The ids of the policies that could permit the role to this subject.
    pub(crate) fn permits(&self, action: Action, role: &RoleName) -> HashSet<&'a str> {
        let all = &self.policy.conditions.all;
        let found = self.sets(action, role).flat_map(PolicySet::policies);
        let found = found.filter_map(|policy| all.get(AsRef::<str>::as_ref(policy.id())));
        found.filter(|condition| !condition.forbids).map(|condition| condition.id.as_str()).collect()
    }

    /// What the policies say. `Err`: Cedar takes the facts for impossible, which denies.
    pub(crate) fn ask(
        &self,
        action: Action,
        role: &RoleName,
        seconds: i64,
        approvals: u32,
    ) -> Result<Answer<'a>, String> {
        let mut answer = Answer::default();
        let mut sets = self.sets(action, role).peekable();
        if sets.peek().is_none() {
            return Ok(answer);
        }
        let ready = self.ready.get_or_init(|| self.prepare()).as_ref().map_err(Clone::clone)?;
        let context = self.context_of(ready, seconds, approvals)?;
        let action = uid("Action", action.as_str())?;
        let request =
            Request::new(ready.principal.clone(), action, uid("Role", role.as_str())?, context, None);
        let request = request.map_err(|error| error.to_string())?;
        let all = &self.policy.conditions.all;
        for set in sets {
            let response = ready.authorizer.is_authorized(&request, set, &ready.entities);
            for id in response.diagnostics().reason() {
                let condition = all.get(AsRef::<str>::as_ref(id)).ok_or("a policy has no name")?;
                match condition.forbids {
                    true => answer.forbids.push(condition),
                    false => answer.permits.push(condition),
                }
            }
            for error in response.diagnostics().errors() {
                let cedar_policy::AuthorizationError::PolicyEvaluationError(error) = error;
                let condition =
                    all.get(AsRef::<str>::as_ref(error.policy_id())).ok_or("a policy has no name")?;
                answer.failed.push((condition, one_line(&error.inner().to_string())));
            }
        }
        answer.permits.sort_by(|one, other| one.id.cmp(&other.id));
        answer.forbids.sort_by(|one, other| one.id.cmp(&other.id));
        answer.failed.sort_by(|one, other| one.0.id.cmp(&other.0.id));
        Ok(answer)
    }

    fn context_of(&self, ready: &Ready, seconds: i64, approvals: u32) -> Result<Context, String> {
        let key = (seconds, approvals);
        let known = self.contexts.borrow().iter().find(|(known, _)| *known == key).map(|(_, it)| it.clone());
        if let Some(context) = known {
            return Ok(context);
        }
        let last = [
            ("duration".to_owned(), RestrictedExpression::new_long(seconds)),
            ("approvals".to_owned(), RestrictedExpression::new_long(approvals.into())),
        ];
        let context = Context::from_pairs(ready.context.iter().cloned().chain(last));
        let context = context.map_err(|error| error.to_string())?;
        self.contexts.borrow_mut().push((key, context.clone()));
        Ok(context)
    }

    fn prepare(&self) -> Result<Ready, String> {
        let Facts { subject, resource, .. } = self.facts;
        let principal = subject_uid(subject)?;
        let groups = self.groups.iter().map(|group| uid("Group", group.as_str()));
        let groups = groups.collect::<Result<HashSet<_>, _>>()?;
        let resource_uid = uid("Resource", resource.as_str())?;
        let labels = self.policy.resources.get(resource).map(|resource| &resource.labels);
        let text = |value: &str| RestrictedExpression::new_string(value.to_owned());
        let tags = labels.into_iter().flat_map(|labels| labels.iter());
        let tags: Vec<_> = tags.map(|(key, value)| (key.to_owned(), text(value))).collect();
        let sensitivity = tags.iter().filter(|(key, _)| key == "sensitivity").cloned().collect::<Vec<_>>();
        let resource =
            Entity::new_with_tags(resource_uid, sensitivity, [], tags).map_err(|error| error.to_string())?;
        let person = Entity::new_no_attrs(principal.clone(), groups);
        let entities =
            Entities::from_entities([person, resource], None).map_err(|error| error.to_string())?;
        Ok(Ready { principal, entities, authorizer: Authorizer::new(), context: self.context()? })
    }

    fn context(&self) -> Result<Vec<(String, RestrictedExpression)>, String> {
        let Facts {
            now,
            subject,
            requester,
            resource,
            hosts,
            channel,
            source,
            mfa,
            login_age,
            device,
            incidents,
            ..
        } = self.facts;
        let set = |values: Vec<RestrictedExpression>| RestrictedExpression::new_set(values);
        let entity = |kind: &str, name: &str| uid(kind, name).map(RestrictedExpression::new_entity_uid);
        let text = |value: String| RestrictedExpression::new_string(value);
        let is = RestrictedExpression::new_bool;
        let named: Vec<_> = match hosts.is_empty() {
            true => self.policy.hosts.iter().collect(),
            false => hosts.iter().filter_map(|host| self.policy.hosts.get_key_value(host)).collect(),
        };
        let mut labels: BTreeMap<String, usize> = BTreeMap::new();
        for (key, value) in named.iter().flat_map(|(_, labels)| labels.iter()) {
            *labels.entry(format!("{key}={value}")).or_default() += 1;
        }
        let common =
            labels.iter().filter(|(_, count)| **count == named.len()).map(|(label, _)| text(label.clone()));
        let (windows, maintenance) = self.policy.open_windows(*now);
        let active: Vec<_> =
            incidents.iter().filter(|(_, end)| *end > now).map(|(id, _)| text(id.to_string())).collect();
        let windows = windows.into_iter().map(|name| entity("Window", name.as_str()));
        let maintenance = maintenance.into_iter().map(|name| entity("Window", name.as_str()));
        let hosts = named.iter().map(|(name, _)| entity("Host", name.as_str()));
        let mut context = vec![
            ("resource", entity("Resource", resource.as_str())?),
            ("hosts", set(hosts.collect::<Result<Vec<_>, _>>()?)),
            ("common_host_labels", set(common.collect())),
            ("host_labels", set(labels.keys().cloned().map(text).collect())),
            ("windows", set(windows.collect::<Result<Vec<_>, _>>()?)),
            ("maintenance", set(maintenance.collect::<Result<Vec<_>, _>>()?)),
            ("incident_active", is(!active.is_empty())),
            ("incidents", set(active)),
            ("channel", entity("Channel", channel.as_str())?),
            ("mfa", is(*mfa)),
            ("on_behalf", is(subject != requester)),
        ];
        context.extend(
            source.map(|source| ("source", RestrictedExpression::new_ip(source.to_canonical().to_string()))),
        );
        let seconds = login_age.map(|age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
        context.extend(seconds.map(|seconds| ("login_age", RestrictedExpression::new_long(seconds))));
        if let Some(device) = device {
            let facts =
                [("managed".to_owned(), is(device.managed)), ("encrypted".to_owned(), is(device.encrypted))];
            context.push((
                "device",
                RestrictedExpression::new_record(facts).map_err(|error| error.to_string())?,
            ));
        }
        Ok(context.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    /// Whether what Cedar is told keeps to the schema, for tests.
    #[cfg(test)]
    pub(crate) fn keeps_to_schema(&self, role: &RoleName) -> Result<(), String> {
        let (schema, _) = Schema::from_cedarschema_str(SCHEMA).map_err(|error| error.to_string())?;
        let ready = self.prepare()?;
        let last = [
            ("duration".to_owned(), RestrictedExpression::new_long(1)),
            ("approvals".to_owned(), RestrictedExpression::new_long(0)),
        ];
        let context =
            Context::from_pairs(ready.context.into_iter().chain(last)).map_err(|error| error.to_string())?;
        let role = uid("Role", role.as_str())?;
        let request = Request::new(ready.principal, uid("Action", "request")?, role, context, Some(&schema));
        request.map_err(|error| error.to_string())?;
        let entities = Entities::from_entities(ready.entities.iter().cloned(), Some(&schema));
        entities.map(drop).map_err(|error| error.to_string())
    }
}

impl Conditions {
    /// All of them, by id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Condition> {
        self.all.values()
    }
}

fn subject_uid(subject: &SubjectId) -> Result<EntityUid, String> {
    let (kind, name) = subject.as_str().split_once(':').ok_or("a subject has no kind")?;
    uid(if kind == "workload" { "Workload" } else { "User" }, name)
}

/// The types of the schema: reading one takes longer than most of a decision.
static TYPES: LazyLock<HashMap<&str, EntityTypeName>> = LazyLock::new(|| {
    let names = ["Action", "Channel", "Group", "Host", "Resource", "Role", "User", "Window", "Workload"];
    names.into_iter().filter_map(|name| Some((name, EntityTypeName::from_str(name).ok()?))).collect()
});

fn uid(kind: &str, name: &str) -> Result<EntityUid, String> {
    let kind = TYPES.get(kind).ok_or_else(|| format!("the schema has no {kind}"))?;
    Ok(EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(name)))
}
