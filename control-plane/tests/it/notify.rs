//! Others are told of events: by a real server each, which answers, fails, hangs, or is away.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use control_plane::clock;
use control_plane::config::{Channel, Endpoint, Mail, MailSafety, NotifyTarget};
use control_plane::identity::Token;
use control_plane::rules::actor::Actor;
use control_plane::rules::notify::{Severity, Subscription};
use control_plane::store::{Outcome, Store};
use proto::json::AuditRow;
use proto::types::{EventKind, NewSubject, ProviderName, SubjectRole};
use proto::wire::access::{AddHostRequest, AddSubjectRequest, Subject, SubjectRole as WireRole};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use uuid::Uuid;

use super::KIND;
use super::binary::{Running, authority_of, write_config};
use super::world::{Caller, FakeAgent, Trusted, World, until, within};
use crate::arguments::{run, text};
use crate::database::TestDatabase;
use crate::receiver::{Does, Received, Receiver, SECRET};

/// Long enough for a server on this machine, short enough to wait for.
const TIME_LIMIT: Duration = Duration::from_secs(1);

fn subscription(name: &str, events: &[&str]) -> Subscription {
    Subscription {
        target: name.parse().expect("valid"),
        events: events.iter().map(|text| text.parse().expect("a pattern")).collect(),
        severity: Severity::Info,
        waiting_max: 100,
        patience: Duration::from_secs(3600),
    }
}

fn target(name: &str, events: &[&str], channel: Channel) -> NotifyTarget {
    NotifyTarget { subscription: subscription(name, events), time_limit: TIME_LIMIT, channel }
}

fn webhook(name: &str, events: &[&str], receiver: &Receiver) -> NotifyTarget {
    target(name, events, Channel::Webhook(receiver.endpoint(), Receiver::secrets()))
}

async fn telling(notify: Vec<NotifyTarget>) -> World {
    World::trusting(Trusted { notify, ..Trusted::default() }).await
}

async fn received(receiver: &Receiver, count: usize) -> Vec<Received> {
    until(async || receiver.received().len() >= count).await;
    receiver.received()
}

async fn waiting(world: &World) -> i64 {
    world.database.raw().await.number("SELECT count(*) FROM outbox").await
}

/// What is waited for by `until` in a place where the world is borrowed.
async fn delivered(world: &World) {
    until(async || waiting(world).await == 0).await;
}

#[tokio::test]
async fn an_event_arrives_whole_and_signed() {
    let receiver = Receiver::secure().await;
    let mut world = telling(vec![webhook("ops", &["request.created", "agent.started"], &receiver)]).await;
    let mut story = world.story().await;
    let request = story.alice.request(60).await.expect("made");
    let [got] = &received(&receiver, 1).await[..] else { panic!("one") };
    assert!(got.is_signed() && got.path == "/hook" && got.headers["content-type"] == "application/json");
    let event = world.last(EventKind::RequestCreated).await;
    assert_eq!(event.request, request.id.to_string());
    assert!(got.id().ends_with(&format!("_{}", event.position)), "{}", got.id());
    let body = got.json();
    assert_eq!((&body["type"], &body["severity"]), (&"request.created".into(), &"low".into()));
    let row = serde_json::to_value(AuditRow::from(event)).expect("JSON");
    assert_eq!((&body["timestamp"], &body["data"]), (&row["time"].clone(), &row));
    // What agents see comes by another way.
    let (mut agent, _) = FakeAgent::start(&world, &story.host).await;
    agent.batch(vec![agent.event(1), agent.event(2)]).await;
    assert_eq!(agent.acknowledged().await, 2);
    let got = received(&receiver, 3).await;
    assert!(got.iter().all(Received::is_signed));
    assert!(got[1..].iter().all(|got| got.json()["type"] == "agent.started"));
    delivered(&world).await;
}

#[tokio::test]
async fn what_does_not_arrive_is_tried_again_under_the_same_id() {
    let receiver = Receiver::plain().await;
    receiver.next([Does::Answer(500), Does::Hang, Does::Redirect, Does::Answer(429)]);
    let mut world = telling(vec![webhook("ops", &["request.created"], &receiver)]).await;
    let mut story = world.story().await;
    story.alice.request(60).await.expect("made");
    delivered(&world).await;
    let got = receiver.received();
    assert_eq!(got.len(), 5, "until it is taken");
    assert!(got.iter().all(|one| one.is_signed() && one.id() == got[0].id() && one.body == got[0].body));
    assert!(got.iter().all(|one| one.path == "/hook"), "nobody is followed elsewhere");
    assert!(world.record().await.iter().all(|event| event.kind != EventKind::NotificationFailed));
}

#[tokio::test]
async fn what_never_arrives_is_given_up_and_on_record() {
    let (dead, alive) = (Receiver::plain().await, Receiver::secure().await);
    dead.always(Does::Answer(500));
    let mut to_dead = webhook("dead", &["request.created", "notification.*"], &dead);
    to_dead.subscription.patience = Duration::from_secs(2);
    if let Channel::Webhook(endpoint, _) = &mut to_dead.channel {
        endpoint.url.set_path("/services/hush");
    }
    let mut world = telling(vec![to_dead, webhook("alive", &["notification.*"], &alive)]).await;
    let mut story = world.story().await;
    story.alice.request(60).await.expect("made");
    let told = received(&alive, 1).await.remove(0).json();
    let failed = world.last(EventKind::NotificationFailed).await;
    let asked = world.last(EventKind::RequestCreated).await;
    assert_eq!((failed.actor.as_str(), failed.reason.as_str()), ("system", "undeliverable"));
    let at = asked.position;
    assert_eq!(
        failed.comment,
        format!(
            "target `dead`: 1 notifications, of events at positions {at} to {at}: it answered 500 Internal Server Error"
        )
    );
    assert_eq!(told["data"], serde_json::to_value(AuditRow::from(failed)).expect("JSON"));
    delivered(&world).await;
    assert!(dead.received().iter().all(|got| got.json()["type"] == "request.created"), "not of itself");
}

/// The first to fail is told of by the second, which fails, too: that is on record, and the end of it.
#[tokio::test]
async fn two_that_are_away_do_not_keep_each_other_busy() {
    let gone = |name: &str| {
        // Nobody listens there.
        let endpoint = Endpoint { url: "http://127.0.0.1:1/".parse().expect("a URL"), authority: None };
        let events = ["request.created", "notification.*"];
        let mut target = target(name, &events, Channel::Webhook(endpoint, Receiver::secrets()));
        target.subscription.patience = Duration::from_secs(1);
        target
    };
    let mut world = telling(vec![gone("a"), gone("b")]).await;
    let mut story = world.story().await;
    story.alice.request(60).await.expect("made");
    until(async || {
        let record = world.admin.clone().tail(proto::wire::audit::TailRequest::default()).await;
        let failed = record.iter().filter(|event| event.kind == EventKind::NotificationFailed).count();
        failed >= 4 && waiting(&world).await == 0
    })
    .await;
    let record = world.record().await;
    let failed = record.iter().filter(|event| event.kind == EventKind::NotificationFailed);
    assert_eq!(failed.count(), 4, "one for each that was not told of the request, and of the other");
}

#[tokio::test]
async fn a_target_that_is_away_fills_no_disk() {
    let receiver = Receiver::plain().await;
    receiver.always(Does::Answer(503));
    let mut bounded = webhook("ops", &["subject.added"], &receiver);
    bounded.subscription.waiting_max = 3;
    let mut world = telling(vec![bounded]).await;
    for index in 0..8 {
        let subject =
            Subject { id: format!("user:u{index}"), role: WireRole::Member.into(), ..Subject::default() };
        let add = AddSubjectRequest { subject: Some(subject) };
        world.admin.directory.add_subject(add).await.expect("added");
        assert!(waiting(&world).await <= 3);
    }
    let of = |event: &proto::types::AuditEvent| event.kind == EventKind::SubjectAdded;
    let added: Vec<u64> =
        world.record().await.iter().filter(|event| of(event)).map(|event| event.position).collect();
    // They are told of in one line or some: how many at once is a matter of time.
    until(async || {
        let dropped = world.database.raw().await.number("SELECT dropped FROM outbox_targets").await;
        let record = world.admin.clone().tail(proto::wire::audit::TailRequest::default()).await;
        dropped == 0 || record.iter().any(|event| event.reason == "queue_full")
    })
    .await;
    receiver.always(Does::Answer(200));
    delivered(&world).await;
    let told: Vec<u64> = receiver
        .received()
        .iter()
        .map(|got| got.json()["data"]["position"].as_u64().expect("a number"))
        .collect();
    for newest in &added[added.len() - 3..] {
        assert!(told.contains(newest), "the newest are kept");
    }
    world.restart().await;
    until(async || world.database.raw().await.number("SELECT dropped FROM outbox_targets").await == 0).await;
    let record = world.record().await;
    let full = record.iter().filter(|event| event.reason == "queue_full");
    let counted: u64 = full
        .map(|event| {
            let count = event.comment.strip_prefix("target `ops`: ").and_then(|rest| rest.split(' ').next());
            count.and_then(|count| count.parse::<u64>().ok()).expect("a count")
        })
        .sum();
    // The first administrator was added before anybody was told of anything.
    assert_eq!(counted, 8 - 3);
}

#[tokio::test]
async fn who_is_not_told_any_more_leaves_nothing_behind() {
    let receiver = Receiver::plain().await;
    receiver.always(Does::Answer(503));
    let mut world = telling(vec![webhook("ops", &["request.created"], &receiver)]).await;
    let mut story = world.story().await;
    story.alice.request(60).await.expect("made");
    world.tell(Vec::new());
    world.restart().await;
    delivered(&world).await;
    let failed = world.last(EventKind::NotificationFailed).await;
    assert_eq!(failed.reason, "target_removed");
}

#[tokio::test]
async fn chats_are_told_and_decide_nothing() {
    let (slack, teams) = (Receiver::secure().await, Receiver::secure().await);
    let world = telling(vec![
        target("slack", &["request.created"], Channel::Slack(slack.endpoint())),
        target("teams", &["request.created"], Channel::Teams(teams.endpoint())),
    ]);
    let mut world = world.await;
    let mut story = world.story().await;
    story.alice.request(60).await.expect("made");
    let to_slack = received(&slack, 1).await.remove(0);
    assert_eq!(to_slack.json()["text"], "request.created: user:alice → db");
    let to_teams = received(&teams, 1).await.remove(0);
    let card = &to_teams.json()["attachments"][0];
    assert_eq!(card["contentType"], "application/vnd.microsoft.card.adaptive");
    assert!(!to_slack.headers.contains_key("webhook-signature"));
    delivered(&world).await;
}

/// However many look into the outbox: a message is in one hand at a time, and whoever was too slow has no say any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_message_is_in_one_hand() {
    let database = TestDatabase::new(KIND);
    let token = Token::for_subject();
    Store::create(&database.database, &token.hash(), clock::now()).await.expect("made");
    let ops: ProviderName = "ops".parse().expect("valid");
    let store = Store::open(&database.database).await.expect("opens");
    let store = store.notifying(vec![subscription("ops", &["subject.added"])]);
    let start = clock::now();
    for index in 0..20 {
        let id = format!("user:u{index}").parse().expect("valid");
        let new = NewSubject { id, selectors: Vec::new(), role: SubjectRole::Member };
        store.add_subject(new, &Actor::System, start).await.expect("added");
    }
    let lease = start.plus(Duration::from_secs(60));
    let taking = (0..5).map(|_| {
        let (store, ops) = (store.clone(), ops.clone());
        tokio::spawn(async move {
            let hand = Uuid::now_v7();
            (hand, store.take_messages(&ops, hand, 7, lease, start).await.expect("reads"))
        })
    });
    let mut taken = Vec::new();
    for one in taking.collect::<Vec<_>>() {
        taken.push(one.await.expect("no panic"));
    }
    let mut positions: Vec<u64> =
        taken.iter().flat_map(|(_, messages)| messages).map(|message| message.event.position).collect();
    positions.sort_unstable();
    assert_eq!(positions.len(), 20);
    positions.dedup();
    assert_eq!(positions.len(), 20, "nobody has what another one has");
    assert_eq!(store.next_message(&ops).await.expect("reads"), Some(lease));
    // Whoever had them died: somebody else gets them, and what the first one says then is nothing.
    let (slow, mut late) = taken.into_iter().find(|(_, messages)| !messages.is_empty()).expect("some");
    let next = Uuid::now_v7();
    let again = store.take_messages(&ops, next, 100, lease.plus(Duration::from_secs(60)), lease).await;
    let again = again.expect("reads");
    assert_eq!(again.len(), 20);
    let one = late.pop().expect("one");
    store.settle_messages(&ops, slow, &[(one, Outcome::Arrived)], lease).await.expect("written");
    let count = "SELECT count(*) FROM outbox";
    assert_eq!(database.raw().await.number(count).await, 20);
    let outcomes: Vec<_> = again.into_iter().map(|message| (message, Outcome::Arrived)).collect();
    store.settle_messages(&ops, next, &outcomes, lease).await.expect("written");
    let mut sql = database.raw().await;
    assert_eq!((sql.number(count).await, sql.number("SELECT waiting FROM outbox_targets").await), (0, 0));
    store.close().await;
}

/// Killed between the commit and the delivery, it tells of it afterwards.
#[tokio::test]
async fn a_crash_loses_no_notification() {
    let receiver = Receiver::plain().await;
    receiver.always(Does::Hang);
    let folder = tempfile::tempdir().expect("a folder");
    let listen = format!("unix:{}", folder.path().join("cp.sock").display());
    let database = TestDatabase::new(KIND);
    let config = write_config(folder.path(), &listen, &database);
    let secret = folder.path().join("secret");
    std::fs::write(&secret, SECRET).expect("written");
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).expect("set");
    let lines = format!(
        "\n[[notify]]\nname = \"ops\"\nkind = \"webhook\"\nurl = \"{}\"\nsecret_file = \"secret\"\n\
         events = [\"host.added\"]\ntime_limit = \"1s\"\n",
        receiver.url
    );
    let written = std::fs::read_to_string(&config).expect("read");
    std::fs::write(&config, written + &lines).expect("written");
    let (_, token, stderr) = run(&["init", "--config", text(&config), "--quiet"]);
    assert!(stderr.is_empty(), "{stderr}");
    let authority = authority_of(folder.path());
    let (running, address) = Running::start(&config, &folder.path().join("ready")).await;
    let mut caller = Caller::connect(&address, &authority, None, token.trim().to_owned()).await;
    let add = AddHostRequest { name: "db-7".to_owned(), ..AddHostRequest::default() };
    caller.directory.add_host(add).await.expect("added");
    // It has it in hand, and gets no answer.
    received(&receiver, 1).await;
    drop(running);
    let before = receiver.received().len();
    receiver.always(Does::Answer(204));
    let (running, _) = Running::start(&config, &folder.path().join("ready-again")).await;
    let got = received(&receiver, before + 1).await;
    assert!(got.iter().all(|one| one.is_signed() && one.id() == got[0].id()));
    assert_eq!(got[0].json()["data"]["host"], "db-7");
    until(async || database.raw().await.number("SELECT count(*) FROM outbox").await == 0).await;
    assert_eq!(running.terminate().await, 0);
}

/// A mail server with TLS and a password; ends with the test.
struct MailServer {
    port: u16,
    authority: Vec<u8>,
    mails: Lines<BufReader<ChildStdout>>,
    _process: Child,
}

impl MailServer {
    /// Debian's Python, which has the server.
    const PYTHON: &str = "/usr/bin/python3";

    async fn start(folder: &Path, safety: &str, refusals: u32) -> Self {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let write = |name: &str, text: String| -> PathBuf {
            let path = folder.join(name);
            std::fs::write(&path, text).expect("written");
            path
        };
        let certificate = write("mail.pem", certified.cert.pem());
        let key = write("mail.key", certified.signing_key.serialize_pem());
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/mail_server.py");
        let mut process = Command::new(Self::PYTHON)
            .args([program, safety, text(&certificate), text(&key), &refusals.to_string()])
            .stdout(Stdio::piped())
            // What it says of clients that it does not like is no news.
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("python3 starts: `cargo xtask setup` installs it with aiosmtpd");
        let mut mails = BufReader::new(process.stdout.take().expect("piped")).lines();
        let port = within(mails.next_line()).await.expect("read");
        let port = port.expect("a port: `cargo xtask setup` installs aiosmtpd").parse().expect("a port");
        Self { port, authority: certified.cert.pem().into_bytes(), mails, _process: process }
    }

    fn target(&self, safety: MailSafety, password: &str) -> NotifyTarget {
        let login = (safety != MailSafety::None).then(|| ("portcullis".to_owned(), password.to_owned()));
        let mail = Mail {
            host: "localhost".to_owned(),
            port: self.port,
            safety,
            login,
            from: "Portcullis <gate@example.com>".parse().expect("an address"),
            to: vec!["ops@example.com".parse().expect("an address")],
            authority: Some(self.authority.clone()),
        };
        let mut target = target("mail", &["request.created"], Channel::Email(mail));
        target.time_limit = Duration::from_secs(5);
        target
    }

    async fn mail(&mut self) -> Value {
        let line = within(self.mails.next_line()).await.expect("read").expect("it runs");
        serde_json::from_str(&line).expect("JSON")
    }
}

#[tokio::test]
async fn mail_goes_over_tls_and_is_tried_again() {
    for (name, safety) in
        [("starttls", MailSafety::StartTls), ("tls", MailSafety::Tls), ("none", MailSafety::None)]
    {
        let folder = tempfile::tempdir().expect("a folder");
        let mut server = MailServer::start(folder.path(), name, 1).await;
        let mut world = telling(vec![server.target(safety, "hush")]).await;
        let mut story = world.story().await;
        story.alice.request(60).await.expect("made");
        let mail = server.mail().await;
        assert_eq!((&mail["from"], &mail["to"][0]), (&"gate@example.com".into(), &"ops@example.com".into()));
        assert_eq!(mail["tls"], name != "none");
        assert_eq!(mail["login"], if name == "none" { Value::Null } else { "portcullis".into() });
        let text = mail["text"].as_str().expect("text");
        assert!(
            text.contains("Auto-Submitted: auto-generated") && text.contains("Message-ID: <msg_"),
            "{text}"
        );
        delivered(&world).await;
    }
}

#[tokio::test]
async fn mail_is_not_sent_to_a_stranger() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut server = MailServer::start(folder.path(), "starttls", 0).await;
    // Another authority than the server's.
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let mut wrong = server.target(MailSafety::StartTls, "hush");
    wrong.subscription.patience = Duration::from_secs(1);
    wrong.subscription.target = "wrong".parse().expect("valid");
    if let Channel::Email(mail) = &mut wrong.channel {
        mail.authority = Some(other.cert.pem().into_bytes());
    }
    let mut refused = server.target(MailSafety::StartTls, "not the password");
    refused.subscription.patience = Duration::from_secs(1);
    let mut world = telling(vec![wrong, refused]).await;
    let mut story = world.story().await;
    story.alice.request(60).await.expect("made");
    delivered(&world).await;
    let record = world.record().await;
    let failed: Vec<_> = record.iter().filter(|event| event.kind == EventKind::NotificationFailed).collect();
    assert_eq!(failed.len(), 2);
    assert!(failed.iter().all(|event| !event.comment.contains("not the password")), "{failed:?}");
    let mail = tokio::time::timeout(Duration::from_millis(1), server.mails.next_line()).await;
    assert!(mail.is_err(), "nothing came");
}
