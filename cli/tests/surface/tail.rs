//! The audit record, as lines for people and for programs.

use proto::status::ErrorKind;
use proto::types::EventKind as Kind;
use proto::wire::audit::{
    AuditEvent, Change, Closed, Connection, EventId, EventKind, Gap, Receipt, Run, TailResponse,
};

use crate::canned::{Canned, GRANT, REQUEST, Script, World, at};

pub(crate) fn event(position: u64, source: &str, kind: Kind) -> AuditEvent {
    let epoch = "5b1e4a44-6f43-4b54-9a0e-1f2e3d4c5b6a".to_owned();
    AuditEvent {
        id: Some(EventId { source: source.into(), epoch, sequence: position }),
        kind: EventKind::from(kind).into(),
        time: at("2026-11-22T09:58:07.5Z"),
        position,
        host: if source == "control-plane" { String::new() } else { source.into() },
        ..AuditEvent::default()
    }
}

fn verdict(position: u64, kind: Kind) -> AuditEvent {
    let connection = Connection {
        hook: "connect4".into(),
        protocol: "tcp".into(),
        address: "127.0.5.4".into(),
        port: 5432,
        pid: 4711,
        uid: 1000,
        command: "psql".into(),
        executable: "/usr/bin/psql".into(),
        cgroup_id: 5123,
        cgroup_path: "/user.slice/user-1000.slice".into(),
        socket_cookie: 77,
        boot_time_ns: 123_456_789_012,
        path: String::new(),
        peer: String::new(),
        login_uid: Some(1000),
        login_differs: false,
    };
    AuditEvent {
        subject: "user:alice".into(),
        resource: "db-demo".into(),
        reason: "no_live_grant".into(),
        connection: Some(connection),
        ..event(position, "db-7", kind)
    }
}

/// One event of every kind, with what such an event carries.
pub(crate) fn every_kind() -> Vec<AuditEvent> {
    let mut position = 0;
    let mut next = |kind: Kind| {
        position += 1;
        let about = || AuditEvent {
            subject: "user:alice".into(),
            resource: "db-demo".into(),
            request: REQUEST.into(),
            actor: "user:bob".into(),
            ..event(position, "control-plane", kind)
        };
        let expires = at("2026-11-22T10:28:07Z");
        let of_host = |reason: &str| AuditEvent {
            actor: "host:db-7".into(),
            reason: reason.into(),
            ..event(position, "db-7", kind)
        };
        match kind {
            Kind::ConnectionAllowed => {
                let reason = "granted".into();
                AuditEvent { grant: GRANT.into(), reason, expires, ..verdict(position, kind) }
            }
            Kind::ConnectionDenied | Kind::ConnectionWouldDeny => verdict(position, kind),
            Kind::ConnectionClosed => {
                let closed = Closed {
                    protocol: "tcp".into(),
                    address: "10.0.0.7".into(),
                    port: 5432,
                    pid: 4711,
                    socket_cookie: 77,
                    boot_time_ns: 5_000_000_000,
                    duration_ns: 1_540_000_000,
                    bytes_sent: Some(120),
                    bytes_received: None,
                };
                let (grant, reason, closed) = (GRANT.into(), "peer".into(), Some(closed));
                let event = verdict(position, kind);
                AuditEvent { grant, reason, closed, connection: None, ..event }
            }
            Kind::RequestCreated => {
                let comment = "slow\nquery\u{9b}2J".into();
                AuditEvent { actor: "user:alice".into(), credential: "token".into(), comment, ..about() }
            }
            Kind::RequestApproved | Kind::RequestDenied | Kind::RequestWithdrawn | Kind::ApprovalGiven => {
                AuditEvent { comment: "see INC-42".into(), credential: "token".into(), ..about() }
            }
            Kind::RequestLapsed => {
                AuditEvent { actor: "system".into(), comment: "time passed".into(), ..about() }
            }
            Kind::PolicyApplied => AuditEvent {
                actor: "user:admin".into(),
                credential: "token".into(),
                comment: "version 7: infra#211; role debug added".into(),
                ..event(position, "control-plane", kind)
            },
            Kind::GrantScheduled | Kind::GrantIssued | Kind::GrantActive | Kind::GrantExtended => {
                AuditEvent { grant: GRANT.into(), expires, ..about() }
            }
            Kind::GrantExpiring => AuditEvent {
                grant: GRANT.into(),
                actor: "system".into(),
                reason: "5m".into(),
                expires,
                ..about()
            },
            Kind::DraftOpened => AuditEvent {
                host: "db-7".into(),
                actor: "system".into(),
                request: String::new(),
                comment: "complete it with: portcullis request --draft 019aac20-1f4e-7d22-8c55-0a9b8c7d6e61 --for 30m --reason TEXT".into(),
                expires,
                ..about()
            },
            Kind::ClockStepped => AuditEvent {
                actor: "system".into(),
                reason: "forward".into(),
                comment: "the wall clock of `cp-1` was set forward by 1h; grants keep their time".into(),
                ..event(position, "control-plane", kind)
            },
            Kind::GrantEnding | Kind::GrantEnded => {
                AuditEvent { grant: GRANT.into(), reason: "revoked".into(), expires, ..about() }
            }
            Kind::BreakGlassUsed | Kind::BreakGlassReviewed => AuditEvent {
                grant: GRANT.into(),
                credential: "session".into(),
                comment: "role break-glass (policy version 7): INC-42; not asked: user:bob".into(),
                expires,
                ..about()
            },
            Kind::FreezeBegan | Kind::FreezeEnded => AuditEvent {
                actor: "user:bob".into(),
                credential: "session".into(),
                reason: if kind == Kind::FreezeEnded { "thawed".into() } else { String::new() },
                comment: "freeze 019aac20-1f4e-7d22-8c55-0a9b8c7d6e60 of all resources: incident".into(),
                ..event(position, "control-plane", kind)
            },
            Kind::IncidentOpened | Kind::IncidentClosed => AuditEvent {
                actor: "user:bob".into(),
                credential: "session".into(),
                reason: if kind == Kind::IncidentClosed { "closed".into() } else { String::new() },
                comment: "incident inc-42: nobody can log in".into(),
                expires,
                ..event(position, "control-plane", kind)
            },
            Kind::ResourceAdded | Kind::ResourceRemoved => {
                AuditEvent { subject: String::new(), request: String::new(), ..about() }
            }
            Kind::ResourceChanged => {
                let change = |setting: &str, was: &str, is: &str| Change {
                    setting: setting.into(),
                    was: was.into(),
                    is: is.into(),
                };
                let changes = vec![change("mode", "observe", "enforce"), change("strict", "false", "true")];
                AuditEvent { changes, subject: String::new(), request: String::new(), ..about() }
            }
            Kind::SubjectAdded
            | Kind::SubjectBound
            | Kind::SubjectUnbound
            | Kind::SubjectDisabled
            | Kind::SubjectEnabled
            | Kind::TokenIssued => AuditEvent { resource: String::new(), request: String::new(), ..about() },
            Kind::HostJoined
            | Kind::HostRenewed
            | Kind::HostRevoked
            | Kind::HostKeyCopied
            | Kind::HostDisagrees => AuditEvent {
                host: "db-7".into(),
                actor: "host:db-7".into(),
                comment: "certificate 5d41402abc4b2a76b9719d911017c592".into(),
                ..event(position, "control-plane", kind)
            },
            Kind::HostAdded => {
                let host = "db-7".into();
                AuditEvent { host, actor: "user:bob".into(), ..event(position, "control-plane", kind) }
            }
            Kind::SubjectSignedIn | Kind::SubjectSignedOut => AuditEvent {
                subject: "user:alice".into(),
                actor: "user:alice".into(),
                credential: "session".into(),
                reason: if kind == Kind::SubjectSignedIn { "renewed".into() } else { String::new() },
                expires: if kind == Kind::SubjectSignedIn { expires } else { None },
                ..event(position, "control-plane", kind)
            },
            Kind::SignInRefused => AuditEvent {
                reason: "wrong_nonce".into(),
                comment: "IdentityService.SignIn: provider `corp`".into(),
                ..event(position, "control-plane", kind)
            },
            Kind::NotificationFailed => AuditEvent {
                actor: "system".into(),
                reason: "undeliverable".into(),
                comment: "target `ops`: 2 notifications, of the events at 7 to 9: it answered 500".into(),
                ..event(position, "control-plane", kind)
            },
            Kind::CallRefused => AuditEvent {
                credential: "session".into(),
                actor: "user:eve".into(),
                reason: "permission_denied".into(),
                comment: "RevokeGrant".into(),
                ..event(position, "control-plane", kind)
            },
            Kind::AuditGap => {
                let gap = Gap { r#where: "spool".into(), lost: 3, first_sequence: 11, last_sequence: 13 };
                AuditEvent { gap: Some(gap), ..event(position, "db-7", kind) }
            }
            Kind::GrantReceipt => {
                let receipt =
                    Receipt { closed: 2, unconfirmed: 1, last_admitted: at("2026-11-22T10:00:06Z") };
                let (reason, grant, host) = ("time".into(), GRANT.into(), "db-7".into());
                let receipt = Some(receipt);
                let about = AuditEvent { request: String::new(), ..about() };
                AuditEvent { reason, grant, host, receipt, actor: "host:db-7".into(), ..about }
            }
            Kind::AgentStateChanged => {
                AuditEvent { comment: "connect4 is not attached".into(), ..of_host("not_enforcing") }
            }
            Kind::HostDrift => {
                AuditEvent { comment: "map GRANTS: 1 added (subject 1 to resource 2)".into(), ..of_host("") }
            }
            Kind::GateTampering => AuditEvent {
                comment: "by bpftool (pid 4711, uid 0), /usr/sbin/bpftool, in /user.slice/user-0.slice"
                    .into(),
                ..of_host("open_map")
            },
            Kind::RunPassIssued => AuditEvent {
                host: "db-7".into(),
                subject: "user:alice".into(),
                actor: "user:alice".into(),
                credential: "session".into(),
                ..event(position, "control-plane", kind)
            },
            Kind::RunStarted | Kind::RunRefused => {
                let run =
                    Run { id: REQUEST.into(), pid: 4711, uid: 1000, login_uid: Some(1000), cgroup_id: 77 };
                let reason = if kind == Kind::RunRefused { "not_a_child" } else { "" };
                AuditEvent {
                    subject: "user:alice".into(),
                    comment: "psql".into(),
                    run: Some(run),
                    ..of_host(reason)
                }
            }
            Kind::RunEnded => {
                let run = Run { id: REQUEST.into(), cgroup_id: 77, ..Run::default() };
                AuditEvent { subject: "user:alice".into(), run: Some(run), ..of_host("exited") }
            }
            Kind::WorkloadEntered => AuditEvent {
                subject: "user:alice".into(),
                grant: "0198c0de-0000-7000-8000-000000000002".into(),
                comment:
                    "psql (pid 4711, uid 1000), /usr/bin/psql, into /user.slice/a, by bash (pid 12, uid 0)"
                        .into(),
                ..of_host("granted")
            },
            Kind::AgentStarted | Kind::AgentDetached | Kind::AgentConnected | Kind::AgentDisconnected => {
                of_host("")
            }
        }
    };
    let mut events: Vec<AuditEvent> = Kind::ALL.iter().map(|kind| next(*kind)).collect();
    let mut unknown = verdict(90, Kind::ConnectionDenied);
    unknown.subject.clear();
    unknown.time = at("2026-11-21T23:59:59Z");
    if let Some(connection) = &mut unknown.connection {
        connection.address = "2001:db8::1".into();
        connection.command = "a\u{1b}[2J".into();
        (connection.login_uid, connection.login_differs) = (Some(0), true);
        connection.executable.clear();
        connection.cgroup_path.clear();
    }
    let mut stranger = verdict(92, Kind::ConnectionDenied);
    (stranger.subject, stranger.reason) = (String::new(), "peer_not_served".into());
    if let Some(connection) = &mut stranger.connection {
        *connection = Connection {
            hook: "ingress".into(),
            protocol: "tcp".into(),
            address: "10.0.0.7".into(),
            port: 5432,
            cgroup_id: 5123,
            socket_cookie: 77,
            boot_time_ns: 123_456_789_012,
            peer: "192.0.2.1".into(),
            ..Connection::default()
        };
    }
    let kernel = Gap { r#where: "kernel.deny".into(), lost: 7, first_sequence: 0, last_sequence: 0 };
    events.extend([unknown, AuditEvent { gap: Some(kernel), ..event(91, "db-7", Kind::AuditGap) }, stranger]);
    events
}

fn script(events: Vec<AuditEvent>) -> Script<TailResponse> {
    events.into_iter().map(|event| Ok(TailResponse { event: Some(event) })).collect()
}

async fn world(scripts: Vec<Script<TailResponse>>) -> World {
    let world = World::start(Canned::default()).await;
    world.canned.tails.lock().unwrap().extend(scripts);
    world
}

#[tokio::test]
async fn every_event() {
    let world = world(vec![script(every_kind()), script(every_kind())]).await;
    let text = world.run(&["audit", "tail"]).await + &world.run(&["audit", "tail", "-o", "json"]).await;
    assert!(!text.chars().any(|char| char.is_control() && char != '\n'));
    insta::assert_snapshot!("every_event", text);
}

/// Followed across two losses of the control plane: each line once, and asked for from the last one printed.
#[tokio::test]
async fn followed() {
    let one = |position| script(vec![verdict(position, Kind::ConnectionDenied)]);
    let mut lost = one(7);
    lost.push(Err((ErrorKind::Unavailable, "the control plane is stopping", "")));
    let gone = vec![Err((ErrorKind::OutOfRange, "position 8 lies beyond the newest event, 3", ""))];
    let world = world(vec![lost, one(8), gone]).await;
    let text = world.run(&["audit", "tail", "--follow"]).await;
    let calls = world.canned.calls.lock().unwrap().join("\n");
    insta::assert_snapshot!("followed", format!("{text}{calls}"));
}

/// An event that breaks the contract stops no other, and is not passed over in silence.
#[tokio::test]
async fn unreadable() {
    let mut bad = verdict(5, Kind::ConnectionDenied);
    bad.kind = 999;
    let good = |position| verdict(position, Kind::ConnectionDenied);
    let world = world(vec![script(vec![good(4), bad, good(6)])]).await;
    insta::assert_snapshot!("unreadable", world.run(&["audit", "tail", "--after=3"]).await);
    insta::assert_snapshot!("unreadable_calls", world.canned.calls.lock().unwrap().join("\n"));
}

/// What follows must begin: a refusal at the start is told at once.
#[tokio::test]
async fn refused_at_the_start() {
    let refusal = Some((ErrorKind::Unavailable, "the control plane is stopping", ""));
    let world = World::start(Canned { refusal, ..Canned::default() }).await;
    insta::assert_snapshot!("refused_at_the_start", world.run(&["audit", "tail", "-f"]).await);
}
