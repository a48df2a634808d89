//! Peers whose TLS is right and who then do not keep to HTTP/2 or to gRPC: each is refused or closed, and nobody else notices.

use std::time::Duration;

use proto::status::ErrorKind;
use proto::wire::access::{CreateRequestRequest, HostState};
use proto::wire::agent::session_request::Message as Said;
use proto::wire::audit::TailRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::enrolment::session;
use super::world::{FakeAgent, HostIdentity, World, hello, refused, report, tls, until, within};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// Kinds of frames, and flags: RFC 9113, section 6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The head of a call of the agents' session, in HPACK without Huffman coding.
fn head() -> Vec<u8> {
    // `:method POST`, `:scheme https`, then names by their numbers in the static table.
    let mut head = vec![0x83, 0x87];
    let fields: [(&[u8], &str); 3] = [
        (&[0x04], "/portcullis.agent.v1.AgentService/Session"),
        (&[0x01], "localhost"),
        (&[0x0f, 0x10], "application/grpc"),
    ];
    for (name, value) in fields {
        head.extend(name);
        head.push(u8::try_from(value.len()).expect("short"));
        head.extend(value.as_bytes());
    }
    head.extend(b"\0\x02te\x08trailers");
    head
}

/// A connection on which HTTP/2 was agreed on, and nothing said yet.
async fn raw(world: &World, identity: Option<&HostIdentity>) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(world.address()).await.expect("connected");
    let name = "localhost".try_into().expect("a name");
    TlsConnector::from(std::sync::Arc::new(tls(&world.authority, identity)))
        .connect(name, stream)
        .await
        .expect("TLS")
}

/// What the other side says until it closes: kind and payload of each frame.
async fn frames(stream: &mut ReadHalf<TlsStream<TcpStream>>) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).await.is_err() {
            return frames;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        if stream.read_exact(&mut payload).await.is_err() {
            return frames;
        }
        frames.push((head[3], payload));
    }
}

/// Sends all of it, unless the other side has had enough, and hears what comes until it closes.
async fn answer_to(stream: TlsStream<TcpStream>, bytes: Vec<u8>) -> Vec<(u8, Vec<u8>)> {
    let (mut reading, mut writing) = tokio::io::split(stream);
    let sending = tokio::spawn(async move {
        let _ = writing.write_all(&bytes).await;
        // Kept open: it is the other side that is to close.
        writing
    });
    let heard = tokio::time::timeout(Duration::from_secs(60), frames(&mut reading)).await;
    drop(sending.await.expect("no panic"));
    heard.expect("it is closed")
}

/// The reason that a farewell names: RFC 9113, section 7.
fn farewell(frames: &[(u8, Vec<u8>)]) -> Option<u32> {
    let (_, payload) = frames.iter().rev().find(|(kind, _)| *kind == GOAWAY)?;
    Some(u32::from_be_bytes(payload.get(4..8)?.try_into().expect("four bytes")))
}

async fn is_served(world: &mut World, agent: &FakeAgent) {
    agent.say(Said::Report(report("", HostState::Enforcing))).await;
    assert_eq!(world.hosts().await.len(), 2, "everybody else is served");
}

/// Waits until it is on record that a connection was refused, and why.
async fn is_on_record(world: &World, why: &str) {
    until(async || {
        let mut admin = world.admin.clone();
        let events = admin.tail(TailRequest::default()).await;
        events.iter().any(|event| event.reason == "connection_refused" && event.comment.contains(why))
    })
    .await;
}

#[tokio::test]
async fn whoever_speaks_no_http_is_closed() {
    let mut world = World::new().await;
    let (identity, other) = (world.host("db-7").await, world.host("db-8").await);
    let agent = session(&world, &identity, hello("db-7")).await.expect("a session");
    for who in [None, Some(&other)] {
        let other_protocol = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n".to_vec();
        answer_to(raw(&world, who).await, other_protocol).await;
        is_on_record(&world, "what was said on it is not HTTP/2").await;
        // A frame that claims to be the largest that there can be: FRAME_SIZE_ERROR.
        let settings = frame(SETTINGS, 0, 0, &[]);
        let huge = [PREFACE, &settings, b"\xff\xff\xff\0\0\0\0\0\x01", &[0; 1000]].concat();
        assert_eq!(farewell(&answer_to(raw(&world, who).await, huge).await), Some(6));
        // Headers that go on and on.
        let mut endless = [PREFACE, &settings, &frame(HEADERS, 0, 1, &head())].concat();
        (0..64).for_each(|_| {
            endless.extend(frame(9, 0, 1, &[&b"\0\x01x\x7f\x80\x7e"[..], &[b'a'; 16_255]].concat()))
        });
        assert!(farewell(&answer_to(raw(&world, who).await, endless).await).is_some());
        is_served(&mut world, &agent).await;
    }
}

#[tokio::test]
async fn whoever_is_silent_or_slow_from_the_beginning_is_closed() {
    let mut world = World::new().await;
    let (identity, other) = (world.host("db-7").await, world.host("db-8").await);
    let agent = session(&world, &identity, hello("db-7")).await.expect("a session");
    let mute = answer_to(raw(&world, Some(&other)).await, Vec::new());
    let stranger = answer_to(raw(&world, None).await, PREFACE[..10].to_vec());
    let (mut reading, mut writing) = tokio::io::split(raw(&world, None).await);
    let drip = tokio::spawn(async move {
        for byte in PREFACE {
            if writing.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
    });
    // Says how it goes on, and never again anything: it is asked whether it is there.
    let polite = answer_to(raw(&world, None).await, [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat());
    let slow = tokio::time::timeout(Duration::from_secs(60), frames(&mut reading));
    let (.., slow) = tokio::join!(mute, stranger, polite, slow);
    slow.expect("it is closed");
    drip.abort();
    is_on_record(&world, "nothing was said on it in time").await;
    is_served(&mut world, &agent).await;
}

#[tokio::test]
async fn ten_thousand_streams_are_not_opened() {
    let mut world = World::new().await;
    let (identity, other) = (world.host("db-7").await, world.host("db-8").await);
    let agent = session(&world, &identity, hello("db-7")).await.expect("a session");
    let mut flood = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    for number in 0..10_000 {
        flood.extend(frame(HEADERS, END_HEADERS, 2 * number + 1, &head()));
    }
    let heard = answer_to(raw(&world, Some(&other)).await, flood).await;
    let refused = heard.iter().filter(|(kind, _)| *kind == RST_STREAM).count();
    assert!(
        refused >= 10_000 - 128 || farewell(&heard).is_some_and(|reason| reason != 0),
        "{refused} refused"
    );
    is_served(&mut world, &agent).await;
    // Not by many connections either.
    let mut open = Vec::new();
    for _ in 0..40 {
        open.push(raw(&world, Some(&other)).await);
    }
    let mut closed = 0;
    for stream in &mut open {
        let first = tokio::time::timeout(Duration::from_secs(2), stream.read_u8()).await;
        closed += usize::from(first.is_ok_and(|read| read.is_err()));
    }
    assert!(closed >= 40 - 16, "{closed} of 40 are closed at once");
    is_served(&mut world, &agent).await;
    drop(open);
}

#[tokio::test]
async fn messages_that_are_too_large_are_refused_before_they_are_read() {
    let mut world = World::new().await;
    let (identity, other) = (world.host("db-7").await, world.host("db-8").await);
    let agent = session(&world, &identity, hello("db-7")).await.expect("a session");
    let mut admin = world.admin.clone();
    let reason = "a".repeat(2 << 20);
    let request = CreateRequestRequest { reason, ..CreateRequestRequest::default() };
    let answer = within(admin.access.create_request(request)).await;
    assert_eq!(answer.expect_err("is refused").code(), tonic::Code::OutOfRange);
    // A message of a host's that claims to have a gigabyte.
    let claim = [&[0, 0x40, 0, 0, 0][..], &[0; 100]].concat();
    let call = [
        PREFACE,
        &frame(SETTINGS, 0, 0, &[]),
        &frame(HEADERS, END_HEADERS, 1, &head()),
        &frame(DATA, 0, 1, &claim),
    ];
    let stream = raw(&world, Some(&other)).await;
    let (mut reading, mut writing) = tokio::io::split(stream);
    writing.write_all(&call.concat()).await.expect("sent");
    let ended = tokio::time::timeout(Duration::from_secs(5), async {
        loop {
            let mut head = [0; 9];
            reading.read_exact(&mut head).await.expect("a frame");
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            reading.read_exact(&mut vec![0; length as usize]).await.expect("a frame");
            // The end of the call, with its status.
            if head[3] == RST_STREAM || (head[3] == HEADERS && head[4] & 1 == 1) {
                return;
            }
        }
    });
    ended.await.expect("the call is ended at once");
    is_served(&mut world, &agent).await;
    let nothing: Result<(), tonic::Status> =
        within(admin.access.create_request(CreateRequestRequest::default())).await.map(drop);
    refused(nothing, ErrorKind::InvalidArgument, "");
}
