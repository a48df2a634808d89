//! The record on a PostgreSQL server: what only that has.

use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use control_plane::clock;
use control_plane::config::{Config, Database};
use control_plane::identity::{Token, TokenHash};
use control_plane::rules::actor::Actor;
use control_plane::rules::policy::Circumstances;
use control_plane::rules::roster::Presence;
use control_plane::store::{NewJoinToken, Others, RequestFilter, SessionNumber, Store, StoreError, Whose};
use proto::status::ErrorKind;
use proto::types::{
    Applied, EventKind, Fingerprint, Hello, HostName, HostState, Labels, NewResource, Report, Timestamp,
};
use sqlx::AssertSqlSafe;
use sqlx::migrate::Migrator;
use uuid::Uuid;

use crate::database::{Kind, Raw, SERVER, TestDatabase};

async fn create(database: &Database) -> Result<(), StoreError> {
    Store::create(database, &Token::for_subject().hash(), clock::now()).await
}

async fn opened() -> (TestDatabase, Store) {
    let database = TestDatabase::new(Kind::Postgres);
    create(&database.database).await.expect("made");
    let store = Store::open(&database.database).await.expect("opens");
    (database, store)
}

/// Some change.
async fn write(store: &Store, name: &str) -> Result<(), StoreError> {
    let token = NewJoinToken { hash: TokenHash::of(name), expires: clock::now() };
    let name = name.parse().expect("valid");
    store.add_host(&name, &Labels::default(), &token, &Actor::System, clock::now()).await
}

fn hello(host: &HostName) -> Hello {
    Hello {
        host: host.clone(),
        boot_id: Uuid::from_u128(1),
        applied: None,
        agent_version: String::new(),
        kernel_release: String::new(),
        instance: None,
        protocol: 1,
        report: Report { state: HostState::Enforcing, detail: String::new() },
    }
}

/// Tries until it is done.
async fn write_at_last(store: &Store, name: &str) {
    let tries = async {
        while write(store, name).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), tries).await.expect("in time");
}

/// All that an operator could read of an error.
fn told(error: &StoreError) -> String {
    let mut text = format!("{error} / {} / {error:?}", error.hint());
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(" / {cause}");
        source = cause.source();
    }
    text
}

fn name_of(database: &Database) -> &str {
    match database {
        Database::Postgres(database) => &database.name,
        Database::Sqlite(_) => panic!("is PostgreSQL"),
    }
}

#[tokio::test]
async fn a_database_that_cannot_be_used_is_left_as_it_was() {
    let database = TestDatabase::new(Kind::Postgres);
    let mut sql = database.raw().await;
    sql.execute("CREATE TABLE hosts (of TEXT)").await.expect("made");
    let error = create(&database.database).await.expect_err("there are somebody's hosts");
    assert!(matches!(error, StoreError::Migrate { .. }), "{error:?}");
    assert_eq!(sql.number("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").await, 1);
    assert_eq!(sql.number("SELECT count(*) FROM pg_proc WHERE proname LIKE '%audit_events'").await, 0);
    assert!(matches!(Store::open(&database.database).await, Err(StoreError::Empty(_))));
    sql.execute("DROP TABLE hosts").await.expect("removed");
    create(&database.database).await.expect("nothing is in the way");
}

#[tokio::test]
async fn a_database_holds_every_text_or_is_not_taken() {
    let database = TestDatabase::new(Kind::Postgres);
    let name = name_of(&database.database);
    SERVER.administrate(&format!(
        "DROP DATABASE {name}; CREATE DATABASE {name} OWNER portcullis TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C';"
    ));
    let error = create(&database.database).await.expect_err("is refused");
    assert!(told(&error).contains("is encoded as SQL_ASCII, not as UTF8"), "{}", told(&error));
}

fn configured(folder: &Path, lines: &str) -> Database {
    let text = format!("listen = '127.0.0.1:0'\nauthority = 'authority'\n[database]\n{lines}");
    Config::parse(&text, &folder.join("cp.toml")).expect("valid").database
}

#[tokio::test]
async fn a_server_elsewhere_is_reached_by_tls_and_password() {
    let database = TestDatabase::new(Kind::Postgres);
    let name = name_of(&database.database);
    let role = format!("{name}_by_password");
    SERVER.administrate(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'hush'; ALTER DATABASE {name} OWNER TO {role};"
    ));
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("ca.pem"), &SERVER.authority).expect("written");
    for (file, password) in [("password", "hush\n"), ("wrong", "hush-hush\n")] {
        let path = folder.path().join(file);
        fs::write(&path, password).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
    }
    let port = SERVER.port;
    let with = |password: &str, name: &str, tls: &str| {
        let url = format!("url = 'postgresql://{role}@localhost:{port}/{name}'");
        configured(folder.path(), &format!("{url}\npassword_file = '{password}'\n{tls}\n"))
    };
    let refused = async |database: Database, words: &str| {
        let error = create(&database).await.expect_err("is refused");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(told(&error).contains(words), "{}", told(&error));
        assert!(!told(&error).contains("hush"), "{}", told(&error));
    };
    let ours = "ca_file = 'ca.pem'";
    refused(with("password", name, ""), "UnknownIssuer").await;
    refused(with("wrong", name, ours), "password_file").await;
    refused(with("password", "nowhere", ours), "CREATE DATABASE").await;
    let nobody = configured(folder.path(), "url = 'postgresql://cp@localhost:1/grants'\ntls = 'disable'");
    refused(nobody, "Connection refused").await;
    let database = with("password", name, ours);
    create(&database).await.expect("made");
    let store = Store::open(&database).await.expect("opens");
    write(&store, "db-7").await.expect("written");
    assert!(!format!("{store:?}").contains("hush"));
    store.close().await;
    SERVER.administrate(&format!("ALTER DATABASE {name} OWNER TO portcullis;"));
}

#[tokio::test]
async fn who_knows_only_older_tables_writes_nothing() {
    let (database, store) = opened().await;
    let mut sql = database.raw().await;
    sql.execute("UPDATE timeline SET form = form + 1").await.expect("brought up to date");
    let revision = sql.number("SELECT revision FROM timeline").await;
    let error = write(&store, "db-7").await.expect_err("does not know what to write");
    assert!(matches!(error, StoreError::Outdated(_)), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(sql.number("SELECT revision FROM timeline").await, revision);
    assert_eq!(sql.number("SELECT count(*) FROM hosts").await, 0);
    store.hosts().await.expect("reads go on");
    sql.execute("INSERT INTO _sqlx_migrations VALUES (1000000, 'of tomorrow', now(), true, '', 0)")
        .await
        .expect("noted");
    let error = Store::open(&database.database).await.expect_err("is too old");
    assert!(told(&error).contains("newer"), "{}", told(&error));
}

#[tokio::test]
async fn all_on_a_database_have_the_same_authority() {
    let (database, one) = opened().await;
    let [ours, theirs] = [1, 2].map(|byte| Fingerprint::new([byte; 32]));
    one.begin_work(ours, clock::now()).await.expect("is the first");
    let other = Store::open(&database.database).await.expect("opens");
    let refused = other.begin_work(theirs, clock::now()).await.expect_err("is another authority");
    assert!(
        told(&refused).contains(&ours.to_string()) && told(&refused).contains("copy"),
        "{}",
        told(&refused)
    );
    other.begin_work(ours, clock::now()).await.expect("is the same authority");
    other.close().await;
    one.close().await;
    let next = Store::open(&database.database).await.expect("opens");
    next.begin_work(theirs, clock::now()).await.expect("nobody else is at work");
    // Who has said nothing for long is gone, too.
    database.raw().await.execute("UPDATE replicas SET seen_ms = seen_ms - 11000").await.expect("aged");
    let last = Store::open(&database.database).await.expect("opens");
    last.begin_work(ours, clock::now()).await.expect("nobody is at work any more");
}

/// Whoever waits at one control plane hears of what another has changed, also when nobody says so.
#[tokio::test]
async fn what_others_change_wakes_those_who_wait() {
    let (database, here) = opened().await;
    let there = Store::open(&database.database).await.expect("opens");
    let host: HostName = "db-7".parse().expect("valid");
    write(&there, host.as_str()).await.expect("written");
    let (mut events, mut set) = (here.signals().events(), here.signals().set_of(&host));
    let mut revision = here.wake_for_others(0).await.expect("reads");
    events.mark_unchanged();
    set.mark_unchanged();
    here.others_change().await;
    assert_eq!(here.wake_for_others(revision).await.expect("reads"), revision);
    assert!(!events.has_changed().expect("is there") && !set.has_changed().expect("is there"));
    let resource = |name: &str| {
        let ports = vec!["tcp/5432".parse().expect("valid")];
        NewResource::new(name.parse().expect("valid"), vec!["10.0.0.7".parse().expect("valid")], ports)
    };
    there.add_resource(resource("db").expect("valid"), &Actor::System, clock::now()).await.expect("added");
    while !set.has_changed().expect("is there") {
        here.others_change().await;
        revision = here.wake_for_others(revision).await.expect("reads");
    }
    assert!(events.has_changed().expect("is there"));
    events.mark_unchanged();
    set.mark_unchanged();
    // What was changed here has woken them already.
    here.remove_resource(&"db".parse().expect("valid"), &Actor::System, clock::now()).await.expect("removed");
    set.mark_unchanged();
    here.wake_for_others(revision).await.expect("reads");
    assert!(!set.has_changed().expect("is there"));
}

#[tokio::test]
async fn a_session_that_another_has_replaced_says_nothing_any_more() {
    let (database, here) = opened().await;
    let there = Store::open(&database.database).await.expect("opens");
    for store in [&here, &there] {
        store.begin_work(Fingerprint::new([1; 32]), clock::now()).await.expect("begins");
    }
    write(&here, "db-7").await.expect("written");
    let host: HostName = "db-7".parse().expect("valid");
    let hello = Hello { instance: Some(Uuid::from_u128(7)), ..hello(&host) };
    let now = clock::now();
    let old = here.agent_connected(&hello, now).await.expect("noted");
    assert!(there.elsewhere().await.expect("reads").contains_key(&host));
    let new = there.agent_connected(&hello, now).await.expect("noted");
    assert!(!new.takes_turns, "its connection broke");
    assert!(here.elsewhere().await.expect("reads").contains_key(&host));
    assert!(there.elsewhere().await.expect("reads").is_empty());
    let superseded = |error: StoreError| assert!(matches!(error, StoreError::Superseded(_)), "{error:?}");
    let applied = Applied { generation: 1, refused: Vec::new() };
    superseded(here.agent_applied(&host, old.session, &applied, &[], now).await.expect_err("is over"));
    superseded(here.agent_ended(&host, old.session, &[], now).await.expect_err("is over"));
    superseded(here.resync(&host, old.session, "", now).await.expect_err("is over"));
    superseded(here.plan(&host, old.session).await.expect_err("is over"));
    let degraded = Report { state: HostState::Degraded, detail: String::new() };
    superseded(here.agent_reported(&host, old.session, &degraded, now).await.expect_err("is over"));
    here.agent_disconnected(&host, old.session, "closed", "", now, now).await.expect("is known already");
    assert_eq!(here.host(&host).await.expect("reads").applied_generation, 0);
    there.agent_applied(&host, new.session, &applied, &[], now).await.expect("noted");
    // The other run of the agent takes the session, and the first one takes it again.
    let other = Hello { instance: Some(Uuid::from_u128(8)), ..hello.clone() };
    assert!(!here.agent_connected(&other, now).await.expect("noted").takes_turns);
    assert!(there.agent_connected(&hello, now).await.expect("noted").takes_turns);
    // A control plane that ends without a word leaves its sessions to the others.
    let mut sql = database.raw().await;
    let aged = "UPDATE replicas SET seen_ms = seen_ms - 11000 WHERE id = (SELECT replica FROM hosts)";
    assert_eq!(sql.execute(aged).await.expect("aged"), 1);
    assert!(here.beat(Fingerprint::new([1; 32])).await.expect("noted").are_gone);
    assert!(!here.end_lost_sessions(now).await.expect("ended"));
    assert!(here.elsewhere().await.expect("reads").is_empty());
    assert_eq!(here.beat(Fingerprint::new([1; 32])).await.expect("noted"), Others::default());
    superseded(there.plan(&host, new.session).await.expect_err("is over"));
    let events = here.events(0, 100).await.expect("reads");
    let ends: Vec<&str> = events
        .iter()
        .filter(|event| event.kind == EventKind::AgentDisconnected)
        .map(|event| event.reason.as_str())
        .collect();
    assert_eq!(ends, ["superseded", "superseded", "superseded", "control_plane_lost"]);
}

#[tokio::test]
async fn how_hosts_are_is_known_to_all() {
    let (database, here) = opened().await;
    let there = Store::open(&database.database).await.expect("opens");
    write(&here, "db-7").await.expect("written");
    let mut sql = database.raw().await;
    let host: HostName = "db-7".parse().expect("valid");
    let at = |ms| Timestamp::from_unix_ms(ms).expect("in range");
    let presence = Presence { seen: at(7), confirmed: Some(at(5)), disagreement: Some("2 pairs".to_owned()) };
    here.publish(vec![(host.clone(), presence.clone())]).await.expect("is none of ours, and left out");
    assert_eq!(sql.number("SELECT count(*) FROM presences").await, 0);
    here.agent_connected(&hello(&host), at(3)).await.expect("noted");
    let known = async || there.elsewhere().await.expect("reads").remove(&host);
    assert_eq!(known().await, Some(Presence { seen: at(3), confirmed: None, disagreement: None }));
    here.publish(vec![(host.clone(), presence.clone())]).await.expect("published");
    assert_eq!(known().await, Some(presence));
}

#[tokio::test]
async fn it_goes_on_after_the_server_has_cut_it_off() {
    let (database, store) = opened().await;
    write(&store, "db-1").await.expect("written");
    let mut sql = database.raw().await;
    sql.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    .await
    .expect("ended");
    write_at_last(&store, "db-2").await;
    assert_eq!(store.hosts().await.expect("reads").len(), 2);
    let positions = store.events(0, 100).await.expect("reads").into_iter().map(|event| event.position);
    assert_eq!(positions.collect::<Vec<_>>(), (1..=6).collect::<Vec<_>>());
}

/// Queries on what grows without end must not read it all.
#[tokio::test]
async fn indexes_fit_the_queries() {
    let (database, _store) = opened().await;
    let Raw::Postgres(mut sql) = database.raw().await else { panic!("is PostgreSQL") };
    // With so few rows it would read them all if it may.
    for setting in ["enable_seqscan", "enable_bitmapscan", "enable_sort"] {
        let off = AssertSqlSafe(format!("SET {setting} = off"));
        sqlx::query(off).execute(&mut sql).await.expect("set");
    }
    for (query, index) in [
        ("SELECT id FROM requests WHERE state = 'pending' ORDER BY id DESC LIMIT 100", "requests_pending"),
        ("SELECT id FROM grants WHERE state <> 'ended' ORDER BY id DESC LIMIT 100", "grants_unended"),
        ("SELECT min(expires_ms) FROM grants WHERE state <> 'ended'", "grants_by_deadline"),
        ("SELECT grant_id FROM grant_hosts WHERE host = 7 AND holding <> 'free'", "grant_hosts_open"),
        (
            "SELECT max(sequence) FROM audit_events WHERE source = 'x' AND epoch = 'y'",
            "audit_events_source_epoch_sequence_key",
        ),
        ("SELECT name FROM hosts WHERE changed > 7", "hosts_by_change"),
        ("SELECT name FROM hosts WHERE replica = 'x'", "hosts_in_session"),
        ("SELECT coalesce(max(position), 0) FROM audit_events", "audit_events_pkey"),
        (
            "SELECT payload FROM audit_events WHERE position > 5 ORDER BY position LIMIT 5",
            "audit_events_pkey",
        ),
    ] {
        let explain = AssertSqlSafe(format!("EXPLAIN {query}"));
        let plan: Vec<String> = sqlx::query_scalar(explain).fetch_all(&mut sql).await.expect(query);
        let plan = plan.join("; ");
        assert!(plan.contains(index) && !plan.contains("Sort"), "{query}: {plan}");
    }
}

/// Whatever form the tables had, what was in them is there when they have the one of today.
#[tokio::test]
async fn older_tables_are_brought_up_to_date() {
    let all = Migrator::new(Path::new("migrations/postgres")).await.expect("read");
    let versions: Vec<i64> = all.iter().map(|migration| migration.version).collect();
    assert_eq!(versions.first(), Some(&1));
    for version in versions {
        let database = TestDatabase::new(Kind::Postgres);
        let mut sql = database.raw().await;
        let older = all.iter().filter(|migration| migration.version <= version).cloned().collect();
        let Raw::Postgres(connection) = &mut sql else { panic!("is PostgreSQL") };
        Migrator::with_migrations(older).run(connection).await.expect("an older version");
        let (request, grant) =
            ("01940000-0000-7000-8000-000000000001", "01940000-0000-7000-8000-000000000002");
        let begins = if version >= 3 { (", begins_ms", ", 2") } else { ("", "") };
        for statement in [
            "INSERT INTO timeline (only_row, id, created_ms) VALUES (1, '01940000-0000-4000-8000-000000000000', 1)",
            "INSERT INTO resources (name, addresses, ports, mode, strict, check_senders, added_ms)
             VALUES ('db', '10.0.0.7', 'tcp/5432', 'enforce', false, false, 1)",
            "INSERT INTO subjects (id, role, added_ms) VALUES ('user:alice', 'member', 1), ('user:dora', 'approver', 1)",
            "INSERT INTO hosts (name, added_ms) VALUES ('db-7', 1)",
            &format!(
                "INSERT INTO requests (id, state, resource, subject, requester, duration_s, reason, created_ms, decided_by, decided_ms,
                     comment) VALUES ('{request}', 'approved', 1, 1, 1, 60, 'why not', 1, 2, 2, 'yes')"
            ),
            &format!("INSERT INTO request_hosts (request, host) VALUES ('{request}', 1)"),
            &format!(
                "INSERT INTO grants (id, request, state, issued_ms, expires_ms{}) VALUES ('{grant}', '{request}', 'active', 2,
                     253402300799999{})",
                begins.0, begins.1
            ),
            &format!(
                "INSERT INTO grant_hosts (grant_id, host, holding, since_generation) VALUES ('{grant}', 1, 'held', 1)"
            ),
            "INSERT INTO sign_ins (hash, subject, role, provider, account, methods, role_groups, began_ms, expires_ms)
             VALUES (sha256('pcs_secret'), 1, 'member', 'corp', '00u1', 'mfa', E'dba\\nNight Shift', 1, 253402300799999)",
        ] {
            sql.execute(statement).await.unwrap_or_else(|error| panic!("{version}: {statement}: {error}"));
        }
        drop(sql);
        let store =
            Store::open(&database.database).await.unwrap_or_else(|error| panic!("{version}: {error:?}"));
        let host: HostName = "db-7".parse().expect("valid");
        let plan = store.plan(&host, SessionNumber::NONE).await.expect("reads");
        assert_eq!((plan.grants.len(), plan.grants[0].id.to_string().as_str()), (1, grant), "{version}");
        let filter = RequestFilter { all: true, whose: Whose::Everybodys, limit: 10 };
        let [kept] = &store.grants(&filter).await.expect("reads")[..] else { panic!("one grant") };
        assert_eq!((kept.resource.as_str(), kept.hosts[0].held, kept.idle), ("db", true, None));
        assert_eq!(store.requests(&filter, clock::now()).await.expect("reads")[0].comment, "yes");
        // Of a session that was under way the groups are known that have a role; of one that began since, it is as it began.
        let session = TokenHash::of("pcs_secret");
        let known = store.circumstances(&session, Circumstances::default()).await.expect("reads");
        let groups = if version < 10 { ["dba".parse().expect("valid")].into() } else { [].into() };
        assert_eq!(known, Circumstances { mfa: true, groups, ..Circumstances::default() }, "{version}");
        write(&store, "db-8").await.expect("written");
        store.close().await;
    }
}
