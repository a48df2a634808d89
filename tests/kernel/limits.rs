//! What happens at the edges: full maps, cgroups too deep, capacities that the kernel does not take.

use anyhow::{Result, bail};
use proto::types::{Protocol, RefusedItem};
use tests::ensure_eq;
use tests::probe::Attempt;
use tests::runner::Test;

use crate::fixture::{Fixture, HOUR, RESOURCE, grant, reaches, resource};

pub(crate) const TESTS: &[Test] = &[
    ("limits::a_full_grants_map_denies_and_says_so", a_full_grants_map_denies_and_says_so),
    ("limits::a_full_subjects_map_denies_and_says_so", a_full_subjects_map_denies_and_says_so),
    ("limits::a_full_resources_map_keeps_what_it_has", a_full_resources_map_keeps_what_it_has),
    ("limits::a_cgroup_too_deep_is_denied", a_cgroup_too_deep_is_denied),
];

fn a_full_grants_map_denies_and_says_so() -> Result<()> {
    let mut fixture = Fixture::with(|settings| settings.grants_max = 2)?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let mut cgroups = Vec::new();
    for subject in 1..=3 {
        let cgroup = fixture.sandbox.make_cgroup(&format!("s{subject}"))?;
        fixture.bind(&cgroup, subject)?;
        cgroups.push(cgroup);
        fixture.wanted.grants.push(grant(subject, RESOURCE, HOUR)?);
    }
    let outcome = fixture.try_apply();
    let refused: Vec<RefusedItem> = outcome.refused.iter().map(|refused| refused.item).collect();
    ensure_eq!(refused, [RefusedItem::Grant(fixture.wanted.grants[2].id)]);
    let reached: Result<Vec<bool>> =
        cgroups.iter().map(|cgroup| reaches(cgroup, Attempt::Tcp, listener.address(), &listener)).collect();
    ensure_eq!(reached?, [true, true, false]);
    // Room again: the third gets in.
    fixture.wanted.grants.remove(0);
    fixture.apply()?;
    ensure_eq!(reaches(&cgroups[2], Attempt::Tcp, listener.address(), &listener)?, true);
    Ok(())
}

fn a_full_subjects_map_denies_and_says_so() -> Result<()> {
    let mut fixture = Fixture::with(|settings| settings.subjects_max = 1)?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let first = fixture.subject("first")?;
    let second = fixture.sandbox.make_cgroup("second")?;
    fixture.wanted.cgroups.insert(second.id()?, 2.try_into()?);
    fixture.wanted.grants.extend([grant(1, RESOURCE, HOUR)?, grant(2, RESOURCE, HOUR)?]);
    let outcome = fixture.try_apply();
    let [refused] = outcome.refused.as_slice() else { bail!("{outcome:?}") };
    ensure_eq!(refused.item, RefusedItem::Subject(2.try_into()?));
    if !refused.error.contains("map SUBJECTS is full (1 entries): raise `kernel.subjects_max`") {
        bail!("{}", refused.error);
    }
    ensure_eq!(reaches(&first, Attempt::Tcp, listener.address(), &listener)?, true);
    ensure_eq!(reaches(&second, Attempt::Tcp, listener.address(), &listener)?, false);
    Ok(())
}

fn a_full_resources_map_keeps_what_it_has() -> Result<()> {
    let mut fixture = Fixture::with(|settings| settings.resources_max = 2)?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let cgroup = fixture.sandbox.make_cgroup("nobody")?;
    for number in 2..=3 {
        let mut at = listener.address();
        at.set_port(at.port() ^ number as u16);
        fixture.wanted.resources.push(resource(number, at, Protocol::Tcp)?);
    }
    // Three ports, and one address each: they share no class, as they are three resources.
    let outcome = fixture.try_apply();
    let [refused] = outcome.refused.as_slice() else { bail!("{outcome:?}") };
    ensure_eq!(refused.item != RefusedItem::Resource(RESOURCE.try_into()?), true, "{refused:?}");
    ensure_eq!(reaches(&cgroup, Attempt::Tcp, listener.address(), &listener)?, false);
    Ok(())
}

fn a_cgroup_too_deep_is_denied() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    fixture.subject("s")?;
    fixture.grant(HOUR)?;
    // The root is level 0, the sandbox's own cgroup 1, the subject's 2.
    let levels = |count: usize| vec!["d"; count].join("/");
    let last = fixture.sandbox.make_cgroup(&format!("s/{}", levels(13)))?;
    let beyond = fixture.sandbox.make_cgroup(&format!("s/{}", levels(14)))?;
    ensure_eq!(reaches(&last, Attempt::Tcp, listener.address(), &listener)?, true);
    ensure_eq!(reaches(&beyond, Attempt::Tcp, listener.address(), &listener)?, false);
    let reasons: Vec<u8> = fixture.denials().iter().map(|record| record.reason).collect();
    ensure_eq!(reasons, [agent_ebpf::verdict::Reason::CgroupTooDeep as u8]);
    Ok(())
}
