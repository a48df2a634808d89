//! The record on a real file.

use control_plane::clock;
use control_plane::identity::Token;
use control_plane::store::{Store, StoreError};
use proto::types::{EventKind, HostName};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Row};
use tempfile::TempDir;

async fn create(folder: &TempDir) -> Result<(), StoreError> {
    let path = folder.path().join("cp.db");
    Store::create(&path, &Token::for_subject().hash(), clock::now()).await
}

async fn raw(folder: &TempDir) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(folder.path().join("cp.db"));
    options.connect().await.expect("connected")
}

#[tokio::test]
async fn the_record_cannot_be_changed() {
    let folder = tempfile::tempdir().expect("a folder");
    create(&folder).await.expect("made");
    let mut sql = raw(&folder).await;
    for (statement, problem) in [
        ("UPDATE audit_events SET payload = x'00'", "never changed"),
        ("DELETE FROM audit_events", "never deleted"),
        ("DELETE FROM audit_events WHERE position = 2", "never deleted"),
        ("INSERT OR REPLACE INTO audit_events VALUES (1, 'x', 'y', 1, x'00')", "without holes"),
        ("INSERT INTO audit_events VALUES (4, 'x', 'y', 1, x'00')", "without holes"),
        ("INSERT INTO audit_events VALUES (NULL, 'x', 'y', 1, x'00')", "without holes"),
        ("INSERT INTO audit_events SELECT 3, source, epoch, sequence, payload FROM audit_events", "UNIQUE"),
    ] {
        let error = sqlx::query(statement).execute(&mut sql).await.expect_err(statement).to_string();
        assert!(error.contains(problem), "{statement}: {error}");
    }
    let store = Store::open(&folder.path().join("cp.db")).await.expect("opens");
    let kinds: Vec<EventKind> =
        store.events(0, 10).await.expect("reads").iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::SubjectAdded, EventKind::TokenIssued]);
}

#[tokio::test]
async fn a_database_is_made_once_and_used_by_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("cp.db");
    assert!(matches!(Store::open(&path).await, Err(StoreError::Absent(_))));
    create(&folder).await.expect("made");
    assert!(matches!(create(&folder).await, Err(StoreError::Exists(_))));
    let store = Store::open(&path).await.expect("opens");
    assert!(matches!(Store::open(&path).await, Err(StoreError::InUse(_))));
    let timeline = store.timeline();
    store.close().await;
    drop(store);
    assert_eq!(Store::open(&path).await.expect("opens").timeline(), timeline);
}

#[tokio::test]
async fn what_is_no_database_of_ours_is_not_touched() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("cp.db");
    let text = "a letter to grandmother, long enough to be taken for a header of a database\n".repeat(20);
    std::fs::write(&path, &text).expect("written");
    assert!(matches!(Store::open(&path).await, Err(StoreError::Incomplete(_))));
    assert!(matches!(create(&folder).await, Err(StoreError::Exists(_))));
    assert_eq!(std::fs::read_to_string(&path).expect("read"), text);
    let nowhere = folder.path().join("no/cp.db");
    let error = Store::create(&nowhere, &Token::for_subject().hash(), clock::now()).await;
    assert!(matches!(error, Err(StoreError::File { .. })));
}

#[tokio::test]
async fn only_hashes_of_tokens_are_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("cp.db");
    let token = Token::for_subject();
    Store::create(&path, &token.hash(), clock::now()).await.expect("made");
    let store = Store::open(&path).await.expect("opens");
    assert!(store.caller(&token.hash()).await.expect("reads").is_some());
    assert!(store.caller(&Token::for_subject().hash()).await.expect("reads").is_none());
    store.close().await;
    let secret = token.reveal();
    let digits = secret.trim_start_matches("pct_").as_bytes();
    for entry in std::fs::read_dir(folder.path()).expect("read") {
        let bytes = std::fs::read(entry.expect("read").path()).expect("read");
        assert!(!bytes.windows(digits.len()).any(|window| window == digits));
    }
}

/// Queries on what grows without end must not read it all.
#[tokio::test]
async fn indexes_fit_the_queries() {
    let folder = tempfile::tempdir().expect("a folder");
    create(&folder).await.expect("made");
    let mut sql = raw(&folder).await;
    for (query, index) in [
        ("SELECT id FROM requests WHERE state = 'pending' ORDER BY id DESC LIMIT 100", "requests_pending"),
        ("SELECT id FROM grants WHERE state <> 'ended' ORDER BY id DESC LIMIT 100", "grants_unended"),
        ("SELECT min(expires_ms) FROM grants WHERE state <> 'ended'", "grants_by_deadline"),
        (
            "SELECT grant_id FROM grant_hosts JOIN hosts ON hosts.number = grant_hosts.host
             WHERE hosts.name = 'x' AND grant_hosts.holding <> 'free'",
            "grant_hosts_open",
        ),
        (
            "SELECT max(sequence) FROM audit_events WHERE source = 'x' AND epoch = 'y'",
            "autoindex_audit_events",
        ),
        ("SELECT payload FROM audit_events WHERE position > 5 ORDER BY position LIMIT 5", "PRIMARY KEY"),
    ] {
        let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {query}"));
        let rows = sqlx::query(explain).fetch_all(&mut sql).await.expect(query);
        let plan: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
        let plan = plan.join("; ");
        assert!(plan.contains(index) && !plan.contains("TEMP B-TREE"), "{query}: {plan}");
    }
}

#[tokio::test]
async fn a_broken_row_is_an_error_and_no_panic() {
    let folder = tempfile::tempdir().expect("a folder");
    create(&folder).await.expect("made");
    let path = folder.path().join("cp.db");
    let host: HostName = "db-7".parse().expect("valid");
    let store = Store::open(&path).await.expect("opens");
    store.add_host(&host, &Token::for_host().hash(), "user:admin", clock::now()).await.expect("added");
    let mut sql = raw(&folder).await;
    sqlx::query("UPDATE hosts SET name = 'NOT A NAME'").execute(&mut sql).await.expect("written");
    sqlx::query("INSERT INTO audit_events VALUES (5, 'x', 'y', 1, x'ff')")
        .execute(&mut sql)
        .await
        .expect("written");
    assert!(matches!(store.hosts().await, Err(StoreError::Broken { what: "host", .. })));
    assert!(matches!(store.events(4, 1).await, Err(StoreError::Broken { what: "audit event", .. })));
}
