//! What asking, deciding and listing cost a control plane: its record on SQLite and on PostgreSQL, side by side.
//!
//! The record is used as the services use it, in this process: what gRPC adds is not in it. PostgreSQL runs as a server does whose data
//! matter (`fsync`).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use control_plane::clock;
use control_plane::config::{Database, PostgresDatabase};
use control_plane::identity::Token;
use control_plane::rules::actor::{Acting, Actor};
use control_plane::rules::calls::Reach;
use control_plane::rules::policy::{Circumstances, Limits};
use control_plane::store::{Known, NewJoinToken, RequestFilter, SessionNumber, Store, Whose};
use policy::Policy;
use policy::decide::{Outcome, decide};
use policy::facts::Facts;
use proto::types::{
    Credential, GrantState, HostName, Labels, NewApproval, NewPolicy, NewRequest, NewResource, NewSubject,
    PolicyFiles, RequestId, SubjectRole, Timestamp,
};
use sqlx::AssertSqlSafe;

use super::machine::Machine;
use super::report::{Report, Row, Table, Target, progress};
use super::series::{Spread, ratios};
use crate::postgres::Postgres;
use crate::sandbox::Sandbox;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// How often each figure is taken, all contenders in turn.
    pub rounds: usize,
    /// How many requests are made in each.
    pub requests: usize,
    /// How many decisions are made in each.
    pub decisions: usize,
    /// How many requests are long over.
    pub old: u32,
}

impl Size {
    /// For figures that are kept.
    pub const FULL: Self = Self { rounds: 20, requests: 200, decisions: 500, old: 1_000_000 };
    /// For a look.
    pub const QUICK: Self = Self { rounds: 5, requests: 100, decisions: 200, old: 100_000 };
    /// For seeing that everything still works.
    pub const SMOKE: Self = Self { rounds: 1, requests: 10, decisions: 10, old: 100 };
}

/// How many ask at the same time.
const CALLERS: usize = 16;

/// What a request may be.
const LIMITS: Limits = Limits {
    max_grant_duration: Duration::from_secs(12 * 3600),
    request_lifetime: Duration::from_secs(3600),
};

/// Where the server listens, on an address of its own.
const PORT: u16 = 5432;

/// How long a grant may be on its way to its host before that is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Measures.
pub fn measure(size: Size) -> Result<Report> {
    let mut machine = Machine::look();
    let decisions = decisions(size)?;
    let sandbox = Sandbox::new()?;
    let server = Postgres::start_durable(sandbox.dir(), sandbox.address(), PORT)?;
    for name in ["few", "many"] {
        server.create_database(name)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (changes, lists) = runtime.block_on(async {
        let mut few = Vec::new();
        let mut many = Vec::new();
        for kind in Kind::ALL {
            few.push(Arc::new(Record::make(kind, "few", sandbox.dir(), &server).await?));
            many.push(Arc::new(Record::make(kind, "many", sandbox.dir(), &server).await?));
        }
        let changes = changes(size, &few).await?;
        for record in &many {
            progress(&format!("{}: {} requests that are over", record.kind.name(), size.old));
            record.grow_old(size.old).await?;
        }
        for record in few.iter().chain(&many) {
            record.analyze().await?;
        }
        let lists = lists(size, &few, &many).await?;
        for record in few.iter().chain(&many) {
            record.store.close().await;
        }
        anyhow::Ok((changes, lists))
    })?;
    machine.look_again();
    let effort = format!(
        "{} rounds, all contenders in turn; {CALLERS} callers make {} requests in each; PostgreSQL {} with fsync",
        size.rounds,
        size.requests,
        server.version()?
    );
    Ok(Report { machine, effort, tables: vec![decisions, changes, lists] })
}

fn spread(values: &[f64]) -> Result<Spread> {
    Spread::of(values).context("nothing was measured")
}

/// What the policy says to a wish, with few and with many roles.
fn decisions(size: Size) -> Result<Table> {
    progress("decisions");
    let (few, many) = (policy_of(100)?, policy_of(1000)?);
    let now = clock::now();
    let (mut of_few, mut of_many) = (Vec::new(), Vec::new());
    for round in 0..size.rounds {
        of_few.push(decide_some(&few, 100, size.decisions, round, now)?);
        of_many.push(decide_some(&many, 1000, size.decisions, round, now)?);
    }
    let rows = vec![
        Row {
            target: Some(Target::AtMost(50.0)),
            ..Row::new("one decision, µs", "100 roles, 1,000 links, 20 conditions", spread(&of_few)?)
        },
        Row {
            target: Some(Target::AtMost(1000.0)),
            ratio: Spread::of(&ratios(&of_many, &of_few)),
            ..Row::new("one decision, µs", "1,000 roles, 10,000 links, 20 conditions", spread(&of_many)?)
        },
    ];
    Ok(Table { title: "The policy decides (ratio: to 100 roles)".to_owned(), rows })
}

/// A policy of so many roles, each had by ten subjects.
fn policy_of(roles: usize) -> Result<Policy> {
    use std::fmt::Write as _;
    let (mut hosts, mut resources, mut subjects, mut files) =
        (String::new(), String::new(), String::new(), BTreeMap::new());
    let mut text = String::new();
    for host in 0..20 {
        writeln!(hosts, "[[host]]\nname = \"h{host}\"\nlabels = {{ env = \"prod\" }}")?;
    }
    for role in 0..roles {
        let (a, b) = (role / 250, role % 250);
        writeln!(
            resources,
            "[[resource]]\nname = \"r{role}\"\naddresses = [\"10.0.{a}.{b}\"]\nports = [\"tcp/5432\"]"
        )?;
        let to: Vec<String> = (0..10).map(|link| format!("user:u{}", (role + link * 7) % roles)).collect();
        writeln!(
            text,
            "[[role]]\nname = \"role{role}\"\nto = {to:?}\nresources = [\"r{role}\"]\nhosts = [\"*\"]\nmaximum_duration = \"1h\"\n\
             [[role.step]]\napprovers = [\"user:rita\"]"
        )?;
        writeln!(subjects, "[[subject]]\nid = \"user:u{role}\"")?;
    }
    writeln!(subjects, "[[subject]]\nid = \"user:rita\"")?;
    let mut conditions = String::new();
    for condition in 0..20 {
        writeln!(
            conditions,
            "@id(\"c{condition}\") forbid (principal, action, resource) when {{ context.duration > {} }};",
            360_000 + condition
        )?;
    }
    for (path, text) in [
        ("limits.toml", "maximum_duration = \"8h\"\n".to_owned()),
        ("hosts.toml", hosts),
        ("resources.toml", resources),
        ("subjects.toml", subjects),
        ("roles.toml", text),
        ("conditions/all.cedar", conditions),
    ] {
        files.insert(path.to_owned(), text);
    }
    policy::files::read(&files).map_err(|problems| anyhow::anyhow!("the policy is not one: {problems:?}"))
}

/// Makes some decisions; returns how many microseconds one took.
fn decide_some(policy: &Policy, roles: usize, count: usize, round: usize, now: Timestamp) -> Result<f64> {
    let wish = |number: usize| {
        let role = (number * 13 + round) % roles;
        let subject = format!("user:u{}", (role + number % 10 * 7) % roles);
        let facts = Facts::new(now, subject.parse()?, format!("r{role}").parse()?);
        anyhow::Ok(Facts { duration: Some(Duration::from_secs(600)), ..facts })
    };
    let wishes: Vec<Facts> = (0..count).map(wish).collect::<Result<_>>()?;
    let began = Instant::now();
    for facts in &wishes {
        ensure!(matches!(decide(policy, facts).outcome, Outcome::Permitted(_)), "{facts:?} is denied");
    }
    Ok(began.elapsed().as_secs_f64() * 1e6 / count as f64)
}

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Sqlite,
    Postgres,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Sqlite, Self::Postgres];

    fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
        }
    }

    /// How many requests in a second are wanted.
    fn wanted(self) -> f64 {
        match self {
            Self::Sqlite => 500.0,
            Self::Postgres => 2000.0,
        }
    }
}

/// What everybody is judged by.
const POLICY: [(&str, &str); 6] = [
    ("limits.toml", "maximum_duration = \"12h\"\n"),
    ("hosts.toml", "[[host]]\nname = \"db-7\"\n"),
    ("resources.toml", "[[resource]]\nname = \"db\"\naddresses = [\"10.0.0.7\"]\nports = [\"tcp/5432\"]\n"),
    (
        "subjects.toml",
        "[[subject]]\nid = \"user:alice\"\n[[subject]]\nid = \"user:dora\"\n\
         [[group]]\nname = \"dba\"\nmembers = [\"user:dora\"]\n",
    ),
    (
        "roles.toml",
        "[[role]]\nname = \"debug\"\nto = [\"user:alice\"]\nresources = [\"db\"]\nhosts = [\"*\"]\n\
         maximum_duration = \"12h\"\n[[role.step]]\napprovers = [\"group:dba\"]\n",
    ),
    (
        "conditions/all.cedar",
        "@id(\"short-from-afar\") forbid (principal, action, resource)\n\
         when { context has source && context.source.isMulticast() && context.duration > 3600 };\n",
    ),
];

/// A record with a resource, a host, somebody who asks and somebody who approves, and a policy in force.
struct Record {
    kind: Kind,
    database: Database,
    store: Store,
    alice: Acting,
    dora: Acting,
}

impl Record {
    async fn make(kind: Kind, name: &str, dir: &Path, server: &Postgres) -> Result<Self> {
        let database = match kind {
            Kind::Sqlite => Database::Sqlite(dir.join(format!("{name}.db"))),
            Kind::Postgres => Database::Postgres(PostgresDatabase {
                host: server.address().to_string(),
                port: PORT,
                user: "demo".to_owned(),
                name: name.to_owned(),
                password: None,
                tls: None,
            }),
        };
        let now = clock::now();
        Store::create(&database, &Token::for_subject().hash(), now).await?;
        let store = Store::open(&database).await?;
        let acting = |id: &str| anyhow::Ok(Acting { id: id.parse()?, credential: Credential::Token });
        let (alice, dora) = (acting("user:alice")?, acting("user:dora")?);
        for (who, role) in [(&alice, SubjectRole::Member), (&dora, SubjectRole::Approver)] {
            let new = NewSubject { id: who.id.clone(), selectors: Vec::new(), role };
            store.add_subject(new, &Actor::System, now).await?;
        }
        let new = NewResource::new("db".parse()?, vec!["10.0.0.7".parse()?], vec!["tcp/5432".parse()?])?;
        store.add_resource(new, &Actor::System, now).await?;
        let token = NewJoinToken { hash: Token::for_subject().hash(), expires: now };
        store.add_host(&"db-7".parse()?, &Labels::default(), &token, &Actor::System, now).await?;
        let files = POLICY.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
        let files = PolicyFiles::new(files.collect())?;
        let new = NewPolicy { files, before: 0, comment: String::new(), restores: None };
        store.apply_policy(new, &dora, now).await?;
        Ok(Self { kind, database, store, alice, dora })
    }

    async fn ask(&self, seconds: u64, now: Timestamp) -> Result<RequestId> {
        let new = NewRequest {
            resource: "db".parse()?,
            subject: None,
            hosts: Vec::new(),
            duration: Some(Duration::from_secs(seconds)),
            reason: "the benchmark needs it".parse()?,
            idle: None,
            while_running: None,
            run: None,
            action: None,
            role: None,
            key: None,
            draft: None,
        };
        let known = Known { circumstances: &Circumstances::default(), limits: &LIMITS };
        Ok(self.store.create_request(new, &self.alice.id, &self.alice, known, now).await?.id)
    }

    async fn approve(&self, request: RequestId, now: Timestamp) -> Result<()> {
        let yes = NewApproval { request, comment: String::new(), duration: None, hosts: Vec::new() };
        self.store.approve(&yes, &self.dora, Reach::All, now).await?;
        Ok(())
    }

    /// Many make requests at the same time, with somebody who approves each or without. Returns how many in a second.
    async fn make_some(self: &Arc<Self>, count: usize, is_approved: bool) -> Result<f64> {
        let began = Instant::now();
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let record = Arc::clone(self);
                tokio::spawn(async move {
                    for _ in (caller..count).step_by(CALLERS) {
                        let request = record.ask(600, clock::now()).await?;
                        if is_approved {
                            record.approve(request, clock::now()).await?;
                        }
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        for caller in callers {
            caller.await??;
        }
        Ok(count as f64 / began.elapsed().as_secs_f64())
    }

    /// From the approval until what is sent to the host has the grant in it, in milliseconds. `at`: the control plane that the host is
    /// connected to.
    async fn push(&self, at: &Store) -> Result<f64> {
        let host: HostName = "db-7".parse()?;
        let request = self.ask(600, clock::now()).await?;
        let mut changed = at.signals().set_of(&host);
        let before = at.plan(&host, SessionNumber::NONE).await?.grants.len();
        let began = Instant::now();
        let pushed = async {
            loop {
                changed.changed().await?;
                if at.plan(&host, SessionNumber::NONE).await?.grants.len() > before {
                    return anyhow::Ok(began.elapsed());
                }
            }
        };
        let (approved, pushed) =
            tokio::join!(self.approve(request, clock::now()), tokio::time::timeout(PATIENCE, pushed));
        approved?;
        Ok(pushed??.as_secs_f64() * 1000.0)
    }

    /// Ends all grants, and denies what waits: so that no round has more of it than another.
    async fn clear(&self) -> Result<()> {
        let later = clock::now().plus(LIMITS.max_grant_duration);
        while self.store.expire(later).await? {}
        while self.store.settle_due_requests(later).await? {}
        Ok(())
    }

    /// Puts so many requests with their votes and grants into the record that are long over, past its own code: as copies of one.
    async fn grow_old(&self, count: u32) -> Result<()> {
        let request = self.ask(1, clock::now()).await?;
        self.approve(request, clock::now()).await?;
        self.clear().await?;
        let filter = RequestFilter { all: true, whose: Whose::Everybodys, limit: 1 };
        let grants = self.store.grants(&filter).await?;
        let grant = grants.first().context("no grant")?;
        ensure!(matches!(grant.state, GrantState::Ended(_)), "the grant is {}", grant.state);
        let copies = [
            ("requests", "id", request.to_string(), vec![("id", "01")]),
            ("request_hosts", "request", request.to_string(), vec![("request", "01")]),
            ("votes", "request", request.to_string(), vec![("request", "01")]),
            ("grants", "id", grant.id.to_string(), vec![("id", "02"), ("request", "01")]),
            ("grant_hosts", "grant_id", grant.id.to_string(), vec![("grant_id", "02")]),
        ];
        for (table, key, of, changed) in copies {
            self.copy(table, key, &of, &changed, count).await?;
        }
        Ok(())
    }

    async fn copy(
        &self,
        table: &str,
        key: &str,
        of: &str,
        changed: &[(&str, &str)],
        count: u32,
    ) -> Result<()> {
        match &self.database {
            Database::Sqlite(path) => {
                let mut sql = connect_sqlite(path).await?;
                let columns: Vec<String> = sqlx::query_scalar(AssertSqlSafe(format!(
                    "SELECT name FROM pragma_table_info('{table}')"
                )))
                .fetch_all(&mut sql)
                .await?;
                let id = |part: &str| format!("printf('{part}000000-0000-7000-8000-%012x', series.n)");
                let series = format!(
                    "WITH RECURSIVE series (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM series WHERE n < {count})"
                );
                let statement = copies(table, key, of, &columns, changed, &series, id, "series");
                sqlx::query(AssertSqlSafe(statement)).execute(&mut sql).await?;
            }
            Database::Postgres(database) => {
                let mut sql = connect_postgres(database).await?;
                let columns: Vec<String> = sqlx::query_scalar(
                    "SELECT column_name::text FROM information_schema.columns WHERE table_name = $1 AND table_schema = 'public'",
                )
                .bind(table)
                .fetch_all(&mut sql)
                .await?;
                let id =
                    |part: &str| format!("'{part}000000-0000-7000-8000-' || lpad(to_hex(series.n), 12, '0')");
                let series = format!("generate_series(1, {count}) AS series (n)");
                let statement = copies(table, key, of, &columns, changed, "", id, &series);
                sqlx::query(AssertSqlSafe(statement)).execute(&mut sql).await?;
            }
        }
        Ok(())
    }

    /// Has the database look at what its tables hold, as one does by itself from time to time.
    async fn analyze(&self) -> Result<()> {
        match &self.database {
            Database::Sqlite(path) => {
                sqlx::query("ANALYZE").execute(&mut connect_sqlite(path).await?).await?;
            }
            Database::Postgres(database) => {
                sqlx::query("ANALYZE").execute(&mut connect_postgres(database).await?).await?;
            }
        }
        Ok(())
    }
}

async fn connect_sqlite(path: &Path) -> Result<sqlx::SqliteConnection> {
    use sqlx::ConnectOptions;
    Ok(sqlx::sqlite::SqliteConnectOptions::new().filename(path).connect().await?)
}

async fn connect_postgres(database: &PostgresDatabase) -> Result<sqlx::PgConnection> {
    use sqlx::ConnectOptions;
    let options =
        sqlx::postgres::PgConnectOptions::new_without_pgpass().host(&database.host).port(database.port);
    Ok(options.username(&database.user).database(&database.name).connect().await?)
}

/// The statement that copies one row of a table many times, with other ids.
#[expect(clippy::too_many_arguments, reason = "it is put together at two places, next to each other")]
fn copies(
    table: &str,
    key: &str,
    of: &str,
    columns: &[String],
    changed: &[(&str, &str)],
    before: &str,
    id: impl Fn(&str) -> String,
    series: &str,
) -> String {
    let value = |column: &String| match changed.iter().find(|(name, _)| name == column) {
        Some((_, part)) => id(part),
        None => format!("{table}.{column}"),
    };
    let values: Vec<String> = columns.iter().map(value).collect();
    format!(
        "INSERT INTO {table} ({}) {before} SELECT {} FROM {table}, {series} WHERE {table}.{key} = '{of}'",
        columns.join(", "),
        values.join(", ")
    )
}

/// How many requests go through, and how soon a grant is on its way.
async fn changes(size: Size, records: &[Arc<Record>]) -> Result<Table> {
    progress("requests and approvals");
    // A second control plane on the database of the first, where there can be one.
    let mut others = Vec::new();
    let mut following = Vec::new();
    for record in records.iter().filter(|record| record.kind == Kind::Postgres) {
        let other = Store::open(&record.database).await?;
        following.push(tokio::spawn(follow(other.clone())));
        others.push((record, other));
    }
    let (mut made, mut granted) = (vec![Vec::new(); records.len()], vec![Vec::new(); records.len()]);
    let (mut pushed, mut pushed_elsewhere) = (vec![Vec::new(); records.len()], Vec::new());
    for _ in 0..size.rounds {
        for (at, record) in records.iter().enumerate() {
            made[at].push(record.make_some(size.requests, false).await?);
            record.clear().await?;
            granted[at].push(record.make_some(size.requests, true).await?);
            record.clear().await?;
            for _ in 0..5 {
                pushed[at].push(record.push(&record.store).await?);
            }
            record.clear().await?;
        }
        for (record, other) in &others {
            for _ in 0..5 {
                pushed_elsewhere.push(record.push(other).await?);
            }
            record.clear().await?;
        }
    }
    following.iter().for_each(tokio::task::JoinHandle::abort);
    let mut rows = Vec::new();
    for (at, record) in records.iter().enumerate() {
        let name = record.kind.name();
        let ratio = |values: &[Vec<f64>]| Spread::of(&ratios(&values[at], &values[0]));
        rows.push(Row {
            target: Some(Target::AtLeast(record.kind.wanted())),
            ratio: ratio(&made),
            ..Row::new("requests in a second", name, spread(&made[at])?)
        });
        rows.push(Row {
            ratio: ratio(&granted),
            ..Row::new("requests with their approvals in a second", name, spread(&granted[at])?)
        });
        rows.push(Row {
            target: Some(Target::AtMost(20.0)),
            ..Row::new("from the approval until it goes out, ms", name, spread(&pushed[at])?)
        });
    }
    for (record, other) in others {
        let with = format!("{}, by another control plane", record.kind.name());
        let row = Row::new("from the approval until it goes out, ms", with, spread(&pushed_elsewhere)?);
        rows.push(Row { target: Some(Target::AtMost(20.0)), ..row });
        other.close().await;
    }
    let title = "Requests, each in a transaction with its events (ratio: to SQLite)".to_owned();
    Ok(Table { title, rows })
}

/// As a control plane hears of what others change.
async fn follow(store: Store) {
    let mut seen = 0;
    loop {
        seen = store.wake_for_others(seen).await.unwrap_or(seen);
        store.others_change().await;
    }
}

/// What it costs to look at what is open, where little is over and where very much is.
async fn lists(size: Size, few: &[Arc<Record>], many: &[Arc<Record>]) -> Result<Table> {
    progress("lists");
    for record in few.iter().chain(many) {
        record.make_some(100, false).await?;
        record.make_some(100, true).await?;
    }
    let mut rows = Vec::new();
    for (few, many) in few.iter().zip(many) {
        for what in Look::ALL {
            let (mut of_few, mut of_many) = (Vec::new(), Vec::new());
            for _ in 0..size.rounds {
                of_few.push(what.take(few).await?);
                of_many.push(what.take(many).await?);
            }
            rows.push(Row {
                ratio: Spread::of(&ratios(&of_many, &of_few)),
                target: Some(Target::RatioAtMost(1.2)),
                ..Row::new(what.name(), few.kind.name(), spread(&of_many)?)
            });
        }
    }
    let title = format!(
        "What is open, beside {} requests that are over (ratio: to a record without those)",
        size.old
    );
    Ok(Table { title, rows })
}

/// A look at what is open.
#[derive(Clone, Copy, Debug)]
enum Look {
    Requests,
    Grants,
    Due,
    Create,
}

impl Look {
    const ALL: [Self; 4] = [Self::Requests, Self::Grants, Self::Due, Self::Create];

    fn name(self) -> &'static str {
        match self {
            Self::Requests => "100 requests that wait, ms",
            Self::Grants => "100 grants that live, ms",
            Self::Due => "what is due next, ms",
            Self::Create => "one more request, ms",
        }
    }

    /// How long it takes: the median of some, in milliseconds. The shorter a look is, the more of them tell it from the noise.
    async fn take(self, record: &Record) -> Result<f64> {
        let looks = match self {
            Self::Due => 99,
            Self::Requests | Self::Grants | Self::Create => 9,
        };
        let mut took = Vec::new();
        for _ in 0..looks {
            let filter = RequestFilter { all: false, whose: Whose::Everybodys, limit: 100 };
            let began = Instant::now();
            match self {
                Self::Requests => drop(record.store.requests(&filter, clock::now()).await?),
                Self::Grants => drop(record.store.grants(&filter).await?),
                Self::Due => {
                    record.store.next_deadline().await?;
                    record.store.next_due_request().await?;
                }
                Self::Create => drop(record.ask(600, clock::now()).await?),
            }
            took.push(began.elapsed().as_secs_f64() * 1000.0);
        }
        Ok(spread(&took)?.median)
    }
}
