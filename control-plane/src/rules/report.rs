//! What became of access: what was granted, against what is known to have been used of it.
//!
//! Owns: what may be said of a grant's use, and of a role's. Must not know: storage, who reads it.
//!
//! Invariant: nothing is called unused that its hosts have not said so of, and whose record has no holes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ::policy::Policy;
use ::policy::model::Role;
use ::policy::narrow::{Used, narrower};
use proto::types::{
    EndReason, Grant, GrantHost, GrantState, GrantUse, HostName, NAMES_SHOWN_MAX, PortRange, Request,
    Resource, ResourceMode, ResourceName, RoleUse, SubjectId, Timestamp, Usage,
};

use super::uses::{OTHERS, PLACES_MAX, Receipts, Use};

/// A grant of which less than a half was used is over-wide in time, if at least so much was not.
const IDLE_TIME_MIN: Duration = Duration::from_secs(900);

/// How many names a remark lists.
const NAMES_IN_NOTES: usize = 5;

/// What is known of the use of one grant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Since it was granted, use is counted.
    pub is_counted: bool,
    /// By host and place.
    pub uses: BTreeMap<HostName, BTreeMap<String, Use>>,
    /// What hosts said when it ended there.
    pub receipts: BTreeMap<HostName, Receipts>,
    /// Hosts that lost verdicts meanwhile.
    pub lossy: BTreeSet<HostName>,
}

/// What may be said of a grant's use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// In a word.
    pub usage: Usage,
    /// Where somebody was let through.
    pub used: BTreeSet<HostName>,
    /// Where nobody was, by the host's own word.
    pub silent: BTreeSet<HostName>,
    /// Where it is not known.
    pub unknown: BTreeSet<HostName>,
    /// Where connections went.
    pub places: BTreeSet<String>,
    /// The first and the last that is known, within the life of the grant.
    pub span: Option<(Timestamp, Timestamp)>,
    /// How many verdicts there are.
    pub connections: u64,
    /// What was not used, or why it is not known.
    pub notes: Vec<String>,
}

/// When the time of a grant began.
pub fn since(grant: &Grant) -> Timestamp {
    grant.begins.unwrap_or(grant.issued)
}

/// When a grant ended, or will at the latest.
pub fn until(grant: &Grant) -> Timestamp {
    grant.ended.map_or(grant.expires, |ended| ended.min(grant.expires)).max(since(grant))
}

/// What may be said of a grant's use. `resource` is as it is now; None: it is not protected any more.
pub fn judge(grant: &Grant, resource: Option<&Resource>, facts: &Facts) -> Judged {
    let has_ended = matches!(grant.state, GrantState::Ended(_));
    let mut judged = Judged {
        usage: Usage::Unknown,
        used: BTreeSet::new(),
        silent: BTreeSet::new(),
        unknown: BTreeSet::new(),
        places: BTreeSet::new(),
        span: span(grant, facts),
        connections: 0,
        notes: Vec::new(),
    };
    for places in facts.uses.values() {
        judged.places.extend(places.keys().cloned());
        let count = places.values().map(|seen| seen.connections).fold(0, u64::saturating_add);
        judged.connections = judged.connections.saturating_add(count);
    }
    for host in &grant.hosts {
        let set = match standing(grant, host, facts, has_ended) {
            Standing::Used => &mut judged.used,
            Standing::Silent => &mut judged.silent,
            Standing::Unknown => &mut judged.unknown,
        };
        set.insert(host.name.clone());
    }
    if !facts.is_counted {
        judged.notes.push("it was granted before uses were counted".to_owned());
        return judged;
    }
    let is_observed = resource.is_some_and(|resource| resource.options.mode == ResourceMode::Observe);
    if judged.used.is_empty() {
        if is_observed {
            judged.notes.push("its resource is only observed: who is let through needs no grant".to_owned());
        } else if !has_ended {
            judged.notes.push("it has not ended; nobody is known to have been let through so far".to_owned());
        } else if judged.unknown.is_empty() {
            judged.usage = Usage::Unused;
        } else {
            judged.notes.push(no_word(&judged.unknown, facts, grant.hosts.len()));
        }
        return judged;
    }
    judged.usage = Usage::Used;
    if !has_ended {
        judged.notes.push("it has not ended".to_owned());
    } else if is_observed {
        judged.notes.push("its resource is only observed: not all that went through is use of it".to_owned());
    } else if !judged.unknown.is_empty() {
        judged.notes.push(no_word(&judged.unknown, facts, grant.hosts.len()));
    } else {
        let wide = too_wide(grant, resource, &judged, facts);
        if !wide.is_empty() {
            judged.usage = Usage::OverWide;
            judged.notes = wide;
        }
    }
    judged
}

enum Standing {
    Used,
    Silent,
    Unknown,
}

fn standing(grant: &Grant, host: &GrantHost, facts: &Facts, has_ended: bool) -> Standing {
    let receipts = facts.receipts.get(&host.name).copied().unwrap_or_default();
    if facts.uses.contains_key(&host.name) || receipts.admitted.is_some() {
        return Standing::Used;
    }
    // That a process has ended is its last word only if the grant was for that process.
    let was_for_a_process = grant.state.end_reason() == Some(EndReason::TaskExit);
    let has_said = receipts.ends > 0 || (receipts.exits > 0 && was_for_a_process);
    // What a kernel could not take, it has let nobody through by.
    let is_sure = has_said || !host.error.is_empty();
    match has_ended && is_sure && !facts.lossy.contains(&host.name) {
        true => Standing::Silent,
        false => Standing::Unknown,
    }
}

/// First and last use. Hosts' clocks may differ from ours: what lies outside the grant's life is put at its ends.
fn span(grant: &Grant, facts: &Facts) -> Option<(Timestamp, Timestamp)> {
    let uses = facts.uses.values().flat_map(BTreeMap::values);
    let moments = uses.flat_map(|seen| [seen.first, seen.last]);
    let admitted = facts.receipts.values().filter_map(|receipts| receipts.admitted);
    let (from, to) = (since(grant), until(grant));
    let moments: Vec<Timestamp> = moments.chain(admitted).map(|moment| moment.clamp(from, to)).collect();
    moments.iter().copied().min().zip(moments.iter().copied().max())
}

/// Why it is not known whether some hosts used it.
fn no_word(unknown: &BTreeSet<HostName>, facts: &Facts, hosts: usize) -> String {
    let lossy: BTreeSet<&HostName> = unknown.iter().filter(|host| facts.lossy.contains(*host)).collect();
    let of = |count: usize| format!("{count} of {hosts} hosts");
    match lossy.is_empty() {
        true => format!("no word of {}: {}", of(unknown.len()), named(unknown)),
        false => format!("{} lost verdicts meanwhile: {}", of(lossy.len()), named(lossy)),
    }
}

/// What was granted and not used, in words. Everything is known.
fn too_wide(grant: &Grant, resource: Option<&Resource>, judged: &Judged, facts: &Facts) -> Vec<String> {
    let mut notes = Vec::new();
    if !judged.silent.is_empty() {
        let (unused, hosts) = (judged.silent.len(), grant.hosts.len());
        notes.push(format!("{unused} of {hosts} hosts were not used: {}", named(&judged.silent)));
    }
    // Where verdicts are lost, a port may have been used that is not told of.
    let is_whole = judged.used.iter().all(|host| facts.uses.contains_key(host) && !facts.lossy.contains(host))
        && !judged.places.contains(OTHERS)
        // Where the agent knew the path of a unix socket no more, there is a key.
        && !judged.places.iter().any(|place| place.starts_with('#'));
    if is_whole && let Some(resource) = resource {
        let unused = unused_ports(resource, &judged.places);
        if !unused.is_empty() && unused.len() < ports(resource).len() {
            notes.push(format!("ports that were not used: {}", named(&unused)));
        }
    }
    if is_whole && let Some((_, last)) = judged.span {
        let (used, whole) = (last.since(since(grant)), until(grant).since(since(grant)));
        if used.saturating_mul(2) < whole && whole.saturating_sub(used) >= IDLE_TIME_MIN {
            notes.push(format!("last used after {} of {}", time(used), time(whole)));
        }
    }
    notes
}

/// Every port and path of a resource, as people write them.
pub fn ports(resource: &Resource) -> Vec<String> {
    let paths = resource.unix.iter().map(ToString::to_string);
    resource.ports.iter().map(ToString::to_string).chain(paths).collect()
}

fn unused_ports(resource: &Resource, places: &BTreeSet<String>) -> Vec<String> {
    let used: Vec<PortRange> = places.iter().filter_map(|place| place.parse().ok()).collect();
    let is_unused = |range: &&PortRange| !used.iter().any(|port| port.overlaps(**range));
    let ports = resource.ports.iter().filter(is_unused).map(ToString::to_string);
    let paths = resource.unix.iter().map(ToString::to_string).filter(|path| !places.contains(path));
    ports.chain(paths).collect()
}

/// Some names, and how many others.
fn named<T: ToString>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| name.to_string()).collect();
    let others = names.len().saturating_sub(NAMES_IN_NOTES);
    let shown = names.iter().take(NAMES_IN_NOTES).cloned().collect::<Vec<_>>().join(", ");
    if others > 0 { format!("{shown} and {others} more") } else { shown }
}

/// To the second, which is more than anybody asks of a report.
fn time(duration: Duration) -> String {
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}

/// As a report shows it.
pub fn shown(grant: &Grant, request: &Request, resource: Option<&Resource>, judged: &Judged) -> GrantUse {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    GrantUse {
        grant: grant.id,
        request: grant.request,
        subject: grant.subject.clone(),
        resource: grant.resource.clone(),
        role: request.judged.as_ref().map(|(_, role)| role.clone()),
        usage: judged.usage,
        hosts: count(grant.hosts.len()),
        hosts_used: count(judged.used.len()),
        hosts_unused: judged.silent.iter().take(NAMES_SHOWN_MAX).cloned().collect(),
        ports: resource.map(ports).unwrap_or_default(),
        ports_used: judged.places.iter().filter(|place| *place != OTHERS).take(PLACES_MAX).cloned().collect(),
        since: since(grant),
        until: until(grant),
        used: judged.span,
        connections: judged.connections,
        notes: judged.notes.clone(),
    }
}

/// All grants that were had by one role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    grants: u64,
    unused: u64,
    unknown: u64,
    subjects: BTreeSet<SubjectId>,
    used: Used,
}

impl Tally {
    /// One more. What is not known to be unused counts as used, and a grant of which nothing is known as used in full.
    pub fn add(&mut self, grant: &Grant, judged: &Judged) {
        self.grants += 1;
        self.subjects.insert(grant.subject.clone());
        self.used.hosts.extend(judged.used.iter().chain(&judged.unknown).cloned());
        let is_known = judged.unknown.is_empty();
        let longest = match judged.usage {
            Usage::Unused => {
                self.unused += 1;
                return;
            }
            Usage::Used | Usage::OverWide if is_known => {
                judged.span.map_or(Duration::ZERO, |(_, last)| last.since(since(grant)))
            }
            Usage::Used | Usage::OverWide | Usage::Unknown => {
                self.unknown += 1;
                // Also those that seem silent: of such a grant nothing is left out.
                self.used.hosts.extend(grant.hosts.iter().map(|host| host.name.clone()));
                until(grant).since(since(grant))
            }
        };
        self.used.resources.insert(grant.resource.clone());
        self.used.longest = self.used.longest.max(longest);
    }

    /// As a report shows it.
    pub fn shown(self, policy: &Policy, role: &Role) -> RoleUse {
        let resources_unused: Vec<ResourceName> =
            role.resources.difference(&self.used.resources).cloned().collect();
        let hosts: BTreeSet<HostName> = role.hosts.iter().flatten().cloned().collect();
        let hosts_unused: Vec<HostName> = hosts.difference(&self.used.hosts).cloned().collect();
        let narrow = narrower(policy, role, &self.used);
        let mut notes = narrow.as_ref().map(|narrow| narrow.notes.clone()).unwrap_or_default();
        if self.unused == self.grants {
            notes.push("nobody used it: is it needed?".to_owned());
        }
        if self.unknown > 0 {
            notes.push(format!("{} of {} grants count as used in full", self.unknown, self.grants));
        }
        let others = self.subjects.len().saturating_sub(NAMES_SHOWN_MAX);
        RoleUse {
            role: role.name.clone(),
            grants: self.grants,
            unused: self.unused,
            unknown: self.unknown,
            subjects: self.subjects.into_iter().take(NAMES_SHOWN_MAX).collect(),
            other_subjects: u32::try_from(others).unwrap_or(u32::MAX),
            longest: self.used.longest,
            maximum: role.maximum_duration,
            resources_unused: resources_unused.into_iter().take(NAMES_SHOWN_MAX).collect(),
            hosts_unused: hosts_unused.into_iter().take(NAMES_SHOWN_MAX).collect(),
            suggestion: narrow.map(|narrow| narrow.toml).unwrap_or_default(),
            notes,
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::types::{GrantId, NewResource, RequestId, ResourceNumber};

    use super::*;

    fn at(minute: u64) -> Timestamp {
        let begin = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
        begin.plus(Duration::from_secs(60 * minute))
    }

    fn grant(state: GrantState, hosts: &[&str]) -> Grant {
        let host = |name: &&str| GrantHost {
            name: name.parse().expect("valid"),
            held: false,
            error: String::new(),
            until: None,
        };
        Grant {
            id: GrantId::new(),
            state,
            request: RequestId::new(),
            resource: "db".parse().expect("valid"),
            subject: "user:alice".parse().expect("valid"),
            hosts: hosts.iter().map(host).collect(),
            issued: at(0),
            expires: at(60),
            ended: matches!(state, GrantState::Ended(_)).then(|| at(60)),
            idle: None,
            while_running: None,
            run: None,
            action: None,
            extensions: 0,
            begins: Some(at(0)),
            duration: None,
        }
    }

    fn resource(mode: ResourceMode) -> Resource {
        let new = NewResource::with_unix(
            "db".parse().expect("valid"),
            vec!["10.0.0.7".parse().expect("valid")],
            vec!["tcp/5432".parse().expect("valid"), "tcp/6000-6010".parse().expect("valid")],
            Vec::new(),
        )
        .expect("valid");
        let mut resource = Resource::numbered(ResourceNumber::try_from(1).expect("valid"), new);
        resource.options.mode = mode;
        resource
    }

    fn host(name: &str) -> HostName {
        name.parse().expect("valid")
    }

    /// Facts from words: `HOST:PLACE@MINUTE` is a use, `HOST!` the receipt of an end, `HOST!MINUTE` one that says when it was used
    /// last, `HOST~` that of a process, `HOST?` a loss.
    fn facts(words: &str) -> Facts {
        let mut facts = Facts { is_counted: true, ..Facts::default() };
        for word in words.split_whitespace() {
            let minute = |text: &str| at(text.parse().expect("a minute"));
            if let Some((name, used)) = word.split_once(':') {
                let (place, moment) = used.split_once('@').expect("a moment");
                let seen = Use { first: minute(moment), last: minute(moment), connections: 2 };
                facts.uses.entry(host(name)).or_default().insert(place.to_owned(), seen);
            } else if let Some((name, moment)) = word.split_once('!') {
                let admitted = (!moment.is_empty()).then(|| minute(moment));
                facts.receipts.insert(host(name), Receipts { exits: 0, ends: 1, admitted });
            } else if let Some(name) = word.strip_suffix('~') {
                facts.receipts.insert(host(name), Receipts { exits: 1, ..Receipts::default() });
            } else {
                facts.lossy.insert(host(word.trim_end_matches('?')));
            }
        }
        facts
    }

    #[test]
    fn what_may_be_said() {
        let by_time = GrantState::Ended(EndReason::Time);
        let by_exit = GrantState::Ended(EndReason::TaskExit);
        let both = "a:tcp/5432@50 a:tcp/6001@55 b:tcp/6010@1";
        let cases = [
            (by_time, "", "nobody has said anything"),
            (by_time, "a!", "one host has"),
            (by_time, "a! b!", "both have"),
            (by_time, "a! b! b?", "one has lost verdicts"),
            (by_time, "a~ b!", "of a process alone"),
            (by_exit, "a~ b~", "it was for a process"),
            (GrantState::Active, "a! b!", "it lives"),
            (GrantState::Active, both, "it lives, and was used"),
            (by_time, both, "all of it"),
            (by_time, "a:tcp/5432@50 a:tcp/6001@55 b!", "one host was not"),
            (by_time, "a:tcp/5432@50 a:tcp/6001@55", "one host has said nothing"),
            (by_time, "a:tcp/5432@50 b:tcp/5432@50", "one port was not"),
            (by_time, "a:tcp/5432@5 a:tcp/6000@5 b:tcp/5432@6", "for a short time"),
            (by_time, "a!5 b:tcp/5432@6", "verdicts of one are missing"),
            (by_time, "a:@5 b:tcp/5432@6", "there are too many places"),
            (by_time, "a:tcp/5432@5 a? b:tcp/5432@6", "verdicts of one were lost"),
        ];
        let mut table = String::new();
        for (state, words, why) in cases {
            let judged =
                judge(&grant(state, &["a", "b"]), Some(&resource(ResourceMode::Enforce)), &facts(words));
            table += &format!("{why}: {} {}\n", judged.usage, judged.notes.join("; "));
        }
        let observed = resource(ResourceMode::Observe);
        for words in ["a! b!", both] {
            let judged = judge(&grant(by_time, &["a", "b"]), Some(&observed), &facts(words));
            table += &format!("only observed: {} {}\n", judged.usage, judged.notes.join("; "));
        }
        let old = Facts { is_counted: false, ..facts("a! b!") };
        let judged = judge(&grant(by_time, &["a", "b"]), None, &old);
        table += &format!("older: {} {}\n", judged.usage, judged.notes.join("; "));
        insta::assert_snapshot!(table);
    }

    #[test]
    fn wild_clocks_stay_within_the_grant() {
        let grant = grant(GrantState::Ended(EndReason::Time), &["a"]);
        let judged = judge(&grant, None, &facts("a:tcp/1@9000"));
        assert_eq!(judged.span, Some((at(60), at(60))));
        let early = Facts {
            uses: BTreeMap::from([(
                host("a"),
                BTreeMap::from([(
                    "tcp/1".to_owned(),
                    Use {
                        first: Timestamp::from_unix_ms(0).expect("in range"),
                        last: at(3),
                        connections: u64::MAX,
                    },
                )]),
            )]),
            ..facts("")
        };
        assert_eq!(judge(&grant, None, &early).span, Some((at(0), at(3))));
    }

    #[test]
    fn what_is_not_known_counts_as_used() {
        let by_time = GrantState::Ended(EndReason::Time);
        let mut tally = Tally::default();
        for words in ["a! b!", "a:tcp/5432@5 b!", "a:tcp/5432@20 b:tcp/5432@7"] {
            let grant = grant(by_time, &["a", "b"]);
            tally.add(&grant, &judge(&grant, None, &facts(words)));
        }
        assert_eq!((tally.grants, tally.unused, tally.unknown), (3, 1, 0));
        assert_eq!(tally.used.longest, Duration::from_secs(1200));
        let unknown = grant(by_time, &["c"]);
        tally.add(&unknown, &judge(&unknown, None, &facts("")));
        assert_eq!((tally.unknown, tally.used.longest), (1, Duration::from_secs(3600)));
        assert!(tally.used.hosts.contains(&host("c")));
    }
}
