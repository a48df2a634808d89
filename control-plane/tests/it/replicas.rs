//! Several control planes on one PostgreSQL database, each a process of its own, while some are killed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proto::types::{AuditEvent, EndReason, EventKind, Grant, GrantId, GrantSet, GrantState, RequestId};
use proto::wire::access as wire;
use proto::wire::agent as agent_wire;
use proto::wire::agent::session_request::Message as Said;
use proto::wire::agent::session_response::Message as Answer;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::arguments::{binary, text};
use crate::postgres::world::{Caller, HostIdentity, World, hello, until};

const REPLICAS: usize = 3;

/// How many ask at the same time, and how often each.
const CALLERS: usize = 4;
const WISHES: usize = 25;

/// A control plane that can be killed.
struct Replica {
    config: PathBuf,
    ready: PathBuf,
    address: String,
    process: Option<Child>,
}

impl Replica {
    async fn start(world: &World, number: usize) -> Self {
        // Whichever is free now: nobody else asks for it in between. It is the same one after a restart.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("a port").to_string();
        drop(listener);
        let config = world.folder.path().join(format!("replica-{number}.toml"));
        let configuration = format!(
            "listen = \"{address}\"\nauthority = \"authority\"\nmax_grant_duration = \"1h\"\n{}\n",
            world.database.configuration()
        );
        std::fs::write(&config, configuration).expect("written");
        let ready = config.with_extension("ready");
        let mut replica = Self { config, ready, address, process: None };
        replica.begin().await;
        replica
    }

    async fn begin(&mut self) {
        let _ = std::fs::remove_file(&self.ready);
        let mut command = binary();
        command.args(["serve", "--config", text(&self.config), "--ready-file", text(&self.ready)]);
        self.process = Some(command.stderr(Stdio::null()).spawn().expect("starts"));
        let ready: &Path = &self.ready;
        until(async || ready.exists()).await;
    }

    /// As a crash would.
    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("killed");
            process.wait().expect("ended");
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// One subject at each control plane.
#[derive(Clone)]
struct Everywhere(Vec<Caller>);

impl Everywhere {
    async fn connect(world: &World, replicas: &[Replica], token: &str) -> Self {
        let mut callers = Vec::new();
        for replica in replicas {
            let token = token.to_owned();
            callers.push(Caller::connect(&replica.address, &world.authority, None, token).await);
        }
        Self(callers)
    }

    /// Asks one after the other, from the `first` on, until one answers.
    async fn ask<T, F>(&self, first: usize, call: impl Fn(Caller) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        for at in first.. {
            let answer =
                tokio::time::timeout(Duration::from_secs(5), call(self.0[at % self.0.len()].clone()));
            match answer.await {
                // What a client sees of a process that was killed.
                Err(_) => {}
                Ok(Err(status)) if is_gone(&status) => tokio::time::sleep(Duration::from_millis(20)).await,
                Ok(answer) => return answer,
            }
        }
        Err(Status::unavailable("nobody answers"))
    }
}

fn is_gone(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal)
}

/// An agent that holds what it is sent, wherever that comes from, and says so. It tells what it holds.
async fn be_an_agent(
    mut callers: Vec<Caller>,
    host: &'static str,
    held: watch::Sender<(Option<GrantSet>, usize)>,
) {
    let (mut applied, mut timeline) = (0, String::new());
    for at in 0.. {
        let hello = agent_wire::Hello {
            applied_generation: applied,
            timeline: timeline.clone(),
            instance: "00000000-0000-0000-0000-000000000007".to_owned(),
            ..hello(host)
        };
        let (say, said) = mpsc::channel(8);
        let message = agent_wire::SessionRequest { message: Some(Said::Hello(hello)) };
        say.send(message).await.expect("is open");
        let caller = at % callers.len();
        let Ok(answers) = callers[caller].agent.session(ReceiverStream::new(said)).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let mut answers = answers.into_inner();
        while let Ok(Some(answer)) = answers.message().await {
            match answer.message {
                Some(Answer::Welcome(welcome)) => timeline = welcome.timeline,
                Some(Answer::GrantSet(set)) => {
                    let set: GrantSet = set.try_into().expect("valid");
                    applied = set.generation;
                    held.send_modify(|held| *held = (Some(set), caller));
                    let applied = agent_wire::Applied { generation: applied, refused: Vec::new() };
                    let message = agent_wire::SessionRequest { message: Some(Said::Applied(applied)) };
                    if say.send(message).await.is_err() {
                        break;
                    }
                }
                other => panic!("{other:?} was not asked for"),
            }
        }
    }
}

/// One wish, granted: however often it has to be sent.
async fn granted(alice: &Everywhere, dora: &Everywhere, key: &str, first: usize, seconds: u64) -> RequestId {
    let wish = || wire::CreateRequestRequest {
        resource: "db".to_owned(),
        duration: Some(prost_types::Duration { seconds: seconds.try_into().expect("is small"), nanos: 0 }),
        reason: "ticket 4711".to_owned(),
        key: key.to_owned(),
        ..wire::CreateRequestRequest::default()
    };
    let asked = alice.ask(first, |mut caller: Caller| {
        let wish = wish();
        async move { caller.create(wish).await }
    });
    let request = asked.await.expect("made").id;
    let said =
        dora.ask(first + 1, |mut caller: Caller| async move {
            caller.say_yes(request, None, &[]).await.map(drop)
        })
        .await;
    match said {
        Ok(()) => {}
        // The answer was lost with the one who gave it.
        Err(status) => assert!(status.message().contains("is approved already: by user:dora"), "{status:?}"),
    }
    request
}

async fn grants(admin: &mut Caller) -> Vec<Grant> {
    let list = wire::ListGrantsRequest { all: true, limit: 1000 };
    let listed = admin.access.list_grants(list).await.expect("listed").into_inner().grants;
    listed.into_iter().map(|grant| grant.try_into().expect("valid")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_killed_nothing_is_lost_and_nothing_is_done_twice() {
    let mut world = World::new().await;
    let story = world.story().await;
    let other: HostIdentity = world.host("db-8").await;
    let mut replicas = Vec::new();
    for number in 0..REPLICAS {
        replicas.push(Replica::start(&world, number).await);
    }
    let alice = Everywhere::connect(&world, &replicas, &story.alice.token).await;
    let dora = Everywhere::connect(&world, &replicas, &story.dora.token).await;
    let mut held = Vec::new();
    let mut background = Vec::new();
    for (name, identity) in [("db-7", &story.host), ("db-8", &other)] {
        let mut callers = Vec::new();
        for replica in &replicas {
            callers.push(
                Caller::connect(&replica.address, &world.authority, Some(identity), String::new()).await,
            );
        }
        let (sender, receiver) = watch::channel((None, 0));
        held.push(receiver);
        background.push(tokio::spawn(be_an_agent(callers, name, sender)));
    }

    // 1. A grant that nothing is to happen to, and one that is over in between.
    let kept = granted(&alice, &dora, "kept", 0, 3000).await;
    let short = granted(&alice, &dora, "short", 1, 2).await;

    // 2. Many ask and many are let through, at all of them, while one is killed, comes back, and another one is killed.
    let done = Arc::new(AtomicUsize::new(0));
    let asking: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (alice, dora, done) = (alice.clone(), dora.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                let mut requests = Vec::new();
                for wish in 0..WISHES {
                    let key = format!("{caller}:{wish}");
                    requests.push(granted(&alice, &dora, &key, caller + wish, 3000).await);
                    done.fetch_add(1, Ordering::Relaxed);
                }
                requests
            })
        })
        .collect();
    let part = |of: usize| CALLERS * WISHES * of / 4;
    for (progress, victim) in [(part(1), 0), (part(2), 1), (part(3), 2)] {
        until(async || done.load(Ordering::Relaxed) >= progress).await;
        // Whoever has the session of an agent, first.
        let victim = (held[0].borrow().1 + victim) % REPLICAS;
        replicas[victim].kill();
        tokio::time::sleep(Duration::from_millis(200)).await;
        replicas[victim].begin().await;
    }
    let mut requests = BTreeSet::from([kept, short]);
    for asking in asking {
        for request in asking.await.expect("no panic") {
            assert!(requests.insert(request), "two wishes became one request");
        }
    }

    // 3. Each wish is one request and one grant, which both hosts hold.
    let mut admin = world.admin.clone();
    let wanted = requests.len();
    assert_eq!(wanted, CALLERS * WISHES + 2);
    let over = |grant: &Grant| grant.state == GrantState::Ended(EndReason::Time);
    until(async || {
        let grants = grants(&mut admin.clone()).await;
        grants.iter().all(|grant| grant.state == GrantState::Active || over(grant))
    })
    .await;
    let granted = grants(&mut admin).await;
    let by_request: BTreeMap<RequestId, GrantId> =
        granted.iter().map(|grant| (grant.request, grant.id)).collect();
    assert_eq!((granted.len(), by_request.len()), (wanted, wanted));
    assert_eq!(by_request.keys().copied().collect::<BTreeSet<_>>(), requests);
    until(async || grants(&mut admin.clone()).await.iter().any(over)).await;
    let live: BTreeSet<GrantId> =
        grants(&mut admin).await.iter().filter(|grant| !over(grant)).map(|grant| grant.id).collect();
    assert_eq!(live.len(), wanted - 1);
    for held in &mut held {
        let holds = |(set, _): &(Option<GrantSet>, usize)| {
            let ids =
                set.as_ref().map(|set| set.grants.iter().map(|grant| grant.id).collect::<BTreeSet<_>>());
            // What is over is taken out with the next set.
            ids.is_some_and(|ids| ids.is_superset(&live) && ids.len() <= live.len() + 1)
        };
        crate::postgres::world::within(held.wait_for(holds)).await.expect("the agent lives");
    }

    // 4. The record has each of it once, in one order and without a hole; what was live was never touched.
    let record: Vec<AuditEvent> = world.record().await;
    let count = |kind: EventKind| record.iter().filter(|event| event.kind == kind).count();
    for kind in [EventKind::RequestCreated, EventKind::RequestApproved, EventKind::GrantIssued] {
        assert_eq!(count(kind), wanted, "{kind:?}");
    }
    assert_eq!(count(EventKind::GrantEnding), 0);
    assert_eq!(count(EventKind::GrantEnded), 1);
    let positions: Vec<u64> = record.iter().map(|event| event.position).collect();
    assert_eq!(positions, (1..=record.len() as u64).collect::<Vec<_>>());
    let ours = record.iter().filter(|event| event.id.host.is_none()).map(|event| event.id.sequence);
    assert!(ours.eq(1..=count_of_ours(&record)));
    background.iter().for_each(tokio::task::JoinHandle::abort);
}

fn count_of_ours(record: &[AuditEvent]) -> u64 {
    record.iter().filter(|event| event.id.host.is_none()).count() as u64
}
