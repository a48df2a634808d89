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
use control_plane::store::{NewJoinToken, Store, StoreError};
use proto::status::ErrorKind;
use proto::types::Labels;
use sqlx::AssertSqlSafe;

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

/// The first half of the lock that a control plane holds.
const LOCK: i32 = i32::from_be_bytes(*b"ptcl");

#[tokio::test]
async fn without_its_lock_it_writes_nothing() {
    let (database, store) = opened().await;
    // Another session gets the lock as soon as it is free.
    let mut other = database.raw().await;
    let lock = format!("SELECT pg_advisory_lock({LOCK}, 'timeline'::regclass::oid::int4)");
    let waiting = tokio::spawn(async move {
        other.execute(&lock).await.expect("locked");
        other
    });
    let mut sql = database.raw().await;
    let ours = format!(
        "locktype = 'advisory' AND classid = {LOCK} AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    );
    while sql.number(&format!("SELECT count(*) FROM pg_locks WHERE {ours} AND NOT granted")).await == 0 {}
    sql.execute(&format!("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE {ours} AND granted"))
        .await
        .expect("ended");
    let mut other = waiting.await.expect("no panic");
    let mut hosts = 0;
    let refused = loop {
        // Until it knows, nobody else writes either.
        match write(&store, &format!("db-{hosts}")).await {
            Ok(()) => hosts += 1,
            Err(error) => break error,
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(matches!(refused, StoreError::LockLost), "{refused:?}");
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert_eq!(store.hosts().await.expect("reads go on").len(), hosts);
    other.execute("SELECT pg_advisory_unlock_all()").await.expect("unlocked");
    write_at_last(&store, "db").await;
    assert!(matches!(Store::open(&database.database).await, Err(StoreError::InUse(_))));
}

#[tokio::test]
async fn whom_another_has_replaced_cannot_write() {
    let (database, store) = opened().await;
    let mut sql = database.raw().await;
    sql.execute("UPDATE timeline SET holder = holder + 1").await.expect("taken over");
    let revision = sql.number("SELECT revision FROM timeline").await;
    let error = write(&store, "db-7").await.expect_err("is not the holder any more");
    assert!(matches!(error, StoreError::TakenOver), "{error:?}");
    assert_eq!(sql.number("SELECT revision FROM timeline").await, revision);
    assert_eq!(sql.number("SELECT count(*) FROM hosts").await, 0);
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
