//! The binary itself: what the environment, pipes and signals do to it.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::pin::Pin;
use std::process::{Command, Stdio};

use assert_cmd::assert::OutputAssertExt;
use assert_cmd::cargo::cargo_bin;
use proto::status::ErrorKind;
use proto::types::EventKind;
use proto::wire::audit::audit_service_server::{AuditService, AuditServiceServer};
use proto::wire::audit::{TailRequest, TailResponse};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Response, Status};

use crate::canned::{Canned, World};

fn portcullis(world: &World) -> Command {
    let mut command = Command::new(cargo_bin!("portcullis"));
    command.env_clear().env("TZ", "UTC").env("HOME", world.path("home"));
    command
}

fn with_environment(world: &World) -> Command {
    let mut command = portcullis(world);
    command.env("PORTCULLIS_SERVER", format!("unix:{}", world.path("socket").display()));
    command.env("PORTCULLIS_TOKEN_FILE", world.path("token"));
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_and_login() {
    let world = World::start(Canned::default()).await;
    let list = with_environment(&world).args(["resource", "list"]).assert().success();
    let out = String::from_utf8_lossy(&list.get_output().stdout).into_owned();
    assert!(out.starts_with("NAME     MODE"), "{out}");
    portcullis(&world).args(["resource", "list"]).assert().code(5);
    with_environment(&world).arg("login").assert().success();
    assert!(world.path("home/.config/portcullis/credentials.toml").exists());
    portcullis(&world).args(["resource", "list"]).assert().success().stdout(out);
}

#[tokio::test(flavor = "multi_thread")]
async fn help_version_and_usage() {
    let world = World::start(Canned::default()).await;
    portcullis(&world).arg("--version").assert().success().stdout("portcullis 0.1.0\n");
    let help = portcullis(&world).args(["help", "request"]).assert().success();
    assert!(help.get_output().stderr.is_empty());
    assert!(!help.get_output().stdout.contains(&0x1b));
    portcullis(&world).arg("approve").assert().code(2).stdout("");
}

/// A reader that goes away ends us without a word.
#[tokio::test(flavor = "multi_thread")]
async fn broken_pipe() {
    let world = World::start(Canned::default()).await;
    let mut child = with_environment(&world)
        .args(["status", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!((child.wait().unwrap().code(), errors.as_str()), (Some(141), ""));
}

/// Each event is there before the next one comes; and when the control plane is cut off in the middle of the stream, the
/// next one takes over behind the last line printed.
#[test]
fn follow_survives_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let first = tokio::runtime::Runtime::new().unwrap();
    let world = first.block_on(World::start(Canned::default()));
    first.block_on(serve(&socket, AuditServiceServer::new(Quiet)));
    let mut child = with_environment(&world)
        .args(["audit", "tail", "--follow", "-o", "json", "--server"])
        .arg(format!("unix:{}", socket.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut err = BufReader::new(child.stderr.take().unwrap());
    assert!(line(&mut out).contains(r#""event":"host.added""#));
    first.shutdown_background();
    let told = line(&mut err);
    assert!(
        told.starts_with("cannot read the audit stream: the connection to the control plane broke"),
        "{told}"
    );
    assert!(told.ends_with("trying again from position 1\n"), "{told}");

    let second = tokio::runtime::Runtime::new().unwrap();
    std::fs::remove_file(&socket).unwrap();
    let canned = Canned::default();
    let next = crate::tail::event(2, "control-plane", EventKind::HostAdded);
    let gone = (ErrorKind::OutOfRange, "that is all", "");
    canned.tails.lock().unwrap().push_back(vec![Ok(TailResponse { event: Some(next) }), Err(gone)]);
    second.block_on(serve(&socket, AuditServiceServer::new(canned.clone())));
    assert!(line(&mut out).contains(r#""position":2,"#));
    assert_eq!(line(&mut err), "the audit stream is open again\n");
    assert_eq!(child.wait().unwrap().code(), Some(8));
    let asked = canned.calls.lock().unwrap().join("");
    assert_eq!(asked, "TailRequest { after_position: 1, follow: true, last: 0 }");
}

fn line(stream: &mut impl BufRead) -> String {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    line
}

async fn serve<S: AuditService>(socket: &Path, service: AuditServiceServer<S>) {
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
}

/// A control plane that sends one event and then says nothing.
struct Quiet;

#[tonic::async_trait]
impl AuditService for Quiet {
    type TailStream = Pin<Box<dyn Stream<Item = Result<TailResponse, Status>> + Send>>;

    async fn tail(&self, _: tonic::Request<TailRequest>) -> Result<Response<Self::TailStream>, Status> {
        let event = crate::tail::event(1, "control-plane", EventKind::HostAdded);
        let first = tokio_stream::once(Ok(TailResponse { event: Some(event) }));
        Ok(Response::new(Box::pin(first.chain(tokio_stream::pending()))))
    }
}
