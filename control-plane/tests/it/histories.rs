//! Random histories of grants and of the kernels that hold them, on a real database: what the control plane claims is
//! true of every kernel after every event.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use control_plane::identity::{Token, TokenHash};
use control_plane::rules::actor::{Acting, Actor};
use control_plane::rules::calls::Reach;
use control_plane::rules::policy::{Circumstances, Limits};
use control_plane::store::{Known, NewJoinToken, RequestFilter, SessionNumber, Store, Whose};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof};
use proto::types::{
    Applied, Credential, EndReason, EndedGrant, Grant, GrantId, GrantState, Hello, HostEnd, HostName,
    HostState, Labels, NewApproval, NewResource, NewSubject, Refused, RefusedItem, Report, SubjectRole,
    Timestamp,
};
use uuid::Uuid;

use super::KIND;
use crate::database::TestDatabase;

#[derive(Clone, Debug)]
enum Event {
    /// A grant is asked for and approved, for this many seconds.
    Grant(u8),
    /// One of the grants is revoked.
    Revoke(usize),
    /// A session sends its host the set as it is now.
    Send(usize),
    /// A host's kernel takes the oldest set that was sent to it; perhaps it has no room for the newest grant.
    Take(usize, bool),
    /// A host ends one of the grants that its kernel holds, by itself.
    End(usize, usize),
    /// A host boots and connects.
    Boot(usize),
    /// A host connects again; what was on the way is lost.
    Reconnect(usize),
    /// Time goes on, and deadlines with it.
    Wait(u8),
}

fn event() -> impl Strategy<Value = Event> {
    let host = || 0..2_usize;
    prop_oneof![
        3 => (1..60_u8).prop_map(Event::Grant),
        2 => any::<usize>().prop_map(Event::Revoke),
        6 => host().prop_map(Event::Send),
        6 => (host(), prop_oneof![6 => Just(false), 1 => Just(true)])
            .prop_map(|(host, is_full)| Event::Take(host, is_full)),
        1 => (host(), any::<usize>()).prop_map(|(host, which)| Event::End(host, which)),
        1 => host().prop_map(Event::Boot),
        2 => host().prop_map(Event::Reconnect),
        2 => (0..20_u8).prop_map(Event::Wait),
    ]
}

/// A host, as an honest agent and its kernel would be.
struct Host {
    session: SessionNumber,
    /// What the kernel holds, with the deadline that it enforces.
    kernel: BTreeMap<GrantId, Timestamp>,
    applied: u64,
    /// What is on the way: generation, grants, and what was left out.
    sent: VecDeque<(u64, BTreeMap<GrantId, Timestamp>, Vec<GrantId>)>,
    newest: u64,
    /// What it has ended by itself, until a set comes without it.
    ended: BTreeSet<GrantId>,
}

impl Host {
    fn new() -> Self {
        Self {
            session: SessionNumber::NONE,
            kernel: BTreeMap::new(),
            applied: 0,
            sent: VecDeque::new(),
            newest: 0,
            ended: BTreeSet::new(),
        }
    }

    fn ended(&self) -> Vec<EndedGrant> {
        self.ended.iter().map(|grant| EndedGrant { grant: *grant, reason: HostEnd::Idle }).collect()
    }
}

struct World {
    store: Store,
    now: Timestamp,
    names: [HostName; 2],
    hosts: [Host; 2],
    alice: Acting,
    dora: Acting,
    _database: TestDatabase,
}

impl World {
    async fn new() -> Self {
        let now = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
        let database = TestDatabase::new(KIND);
        Store::create(&database.database, &Token::for_subject().hash(), now).await.expect("made");
        let store = Store::open(&database.database).await.expect("opens");
        let acting = |id: &str| Acting { id: id.parse().expect("valid"), credential: Credential::Token };
        let (alice, dora) = (acting("user:alice"), acting("user:dora"));
        for (id, role) in [(&alice.id, SubjectRole::Member), (&dora.id, SubjectRole::Approver)] {
            let new = NewSubject { id: id.clone(), selectors: Vec::new(), role };
            store.add_subject(new, &Actor::System, now).await.expect("added");
        }
        let ports = vec!["tcp/5432".parse().expect("valid")];
        let addresses = vec!["10.0.0.7".parse().expect("valid")];
        let db = NewResource::new("db".parse().expect("valid"), addresses, ports).expect("valid");
        store.add_resource(db, &Actor::System, now).await.expect("added");
        let names: [HostName; 2] = ["a".parse().expect("valid"), "b".parse().expect("valid")];
        let mut world =
            Self { store, now, names, hosts: [Host::new(), Host::new()], alice, dora, _database: database };
        for index in 0..2 {
            let name = world.names[index].clone();
            let token = NewJoinToken { hash: TokenHash::of(name.as_str()), expires: now };
            world
                .store
                .add_host(&name, &Labels::default(), &token, &Actor::System, now)
                .await
                .expect("added");
            world.connect(index).await;
        }
        world
    }

    async fn happen(&mut self, event: Event) {
        match event {
            Event::Grant(seconds) => self.grant(seconds).await,
            Event::Revoke(which) => {
                let live = self.grants(false).await;
                let Some(grant) = live.get(which % live.len().max(1)) else { return };
                // What is ending already, or over, is refused; the claims are checked all the same.
                let whose = Whose::Everybodys;
                let revoked = EndReason::Revoked;
                let _ = self.store.end_grant(grant.id, revoked, &self.dora, &whose, "", self.now).await;
            }
            Event::Send(index) => self.send(index).await,
            Event::Take(index, is_full) => self.take(index, is_full).await,
            Event::End(index, which) => {
                let host = &mut self.hosts[index];
                let Some(grant) = host.kernel.keys().nth(which % host.kernel.len().max(1)).copied() else {
                    return;
                };
                host.kernel.remove(&grant);
                host.ended.insert(grant);
                let ended = host.ended();
                let session = self.hosts[index].session;
                self.store.agent_ended(&self.names[index], session, &ended, self.now).await.expect("noted");
            }
            Event::Boot(index) => {
                self.hosts[index].kernel.clear();
                self.hosts[index].applied = 0;
                self.connect(index).await;
            }
            Event::Reconnect(index) => self.connect(index).await,
            Event::Wait(seconds) => {
                self.now = self.now.plus(Duration::from_secs(seconds.into()));
                while self.store.expire(self.now).await.expect("expires") {}
            }
        }
    }

    async fn grant(&self, seconds: u8) {
        let new = proto::types::NewRequest {
            resource: "db".parse().expect("valid"),
            subject: None,
            hosts: Vec::new(),
            duration: Some(Duration::from_secs(seconds.into())),
            reason: "why not".parse().expect("valid"),
            idle: None,
            while_running: None,
            run: None,
            action: None,
            role: None,
            key: None,
            draft: None,
        };
        let limits = Limits {
            max_grant_duration: Duration::from_secs(3600),
            request_lifetime: Duration::from_secs(3600),
        };
        let known = Known { circumstances: &Circumstances::default(), limits: &limits };
        let request = self.store.create_request(new, &self.alice.id, &self.alice, known, self.now);
        let request = request.await.expect("made").id;
        let yes = NewApproval { request, comment: String::new(), duration: None, hosts: Vec::new() };
        self.store.approve(&yes, &self.dora, Reach::All, self.now).await.expect("approved");
    }

    async fn send(&mut self, index: usize) {
        let plan = self.store.plan(&self.names[index], self.hosts[index].session).await.expect("reads");
        let (set, left_out) = plan.set(self.now);
        let host = &mut self.hosts[index];
        assert!(set.generation >= host.newest, "generations never go back");
        if set.generation == host.newest {
            return;
        }
        host.newest = set.generation;
        let grants = set.grants.iter().map(|grant| (grant.id, self.now.plus(grant.remaining))).collect();
        host.sent.push_back((set.generation, grants, left_out));
    }

    async fn take(&mut self, index: usize, is_full: bool) {
        let host = &mut self.hosts[index];
        let Some((generation, mut grants, left_out)) = host.sent.pop_front() else { return };
        host.ended.retain(|grant| grants.contains_key(grant));
        grants.retain(|grant, _| !host.ended.contains(grant));
        let refused = if is_full { grants.pop_last() } else { None };
        let refused =
            refused.map(|(id, _)| Refused { item: RefusedItem::Grant(id), error: "full".to_owned() });
        host.kernel = grants;
        host.applied = generation;
        let applied = Applied { generation, refused: refused.into_iter().collect() };
        let session = host.session;
        let noted = self.store.agent_applied(&self.names[index], session, &applied, &left_out, self.now);
        noted.await.expect("noted");
    }

    async fn connect(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        host.sent.clear();
        host.newest = 0;
        let applied = (host.applied > 0).then(|| (self.store.timeline(), host.applied));
        let hello = Hello {
            host: self.names[index].clone(),
            boot_id: Uuid::from_u128(1),
            applied,
            agent_version: String::new(),
            kernel_release: String::new(),
            instance: None,
            protocol: 1,
            report: Report { state: HostState::Enforcing, detail: String::new() },
        };
        let ended = host.ended();
        let session = self.store.agent_connected(&hello, self.now).await.expect("noted").session;
        self.hosts[index].session = session;
        self.store.agent_ended(&self.names[index], session, &ended, self.now).await.expect("noted");
        self.send(index).await;
    }

    async fn grants(&self, all: bool) -> Vec<Grant> {
        let filter = RequestFilter { all, whose: Whose::Everybodys, limit: 1000 };
        self.store.grants(&filter).await.expect("reads")
    }

    /// Every claim, held against every kernel.
    async fn check(&self) {
        for grant in self.grants(true).await {
            for (host, shown) in self.hosts.iter().zip(&grant.hosts) {
                let lets_through = host.kernel.get(&grant.id).is_some_and(|deadline| self.now < *deadline);
                let deadline = host.kernel.get(&grant.id);
                assert!(deadline.is_none_or(|deadline| *deadline <= grant.expires), "it lives too long");
                match grant.state {
                    GrantState::Activating | GrantState::Active => {
                        assert!(!shown.held || lets_through || self.now >= grant.expires, "{grant:?}");
                    }
                    GrantState::Ending(_) => assert!(shown.held || !lets_through, "{grant:?}"),
                    GrantState::Scheduled | GrantState::Ended(_) => assert!(!lets_through, "{grant:?}"),
                }
            }
        }
        let events = self.store.events(0, 10_000).await.expect("reads");
        let sequences: BTreeSet<u64> = events.iter().map(|event| event.id.sequence).collect();
        assert_eq!(sequences, (1..=events.len() as u64).collect(), "numbered without holes");
    }
}

proptest::proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn claims_are_true_of_every_kernel(events in proptest::collection::vec(event(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut world = World::new().await;
            for event in events {
                world.happen(event).await;
                world.check().await;
            }
        });
    }
}
