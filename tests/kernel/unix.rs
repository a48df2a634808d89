//! Unix sockets as resources: who connects, sends or writes, by whichever way to the path. Where the kernel cannot have it, that
//! it says so.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::clock::now_boot_ns;
use agent::kernel::{Gate, UNIX_SOCKETS};
use agent::observe::{self, Host};
use agent::rules::drift::{Part, drift};
use agent::rules::plan::{Entries, ResourceOptions};
use agent_ebpf::abi::{Hook, VerdictRecord, map};
use agent_ebpf::verdict::{Reason, Verdict};
use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use socket2::Type;
use tests::ensure_eq;
use tests::process::wait_for;
use tests::runner::{Choosy, Outcome, Test};
use tests::sandbox::Cgroup;
use tests::socket_probe::{KEPT_FROM_IT, Lender, receive, take};
use tests::tampering::Pinned;
use tests::unix_probe::{self, Attempt, UnixServer, reaches};

use crate::connections::{LATE_MAX_NS, SOON, Streaming, WATCHED};
use crate::fixture::{Fixture, HOUR, RESOURCE, SUBJECT};
use crate::life::{link_dir, raise};

pub(crate) const TESTS: &[Test] = &[("unix::what_is_missing_is_said", what_is_missing_is_said)];

pub(crate) const CHOOSY: &[Choosy] = &[
    ("unix::a_grant_is_needed", a_grant_is_needed),
    ("unix::whichever_way_leads_there", whichever_way_leads_there),
    ("unix::another_server_at_the_path_is_protected_at_once", another_server_at_the_path),
    ("unix::nothing_arrives_after_the_deadline", nothing_arrives_after_the_deadline),
    ("unix::nothing_arrives_after_it_is_revoked", nothing_arrives_after_it_is_revoked),
    ("unix::what_is_spliced_in_arrives_no_more_where_the_kernel_can_tell", what_is_spliced_in),
    ("unix::an_idle_connection_ends", an_idle_connection_ends),
    ("unix::who_was_connected_before_is_held_back", who_was_connected_before_is_held_back),
    ("unix::what_is_only_observed_goes_on_until_it_is_not", what_is_only_observed_goes_on),
    ("unix::a_connection_is_handed_to_nobody_else", a_connection_is_handed_to_nobody_else),
    ("unix::somebody_else_does_not_write", somebody_else_does_not_write),
    ("unix::it_stays_without_an_agent", it_stays_without_an_agent),
    ("unix::changed_maps_are_put_right", changed_maps_are_put_right),
];

const CANNOT: Outcome = Outcome::Skipped("this kernel cannot guard unix sockets");

/// A gate with the LSM tier, a subject and nobody.
struct Scene {
    fixture: Fixture,
    subject: Cgroup,
    nobody: Cgroup,
}

impl Scene {
    /// None: the kernel cannot guard unix sockets.
    fn new() -> Result<Option<Self>> {
        let mut fixture = Fixture::with_lsm(|_| {})?;
        if fixture.gate.missing().iter().any(|missing| missing.part == UNIX_SOCKETS) {
            return Ok(None);
        }
        let (subject, nobody) = (fixture.subject("subject")?, fixture.sandbox.make_cgroup("nobody")?);
        Ok(Some(Self { fixture, subject, nobody }))
    }

    fn at(&self, name: &str) -> PathBuf {
        self.fixture.sandbox.dir().join(name)
    }

    /// Protects a path as [`RESOURCE`].
    fn protect(&mut self, path: &Path) -> Result<()> {
        let keys = observe::unix_keys(Host::First, path).map_err(anyhow::Error::msg)?;
        for key in keys {
            self.fixture.wanted.unix_sockets.insert(key, RESOURCE.try_into()?);
        }
        self.fixture.apply()
    }

    /// A server at a protected path.
    fn protected(&mut self, kind: Type, name: &str) -> Result<UnixServer> {
        self.protect(&self.at(name))?;
        UnixServer::start(kind, &self.at(name))
    }

    fn streaming(&self, attempt: Attempt, path: &Path) -> Result<Streaming> {
        Streaming::start_command(&mut unix_probe::command(&self.subject, attempt, path, "")?)
    }

    /// Whether the server is reached from nobody's cgroup.
    fn is_open(&self, path: &Path, server: &UnixServer) -> Result<bool> {
        reaches(&self.nobody, Attempt::Stream, path, server)
    }
}

/// By what the records say: hook, verdict and reason.
fn told(records: &[VerdictRecord]) -> Vec<(u8, u8, u8)> {
    records.iter().map(|record| (record.hook, record.verdict, record.reason)).collect()
}

fn denied(hook: Hook, reason: Reason) -> (u8, u8, u8) {
    (hook as u8, Verdict::Deny as u8, reason as u8)
}

fn wait_for_bytes(server: &UnixServer) -> Result<()> {
    let before = server.arrived();
    wait_for("bytes to arrive", SOON, || Ok((server.arrived() > before).then_some(())))
}

fn ensure_starved(server: &UnixServer, end_boot_ns: u64) -> Result<()> {
    std::thread::sleep(WATCHED);
    let last = server.last_boot_ns();
    if last > end_boot_ns + LATE_MAX_NS {
        bail!("a byte arrived {} ms after the end", (last - end_boot_ns) / 1_000_000);
    }
    Ok(())
}

/// It is proven here to be there, or named with its reason.
fn what_is_missing_is_said() -> Result<()> {
    let mut fixture = Fixture::with_lsm(|_| {})?;
    let missing: Vec<String> = fixture
        .gate
        .missing()
        .into_iter()
        .filter(|missing| missing.part == UNIX_SOCKETS)
        .map(|missing| missing.why)
        .collect();
    let release = observe::kernel_release();
    // Linux 5.10 is the one of ours that is too old; and this machine's own may be told not to run such programs.
    if missing.is_empty() == release.starts_with("5.") || missing.iter().any(String::is_empty) {
        match machine_refuses(&missing) {
            true => {}
            false => bail!("Linux {release}: {missing:?}"),
        }
    }
    let path = fixture.sandbox.dir().join("server");
    let server = UnixServer::start(Type::STREAM, &path)?;
    // Where no such program runs, not everybody may look into the first process either.
    let host = if missing.is_empty() { Host::First } else { Host::Own };
    for key in observe::unix_keys(host, &path).map_err(anyhow::Error::msg)? {
        fixture.wanted.unix_sockets.insert(key, RESOURCE.try_into()?);
    }
    fixture.apply()?;
    let nobody = fixture.sandbox.make_cgroup("nobody")?;
    ensure_eq!(reaches(&nobody, Attempt::Stream, &path, &server)?, !missing.is_empty(), "{missing:?}");
    Ok(())
}

/// Whether what is missing is so because no LSM program runs here at all.
fn machine_refuses(missing: &[String]) -> bool {
    missing.iter().any(|why| why.contains("security modules") || why.contains("socket_create"))
}

fn a_grant_is_needed() -> Result<Outcome> {
    let Some(mut scene) = Scene::new()? else { return Ok(CANNOT) };
    let attempts = [
        (Attempt::Stream, Hook::UnixConnect),
        (Attempt::Packets, Hook::UnixConnect),
        (Attempt::SendTo, Hook::UnixSend),
        (Attempt::Datagram, Hook::UnixSend),
    ];
    let mut servers = Vec::new();
    for (attempt, hook) in attempts {
        let server = scene.protected(attempt.kind(), &format!("{attempt:?}"))?;
        let free = UnixServer::start(attempt.kind(), &scene.at(&format!("{attempt:?}-free")))?;
        for cgroup in [&scene.nobody, &scene.subject] {
            ensure_eq!(reaches(cgroup, attempt, server.path(), &server)?, false, "{attempt:?}");
            ensure_eq!(reaches(cgroup, attempt, free.path(), &free)?, true, "{attempt:?} beside it");
        }
        let records = scene.fixture.denials();
        let expected = [denied(hook, Reason::UnknownSubject), denied(hook, Reason::NoLiveGrant)];
        ensure_eq!(told(&records), expected, "{attempt:?}");
        let key = observe::unix_keys(Host::First, server.path()).map_err(anyhow::Error::msg)?.pop_first();
        for (record, (cgroup, subject)) in records.iter().zip([(&scene.nobody, 0), (&scene.subject, SUBJECT)])
        {
            ensure_eq!((record.unix_key(), record.resource, record.subject), (key, RESOURCE, subject));
            ensure_eq!((record.cgroup_id, record.port), (cgroup.id()?, 0));
            ensure_eq!((record.pid > 0, record.command != [0; 16]), (true, true));
        }
        servers.push(server);
    }
    let grant = scene.fixture.grant(HOUR)?;
    for ((attempt, hook), server) in attempts.into_iter().zip(&servers) {
        scene.fixture.allows();
        ensure_eq!(reaches(&scene.subject, attempt, server.path(), server)?, true, "{attempt:?}");
        let records = scene.fixture.allows();
        // Connecting, to send datagrams, is asked about as sending one is.
        let count = if attempt == Attempt::Datagram { 2 } else { 1 };
        let allowed = (hook as u8, Verdict::Allow as u8, Reason::Granted as u8);
        ensure_eq!(told(&records), vec![allowed; count], "{attempt:?}");
        ensure_eq!(records.iter().all(|record| record.grant == *grant.id.as_bytes()), true);
        ensure_eq!(reaches(&scene.nobody, attempt, server.path(), server)?, false, "{attempt:?}");
    }
    scene.fixture.denials();
    // What is not protected any more is anybody's again.
    scene.fixture.wanted.unix_sockets.clear();
    scene.fixture.apply()?;
    for ((attempt, _), server) in attempts.into_iter().zip(&servers) {
        ensure_eq!(reaches(&scene.nobody, attempt, server.path(), server)?, true, "{attempt:?}");
    }
    ensure_eq!(scene.fixture.denials().len(), 0);
    Ok(Outcome::Passed)
}

fn whichever_way_leads_there() -> Result<Outcome> {
    let Some(mut scene) = Scene::new()? else { return Ok(CANNOT) };
    fs::create_dir(scene.at("d"))?;
    let server = scene.protected(Type::STREAM, "d/server")?;
    fs::hard_link(server.path(), scene.at("link"))?;
    symlink("d/server", scene.at("symlink"))?;
    symlink("d", scene.at("way"))?;
    fs::create_dir(scene.at("bound"))?;
    fs::write(scene.at("bound-file"), "")?;
    let bind = |from: &Path, to: &Path| {
        mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).context("a bind mount")
    };
    bind(&scene.at("d"), &scene.at("bound"))?;
    bind(server.path(), &scene.at("bound-file"))?;
    let ways = ["d/server", "link", "symlink", "way/server", "bound/server", "bound-file"];
    let found: Result<Vec<bool>> = ways.iter().map(|way| scene.is_open(&scene.at(way), &server)).collect();
    let elsewhere = reaches(&scene.nobody, Attempt::StreamInNewNamespace, server.path(), &server);
    // A path that leads through a mount, or a link, stands for where it leads.
    let mut others = Vec::new();
    for (way, place) in [("bound/other", "d/other"), ("way/third", "d/third")] {
        scene.protect(&scene.at(way))?;
        let other = UnixServer::start(Type::STREAM, &scene.at(place))?;
        others.push(scene.is_open(&scene.at(place), &other)?);
    }
    for mounted in ["bound", "bound-file"] {
        umount2(&scene.at(mounted), MntFlags::MNT_DETACH)?;
    }
    ensure_eq!(found?, vec![false; ways.len()]);
    ensure_eq!((elsewhere?, others), (false, vec![false, false]));

    // Who listens binds as it likes.
    let relative = scene.at("d/relative");
    scene.protect(&relative)?;
    let server = UnixServer::start_relative(&relative)?;
    ensure_eq!(scene.is_open(&relative, &server)?, false);
    let final_path = scene.at("d/final");
    scene.protect(&final_path)?;
    let server = UnixServer::start(Type::STREAM, &scene.at("d/not-yet"))?;
    ensure_eq!(scene.is_open(&scene.at("d/not-yet"), &server)?, true);
    fs::rename(scene.at("d/not-yet"), &final_path)?;
    ensure_eq!(scene.is_open(&final_path, &server)?, false);

    // Another file system, with the same names on it.
    let other = scene.at("tmpfs");
    fs::create_dir(&other)?;
    mount(Some("tmpfs"), &other, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    let result = (|| {
        scene.protect(&other.join("server"))?;
        let protected = UnixServer::start(Type::STREAM, &other.join("server"))?;
        let free = UnixServer::start(Type::STREAM, &other.join("free"))?;
        Ok::<_, anyhow::Error>((
            scene.is_open(protected.path(), &protected)?,
            scene.is_open(free.path(), &free)?,
        ))
    })();
    umount2(&other, MntFlags::MNT_DETACH)?;
    ensure_eq!(result?, (false, true));
    Ok(Outcome::Passed)
}

fn another_server_at_the_path() -> Result<Outcome> {
    let Some(mut scene) = Scene::new()? else { return Ok(CANNOT) };
    fs::create_dir(scene.at("d"))?;
    let server = scene.protected(Type::STREAM, "d/server")?;
    let path = server.path().to_owned();
    ensure_eq!(scene.is_open(&path, &server)?, false);
    drop(server);
    let server = UnixServer::start(Type::STREAM, &path)?;
    ensure_eq!(scene.is_open(&path, &server)?, false);
    drop(server);
    fs::remove_dir_all(scene.at("d"))?;
    fs::create_dir(scene.at("d"))?;
    let server = UnixServer::start(Type::STREAM, &path)?;
    ensure_eq!(scene.is_open(&path, &server)?, false);
    scene.fixture.grant(HOUR)?;
    ensure_eq!(reaches(&scene.subject, Attempt::Stream, &path, &server)?, true);
    Ok(Outcome::Passed)
}

const FLOWS: [Attempt; 3] = [Attempt::Writes, Attempt::WritesPackets, Attempt::WritesDatagrams];

/// To start all that is to be cut off, in a machine whose processor is software too.
const LONG_ENOUGH: Duration = Duration::from_secs(10);

/// The time by which a reader heard its last byte.
fn last_heard(mut reader: Streaming) -> Result<u64> {
    let line = reader.next_line()?;
    let last = line.strip_prefix("heard ").with_context(|| format!("the reader says {line:?}"))?;
    Ok(last.parse()?)
}

fn nothing_arrives_after_the_deadline() -> Result<Outcome> {
    let Some(mut scene) = Scene::new()? else { return Ok(CANNOT) };
    let mut servers = Vec::new();
    for attempt in FLOWS {
        servers.push(scene.protected(attempt.kind(), &format!("{attempt:?}"))?);
    }
    let grant = scene.fixture.grant(LONG_ENOUGH)?;
    let mut flows = Vec::new();
    for (attempt, server) in FLOWS.into_iter().zip(&servers) {
        flows.push(scene.streaming(attempt, server.path())?);
        wait_for_bytes(server)?;
    }
    let reader = scene.streaming(Attempt::Reads, servers[0].path())?;
    std::thread::sleep(Duration::from_nanos(grant.expires_at_boot_ns.saturating_sub(now_boot_ns())));
    for (flow, server) in flows.iter_mut().zip(&servers) {
        ensure_starved(server, grant.expires_at_boot_ns)?;
        ensure_eq!(flow.next_line()?, "EPERM");
    }
    let heard = last_heard(reader)?;
    if heard < grant.expires_at_boot_ns - LATE_MAX_NS || heard > grant.expires_at_boot_ns + LATE_MAX_NS {
        bail!("the last byte that was heard came at {heard}, and the end is {}", grant.expires_at_boot_ns);
    }
    let records = scene.fixture.denials();
    let expired = denied(Hook::UnixSend, Reason::Expired);
    // Each flow's writer, and the server's ends of both kinds of connection, once each; of the reader the server's end alone.
    ensure_eq!(
        (4..=6).contains(&records.len()) && told(&records).iter().all(|told| *told == expired),
        true,
        "{records:?}"
    );
    ensure_eq!(records.iter().all(|record| record.grant == *grant.id.as_bytes()), true);
    Ok(Outcome::Passed)
}

fn nothing_arrives_after_it_is_revoked() -> Result<Outcome> {
    let Some(mut scene) = Scene::new()? else { return Ok(CANNOT) };
    let server = scene.protected(Type::STREAM, "server")?;
    scene.fixture.grant(HOUR)?;
    let mut flow = scene.streaming(Attempt::Writes, server.path())?;
    let reader = scene.streaming(Attempt::Reads, server.path())?;
    wait_for_bytes(&server)?;
    scene.fixture.revoke_all()?;
    let end_boot_ns = now_boot_ns();
    // Another grant revives nothing.
    scene.fixture.grant(HOUR)?;
    ensure_starved(&server, end_boot_ns)?;
    ensure_eq!(flow.next_line()?, "EPERM");
    ensure_eq!(last_heard(reader)? < end_boot_ns + LATE_MAX_NS, true);
    ensure_eq!(reaches(&scene.subject, Attempt::Stream, server.path(), &server)?, true);
    let revoked = denied(Hook::UnixSend, Reason::Revoked);
    ensure_eq!(told(&scene.fixture.denials()).iter().all(|record| *record == revoked), true);
    Ok(Outcome::Passed)
}

/// Linux before 6.5 puts what is spliced into a stream socket there without asking anybody.
fn what_is_spliced_in() -> Result<Outcome> {
    let Some(mut scene) = Scene::new()? else { return Ok(CANNOT) };
    let server = scene.protected(Type::STREAM, "server")?;
    scene.fixture.grant(HOUR)?;
    let mut flow = scene.streaming(Attempt::Splices, server.path())?;
    wait_for_bytes(&server)?;
    scene.fixture.revoke_all()?;
    let end_boot_ns = now_boot_ns();
    if observe::kernel_release().starts_with("6.1.") {
        std::thread::sleep(WATCHED);
        wait_for_bytes(&server).context("docs/security.md says that it goes on")?;
        return Ok(Outcome::Passed);
    }
    ensure_starved(&server, end_boot_ns)?;
    ensure_eq!(flow.next_line()?, "EPERM");
    Ok(Outcome::Passed)
}

fn an_idle_connection_ends() -> Result<Outcome> {
    let Some(mut scene) = Scene::new()? else { return Ok(CANNOT) };
    let server = scene.protected(Type::SEQPACKET, "server")?;
    scene.fixture.grant_unless_idle(Duration::from_secs(2))?;
    let mut flow = scene.streaming(Attempt::WritesPackets, server.path())?;
    // While it writes it is not idle.
    std::thread::sleep(WATCHED);
    wait_for_bytes(&server)?;
    flow.signal(Signal::SIGSTOP)?;
    // Nobody answers packets: at neither end anything is written.
    std::thread::sleep(Duration::from_secs(3));
    let before = server.arrived();
    flow.signal(Signal::SIGCONT)?;
    ensure_eq!(flow.next_line()?, "EPERM");
    ensure_eq!(server.arrived() - before <= 1, true);
    Ok(Outcome::Passed)
}

fn who_was_connected_before_is_held_back() -> Result<Outcome> {
    let Some(mut scene) = Scene::new()? else { return Ok(CANNOT) };
    // Before anything is protected, even.
    let (path, other) = (scene.at("server"), scene.at("other"));
    let server = UnixServer::start(Type::STREAM, &path)?;
    let free = UnixServer::start(Type::STREAM, &other)?;
    let mut flow = scene.streaming(Attempt::Writes, &path)?;
    let unharmed = scene.streaming(Attempt::Writes, &other)?;
    let reader = scene.streaming(Attempt::Reads, &path)?;
    wait_for_bytes(&server)?;
    scene.fixture.grant(HOUR)?;
    let end_boot_ns = now_boot_ns();
    scene.protect(&path)?;
    ensure_starved(&server, end_boot_ns)?;
    ensure_eq!(flow.next_line()?, "EPERM");
    ensure_eq!(last_heard(reader)? < end_boot_ns + LATE_MAX_NS, true);
    wait_for_bytes(&free)?;
    drop(unharmed);
    let not_admitted = denied(Hook::UnixSend, Reason::NotAdmitted);
    // One who writes, and two to whom the server does.
    let told = told(&scene.fixture.denials());
    ensure_eq!(
        (2..=3).contains(&told.len()) && told.iter().all(|told| *told == not_admitted),
        true,
        "{told:?}"
    );
    ensure_eq!(reaches(&scene.subject, Attempt::Stream, &path, &server)?, true);
    Ok(Outcome::Passed)
}

fn what_is_only_observed_goes_on() -> Result<Outcome> {
    let Some(mut scene) = Scene::new()? else { return Ok(CANNOT) };
    let server = scene.protected(Type::STREAM, "server")?;
    let datagrams = scene.protected(Type::DGRAM, "datagrams")?;
    scene.fixture.guard(RESOURCE, ResourceOptions { observe: true, ..ResourceOptions::default() })?;
    let mut flow = scene.streaming(Attempt::Writes, server.path())?;
    wait_for_bytes(&server)?;
    ensure_eq!(reaches(&scene.nobody, Attempt::SendTo, datagrams.path(), &datagrams)?, true);
    let would = |hook, reason| (hook as u8, Verdict::WouldDeny as u8, reason as u8);
    let expected =
        [would(Hook::UnixConnect, Reason::NoLiveGrant), would(Hook::UnixSend, Reason::UnknownSubject)];
    ensure_eq!(told(&scene.fixture.denials()), expected);
    // Who holds a grant goes on when the mode changes, everybody else does not.
    scene.fixture.grant(HOUR)?;
    let held = UnixServer::start(Type::STREAM, &scene.at("held"))?;
    scene.protect(held.path())?;
    let granted = scene.streaming(Attempt::Writes, held.path())?;
    scene.fixture.guard(RESOURCE, ResourceOptions::default())?;
    let end_boot_ns = now_boot_ns();
    ensure_starved(&server, end_boot_ns)?;
    ensure_eq!(flow.next_line()?, "EPERM");
    wait_for_bytes(&held)?;
    drop(granted);
    Ok(Outcome::Passed)
}

fn a_connection_is_handed_to_nobody_else() -> Result<Outcome> {
    let Some(mut scene) = Scene::new()? else { return Ok(CANNOT) };
    let server = scene.protected(Type::STREAM, "server")?;
    let same = scene.fixture.subject("same")?;
    scene.fixture.grant(HOUR)?;
    let lender = Lender::start_unix(&scene.subject, server.path(), scene.at("lender"))?;
    ensure_eq!((receive(&same, &lender)?, take(&same, &lender)?), ("ok".to_owned(), "ok".to_owned()));
    ensure_eq!(scene.fixture.denials().len(), 0);
    ensure_eq!(receive(&scene.nobody, &lender)?, KEPT_FROM_IT);
    ensure_eq!(take(&scene.nobody, &lender)?, "EPERM");
    let records = scene.fixture.denials();
    ensure_eq!(told(&records), [denied(Hook::FileReceive, Reason::HandedOver); 2]);
    let key = observe::unix_keys(Host::First, server.path()).map_err(anyhow::Error::msg)?.pop_first();
    ensure_eq!((records[0].unix_key(), records[0].resource), (key, RESOURCE));
    Ok(Outcome::Passed)
}

fn somebody_else_does_not_write() -> Result<Outcome> {
    let Some(mut scene) = Scene::new()? else { return Ok(CANNOT) };
    let server = scene.protected(Type::STREAM, "server")?;
    scene.fixture.guard(RESOURCE, ResourceOptions { per_send: true, ..ResourceOptions::default() })?;
    scene.fixture.grant(HOUR)?;
    let mut flow = scene.streaming(Attempt::Writes, server.path())?;
    wait_for_bytes(&server)?;
    fs::write(scene.nobody.directory.join("cgroup.procs"), flow.pid().to_string())?;
    ensure_eq!(flow.next_line()?, "EPERM");
    ensure_eq!(told(&scene.fixture.denials()), [denied(Hook::UnixSend, Reason::SenderDiffers)]);
    Ok(Outcome::Passed)
}

fn it_stays_without_an_agent() -> Result<Outcome> {
    let Some(mut scene) = Scene::new()? else { return Ok(CANNOT) };
    let server = scene.protected(Type::STREAM, "server")?;
    let pin = link_dir(&scene.fixture.settings).join("unix_stream_connect");
    fs::remove_file(&pin)?;
    let repaired = |gate: &mut Gate| -> Vec<String> {
        gate.inspect().into_iter().filter(|fault| fault.repaired).map(|fault| fault.text).collect()
    };
    let expected = "1 object is no longer pinned: unix_stream_connect; pinned again";
    ensure_eq!(repaired(&mut scene.fixture.gate), [expected]);

    let grant = scene.fixture.grant(LONG_ENOUGH)?;
    let mut flow = scene.streaming(Attempt::Writes, server.path())?;
    let reader = scene.streaming(Attempt::Reads, server.path())?;
    let path = server.path().to_owned();
    let Scene { fixture, subject, nobody } = scene;
    let Fixture { gate, allow, deny, closed, sandbox, settings, .. } = fixture;
    drop((gate, allow, deny, closed));
    ensure_eq!(reaches(&nobody, Attempt::Stream, &path, &server)?, false);
    ensure_eq!(reaches(&subject, Attempt::Stream, &path, &server)?, true);
    std::thread::sleep(Duration::from_nanos(grant.expires_at_boot_ns.saturating_sub(now_boot_ns())));
    ensure_starved(&server, grant.expires_at_boot_ns)?;
    ensure_eq!(flow.next_line()?, "EPERM");
    ensure_eq!(last_heard(reader)? < grant.expires_at_boot_ns + LATE_MAX_NS, true);

    // The next agent takes it over; and one that does not want it takes it down.
    let mut next = raise(&settings, &sandbox)?;
    ensure_eq!(next.missing(), []);
    ensure_eq!(reaches(&nobody, Attempt::Stream, &path, &server)?, false);
    drop(next);
    ensure_eq!(reaches(&nobody, Attempt::Stream, &path, &server)?, false);
    agent::kernel::lower(&settings.pin_dir)?;
    let opens = || Ok(reaches(&nobody, Attempt::Stream, &path, &server)?.then_some(()));
    wait_for("the path to be open", SOON, opens)?;
    Ok(Outcome::Passed)
}

fn changed_maps_are_put_right() -> Result<Outcome> {
    let Some(mut scene) = Scene::new()? else { return Ok(CANNOT) };
    let server = scene.protected(Type::STREAM, "server")?;
    let path = server.path().to_owned();
    let pinned = Pinned::at(&scene.fixture.settings.pin_dir);
    let key =
        observe::unix_keys(Host::First, &path).map_err(anyhow::Error::msg)?.pop_first().context("has one")?;
    let tamperings: [&dyn Fn() -> std::io::Result<()>; 3] = [
        &|| pinned.delete(map::UNIX_SOCKETS, &key.to_ne_bytes()),
        &|| pinned.update(map::UNIX_SOCKETS, &key.to_ne_bytes(), &[9, 0, 0, 0, 1, 0, 0, 0]),
        &|| pinned.update(map::UNIX_GUARDED, &[0; 4], &[0; 4]),
    ];
    for tamper in tamperings {
        tamper()?;
        ensure_eq!(scene.is_open(&path, &server)?, true);
        // Who gets in meanwhile does not stay.
        let mut flow =
            Streaming::start_command(&mut unix_probe::command(&scene.nobody, Attempt::Writes, &path, "")?)?;
        let fixture = &mut scene.fixture;
        let mut read = Entries::default();
        fixture.gate.read_part(Part::UnixSockets, &mut read)?;
        let found = drift(Part::UnixSockets, &fixture.entries, &read).context("it is seen")?;
        ensure_eq!((found.map, found.added), (map::UNIX_SOCKETS, 0));
        fixture.entries.unix_sockets = read.unix_sockets;
        fixture.apply()?;
        ensure_eq!(flow.next_line()?, "EPERM");
        ensure_eq!(scene.is_open(&path, &server)?, false);
    }
    Ok(Outcome::Passed)
}
