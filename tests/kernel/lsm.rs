//! The LSM tier: sockets whose packets pass the gate, and sockets that are handed to somebody else. Where the kernel cannot
//! have it, that it says so.

use std::collections::BTreeSet;

use agent::kernel::{Demand, Gate, KernelError, Lowered, Missing, Settings, UNIX_SOCKETS};
use agent::rules::plan::ResourceOptions;
use agent_ebpf::abi::{Hook, VerdictRecord};
use agent_ebpf::family::{ALG, INET, INET6, KEY, NETLINK, PACKET, SMC, UNIX, VSOCK, XDP};
use agent_ebpf::verdict::{Reason, Verdict};
use anyhow::{Result, bail};
use proto::types::Protocol;
use socket2::Type;
use tests::ensure_eq;
use tests::probe::Attempt;
use tests::process::wait_for;
use tests::runner::{Choosy, Outcome, Test};
use tests::sandbox::Cgroup;
use tests::socket_probe::{KEPT_FROM_IT, Lender, ask, receive, take};

use crate::connections::SOON;
use crate::fixture::{Fixture, HOUR, RESOURCE, SUBJECT, reaches};
use crate::life::{OtherGate, link_dir, raise};

pub(crate) const TESTS: &[Test] = &[
    ("lsm::what_is_missing_is_said", what_is_missing_is_said),
    ("lsm::nothing_is_refused_that_was_not_asked_for", nothing_is_refused_that_was_not_asked_for),
];

pub(crate) const CHOOSY: &[Choosy] = &[
    ("lsm::other_families_are_refused", other_families_are_refused),
    ("lsm::some_cgroups_are_exempt", some_cgroups_are_exempt),
    ("lsm::a_connection_is_handed_to_nobody_else", a_connection_is_handed_to_nobody_else),
    ("lsm::nor_is_one_of_another_abi_version", nor_is_one_of_another_abi_version),
    ("lsm::it_stays_up_without_an_agent_until_it_is_not_wanted", it_stays_up_without_an_agent),
];

const PACKETS: &str = "packet sockets";
const HANDOFF: &str = "handoff";

/// Refused whether there is a module for them or not; the last ones are AF_KCM, AF_RDS, AF_TIPC and AF_CAN.
const REFUSED: [u8; 8] = [PACKET, XDP, VSOCK, SMC, 41, 21, 30, 29];

/// What is missing of the tier, by the gate's own account.
fn of_the_tier(gate: &mut Gate) -> Vec<Missing> {
    gate.missing()
        .into_iter()
        .filter(|missing| [PACKETS, HANDOFF, UNIX_SOCKETS].contains(&missing.part))
        .collect()
}

/// Whether the kernel cannot have this part.
fn lacks(fixture: &mut Fixture, part: &str) -> bool {
    of_the_tier(&mut fixture.gate).iter().any(|missing| missing.part == part)
}

const CANNOT: Outcome = Outcome::Skipped("this kernel runs no such LSM program");

/// A packet socket, as `ask` says it. 0 as its protocol: it gets no packets, and so costs nobody anything.
fn packet(cgroup: &Cgroup) -> Result<String> {
    ask(cgroup, PACKET, Type::RAW, 0)
}

/// Each part is either proven here to be there, or named with its reason: there is no third way.
fn what_is_missing_is_said() -> Result<()> {
    let mut fixture = Fixture::with_lsm(|_| {})?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let (subject, nobody) = (fixture.subject("subject")?, fixture.sandbox.make_cgroup("nobody")?);
    fixture.grant(HOUR)?;
    let lender = Lender::start(&subject, listener.address(), fixture.sandbox.dir().join("lender"))?;
    let found = [(PACKETS, packet(&nobody)?), (HANDOFF, take(&nobody, &lender)?)];
    let missing = of_the_tier(&mut fixture.gate);
    for (part, said) in found {
        let expected = if missing.iter().any(|missing| missing.part == part) { "ok" } else { "EPERM" };
        ensure_eq!(said, expected, "{part}: {missing:?}");
    }
    if missing.iter().any(|missing| missing.why.is_empty()) {
        bail!("there is no reason: {missing:?}");
    }

    let required = Settings {
        lsm: agent::kernel::LsmSettings { demand: Demand::Require, ..fixture.settings.lsm.clone() },
        ..fixture.settings.clone()
    };
    match raise(&required, &fixture.sandbox) {
        Ok(mut gate) => ensure_eq!((missing, of_the_tier(&mut gate)), (vec![], vec![])),
        Err(KernelError::Lsm { missing: told }) => {
            let is_told = |missing: &Missing| told.contains(missing.part) && told.contains(&missing.why);
            if missing.is_empty() || !missing.iter().all(is_told) {
                bail!("{missing:?} is told as {told}");
            }
        }
        Err(error) => bail!("{error}"),
    }
    // Whatever came of it, the gate stands.
    ensure_eq!(reaches(&nobody, Attempt::Tcp, listener.address(), &listener)?, false);
    ensure_eq!(reaches(&subject, Attempt::Tcp, listener.address(), &listener)?, true);
    Ok(())
}

fn nothing_is_refused_that_was_not_asked_for() -> Result<()> {
    let mut fixture = Fixture::new()?;
    ensure_eq!(of_the_tier(&mut fixture.gate), []);
    let nobody = fixture.sandbox.make_cgroup("nobody")?;
    // The kernel may still be letting go of the programs of the test before.
    wait_for("a packet socket", SOON, || Ok((packet(&nobody)? == "ok").then_some(())))
}

fn other_families_are_refused() -> Result<Outcome> {
    let mut fixture = Fixture::with_lsm(|settings| settings.lsm.families |= agent_ebpf::family::set_of(30))?;
    if lacks(&mut fixture, PACKETS) {
        return Ok(CANNOT);
    }
    let cgroup = fixture.sandbox.make_cgroup("somebody")?;
    let refused: Vec<u8> = REFUSED.into_iter().filter(|family| *family != 30).collect();
    for family in refused.iter().copied() {
        ensure_eq!(ask(&cgroup, family, Type::RAW, 0)?, "EPERM", "family {family}");
    }
    // The old way to ask for one.
    const SOCK_PACKET: i32 = 10;
    // The new way to ask for AF_SMC.
    const IPPROTO_SMC: i32 = 256;
    ensure_eq!(ask(&cgroup, INET, Type::from(SOCK_PACKET), 0)?, "EPERM");
    ensure_eq!(ask(&cgroup, INET, Type::STREAM, IPPROTO_SMC)?, "EPERM");
    let records = fixture.denials();
    let families: Vec<u8> = records.iter().map(|record| record.family).collect();
    ensure_eq!(families, [refused, vec![PACKET, SMC]].concat());
    let id = cgroup.id()?;
    let expected = |record: &&VerdictRecord| {
        (record.cgroup_id, record.hook, record.reason, record.resource)
            == (id, Hook::SocketCreate as u8, Reason::FamilyRefused as u8, 0)
            && record.pid > 0
            && record.command != [0; 16]
    };
    ensure_eq!(records.iter().filter(expected).count(), records.len(), "{records:?}");

    let usual = [
        (UNIX, Type::STREAM, 0),
        (INET, Type::STREAM, 0),
        (INET, Type::DGRAM, 0),
        (INET, Type::RAW, libc::IPPROTO_ICMP),
        (INET6, Type::STREAM, 0),
        (NETLINK, Type::RAW, 0),
    ];
    for (family, kind, protocol) in usual {
        ensure_eq!(ask(&cgroup, family, kind, protocol)?, "ok", "family {family}");
    }
    // Not every kernel has these; what counts is that we are not why.
    for (family, kind) in [(KEY, Type::RAW), (ALG, Type::SEQPACKET), (30, Type::STREAM)] {
        if ask(&cgroup, family, kind, 0)? == "EPERM" {
            bail!("family {family} is refused");
        }
    }
    ensure_eq!(fixture.denials().len(), 0);
    Ok(Outcome::Passed)
}

fn some_cgroups_are_exempt() -> Result<Outcome> {
    let mut fixture = Fixture::with_lsm(|_| {})?;
    if lacks(&mut fixture, PACKETS) {
        return Ok(CANNOT);
    }
    let (client, other) = (fixture.sandbox.make_cgroup("dhcp")?, fixture.sandbox.make_cgroup("other")?);
    let within = fixture.sandbox.make_cgroup("dhcp/client")?;
    ensure_eq!(packet(&client)?, "EPERM");
    let mut exempt = fixture.settings.lsm.exempt.clone();
    exempt.insert(client.id()?);
    fixture.gate.exempt(&exempt)?;
    ensure_eq!(packet(&client)?, "ok");
    ensure_eq!(packet(&other)?, "EPERM");
    // Old kernels know the task's own cgroup only.
    let knows_ancestors = packet(&within)? == "ok";
    ensure_eq!(knows_ancestors || agent::observe::kernel_release().starts_with("5."), true);

    // The next agent starts from what it is told, not from what is there.
    let next = raise(&fixture.settings, &fixture.sandbox)?;
    ensure_eq!(packet(&client)?, "EPERM");
    drop(next);
    fixture.gate.exempt(&BTreeSet::from([other.id()?]))?;
    ensure_eq!(packet(&other)?, "ok");
    Ok(Outcome::Passed)
}

fn a_connection_is_handed_to_nobody_else() -> Result<Outcome> {
    let mut fixture = Fixture::with_lsm(|_| {})?;
    if lacks(&mut fixture, HANDOFF) {
        return Ok(CANNOT);
    }
    let listener = fixture.protected(Protocol::Tcp)?;
    let lending = fixture.subject("lending")?;
    let (same, other) = (fixture.subject("same")?, fixture.sandbox.make_cgroup("other")?);
    fixture.bind(&other, SUBJECT + 1)?;
    let nobody = fixture.sandbox.make_cgroup("nobody")?;
    let grant = fixture.grant(HOUR)?;
    let lender = Lender::start(&lending, listener.address(), fixture.sandbox.dir().join("lender"))?;

    ensure_eq!((receive(&same, &lender)?, take(&same, &lender)?), ("ok".to_owned(), "ok".to_owned()));
    ensure_eq!(fixture.denials(), []);
    // A grant of one's own makes nobody else's connection one's own.
    fixture.grant_to(SUBJECT + 1, RESOURCE, HOUR)?;
    for (cgroup, subject) in [(&other, SUBJECT + 1), (&nobody, 0)] {
        ensure_eq!(receive(cgroup, &lender)?, KEPT_FROM_IT);
        ensure_eq!(take(cgroup, &lender)?, "EPERM");
        let records = fixture.denials();
        ensure_eq!(records.len(), 2, "{records:?}");
        for record in records {
            ensure_eq!((record.hook, record.reason), (Hook::FileReceive as u8, Reason::HandedOver as u8));
            ensure_eq!((record.subject, record.resource), (subject, RESOURCE));
            ensure_eq!(record.cgroup_id, cgroup.id()?);
            ensure_eq!(record.grant, *grant.id.as_bytes());
            ensure_eq!((record.port, record.protocol), (listener.address().port(), 6));
        }
    }

    // Where the resource is only observed, it is handed on and told.
    fixture.guard(RESOURCE, ResourceOptions { observe: true, ..ResourceOptions::default() })?;
    ensure_eq!(take(&nobody, &lender)?, "ok");
    let verdicts: Vec<(u8, u8)> =
        fixture.denials().iter().map(|record| (record.verdict, record.reason)).collect();
    ensure_eq!(verdicts, [(Verdict::WouldDeny as u8, Reason::HandedOver as u8)]);
    drop(lender);

    // What was not let through to anything is nobody's business.
    let plain = std::net::TcpListener::bind((fixture.sandbox.address(), 0))?;
    let lender = Lender::start(&nobody, plain.local_addr()?, fixture.sandbox.dir().join("plain"))?;
    ensure_eq!((receive(&other, &lender)?, take(&other, &lender)?), ("ok".to_owned(), "ok".to_owned()));
    ensure_eq!(fixture.denials(), []);
    Ok(Outcome::Passed)
}

/// What a gate of another ABI version had let through stays with its subject as well.
fn nor_is_one_of_another_abi_version() -> Result<Outcome> {
    let mut fixture = Fixture::with_lsm(|_| {})?;
    if lacks(&mut fixture, HANDOFF) {
        return Ok(CANNOT);
    }
    let listener = fixture.protected(Protocol::Tcp)?;
    let (lending, same) = (fixture.subject("lending")?, fixture.subject("same")?);
    let nobody = fixture.sandbox.make_cgroup("nobody")?;
    fixture.grant(HOUR)?;
    let mut other = OtherGate::raise(&fixture)?;
    other.apply(&fixture.wanted)?;
    let Fixture { gate, sandbox, .. } = fixture;
    let lender = Lender::start(&lending, listener.address(), sandbox.dir().join("lender"))?;
    // The first one's agent has ended: nothing but its pins holds its programs.
    drop(gate);
    other.succeed()?;
    ensure_eq!((receive(&same, &lender)?, take(&same, &lender)?), ("ok".to_owned(), "ok".to_owned()));
    ensure_eq!(receive(&nobody, &lender)?, KEPT_FROM_IT);
    ensure_eq!(take(&nobody, &lender)?, "EPERM");
    Ok(Outcome::Passed)
}

fn it_stays_up_without_an_agent() -> Result<Outcome> {
    let mut fixture = Fixture::with_lsm(|_| {})?;
    if lacks(&mut fixture, PACKETS) {
        return Ok(CANNOT);
    }
    // What is no longer pinned would end with the agent.
    let pin = link_dir(&fixture.settings).join(Hook::SocketCreate.as_str());
    std::fs::remove_file(&pin)?;
    let repaired = |gate: &mut Gate| -> Vec<String> {
        gate.inspect().into_iter().filter(|fault| fault.repaired).map(|fault| fault.text).collect()
    };
    ensure_eq!(repaired(&mut fixture.gate), ["1 object is no longer pinned: socket_create; pinned again"]);
    ensure_eq!((pin.exists(), repaired(&mut fixture.gate)), (true, vec![]));

    let cgroup = fixture.sandbox.make_cgroup("nobody")?;
    let Fixture { gate, allow, deny, closed, sandbox, settings, .. } = fixture;
    drop((gate, allow, deny, closed));
    ensure_eq!(packet(&cgroup)?, "EPERM");
    // Taken over, nothing changes; and what an agent does not want any more, it takes down.
    drop(raise(&settings, &sandbox)?);
    ensure_eq!(packet(&cgroup)?, "EPERM");
    let off = Settings { lsm: agent::kernel::LsmSettings::default(), ..settings.clone() };
    drop(raise(&off, &sandbox)?);
    let opens = || Ok((packet(&cgroup)? == "ok").then_some(()));
    wait_for("packet sockets", SOON, opens)?;
    drop(raise(&settings, &sandbox)?);
    ensure_eq!(packet(&cgroup)?, "EPERM");
    let lowered = agent::kernel::lower(&settings.pin_dir)?;
    let [Lowered { programs, .. }] = &lowered[..] else { bail!("{lowered:?}") };
    ensure_eq!(programs.iter().any(|name| name == Hook::SocketCreate.as_str()), true, "{programs:?}");
    wait_for("packet sockets", SOON, opens)?;
    drop(sandbox);
    Ok(Outcome::Passed)
}
