//! What fuzzing begins with: one good input for each way through a decoder, so that it need not be guessed.

use std::collections::BTreeMap;

use agent::memory::{Memory, MemoryFile};
use prost::Message;
use proto::types::{
    AuditEvent, EventId, EventKind, GrantSet, NewSubject, Resource, Subject, SubjectRole, Timestamp,
};
use proto::wire;
use uuid::Uuid;

use crate::disk::{BOOT, MEMORY_MAGIC};
use crate::policies::joined;

fn numbered(seeds: impl IntoIterator<Item = (u8, Vec<u8>)>) -> Vec<Vec<u8>> {
    seeds.into_iter().map(|(number, seed)| [vec![number], seed].concat()).collect()
}

fn resource() -> Resource {
    let wire = wire::access::Resource {
        name: "orders-db".to_owned(),
        number: 7,
        addresses: vec!["10.0.0.0/8".to_owned(), "2001:db8::1".to_owned()],
        ports: vec![wire::access::PortRange {
            protocol: wire::access::Protocol::Tcp.into(),
            first: 5432,
            last: 5433,
        }],
        local: true,
        unix: vec!["/run/postgresql/.s.PGSQL.5432".to_owned()],
        options: Some(proto::types::ResourceOptions::default().into()),
    };
    wire.try_into().expect("it is a resource")
}

fn subject() -> Subject {
    let selectors = ["unix-user:alice", "kubernetes:prod?app=shop", "cgroup:/system.slice/a.service"];
    let new = NewSubject {
        id: "user:alice@example.com".parse().expect("valid"),
        selectors: selectors.map(|text| text.parse().expect("valid")).into(),
        role: SubjectRole::Approver,
    };
    Subject::numbered(3.try_into().expect("valid"), new)
}

fn grant_set() -> GrantSet {
    let grant = wire::agent::LiveGrant {
        id: Uuid::from_u128(BOOT.as_u128() | 0x7000 << 64).to_string(),
        subject: 3,
        resource: 7,
        remaining: Some(prost_types::Duration { seconds: 600, nanos: 5 }),
        ..wire::agent::LiveGrant::default()
    };
    let grants = grant.try_into().into_iter().collect();
    GrantSet { generation: 9, resources: vec![resource()], subjects: vec![subject()], grants }
}

fn event() -> AuditEvent {
    let id = EventId { host: Some("db-7".parse().expect("valid")), epoch: BOOT, sequence: 1 };
    let time = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
    AuditEvent { subject: "user:alice".to_owned(), ..AuditEvent::new(id, EventKind::ConnectionDenied, time) }
}

pub(crate) fn messages() -> Vec<Vec<u8>> {
    let hello = wire::agent::Hello {
        host: "db-7".to_owned(),
        boot_id: BOOT.to_string(),
        agent_version: "0.1.0".to_owned(),
        kernel_release: "6.1.0".to_owned(),
        protocol: 2,
        ..wire::agent::Hello::default()
    };
    let request = wire::access::CreateRequestRequest {
        resource: "orders-db".to_owned(),
        reason: "slow query, INC-42".to_owned(),
        duration: Some(prost_types::Duration { seconds: 1800, nanos: 0 }),
        ..wire::access::CreateRequestRequest::default()
    };
    let approval = wire::access::ApproveRequestRequest {
        id: BOOT.to_string(),
        comment: "go ahead".to_owned(),
        hosts: vec!["db-7".to_owned()],
        ..wire::access::ApproveRequestRequest::default()
    };
    let vote = wire::access::Vote {
        by: "user:bob".to_owned(),
        at: Some(prost_types::Timestamp { seconds: 1_795_000_000, nanos: 0 }),
        yes: true,
        ..wire::access::Vote::default()
    };
    let asked = wire::access::Request {
        id: BOOT.to_string(),
        state: wire::access::RequestState::Pending.into(),
        resource: "orders-db".to_owned(),
        subject: "user:alice".to_owned(),
        requester: "user:alice".to_owned(),
        reason: "why not".to_owned(),
        duration: request.duration,
        created: vote.at,
        policy: 7,
        role: "debug".to_owned(),
        votes: vec![vote],
        waiting: Some(wire::access::Waiting { step: 1, steps: 2, more: 1, ..Default::default() }),
        ..wire::access::Request::default()
    };
    let plan = wire::policy::PolicyPlan {
        before: 6,
        protects: vec!["orders-db".to_owned()],
        differences: vec![wire::policy::PolicyDifference {
            kind: "role".to_owned(),
            name: "debug".to_owned(),
            action: wire::policy::PolicyAction::Added.into(),
        }],
        ..wire::policy::PolicyPlan::default()
    };
    let file = wire::policy::PolicyFile { path: "limits.toml".to_owned(), text: "x".to_owned() };
    let apply = wire::policy::ApplyPolicyRequest { files: vec![file], before: 6, ..Default::default() };
    numbered([
        (10, asked.encode_to_vec()),
        (24, approval.encode_to_vec()),
        (25, wire::access::ListAccessRequest { limit: 5, ..Default::default() }.encode_to_vec()),
        (27, apply.encode_to_vec()),
        (29, plan.encode_to_vec()),
        (0, hello.encode_to_vec()),
        (2, wire::agent::GrantSet::from(grant_set()).encode_to_vec()),
        (8, wire::audit::AuditEvent::from(event()).encode_to_vec()),
        (9, request.encode_to_vec()),
        (12, wire::access::Resource::from(resource()).encode_to_vec()),
        (13, wire::access::Resource::from(resource()).encode_to_vec()),
        (15, wire::access::Subject::from(subject()).encode_to_vec()),
        (1, Vec::new()),
        (3, Vec::new()),
        (21, vec![0x0a, 0x02, 0x0a, 0x00]),
    ])
}

pub(crate) fn texts() -> Vec<Vec<u8>> {
    let texts: [(u8, &str); 28] = [
        (0, "unix-user:alice"),
        (0, "systemd-unit:getty@tty1.service"),
        (0, "container:0123456789ab"),
        (0, "kubernetes:prod/web"),
        (0, "kubernetes:prod?app=shop,tier=db"),
        (0, "cgroup:/system.slice/a\\x2db.service"),
        (1, "/system.slice/postgresql.service"),
        (2, "workload:ci/deploy"),
        (3, "db-7.example.com"),
        (4, "orders-db"),
        (5, "corp.example"),
        (6, "env=prod"),
        (7, "env=prod,tier=db"),
        (8, "tcp/5432-5433"),
        (9, "2001:db8::/32"),
        (9, "::ffff:10.0.0.0/104"),
        (10, "10.1.2.3"),
        (11, "/run/postgresql/.s.PGSQL.5432"),
        (12, "observe"),
        (13, "administrator"),
        (14, "shrink:5m"),
        (15, "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"),
        (16, "slow query, INC-42"),
        (17, "pcj_db-7"),
        (18, "a.b.c"),
        (
            19,
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0f8fad5b_d9cb_469f_a165_70867728950e.slice",
        ),
        (20, "29 1 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup\\0402 rw,nsdelegate\n"),
        (21, "unix:/run/portcullis/control-plane.sock"),
    ];
    numbered(texts.map(|(number, text)| (number, text.as_bytes().to_vec())))
}

/// The examples that are shipped, with every line of them on.
pub(crate) fn configuration() -> Vec<Vec<u8>> {
    const AGENT: &str = include_str!("../../deploy/etc/agent.toml");
    const CONTROL_PLANE: &str = include_str!("../../deploy/etc/control-plane.toml");
    let all_on = |text: &str| {
        let on = |line: &str| match line.strip_prefix("# ") {
            Some(rest) if rest.contains(" = ") || rest.starts_with('[') => rest.to_owned(),
            _ => line.to_owned(),
        };
        text.lines().map(on).collect::<Vec<_>>().join("\n")
    };
    let texts = [
        (0, AGENT.to_owned()),
        (1, CONTROL_PLANE.to_owned()),
        (0, all_on(AGENT)),
        (1, all_on(CONTROL_PLANE)),
    ];
    numbered(texts.map(|(number, text)| (number, text.into_bytes())))
}

pub(crate) fn disk() -> Vec<Vec<u8>> {
    let file = MemoryFile::new("/nowhere".as_ref(), BOOT);
    let memory = Memory {
        grants: Some((BOOT, grant_set())),
        lost: BTreeMap::from([(1, Default::default()), (2, Default::default())]),
        ..Memory::default()
    };
    let written = file.encode(&memory, 1 << 39);
    let content = written[MEMORY_MAGIC.len() + 4..].to_vec();
    let payload = wire::audit::AuditEvent::from(event()).encode_to_vec();
    let frame =
        [&(payload.len() as u32).to_le_bytes()[..], &crc32fast::hash(&payload).to_le_bytes(), &payload]
            .concat();
    let pods = format!(
        r#"{{"boot_id":"{BOOT}","pods":[{{"uid":"{BOOT}","namespace":"prod","service_account":"web","labels":{{"app":"shop"}}}}]}}"#
    );
    numbered([(0, written), (1, content), (2, [frame.clone(), frame].concat()), (3, pods.into_bytes())])
}

pub(crate) fn tokens() -> Vec<Vec<u8>> {
    // `{"alg":"ES256"}` and `{"iss":"https://issuer.example"}`, as JWTs write them.
    let token = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIn0.AA";
    let claims = r#"{"iss":"https://issuer.example","aud":"portcullis","sub":"repo:a/b","iat":1794999900,"nbf":1794999900,"exp":1795000300,"a":{"b":"c"}}"#;
    let agent = r#"{"iss":"https://issuer.example","aud":["portcullis"],"sub":"system:serviceaccount:portcullis:portcullis-agent","iat":1794999900,"exp":1795000300,"kubernetes.io":{"namespace":"portcullis","serviceaccount":{"name":"portcullis-agent"},"node":{"name":"node-1"},"pod":{"name":"agent-x"}}}"#;
    numbered([(0, token.into()), (1, claims.into()), (1, agent.into())])
}

pub(crate) fn kubernetes() -> Vec<Vec<u8>> {
    let pod = format!(
        r#"{{"metadata":{{"uid":"{BOOT}","namespace":"prod","resourceVersion":"12","labels":{{"app":"shop"}}}},"spec":{{"serviceAccountName":"web","nodeName":"node-1"}}}}"#
    );
    let texts = [
        format!(r#"{{"metadata":{{"resourceVersion":"10","continue":"x"}},"items":[{pod}]}}"#),
        format!(r#"{{"type":"ADDED","object":{pod}}}"#),
        format!(r#"{{"type":"DELETED","object":{pod}}}"#),
        r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"13"}}}"#.to_owned(),
        r#"{"type":"ERROR","object":{"code":410,"message":"too old"}}"#.to_owned(),
    ];
    texts.map(String::into_bytes).into()
}

/// The files of an example that is shipped.
macro_rules! example {
    ($name:literal, $condition:literal) => {
        joined(&[
            ("limits.toml", include_str!(concat!("../../docs/policies/", $name, "/limits.toml"))),
            ("hosts.toml", include_str!(concat!("../../docs/policies/", $name, "/hosts.toml"))),
            ("resources.toml", include_str!(concat!("../../docs/policies/", $name, "/resources.toml"))),
            ("subjects.toml", include_str!(concat!("../../docs/policies/", $name, "/subjects.toml"))),
            ("roles.toml", include_str!(concat!("../../docs/policies/", $name, "/roles.toml"))),
            ($condition, include_str!(concat!("../../docs/policies/", $name, "/", $condition))),
            ("tests/cases.toml", include_str!(concat!("../../docs/policies/", $name, "/tests/cases.toml"))),
        ])
    };
}

/// Each example but the largest, which the mutations would cut.
pub(crate) fn policies() -> Vec<Vec<u8>> {
    vec![
        example!("break-glass", "conditions/glass.cedar"),
        example!("ci-deployment", "conditions/deploy.cedar"),
        example!("contractor", "conditions/contractors.cedar"),
        example!("maintenance-window", "conditions/windows.cedar"),
        example!("on-call-incident", "conditions/incident.cedar"),
        joined(&[("limits.toml", "maximum_duration = \"8h\"")]),
    ]
}
