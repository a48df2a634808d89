//! Databases of the tests' own, of either kind; and the PostgreSQL server behind some of them.
//!
//! Owns: that they are gone afterwards. Must not know: what is kept there.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use control_plane::config::{Database, PostgresDatabase};
use nix::unistd::{User, geteuid};
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Error, PgConnection, SqliteConnection};

/// Which database a test is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite,
    Postgres,
}

/// Where the record of a test is going to be. Dropped, it is gone.
pub(crate) struct TestDatabase {
    pub(crate) database: Database,
    _folder: Option<tempfile::TempDir>,
}

impl TestDatabase {
    /// A SQLite file that is not there yet, or an empty PostgreSQL database.
    pub(crate) fn new(kind: Kind) -> Self {
        match kind {
            Kind::Sqlite => {
                let folder = tempfile::tempdir().expect("a folder");
                Self { database: Database::Sqlite(folder.path().join("cp.db")), _folder: Some(folder) }
            }
            Kind::Postgres => Self { database: Database::Postgres(SERVER.database()), _folder: None },
        }
    }

    /// What a configuration says of it.
    pub(crate) fn configuration(&self) -> String {
        match &self.database {
            Database::Sqlite(path) => format!("database = \"{}\"", path.display()),
            Database::Postgres(PostgresDatabase { host, port, user, name, .. }) => {
                let host = host.replace('/', "%2F");
                format!("database.url = \"postgresql://{user}@{host}:{port}/{name}\"")
            }
        }
    }

    /// A connection past the control plane.
    pub(crate) async fn raw(&self) -> Raw {
        match &self.database {
            Database::Sqlite(path) => {
                let options = SqliteConnectOptions::new().filename(path);
                Raw::Sqlite(options.connect().await.expect("connected"))
            }
            Database::Postgres(PostgresDatabase { host, port, user, name, .. }) => {
                let options = PgConnectOptions::new_without_pgpass().host(host).port(*port);
                let options = options.username(user).database(name);
                Raw::Postgres(options.connect().await.expect("connected"))
            }
        }
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        if let Database::Postgres(database) = &self.database {
            SERVER.drop_database(&database.name);
        }
    }
}

/// A connection past the control plane.
pub(crate) enum Raw {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Raw {
    /// Returns how many rows were changed.
    pub(crate) async fn execute(&mut self, statement: &str) -> Result<u64, Error> {
        // All statements are ours, whole.
        let query = AssertSqlSafe(statement.to_owned());
        match self {
            Self::Sqlite(sql) => sqlx::query(query).execute(sql).await.map(|done| done.rows_affected()),
            Self::Postgres(sql) => sqlx::query(query).execute(sql).await.map(|done| done.rows_affected()),
        }
    }

    /// The number that a statement finds.
    pub(crate) async fn number(&mut self, statement: &str) -> i64 {
        let query = AssertSqlSafe(statement.to_owned());
        match self {
            Self::Sqlite(sql) => sqlx::query_scalar(query).fetch_one(sql).await.expect("found"),
            Self::Postgres(sql) => sqlx::query_scalar(query).fetch_one(sql).await.expect("found"),
        }
    }
}

/// The server of this process. It ends with the process, however that ends.
pub(crate) static SERVER: LazyLock<Server> = LazyLock::new(Server::start);

/// Makes a server, runs it until nobody is at the other end of standard input any more, and takes all away.
const RUN_SERVER: &str = r#"
programs=$1 folder=$2
shift 2
trap 'rm -rf "$folder"' EXIT
"$programs/initdb" --username=admin --auth-local=trust --auth-host=scram-sha-256 --no-sync --encoding=UTF8 \
    --locale=C.UTF-8 -D "$folder/data" >"$folder/log" 2>&1 || exit 1
"$programs/postgres" -D "$folder/data" -k "$folder" "$@" >>"$folder/log" 2>&1 &
server=$!
cat >/dev/null
kill -INT "$server"
wait "$server"
"#;

/// A server makes its files, and starts, within a few seconds; more where the disk is busy.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A PostgreSQL server, on a Unix socket and, with TLS, on an address.
pub(crate) struct Server {
    programs: PathBuf,
    folder: PathBuf,
    pub(crate) port: u16,
    /// PEM: who has signed the server's certificate, which is for `localhost`.
    pub(crate) authority: String,
    made: AtomicU32,
    /// Its standard input is closed by the system when this process ends.
    process: Child,
}

impl Server {
    fn start() -> Self {
        let programs = programs();
        let folder = tempfile::Builder::new().prefix("portcullis-").tempdir().expect("a folder").keep();
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let (certificate, key) = (folder.join("server.pem"), folder.join("server.key"));
        fs::write(&certificate, certified.cert.pem()).expect("written");
        fs::write(&key, certified.signing_key.serialize_pem()).expect("written");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("set");
        let mut command = match geteuid().is_root() {
            false => Command::new("/bin/sh"),
            true => {
                // The server refuses to run as root.
                let user = User::from_name("postgres").expect("asked").expect("an account `postgres`");
                for path in [&folder, &certificate, &key] {
                    chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("given");
                }
                let mut command = Command::new("/usr/bin/setpriv");
                command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "/bin/sh"]);
                command
            }
        };
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o711)).expect("set");
        // Whichever is free now: nobody else asks for it in between.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("a port").port();
        drop(listener);
        command.args(["-c", RUN_SERVER, "sh"]).arg(&programs).arg(&folder);
        command.args(["-p", &port.to_string()]);
        let settings = [
            "listen_addresses=127.0.0.1".to_owned(),
            // What is lost with the machine is made again.
            "fsync=off".to_owned(),
            "full_page_writes=off".to_owned(),
            "autovacuum=off".to_owned(),
            "max_connections=1000".to_owned(),
            "ssl=on".to_owned(),
            format!("ssl_cert_file={}", certificate.display()),
            format!("ssl_key_file={}", key.display()),
        ];
        command.args(settings.iter().flat_map(|setting| ["-c", setting]));
        // A signal that ends the tests is not for the server: it is to take its files away first.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let authority = certified.cert.pem();
        let process = command.spawn().expect("starts");
        let mut server = Self { programs, folder, port, authority, made: AtomicU32::new(0), process };
        let deadline = Instant::now() + START_LIMIT;
        while !server.client("pg_isready", &["-q"]).status().expect("runs").success() {
            let ended = server.process.try_wait().expect("is ours");
            let log = || fs::read_to_string(server.folder.join("log")).unwrap_or_default();
            assert!(ended.is_none() && Instant::now() < deadline, "PostgreSQL does not run: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        server.run("createuser", &["--no-superuser", "--no-createdb", "--no-createrole", "portcullis"]);
        server
    }

    /// A database that nobody has used.
    fn database(&self) -> PostgresDatabase {
        let name = format!("portcullis_{}", self.made.fetch_add(1, Ordering::Relaxed));
        self.run("createdb", &["--template=template0", "--owner=portcullis", &name]);
        PostgresDatabase {
            host: self.folder.to_str().expect("UTF-8").to_owned(),
            port: self.port,
            user: "portcullis".to_owned(),
            name,
            password: None,
            tls: None,
        }
    }

    fn drop_database(&self, name: &str) {
        // With the server they all go; a test that has failed already must not fail once more.
        let _ = self.client("dropdb", &["--force", "--if-exists", name]).status();
    }

    /// Runs statements as the server's administrator.
    pub(crate) fn administrate(&self, statements: &str) {
        let mut psql = self.client("psql", &["-q", "-v", "ON_ERROR_STOP=1", "-d", "postgres"]);
        let mut process = psql.stdin(Stdio::piped()).spawn().expect("runs");
        let mut input = process.stdin.take().expect("is piped");
        input.write_all(statements.as_bytes()).expect("written");
        drop(input);
        assert!(process.wait().expect("runs").success(), "{statements}");
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let output = self.client(program, arguments).output().expect("runs");
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn client(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.arg("-h").arg(&self.folder).args(["-p", &self.port.to_string(), "-U", "admin"]);
        command.args(arguments).env_remove("PGDATABASE").stdin(Stdio::null()).stdout(Stdio::null());
        command
    }
}

/// Where the newest installed version keeps its programs.
fn programs() -> PathBuf {
    let missing = "PostgreSQL is not installed: run `cargo xtask setup`";
    let versions = fs::read_dir("/usr/lib/postgresql").expect(missing);
    let version = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    let installed = versions.filter_map(|entry| Some(entry.ok()?.path()));
    let is_server = |path: &PathBuf| Path::new(path).join("bin/postgres").is_file();
    installed.filter(is_server).max_by_key(version).expect(missing).join("bin")
}
