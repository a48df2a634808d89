//! Where the durable record is: in a SQLite file, or on a PostgreSQL server.
//!
//! Owns: how that is written and checked. Must not know: what is kept there.

use std::fmt::{self, Display};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use url::Url;

use super::issuers::{Problem, read, refused};
use super::providers::private_secret;
use super::{Config, ConfigError};

/// Where the durable record is. Its `Display` form names it for people, without secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Database {
    /// A file of our own.
    Sqlite(PathBuf),
    /// A database of a server.
    Postgres(PostgresDatabase),
}

/// A database of a PostgreSQL server, and how we get there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresDatabase {
    /// A name, an address, or the folder of a Unix socket, which begins with `/`.
    pub host: String,
    /// Also of a Unix socket, whose name ends with it.
    pub port: u16,
    /// Our name there.
    pub user: String,
    /// The name of the database.
    pub name: String,
    /// None: the server knows us without one.
    pub password: Option<Password>,
    /// None: what is said to the server is not encrypted, and does not leave this machine.
    pub tls: Option<PostgresTls>,
}

/// Whom we take for the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresTls {
    /// PEM: a private authority, which is believed besides the public ones; None: those alone.
    pub authority: Option<Vec<u8>>,
}

/// A password. Its debug form does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// The password itself, for the server.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

impl Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => path.display().fmt(f),
            Self::Postgres(database) => database.fmt(f),
        }
    }
}

impl Display for PostgresDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, user, name, .. } = self;
        match host.contains(':') {
            true => write!(f, "postgresql://{user}@[{host}]:{port}/{name}"),
            false => write!(f, "postgresql://{user}@{host}:{port}/{name}"),
        }
    }
}

impl From<&Path> for Database {
    fn from(path: &Path) -> Self {
        Self::Sqlite(path.to_owned())
    }
}

impl From<&PathBuf> for Database {
    fn from(path: &PathBuf) -> Self {
        Self::Sqlite(path.clone())
    }
}

impl From<&Self> for Database {
    fn from(database: &Self) -> Self {
        database.clone()
    }
}

/// As it is written.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected the path of a SQLite file, or a table with the `url` of a PostgreSQL database"
)]
pub(super) enum Raw {
    Sqlite(PathBuf),
    Postgres(toml::Table),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPostgres {
    url: String,
    password_file: Option<PathBuf>,
    tls: Option<String>,
    ca_file: Option<PathBuf>,
}

/// The port of PostgreSQL.
const PORT: u16 = 5432;

const URL: &str = "database.url";
const TLS: &str = "database.tls";
const CA_FILE: &str = "database.ca_file";
const PASSWORD_FILE: &str = "database.password_file";

/// Checks what was written in the configuration at `path`, and reads the files that it names.
pub(super) fn check(raw: Raw, path: &Path) -> Result<Database, ConfigError> {
    let refuse = refused(path);
    match raw {
        Raw::Sqlite(file) if file.as_os_str().is_empty() => {
            let problem = "is empty: write the path of the SQLite file".to_owned();
            Err(refuse(("database", String::new(), problem)))
        }
        Raw::Sqlite(file) if file.to_str().is_some_and(|text| text.contains("://")) => {
            // Whatever it is, it may have a password in it.
            let problem =
                "is a URL, and a string here is the path of a SQLite file: write `database.url = …`";
            Err(refuse(("database", "…".to_owned(), problem.to_owned())))
        }
        Raw::Sqlite(file) => Ok(Database::Sqlite(file)),
        Raw::Postgres(table) => {
            let raw: RawPostgres = table
                .try_into()
                .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
            let folder = path.parent().unwrap_or(Path::new(""));
            postgres(raw, folder).map(Database::Postgres).map_err(refuse)
        }
    }
}

fn postgres(raw: RawPostgres, folder: &Path) -> Result<PostgresDatabase, Problem> {
    let (host, port, user, name) = place(&raw.url)?;
    let password = match raw.password_file {
        None => None,
        Some(file) => Some(password(&folder.join(file))?),
    };
    let tls = match (raw.tls.as_deref(), raw.ca_file) {
        (Some(mode), _) if host.starts_with('/') => {
            let problem = "has no meaning on a Unix socket: leave it out".to_owned();
            return Err((TLS, mode.to_owned(), problem));
        }
        (_, Some(file)) if host.starts_with('/') => {
            let problem = "has no meaning on a Unix socket: leave it out".to_owned();
            return Err((CA_FILE, file.display().to_string(), problem));
        }
        (Some("disable"), Some(file)) => {
            let problem = "has no meaning beside tls = \"disable\": leave out one of them".to_owned();
            return Err((CA_FILE, file.display().to_string(), problem));
        }
        (Some("disable"), None) if !is_here(&host) => {
            let problem = format!("is possible on this machine only, and `{host}` may be another one");
            return Err((TLS, "disable".to_owned(), problem));
        }
        (Some("disable"), None) => None,
        (None, None) if host.starts_with('/') => None,
        (None | Some("verify-full"), file) => {
            Some(PostgresTls { authority: file.map(|file| authority(&folder.join(file))).transpose()? })
        }
        (Some(mode), _) => {
            return Err((TLS, mode.to_owned(), "is not `verify-full` or `disable`".to_owned()));
        }
    };
    Ok(PostgresDatabase { host, port, user, name, password, tls })
}

/// Host, port, user and name of the database. A text that may have a password in it is never part of an error.
fn place(text: &str) -> Result<(String, u16, String, String), Problem> {
    const EXAMPLE: &str = "such as `postgresql://portcullis@db.example.com/portcullis`";
    let hidden = |problem: String| Err((URL, "…".to_owned(), problem));
    let url = match Url::parse(text) {
        Ok(url) if ["postgresql", "postgres"].contains(&url.scheme()) => url,
        _ => return hidden(format!("is not a URL {EXAMPLE}")),
    };
    if url.host_str().is_none_or(str::is_empty) {
        return hidden(format!("names no host: write it {EXAMPLE}"));
    }
    if url.password().is_some() {
        return hidden(
            "has a password in it: write that into a file, and name it as `password_file`".to_owned(),
        );
    }
    if url.query().is_some() || url.fragment().is_some() {
        return hidden(
            "has a `?` or `#`: TLS, its authority and the password are fields of their own beside `url`"
                .to_owned(),
        );
    }
    let refuse = |problem: String| (URL, text.to_owned(), problem);
    let decoded = |what: &str, text: &str| match percent_decode_str(text).decode_utf8() {
        Ok(text) if text.is_empty() => Err(refuse(format!("names no {what}: write it {EXAMPLE}"))),
        Ok(text) if text.contains(char::is_control) => Err(refuse(format!("has a {what} that is none"))),
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err(refuse(format!("has a {what} that is not UTF-8"))),
    };
    let host = decoded("host", url.host_str().unwrap_or_default())?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = decoded("database", url.path().trim_start_matches('/'))?;
    if name.contains('/') {
        return Err(refuse("names more than one database".to_owned()));
    }
    Ok((host, url.port().unwrap_or(PORT), decoded("user", url.username())?, name))
}

fn is_here(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

fn password(path: &Path) -> Result<Password, Problem> {
    private_secret(PASSWORD_FILE, path).map(Password)
}

fn authority(path: &Path) -> Result<Vec<u8>, Problem> {
    let pem = read(CA_FILE, path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(pem),
        _ => Err((CA_FILE, path.display().to_string(), "has no certificates in PEM".to_owned())),
    }
}

impl Config {
    /// Where the authority lies unless the configuration says otherwise: beside the file. None: there is none.
    pub(super) fn authority_of(database: &Database) -> Option<PathBuf> {
        match database {
            Database::Sqlite(path) => Some(Self::authority_beside(path)),
            Database::Postgres(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use std::error::Error;
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    fn parse(lines: &str, folder: &Path) -> Result<Database, String> {
        let text = format!("listen = '127.0.0.1:7400'\nauthority = 'authority'\n[database]\n{lines}");
        Config::parse(&text, &folder.join("cp.toml")).map(|config| config.database).map_err(|error| {
            let source = error.source().map(ToString::to_string).unwrap_or_default();
            format!("{error}: {source}")
        })
    }

    #[track_caller]
    fn refused(lines: &str, words: &str) {
        let error = parse(lines, Path::new("")).expect_err("is refused");
        assert!(error.contains(words), "{error}");
        assert!(!error.contains("hush"), "{error}");
    }

    #[track_caller]
    fn shown(lines: &str, expected: &str) {
        assert_eq!(parse(lines, Path::new("")).expect("valid").to_string(), expected);
    }

    #[test]
    fn a_url_says_where_it_is() {
        shown("url = 'postgresql://cp@db.example.com/grants'", "postgresql://cp@db.example.com:5432/grants");
        shown("url = 'postgres://cp@[::1]:5433/grants'", "postgresql://cp@[::1]:5433/grants");
        shown("url = 'postgresql://c%40p@10.0.0.7/grants'", "postgresql://c@p@10.0.0.7:5432/grants");
        shown(
            "url = 'postgresql://cp@%2Frun%2Fpostgresql/grants'",
            "postgresql://cp@/run/postgresql:5432/grants",
        );
        refused("url = 'postgresql://cp:hush@db/grants'", "has a password in it");
        refused("url = 'postgresql://cp@db/grants?password=hush'", "are fields of their own");
        refused("url = 'postgresql://cp@db/grants?sslmode=require'", "are fields of their own");
        refused("url = 'mysql://cp@db/grants'", "is not a URL such as");
        refused("url = 'cp:hush@db'", "is not a URL such as");
        refused("url = 'postgresql://db/grants'", "names no user");
        refused("url = 'postgresql://cp@db'", "names no database");
        refused("url = 'postgresql://cp@db/a/b'", "names more than one database");
        refused("url = 'postgresql:cp:hush@db'", "names no host");
        refused("url = 'postgresql:///grants'", "names no host");
        refused("", "missing field `url`");
        refused("url = 'postgresql://cp@db/grants'\npassword = 'x'", "unknown field `password`");
    }

    #[test]
    fn what_leaves_the_machine_is_encrypted() {
        let tls = |lines: &str| match parse(lines, Path::new("")).expect("valid") {
            Database::Postgres(database) => database.tls,
            Database::Sqlite(_) => panic!("is PostgreSQL"),
        };
        let verified = Some(PostgresTls { authority: None });
        assert_eq!(tls("url = 'postgresql://cp@db/grants'"), verified);
        assert_eq!(tls("url = 'postgresql://cp@localhost/grants'"), verified);
        assert_eq!(tls("url = 'postgresql://cp@localhost/grants'\ntls = 'disable'"), None);
        assert_eq!(tls("url = 'postgresql://cp@%2Frun/grants'"), None);
        refused("url = 'postgresql://cp@db/grants'\ntls = 'disable'", "on this machine only");
        refused("url = 'postgresql://cp@10.0.0.1/grants'\ntls = 'disable'", "on this machine only");
        refused("url = 'postgresql://cp@db/grants'\ntls = 'prefer'", "is not `verify-full` or `disable`");
        refused("url = 'postgresql://cp@%2Frun/grants'\ntls = 'verify-full'", "no meaning on a Unix socket");
        refused("url = 'postgresql://cp@%2Frun/grants'\nca_file = 'ca.pem'", "no meaning on a Unix socket");
        refused("url = 'postgresql://cp@[::1]/grants'\ntls = 'disable'\nca_file = 'ca.pem'", "leave out one");
        refused("url = 'postgresql://cp@db/grants'\nca_file = '/nowhere'", "cannot be read");
    }

    #[test]
    fn a_password_is_a_secret() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |mode: u32| {
            let path = folder.path().join("password");
            let _ = std::fs::remove_file(&path);
            let mut options = std::fs::OpenOptions::new();
            let file = options.write(true).create_new(true).mode(mode).open(&path);
            std::io::Write::write_all(&mut file.expect("made"), b"hush\n").expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
            parse("url = 'postgresql://cp@db/grants'\npassword_file = 'password'", folder.path())
        };
        let Database::Postgres(database) = write(0o640).expect("valid") else { panic!("is PostgreSQL") };
        assert_eq!(database.password.as_ref().map(Password::reveal), Some("hush"));
        assert!(!format!("{database} {database:?}").contains("hush"));
        let error = write(0o644).expect_err("everybody may read it");
        assert!(error.contains("has mode 644") && !error.contains("hush"), "{error}");
    }

    #[test]
    fn without_a_file_the_authority_is_named() {
        let text = "listen = '127.0.0.1:7400'\ndatabase.url = 'postgresql://cp@db/grants'";
        let error = Config::parse(text, Path::new("cp.toml")).expect_err("is refused").to_string();
        assert!(error.contains("authority = \"\" is missing"), "{error}");
        let text = "listen = '127.0.0.1:7400'\ndatabase = 'postgresql://cp:hush@db/grants'";
        let error = Config::parse(text, Path::new("cp.toml")).expect_err("is refused").to_string();
        assert!(error.contains("write `database.url = …`") && !error.contains("hush"), "{error}");
    }
}
