//! The rule by which one set replaces another, over time.

use proto::types::{NewResource, NewSubject, SubjectRole};

use super::super::plan::{Wanted, reconcile};
use super::*;

const SECOND: u64 = 1_000_000_000;

fn set(generation: u64, grants: &[(GrantId, u64)]) -> GrantSet {
    let live = |(id, seconds): &(GrantId, u64)| LiveGrant {
        id: *id,
        subject: 1.try_into().expect("not 0"),
        resource: 1.try_into().expect("not 0"),
        remaining: Duration::from_secs(*seconds),
        idle: None,
        while_running: None,
        run: None,
        action: None,
        extensions: 0,
    };
    GrantSet { generation, resources: vec![], subjects: vec![], grants: grants.iter().map(live).collect() }
}

/// With the resource and the subject that its grants name.
fn known(set: GrantSet) -> GrantSet {
    let ports = vec!["tcp/5432".parse().expect("valid")];
    let address = "10.0.0.1".parse().expect("valid");
    let resource = NewResource::new("db".parse().expect("valid"), vec![address], ports).expect("valid");
    let subject =
        NewSubject { id: "user:alice".parse().expect("valid"), selectors: vec![], role: SubjectRole::Member };
    GrantSet {
        resources: vec![Resource::numbered(1.try_into().expect("not 0"), resource)],
        subjects: vec![Subject::numbered(1.try_into().expect("not 0"), subject)],
        ..set
    }
}

/// Those that let somebody through at this second, by id.
fn live(grants: &Grants, second: u64) -> Vec<(GrantId, u64)> {
    let mut live: Vec<_> = deadlines(grants).into_iter().filter(|(_, deadline)| *deadline > second).collect();
    live.sort_unstable_by_key(|(_, deadline)| *deadline);
    live
}

fn deadlines(grants: &Grants) -> Vec<(GrantId, u64)> {
    grants
        .wanted(&Runs::default())
        .iter()
        .map(|grant| (grant.id, grant.expires_at_boot_ns / SECOND))
        .collect()
}

#[test]
fn generations_go_forward_within_a_timeline() {
    let (here, elsewhere) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let mut grants = Grants::default();
    assert_eq!(grants.applied(), None);
    assert_eq!(grants.accept(here, set(5, &[]), 0), Accepted::Changed);
    assert_eq!(grants.accept(here, set(5, &[]), 0), Accepted::Same);
    assert_eq!(grants.accept(here, set(4, &[]), 0), Accepted::Older);
    assert_eq!(grants.applied(), Some((here, 5)));
    assert_eq!(grants.accept(elsewhere, set(1, &[]), 0), Accepted::Changed);
    assert_eq!(grants.applied(), Some((elsewhere, 1)));
}

#[test]
fn a_delta_changes_what_it_names_and_nothing_else() {
    let (here, elsewhere) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let [kept, gone, new] = [GrantId::new(), GrantId::new(), GrantId::new()];
    let nothing = |since, generation| Delta {
        since,
        generation,
        put_resources: vec![],
        removed_resources: vec![],
        put_subjects: vec![],
        removed_subjects: vec![],
        put_grants: vec![],
        removed_grants: vec![],
    };
    let mut grants = Grants::default();
    grants.accept(here, known(set(3, &[(kept, 60), (gone, 600)])), 0);
    assert!(grants.change(elsewhere, &nothing(3, 4), 0).is_err());
    assert!(grants.change(here, &nothing(2, 4), 0).is_err());
    let put_grants = set(0, &[(new, 90)]).grants;
    let delta = Delta { put_grants, removed_grants: vec![gone], ..nothing(3, 5) };
    grants.change(here, &delta, 10 * SECOND).expect("fits");
    assert_eq!(grants.applied(), Some((here, 5)));
    assert_eq!(live(&grants, 10), [(kept, 60), (new, 100)]);
    // What is put again is not longer than it was.
    let delta = Delta { put_grants: set(0, &[(kept, 600)]).grants, ..nothing(5, 6) };
    grants.change(here, &delta, 10 * SECOND).expect("fits");
    assert_eq!(live(&grants, 10), [(kept, 60), (new, 100)]);
}

#[test]
fn what_ended_here_does_not_come_back_by_a_change_of_others() {
    let (here, id, other) = (Uuid::from_u128(1), GrantId::new(), GrantId::new());
    let mut grants = Grants::default();
    grants.recall(
        Some((here, known(set(3, &[(id, 60)])))),
        vec![EndedGrant { grant: id, reason: HostEnd::Idle }],
        BTreeMap::new(),
        0,
    );
    let delta = |since, put_grants, removed_grants| Delta {
        since,
        generation: since + 1,
        put_resources: vec![],
        removed_resources: vec![],
        put_subjects: vec![],
        removed_subjects: vec![],
        put_grants,
        removed_grants,
    };
    grants.change(here, &delta(3, set(0, &[(other, 60)]).grants, vec![]), 0).expect("fits");
    assert_eq!(grants.end_of(id), Some(HostEnd::Idle), "the control plane may not know it yet");
    grants.change(here, &delta(4, set(0, &[(id, 60)]).grants, vec![]), 0).expect("fits");
    assert_eq!(live(&grants, 0), [(other, 60)]);
    grants.change(here, &delta(5, vec![], vec![id]), 0).expect("fits");
    assert_eq!(grants.end_of(id), None, "it knows it");
}

#[test]
fn an_outage_ends_what_it_is_to_end_and_hearing_again_goes_on() {
    let id = GrantId::new();
    let with = |outage: &str| {
        let mut set = known(set(3, &[(id, 600)]));
        set.resources[0].options.outage = outage.parse().expect("valid");
        let mut grants = Grants::default();
        grants.accept(Uuid::from_u128(1), set, 0);
        grants
    };
    let ends = |grants: &Grants| grants.wanted(&Runs::default())[0].expires_at_boot_ns / SECOND;
    let mut held = with("hold");
    assert!(!held.hear(10 * SECOND), "nothing moves by it");
    assert_eq!(ends(&held), 600);
    let mut cut = with("cut");
    assert_eq!(ends(&cut), 0, "nobody knows when it was last heard");
    assert!(cut.hear(10 * SECOND));
    assert_eq!(ends(&cut), 25);
    assert!(cut.hear(20 * SECOND));
    assert!(!cut.hear(15 * SECOND), "an older answer came late");
    assert_eq!(ends(&cut), 35);
    assert_eq!(
        cut.remaining_set(20 * SECOND).grants[0].remaining.as_secs(),
        580,
        "it is not shorter for that"
    );
    let mut shrunk = with("shrink:300s");
    shrunk.hear(10 * SECOND);
    assert_eq!(ends(&shrunk), 310);
    shrunk.hear(500 * SECOND);
    assert_eq!(ends(&shrunk), 600, "never beyond its deadline");
}

#[test]
fn the_next_agent_finds_in_the_maps_when_it_was_heard() {
    let mut set = known(set(3, &[(GrantId::new(), 600)]));
    set.resources[0].options.outage = "shrink:60s".parse().expect("valid");
    let mut before = Grants::default();
    before.accept(Uuid::from_u128(1), set.clone(), 0);
    before.hear(30 * SECOND);
    let mut entries = Entries::default();
    let wanted = Wanted { grants: before.wanted(&Runs::default()), ..Wanted::default() };
    reconcile(&mut entries, &wanted, 64, 30 * SECOND, |_| Ok::<(), std::convert::Infallible>(()));
    let mut next = Grants::default();
    next.recall(Some((Uuid::from_u128(1), set)), Vec::new(), BTreeMap::new(), 0);
    next.hear_from_maps(&entries);
    assert_eq!(next.wanted(&Runs::default()), before.wanted(&Runs::default()));
}

#[test]
fn what_ran_out_does_not_look_like_news_of_the_control_plane() {
    let (timeline, over) = (Uuid::from_u128(1), GrantId::new());
    let mut set = known(set(3, &[(over, 69)]));
    set.resources[0].options.outage = "cut".parse().expect("valid");
    let mut before = Grants::default();
    before.accept(timeline, set.clone(), 0);
    before.hear(SECOND);
    // It was cut off long ago when it runs out by the control plane's word, which came late.
    before.accept(timeline, GrantSet { generation: 4, grants: vec![], ..set.clone() }, 69 * SECOND);
    let mut entries = Entries::default();
    let wanted = Wanted { grants: before.wanted(&Runs::default()), ..Wanted::default() };
    reconcile(&mut entries, &wanted, 64, 69 * SECOND, |_| Ok::<(), std::convert::Infallible>(()));
    let mut next = Grants::default();
    next.recall(
        Some((timeline, GrantSet { generation: 5, ..set })),
        Vec::new(),
        BTreeMap::new(),
        69 * SECOND,
    );
    next.hear_from_maps(&entries);
    assert_eq!(live(&next, 16), [], "it was last heard in the first second");
}

#[test]
fn a_deadline_never_moves_later() {
    let (timeline, id) = (Uuid::from_u128(1), GrantId::new());
    let mut grants = Grants::default();
    grants.accept(timeline, set(1, &[(id, 60)]), 10 * SECOND);
    assert_eq!(deadlines(&grants), [(id, 70)]);
    // The same grant, sent again late: its remaining time was measured before a delay.
    grants.accept(timeline, set(2, &[(id, 60)]), 20 * SECOND);
    assert_eq!(deadlines(&grants), [(id, 70)]);
    // Earlier is taken.
    grants.accept(timeline, set(3, &[(id, 5)]), 20 * SECOND);
    assert_eq!(deadlines(&grants), [(id, 25)]);
    // Another timeline changes nothing about it.
    grants.accept(Uuid::from_u128(2), set(1, &[(id, 600)]), 20 * SECOND);
    assert_eq!(deadlines(&grants), [(id, 25)]);
}

#[test]
fn a_deadline_moves_later_when_somebody_has_extended_the_grant() {
    let (timeline, id) = (Uuid::from_u128(1), GrantId::new());
    let extended = |generation, seconds, extensions| {
        let mut set = set(generation, &[(id, seconds)]);
        set.grants[0].extensions = extensions;
        set
    };
    let mut grants = Grants::default();
    grants.accept(timeline, extended(1, 60, 0), 10 * SECOND);
    grants.accept(timeline, extended(2, 120, 1), 20 * SECOND);
    assert_eq!(deadlines(&grants), [(id, 140)]);
    // Told again, it is not moved again.
    grants.accept(timeline, extended(3, 600, 1), 30 * SECOND);
    assert_eq!(deadlines(&grants), [(id, 140)]);
    // What a copy of the control plane's database says that knows nothing of it counts as far as it is earlier.
    grants.accept(Uuid::from_u128(2), extended(1, 600, 0), 30 * SECOND);
    assert_eq!(deadlines(&grants), [(id, 140)]);
    // A restart knows how often it was extended.
    let kept = grants.remaining_set(40 * SECOND);
    let mut restarted = Grants::default();
    restarted.accept(timeline, kept, 40 * SECOND);
    restarted.accept(timeline, extended(9, 600, 1), 50 * SECOND);
    assert_eq!(deadlines(&restarted), [(id, 140)]);
    // The host was not heard when it was extended: here it has run out meanwhile, and it lives again.
    restarted.accept(timeline, extended(10, 60, 2), 150 * SECOND);
    assert_eq!(live(&restarted, 150), [(id, 210)]);
}

/// What connections were admitted by goes on: the same slot, the same epoch, another deadline.
#[test]
fn an_extension_moves_a_deadline_and_nothing_else() {
    let (timeline, id) = (Uuid::from_u128(1), GrantId::new());
    let (mut grants, mut entries) = (Grants::default(), Entries::default());
    let reconciled = |grants: &Grants, entries: &mut Entries, now_boot_ns| {
        let mut writes = Vec::new();
        let wanted = Wanted { grants: grants.wanted(&Runs::default()), ..Wanted::default() };
        reconcile(entries, &wanted, 64, now_boot_ns, |write| {
            writes.push(write.to_string());
            Ok::<(), std::convert::Infallible>(())
        });
        writes
    };
    grants.accept(timeline, known(set(1, &[(id, 60)])), 0);
    reconciled(&grants, &mut entries, 0);
    let mut longer = known(set(2, &[(id, 120)]));
    longer.grants[0].extensions = 1;
    let before = entries.grants.clone();
    grants.accept(timeline, longer, 30 * SECOND);
    let writes = reconciled(&grants, &mut entries, 30 * SECOND);
    assert_eq!(entries.grants, before, "whatever refers to its slot and epoch goes on");
    assert_eq!(writes, ["set the deadline of slot 0", "name slot 0"]);
    assert!(entries.deadlines.values().any(|deadline| *deadline == 150 * SECOND));
}

#[test]
fn what_ran_out_stays_so_when_the_control_planes_clock_is_set_back() {
    let (timeline, over) = (Uuid::from_u128(1), GrantId::new());
    let set = known(set(1, &[(over, 60)]));
    let mut grants = Grants::default();
    grants.accept(timeline, set.clone(), 0);
    let mut delta = Delta {
        since: 1,
        generation: 2,
        put_resources: vec![],
        removed_resources: vec![],
        put_subjects: vec![],
        removed_subjects: vec![],
        put_grants: vec![],
        removed_grants: vec![],
    };
    grants.change(timeline, &delta, 70 * SECOND).expect("it fits");
    grants.accept(timeline, GrantSet { generation: 3, ..set }, 80 * SECOND);
    assert_eq!(deadlines(&grants), [(over, 60)], "it is named again, with a minute left");
    (delta.since, delta.generation, delta.removed_grants) = (3, 4, vec![over]);
    grants.change(timeline, &delta, 90 * SECOND).expect("it fits");
    assert_eq!(deadlines(&grants), [(over, 60)], "a denial still says that it is over");
    assert_eq!(grants.remaining_set(90 * SECOND).grants, []);
}

#[test]
fn what_ran_out_is_remembered_for_a_while_and_what_was_revoked_is_not() {
    let (timeline, short, long) = (Uuid::from_u128(1), GrantId::new(), GrantId::new());
    let mut grants = Grants::default();
    grants.accept(timeline, set(1, &[(short, 10), (long, 60)]), 0);
    grants.accept(timeline, set(2, &[]), 10 * SECOND - 1);
    assert_eq!(deadlines(&grants), [(short, 9)], "it ends when it is taken away, not later");
    assert!(grants.remaining_set(10 * SECOND).grants.is_empty());
    grants.accept(timeline, set(3, &[]), (10 + 10 * 60) * SECOND);
    assert_eq!(deadlines(&grants), []);
}

#[test]
fn what_is_kept_on_disk_comes_back_with_the_same_deadlines() {
    let (timeline, id) = (Uuid::from_u128(1), GrantId::new());
    let mut grants = Grants::default();
    grants.accept(timeline, set(7, &[(id, 60)]), 5 * SECOND);
    let kept = grants.remaining_set(25 * SECOND);
    let mut restarted = Grants::default();
    restarted.accept(timeline, kept, 25 * SECOND);
    assert_eq!(deadlines(&restarted), [(id, 65)]);
    assert_eq!(restarted.applied(), Some((timeline, 7)));
}

/// A host in which one cgroup may have processes and something was let through at a moment.
struct Seen(Option<u64>, Option<u64>);

impl Sight for Seen {
    fn has_run(&self, _: RunId, subject: SubjectNumber) -> bool {
        self.0.is_some() && subject.get() == 1
    }

    fn running(&self, path: &CgroupPath) -> Option<u64> {
        assert_eq!(path.as_str(), "/job");
        self.0
    }

    fn last_active_boot_ns(&self, _: &WantedGrant, _: Option<RunId>) -> Option<u64> {
        self.1
    }
}

const NOTHING: Seen = Seen(None, None);

fn with(idle_s: Option<u64>, while_running: bool) -> (Grants, GrantSet, GrantId) {
    let id = GrantId::new();
    let mut set = set(1, &[(id, 600)]);
    set.grants[0].idle = idle_s.map(Duration::from_secs);
    set.grants[0].while_running = while_running.then(|| "/job".parse().expect("valid"));
    let mut grants = Grants::default();
    grants.accept(Uuid::from_u128(1), set.clone(), SECOND);
    (grants, set, id)
}

#[test]
fn ends_are_looked_for_only_where_there_may_be_some() {
    let (timeline, id) = (Uuid::from_u128(1), GrantId::new());
    let mut grants = Grants::default();
    grants.accept(timeline, set(1, &[(id, 60)]), 0);
    assert!(!grants.may_find_ends(59 * SECOND), "its deadline is the kernel's to see");
    // What is remembered of one that was over is forgotten by the same look.
    grants.accept(timeline, set(2, &[]), 60 * SECOND);
    let forgotten_boot_ns = (60 + 10 * 60) * SECOND;
    assert!(!grants.may_find_ends(forgotten_boot_ns - 1) && grants.may_find_ends(forgotten_boot_ns));
    assert!(!grants.find_ends(&NOTHING, forgotten_boot_ns) && !grants.may_find_ends(forgotten_boot_ns));
    for (idle, task) in [(Some(60), false), (None, true)] {
        assert!(with(idle, task).0.may_find_ends(0), "idle {idle:?}, task {task}");
    }
    grants.accept(timeline, set(3, &[(id, 900)]), forgotten_boot_ns);
    grants.use_up(id, RunId::new());
    assert!(grants.may_find_ends(forgotten_boot_ns), "it ends with the run that has used it up");
}

#[test]
fn an_idle_grant_ends() {
    let (mut grants, _, id) = with(Some(60), false);
    let active = |seconds: u64| Seen(None, Some(seconds * SECOND));
    // From the moment it came here, whatever was before.
    assert!(!grants.find_ends(&active(0), 60 * SECOND));
    // While nobody knows, it is not idle.
    assert!(!grants.find_ends(&NOTHING, 61 * SECOND));
    // Each time that something is, the limit begins anew.
    assert!(!grants.find_ends(&active(50), 61 * SECOND));
    assert!(!grants.find_ends(&active(50), 110 * SECOND - 1));
    assert!(!grants.find_ends(&active(100), 110 * SECOND));
    assert_eq!(grants.ended(), []);
    assert!(grants.find_ends(&active(100), 160 * SECOND));
    assert_eq!(grants.ended(), [EndedGrant { grant: id, reason: HostEnd::Idle }]);
    assert_eq!(deadlines(&grants), [(id, 160)], "a denial still says that it is over");
    assert!(!grants.find_ends(&active(100), 161 * SECOND), "it ends once");
}

#[test]
fn idleness_goes_on_across_a_restart() {
    let (_, set, id) = with(Some(60), false);
    let mut restarted = Grants::default();
    restarted.recall(Some((Uuid::from_u128(1), set)), Vec::new(), BTreeMap::new(), 100 * SECOND);
    assert!(!restarted.find_ends(&Seen(None, Some(50 * SECOND)), 100 * SECOND));
    assert!(restarted.find_ends(&Seen(None, Some(50 * SECOND)), 110 * SECOND));
    assert_eq!(restarted.end_of(id), Some(HostEnd::Idle));
}

#[test]
fn a_grant_ends_with_its_task() {
    let (mut grants, _, id) = with(None, true);
    let running = |id| Seen(Some(id), None);
    assert!(!grants.find_ends(&running(7), 2 * SECOND));
    assert!(!grants.find_ends(&running(7), 3 * SECOND));
    let (mut restarted, mut gone) = (grants.clone(), grants);
    assert!(gone.find_ends(&NOTHING, 4 * SECOND));
    assert!(restarted.find_ends(&running(8), 4 * SECOND), "another cgroup at the same path is another task");
    for grants in [gone, restarted] {
        assert_eq!(grants.ended(), [EndedGrant { grant: id, reason: HostEnd::TaskExit }]);
    }
}

#[test]
fn a_grant_of_a_run_opens_to_it_alone_and_ends_with_it() {
    let alice: SubjectId = "user:alice".parse().expect("valid");
    let mut runs = Runs::default();
    let run = runs.open(RunId::new(), alice, 42).expect("there is room");
    let (ordinary, of_run) = (GrantId::new(), GrantId::new());
    let mut set = known(set(1, &[(ordinary, 60), (of_run, 60)]));
    set.grants[1].run = Some(run.id);
    let mut grants = Grants::default();
    grants.accept(Uuid::from_u128(1), set.clone(), SECOND);
    let opens = |grants: &Grants, runs: &Runs| {
        let wanted = grants.wanted(runs);
        wanted.iter().map(|grant| (grant.id, grant.subject.get())).collect::<Vec<_>>()
    };
    let number = run.number.get();
    assert_eq!(opens(&grants, &runs), [(ordinary, 1), (ordinary, number), (of_run, number)]);
    assert_eq!(opens(&grants, &Runs::default()), [(ordinary, 1)], "where the run is not, it opens nothing");
    // A restart keeps whom it is for.
    let mut restarted = Grants::default();
    restarted.recall(
        Some((Uuid::from_u128(1), grants.remaining_set(SECOND))),
        Vec::new(),
        BTreeMap::new(),
        SECOND,
    );
    assert_eq!(opens(&restarted, &runs), opens(&grants, &runs));
    // The run is there; and then it is not.
    let running = Seen(Some(1), None);
    assert!(!grants.find_ends(&running, 2 * SECOND));
    assert!(grants.find_ends(&NOTHING, 3 * SECOND));
    assert_eq!(grants.ended(), [EndedGrant { grant: of_run, reason: HostEnd::TaskExit }]);
    assert_eq!(opens(&grants, &Runs::default()), [(ordinary, 1)]);
    // What ran out is over in the run, too, and nowhere else.
    let mut over = Grants::default();
    over.accept(Uuid::from_u128(1), set.clone(), SECOND);
    over.accept(Uuid::from_u128(1), GrantSet { generation: 2, grants: vec![], ..set }, 61 * SECOND);
    let mut lapsed = opens(&over, &runs);
    lapsed.sort_unstable();
    assert_eq!(lapsed, [(ordinary, 1), (ordinary, number), (of_run, number)]);
}

#[test]
fn a_grant_of_one_action_opens_once_to_the_run_that_has_begun_it() {
    let alice: SubjectId = "user:alice".parse().expect("valid");
    let bob: SubjectId = "user:bob".parse().expect("valid");
    let action =
        Action { executable: "/bin/true".parse().expect("valid"), sha256: [7; 32], arguments: vec![] };
    let mut runs = Runs::default();
    let [run, other] = [42, 43].map(|cgroup| runs.open(RunId::new(), alice.clone(), cgroup).expect("room"));
    let id = GrantId::new();
    let mut set = known(set(1, &[(id, 60)]));
    set.grants[0].action = Some(action.clone());
    let mut grants = Grants::default();
    grants.accept(Uuid::from_u128(1), set.clone(), SECOND);
    let opens =
        |grants: &Grants| grants.wanted(&runs).iter().map(|grant| grant.subject.get()).collect::<Vec<_>>();
    let running = Seen(Some(1), None);
    assert_eq!(opens(&grants), [0; 0]);
    assert!(!grants.find_ends(&NOTHING, 2 * SECOND), "it waits");
    // Whose it is, what it is for, and until when.
    let ask = |grants: &Grants, subject: &SubjectId, run, now| grants.action(id, subject, run, now).cloned();
    assert_eq!(ask(&grants, &alice, run.id, SECOND), Ok(action));
    assert_eq!(ask(&grants, &bob, run.id, SECOND), Err(RunRefusal::UnknownGrant));
    assert_eq!(ask(&grants, &alice, run.id, 61 * SECOND), Err(RunRefusal::UnknownGrant));
    let unknown = grants.action(GrantId::new(), &alice, run.id, SECOND).cloned();
    assert_eq!(unknown, Err(RunRefusal::UnknownGrant));
    // It is used, and opens to that run; nobody uses it again, after whatever restart.
    grants.use_up(id, run.id);
    assert_eq!(opens(&grants), [run.number.get()]);
    assert_eq!(ask(&grants, &alice, other.id, SECOND), Err(RunRefusal::UsedGrant));
    for kept in [Some((Uuid::from_u128(1), grants.remaining_set(SECOND))), None] {
        let mut restarted = Grants::default();
        restarted.recall(kept, Vec::new(), BTreeMap::new(), SECOND);
        restarted.recall_used(grants.used().clone());
        restarted.accept(Uuid::from_u128(1), GrantSet { generation: 2, ..set.clone() }, SECOND);
        assert_eq!(opens(&restarted), [run.number.get()]);
        assert_eq!(ask(&restarted, &alice, run.id, SECOND), Err(RunRefusal::UsedGrant));
        // The run is over, and the grant with it.
        assert!(!restarted.find_ends(&running, 2 * SECOND));
        assert!(restarted.find_ends(&NOTHING, 3 * SECOND));
        assert_eq!(restarted.ended(), [EndedGrant { grant: id, reason: HostEnd::TaskExit }]);
        assert_eq!(ask(&restarted, &alice, run.id, SECOND), Err(RunRefusal::UsedGrant));
        restarted.accept(
            Uuid::from_u128(1),
            GrantSet { generation: 3, grants: vec![], ..set.clone() },
            SECOND,
        );
        assert_eq!(restarted.used().len(), 0, "the control plane knows");
    }
}

#[test]
fn what_has_ended_here_never_comes_back() {
    let (mut grants, set, id) = with(None, true);
    assert!(grants.find_ends(&NOTHING, 2 * SECOND));
    // Sets that were under way still name it.
    let again = GrantSet { generation: 2, ..set.clone() };
    assert_eq!(grants.accept(Uuid::from_u128(1), again.clone(), 3 * SECOND), Accepted::Changed);
    assert_eq!((deadlines(&grants), grants.end_of(id)), (vec![(id, 2)], Some(HostEnd::TaskExit)));
    // Nor does it after a restart, whether it was in the set that was kept or is in the next one.
    let mut restarted = Grants::default();
    restarted.recall(Some((Uuid::from_u128(1), again)), grants.ended(), BTreeMap::new(), 4 * SECOND);
    assert_eq!(deadlines(&restarted), []);
    restarted.accept(Uuid::from_u128(1), GrantSet { generation: 3, ..set.clone() }, 4 * SECOND);
    assert_eq!((deadlines(&restarted), restarted.ended()), (vec![], grants.ended()));
    assert!(restarted.remaining_set(4 * SECOND).grants.is_empty());
    // A set without it says that the control plane knows.
    let without = GrantSet { generation: 4, grants: vec![], ..set };
    restarted.accept(Uuid::from_u128(1), without, 5 * SECOND);
    assert_eq!(restarted.ended(), []);
}

/// The control plane's clock was set back, and by it the grants begin anew.
#[test]
fn neither_a_restart_nor_a_boot_moves_a_deadline() {
    let here = Uuid::from_u128(1);
    let [over, short, long] = [GrantId::new(), GrantId::new(), GrantId::new()];
    let mut grants = Grants::default();
    grants.accept(here, set(3, &[(over, 10), (short, 60), (long, 600)]), 0);
    assert_eq!(grants.next_deadline(0), Some(10 * SECOND));
    assert_eq!(grants.next_deadline(10 * SECOND), Some(60 * SECOND));
    let left = |seconds| Duration::from_secs(seconds);
    assert_eq!(grants.left(20 * SECOND), [(over, left(0))].into());

    // The next agent of the same boot has what goes on in its set.
    let mut restarted = Grants::default();
    let goes_on = grants.remaining_set(20 * SECOND);
    restarted.recall(Some((here, goes_on)), Vec::new(), grants.left(20 * SECOND), 20 * SECOND);
    // Of another boot it has none, and knows for how long each can go on at the most.
    let mut booted = Grants::default();
    let at_most = [(over, left(0)), (short, left(40)), (long, left(580))].into();
    booted.recall(Some((here, GrantSet { generation: 0, ..set(3, &[]) })), Vec::new(), at_most, 20 * SECOND);
    for mut next in [restarted, booted.clone()] {
        let again = set(4, &[(over, 3600), (short, 3600), (long, 300)]);
        next.accept(here, again, 30 * SECOND);
        assert_eq!(deadlines(&next), [(over, 20), (short, 60), (long, 330)]);
        assert_eq!(next.left(30 * SECOND), [(over, left(0))].into(), "and the next one knows it, too");
        next.accept(here, set(5, &[(long, 300)]), 31 * SECOND);
        assert_eq!(next.left(31 * SECOND), BTreeMap::new(), "the control plane is done with the others");
    }
    // Nor does a change that names them again.
    let delta = Delta {
        since: 3,
        generation: 4,
        put_resources: vec![],
        removed_resources: vec![],
        put_subjects: vec![],
        removed_subjects: vec![],
        put_grants: set(0, &[(short, 3600)]).grants,
        removed_grants: vec![over],
    };
    let mut changed = booted;
    changed.accept(here, known(set(3, &[])), 20 * SECOND);
    changed.latest = [(over, 20 * SECOND), (short, 60 * SECOND)].into();
    changed.change(here, &delta, 30 * SECOND).expect("fits");
    assert_eq!((deadlines(&changed), changed.latest.len()), (vec![(short, 60)], 0));
}
