//! Which processes are whose: what comes and goes is bound and let go of, a container by a real runtime is known by its id, and
//! nobody walks into what is somebody else's. The agent runs whole, on a cgroup of the test's own that stands for the root.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::path::Path;
use std::time::{Duration, Instant};

use agent::config::Config;
use agent::kubernetes::PodsFile;
use agent::observe::Cgroups;
use agent::rules::layouts::PodUid;
use agent::rules::pods::{Pod, Pods, PodsChange};
use agent_ebpf::abi::map;
use anyhow::{Context, Result, bail};
use proto::types::{GrantSet, HostState, NewSubject, Protocol, Selector, Subject, SubjectRole};
use tests::api_server::{Answer, ApiServer, line, list, pod};
use tests::container::{Container, cgroup_of, connect_line, new_id, runtimes};
use tests::ensure_eq;
use tests::listener::Listener;
use tests::probe::Attempt;
use tests::process::in_cgroup;
use tests::runner::{Choosy, Outcome, Test};
use tests::sandbox::{Cgroup, Sandbox};
use tests::stage::SOON;

use crate::fixture::{RESOURCE, SUBJECT, reaches, resource};
use crate::proof::{Running, live_grant, pair};

pub(crate) const TESTS: &[Test] = &[
    ("workloads::a_unit_is_bound_as_it_comes_and_goes", a_unit_is_bound_as_it_comes_and_goes),
    ("workloads::a_thousand_cgroups_cost_little", a_thousand_cgroups_cost_little),
    ("workloads::what_others_may_write_is_nobodys", what_others_may_write_is_nobodys),
    (
        "workloads::pods_are_let_through_by_their_service_account",
        pods_are_let_through_by_their_service_account,
    ),
    ("workloads::an_agent_that_starts_knows_its_pods", an_agent_that_starts_knows_its_pods),
    ("workloads::nobody_walks_into_a_granted_cgroup", nobody_walks_into_a_granted_cgroup),
];

pub(crate) const CHOOSY: &[Choosy] = &[
    ("workloads::a_container_is_let_through_by_its_id", a_container_is_let_through_by_its_id),
    ("workloads::a_container_cannot_be_another", a_container_cannot_be_another),
];

/// An agent whose one subject is found by these selectors, and has a grant for what `listener` serves.
pub(crate) fn start(selectors: &[&str]) -> Result<(Running, Listener)> {
    let (running, listener) = start_with(selectors, |_| {})?;
    running.wait(HostState::Enforcing, "")?;
    Ok((running, listener))
}

fn start_with(selectors: &[&str], change: impl FnOnce(&mut Config)) -> Result<(Running, Listener)> {
    let sandbox = Sandbox::new()?;
    let listener = Listener::start(Protocol::Tcp, SocketAddr::new(sandbox.address().into(), 0))?;
    let new = NewSubject {
        id: "workload:app".parse()?,
        selectors: selectors.iter().map(|text| text.parse()).collect::<Result<_, _>>()?,
        role: SubjectRole::Member,
    };
    let set = GrantSet {
        generation: 1,
        resources: vec![resource(RESOURCE, listener.address(), Protocol::Tcp)?],
        subjects: vec![Subject::numbered(SUBJECT.try_into()?, new)],
        grants: vec![live_grant(SUBJECT, RESOURCE)?],
    };
    let running = Running::with_config(sandbox, set, std::env::current_exe()?, change)?;
    Ok((running, listener))
}

/// Whether the kernel knows the cgroup with this id as the subject's.
fn is_bound(running: &Running, id: u64) -> Result<bool> {
    let found = running.pinned.lookup::<8>(map::SUBJECTS, &id.to_ne_bytes())?;
    match found {
        Some(subject) if subject == pair(SUBJECT, 0) => Ok(true),
        Some(subject) => bail!("cgroup {id} is bound to {subject:?}"),
        None => Ok(false),
    }
}

/// Waits until it is, or is not. Gives how long that took.
fn wait_until_bound(running: &Running, id: u64, bound: bool) -> Result<Duration> {
    let began = Instant::now();
    while is_bound(running, id)? != bound {
        if began.elapsed() > SOON {
            bail!("cgroup {id} is not {} after {SOON:?}", if bound { "bound" } else { "let go of" });
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(began.elapsed())
}

#[allow(clippy::print_stdout, reason = "figures are for whoever reads the log of a run")]
fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    if let (Some(median), Some(longest)) = (times.get(times.len() / 2), times.last()) {
        println!("{what}: {median:?} as a rule, {longest:?} at most, of {}", times.len());
    }
}

/// A unit starts, is let through; it stops, another of the same name starts: that one is let through, and of the first nothing
/// is left in the kernel.
fn a_unit_is_bound_as_it_comes_and_goes() -> Result<()> {
    const TURNS: usize = 50;
    let (running, listener) = start(&["systemd-unit:app@blue.service"])?;
    let unit = "system.slice/system-app.slice/app@blue.service";
    let beside = running.sandbox.make_cgroup("system.slice/app.service")?;
    let (mut bound, mut let_go) = (Vec::new(), Vec::new());
    let mut before = None;
    for _ in 0..TURNS {
        let cgroup = running.sandbox.make_cgroup(unit)?;
        let id = cgroup.id()?;
        bound.push(wait_until_bound(&running, id, true)?);
        // In the same step in which this one came, if not before.
        if let Some(before) = before {
            ensure_eq!(is_bound(&running, before)?, false);
        }
        ensure_eq!(before != Some(id), true);
        before = Some(id);
        fs::remove_dir(&cgroup.directory)?;
        // Not each time: also one right after the other.
        if bound.len().is_multiple_of(2) {
            let_go.push(wait_until_bound(&running, id, false)?);
        }
    }
    let cgroup = running.sandbox.make_cgroup(&format!("{unit}/sub"))?;
    wait_until_bound(&running, running.sandbox.make_cgroup(unit)?.id()?, true)?;
    ensure_eq!(reaches(&cgroup, Attempt::Tcp, listener.address(), &listener)?, true);
    ensure_eq!(reaches(&beside, Attempt::Tcp, listener.address(), &listener)?, false);
    tell("a new unit is bound after", bound);
    tell("one that went is let go of after", let_go);
    Ok(())
}

/// What it costs to follow 1,000 units: figures, and that all of them are found.
fn a_thousand_cgroups_cost_little() -> Result<()> {
    const UNITS: usize = 1000;
    const LOOKS: u32 = 100;
    let sandbox = Sandbox::new()?;
    for number in 0..UNITS {
        sandbox.make_cgroup(&format!("system.slice/app-{number}.service"))?;
    }
    let mut cgroups = Cgroups::new(sandbox.make_cgroup("")?.directory);
    ensure_eq!(cgroups.look(false), true);
    let last: Selector = format!("systemd-unit:app-{}.service", UNITS - 1).parse()?;
    ensure_eq!(cgroups.find(&last).map(|found| found.len()), Ok(1));
    let average = |again: bool, cgroups: &mut Cgroups| {
        let began = Instant::now();
        let changes = (0..LOOKS).filter(|_| cgroups.look(again)).count();
        (began.elapsed() / LOOKS, changes)
    };
    let (idle, changes) = average(false, &mut cgroups);
    ensure_eq!(changes, 0);
    let (whole, changes) = average(true, &mut cgroups);
    ensure_eq!(changes, 0);
    tell("with 1,000 units a look without news takes", vec![idle]);
    tell("a look at all of them takes", vec![whole]);
    Ok(())
}

/// Whom systemd hands a part of the tree to makes any name there: none of them is taken for what it says, and one that is named
/// by its path is reported.
fn what_others_may_write_is_nobodys() -> Result<()> {
    let id = new_id()?;
    let (running, listener) = start(&[
        "systemd-unit:postgresql.service",
        &format!("container:{id}"),
        "unix-user:1001",
        "cgroup:/user.slice/user-1000.slice/user@1000.service/job",
    ])?;
    let manager = running.sandbox.make_cgroup("user.slice/user-1000.slice/user@1000.service")?;
    delegate(&manager.directory, 1000)?;
    let forged = [
        "job".to_owned(),
        "system.slice/postgresql.service".to_owned(),
        format!("system.slice/docker-{id}.scope"),
        format!("docker/{id}"),
        "user.slice/user-1001.slice".to_owned(),
    ];
    // The owner of a slice that root has given away altogether.
    let slice = running.sandbox.make_cgroup("given.slice")?;
    delegate(&slice.directory, 1000)?;
    let places = forged.iter().map(|name| format!("user.slice/user-1000.slice/user@1000.service/{name}"));
    let places = places.chain(["given.slice/postgresql.service".to_owned()]);
    let cgroups = places.map(|path| running.sandbox.make_cgroup(&path)).collect::<Result<Vec<_>>>()?;
    running.wait(HostState::Degraded, "others than root may make cgroups in")?;
    // What they are called after is found all the same; and once it is, they have been looked at.
    let real = running.sandbox.make_cgroup("system.slice/postgresql.service")?;
    wait_until_bound(&running, real.id()?, true)?;
    ensure_eq!(reaches(&real, Attempt::Tcp, listener.address(), &listener)?, true);
    for cgroup in &cgroups {
        ensure_eq!(is_bound(&running, cgroup.id()?)?, false, "{}", cgroup.path);
        ensure_eq!(reaches(cgroup, Attempt::Tcp, listener.address(), &listener)?, false, "{}", cgroup.path);
    }
    Ok(())
}

/// Pods of a service account, with either cgroup driver, whether their cgroup or the news of them comes first; one whose account
/// is another is not let through. While the API server is away what is bound stays, and nothing new is bound.
fn pods_are_let_through_by_their_service_account() -> Result<()> {
    let uid = |number: u32| format!("0f8fad5b-d9cb-469f-a165-{number:012x}");
    let guaranteed = |number| format!("kubepods/pod{}", uid(number));
    let burstable = |number| {
        let uid = uid(number).replace('-', "_");
        format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice")
    };
    let web = |number, version| pod(&uid(number), version, "web", "shop");
    let files = tempfile::tempdir()?;
    let server = ApiServer::start(files.path())?;
    let soon = |pieces| Answer::Watch { pieces, ends: true };
    server.will([list("10", "", &[web(1, "1"), web(2, "2"), pod(&uid(3), "3", "db", "shop")])]);
    let settings = server.settings()?;
    let selectors = ["kubernetes:prod/web"];
    let (running, listener) = start_with(&selectors, |config| config.kubernetes = Some(settings))?;
    let make = |path: &str| running.sandbox.make_cgroup(path);
    let lets = |cgroup: &Cgroup| reaches(cgroup, Attempt::Tcp, listener.address(), &listener);

    // 1. The news came first; a container in the pod is the pod's.
    let (first, other) = (make(&guaranteed(1))?, make(&guaranteed(3))?);
    let second = make(&burstable(2))?;
    let container = make(&format!("{}/cri-containerd-{}.scope", burstable(2), new_id()?))?;
    wait_until_bound(&running, first.id()?, true)?;
    wait_until_bound(&running, second.id()?, true)?;
    ensure_eq!([lets(&first)?, lets(&container)?, lets(&other)?], [true, true, false]);

    // 2. The cgroup came first, as it does with a kubelet that is faster than the API server's news.
    let fourth = make(&burstable(4))?;
    ensure_eq!(is_bound(&running, fourth.id()?)?, false);
    server.will([soon(vec![line("ADDED", &web(4, "11"))])]);
    wait_until_bound(&running, fourth.id()?, true)?;

    // 3. A pod that the API server has forgotten is nobody's, even if its processes are still there.
    server.will([soon(vec![line("DELETED", &web(4, "12"))])]);
    wait_until_bound(&running, fourth.id()?, false)?;
    ensure_eq!(lets(&fourth)?, false);

    // 4. The API server is away: what is bound stays as long as its cgroup.
    server.will([Answer::Nothing]);
    running.wait(HostState::Degraded, "new pods are not bound: cannot ask https://127.0.0.1")?;
    let fifth = make(&guaranteed(5))?;
    ensure_eq!([lets(&first)?, lets(&container)?, lets(&fifth)?], [true, true, false]);
    let gone = first.id()?;
    fs::remove_dir(&first.directory)?;
    wait_until_bound(&running, gone, false)?;

    // 5. It is back.
    server.will([list("20", "", &[web(2, "2"), web(5, "19")])]);
    wait_until_bound(&running, fifth.id()?, true)?;
    running.wait(HostState::Enforcing, "")?;
    ensure_eq!([lets(&container)?, lets(&fifth)?], [true, true]);
    Ok(())
}

/// An agent that starts while the API server is silent goes on from what the one before it knew.
fn an_agent_that_starts_knows_its_pods() -> Result<()> {
    const UID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";
    let pod = Pod {
        uid: PodUid::parse(UID).context("a uid")?,
        namespace: "prod".to_owned(),
        service_account: "web".to_owned(),
        labels: [("app".to_owned(), "shop".to_owned())].into(),
    };
    let mut known = Pods::default();
    known.apply(PodsChange::Listed(vec![pod]));
    let files = tempfile::tempdir()?;
    let server = ApiServer::start(files.path())?;
    let (settings, boot_id) = (server.settings()?, agent::observe::boot_id()?);
    let (running, listener) = start_with(&["kubernetes:prod?app=shop"], |config| {
        config.kubernetes = Some(settings);
        PodsFile::new(&config.state_dir, boot_id).write(&known).expect("the directory is there");
    })?;
    let pod = running.sandbox.make_cgroup(&format!("kubepods/besteffort/pod{UID}"))?;
    wait_until_bound(&running, pod.id()?, true)?;
    ensure_eq!(reaches(&pod, Attempt::Tcp, listener.address(), &listener)?, true);
    running.wait(HostState::Degraded, "new pods are not bound: the API server has not been heard yet")?;
    // Once it speaks, it is right.
    server.will([list("10", "", &[])]);
    wait_until_bound(&running, pod.id()?, false)?;
    running.wait(HostState::Enforcing, "").map(drop)
}

/// As systemd does for `Delegate=yes` with a user, and for the user's own manager.
fn delegate(directory: &Path, uid: u32) -> Result<()> {
    for name in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
        chown(directory.join(name), Some(uid), Some(uid))?;
    }
    Ok(())
}

/// Each way in, by whoever is not root, ends at the kernel; what is delegated to a user is that user's, whole.
fn nobody_walks_into_a_granted_cgroup() -> Result<()> {
    let (running, listener) = start(&["systemd-unit:session-1.scope", "systemd-unit:app.service"])?;
    let cgroup = |path: &str| running.sandbox.make_cgroup(path);
    let session = cgroup("user.slice/user-1000.slice/session-1.scope")?;
    let other_session = cgroup("user.slice/user-1000.slice/session-2.scope")?;
    let manager = cgroup("user.slice/user-1000.slice/user@1000.service")?;
    // A service that was handed its own part of the tree.
    let (app, part) = (cgroup("system.slice/app.service")?, cgroup("system.slice/app.service/part")?);
    [&manager, &app, &part].into_iter().try_for_each(|cgroup| delegate(&cgroup.directory, 1000))?;
    wait_until_bound(&running, session.id()?, true)?;
    wait_until_bound(&running, app.id()?, true)?;
    let walks = [
        ("the same user, from another session", &other_session, 1000, &session, false),
        ("the same user, from units of the user's own", &manager, 1000, &session, false),
        ("another user", &other_session, 1001, &session, false),
        ("into a part that is delegated to the same user", &manager, 1000, &part, false),
        ("into a service that is", &other_session, 1000, &app, false),
        ("another user into a part", &other_session, 1001, &part, false),
        ("within what is the subject's already", &app, 1000, &part, true),
        // Who may write everything may also write this.
        ("root", &other_session, 0, &session, true),
    ];
    for (who, from, uid, into, gets_in) in walks {
        ensure_eq!(walk(from, uid, into)?, gets_in, "{who}");
    }
    ensure_eq!(reaches(&other_session, Attempt::Tcp, listener.address(), &listener)?, false);
    ensure_eq!(reaches(&part, Attempt::Tcp, listener.address(), &listener)?, true);
    Ok(())
}

/// Whether a process of this user gets from one cgroup into another.
fn walk(from: &Cgroup, uid: u32, into: &Cgroup) -> Result<bool> {
    // Not busybox's, which comes first in a guest and knows less.
    let mut command = in_cgroup(from, "/usr/bin/setpriv");
    command.args([&format!("--reuid={uid}"), &format!("--regid={uid}"), "--clear-groups", "/bin/sh", "-c"]);
    // What counts is where it is then, whatever the shell says of it.
    let line = r#"echo 0 > "$0/cgroup.procs"; grep '^0:' /proc/self/cgroup"#;
    let output = command.arg(line).arg(&into.directory).output().context("cannot run setpriv")?;
    let said = String::from_utf8_lossy(&output.stdout);
    match said.trim().strip_prefix("0::") {
        Some(path) if path == into.path => Ok(true),
        Some(path) if path == from.path => Ok(false),
        _ => {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("from {} into {} as {uid}: {said}{errors}", from.path, into.path)
        }
    }
}

/// A container that a real runtime starts is let through by its id; one beside it is not, and when the first is gone, its
/// cgroup is nobody's.
fn a_container_is_let_through_by_its_id() -> Result<Outcome> {
    let runtimes = runtimes();
    for runtime in &runtimes {
        let (id, other_id) = (new_id()?, new_id()?);
        let (running, listener) = start(&[&format!("container:{}", &id[..12])])?;
        let mut container = Container::start(runtime, &running.sandbox, "docker", &id)?;
        let mut other = Container::start(runtime, &running.sandbox, "docker", &other_id)?;
        let cgroup_id = cgroup_of(&running.sandbox, "docker", &id)?.id()?;
        wait_until_bound(&running, cgroup_id, true)?;
        let to = listener.address();
        ensure_eq!(container.connects(to, &format!("{runtime}-granted"))?, true, "{runtime}");
        ensure_eq!(listener.has_received(&format!("{runtime}-granted")), true);
        ensure_eq!(other.connects(to, &format!("{runtime}-other"))?, false, "{runtime}");
        ensure_eq!(listener.arrived(&format!("{runtime}-other")), false);
        container.end()?;
        wait_until_bound(&running, cgroup_id, false)?;
        // The same id again: another cgroup, and the same container to whoever gave the grant.
        let mut again = Container::start(runtime, &running.sandbox, "docker", &id)?;
        let again_id = cgroup_of(&running.sandbox, "docker", &id)?.id()?;
        ensure_eq!(again_id != cgroup_id, true);
        wait_until_bound(&running, again_id, true)?;
        ensure_eq!(again.connects(to, &format!("{runtime}-again"))?, true, "{runtime}");
    }
    Ok(match runtimes.is_empty() {
        true => Outcome::Skipped("neither crun nor runc is here"),
        false => Outcome::Passed,
    })
}

/// Root in a container, with its part of the tree writable, can make any name there, and none of them is another container.
fn a_container_cannot_be_another() -> Result<Outcome> {
    let Some(runtime) = runtimes().into_iter().next() else {
        return Ok(Outcome::Skipped("neither crun nor runc is here"));
    };
    let (granted_id, id) = (new_id()?, new_id()?);
    let (running, listener) = start(&[&format!("container:{granted_id}")])?;
    let mut granted = Container::start(runtime, &running.sandbox, "docker", &granted_id)?;
    let mut container = Container::start(runtime, &running.sandbox, "docker", &id)?;
    let bound = cgroup_of(&running.sandbox, "docker", &granted_id)?.id()?;
    wait_until_bound(&running, bound, true)?;

    // 1. It makes a cgroup of that name, in each place where there could be one, and goes there: all it sees is its own part.
    let parents = ["docker", "system.slice", "kubepods/pod0f8fad5b-d9cb-469f-a165-70867728950e"];
    let names = [granted_id.clone(), format!("docker-{granted_id}.scope")];
    let forged = parents.iter().flat_map(|parent| names.iter().map(move |name| format!("{parent}/{name}")));
    for (number, path) in forged.enumerate() {
        let made = format!("/sys/fs/cgroup/{path}");
        let go = format!("mkdir -p {made} && echo 0 > {made}/cgroup.procs");
        ensure_eq!(container.run(&format!("{go} && grep -q /{path}$ /proc/self/cgroup"))?, true, "{path}");
        let marker = format!("forged-{number}");
        let connect = connect_line(listener.address(), &marker);
        ensure_eq!(container.run(&format!("{go} && {connect}"))?, false, "{path}");
        ensure_eq!(listener.arrived(&marker), false, "{path}");
    }
    // 2. The granted one is as it was: a name made elsewhere is not even a doubt.
    ensure_eq!(is_bound(&running, bound)?, true);
    ensure_eq!(granted.connects(listener.address(), "still-granted")?, true);
    ensure_eq!(running.report().detail.contains("binds nothing"), false);
    Ok(Outcome::Passed)
}
