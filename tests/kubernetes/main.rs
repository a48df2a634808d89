//! The agent's side of list and watch, against an API server that follows a script. Needs neither root nor a cluster.

use std::time::Duration;

use agent::kubernetes::{Following, PodsNews, Settings, follow};
use agent::rules::pods::PodsChange;
use anyhow::{Context, Result, bail};
use tests::api_server::{Answer, ApiServer, line, list, pod, watch};
use tests::ensure_eq;

const WEB: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";
const DB: &str = "7c9e6679-7425-40de-944b-e07fc1f90ae7";

/// How long anything may take; a back-off of half a second, a second, two among it.
const SOON: Duration = Duration::from_secs(30);

/// Follows what the server says by this script, and gives it to `then`.
fn with(
    script: Vec<Answer>,
    change: impl FnOnce(&mut Settings),
    then: impl AsyncFnOnce(&ApiServer, &mut Heard) -> Result<()>,
) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = ApiServer::start(dir.path())?;
    server.will(script);
    let mut settings = server.settings()?;
    change(&mut settings);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut heard = Heard(follow(settings));
        let outcome = then(&server, &mut heard).await;
        outcome.with_context(|| format!("asked so far: {:?}", server.asked()))
    })
}

/// What the agent would be told.
struct Heard(Following);

impl Heard {
    /// The next news, in words.
    async fn next(&mut self) -> Result<String> {
        let news = tokio::time::timeout(SOON, self.0.next()).await.context("no news in 30 s")?;
        Ok(match news.context("there will be no news")? {
            PodsNews::Changed(PodsChange::Listed(pods)) => {
                let accounts: Vec<String> = pods.into_iter().map(|pod| pod.service_account).collect();
                format!("listed {}", accounts.join(" "))
            }
            PodsNews::Changed(PodsChange::Applied(pod)) => {
                let app = pod.labels.get("app").cloned().unwrap_or_default();
                format!("applied {} {app}", pod.service_account)
            }
            PodsNews::Changed(PodsChange::Deleted(uid)) => format!("deleted {}", uid.as_str()),
            PodsNews::Unreachable(why) => format!("unreachable {why}"),
        })
    }

    async fn says(&mut self, expected: &str) -> Result<()> {
        let said = self.next().await?;
        match said.starts_with(expected) {
            true => Ok(()),
            false => bail!("it says {said:?}, expected {expected:?}"),
        }
    }

    /// The next news is that nobody can tell, and has these words.
    async fn complains(&mut self, words: &str) -> Result<()> {
        let said = self.next().await?;
        match said.starts_with("unreachable ") && said.contains(words) {
            true => Ok(()),
            false => bail!("it says {said:?}, expected a complaint about {words:?}"),
        }
    }
}

#[test]
fn pods_are_listed_page_by_page_and_then_watched() -> Result<()> {
    let elsewhere = {
        let mut pod = pod(DB, "12", "elsewhere", "x");
        pod["spec"]["nodeName"] = "node-2".into();
        pod
    };
    let changes = [
        line("MODIFIED", &pod(WEB, "11", "web", "checkout")),
        line("ADDED", &elsewhere),
        line("DELETED", &pod(DB, "13", "db", "db")),
    ];
    // However it is cut on its way.
    let text = changes.concat();
    let (first, second) = text.split_at(text.len() / 2);
    let script = vec![
        list("10", "next page", &[pod(WEB, "3", "web", "shop")]),
        list("10", "", &[pod(DB, "4", "db", "db")]),
        watch(vec![first.to_owned(), second.to_owned()]),
    ];
    with(
        script,
        |_| {},
        async |server, heard| {
            heard.says("listed web db").await?;
            heard.says("applied web checkout").await?;
            heard.says(&format!("deleted {DB}")).await?;
            let asked = server.asked();
            let node = "/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-1";
            ensure_eq!(asked.len(), 3);
            ensure_eq!(asked[0], format!("{node}&limit=64"));
            ensure_eq!(asked[1], format!("{node}&limit=64&continue=next+page"));
            ensure_eq!(
                asked[2].starts_with(&format!("{node}&watch=1&allowWatchBookmarks=true&timeoutSeconds=")),
                true
            );
            ensure_eq!(asked[2].ends_with("&resourceVersion=10"), true, "{asked:?}");
            Ok(())
        },
    )
}

#[test]
fn a_watch_that_ends_goes_on_from_the_last_version() -> Result<()> {
    let bookmark = serde_json::json!({ "kind": "Pod", "metadata": { "resourceVersion": "20" } });
    let script = vec![
        list("10", "", &[]),
        Answer::Watch { pieces: vec![line("ADDED", &pod(WEB, "15", "web", "shop"))], ends: true },
        Answer::Watch { pieces: vec![line("BOOKMARK", &bookmark)], ends: true },
        watch(vec![line("ADDED", &pod(DB, "21", "db", "db"))]),
    ];
    with(
        script,
        |_| {},
        async |server, heard| {
            heard.says("listed ").await?;
            heard.says("applied web shop").await?;
            heard.says("applied db db").await?;
            let asked = server.asked();
            let versions: Vec<_> = asked[1..].iter().filter_map(|query| query.rsplit('=').next()).collect();
            ensure_eq!(versions, ["10", "15", "20"]);
            Ok(())
        },
    )
}

#[test]
fn a_version_that_is_forgotten_leads_to_a_new_list() -> Result<()> {
    let gone =
        serde_json::json!({ "kind": "Status", "code": 410, "reason": "Expired", "message": "too old" });
    let script = vec![
        list("10", "", &[pod(WEB, "3", "web", "shop")]),
        watch(vec![line("ERROR", &gone)]),
        list("30", "", &[pod(DB, "4", "db", "db")]),
        Answer::Whole(410, gone.to_string()),
        list("40", "", &[]),
        watch(vec![line("ADDED", &pod(WEB, "41", "web", "shop"))]),
    ];
    // None of it is a complaint.
    with(
        script,
        |_| {},
        async |_, heard| {
            heard.says("listed web").await?;
            heard.says("listed db").await?;
            heard.says("listed ").await?;
            heard.says("applied web shop").await
        },
    )
}

#[test]
fn whatever_else_it_says_is_a_complaint_and_a_new_list() -> Result<()> {
    let endless = "x".repeat(1 << 20);
    let failing = serde_json::json!({ "kind": "Status", "code": 500, "message": "etcd is away" });
    let answers: Vec<(Answer, &str)> = vec![
        (watch(vec!["nonsense\n".to_owned()]), "no change of a pod"),
        (watch(vec!["{\"type\":\"ADDED\",\"object\":{}}\n".to_owned()]), "without a version"),
        (watch(vec![line("STRANGE", &pod(WEB, "5", "a", "b"))]), "STRANGE"),
        (watch(vec![line("ERROR", &failing)]), "500 etcd is away"),
        (Answer::Watch { pieces: vec!["{\"type\"".to_owned()], ends: true }, "half a change"),
        (watch(vec![endless.clone(); 6]), "more than 4194304 bytes"),
        (Answer::Nothing, "cannot ask"),
        (Answer::Whole(500, "oh".to_owned()), "500"),
        (Answer::Whole(302, String::new()), "302"),
    ];
    for (answer, words) in answers {
        let script = vec![
            list("10", "", &[pod(WEB, "3", "web", "shop")]),
            answer,
            list("11", "", &[pod(WEB, "3", "web", "shop")]),
        ];
        with(
            script,
            |_| {},
            async |_, heard| {
                heard.says("listed web").await?;
                heard.complains(words).await?;
                heard.says("listed web").await
            },
        )
        .with_context(|| format!("a watch that says {words}"))?;
    }
    Ok(())
}

#[test]
fn a_list_that_is_none_is_a_complaint() -> Result<()> {
    let page = "x".repeat((16 << 20) + 1);
    let answers = [
        (Answer::Whole(200, "{}".to_owned()), "no list of pods"),
        (Answer::Whole(200, page), "more than 16777216 bytes"),
        (Answer::Whole(403, "{}".to_owned()), "`list` and `watch` of pods"),
        (Answer::Whole(503, "{}".to_owned()), "503"),
    ];
    for (answer, words) in answers {
        with(
            vec![answer, list("10", "", &[])],
            |_| {},
            async |_, heard| {
                heard.complains(words).await?;
                heard.says("listed ").await
            },
        )
        .with_context(|| format!("a list that says {words}"))?;
    }
    Ok(())
}

#[test]
fn it_is_asked_only_by_who_may_and_only_who_it_is() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let another = ApiServer::start(dir.path())?.settings()?;
    std::fs::write(dir.path().join("empty"), "")?;
    type Change<'a> = Box<dyn FnOnce(&mut Settings) + 'a>;
    let cases: Vec<(Change<'_>, &str)> = vec![
        (Box::new(|settings| settings.ca_file = another.ca_file), "certificate"),
        (Box::new(|settings| settings.ca_file = "/nowhere".into()), "cannot read /nowhere"),
        (Box::new(|settings| settings.token_file = "/nowhere".into()), "cannot read /nowhere"),
        (Box::new(|settings| settings.ca_file = dir.path().join("empty")), "bundle of certificates"),
        (Box::new(|settings| settings.token_file = dir.path().join("empty")), "which is no token"),
        (Box::new(|settings| settings.token_file = settings.ca_file.clone()), "which is no token"),
    ];
    for (change, words) in cases {
        with(vec![list("10", "", &[])], change, async |server, heard| {
            heard.complains(words).await?;
            ensure_eq!(server.asked(), Vec::<String>::new());
            Ok(())
        })
        .with_context(|| format!("a case of {words}"))?;
    }
    let wrong = dir.path().join("wrong");
    std::fs::write(&wrong, "wrong")?;
    with(
        vec![],
        |settings| settings.token_file = wrong,
        async |_, heard| heard.complains("401 Unauthorized: look at `kubernetes.token_file`").await,
    )
}

/// Kubernetes replaces the token now and then.
#[test]
fn the_token_is_read_anew() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let token = dir.path().join("token");
    std::fs::write(&token, "old")?;
    let path = token.clone();
    with(
        vec![list("10", "", &[])],
        |settings| settings.token_file = path,
        async |_, heard| {
            heard.complains("401").await?;
            std::fs::write(&token, tests::api_server::TOKEN)?;
            loop {
                let said = heard.next().await?;
                if !said.starts_with("unreachable") {
                    ensure_eq!(said, "listed ");
                    return Ok(());
                }
            }
        },
    )
}
