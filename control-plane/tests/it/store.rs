//! The record itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;

use control_plane::clock;
use control_plane::identity::{Token, TokenHash};
use control_plane::rules::Refusal;
use control_plane::rules::actor::Actor;
use control_plane::rules::claims::{DeviceClaims, Expected, Proven};
use control_plane::store::{Entry, HeldBy, NewJoinToken, SessionNumber, Store, StoreError};
use proto::types::{
    Applied, AuditEvent, EventId, EventKind, HostName, Labels, NewResource, NewSubject, ProviderName,
    SubjectRole,
};
use uuid::Uuid;

use super::KIND;
use crate::database::{Kind, TestDatabase};

async fn create(database: &TestDatabase) -> Result<(), StoreError> {
    Store::create(&database.database, &Token::for_subject().hash(), clock::now()).await
}

pub(crate) async fn opened() -> (TestDatabase, Store) {
    let database = TestDatabase::new(KIND);
    create(&database).await.expect("made");
    let store = Store::open(&database.database).await.expect("opens");
    (database, store)
}

#[tokio::test]
async fn the_record_cannot_be_changed() {
    let database = TestDatabase::new(KIND);
    create(&database).await.expect("made");
    let mut sql = database.raw().await;
    for (statement, problem) in [
        ("UPDATE audit_events SET payload = payload", "never changed"),
        ("UPDATE audit_events SET position = 7 WHERE position = 2", "never changed"),
        ("DELETE FROM audit_events", "never deleted"),
        ("DELETE FROM audit_events WHERE position = 2", "never deleted"),
        ("INSERT INTO audit_events SELECT 1, 'x', 'y', 1, payload FROM audit_events", "without holes"),
        ("INSERT INTO audit_events SELECT 4, 'x', 'y', 1, payload FROM audit_events", "without holes"),
        ("INSERT INTO audit_events SELECT NULL, 'x', 'y', 1, payload FROM audit_events", "without holes"),
        (
            "INSERT INTO audit_events SELECT position + 2, source, epoch, sequence, payload FROM audit_events",
            "unique",
        ),
    ] {
        let error = sql.execute(statement).await.expect_err(statement).to_string();
        assert!(error.to_lowercase().contains(problem), "{statement}: {error}");
    }
    let only_theirs = match KIND {
        Kind::Sqlite => {
            "INSERT OR REPLACE INTO audit_events SELECT 1, 'x', 'y', 1, payload FROM audit_events"
        }
        Kind::Postgres => "TRUNCATE audit_events",
    };
    assert!(sql.execute(only_theirs).await.is_err());
    let store = Store::open(&database.database).await.expect("opens");
    let kinds: Vec<EventKind> =
        store.events(0, 10).await.expect("reads").iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::SubjectAdded, EventKind::TokenIssued]);
}

#[tokio::test]
async fn a_database_is_made_once_and_a_file_used_by_one() {
    let database = TestDatabase::new(KIND);
    let nothing_there = Store::open(&database.database).await;
    assert!(matches!(nothing_there, Err(StoreError::Absent(_) | StoreError::Empty(_))), "{nothing_there:?}");
    create(&database).await.expect("made");
    assert!(matches!(create(&database).await, Err(StoreError::Exists(_))));
    let store = Store::open(&database.database).await.expect("opens");
    match (KIND, Store::open(&database.database).await) {
        (Kind::Sqlite, other) => assert!(matches!(other, Err(StoreError::InUse(_))), "{other:?}"),
        (Kind::Postgres, other) => other.expect("there may be several").close().await,
    }
    let timeline = store.timeline();
    store.close().await;
    drop(store);
    assert_eq!(Store::open(&database.database).await.expect("opens").timeline(), timeline);
}

#[tokio::test]
async fn a_broken_row_is_an_error_and_no_panic() {
    let (database, store) = opened().await;
    let host: HostName = "db-7".parse().expect("valid");
    let token = NewJoinToken { hash: TokenHash::of("secret"), expires: clock::now() };
    store.add_host(&host, &Labels::default(), &token, &Actor::System, clock::now()).await.expect("added");
    let mut sql = database.raw().await;
    sql.execute("UPDATE hosts SET name = 'NOT A NAME'").await.expect("written");
    // The hash of a token is no event.
    sql.execute("INSERT INTO audit_events SELECT 5, 'x', 'y', 1, hash FROM tokens").await.expect("written");
    assert!(matches!(store.hosts().await, Err(StoreError::Broken { what: "host", .. })));
    assert!(matches!(store.events(4, 1).await, Err(StoreError::Broken { what: "audit event", .. })));
}

pub(crate) fn expected() -> Expected {
    Expected {
        issuer: "https://idp.example".to_owned(),
        client_id: "portcullis".to_owned(),
        subject_claim: "email".to_owned(),
        groups_claim: "groups".to_owned(),
        groups_prefix: String::new(),
        device: DeviceClaims::default(),
        roles: BTreeMap::new(),
        default_role: Some(SubjectRole::Member),
        max_auth_age: None,
    }
}

pub(crate) fn proven(subject: &str, account: &str) -> Proven {
    Proven {
        subject: subject.parse().expect("valid"),
        account: account.to_owned(),
        role: None,
        groups: Vec::new(),
        named_groups: BTreeSet::new(),
        device: None,
        proven: None,
        methods: Vec::new(),
        usable_until: clock::now().plus(Duration::from_secs(60)),
    }
}

/// A sign-in of its own.
pub(crate) fn entry<'a>(proven: &'a Proven, expected: &'a Expected) -> Entry<'a> {
    static PROVIDER: LazyLock<ProviderName> = LazyLock::new(|| "corp".parse().expect("valid"));
    Entry {
        proven,
        provider: &PROVIDER,
        expected,
        lifetime: Duration::from_secs(600),
        id_token: Token::for_session().hash(),
        token: Token::for_session().hash(),
        held_by: HeldBy::Tool,
        replaces: None,
    }
}

/// Of many who sign in at once under one name, with accounts of their own, one has it.
#[tokio::test]
async fn a_name_is_given_once() {
    let (_database, store) = opened().await;
    let tries = (0..16).map(|index| {
        let store = store.clone();
        tokio::spawn(async move {
            let (proven, expected) = (proven("user:alice", &format!("{index}")), expected());
            store.sign_in(&entry(&proven, &expected), clock::now()).await.is_ok()
        })
    });
    let tries: Vec<_> = tries.collect();
    let mut let_in = 0;
    for one in tries {
        let_in += usize::from(one.await.expect("no panic"));
    }
    assert_eq!(let_in, 1);
    // And one account has one name.
    let expected = expected();
    let bob = proven("user:bob", "b");
    store.sign_in(&entry(&bob, &expected), clock::now()).await.expect("is let in");
    let robert = proven("user:robert", "b");
    let refused = store.sign_in(&entry(&robert, &expected), clock::now()).await;
    assert!(matches!(refused, Err(StoreError::Refused(Refusal::OtherName { .. }))), "{refused:?}");
    let known: Vec<String> =
        store.subjects().await.expect("reads").into_iter().map(|subject| subject.id.to_string()).collect();
    assert_eq!(known, ["user:admin", "user:alice", "user:bob"], "nothing of a refused sign-in stays");
}

/// Names come in the order of their bytes, whatever a locale has to say.
#[tokio::test]
async fn names_are_in_the_order_of_their_bytes() {
    let (_database, store) = opened().await;
    let ids = ["user:a-b", "user:a.b", "user:a_b", "user:aa", "user:ab", "user:b"];
    for id in ids.iter().rev() {
        let id = id.parse().expect("valid");
        let new = NewSubject { id, selectors: Vec::new(), role: SubjectRole::Member };
        store.add_subject(new, &Actor::System, clock::now()).await.expect("added");
    }
    let known: Vec<String> =
        store.subjects().await.expect("reads").into_iter().map(|subject| subject.id.to_string()).collect();
    let mut expected = ids.map(ToOwned::to_owned).to_vec();
    expected.push("user:admin".to_owned());
    expected.sort_unstable();
    assert_eq!(known, expected);
}

/// Many change the record at once: each change happens once, one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn changes_are_one_after_the_other() {
    let (database, store) = opened().await;
    let mut sql = database.raw().await;
    let before = sql.number("SELECT revision FROM timeline").await;
    let changes = (0..40_u64).map(|index| {
        let store = store.clone();
        tokio::spawn(async move {
            let addresses = vec![format!("10.0.0.{index}").parse().expect("valid")];
            let ports = vec!["tcp/5432".parse().expect("valid")];
            let name = format!("db-{}", index / 2).parse().expect("valid");
            let new = NewResource::new(name, addresses, ports).expect("valid");
            store.add_resource(new, &Actor::System, clock::now()).await.is_ok()
        })
    });
    let mut made = 0;
    for change in changes.collect::<Vec<_>>() {
        made += usize::from(change.await.expect("no panic"));
    }
    assert_eq!((made, store.resources().await.expect("reads").len()), (20, 20), "each name is given once");
    let events = store.events(0, 1000).await.expect("reads");
    let numbers: Vec<(u64, u64)> = events.iter().map(|event| (event.position, event.id.sequence)).collect();
    assert_eq!(numbers, (1..=22).map(|number| (number, number)).collect::<Vec<_>>(), "without holes");
    // Those that waited for each other went to the disk together.
    let transactions = sql.number("SELECT revision FROM timeline").await - before;
    assert!((1..20).contains(&transactions), "{transactions}");
    assert_eq!(sql.number("SELECT directory_revision FROM timeline").await, 20);
}

/// What hosts say and what happens here is numbered together, also where it comes at once and some of it is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn events_that_come_at_once_have_numbers_without_holes() {
    let (_database, store) = opened().await;
    let changes = (0..20_u64).map(|index| {
        let store = store.clone();
        tokio::spawn(async move {
            let host: HostName = format!("db-{index}").parse().expect("valid");
            let token = NewJoinToken { hash: TokenHash::of(host.as_str()), expires: clock::now() };
            store
                .add_host(&host, &Labels::default(), &token, &Actor::System, clock::now())
                .await
                .expect("added");
            // Of every fourth host the first event is missing.
            let first = if index % 4 == 0 { 2 } else { 1 };
            let events = (first..first + 3).map(|sequence| {
                let id = EventId { host: Some(host.clone()), epoch: Uuid::from_u128(7), sequence };
                AuditEvent {
                    host: host.to_string(),
                    ..AuditEvent::new(id, EventKind::AgentStarted, clock::now())
                }
            });
            store.receive(&host, events.collect(), clock::now()).await.is_ok()
        })
    });
    let mut received = 0;
    for change in changes.collect::<Vec<_>>() {
        received += usize::from(super::world::within(change).await.expect("no panic"));
    }
    assert_eq!(received, 15);
    let events = store.events(0, 1000).await.expect("reads");
    let positions: Vec<u64> = events.iter().map(|event| event.position).collect();
    assert_eq!(positions, (1..).take(events.len()).collect::<Vec<_>>());
    let mut last: BTreeMap<_, u64> = BTreeMap::new();
    for event in &events {
        let before = last.insert((event.id.host.clone(), event.id.epoch), event.id.sequence).unwrap_or(0);
        assert_eq!(event.id.sequence, before + 1, "{event:?}");
    }
    assert_eq!(last.len(), 16, "fifteen hosts, and the control plane");
}

/// Many hosts say at once what their kernels hold: whose word somebody else writes down keeps nobody waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_acknowledge_at_once() {
    let (_database, store) = opened().await;
    let mut saying = Vec::new();
    for index in 0..40_u64 {
        let host: HostName = format!("db-{index}").parse().expect("valid");
        let token = NewJoinToken { hash: TokenHash::of(host.as_str()), expires: clock::now() };
        store.add_host(&host, &Labels::default(), &token, &Actor::System, clock::now()).await.expect("added");
        saying.push((store.clone(), host));
    }
    let saying = saying.into_iter().map(|(store, host)| {
        tokio::spawn(async move {
            let applied = Applied { generation: 1, refused: Vec::new() };
            // As before the first session of a host: what counts here is the line.
            store.agent_applied(&host, SessionNumber::NONE, &applied, &[], clock::now()).await
        })
    });
    for said in saying.collect::<Vec<_>>() {
        super::world::within(said).await.expect("no panic").expect("written");
    }
    let hosts = store.hosts().await.expect("reads");
    assert!(hosts.iter().all(|host| host.applied_generation == 1), "{hosts:?}");
}

/// Whoever asks for a change may be gone before it is done: it has happened whole or not at all, and those after it are not held up.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_change_that_nobody_waits_for_is_whole_or_none() {
    async fn add(store: &Store, name: &str) -> Result<(), StoreError> {
        let token = NewJoinToken { hash: TokenHash::of(name), expires: clock::now() };
        let name = name.parse().expect("valid");
        store.add_host(&name, &Labels::default(), &token, &Actor::System, clock::now()).await
    }
    let (_database, store) = opened().await;
    for round in 0..5_u64 {
        let changes = (0..20_u64).map(|index| {
            let store = store.clone();
            tokio::spawn(async move {
                let patience = Duration::from_micros(300 * (5 * index + round));
                let _ = tokio::time::timeout(patience, add(&store, &format!("db-{round}-{index}"))).await;
            })
        });
        for change in changes.collect::<Vec<_>>() {
            change.await.expect("no panic");
        }
    }
    add(&store, "last").await.expect("nothing is in the way");
    let hosts = store.hosts().await.expect("reads");
    let events = store.events(2, 1000).await.expect("reads");
    assert_eq!(events.len(), 2 * hosts.len(), "each host was added, and has got a token");
    for (pair, position) in events.chunks(2).zip((3..).step_by(2)) {
        let [added, token] = pair else { panic!("two by two") };
        assert_eq!((added.kind, token.kind), (EventKind::HostAdded, EventKind::TokenIssued));
        assert_eq!((added.position, token.position, &added.host), (position, position + 1, &token.host));
        assert!(hosts.iter().any(|host| host.name.as_str() == added.host));
    }
}
