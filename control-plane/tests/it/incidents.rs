//! Incidents: who opens and closes them, and what a policy makes of them, from a request to the end of a grant.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use control_plane::identity::{Token, TokenHash};
use control_plane::rules::Refusal;
use control_plane::rules::actor::{Acting, Actor};
use control_plane::rules::incident::OPEN_MAX;
use control_plane::rules::policy::{Circumstances, Limits};
use control_plane::store::{Known, NewJoinToken, RequestFilter, Store, StoreError, Whose};
use proto::status::ErrorKind;
use proto::types::{
    Credential, EndReason, EventKind, Grant, GrantId, GrantState, Labels, NewExtension, NewIncident,
    NewPolicy, NewRequest, NewSubject, PolicyFiles, Request, RequestState, SubjectRole, Timestamp,
};

use super::KIND;
use super::policy::{AUTOMATIC, apply, files};
use super::world::{World, refused, until};
use crate::database::TestDatabase;

const WITHOUT: &str = "@id(\"incident\") @help(\"open one\")\n\
    forbid (principal, action, resource) unless { context.incidents.contains(\"inc-42\") };\n";

#[tokio::test]
async fn a_live_grant_ends_after_its_incident() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let policy = files(AUTOMATIC, &[("conditions/incident.cedar", WITHOUT)]);
    apply(&mut world.admin, 0, policy).await.expect("applied");
    let words = "rule `incident`: forbids it (what would help: open one)";
    refused(story.alice.request(300).await, ErrorKind::PermissionDenied, words);

    // Approvers and administrators, people or not; everybody sees it.
    let not_theirs = story.alice.open_incident("inc-42", 600).await;
    refused(not_theirs, ErrorKind::PermissionDenied, "may not call AccessService.OpenIncident");
    let malformed = story.dora.open_incident("INC 42", 600).await;
    refused(malformed, ErrorKind::InvalidArgument, "incident: `INC 42` is not a name");
    refused(
        story.dora.open_incident("inc-42", 32 * 24 * 3600).await,
        ErrorKind::InvalidArgument,
        "duration: ",
    );
    refused(story.dora.close_incident("inc-42").await, ErrorKind::NotFound, "incident `inc-42` is not known");
    let other = story.dora.open_incident("inc-41", 600).await.expect("opened");
    refused(story.alice.request(300).await, ErrorKind::PermissionDenied, words);
    let mut ci = world.subject("workload:ci", SubjectRole::Approver).await;
    let opened = ci.open_incident("inc-42", 600).await.expect("opened");
    assert_eq!((opened.by.as_str(), opened.closed.is_none()), ("workload:ci", true));
    assert_eq!(story.alice.incidents(false).await, [opened.clone(), other]);
    let event = world.last(EventKind::IncidentOpened).await;
    assert_eq!(
        (event.actor.as_str(), event.comment.as_str(), event.expires),
        ("workload:ci", "incident inc-42: for 10m: nobody can log in", Some(opened.until))
    );

    let request = story.alice.request(300).await.expect("an incident is open");
    assert_eq!(request.state, RequestState::Approved);
    // It outlives a restart.
    world.restart().await;
    let mut alice = world.caller(&story.alice.token).await;
    let mut dora = world.caller(&story.dora.token).await;
    alice.request(300).await.expect("an incident is open");
    let moved = dora.open_incident("inc-42", 900).await.expect("moved");
    assert_eq!((moved.opened, &moved.by), (opened.opened, &opened.by));
    assert!(moved.until > opened.until);
    let event = world.last(EventKind::IncidentOpened).await;
    assert_eq!(event.comment, "incident inc-42: from now on for 15m: nobody can log in");

    let closed = dora.close_incident("inc-42").await.expect("closed");
    assert_eq!(
        closed.closed.as_ref().and_then(|(_, by)| by.as_ref()),
        Some(&"user:dora".parse().expect("valid"))
    );
    refused(
        dora.close_incident("inc-42").await,
        ErrorKind::FailedPrecondition,
        "incident `inc-42` is closed",
    );
    let event = world.last(EventKind::IncidentClosed).await;
    assert_eq!(
        (event.actor.as_str(), event.reason.as_str(), event.comment.as_str()),
        ("user:dora", "closed", "incident inc-42: rolled back")
    );
    assert_eq!(alice.incidents(true).await[0], closed);
    refused(alice.request(300).await, ErrorKind::PermissionDenied, words);
    // Without a word of its host: as long as that may hold it, it is ending.
    let looked = async {
        while alice.grants(false).await.iter().any(|grant| grant.state.end_reason().is_none()) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), looked).await.expect("within a minute");
    let told = world.last(EventKind::GrantEnding).await;
    assert_eq!((told.actor.as_str(), told.reason.as_str()), ("system", "policy_changed"));
    assert!(told.comment.contains("rule `incident`: forbids it"), "{}", told.comment);
}

#[tokio::test]
async fn it_closes_by_itself() {
    let mut world = World::new().await;
    world.admin.open_incident("inc-42", 1).await.expect("opened");
    until(async || world.admin.clone().incidents(true).await[0].closed.is_some()).await;
    assert_eq!(world.admin.incidents(false).await, []);
    let event = world.last(EventKind::IncidentClosed).await;
    assert_eq!((event.actor.as_str(), event.reason.as_str()), ("system", "time"));
}

/// A store, a moment that only this moves on, and who acts.
struct Clockwork {
    store: Store,
    now: Timestamp,
    admin: Acting,
    olga: Acting,
    _database: TestDatabase,
}

impl Clockwork {
    /// With the policy of `docs/policies/on-call-incident`, and more of it.
    async fn new(more: &[(&str, &str)]) -> Self {
        let now = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
        let database = TestDatabase::new(KIND);
        Store::create(&database.database, &Token::for_subject().hash(), now).await.expect("made");
        let store = Store::open(&database.database).await.expect("opens");
        let acting = |id: &str| Acting { id: id.parse().expect("valid"), credential: Credential::Token };
        let (admin, olga) = (acting("user:admin"), acting("user:olga@example.com"));
        let new = NewSubject { id: olga.id.clone(), selectors: Vec::new(), role: SubjectRole::Member };
        store.add_subject(new, &Actor::System, now).await.expect("added");
        let token = NewJoinToken { hash: TokenHash::of("app-1"), expires: now };
        let host = "app-1".parse().expect("valid");
        store.add_host(&host, &Labels::default(), &token, &Actor::System, now).await.expect("added");
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/policies/on-call-incident");
        let mut files = read(&folder, "").expect("the example is there");
        for (path, text) in more {
            files.entry((*path).to_owned()).or_default().push_str(text);
        }
        let files = PolicyFiles::new(files).expect("within bounds");
        let new = NewPolicy { files, before: 0, comment: String::new(), restores: None };
        store.apply_policy(new, &admin, now).await.expect("applied");
        Self { store, now, admin, olga, _database: database }
    }

    fn wait(&mut self, minutes: u64) {
        self.now = self.now.plus(Duration::from_secs(60 * minutes));
    }

    async fn open(&self, id: &str, minutes: u64) -> Result<(), StoreError> {
        let (id, duration) = (id.parse().expect("valid"), Duration::from_secs(60 * minutes));
        let new = NewIncident { id, duration, reason: String::new() };
        self.store.open_incident(new, &self.admin, self.now).await.map(drop)
    }

    async fn close(&self, id: &str) {
        let id = id.parse().expect("valid");
        self.store.close_incident(&id, &self.admin, "", self.now).await.expect("closed");
    }

    /// Olga asks for half an hour, with a second factor.
    async fn ask(&self, role: &str) -> Result<Request, StoreError> {
        let new = NewRequest {
            resource: "orders-db".parse().expect("valid"),
            subject: None,
            hosts: Vec::new(),
            duration: Some(Duration::from_secs(30 * 60)),
            reason: "INC-42".parse().expect("valid"),
            idle: None,
            while_running: None,
            run: None,
            action: None,
            role: Some(role.parse().expect("valid")),
            key: None,
            draft: None,
        };
        let circumstances = circumstances();
        let known = Known { circumstances: &circumstances, limits: &LIMITS };
        self.store.create_request(new, &self.olga.id, &self.olga, known, self.now).await
    }

    async fn extend(&self, grant: GrantId, minutes: u64) -> Result<Grant, StoreError> {
        let circumstances = circumstances();
        let known = Known { circumstances: &circumstances, limits: &LIMITS };
        let new = NewExtension { grant, by: Duration::from_secs(60 * minutes), reason: None };
        self.store.extend_grant(new, &self.olga, known, self.now).await.map(|(_, grant)| grant)
    }

    /// How it is now, after the policy was asked about what is live.
    async fn state(&self, grant: GrantId) -> GrantState {
        self.store.end_what_is_not_permitted(self.now).await.expect("asked");
        let filter = RequestFilter { all: true, whose: Whose::Everybodys, limit: 1000 };
        let grants = self.store.grants(&filter).await.expect("reads");
        grants.into_iter().find(|found| found.id == grant).expect("is there").state
    }

    async fn record(&self) -> Vec<(EventKind, String)> {
        let events = self.store.events(0, 10_000).await.expect("reads").into_iter();
        let told = events.filter(|event| event.kind.as_str().starts_with("incident."));
        told.map(|event| (event.kind, format!("{}{}", event.comment, event.reason))).collect()
    }
}

const LIMITS: Limits = Limits {
    max_grant_duration: Duration::from_secs(12 * 3600),
    request_lifetime: Duration::from_secs(24 * 3600),
};

fn circumstances() -> Circumstances {
    Circumstances { mfa: true, ..Circumstances::default() }
}

/// Every file below, by its path from there.
fn read(folder: &Path, below: &str) -> io::Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = format!("{below}{}", entry.file_name().to_string_lossy());
        match entry.file_type()?.is_dir() {
            true => files.append(&mut read(&entry.path(), &format!("{path}/"))?),
            false => {
                files.insert(path, fs::read_to_string(entry.path())?);
            }
        }
    }
    Ok(files)
}

#[track_caller]
fn needs_one<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    match result {
        Err(StoreError::Refused(refusal @ Refusal::NotPermitted { .. })) => {
            let text = refusal.to_string();
            assert!(text.contains("open an incident, or ask for the role `prod`"), "{text}");
        }
        other => panic!("{other:?}"),
    }
}

/// The example of the documentation: nobody has to approve it while an incident is open.
#[tokio::test]
async fn the_example_of_the_documentation_gives_access_in_an_incident_only() {
    let mut world = Clockwork::new(&[]).await;
    needs_one(world.ask("incident").await);
    assert_eq!(world.ask("prod").await.expect("made").state, RequestState::Pending);
    world.open("inc-42", 10).await.expect("opened");
    let request = world.ask("incident").await.expect("made");
    assert_eq!(request.state, RequestState::Approved);
    let grant = request.grant.expect("nobody has to approve it");
    // It lives on with another incident.
    world.wait(5);
    world.open("inc-43", 60).await.expect("opened");
    world.close("inc-42").await;
    assert_eq!(world.state(grant).await.end_reason(), None);
    world.close("inc-43").await;
    assert_eq!(world.state(grant).await.end_reason(), Some(EndReason::PolicyChanged));
    needs_one(world.ask("incident").await);

    // What was open and closes by itself, whether or not anybody has noted that; the record has both ends all the same.
    world.open("inc-42", 10).await.expect("opened");
    let grant = world.ask("incident").await.expect("made").grant.expect("nobody has to approve it");
    world.wait(9);
    assert_eq!(world.state(grant).await.end_reason(), None);
    world.wait(1);
    assert_eq!(world.state(grant).await.end_reason(), Some(EndReason::PolicyChanged));
    needs_one(world.ask("incident").await);
    world.open("inc-42", 10).await.expect("opened");
    world.ask("incident").await.expect("made");
    let told = |kind, text: &str| (kind, text.to_owned());
    assert_eq!(
        world.record().await,
        [
            told(EventKind::IncidentOpened, "incident inc-42: for 10m"),
            told(EventKind::IncidentOpened, "incident inc-43: for 1h"),
            told(EventKind::IncidentClosed, "incident inc-42closed"),
            told(EventKind::IncidentClosed, "incident inc-43closed"),
            told(EventKind::IncidentOpened, "incident inc-42: for 10m"),
            told(EventKind::IncidentClosed, "incident inc-42time"),
            told(EventKind::IncidentOpened, "incident inc-42: for 10m"),
        ]
    );
}

/// Activation, a beginning at a moment and an extension each ask anew.
#[tokio::test]
async fn what_begins_or_is_extended_later_asks_for_an_incident_then() {
    // The moment of the clock is ten minutes after the first.
    let role = |name: &str, clock: &str| {
        format!(
            "\n[[role]]\nname = \"{name}\"\nto = [\"group:responders\"]\nresources = [\"env=prod\"]\nhosts = [\"env=prod\"]\n\
             maximum_duration = \"2h\"\nautomatic = true\n{clock}\n"
        )
    };
    let roles = role("at-hand", "clock = \"activation\"")
        + &role("at-a-moment", "clock = \"2026-11-18T11:16:40Z\"")
        + &role("longer", "extension = { times = 8, by = \"30m\", approval = false }");
    let forbid = "\n@id(\"begin\") @help(\"open an incident, or ask for the role `prod`\")\n\
        forbid (principal, action in [Action::\"activate\", Action::\"keep\"], resource) unless { context.incident_active };\n\
        @id(\"longer\") @help(\"open an incident, or ask for the role `prod`\")\n\
        forbid (principal, action, resource == Role::\"longer\") unless { context.incident_active };\n";
    let mut world = Clockwork::new(&[("roles.toml", &roles), ("conditions/begin.cedar", forbid)]).await;

    let grant = world.ask("at-hand").await.expect("made").grant.expect("approved");
    let activate = async |world: &Clockwork| {
        world.store.activate_grant(grant, &world.olga, circumstances(), world.now).await
    };
    needs_one(activate(&world).await);
    world.open("inc-42", 5).await.expect("opened");
    assert_eq!(activate(&world).await.expect("begins").state, GrantState::Activating);

    let longer = world.ask("longer").await.expect("made").grant.expect("approved");
    let until = world.extend(longer, 10).await.expect("an incident is open").expires;
    world.close("inc-42").await;
    needs_one(world.extend(longer, 10).await);
    world.open("inc-42", 5).await.expect("opened");
    assert_eq!(world.extend(longer, 10).await.expect("again").expires, until.plus(Duration::from_secs(600)));
    assert_eq!(world.state(longer).await.end_reason(), None);

    let with = world.ask("at-a-moment").await.expect("made").grant.expect("approved");
    world.wait(10);
    assert_eq!(world.state(grant).await.end_reason(), Some(EndReason::PolicyChanged));
    world.open("inc-43", 5).await.expect("opened");
    while world.store.begin_due(world.now).await.expect("looks") {}
    assert_eq!(world.state(with).await, GrantState::Activating);
}

#[tokio::test]
async fn one_whose_moment_comes_without_an_incident_ends() {
    let role = "\n[[role]]\nname = \"at-a-moment\"\nto = [\"group:responders\"]\nresources = [\"env=prod\"]\nhosts = [\"env=prod\"]\n\
        maximum_duration = \"2h\"\nautomatic = true\nclock = \"2026-11-18T11:16:40Z\"\n";
    let forbid = "\n@id(\"begin\")\nforbid (principal, action == Action::\"activate\", resource) unless { context.incident_active };\n";
    let mut world = Clockwork::new(&[("roles.toml", role), ("conditions/begin.cedar", forbid)]).await;
    world.open("inc-42", 5).await.expect("opened");
    let grant = world.ask("at-a-moment").await.expect("made").grant.expect("approved");
    world.wait(10);
    while world.store.begin_due(world.now).await.expect("looks") {}
    assert_eq!(world.state(grant).await, GrantState::Ended(EndReason::PolicyChanged));
}

#[tokio::test]
async fn there_is_room_for_so_many() {
    let mut world = Clockwork::new(&[]).await;
    for number in 0..OPEN_MAX {
        world.open(&format!("inc-{number}"), 10).await.expect("there is room");
    }
    let full = world.open("one-more", 10).await.expect_err("there is none");
    assert_eq!(full.to_string(), "1000 incidents are open already, and no more can be");
    world.open("inc-7", 20).await.expect("it is one of them");
    world.ask("incident").await.expect("conditions see them all");
    world.wait(10);
    world.open("one-more", 10).await.expect("all but one are over");
    let open = world.store.incidents(false, 1000, world.now).await.expect("reads");
    assert_eq!(open.iter().map(|incident| incident.id.as_str()).collect::<Vec<_>>(), ["one-more", "inc-7"]);
}
