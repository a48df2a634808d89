//! From the files of a policy to a checked [`Policy`], or to everything that is wrong with them.
//!
//! Owns: which files there are, their bounds, every rule about what stands in them. Must not know: where files come from.
//!
//! Invariants: with one problem there is no policy. All problems are told together, except that a file that is no TOML, or has a
//! key that does not belong there, tells that alone.

mod shapes;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use proto::types::{HostName, Invalid, Label, Labels, PolicyFiles, ResourceName, SubjectId, Timestamp};
use serde::de::DeserializeOwned;
use toml::Spanned;

use crate::cases::{Case, Expected};
use crate::conditions::{self, Conditions, Known};
use crate::facts::{Device, Facts};
use crate::model::{
    After, ClockStart, Directory, Extension, Limits, Links, Person, Policy, Resource, Role, StepRule, Who,
};
use crate::names::{GroupName, RoleName, RotationName, WindowName};
use crate::problem::{Problem, position, quote};
use crate::windows::{DAY_MINUTES, Maintenance, Weekly};

/// How large one file may be, in bytes.
pub const FILE_MAX_BYTES: usize = PolicyFiles::FILE_MAX_BYTES;
/// How many files there may be.
pub const FILES_MAX: usize = PolicyFiles::MAX;
/// How large all files may be together, in bytes.
pub const FILES_MAX_BYTES: usize = PolicyFiles::MAX_BYTES;
/// How many resources there may be.
const RESOURCES_MAX: usize = 4_096;
/// How many hosts there may be.
const HOSTS_MAX: usize = 10_000;
/// How many subjects there may be.
const SUBJECTS_MAX: usize = 20_000;
/// How many groups there may be.
const GROUPS_MAX: usize = 2_000;
/// How many members all groups may have together.
const MEMBERS_MAX: usize = 100_000;
/// How deep groups may lie in each other.
const GROUP_DEPTH_MAX: usize = 16;
/// How many roles there may be.
const ROLES_MAX: usize = 1_000;
/// How many entries one list of a role may have.
const LIST_MAX: usize = 1_000;
/// How many steps one role may have.
const STEPS_MAX: usize = 8;
/// How many programs one role may ask.
const HOOKS_MAX: usize = 8;
/// The longest access that nobody has approved beforehand, and that is meant for emergencies.
const BREAK_GLASS_MAX: Duration = Duration::from_secs(4 * 3600);
/// How many people may have to say yes in one step.
const COUNT_MAX: u32 = 8;
/// How many windows of each sort there may be.
const WINDOWS_MAX: usize = 100;
/// How many cases there may be.
const CASES_MAX: usize = 10_000;
/// How many addresses, ports and unix sockets a resource may have of each, as in the control plane.
const PARTS_MAX: usize = 64;

const LIMITS: &str = "limits.toml";
const SUBJECTS: &str = "subjects.toml";
const RESOURCES: &str = "resources.toml";
const HOSTS: &str = "hosts.toml";
const ROLES: &str = "roles.toml";

const NAME_HELP: &str = "correct the name";
const DURATION_HELP: &str = "write a number and its unit, such as 30m, 8h or 1h30m";

/// Reads a policy. `files`: path in its folder, with `/` → text. Problems are in order of file and line.
pub fn read(files: &BTreeMap<String, String>) -> Result<Policy, Vec<Problem>> {
    let mut reading = Reading { files, problems: Vec::new() };
    if let Some(policy) = reading.all().filter(|_| reading.problems.is_empty()) {
        return Ok(policy);
    }
    let mut problems = reading.problems;
    problems.sort();
    problems.dedup();
    Err(problems)
}

/// A moment as people and files write it, in UTC.
pub(crate) fn moment(time: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(time.unix_ms()).map(|time| time.to_string()).unwrap_or_default()
}

/// A duration as people and files write it.
pub(crate) fn duration_text(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

struct Reading<'a> {
    files: &'a BTreeMap<String, String>,
    problems: Vec<Problem>,
}

/// One file that is read.
struct File<'a, 'p> {
    name: &'a str,
    text: &'a str,
    problems: &'p mut Vec<Problem>,
}

impl File<'_, '_> {
    fn tell(&mut self, byte: usize, text: impl Into<String>, help: impl Into<String>) {
        let (line, column) = position(self.text, byte);
        let (text, help) = (text.into(), help.into());
        self.problems.push(Problem { file: self.name.to_owned(), line, column, text, help });
    }

    fn at<T>(&mut self, value: &Spanned<T>, text: impl Into<String>, help: impl Into<String>) {
        self.tell(value.span().start, text, help);
    }

    fn line(&self, byte: usize) -> usize {
        position(self.text, byte).0
    }

    fn shape<T: DeserializeOwned + Default>(&mut self) -> T {
        match toml::from_str(self.text) {
            Ok(shape) => shape,
            Err(error) => {
                let start = error.span().map_or(0, |span| span.start);
                let text = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
                self.tell(start, text, "correct the TOML; docs/policy.md shows each file");
                T::default()
            }
        }
    }

    /// A word by its own rule.
    fn parse<T: FromStr<Err = Invalid>>(&mut self, value: &Spanned<String>, help: &str) -> Option<T> {
        match value.get_ref().parse() {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.at(value, error.problem, help);
                None
            }
        }
    }

    fn list<T: FromStr<Err = Invalid>>(
        &mut self,
        what: &str,
        values: &[Spanned<String>],
        max: usize,
    ) -> Vec<T> {
        if let Some(extra) = values.get(max) {
            self.at(extra, format!("{} {what} are more than {max}", values.len()), "leave some out");
            return Vec::new();
        }
        values.iter().filter_map(|value| self.parse(value, "correct it")).collect()
    }

    fn duration(&mut self, value: &Spanned<String>) -> Option<Duration> {
        match humantime::parse_duration(value.get_ref()) {
            Ok(duration) if duration.as_secs() > 0 && duration.subsec_nanos() == 0 => Some(duration),
            Ok(_) => {
                self.at(
                    value,
                    format!("{} is not 1 s or more in whole seconds", quote(value.get_ref())),
                    DURATION_HELP,
                );
                None
            }
            Err(error) => {
                self.at(value, format!("{} is no duration: {error}", quote(value.get_ref())), DURATION_HELP);
                None
            }
        }
    }

    fn optional_duration(&mut self, value: &Option<Spanned<String>>) -> Option<Duration> {
        value.as_ref().and_then(|value| self.duration(value))
    }

    fn time(&mut self, value: &Spanned<String>) -> Option<Timestamp> {
        let time = value.get_ref().parse::<jiff::Timestamp>().map_err(|error| error.to_string());
        let time = time
            .and_then(|time| Timestamp::from_unix_ms(time.as_millisecond()).map_err(|error| error.problem));
        match time {
            Ok(time) => Some(time),
            Err(error) => {
                let help =
                    "write date, time and offset, such as 2026-12-01T22:00:00Z or 2026-12-01T22:00:00+01:00";
                self.at(value, format!("{} is no moment: {error}", quote(value.get_ref())), help);
                None
            }
        }
    }

    fn labels(&mut self, labels: &BTreeMap<String, Spanned<String>>) -> Labels {
        let Some(first) = labels.values().next() else {
            return Labels::default();
        };
        let parsed = labels.iter().map(|(key, value)| format!("{key}={}", value.get_ref()).parse::<Label>());
        match parsed.collect::<Result<Vec<_>, _>>().and_then(Labels::try_from) {
            Ok(labels) => labels,
            Err(error) => {
                self.at(
                    first,
                    error.problem,
                    "keys are names; values are 1 to 63 of a-z, A-Z, 0-9, `-`, `.` and `_`",
                );
                Labels::default()
            }
        }
    }

    fn not_more<T>(&mut self, what: &str, list: &[T], max: usize) -> bool {
        let fits = list.len() <= max;
        if !fits {
            let text = format!("{} {what} are more than {max}", list.len());
            self.problems.push(Problem {
                file: self.name.to_owned(),
                line: 0,
                column: 0,
                text,
                help: "divide the policy, or say with one prefix, label or group what is the same for many"
                    .to_owned(),
            });
        }
        fits
    }

    /// That something with this name is there already.
    fn twice<T: Display>(&mut self, at: &Spanned<String>, what: &str, name: &T) {
        self.at(
            at,
            format!("{what} `{name}` is there twice"),
            "leave one of them out, or give it another name",
        );
    }
}

impl<'a> Reading<'a> {
    fn file<'p>(&'p mut self, name: &'a str) -> Option<File<'a, 'p>> {
        let text = self.files.get(name)?;
        Some(File { name, text, problems: &mut self.problems })
    }

    fn whole(&mut self, file: &str, text: impl Into<String>, help: &str) {
        let (file, text, help) = (file.to_owned(), text.into(), help.to_owned());
        self.problems.push(Problem { file, line: 0, column: 0, text, help });
    }

    fn all(&mut self) -> Option<Policy> {
        if !self.are_files() {
            return None;
        }
        let resources = self.resources();
        let hosts = self.hosts();
        let directory = self.directory();
        let (limits, windows, maintenance) = self.limits();
        let roles = self.roles(&resources, &hosts, &directory);
        let cases = self.cases();
        let conditions = self.conditions(&resources, &hosts, &directory, &roles, &windows, &maintenance);
        let mut candidates: HashMap<ResourceName, Vec<usize>> = HashMap::new();
        for (at, role) in roles.iter().enumerate() {
            for resource in &role.resources {
                candidates.entry(resource.clone()).or_default().push(at);
            }
        }
        let links = roles.iter().map(Links::of).collect();
        let limits = limits?;
        Some(Policy {
            resources,
            hosts,
            directory,
            roles,
            limits,
            windows,
            maintenance,
            cases,
            conditions,
            candidates,
            links,
        })
    }

    /// Whether there is nothing but files that can be looked into.
    fn are_files(&mut self) -> bool {
        if self.files.len() > FILES_MAX {
            self.whole(
                ".",
                format!("{} files are more than {FILES_MAX}", self.files.len()),
                "put several into one",
            );
            return false;
        }
        let bytes: usize = self.files.values().map(String::len).sum();
        if bytes > FILES_MAX_BYTES {
            self.whole(".", format!("{bytes} bytes are more than {FILES_MAX_BYTES}"), "divide the policy");
            return false;
        }
        for (name, text) in self.files {
            if text.len() > FILE_MAX_BYTES {
                let text = format!("is larger than {FILE_MAX_BYTES} bytes");
                self.whole(name, text, "divide it: conditions and tests can be many files");
            }
            let is_known = [LIMITS, SUBJECTS, RESOURCES, HOSTS, ROLES].contains(&name.as_str());
            if !is_known && !is_condition(name) && !is_test(name) {
                let help = "a policy has resources.toml, hosts.toml, subjects.toml, roles.toml, limits.toml, conditions/*.cedar and tests/*.toml";
                self.whole(name, "is not a file of a policy", help);
            }
        }
        if !self.files.contains_key(LIMITS) {
            self.whole(
                LIMITS,
                "is missing",
                "write it with `maximum_duration = \"8h\"`, which no role can exceed",
            );
        }
        self.problems.is_empty()
    }

    fn resources(&mut self) -> BTreeMap<ResourceName, Resource> {
        let mut found = BTreeMap::new();
        let Some(mut file) = self.file(RESOURCES) else { return found };
        let shapes::Resources { resource } = file.shape();
        if !file.not_more("resources", &resource, RESOURCES_MAX) {
            return found;
        }
        for entry in resource {
            let checked = Resource {
                addresses: file.list("addresses", &entry.addresses, PARTS_MAX),
                ports: file.list("ports", &entry.ports, PARTS_MAX),
                unix: file.list("unix sockets", &entry.unix, PARTS_MAX),
                labels: file.labels(&entry.labels),
            };
            let Some(name) = file.parse::<ResourceName>(&entry.name, NAME_HELP) else { continue };
            if entry.unix.is_empty() && (entry.addresses.is_empty() || entry.ports.is_empty()) {
                let text = format!("resource `{name}` is nowhere");
                file.at(&entry.name, text, "give it `addresses` and `ports`, or `unix`");
            }
            if found.contains_key(&name) {
                file.twice(&entry.name, "resource", &name);
            }
            found.insert(name, checked);
        }
        found
    }

    fn hosts(&mut self) -> BTreeMap<HostName, Labels> {
        let mut found = BTreeMap::new();
        let Some(mut file) = self.file(HOSTS) else { return found };
        let shapes::Hosts { host } = file.shape();
        if !file.not_more("hosts", &host, HOSTS_MAX) {
            return found;
        }
        for entry in host {
            let labels = file.labels(&entry.labels);
            let Some(name) = file.parse::<HostName>(&entry.name, NAME_HELP) else { continue };
            if found.contains_key(&name) {
                file.twice(&entry.name, "host", &name);
            }
            found.insert(name, labels);
        }
        found
    }

    fn directory(&mut self) -> Directory {
        let mut directory = Directory::default();
        let Some(mut file) = self.file(SUBJECTS) else { return directory };
        let shapes::Subjects { subject, group, on_call } = file.shape();
        let members: Vec<_> = group.iter().flat_map(|group| &group.members).collect();
        let fits = file.not_more("subjects", &subject, SUBJECTS_MAX)
            & file.not_more("groups", &group, GROUPS_MAX)
            & file.not_more("members of groups", &members, MEMBERS_MAX)
            & file.not_more("rotations", &on_call, GROUPS_MAX);
        if !fits {
            return directory;
        }
        for entry in &subject {
            let manager = entry.manager.as_ref().and_then(|manager| file.parse(manager, NAME_HELP));
            let Some(id) = file.parse::<SubjectId>(&entry.id, NAME_HELP) else { continue };
            if directory.subjects.contains_key(&id) {
                file.twice(&entry.id, "subject", &id);
            }
            if manager.as_ref() == Some(&id) {
                file.at(&entry.id, format!("`{id}` is its own manager"), "name another one, or none");
            }
            directory.subjects.insert(id, Person { manager, groups: BTreeSet::new() });
        }
        for manager in subject.iter().filter_map(|entry| entry.manager.as_ref()) {
            if let Ok(id) = manager.get_ref().parse::<SubjectId>() {
                person(&mut file, manager, &id, &directory);
            }
        }
        for entry in &on_call {
            let named: Vec<SubjectId> = file.list("subjects", &entry.subjects, LIST_MAX);
            for (id, at) in named.iter().zip(&entry.subjects) {
                person(&mut file, at, id, &directory);
            }
            let Some(name) = file.parse::<RotationName>(&entry.name, NAME_HELP) else { continue };
            if directory.on_call.insert(name.clone(), named.into_iter().collect()).is_some() {
                file.twice(&entry.name, "on_call", &name);
            }
        }
        groups(&mut file, &group, &mut directory);
        directory
    }

    fn limits(&mut self) -> (Option<Limits>, Vec<Weekly>, Vec<Maintenance>) {
        let (mut weekly, mut planned) = (Vec::new(), Vec::new());
        let Some(mut file) = self.file(LIMITS) else { return (None, weekly, planned) };
        let shape: shapes::Limits = file.shape();
        if shape.maximum_duration.is_none() && file.problems.iter().all(|problem| problem.file != LIMITS) {
            let help = "write `maximum_duration = \"8h\"`, which no role can exceed";
            file.tell(0, "`maximum_duration` is missing", help);
        }
        let limits = file.optional_duration(&shape.maximum_duration).map(|maximum_duration| Limits {
            maximum_duration,
            maximum_idle: file.optional_duration(&shape.maximum_idle),
            automatic_maximum_duration: file.optional_duration(&shape.automatic_maximum_duration),
            maximum_extensions: shape.maximum_extensions,
        });
        let fits = file.not_more("windows", &shape.window, WINDOWS_MAX)
            & file.not_more("maintenance windows", &shape.maintenance, WINDOWS_MAX);
        if !fits {
            return (limits, weekly, planned);
        }
        let mut names = BTreeSet::new();
        for entry in &shape.window {
            let days: Vec<_> = entry.days.iter().filter_map(|day| weekday(&mut file, day)).collect();
            if entry.days.is_empty() {
                file.at(&entry.name, "the window has no days", "write `days = [\"mon\", \"tue\"]`");
            }
            let (from, to) = (minute(&mut file, &entry.from), minute(&mut file, &entry.to));
            let zone = zone(&mut file, &entry.zone);
            let Some(name) = window_name(&mut file, &entry.name, &mut names) else { continue };
            match (from, to) {
                // Told already.
                (None, _) | (_, None) => {}
                (Some(DAY_MINUTES), _) | (_, Some(0)) => {
                    let text = format!(
                        "{} to {} is no window",
                        quote(entry.from.get_ref()),
                        quote(entry.to.get_ref())
                    );
                    file.at(&entry.from, text, "it opens at 00:00 to 23:59 and closes at 00:01 to 24:00");
                }
                (Some(from), Some(to)) if from != to => {
                    weekly.extend(zone.map(|zone| Weekly { name, days, from, to, zone }));
                }
                (Some(_), Some(_)) => {
                    let help = "a whole day is from 00:00 to 24:00";
                    file.at(&entry.to, format!("{} is when it opens, too", quote(entry.to.get_ref())), help);
                }
            }
        }
        for entry in &shape.maintenance {
            let (from, to) = (file.time(&entry.from), file.time(&entry.to));
            let Some(name) = window_name(&mut file, &entry.name, &mut names) else { continue };
            let Some((from, to)) = from.zip(to) else { continue };
            match from < to {
                true => planned.push(Maintenance { name, from, to }),
                false => file.at(
                    &entry.to,
                    format!("window `{name}` ends before it begins"),
                    "exchange `from` and `to`",
                ),
            }
        }
        (limits, weekly, planned)
    }

    fn roles(
        &mut self,
        resources: &BTreeMap<ResourceName, Resource>,
        hosts: &BTreeMap<HostName, Labels>,
        directory: &Directory,
    ) -> Vec<Role> {
        let mut found: BTreeMap<RoleName, Role> = BTreeMap::new();
        let Some(mut file) = self.file(ROLES) else { return Vec::new() };
        let shapes::Roles { role } = file.shape();
        if !file.not_more("roles", &role, ROLES_MAX) {
            return Vec::new();
        }
        for entry in &role {
            let Some(role) = checked_role(&mut file, entry, resources, hosts, directory) else { continue };
            if found.contains_key(&role.name) {
                file.twice(&entry.name, "role", &role.name);
            }
            found.insert(role.name.clone(), role);
        }
        found.into_values().collect()
    }

    fn cases(&mut self) -> Vec<Case> {
        let mut found = Vec::new();
        let files = self.files;
        for name in files.keys().filter(|name| is_test(name)) {
            let Some(mut file) = self.file(name) else { continue };
            let shapes::Cases { case } = file.shape();
            for entry in &case {
                found.extend(checked_case(&mut file, entry));
            }
        }
        if found.len() > CASES_MAX {
            self.whole("tests", format!("{} cases are more than {CASES_MAX}", found.len()), "leave some out");
        }
        found
    }

    fn conditions(
        &mut self,
        resources: &BTreeMap<ResourceName, Resource>,
        hosts: &BTreeMap<HostName, Labels>,
        directory: &Directory,
        roles: &[Role],
        windows: &[Weekly],
        maintenance: &[Maintenance],
    ) -> Conditions {
        let files = self.files.iter().filter(|(name, _)| is_condition(name));
        let files: BTreeMap<&str, &str> = files.map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let windows: HashSet<&str> = windows.iter().map(|window| window.name.as_str()).collect();
        let maintenance: HashSet<&str> = maintenance.iter().map(|window| window.name.as_str()).collect();
        let known = Known {
            subjects: &|id| directory.subjects.contains_key(id),
            groups: &|name| name.parse().is_ok_and(|name: GroupName| directory.groups.contains_key(&name)),
            roles: &|name| roles.iter().any(|role| role.name.as_str() == name),
            hosts: &|name| name.parse().is_ok_and(|name: HostName| hosts.contains_key(&name)),
            windows: &|name| windows.contains(name) || maintenance.contains(name),
            resources: &|name| name.parse().is_ok_and(|name: ResourceName| resources.contains_key(&name)),
        };
        conditions::read(&files, &known, &mut self.problems)
    }
}

fn is_condition(name: &str) -> bool {
    name.strip_prefix("conditions/").is_some_and(|rest| rest.ends_with(".cedar") && !rest.contains('/'))
}

fn is_test(name: &str) -> bool {
    name.strip_prefix("tests/").is_some_and(|rest| rest.ends_with(".toml") && !rest.contains('/'))
}

/// That somebody who is named is there.
fn person(file: &mut File<'_, '_>, at: &Spanned<String>, id: &SubjectId, directory: &Directory) {
    if !directory.subjects.contains_key(id) {
        file.at(
            at,
            format!("subject `{id}` is not in subjects.toml"),
            "correct the name, or add a `[[subject]]`",
        );
    }
}

/// Closes the groups over those that they lie in, and puts them at their members.
fn groups(file: &mut File<'_, '_>, entries: &[shapes::Group], directory: &mut Directory) {
    let mut outer: BTreeMap<GroupName, BTreeSet<GroupName>> = BTreeMap::new();
    for entry in entries {
        let Some(name) = file.parse::<GroupName>(&entry.name, NAME_HELP) else { continue };
        if outer.insert(name.clone(), BTreeSet::new()).is_some() {
            file.twice(&entry.name, "group", &name);
        }
    }
    let mut direct: Vec<(SubjectId, GroupName)> = Vec::new();
    for entry in entries {
        let Ok(name) = entry.name.get_ref().parse::<GroupName>() else { continue };
        for member in &entry.members {
            match member.get_ref().strip_prefix("group:") {
                Some(inner) => {
                    match inner.parse::<GroupName>().ok().and_then(|inner| outer.get_mut(&inner)) {
                        Some(groups) => drop(groups.insert(name.clone())),
                        None => {
                            let text = format!("group {} is not in subjects.toml", quote(inner));
                            file.at(member, text, "correct the name, or add a `[[group]]`");
                        }
                    }
                }
                None => {
                    if let Some(id) =
                        file.parse::<SubjectId>(member, "write user:NAME, workload:NAME or group:NAME")
                    {
                        person(file, member, &id, directory);
                        direct.push((id, name.clone()));
                    }
                }
            }
        }
    }
    for entry in entries {
        let Ok(name) = entry.name.get_ref().parse::<GroupName>() else { continue };
        match closed(&name, &outer) {
            Ok(groups) => drop(directory.groups.insert(name, groups)),
            Err(text) => file.at(&entry.name, text, "take one of the groups out of the other"),
        }
    }
    for (id, group) in direct {
        let groups = directory.groups.get(&group).cloned().unwrap_or_default();
        if let Some(person) = directory.subjects.get_mut(&id) {
            person.groups.extend(groups);
        }
    }
}

/// All groups that a group lies in, itself included; or why that has no end.
fn closed(
    name: &GroupName,
    outer: &BTreeMap<GroupName, BTreeSet<GroupName>>,
) -> Result<BTreeSet<GroupName>, String> {
    let mut all = BTreeSet::from([name.clone()]);
    let mut edge: BTreeSet<&GroupName> = BTreeSet::from([name]);
    for depth in 0.. {
        edge = edge.into_iter().filter_map(|group| outer.get(group)).flatten().collect();
        if edge.is_empty() {
            break;
        }
        if edge.contains(name) {
            return Err(format!("group `{name}` lies in itself, by way of other groups"));
        }
        if depth >= GROUP_DEPTH_MAX {
            return Err(format!("group `{name}` lies more than {GROUP_DEPTH_MAX} groups deep"));
        }
        all.extend(edge.iter().copied().cloned());
    }
    Ok(all)
}

fn weekday(file: &mut File<'_, '_>, day: &Spanned<String>) -> Option<Weekday> {
    const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
    let at = DAYS.iter().position(|known| known == day.get_ref());
    let found = at.and_then(|at| Weekday::from_monday_zero_offset(i8::try_from(at).ok()?).ok());
    if found.is_none() {
        file.at(
            day,
            format!("{} is no day", quote(day.get_ref())),
            "use mon, tue, wed, thu, fri, sat and sun",
        );
    }
    found
}

/// `HH:MM`, in minutes; `24:00` is the end of the day.
fn minute(file: &mut File<'_, '_>, value: &Spanned<String>) -> Option<u16> {
    let digits = |text: &str| {
        (text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse::<u16>().ok())
    };
    let parts = value.get_ref().split_once(':');
    let parts = parts.and_then(|(hour, minute)| Some((digits(hour)??, digits(minute)??)));
    let found = parts.filter(|(_, minute)| *minute < 60).map(|(hour, minute)| hour * 60 + minute);
    let found = found.filter(|minute| *minute <= DAY_MINUTES);
    if found.is_none() {
        file.at(
            value,
            format!("{} is no time of day", quote(value.get_ref())),
            "write HH:MM, 00:00 to 24:00",
        );
    }
    found
}

fn zone(file: &mut File<'_, '_>, value: &Spanned<String>) -> Option<TimeZone> {
    let found = jiff::tz::TimeZoneDatabase::bundled().get(value.get_ref()).ok();
    if found.is_none() {
        let text = format!("{} is no time zone", quote(value.get_ref()));
        file.at(value, text, "use a name of the IANA database, such as Europe/Berlin or UTC");
    }
    found
}

fn window_name(
    file: &mut File<'_, '_>,
    value: &Spanned<String>,
    names: &mut BTreeSet<WindowName>,
) -> Option<WindowName> {
    let name: WindowName = file.parse(value, NAME_HELP)?;
    if !names.insert(name.clone()) {
        file.twice(value, "window", &name);
    }
    Some(name)
}

/// What a list of names and `KEY=VALUE,…` means among what there is. `*`: everything.
fn selected<N: FromStr<Err = Invalid> + Ord + Clone + Display>(
    file: &mut File<'_, '_>,
    what: &str,
    values: &[Spanned<String>],
    there: &BTreeMap<N, &Labels>,
) -> BTreeSet<N> {
    let mut found = BTreeSet::new();
    for value in values {
        let text = value.get_ref();
        if text == "*" {
            found.extend(there.keys().cloned());
        } else if text.contains('=') {
            let Some(wanted) = file.parse::<Labels>(value, "write KEY=VALUE, or several with commas") else {
                continue;
            };
            let has = |labels: &Labels| wanted.iter().all(|pair| labels.iter().any(|label| label == pair));
            found.extend(there.iter().filter(|(_, labels)| has(labels)).map(|(name, _)| name.clone()));
        } else if let Some(name) = file.parse::<N>(value, "write a name, KEY=VALUE, or *") {
            match there.contains_key(&name) {
                true => drop(found.insert(name)),
                false => file.at(
                    value,
                    format!("{what} `{name}` is not in {what}s.toml"),
                    format!("correct the name, or add a `[[{what}]]`"),
                ),
            }
        }
    }
    found
}

/// Whom a word means.
fn who(
    file: &mut File<'_, '_>,
    value: &Spanned<String>,
    directory: &Directory,
    approves: bool,
) -> Option<Who> {
    let text = value.get_ref().as_str();
    if let Some(name) = text.strip_prefix("group:") {
        let name = name.parse().ok().filter(|name| directory.groups.contains_key(name));
        if name.is_none() {
            file.at(
                value,
                format!("{} is not in subjects.toml", quote(text)),
                "correct the name, or add a `[[group]]`",
            );
        }
        return name.map(Who::Group);
    }
    if let Some(name) = text.strip_prefix("hook:") {
        let name = name.parse().ok();
        if name.is_none() {
            file.at(value, format!("{} names no hook", quote(text)), NAME_HELP);
        }
        if !approves {
            let help = "write user:NAME, workload:NAME or group:NAME";
            file.at(value, format!("{} can approve, but nothing is granted to a hook", quote(text)), help);
            return None;
        }
        return name.map(Who::Hook);
    }
    let found = match text.strip_prefix("on-call:") {
        Some(name) => {
            let name = name.parse().ok().filter(|name| directory.on_call.contains_key(name));
            if name.is_none() {
                let help = "correct the name, or add an `[[on_call]]`";
                file.at(value, format!("{} is not in subjects.toml", quote(text)), help);
            }
            name.map(Who::OnCall)
        }
        None if text == "manager" => Some(Who::Manager),
        None => {
            let help = match approves {
                true => "write user:NAME, group:NAME, manager, on-call:NAME or hook:NAME",
                false => "write user:NAME, workload:NAME or group:NAME",
            };
            let id: SubjectId = file.parse(value, help)?;
            person(file, value, &id, directory);
            if approves && !crate::model::is_human(&id) {
                file.at(value, format!("`{id}` is no person"), "only people approve");
            }
            Some(Who::Subject(id))
        }
    };
    if !approves && matches!(found, Some(Who::Manager | Who::OnCall(_))) {
        let help = "write user:NAME, workload:NAME or group:NAME";
        file.at(value, format!("{} can approve, but nothing is granted to a relation", quote(text)), help);
        return None;
    }
    found
}

fn checked_role(
    file: &mut File<'_, '_>,
    entry: &shapes::Role,
    resources: &BTreeMap<ResourceName, Resource>,
    hosts: &BTreeMap<HostName, Labels>,
    directory: &Directory,
) -> Option<Role> {
    for (what, list) in
        [("resources", &entry.resources), ("hosts", &entry.hosts), ("entries of `to`", &entry.to)]
    {
        if !file.not_more(what, list, LIST_MAX) {
            return None;
        }
    }
    if entry.resources.is_empty() {
        file.at(
            &entry.name,
            "the role has no `resources`",
            "name some, or labels (`[\"env=prod\"]`), or `[\"*\"]`",
        );
    }
    if entry.hosts.is_empty() {
        file.at(
            &entry.name,
            "the role has no `hosts`",
            "name some, or labels (`[\"env=prod\"]`), or `[\"*\"]`",
        );
    }
    let by_labels = resources.iter().map(|(name, resource)| (name.clone(), &resource.labels)).collect();
    let reached = selected(file, "resource", &entry.resources, &by_labels);
    let is_everywhere = entry.hosts.iter().any(|host| host.get_ref() == "*");
    let by_labels = hosts.iter().map(|(name, labels)| (name.clone(), labels)).collect();
    let from = selected(file, "host", &entry.hosts, &by_labels);
    let to: Vec<_> = entry.to.iter().filter_map(|value| who(file, value, directory, false)).collect();
    let steps = steps(file, entry, directory);
    let extension = entry.extension.as_ref().and_then(|extension| {
        let by = file.duration(&extension.by)?;
        if !(1..=100).contains(extension.times.get_ref()) {
            file.at(
                &extension.times,
                format!("{} is not 1 to 100 times", extension.times.get_ref()),
                "leave `extension` out for none",
            );
        }
        Some(Extension { times: *extension.times.get_ref(), by, approval: extension.approval })
    });
    let default_duration = file.optional_duration(&entry.default_duration);
    let maximum_duration = file.optional_duration(&entry.maximum_duration);
    if let (Some(default), Some(maximum), Some(at)) =
        (default_duration, maximum_duration, &entry.default_duration)
        && default > maximum
    {
        file.at(at, format!("{} is longer than `maximum_duration`", quote(at.get_ref())), "make it shorter");
    }
    let idle = file.optional_duration(&entry.idle);
    let clock = match &entry.clock {
        None => ClockStart::Approval,
        Some(word) => match word.get_ref().as_str() {
            "approval" => ClockStart::Approval,
            "activation" => ClockStart::Activation,
            _ => ClockStart::At(file.time(word)?),
        },
    };
    let break_glass = entry.break_glass.as_ref().filter(|is_set| *is_set.get_ref());
    if let Some(at) = break_glass {
        for (is_wrong, problem, help) in [
            (
                maximum_duration.is_none_or(|maximum| maximum > BREAK_GLASS_MAX),
                "a role for emergencies has a `maximum_duration` of 4h at most",
                "add one, or make it shorter",
            ),
            (
                entry.step.is_empty(),
                "a role for emergencies has steps: their approvers are those who look at it afterwards",
                "add a `[[role.step]]`",
            ),
            (
                steps.iter().any(|step| step.hooks().next().is_some()),
                "a role for emergencies asks no hook: it is had at once, and people look at it afterwards",
                "name people",
            ),
            (extension.is_some(), "a role for emergencies cannot be extended", "leave `extension` out"),
            (
                clock != ClockStart::Approval,
                "the time of a role for emergencies begins at once",
                "leave `clock` out",
            ),
        ] {
            if is_wrong {
                file.at(at, problem, help);
            }
        }
    }
    let name: RoleName = file.parse(&entry.name, NAME_HELP)?;
    let line = file.line(entry.name.span().start);
    let hosts = (!is_everywhere).then(|| from.into_iter().collect());
    Some(Role {
        name,
        to,
        resources: reached,
        hosts,
        default_duration,
        maximum_duration,
        idle,
        strict: entry.strict,
        extension,
        steps,
        clock,
        break_glass: break_glass.is_some(),
        line,
    })
}

fn steps(file: &mut File<'_, '_>, entry: &shapes::Role, directory: &Directory) -> Vec<StepRule> {
    match (entry.step.is_empty(), entry.automatic) {
        (true, false) => file.at(
            &entry.name,
            "nobody has to approve the role, and it does not say `automatic = true`",
            "add a `[[role.step]]`, or say that this is meant",
        ),
        (false, true) => {
            file.at(&entry.name, "the role is `automatic` and has steps", "leave one of them out")
        }
        _ => {}
    }
    if entry.step.len() > STEPS_MAX {
        file.at(
            &entry.name,
            format!("{} steps are more than {STEPS_MAX}", entry.step.len()),
            "leave some out",
        );
        return Vec::new();
    }
    let steps: Vec<StepRule> =
        entry.step.iter().filter_map(|step| checked_step(file, step, directory)).collect();
    let mut hooks = BTreeSet::new();
    for hook in steps.iter().flat_map(StepRule::hooks) {
        if !hooks.insert(hook) {
            let help = "leave one of them out: it is asked once for each request";
            file.at(&entry.name, format!("the role asks hook `{hook}` twice"), help);
        }
    }
    if hooks.len() > HOOKS_MAX {
        let text = format!("{} hooks are more than {HOOKS_MAX}", hooks.len());
        file.at(&entry.name, text, "leave some out");
    }
    steps
}

fn checked_step(file: &mut File<'_, '_>, step: &shapes::Step, directory: &Directory) -> Option<StepRule> {
    let approvers: Vec<_> =
        step.approvers.get_ref().iter().filter_map(|value| who(file, value, directory, true)).collect();
    if step.approvers.get_ref().is_empty() || step.approvers.get_ref().len() > LIST_MAX {
        file.at(
            &step.approvers,
            "a step has 1 to 1000 approvers",
            "name user:NAME, group:NAME, manager, on-call:NAME or hook:NAME",
        );
    }
    let count = step.count.as_ref().map_or(1, |count| *count.get_ref());
    if let Some(at) = step.count.as_ref().filter(|count| !(1..=COUNT_MAX).contains(count.get_ref())) {
        file.at(at, format!("{count} is not 1 to {COUNT_MAX}"), "write how many have to say yes");
    }
    let to: Vec<_> = step.to.iter().filter_map(|value| who(file, value, directory, true)).collect();
    for (_, at) in to.iter().zip(&step.to).filter(|(who, _)| matches!(who, Who::Hook(_))) {
        let help = "name it in `approvers`, or people here";
        file.at(at, "a hook is asked when its step begins, and never escalated to", help);
    }
    let after = match (&step.after, &step.then) {
        (None, None) => {
            if let Some(at) = step.to.first() {
                file.at(
                    at,
                    "`to` says whom to escalate to, but not when",
                    "add `after` and `then = \"escalate\"`",
                );
            }
            None
        }
        (Some(after), Some(then)) => {
            let what = match then.get_ref().as_str() {
                "escalate" => {
                    if step.to.is_empty() {
                        file.at(then, "`escalate` does not say to whom", "add `to = [\"group:NAME\"]`");
                    }
                    After::Escalate(to)
                }
                "skip" => After::Skip,
                "deny" => After::Deny,
                other => {
                    file.at(
                        then,
                        format!("{} is not escalate, skip or deny", quote(other)),
                        "write one of them",
                    );
                    return None;
                }
            };
            file.duration(after).map(|after| (after, what))
        }
        (Some(at), None) | (None, Some(at)) => {
            file.at(at, "`after` and `then` belong together", "write both, or none");
            None
        }
    };
    Some(StepRule { approvers, count, after })
}

fn checked_case(file: &mut File<'_, '_>, entry: &shapes::Case) -> Option<Case> {
    let line = file.line(entry.name.span().start);
    let now = file.time(&entry.at);
    let subject = file.parse::<SubjectId>(&entry.subject, NAME_HELP);
    let resource = file.parse::<ResourceName>(&entry.resource, NAME_HELP);
    let mut facts = Facts::new(now?, subject?, resource?);
    if let Some(requester) = &entry.requester {
        facts.requester = file.parse(requester, NAME_HELP)?;
    }
    if let Some(stage) = &entry.stage {
        facts.stage = file.parse(stage, "write one of them")?;
    }
    if let Some(channel) = &entry.channel {
        facts.channel = file.parse(channel, "write one of them")?;
    }
    if let Some(source) = &entry.source {
        match source.get_ref().parse() {
            Ok(address) => facts.source = Some(address),
            Err(_) => file.at(
                source,
                format!("{} is no address", quote(source.get_ref())),
                "write it as 10.0.0.7 or 2001:db8::7",
            ),
        }
    }
    facts.groups = file.list("groups", &entry.groups, LIST_MAX).into_iter().collect();
    facts.hosts = file.list("hosts", &entry.hosts, LIST_MAX).into_iter().collect();
    facts.role = entry.role.as_ref().and_then(|role| file.parse(role, NAME_HELP));
    facts.duration = file.optional_duration(&entry.duration);
    facts.mfa = entry.mfa;
    facts.login_age = file.optional_duration(&entry.login_age);
    facts.device =
        entry.device.as_ref().map(|device| Device { managed: device.managed, encrypted: device.encrypted });
    let incidents = file.list("incidents", &entry.incidents, LIST_MAX);
    // Active: longer than the moment of the case.
    let end = facts.now.plus(Duration::from_secs(1));
    facts.incidents = Arc::new(incidents.into_iter().map(|id| (id, end)).collect());
    facts.approvals = entry.approvals;
    let expect = &entry.expect;
    let permitted = match expect.outcome.get_ref().as_str() {
        "permitted" => true,
        "denied" => false,
        other => {
            file.at(
                &expect.outcome,
                format!("{} is not permitted or denied", quote(other)),
                "write one of them",
            );
            return None;
        }
    };
    let expected = Expected {
        permitted,
        role: expect.role.as_ref().and_then(|role| file.parse(role, NAME_HELP)),
        rules: expect.rules.iter().map(|rule| rule.get_ref().clone()).collect(),
        approvals: expect.approvals,
        duration: file.optional_duration(&expect.duration),
    };
    let name = entry.name.get_ref().clone();
    Some(Case { file: file.name.to_owned(), line, name, facts, expected })
}

#[cfg(test)]
mod tests;
