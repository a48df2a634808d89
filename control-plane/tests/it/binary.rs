//! The binary at work.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use control_plane::config::Database;
use proto::types::EventKind;
use proto::wire::access::{AddHostRequest, ListHostsRequest};
use proto::wire::audit::TailRequest;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::KIND;
use super::world::{Caller, until, within};
use crate::arguments::{binary, run, text};
use crate::database::{Kind, TestDatabase};

pub(crate) fn write_config(folder: &Path, listen: &str, database: &TestDatabase) -> PathBuf {
    let path = folder.join("cp.toml");
    let text = format!(
        "listen = \"{listen}\"\nauthority = \"authority\"\nmax_grant_duration = \"1h\"\n{}\n",
        database.configuration()
    );
    std::fs::write(&path, text).expect("written");
    path
}

pub(crate) fn authority_of(folder: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(folder.join("authority/ca.pem")).expect("a certificate")
}

/// Ends the process whatever happens to the test.
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    pub(crate) async fn start(config: &Path, ready: &Path) -> (Self, String) {
        let mut command = binary();
        command.args(["serve", "--config", text(config), "--ready-file", text(ready)]);
        let running = Self(command.stderr(Stdio::null()).spawn().expect("starts"));
        until(async || ready.exists()).await;
        let address = std::fs::read_to_string(ready).expect("read").trim().to_owned();
        (running, address)
    }

    pub(crate) async fn terminate(mut self) -> i32 {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("runs").success());
        let status =
            tokio::task::spawn_blocking(move || self.0.wait().expect("ends")).await.expect("no panic");
        status.code().expect("exits by itself")
    }
}

#[test]
fn init_writes_the_token_to_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let database = TestDatabase::new(KIND);
    let config = write_config(folder.path(), "127.0.0.1:0", &database);
    let (code, _, stderr) = run(&["serve", "--config", text(&config)]);
    assert!(code == 1 && stderr.contains("portcullis-control-plane init"), "{stderr}");
    let file = folder.path().join("admin.token");
    let arguments = ["init", "--config", text(&config), "--token-file", text(&file), "--quiet"];
    assert_eq!(run(&arguments), (0, String::new(), String::new()));
    assert!(std::fs::read_to_string(&file).expect("read").starts_with("pct_"));
    assert_eq!(std::fs::metadata(&file).expect("is there").permissions().mode() & 0o777, 0o600);
    let (code, _, stderr) = run(&arguments);
    assert!(code == 1 && stderr.contains("cannot make token file"), "{stderr}");
    std::fs::remove_file(&file).expect("removed");
    let (code, _, stderr) = run(&arguments);
    assert!(code == 1 && stderr.contains("exists already") && !file.exists(), "{stderr}");
}

#[tokio::test]
async fn serve_answers_on_a_unix_socket_until_it_is_told_to_stop() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("cp.sock");
    let listen = format!("unix:{}", socket.display());
    let database = TestDatabase::new(KIND);
    let config = write_config(folder.path(), &listen, &database);
    let (_, token, _) = run(&["init", "--config", text(&config), "--quiet"]);
    let ready = folder.path().join("ready");
    let (running, address) = Running::start(&config, &ready).await;
    assert_eq!(address, listen);
    assert_eq!(std::fs::metadata(&socket).expect("is there").permissions().mode() & 0o777, 0o660);
    let mut caller =
        Caller::connect(&address, &authority_of(folder.path()), None, token.trim().to_owned()).await;
    caller.directory.list_hosts(ListHostsRequest {}).await.expect("answers");
    let (code, _, stderr) = run(&["serve", "--config", text(&config)]);
    let words = match KIND {
        Kind::Sqlite => "is in use by another control plane",
        // The database may have several; the socket is one's.
        Kind::Postgres => "another process listens on",
    };
    assert!(code == 1 && stderr.contains(words), "{stderr}");
    assert_eq!(running.terminate().await, 0);
    assert!(!socket.exists());
    // Killed, it leaves its socket behind; the next one sees that nobody answers on it.
    std::fs::remove_file(&ready).expect("removed");
    let (running, _) = Running::start(&config, &ready).await;
    drop(running);
    assert!(socket.exists());
    std::fs::remove_file(&ready).expect("removed");
    let (running, address) = Running::start(&config, &ready).await;
    let mut caller =
        Caller::connect(&address, &authority_of(folder.path()), None, token.trim().to_owned()).await;
    caller.directory.list_hosts(ListHostsRequest {}).await.expect("answers");
    assert_eq!(running.terminate().await, 0);
    std::fs::write(&socket, "not a socket").expect("written");
    let (code, _, stderr) = run(&["serve", "--config", text(&config)]);
    assert!(code == 1 && stderr.contains("is there and is not a socket"), "{stderr}");
}

#[tokio::test]
async fn a_port_of_its_own_choice_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let database = TestDatabase::new(KIND);
    let config = write_config(folder.path(), "[::1]:0", &database);
    let (_, token, _) = run(&["init", "--config", text(&config), "--quiet"]);
    let (running, address) = Running::start(&config, &folder.path().join("ready")).await;
    assert!(address.starts_with("[::1]:") && !address.ends_with(":0"), "{address}");
    let mut caller =
        Caller::connect(&address, &authority_of(folder.path()), None, token.trim().to_owned()).await;
    caller.directory.list_hosts(ListHostsRequest {}).await.expect("answers");
    assert_eq!(running.terminate().await, 0);
}

#[tokio::test]
async fn a_copy_is_made_while_it_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let listen = format!("unix:{}", folder.path().join("cp.sock").display());
    let database = TestDatabase::new(KIND);
    let config = write_config(folder.path(), &listen, &database);
    let (_, token, _) = run(&["init", "--config", text(&config), "--quiet"]);
    let ready = folder.path().join("ready");
    let (running, address) = Running::start(&config, &ready).await;
    let authority = authority_of(folder.path());
    let connect = async || Caller::connect(&address, &authority, None, token.trim().to_owned()).await;
    let hosts = async || {
        let listed = connect().await.directory.list_hosts(ListHostsRequest {}).await.expect("answers");
        listed.into_inner().hosts.into_iter().map(|host| host.name).collect::<Vec<_>>()
    };
    let add = async |name: &str| {
        let add = AddHostRequest { name: name.to_owned(), ..AddHostRequest::default() };
        connect().await.directory.add_host(add).await.expect("added");
    };
    add("db-7").await;
    let copy = folder.path().join("copy.db");
    let backup = ["backup", "--config", text(&config), text(&copy)];
    let Database::Sqlite(path) = &database.database else {
        let (code, _, stderr) = run(&backup);
        assert!(code == 1 && stderr.contains("is no file") && stderr.contains("pg_dump"), "{stderr}");
        assert!(!copy.exists());
        return;
    };
    assert_eq!(run(&backup), (0, String::new(), String::new()));
    assert_eq!(std::fs::metadata(&copy).expect("is there").permissions().mode() & 0o777, 0o600);
    let (code, _, stderr) = run(&backup);
    assert!(code == 1 && stderr.contains("copy.db` exists already"), "{stderr}");
    add("db-8").await;
    assert_eq!(hosts().await, ["db-7", "db-8"]);
    assert_eq!(running.terminate().await, 0);
    std::fs::remove_file(&ready).expect("removed");
    for suffix in ["", "-wal", "-shm"] {
        // Closed in order, it leaves nothing beside it.
        let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
    }
    std::fs::rename(&copy, path).expect("moved");
    let (running, _) = Running::start(&config, &ready).await;
    assert_eq!(hosts().await, ["db-7"]);
    add("db-8").await;
    assert_eq!(running.terminate().await, 0);
}

/// However it ends: what it has told somebody is there afterwards, with its events, and the record has no holes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_midst_of_changes_it_loses_none() {
    const ROUNDS: u64 = 4;
    let folder = tempfile::tempdir().expect("a folder");
    let listen = format!("unix:{}", folder.path().join("cp.sock").display());
    let database = TestDatabase::new(KIND);
    let config = write_config(folder.path(), &listen, &database);
    let (_, token, _) = run(&["init", "--config", text(&config), "--quiet"]);
    let authority = authority_of(folder.path());
    let mut told: Vec<String> = Vec::new();
    for round in 0..=ROUNDS {
        let ready = folder.path().join(format!("ready-{round}"));
        let (running, address) = Running::start(&config, &ready).await;
        let connect = async || Caller::connect(&address, &authority, None, token.trim().to_owned()).await;
        let mut caller = connect().await;
        let hosts =
            caller.directory.list_hosts(ListHostsRequest {}).await.expect("answers").into_inner().hosts;
        let known: Vec<&str> = hosts.iter().map(|host| host.name.as_str()).collect();
        let record = caller.tail(TailRequest::default()).await;
        for name in &told {
            assert!(known.contains(&&**name), "{name} was added");
            let is_of_it = |kind| record.iter().any(|event| event.kind == kind && event.host == *name);
            assert!(
                is_of_it(EventKind::HostAdded) && is_of_it(EventKind::TokenIssued),
                "{name} is on record"
            );
        }
        for (index, event) in record.iter().enumerate() {
            assert_eq!((event.position, event.id.sequence), (index as u64 + 1, index as u64 + 1));
        }
        if round == ROUNDS {
            assert_eq!(running.terminate().await, 0);
            break;
        }
        let mut adding = Vec::new();
        for lane in 0..3 {
            let mut caller = connect().await;
            adding.push(tokio::spawn(async move {
                let mut told: Vec<String> = Vec::new();
                for index in 0.. {
                    let name = format!("db-{round}-{lane}-{index}");
                    let add = AddHostRequest { name: name.clone(), ..AddHostRequest::default() };
                    match caller.directory.add_host(add).await {
                        Ok(_) => told.push(name),
                        // It is killed, or has been asked too often.
                        Err(status) if status.code() == tonic::Code::ResourceExhausted => {
                            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                        }
                        Err(_) => break,
                    }
                }
                told
            }));
        }
        tokio::time::sleep(std::time::Duration::from_millis(150 + 90 * round)).await;
        drop(running);
        let before = told.len();
        for lane in adding {
            told.extend(within(lane).await.expect("no panic"));
        }
        assert!(told.len() > before, "it was killed in the midst of changes");
    }
}
