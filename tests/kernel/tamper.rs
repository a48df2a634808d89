//! The tamper tier: what root can do to the gate behind its agent's back, and cannot any more. Where the kernel cannot have
//! it, that it says so.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use agent::kernel::{Demand, Gate, KernelError, Lowered, Settings, lift_tamper};
use agent::rules::plan::ResourceOptions;
use agent_ebpf::abi::{Hook, Tampering, VerdictRecord};
use agent_ebpf::verdict::{Reason, Verdict};
use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use proto::types::Protocol;
use tests::ensure_eq;
use tests::probe::Attempt;
use tests::process::{output, wait_for};
use tests::runner::{Choosy, Outcome, Test};
use tests::stranger::{Holder, Stranger, copy_to};
use tests::tampering::{Pinned, open};

use crate::fixture::{Fixture, HOUR, RESOURCE, own_faults, reaches};
use crate::life::{link_dir, raise};

pub(crate) const TESTS: &[Test] = &[("tamper::what_is_missing_is_said", what_is_missing_is_said)];

pub(crate) const CHOOSY: &[Choosy] = &[
    ("tamper::root_is_kept_from_the_gate", root_is_kept_from_the_gate),
    ("tamper::root_is_kept_from_the_agent", root_is_kept_from_the_agent),
    ("tamper::other_peoples_programs_are_theirs", other_peoples_programs_are_theirs),
    ("tamper::it_outlives_the_agent_and_follows_an_upgrade", it_outlives_the_agent_and_follows_an_upgrade),
    ("tamper::it_is_lifted_and_taken_down_by_the_agent", it_is_lifted_and_taken_down_by_the_agent),
];

const CANNOT: Outcome = Outcome::Skipped("this kernel runs no such LSM program");

/// Why there is none, by the gate's own account.
fn missing(gate: &mut Gate) -> Option<String> {
    gate.missing().into_iter().find(|missing| missing.part == "tamper protection").map(|missing| missing.why)
}

fn wanted(fixture: &Fixture, demand: Demand) -> Settings {
    Settings { tamper: demand, ..fixture.settings.clone() }
}

/// The next agent, with the tier. None: the kernel cannot have it.
fn with_tier(fixture: &mut Fixture) -> Result<bool> {
    fixture.settings.tamper = Demand::Prefer;
    fixture.gate = raise(&fixture.settings, &fixture.sandbox)?;
    match missing(&mut fixture.gate) {
        None => Ok(true),
        Some(why) if why.is_empty() => bail!("there is no reason"),
        Some(_) => Ok(false),
    }
}

/// It is either proven here to be there, or said to be missing: there is no third way.
fn what_is_missing_is_said() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let stranger = Stranger::new(fixture.sandbox.dir())?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let nobody = fixture.sandbox.make_cgroup("nobody")?;
    ensure_eq!(missing(&mut fixture.gate), None, "nobody asked for it");
    let pin = Pinned::at(&fixture.settings.pin_dir).link("connect4");
    ensure_eq!(stranger.tries(&["open-pin", path(&pin)?])?, "ok");
    let has_it = with_tier(&mut fixture)?;
    let expected = if has_it { "EPERM" } else { "ok" };
    ensure_eq!(stranger.tries(&["open-pin", path(&pin)?])?, expected);
    match raise(&wanted(&fixture, Demand::Require), &fixture.sandbox) {
        Ok(mut gate) => ensure_eq!((has_it, missing(&mut gate)), (true, None)),
        Err(KernelError::Tamper { why }) => {
            ensure_eq!((has_it, missing(&mut fixture.gate)), (false, Some(why)))
        }
        Err(error) => bail!("{error}"),
    }
    // Whatever came of it, the gate stands.
    ensure_eq!(reaches(&nobody, Attempt::Tcp, listener.address(), &listener)?, false);
    Ok(())
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path of letters")
}

/// The kernel's numbers of what lies under a name.
fn id(path: &Path, field: &str) -> Result<String> {
    let object = open(path)?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", object.as_raw_fd()))?;
    let fields: BTreeMap<&str, &str> = info.lines().filter_map(|line| line.split_once(':')).collect();
    Ok(fields.get(field).with_context(|| format!("no {field} in {info}"))?.trim().to_owned())
}

/// What strangers were refused, and recorded, since the last look.
fn refused(fixture: &mut Fixture) -> Vec<VerdictRecord> {
    // The agent's own helper is no stranger.
    let is_told = |record: &VerdictRecord| record.hook == Hook::Tamper as u8 && record.resource == 0;
    fixture.denials().into_iter().filter(is_told).collect()
}

fn kinds(records: &[VerdictRecord]) -> Vec<Tampering> {
    records.iter().filter_map(|record| Tampering::from_code(record.family)).collect()
}

/// What somebody with root can do to the gate, and as what it is told.
fn attacks(fixture: &Fixture) -> Result<Vec<(Vec<String>, Tampering)>> {
    let pin_dir = &fixture.settings.pin_dir;
    let bpffs = pin_dir.parent().context("it lies on a file system")?;
    let pinned = Pinned::at(pin_dir);
    let (connect4, egress, map) = (pinned.link("connect4"), pinned.link("egress"), pinned.map("GRANTS"));
    // There only because a resource wants it.
    let enlist = pinned.link("enlist");
    let links = link_dir(&fixture.settings);
    let version = links.parent().context("it lies in the version's")?;
    let text = |path: &Path| path.display().to_string();
    let of = |words: &[&str], tampering| (words.iter().map(ToString::to_string).collect(), tampering);
    Ok(vec![
        of(&["open-map", &id(&map, "map_id")?], Tampering::OpenMap),
        of(&["open-program", &id(&connect4, "prog_id")?], Tampering::OpenProgram),
        of(&["open-link", &id(&connect4, "link_id")?], Tampering::OpenLink),
        of(&["open-program", &id(&enlist, "prog_id")?], Tampering::OpenProgram),
        of(&["open-link", &id(&enlist, "link_id")?], Tampering::OpenLink),
        of(&["open-pin", &text(&map)], Tampering::OpenPin),
        of(&["open-pin", &text(&connect4)], Tampering::OpenPin),
        of(&["detach", &text(&connect4)], Tampering::OpenPin),
        of(&["replace", &text(&connect4)], Tampering::OpenPin),
        of(&["detach-by-id", &id(&egress, "link_id")?], Tampering::OpenLink),
        of(&["mkdir", &text(&pin_dir.join("abi-99"))], Tampering::AddPin),
        of(&["pin", &text(&links.join("stranger"))], Tampering::AddPin),
        of(&["rename", &text(&connect4), &text(&bpffs.join("elsewhere"))], Tampering::MovePin),
        of(&["rename", &text(version), &text(&bpffs.join("version"))], Tampering::MovePin),
        of(&["unlink", &text(&egress)], Tampering::RemovePin),
        of(&["unlink", &text(&map)], Tampering::RemovePin),
        of(&["unmount-lazily", &text(bpffs)], Tampering::Unmount),
    ])
}

fn tries(stranger: &Stranger, words: &[String]) -> Result<String> {
    stranger.tries(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

fn root_is_kept_from_the_gate() -> Result<Outcome> {
    let mut fixture = Fixture::new()?;
    let stranger = Stranger::new(fixture.sandbox.dir())?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let (granted, nobody) = (fixture.subject("subject")?, fixture.sandbox.make_cgroup("nobody")?);
    fixture.guard(RESOURCE, ResourceOptions { per_send: true, ..ResourceOptions::default() })?;
    fixture.grant(HOUR)?;
    let bpffs = fixture.settings.pin_dir.parent().context("it lies on a file system")?.to_owned();

    // 1. Without the tier each of them is done. The agent puts right what it can, so that the next one has something to do.
    for (number, (words, _)) in attacks(&fixture)?.iter().enumerate() {
        // Links that were detached have others in their places.
        let (words, _) =
            attacks(&fixture)?.into_iter().nth(number).unwrap_or((words.clone(), Tampering::OpenMap));
        ensure_eq!(tries(&stranger, &words)?, "ok", "{words:?}");
        let _ = fs::remove_dir(fixture.settings.pin_dir.join("abi-99"));
        let _ = fs::remove_file(link_dir(&fixture.settings).join("stranger"));
        if words[0] == "unmount-lazily" {
            mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>)?;
        }
        fixture.gate.inspect();
    }

    // 2. With it none is, each is on the record, and a descriptor from before is of no use to whoever has it.
    let held = open(&Pinned::at(&fixture.settings.pin_dir).link("connect4"))?;
    if !with_tier(&mut fixture)? {
        return Ok(CANNOT);
    }
    refused(&mut fixture);
    let mut told = Vec::new();
    for (words, tampering) in attacks(&fixture)? {
        ensure_eq!(tries(&stranger, &words)?, "EPERM", "{words:?}");
        told.push(tampering);
    }
    let socket = fixture.sandbox.dir().join("held");
    let lent = UnixListener::bind(&socket)?;
    let lending = std::thread::spawn(move || tests::socket_probe::hand(&lent.accept()?.0, &held));
    ensure_eq!(stranger.tries(&["detach-held", path(&socket)?])?, "EPERM");
    lending.join().expect("it does not panic")?;
    told.push(Tampering::ChangeLink);
    let records = refused(&mut fixture);
    ensure_eq!(kinds(&records), told);
    let is_whole = |record: &&VerdictRecord| {
        (record.verdict, record.reason) == (Verdict::Deny as u8, Reason::Tampering as u8)
            && record.pid > 0
            && record.command.starts_with(b"stranger")
            && record.cgroup_id != 0
    };
    ensure_eq!(records.iter().filter(is_whole).count(), records.len(), "{records:?}");

    // 3. The gate is as it was, by its own account, too.
    ensure_eq!((own_faults(&mut fixture.gate), missing(&mut fixture.gate)), (vec![], None));
    ensure_eq!(reaches(&nobody, Attempt::Tcp, listener.address(), &listener)?, false);
    ensure_eq!(reaches(&granted, Attempt::Tcp, listener.address(), &listener)?, true);
    Ok(Outcome::Passed)
}

/// Whoever runs the agent's program, as the canary does.
fn agents_process(fixture: &Fixture) -> Result<(Child, String)> {
    let cgroup = fixture.sandbox.make_cgroup("agent")?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg(agent::kernel::HELPER_VERB)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    fs::write(cgroup.directory.join("cgroup.procs"), child.id().to_string())?;
    // Until then it is a copy of this one, of which that is true as well.
    let executable = || Ok(fs::read_link(format!("/proc/{}/exe", child.id())).ok());
    wait_for("the process", SOON, executable)?;
    let pid = child.id().to_string();
    match child.try_wait()? {
        Some(status) => bail!("it has ended: {status}"),
        None => Ok((child, pid)),
    }
}

const SOON: Duration = Duration::from_secs(20);

fn root_is_kept_from_the_agent() -> Result<Outcome> {
    let mut fixture = Fixture::new()?;
    let stranger = Stranger::new(fixture.sandbox.dir())?;
    // Of a process's memory the kernel says EACCES, whoever refuses it.
    let attacks = [
        (["trace", ""], Tampering::Trace, "EPERM"),
        (["memory", ""], Tampering::Trace, "EACCES"),
        (["take", "0"], Tampering::Trace, "EPERM"),
        (["signal", "19"], Tampering::Signal, "EPERM"),
        (["signal", "9"], Tampering::Signal, "EPERM"),
    ];
    let attack = |[verb, last]: [&'static str; 2], pid: &str| -> Result<String> {
        let words = [verb, pid, last];
        stranger.tries(if last.is_empty() { &words[..2] } else { &words })
    };
    for (words, ..) in attacks {
        let (mut child, pid) = agents_process(&fixture)?;
        ensure_eq!(stranger.tries(&["look", &pid])?, "ok");
        ensure_eq!(attack(words, &pid)?, "ok", "{words:?}");
        child.kill()?;
        child.wait()?;
    }

    if !with_tier(&mut fixture)? {
        return Ok(CANNOT);
    }
    refused(&mut fixture);
    let (mut child, pid) = agents_process(&fixture)?;
    let mut told = Vec::new();
    for (words, tampering, refusal) in attacks {
        ensure_eq!(attack(words, &pid)?, refusal, "{words:?}");
        told.push(tampering);
    }
    let records = refused(&mut fixture);
    ensure_eq!(kinds(&records), told);
    let signals: Vec<u16> = records.iter().map(|record| record.port).filter(|signal| *signal != 0).collect();
    ensure_eq!(signals, [19, 9]);
    // Who watches processes goes on doing so.
    ensure_eq!((stranger.tries(&["look", &pid])?, child.try_wait()?), ("ok".to_owned(), None));
    ensure_eq!(refused(&mut fixture), []);
    // Signals of the kernel itself pass, and so do the agent's own.
    let cgroup = fixture.sandbox.make_cgroup("agent")?;
    if fs::write(cgroup.directory.join("cgroup.kill"), "1").is_err() {
        // Not before Linux 5.14.
        child.kill()?;
    }
    child.wait()?;
    let (mut child, _) = agents_process(&fixture)?;
    child.kill()?;
    child.wait()?;
    Ok(Outcome::Passed)
}

fn other_peoples_programs_are_theirs() -> Result<Outcome> {
    let mut fixture = Fixture::new()?;
    let stranger = Stranger::new(fixture.sandbox.dir())?;
    if !with_tier(&mut fixture)? {
        return Ok(CANNOT);
    }
    refused(&mut fixture);
    ensure_eq!(stranger.tries(&["own", path(fixture.sandbox.dir())?])?, "ok");
    ensure_eq!(refused(&mut fixture), []);
    Ok(Outcome::Passed)
}

/// The agent is a process of its own here, so that its program can be replaced.
fn it_outlives_the_agent_and_follows_an_upgrade() -> Result<Outcome> {
    let fixture = Fixture::new()?;
    let (dir, pin_dir) =
        (fixture.sandbox.dir().to_owned(), fixture.sandbox.pin_dir().with_file_name("agents"));
    let stranger = Stranger::new(&dir)?;
    let program = dir.join("agent");
    copy_to(&program)?;
    let mut holder = Holder::start(&program, &pin_dir)?;
    let said = holder.says()?;
    if said.starts_with("up without") {
        return Ok(CANNOT);
    }
    ensure_eq!(said, "up");
    let pin = Pinned::at(&pin_dir).link("connect4");
    ensure_eq!(stranger.tries(&["unlink", path(&pin)?])?, "EPERM");

    // 1. Killed by the kernel, it leaves the tier behind. Another program is no agent, and the same one is.
    holder.end()?;
    ensure_eq!(stranger.tries(&["unlink", path(&pin)?])?, "EPERM");
    let kept = stranger.tries(&["raise", path(&pin_dir)?])?;
    ensure_eq!(kept.contains("kept from this program by the tamper tier"), true, "{kept}");
    let mut holder = Holder::start(&program, &pin_dir)?;
    ensure_eq!(holder.says()?, "up");

    // 2. An upgrade puts another file in its place. The running agent sees it, says so, and lets it be the next one.
    copy_to(&program)?;
    ensure_eq!(Holder::start(&program, &pin_dir)?.says()?.contains("kept from this program"), true);
    let told = holder.inspect()?;
    ensure_eq!(told.contains("is another file now"), true, "{told}");
    ensure_eq!(holder.inspect()?.contains("is another file now"), false);
    holder.end()?;
    let mut holder = Holder::start(&program, &pin_dir)?;
    ensure_eq!(holder.says()?, "up");
    ensure_eq!(holder.inspect()?.contains("without"), false);
    ensure_eq!(stranger.tries(&["unlink", path(&pin)?])?, "EPERM");
    ensure_eq!(stranger.tries(&["signal", &holder.pid().to_string(), "9"])?, "EPERM");

    // 3. It takes its gate down itself.
    holder.end()?;
    ensure_eq!(
        output(Command::new(&program).args([tests::stranger::FLAG, "lower"]).arg(&pin_dir))?.trim(),
        "ok"
    );
    ensure_eq!(pin.exists(), false);
    // On old kernels its programs run on for a moment.
    let free = pin_dir.join("free");
    wait_for("the tier to be gone", SOON, || {
        Ok((stranger.tries(&["mkdir", path(&free)?])? == "ok").then_some(()))
    })?;
    Ok(Outcome::Passed)
}

fn it_is_lifted_and_taken_down_by_the_agent() -> Result<Outcome> {
    let mut fixture = Fixture::new()?;
    let stranger = Stranger::new(fixture.sandbox.dir())?;
    if !with_tier(&mut fixture)? {
        return Ok(CANNOT);
    }
    let pin = Pinned::at(&fixture.settings.pin_dir).link("connect4");
    let open_pin = || stranger.tries(&["open-pin", path(&pin)?]);
    ensure_eq!(open_pin()?, "EPERM");

    // 1. Lifted for a time, and back, by the agent alone.
    let pin_dir = fixture.settings.pin_dir.clone();
    let kept = stranger.tries(&["lift", path(&pin_dir)?])?;
    ensure_eq!(kept.contains("kept from this program"), true, "{kept}");
    ensure_eq!(lift_tamper(&pin_dir, HOUR)?, true);
    ensure_eq!(open_pin()?, "ok");
    let told: Vec<String> = own_faults(&mut fixture.gate).into_iter().map(|fault| fault.text).collect();
    ensure_eq!(told.iter().any(|text| text.contains("is lifted for the next 3")), true, "{told:?}");
    ensure_eq!(missing(&mut fixture.gate).as_deref(), Some("it is lifted for a time"));
    ensure_eq!(lift_tamper(&pin_dir, Duration::ZERO)?, true);
    ensure_eq!(open_pin()?, "EPERM");
    fixture.gate.inspect();
    ensure_eq!(missing(&mut fixture.gate), None);

    // 2. An agent that does not want it takes it down, and one that does puts it up again.
    fixture.gate = raise(&wanted(&fixture, Demand::Off), &fixture.sandbox)?;
    let opens = || Ok((open_pin()? == "ok").then_some(()));
    wait_for("the pin to open", SOON, opens)?;
    ensure_eq!(with_tier(&mut fixture)?, true);
    ensure_eq!(open_pin()?, "EPERM");

    // 3. `portcullis-agent detach` takes everything down.
    let lowered = agent::kernel::lower(&pin_dir)?;
    let [Lowered { programs, .. }] = &lowered[..] else { bail!("{lowered:?}") };
    ensure_eq!(programs.iter().any(|name| name == "tamper_bpf_map"), true, "{programs:?}");
    ensure_eq!(fs::read_dir(&pin_dir)?.count(), 0);
    Ok(Outcome::Passed)
}
