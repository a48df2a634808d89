//! Who has access: what is known of grants and of hosts → who can reach what, from where, how surely, until when.
//!
//! Owns: what may be claimed. Must not know: storage, sessions, RPC.
//!
//! Invariant: whom a kernel may let through is listed; nothing is called held that its host has not confirmed, or of a host that is not
//! heard.

use proto::types::{
    Access, AccessPlace, Certainty, Grant, GrantId, GrantState, HostName, Request, Timestamp,
};

/// Who has access by this grant now: a line for each host whose kernel may let somebody through by it. `is_sound`: whether a host is
/// connected, and its kernel was not last found to hold something else than it should.
pub fn at_present(
    grant: &Grant,
    request: &Request,
    now: Timestamp,
    is_sound: impl Fn(&HostName) -> bool,
) -> Vec<Access> {
    let is_live = matches!(grant.state, GrantState::Activating | GrantState::Active);
    let line = |host: &proto::types::GrantHost| {
        let certainty = match is_live && host.held && is_sound(&host.name) {
            true => Certainty::Held,
            false => Certainty::Possible,
        };
        let until = host.until.filter(|until| *until > now)?;
        Some(access(grant, request, &host.name, certainty, until))
    };
    grant.hosts.iter().filter_map(line).collect()
}

/// Who had access by this grant at a moment of the past: as far as it was live then.
pub fn then(grant: &Grant, request: &Request, at: Timestamp) -> Vec<Access> {
    let until = grant.ended.map_or(grant.expires, |ended| ended.min(grant.expires));
    // What was approved and had not begun gave no access.
    if grant.begins.is_none_or(|begins| begins > at) || until <= at {
        return Vec::new();
    }
    let line = |host: &proto::types::GrantHost| access(grant, request, &host.name, Certainty::Granted, until);
    grant.hosts.iter().map(line).collect()
}

/// At most `max` of these lines, which are of the newest grants first, and of each by host: those behind `after`; and behind which place
/// there is more. `last`: the last grant that was looked at, if there are others; None: there are none.
pub fn page(
    lines: Vec<Access>,
    after: Option<&AccessPlace>,
    last: Option<GrantId>,
    max: usize,
) -> (Vec<Access>, Option<AccessPlace>) {
    let is_behind = |line: &Access| match after {
        Some(AccessPlace { grant, host: Some(host) }) => line.grant != *grant || line.host > *host,
        Some(AccessPlace { host: None, .. }) | None => true,
    };
    let mut lines: Vec<Access> = lines.into_iter().filter(is_behind).collect();
    let is_cut = lines.len() > max;
    lines.truncate(max);
    let next = match lines.last() {
        Some(line) if is_cut => Some(AccessPlace { grant: line.grant, host: Some(line.host.clone()) }),
        _ => last.map(|grant| AccessPlace { grant, host: None }),
    };
    (lines, next)
}

fn access(
    grant: &Grant,
    request: &Request,
    host: &HostName,
    certainty: Certainty,
    until: Timestamp,
) -> Access {
    Access {
        subject: grant.subject.clone(),
        resource: grant.resource.clone(),
        host: host.clone(),
        certainty,
        since: grant.begins.unwrap_or(grant.issued),
        until,
        grant: grant.id,
        request: request.id,
        role: request.judged.as_ref().map(|(_, role)| role.clone()),
        reason: request.reason.to_string(),
        requester: request.requester.clone(),
        approvers: request.votes.iter().filter(|vote| vote.yes).map(|vote| vote.by.clone()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proto::types::{EndReason, GrantHost, RequestState};

    use super::*;

    fn at(minute: u64) -> Timestamp {
        let begin = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
        begin.plus(Duration::from_secs(60 * minute))
    }

    fn grant(state: GrantState, hosts: &[(&str, bool, bool)]) -> (Grant, Request) {
        let request = Request {
            id: "01940000-0000-7000-8000-000000000001".parse().expect("valid"),
            state: RequestState::Approved,
            resource: "db".parse().expect("valid"),
            subject: "user:alice".parse().expect("valid"),
            hosts: Vec::new(),
            duration: Duration::from_secs(600),
            reason: "why not".parse().expect("valid"),
            requester: "user:rita".parse().expect("valid"),
            created: at(0),
            decided: None,
            comment: String::new(),
            grant: None,
            idle: None,
            while_running: None,
            run: None,
            action: None,
            judged: None,
            lapses: None,
            votes: Vec::new(),
            answers: Vec::new(),
            waiting: None,
            extends: None,
        };
        let host = |(name, held, may_hold): &(&str, bool, bool)| GrantHost {
            name: name.parse().expect("valid"),
            held: *held,
            error: String::new(),
            until: may_hold.then(|| at(10)),
        };
        let grant = Grant {
            id: GrantId::new(),
            state,
            request: request.id,
            resource: request.resource.clone(),
            subject: request.subject.clone(),
            hosts: hosts.iter().map(host).collect(),
            issued: at(0),
            expires: at(10),
            ended: matches!(state, GrantState::Ended(_)).then(|| at(5)),
            idle: None,
            while_running: None,
            run: None,
            action: None,
            extensions: 0,
            begins: Some(at(0)),
            duration: None,
        };
        (grant, request)
    }

    #[test]
    fn pages_lead_to_the_end() {
        let hosts: Vec<String> = (0..7).map(|host| format!("h{host}")).collect();
        let hosts: Vec<(&str, bool, bool)> = hosts.iter().map(|host| (host.as_str(), true, true)).collect();
        let mut grants: Vec<_> = (0..3).map(|_| grant(GrantState::Active, &hosts)).collect();
        grants.sort_by_key(|(grant, _)| std::cmp::Reverse(grant.id));
        let lines = |grants: &[(Grant, Request)]| -> Vec<Access> {
            grants.iter().flat_map(|(grant, request)| at_present(grant, request, at(1), |_| true)).collect()
        };
        let whole = lines(&grants);
        assert_eq!(whole.len(), 21);
        // As the store finds them: so many grants, and whether there are others.
        let find = |after: Option<&AccessPlace>, limit: usize| {
            let is_behind = |grant: &Grant| {
                after.is_none_or(|after| match after.host {
                    Some(_) => grant.id <= after.grant,
                    None => grant.id < after.grant,
                })
            };
            let found: Vec<_> = grants.iter().filter(|(grant, _)| is_behind(grant)).cloned().collect();
            let last = (found.len() > limit).then(|| found[limit - 1].0.id);
            (lines(&found[..found.len().min(limit)]), last)
        };
        for (limit, max) in [(1, 1), (1, 3), (1, 7), (2, 5), (3, 21), (3, 20), (9, 100)] {
            let (mut seen, mut after): (Vec<Access>, Option<AccessPlace>) = (Vec::new(), None);
            loop {
                let (lines, last) = find(after.as_ref(), limit);
                let (page, next) = page(lines, after.as_ref(), last, max);
                assert!(page.len() <= max);
                seen.extend(page);
                let Some(next) = next else { break };
                assert!(after.is_none_or(|after| next.is_behind(&after)));
                after = Some(next);
            }
            assert_eq!(seen, whole, "{limit} {max}");
        }
    }

    #[test]
    fn what_may_be_claimed() {
        let hosts = [("a", true, true), ("b", false, true), ("c", false, false), ("lost", true, true)];
        let mut table = String::new();
        let reason = EndReason::Revoked;
        for state in [
            GrantState::Activating,
            GrantState::Active,
            GrantState::Ending(reason),
            GrantState::Ended(reason),
        ] {
            let (grant, request) = grant(state, &hosts);
            let show = |found: Vec<Access>| {
                let words = found.iter().map(|access| format!("{}:{}", access.host, access.certainty));
                words.collect::<Vec<_>>().join(" ")
            };
            let is_sound = |host: &HostName| host.as_str() != "lost";
            table += &format!("{state:16} now: {}\n", show(at_present(&grant, &request, at(4), is_sound)));
            assert_eq!(at_present(&grant, &request, at(10), is_sound), []);
            for minute in [4, 5, 10] {
                table += &format!("{state:16} at {minute}: {}\n", show(then(&grant, &request, at(minute))));
            }
        }
        insta::assert_snapshot!(table);
    }
}
