//! One technique, run every way, decided at the receiver.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver as Lines, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use agent::kernel::{Missing, part_of_check};
use agent::rules::plan::Check;
use agent::rules::plan::ResourceOptions;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::types::{GrantId, NewResource, PortRange, Protocol, Resource};
use tests::cleanup;
use tests::fixture::{Fixture, HOUR, RESOURCE, SUBJECT};
use tests::sandbox::Cgroup;

use crate::place::{self, Ground};
use crate::probe::{LENDER, PROBE};
use crate::receiver::{Receiver, Where};
use crate::scene::Scene;
use crate::table::{Row, Seen};
use crate::technique::{
    Feature, From, Granted, Kept, Service, Stop, Technique, Tier, Unprotected, WithCheck,
};

/// The subject that lends its sockets, and always has a grant.
const LENDING_SUBJECT: u32 = SUBJECT + 1;

/// How long a probe may take: these machines are shared, and some are emulated.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a marker may take to arrive.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long nothing must arrive after the last attempt that must fail. Covers a first repetition by TCP, after a second.
const GRACE: Duration = Duration::from_millis(1300);

/// How long a grant lives whose deadline is waited for: an emulated machine takes a second to start a probe.
const SHORT: Duration = Duration::from_secs(3);

/// Runs a technique on a thread of its own, which may have a network namespace of its own. Gives what was seen, and what of
/// it is wrong.
pub(crate) fn run(technique: &'static Technique) -> Result<(Row, Vec<String>)> {
    let thread = std::thread::Builder::new().name(technique.name.to_owned());
    let thread = thread.spawn(move || every_way(technique))?;
    thread.join().map_err(|_| anyhow::anyhow!("the test panicked"))?
}

fn every_way(technique: &Technique) -> Result<(Row, Vec<String>)> {
    let ground = place::go_to(technique.place)?;
    let dir = tempfile::Builder::new().prefix("portcullis-bypass-").tempdir()?.keep();
    let leftover = dir.clone();
    let _cleanup = cleanup::register(move || {
        // What is left of it is in the directory for such things.
        let _ = std::fs::remove_dir_all(leftover);
    });
    open_to_all(&dir)?;
    let at = |name: &str| Where {
        ip: place::at(ground.bind, place::own_port()),
        unix: match technique.service {
            Service::UnixAbstract => format!("@{}/{name}", dir.display()),
            _ => dir.join(name).display().to_string(),
        },
    };
    let (protected, plain, decoy) = (at("protected"), at("plain"), at("decoy"));
    let start = |at: &Where| {
        Receiver::start(technique.service, at)
            .with_context(|| format!("cannot listen on {} for {:?}", at.ip, technique.service))
    };
    let receivers = [start(&protected)?, start(&plain)?];
    // Some techniques want an answer from it.
    let _decoy = start(&decoy)?;

    let early = |to: &Where| match technique.lender {
        Some(lender) if lender.from == From::BeforeTheGate => {
            Helper::lend(technique, &dir, Path::new(""), place::at(ground.reach, to.ip.port())).map(Some)
        }
        _ => Ok(None),
    };
    let early = [early(&protected)?, early(&protected)?, early(&plain)?];

    let mut fixture = match technique.tier {
        None => Fixture::new()?,
        Some(_) => Fixture::with_lsm(|_| {})?,
    };
    let missing = fixture.gate.missing();
    let is_there = |tier: &Tier| !missing.iter().any(|missing| missing.part == tier.part());
    let tier = technique.tier.filter(is_there);
    fixture.wanted.resources.push(resource(&ground.prefix, protected.ip.port())?);
    fixture.apply()?;
    let cgroups = Cgroups {
        sender: fixture.subject("sender")?,
        lender: fixture.sandbox.make_cgroup("lender")?,
        nobodys: fixture.sandbox.make_cgroup("nobody")?,
    };
    fixture.bind(&cgroups.lender, LENDING_SUBJECT)?;
    let stage = Stage { technique, tier, ground, dir: &dir, protected, plain, decoy, receivers, cgroups };
    stage.play(&mut fixture, early)
}

/// Everything that stands still while a technique is run.
struct Stage<'a> {
    technique: &'a Technique,
    /// The part of the LSM tier that stops it, as far as it is there.
    tier: Option<Tier>,
    ground: Ground,
    dir: &'a Path,
    protected: Where,
    plain: Where,
    decoy: Where,
    /// Of `protected` and `plain`.
    receivers: [Receiver; 2],
    cgroups: Cgroups,
}

struct Cgroups {
    sender: Cgroup,
    lender: Cgroup,
    nobodys: Cgroup,
}

/// One attempt: where to, what, and whether it waits for its grant to end.
struct Attempt<'a> {
    to: &'a Where,
    marker: String,
    lender: Option<Helper>,
    pauses: bool,
}

impl Stage<'_> {
    fn play(&self, fixture: &mut Fixture, early: [Option<Helper>; 3]) -> Result<(Row, Vec<String>)> {
        let technique = self.technique;
        let [early_ungranted, early_granted, early_plain] = early;
        let mut row = Row::new(technique, self.tier);
        let granted = self.tier.map_or(technique.granted, |tier| Granted::Refused(tier.why()));
        let mut wrong = Vec::new();
        let [at_protected, at_plain] = &self.receivers;

        self.grant_lender(fixture)?;
        let marker = self.marker("ungranted");
        let attempt = Attempt {
            to: &self.protected,
            marker: marker.clone(),
            lender: self.lender_for(&self.protected, early_ungranted)?,
            pauses: false,
        };
        // Their sockets stay open until the end: what is queued there must not be let go with the next grant either.
        let (ungranted, said) = self.attempt(attempt)?;
        let must_not_arrive = matches!(technique.stop, Stop::By(_)) || self.tier.is_some();
        let arrived = match must_not_arrive {
            true => {
                std::thread::sleep(MOMENT);
                at_protected.has(&marker)
            }
            // Whether it gets through is what is asked, so it gets the time to.
            false => arrives(at_protected, &marker),
        };
        row.ungranted = Seen::of(arrived, &said);
        let ungranted = (marker, ungranted);
        let checked = self.attempt_with_the_check(fixture, &mut row)?;

        let mut kept = None;
        // What cannot be had cannot be kept.
        if technique.kept != Kept::No && self.tier.is_none() {
            let marker = self.marker("kept");
            let (helper, said) = self.attempt_past_the_end(fixture, &marker)?;
            std::thread::sleep(MOMENT);
            row.kept = Seen::of(at_protected.has(&marker), &said);
            kept = Some((marker, helper));
        }
        let since = Instant::now();

        self.grant_lender(fixture)?;
        fixture.grant(HOUR)?;
        let marker = self.marker("granted");
        let attempt = Attempt {
            to: &self.protected,
            marker: marker.clone(),
            lender: self.lender_for(&self.protected, early_granted)?,
            pauses: false,
        };
        let (_granted, said) = self.attempt(attempt)?;
        row.granted = Seen::of(arrives_if(granted, at_protected, &marker), &said);
        match (granted, row.granted.arrived()) {
            (Granted::Arrives, false) => wrong.push(format!("granted, it did not arrive ({said})")),
            (Granted::Refused(why), true) => wrong.push(format!("granted, it arrived, and {why}")),
            _ => {}
        }

        if technique.unprotected_with(self.tier) == Unprotected::Arrives {
            let marker = self.marker("unprotected");
            // Nobody has a grant, as the port needs none.
            fixture.wanted.grants.retain(|grant| grant.subject.get() != SUBJECT);
            fixture.apply()?;
            let attempt = Attempt {
                to: &self.plain,
                marker: marker.clone(),
                lender: self.lender_for(&self.plain, early_plain)?,
                pauses: false,
            };
            let (_plain, said) = self.attempt(attempt)?;
            let arrived = arrives(at_plain, &marker);
            row.unprotected = Seen::of(arrived, &said);
            if !arrived {
                wrong.push(format!("to an unprotected port it did not arrive ({said})"));
            }
            fixture.grant(HOUR)?;
        }

        std::thread::sleep(GRACE.saturating_sub(since.elapsed()));
        let pending = [
            (Some(&ungranted), &mut row.ungranted),
            (checked.as_ref(), &mut row.checked),
            (kept.as_ref(), &mut row.kept),
        ];
        for (attempt, seen) in pending {
            if let Some((marker, _)) = attempt {
                seen.recheck(at_protected.has(marker));
            }
        }
        if must_not_arrive && row.ungranted.arrived() {
            wrong.push(format!("without a grant it arrived {}", row.ungranted.said()));
        }
        let must_be_checked = matches!(technique.stop, Stop::Lent { with_check: WithCheck::Stopped, .. });
        if must_be_checked && row.checked.arrived() {
            wrong.push(format!("past the per-send check it arrived {}", row.checked.said()));
        }
        if row.kept.arrived() {
            wrong.push(format!("after the end of the grant it arrived {}", row.kept.said()));
        }
        Ok((row, wrong))
    }

    /// The same as without a grant, where each write is judged; only of what is lent. None: not tried.
    fn attempt_with_the_check(
        &self,
        fixture: &mut Fixture,
        row: &mut Row,
    ) -> Result<Option<(String, Helper)>> {
        let Stop::Lent { with_check, .. } = self.technique.stop else { return Ok(None) };
        // What cannot be had is written on by nobody.
        if self.tier.is_some() {
            return Ok(None);
        }
        fixture.guard(RESOURCE, ResourceOptions { per_send: true, ..ResourceOptions::default() })?;
        // Asked for only now, and missing only then.
        let is_datagram = self.technique.service == Service::Udp;
        let check = if is_datagram { Check::Datagrams } else { Check::Senders };
        let lacks = |missing: &Missing| missing.part == part_of_check(check);
        if fixture.gate.missing().iter().any(lacks) {
            fixture.guard(RESOURCE, ResourceOptions::default())?;
            return Ok(None);
        }
        let marker = self.marker("checked");
        let lender = self.lender_for(&self.protected, None)?;
        let attempt = Attempt { to: &self.protected, marker: marker.clone(), lender, pauses: false };
        let (helper, said) = self.attempt(attempt)?;
        let arrived = match with_check {
            WithCheck::Stopped => {
                std::thread::sleep(MOMENT);
                self.receivers[0].has(&marker)
            }
            WithCheck::NotSeen(_) => arrives(&self.receivers[0], &marker),
        };
        row.checked = Seen::of(arrived, &said);
        fixture.guard(RESOURCE, ResourceOptions::default())?;
        Ok(Some((marker, helper)))
    }

    /// Waits with a ready socket until the grant has ended, and only then sends.
    fn attempt_past_the_end(&self, fixture: &mut Fixture, marker: &str) -> Result<(Helper, String)> {
        let kept = self.technique.kept;
        let duration = if kept == Kept::Expired { SHORT } else { HOUR };
        fixture.wanted.grants.clear();
        let end = Instant::now() + duration;
        fixture.grant_to(LENDING_SUBJECT, RESOURCE, duration)?;
        fixture.grant(duration)?;
        self.receivers[0].set_reading(kept != Kept::Unread);
        let lender = self.lender_for(&self.protected, None)?;
        let attempt = Attempt { to: &self.protected, marker: marker.to_owned(), lender, pauses: true };
        let mut helper = self.begin(&attempt)?;
        helper.also.extend(attempt.lender);
        let mut line = helper.line()?;
        if line != "paused" {
            bail!("with a grant its socket was not ready: {line}");
        }
        match kept {
            Kept::Expired => std::thread::sleep(end.saturating_duration_since(Instant::now()) + END_SLACK),
            _ => fixture.revoke_all()?,
        }
        self.receivers[0].set_reading(true);
        helper.go_on()?;
        line = helper.line()?;
        let said = line.strip_prefix("done ").context("a probe says what came of it")?.to_owned();
        fixture.revoke_all()?;
        Ok((helper, said))
    }

    fn attempt(&self, attempt: Attempt<'_>) -> Result<(Helper, String)> {
        let mut helper = self.begin(&attempt)?;
        helper.also.extend(attempt.lender);
        let line = helper.line()?;
        let said = line.strip_prefix("done ").with_context(|| format!("the probe says {line:?}"))?.to_owned();
        Ok((helper, said))
    }

    fn begin(&self, attempt: &Attempt<'_>) -> Result<Helper> {
        let reach = |at: &Where| place::at(self.ground.reach, at.ip.port());
        let scene = Scene {
            technique: self.technique.name.to_owned(),
            to: reach(attempt.to),
            decoy: reach(&self.decoy),
            unix: attempt.to.unix.clone(),
            marker: attempt.marker.clone(),
            cgroup: self.cgroups.sender.directory.clone(),
            granted_cgroup: self.cgroups.lender.directory.clone(),
            nobodys_cgroup: self.cgroups.nobodys.directory.clone(),
            namespace: self
                .ground
                .probes_namespace()
                .map(|file| PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))),
            lender: attempt.lender.as_ref().and_then(|lender| lender.listens.clone()),
            pauses: attempt.pauses,
        };
        Helper::start(&[PROBE, &scene.to_text()?])
    }

    /// A lender with a grant, unless one was started before there was a gate, or none is wanted.
    fn lender_for(&self, to: &Where, early: Option<Helper>) -> Result<Option<Helper>> {
        match self.technique.lender {
            Some(lender) if lender.from == From::Granted => {
                let to = place::at(self.ground.reach, to.ip.port());
                Helper::lend(self.technique, self.dir, &self.cgroups.lender.directory, to).map(Some)
            }
            _ => Ok(early),
        }
    }

    fn grant_lender(&self, fixture: &mut Fixture) -> Result<()> {
        fixture.wanted.grants.clear();
        fixture.grant_to(LENDING_SUBJECT, RESOURCE, HOUR).map(drop)
    }

    fn marker(&self, way: &str) -> String {
        format!("{} {way} {}", self.technique.name, GrantId::new())
    }
}

/// How long a marker takes on a machine that has nothing else to do.
const MOMENT: Duration = Duration::from_millis(100);

/// After a deadline, before anything is sent.
const END_SLACK: Duration = Duration::from_millis(50);

/// Whether the marker arrives in time.
fn arrives(receiver: &Receiver, marker: &str) -> bool {
    let has = || Ok(receiver.has(marker).then_some(()));
    tests::process::wait_for("the marker", ARRIVAL_TIMEOUT, has).is_ok()
}

/// The same; what must be refused is not waited for as long.
fn arrives_if(granted: Granted, receiver: &Receiver, marker: &str) -> bool {
    match granted {
        Granted::Arrives => arrives(receiver, marker),
        Granted::Refused(_) | Granted::Either(_) => {
            std::thread::sleep(GRACE);
            receiver.has(marker)
        }
    }
}

/// The port, by every transport.
fn resource(prefix: &str, port: u16) -> Result<Resource> {
    let ports = Protocol::ALL.map(|protocol| PortRange::new(protocol, port.into(), port.into()));
    let ports = ports.into_iter().collect::<Result<Vec<_>, _>>()?;
    let new = NewResource::new("resource".parse()?, vec![prefix.parse()?], ports)?;
    Ok(Resource::numbered(RESOURCE.try_into()?, new))
}

/// Processes without any privilege have to find their way in.
fn open_to_all(dir: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?)
}

/// A probe or a lender. Dropped, it is killed.
struct Helper {
    cleanup: Option<cleanup::Entry>,
    child: Child,
    input: Option<ChildStdin>,
    lines: Lines<String>,
    listens: Option<PathBuf>,
    /// Who must live as long.
    also: Vec<Helper>,
}

impl Helper {
    fn start(arguments: &[&str]) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A signal typed at the terminal is for the test runner, which cleans up.
            .process_group(0)
            .spawn()
            .context("cannot start a probe")?;
        let pid = Pid::from_raw(child.id() as i32);
        let cleanup = cleanup::register(move || {
            let _ = kill(pid, Signal::SIGKILL);
        });
        let (input, output) = (child.stdin.take(), child.stdout.take().context("the probe's output")?);
        let lines = read_lines(output);
        Ok(Self { cleanup: Some(cleanup), child, input, lines, listens: None, also: Vec::new() })
    }

    /// Starts a lender, and waits until it has its socket.
    fn lend(technique: &Technique, dir: &Path, cgroup: &Path, to: SocketAddr) -> Result<Self> {
        let lender = technique.lender.context("nobody lends in this technique")?;
        let path = dir.join(format!("lender-{}", GrantId::new()));
        let (path_text, cgroup) = (path.display().to_string(), cgroup.display().to_string());
        let arguments = [LENDER, lender.socket.as_str(), &path_text, &cgroup, &to.to_string()];
        let mut helper = Self::start(&arguments)?;
        helper.listens = Some(path);
        match helper.line()?.as_str() {
            "ready" => Ok(helper),
            line => bail!("the lender says {line:?}"),
        }
    }

    fn line(&self) -> Result<String> {
        match self.lines.recv_timeout(PROBE_TIMEOUT) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => bail!("a probe said nothing for {PROBE_TIMEOUT:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("a probe ended without a word"),
        }
    }

    fn go_on(&mut self) -> Result<()> {
        self.input.as_mut().context("the probe's input")?.write_all(b"go\n").context("the probe has ended")
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        drop(self.cleanup.take());
        // It was killed, or has ended by itself.
        let _ = self.child.wait();
    }
}

fn read_lines(output: ChildStdout) -> Lines<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Why the technique cannot be tried here; None: it can.
pub(crate) fn lacking(technique: &Technique) -> Option<&'static str> {
    use crate::technique::Place;
    let for_place = match technique.place {
        Place::Cable | Place::CableAny6 => Feature::Veth,
        Place::OwnTunnel => Feature::Tunnel,
        Place::Host6 | Place::Own6 | Place::OwnLoopback6 | Place::OwnAny6 => Feature::Ipv6,
        _ => Feature::None,
    };
    technique.feature.lacking().or_else(|| for_place.lacking())
}
