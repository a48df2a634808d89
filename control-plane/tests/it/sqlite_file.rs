//! The record in a SQLite file: what only that has.

use control_plane::clock;
use control_plane::identity::{Token, TokenHash};
use control_plane::rules::Refusal;
use control_plane::rules::policy::Circumstances;
use control_plane::store::{RequestFilter, SessionNumber, Store, StoreError, Whose};
use proto::types::HostName;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection, Row};
use tempfile::TempDir;

use crate::sqlite::store as story;

async fn create(folder: &TempDir) -> Result<(), StoreError> {
    let path = folder.path().join("cp.db");
    Store::create(&path, &Token::for_subject().hash(), clock::now()).await
}

async fn raw(folder: &TempDir) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(folder.path().join("cp.db"));
    options.connect().await.expect("connected")
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
    assert!(store.caller(&token.hash(), clock::now()).await.expect("reads").is_some());
    assert!(store.caller(&Token::for_subject().hash(), clock::now()).await.expect("reads").is_none());
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
            "SELECT sequence FROM audit_events WHERE source = 'x' AND epoch = 'y' ORDER BY sequence DESC LIMIT 1",
            "autoindex_audit_events",
        ),
        ("SELECT min(due_ms) FROM requests WHERE state = 'pending'", "requests_due"),
        ("SELECT about FROM event_refs WHERE kind = 'x' AND about IN ('y', 'z')", "PRIMARY KEY"),
        ("SELECT id FROM requests WHERE extends IN ('x', 'y')", "requests_by_extended"),
        ("SELECT payload FROM audit_events WHERE position > 5 ORDER BY position LIMIT 5", "PRIMARY KEY"),
    ] {
        let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {query}"));
        let rows = sqlx::query(explain).fetch_all(&mut sql).await.expect(query);
        let plan: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
        let plan = plan.join("; ");
        assert!(plan.contains(index) && !plan.contains("TEMP B-TREE"), "{query}: {plan}");
    }
}

/// Makes the tables as that version had them.
async fn migrate(sql: &mut SqliteConnection, version: i64) {
    let all = sqlx::migrate::Migrator::new(std::path::Path::new("migrations/sqlite")).await.expect("read");
    let older = all.iter().filter(|migration| migration.version <= version).cloned().collect();
    sqlx::migrate::Migrator {
        migrations: std::borrow::Cow::Owned(older),
        ..sqlx::migrate::Migrator::DEFAULT
    }
    .run(sql)
    .await
    .expect("an older version");
}

/// Of a session that was under way the groups are known that have a role, until it is renewed.
#[tokio::test]
async fn a_session_from_before_there_were_named_groups() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("cp.db");
    std::fs::write(&path, "").expect("made");
    let mut sql = raw(&folder).await;
    migrate(&mut sql, 19).await;
    let token = TokenHash::of("pcs_secret");
    for statement in [
        "INSERT INTO timeline (only_row, id, created_ms) VALUES (1, '01940000-0000-4000-8000-000000000000', 1)",
        "INSERT INTO subjects (number, id, role, added_ms) VALUES (1, 'user:alice', 'member', 1)",
        "INSERT INTO sign_ins (hash, subject, role, provider, account, methods, role_groups, began_ms, expires_ms)
         VALUES (?, 1, 'member', 'corp', '00u1', 'pwd\nmfa', 'dba\nNight Shift', 1, 253402300799999)",
    ] {
        let query = match statement.contains('?') {
            true => sqlx::query(statement).bind(token.as_bytes().as_slice()),
            false => sqlx::query(statement),
        };
        query.execute(&mut sql).await.expect("inserted");
    }
    sql.close().await.expect("closed");
    let store = Store::open(&path).await.expect("opens");
    let known = store.circumstances(&token, Circumstances::default()).await.expect("reads");
    let groups = ["dba".parse().expect("valid")].into();
    assert_eq!(known, Circumstances { mfa: true, groups, ..Circumstances::default() });
    store.close().await;
}

/// What the first version wrote is there after the second one's tables were made, and refers to the same things.
#[tokio::test]
async fn an_older_database_is_brought_up_to_date() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("cp.db");
    std::fs::write(&path, "").expect("made");
    let mut sql = raw(&folder).await;
    migrate(&mut sql, 1).await;
    let (request, grant) = ("01940000-0000-7000-8000-000000000001", "01940000-0000-7000-8000-000000000002");
    for statement in [
        "INSERT INTO timeline VALUES (1, '01940000-0000-4000-8000-000000000000', 1)".to_owned(),
        "INSERT INTO resources VALUES (1, 'db', '10.0.0.7 10.0.0.8', 'tcp/5432', 1), (7, 'db2', '::1', 'udp/1', 1)"
            .to_owned(),
        "INSERT INTO subjects VALUES (1, 'user:alice', 'member', 1), (2, 'user:dora', 'approver', 1)".to_owned(),
        "INSERT INTO hosts (number, name, added_ms) VALUES (1, 'db-7', 1)".to_owned(),
        "INSERT INTO host_refusals VALUES (1, 7, NULL, 'map full')".to_owned(),
        format!("INSERT INTO requests VALUES ('{request}', 'approved', 1, 1, 1, 60, 'why not', 1, 2, 2, 'yes')"),
        format!("INSERT INTO request_hosts VALUES ('{request}', 1)"),
        format!("INSERT INTO grants VALUES ('{grant}', '{request}', 'active', NULL, 2, 253402300799999, NULL)"),
        format!("INSERT INTO grant_hosts VALUES ('{grant}', 1, 'held', '', 2, NULL)"),
    ] {
        // These are ours, whole.
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut sql).await.expect("inserted");
    }
    sql.close().await.expect("closed");

    let store = Store::open(&path).await.expect("opens");
    let resources = store.resources().await.expect("reads");
    let destinations: Vec<String> = resources.iter().map(proto::types::Resource::destination).collect();
    assert_eq!(destinations, ["10.0.0.7, 10.0.0.8 on tcp/5432", "::1 on udp/1"]);
    assert!(resources.iter().all(|resource| resource.options == proto::types::ResourceOptions::default()));
    let name: HostName = "db-7".parse().expect("valid");
    let plan = store.plan(&name, SessionNumber::NONE).await.expect("reads");
    assert_eq!((plan.grants.len(), plan.grants[0].id.to_string().as_str()), (1, grant));
    assert_eq!(store.host(&name).await.expect("reads").missing.len(), 1);
    let filter = RequestFilter { all: true, whose: Whose::Everybodys, limit: 10 };
    let [kept] = &store.grants(&filter).await.expect("reads")[..] else { panic!("one grant") };
    assert_eq!((kept.resource.as_str(), kept.hosts[0].held, kept.idle), ("db", true, None));
    assert_eq!(store.requests(&filter, clock::now()).await.expect("reads")[0].comment, "yes");
    // Who was known before names were bound is bound at the next sign-in.
    let expected = story::expected();
    let proven = story::proven("user:alice", "00u1");
    let now = clock::now();
    store.sign_in(&story::entry(&proven, &expected), now).await.expect("is let in");
    let another = story::proven("user:alice", "00u2");
    let refused = store.sign_in(&story::entry(&another, &expected), now).await;
    assert!(matches!(refused, Err(StoreError::Refused(Refusal::OtherAccount { .. }))), "{refused:?}");
    store.close().await;
    drop(store);
    // Nothing refers to what is not there, and numbers go on.
    let mut sql = raw(&folder).await;
    assert!(sqlx::query("PRAGMA foreign_key_check").fetch_all(&mut sql).await.expect("checks").is_empty());
    let add = "INSERT INTO resources (name, addresses, ports, mode, strict, check_senders, added_ms)
               VALUES ('db3', '::2', 'udp/1', 'enforce', 0, 0, 1) RETURNING number";
    assert_eq!(sqlx::query(add).fetch_one(&mut sql).await.expect("added").get::<i64, _>(0), 8);
}
