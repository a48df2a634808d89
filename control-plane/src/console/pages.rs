//! The pages, as HTML.
//!
//! Owns: how everything looks, and the words around it. Must not know: where it comes from.
//!
//! The templates escape whatever is put into them; nothing is put in otherwise but our own style sheet.

use std::time::{Duration, UNIX_EPOCH};

use axum::http::StatusCode;
use axum::response::Html;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use proto::types::{Grant, HostName, Request, SubjectId, Timestamp, Waiting};

use crate::store::{BrowserSession, View};

/// The style sheet that stands in every page.
pub(super) const STYLE: &str = include_str!("style.css");

/// The start page of somebody who has not signed in.
pub(super) fn welcome(ways: &[(String, String)]) -> Html<String> {
    page(
        "Sign in",
        None,
        html! {
            h1 { "Portcullis" }
            p { "Access to what is protected here is given for a reason and a time. Sign in to see what you may reach, and until when." }
            (sign_in_by(ways))
        },
    )
}

/// The choice of a provider.
pub(super) fn providers(ways: &[(String, String)]) -> Html<String> {
    page(
        "Sign in",
        None,
        html! {
            h1 { "Sign in" }
            (sign_in_by(ways))
        },
    )
}

/// The start page of somebody who has.
pub(super) fn home(
    session: &BrowserSession,
    grants: &[Grant],
    requests: &[Request],
    others: &[Request],
    now: Timestamp,
) -> Html<String> {
    page(
        "Your access",
        Some(&session.subject),
        html! {
            h1 { "Your access" }
            (yourself(session, now))
            section {
                h2 { "Live grants" }
                @if grants.is_empty() { p.soft { "You hold no grant now." } }
                @else { div.scroll { table {
                    thead { tr { th scope="col" { "Resource" } th scope="col" { "Subject" } th scope="col" { "Hosts" } th scope="col" { "State" } th scope="col" { "Until" } th scope="col" { "Request" } } }
                    tbody { @for grant in grants { (grant_row(grant, now)) } }
                } } }
            }
            section {
                h2 { "Open requests" }
                @if requests.is_empty() { p.soft { "You have no request that waits for a decision." } }
                @else { (request_table(requests)) }
            }
            @if !others.is_empty() {
                section {
                    h2 { "Requests of others" }
                    p.soft { "You may decide about these, with " code { "portcullis approve" } " or " code { "portcullis deny" } "." }
                    (request_table(others))
                }
            }
        },
    )
}

fn request_table(requests: &[Request]) -> Markup {
    html! { div.scroll { table {
        thead { tr { th scope="col" { "Resource" } th scope="col" { "Subject" } th scope="col" { "For" } th scope="col" { "Reason" } th scope="col" { "Asked" } th scope="col" { "Request" } } }
        tbody { @for request in requests { tr {
            td { (request.resource) }
            td { (request.subject) }
            td { (humantime::format_duration(request.duration)) }
            td { (request.reason.as_str()) }
            td { (moment(request.created)) }
            td { (link(&request.id.to_string())) }
        } } }
    } } }
}

/// Whose yes a request waits for.
fn waits(waiting: &Waiting) -> String {
    let mut names: Vec<String> = waiting.approvers.iter().map(ToString::to_string).collect();
    names.extend(waiting.hooks.iter().map(|hook| format!("hook:{hook}")));
    let others = if waiting.others > 0 { format!(", or {} others", waiting.others) } else { String::new() };
    format!("{} of {}{others} (step {} of {})", waiting.more, names.join(", "), waiting.step, waiting.steps)
}

/// One request, and what it led to.
pub(super) fn request(session: &BrowserSession, view: &View, now: Timestamp) -> Html<String> {
    let View { request, grant } = view;
    page(
        "Request",
        Some(&session.subject),
        html! {
            h1 { "Request for " (request.resource) }
            section { dl {
                dt { "Id" } dd { (request.id) }
                dt { "State" } dd { (request.state) }
                dt { "Subject" } dd { (request.subject) }
                @if request.requester != request.subject { dt { "Asked by" } dd { (request.requester) } }
                dt { "For" } dd { (humantime::format_duration(request.duration)) }
                dt { "Hosts" } dd { (hosts(request.hosts.iter())) }
                dt { "Reason" } dd { (request.reason.as_str()) }
                dt { "Asked" } dd { (moment(request.created)) }
                @if let Some((_, role)) = &request.judged { dt { "Role" } dd { (role) } }
                @for vote in &request.votes {
                    dt { @if vote.yes { "Yes" } @else { "No" } }
                    dd { (moment(vote.at)) " by " (vote.by) @if !vote.comment.is_empty() { ": " (vote.comment) } }
                }
                @if let Some(waiting) = &request.waiting { dt { "Waits for" } dd { (waits(waiting)) } }
                @if let Some((by, at)) = &request.decided {
                    dt { "Decided" }
                    dd { (moment(*at)) @if let Some(by) = by { " by " (by) } }
                }
                @if !request.comment.is_empty() { dt { "Comment" } dd { (request.comment) } }
            } }
            @if let Some(grant) = grant {
                section {
                    h2 { "Grant" }
                    dl {
                        dt { "Id" } dd { (grant.id) }
                        dt { "State" } dd { (grant.state) }
                        dt { "Until" } dd { (moment(grant.expires)) " " (left(grant.expires, now)) }
                        @for host in grant.hosts.iter().filter(|host| !host.error.is_empty()) {
                            dt { (host.name) } dd.bad { (host.error) }
                        }
                    }
                }
            }
            p { a href="/" { "Your access" } }
        },
    )
}

/// Somebody has signed out here; `provider`: its name, and where they sign out there too.
pub(super) fn signed_out(provider: Option<(&str, &str)>) -> Html<String> {
    page(
        "Signed out",
        None,
        html! {
            h1 { "You are signed out here" }
            @if let Some((name, address)) = provider {
                p { "You may still be signed in with " (name) ". You are being led there to sign out." }
                p { a.way href=(address) { "Sign out of " (name) } }
            }
            p { a href="/" { "Sign in again" } }
        },
    )
}

/// What could not be done.
pub(super) fn problem(status: StatusCode, message: &str, hint: &str, sign_in_again: bool) -> Html<String> {
    let title = status.canonical_reason().unwrap_or("Error");
    page(
        title,
        None,
        html! {
            h1 { (status.as_u16()) " " (title) }
            section {
                p.bad role="alert" { (sentence(message)) }
                @if !hint.is_empty() { p { "Next step: " (hint) "." } }
            }
            p {
                @if sign_in_again { a.way href="/sign-in" { "Sign in again" } } @else { a href="/" { "Start page" } }
            }
        },
    )
}

fn page(title: &str, subject: Option<&SubjectId>, main: Markup) -> Html<String> {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) " – Portcullis" }
                // No other icon is asked for.
                link rel="icon" href="data:,";
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    a href="/" { "Portcullis" }
                    @if let Some(subject) = subject {
                        form method="post" action="/sign-out" {
                            span { (subject) }
                            button type="submit" { "Sign out" }
                        }
                    }
                }
                main { (main) }
                footer { "Times are in UTC." }
            }
        }
    };
    Html(page.into_string())
}

fn sign_in_by(ways: &[(String, String)]) -> Markup {
    html! {
        ul.ways { @for (name, address) in ways { li { a.way href=(address) { "Sign in with " (name) } } } }
    }
}

fn yourself(session: &BrowserSession, now: Timestamp) -> Markup {
    let BrowserSession { subject, role, sign_in, groups, idle_end } = session;
    html! {
        section {
            h2 { "You" }
            dl {
                dt { "Subject" } dd { (subject) }
                dt { "Role" } dd { (role) }
                dt { "Groups with a role" } dd { @if groups.is_empty() { "none" } @else { (groups.join(", ")) } }
                dt { "Signed in with" } dd { (sign_in.provider) }
                dt { "Since" } dd { (moment(sign_in.began)) }
                dt { "Until" } dd { (moment(sign_in.expires)) " " (left(sign_in.expires, now)) }
                dt { "If nothing is done" } dd { "until " (moment(*idle_end)) }
            }
        }
    }
}

fn grant_row(grant: &Grant, now: Timestamp) -> Markup {
    html! { tr {
        td { (grant.resource) }
        td { (grant.subject) }
        td { (hosts(grant.hosts.iter().map(|host| &host.name))) }
        td { (grant.state) }
        td { (moment(grant.expires)) " " (left(grant.expires, now)) }
        td { (link(&grant.request.to_string())) }
    } }
}

/// To the page of a request.
fn link(request: &str) -> Markup {
    html! { a href=(format!("/requests/{request}")) { (request) } }
}

/// So many names are listed.
const HOSTS_SHOWN: usize = 10;

fn hosts<'a>(names: impl Iterator<Item = &'a HostName>) -> String {
    let mut names = names.map(HostName::as_str);
    let shown: Vec<&str> = names.by_ref().take(HOSTS_SHOWN).collect();
    match names.count() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn moment(time: Timestamp) -> Markup {
    let text = humantime::format_rfc3339_seconds(UNIX_EPOCH + since_1970(time)).to_string();
    html! { time datetime=(text) { (text.replace('T', " ").trim_end_matches('Z')) } }
}

fn since_1970(time: Timestamp) -> Duration {
    Duration::from_millis(u64::try_from(time.unix_ms()).unwrap_or(0))
}

/// In words, what is left until then.
fn left(until: Timestamp, now: Timestamp) -> Markup {
    let left = since_1970(until).saturating_sub(since_1970(now));
    let left = humantime::format_duration(Duration::from_secs(left.as_secs())).to_string();
    html! { span.soft { "(" (left) " left)" } }
}

/// An error's text as the beginning of a page: with a capital letter and a full stop.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first: String = chars.next().map(|first| first.to_uppercase().collect()).unwrap_or_default();
    format!("{first}{}.", chars.as_str())
}

#[cfg(test)]
mod tests {
    use proto::types::{Reason, SignIn, SignInBy, SubjectRole};

    use super::*;

    const HOSTILE: &str = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)></section>";

    /// No tag of the text's own is left.
    #[track_caller]
    fn is_harmless(page: &Html<String>) {
        for tag in ["<script", "<img", "onerror=alert(1)>", "</section>\""] {
            assert!(!page.0.contains(tag), "{tag}: {}", page.0);
        }
        assert!(page.0.contains("&lt;script&gt;alert(1)"), "{}", page.0);
    }

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_unix_ms(1_795_000_000_000 + ms).expect("in range")
    }

    fn session(groups: &[&str]) -> BrowserSession {
        BrowserSession {
            subject: "user:alice@example.com".parse().expect("valid"),
            role: SubjectRole::Member,
            sign_in: SignIn {
                by: SignInBy::Person,
                provider: "corp".parse().expect("valid"),
                began: at(0),
                expires: at(3_600_000),
            },
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            idle_end: at(1_800_000),
        }
    }

    fn asked(reason: &str, comment: &str) -> Request {
        Request {
            id: "01940000-0000-7000-8000-000000000001".parse().expect("valid"),
            state: proto::types::RequestState::Pending,
            resource: "db".parse().expect("valid"),
            subject: "user:alice@example.com".parse().expect("valid"),
            hosts: vec!["db-7".parse().expect("valid")],
            duration: Duration::from_secs(1800),
            reason: reason.parse::<Reason>().expect("valid"),
            requester: "user:alice@example.com".parse().expect("valid"),
            created: at(0),
            decided: None,
            comment: comment.to_owned(),
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
        }
    }

    #[test]
    fn what_comes_from_outside_is_text() {
        is_harmless(&home(&session(&[HOSTILE]), &[], &[], &[], at(1)));
        is_harmless(&home(&session(&[]), &[], &[asked(HOSTILE, "")], &[asked(HOSTILE, "")], at(1)));
        let view = View { request: asked("why", HOSTILE), grant: None };
        is_harmless(&request(&session(&[]), &view, at(1)));
        is_harmless(&problem(StatusCode::FORBIDDEN, HOSTILE, "", true));
        is_harmless(&problem(StatusCode::FORBIDDEN, "x", HOSTILE, true));
        is_harmless(&signed_out(Some((HOSTILE, "https://login.example.com/end"))));
        is_harmless(&signed_out(Some(("corp", HOSTILE))));
        is_harmless(&welcome(&[(HOSTILE.to_owned(), HOSTILE.to_owned())]));
    }

    proptest::proptest! {
        #[test]
        fn no_text_becomes_a_tag(text in "[<>\"'&/a-z =\\u{0}-\\u{1f}\\u{2028}]{0,40}") {
            let without = problem(StatusCode::FORBIDDEN, "x", "y", false).0;
            let with = problem(StatusCode::FORBIDDEN, &text, &text, false).0;
            for sign in ['<', '>', '"'] {
                let hint = usize::from(text.is_empty()) * without.matches("<p>Next").count();
                let count = |page: &str| page.matches(sign).count();
                // An empty hint leaves its paragraph out: two tags.
                let expected = count(&without) - if sign == '"' { 0 } else { 2 * hint };
                proptest::prop_assert_eq!(count(&with), expected, "{}", sign);
            }
        }
    }

    #[test]
    fn how_a_page_looks() {
        let page = home(&session(&["engineers"]), &[], &[asked("a look at the logs", "")], &[], at(1)).0;
        insta::assert_snapshot!(page.replace(STYLE, "…").replace("><", ">\n<"));
    }
}
