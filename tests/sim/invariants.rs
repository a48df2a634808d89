//! What is true after every event, whatever it was; and what becomes true once nothing goes wrong any more.
//!
//! Owns: the promises, each held against what the simulated kernels would really do. Must not know: how the world came to it.

use std::collections::{BTreeMap, BTreeSet};

use agent_ebpf::abi::GrantKey;
use agent_ebpf::verdict::Reason;
use control_plane::rules::grant::Holding;
use proto::types::{AuditEvent, GrantId, GrantState, RefusedItem};
use uuid::Uuid;

use crate::central::GrantRow;
use crate::faults::Event;
use crate::host::{Host, cgroup_of, cookies};
use crate::world::{RESOURCES, SUBJECTS, World, port};

/// What times in whole milliseconds may be off by.
const ROUNDING_NS: u64 = 2_000_000;
/// How often everybody talks, five seconds each, until all is as it should be.
const TALKS_MAX: usize = 24;
/// Longer than any grant, and than any clock is off.
const LONG_NS: u64 = 3 * 3600 * crate::world::SECOND;

type Held = Result<(), String>;

/// All of them.
pub(crate) fn check(world: &World) -> Held {
    if let Some(why) = &world.refused {
        return Err(format!("the control plane refuses what an honest agent says: {why}"));
    }
    for (index, host) in world.hosts.iter().enumerate() {
        entries_end(world, index, host)?;
        resources_are_protected(host)?;
        nothing_goes_back(host)?;
    }
    claims_are_true(world)?;
    lives_are_on_record(world)?;
    verdicts_are_accounted_for(world)
}

fn broken<T>(host: &Host, what: impl std::fmt::Display) -> Result<T, String> {
    Err(format!("{}: {what}", host.name))
}

/// Nobody is let through but by a grant whose time is not over: by true time, by its deadline as it was told, by the limit for
/// outages, and by what the control plane was told of this host.
fn entries_end(world: &World, index: usize, host: &Host) -> Held {
    let boot_ns = host.boot_ns(world.now_ns);
    let pairs = (1..=SUBJECTS).flat_map(|subject| (1..=RESOURCES).map(move |resource| (subject, resource)));
    for (subject, resource) in pairs {
        let (reason, pair) = host.kernel.verdict(cgroup_of(subject), port(resource), boot_ns);
        if reason != Reason::Granted {
            continue;
        }
        let id = named(host, &pair.ok_or("somebody without a pair is let through")?)?;
        let Some(issued) = world.issued.get(&id) else {
            return broken(host, format_args!("{id} lets through, and was never issued"));
        };
        let set_back_ms = u64::try_from(issued.offset_ms - issued.lowest_offset_ms).unwrap_or(0);
        let late_ns = world.lines[index].slowest_ns + set_back_ms * 1_000_000 + ROUNDING_NS;
        if world.now_ns >= issued.at_ns + issued.duration_ns + late_ns {
            return broken(host, format_args!("{id} lets through after its time"));
        }
        match host.truth.deadlines.get(&id) {
            Some(deadline) if boot_ns < *deadline => {}
            other => {
                return broken(host, format_args!("{id} lets through at {boot_ns}, deadline {other:?}"));
            }
        }
        if let Some(limit) = host.truth.limits.get(&resource) {
            let heard = host.truth.heard_boot_ns.unwrap_or(0);
            if boot_ns >= heard + limit {
                return broken(host, format_args!("{id} lets through at {boot_ns}, last heard {heard}"));
            }
        }
        if host.truth.ended.contains(&id) {
            return broken(host, format_args!("{id} lets through, and this host has ended it"));
        }
        let row = &world.central.db.grants[&id];
        let is_free = matches!(row.life.body().hosts.get(&host.name), None | Some(Holding::Free(_)));
        if is_free && !row.ended_by_clock {
            return broken(host, format_args!("{id} lets through, and is {} there", row.life.state()));
        }
    }
    Ok(())
}

/// The grant that a pair is let through by.
fn named(host: &Host, pair: &GrantKey) -> Result<GrantId, String> {
    let entries = &host.kernel.entries;
    let name = entries.grants.get(pair).and_then(|held| entries.names.get(&held.slot));
    name.and_then(|name| GrantId::from_bytes(*name)).ok_or_else(|| format!("{pair:?} has no name"))
}

/// What is not protected was refused by name.
fn resources_are_protected(host: &Host) -> Held {
    let Some(agent) = &host.agent else { return Ok(()) };
    for resource in agent.grants.resources() {
        let (reason, _) = host.kernel.verdict(0, port(resource.number.get()), 0);
        let item = RefusedItem::Resource(resource.number);
        if reason == Reason::NotProtected && !agent.refused.iter().any(|refused| refused.item == item) {
            return broken(host, format_args!("{} is not protected", resource.name));
        }
    }
    Ok(())
}

/// No agent holds less than one of the same boot has told, and the next one can read what this one has written.
fn nothing_goes_back(host: &Host) -> Held {
    let applied = host.agent.as_ref().map(|agent| agent.grants.applied().map_or(0, |(_, held)| held));
    if applied.is_some_and(|applied| applied < host.truth.told_generation) {
        return broken(host, format_args!("holds {applied:?} after {}", host.truth.told_generation));
    }
    match host.disk.is_memory_damaged(host.boot) {
        true => broken(host, "its memory cannot be read"),
        false => Ok(()),
    }
}

/// What is shown as held is in that kernel, but for what the control plane cannot have heard yet.
fn claims_are_true(world: &World) -> Held {
    let now = world.wall();
    for (id, row) in &world.central.db.grants {
        let is_claimed = matches!(row.life.state(), GrantState::Activating | GrantState::Active);
        if !is_claimed || now >= row.life.body().expires {
            continue;
        }
        for (index, host) in world.hosts.iter().enumerate() {
            let is_held = row.life.body().hosts.get(&host.name) == Some(&Holding::Held);
            if is_held && !holds(host, row, world.now_ns) && !is_news(world, index, *id, row) {
                return broken(host, format_args!("{id} is {}, and is not there", row.life.state()));
            }
        }
    }
    Ok(())
}

fn holds(host: &Host, row: &GrantRow, now_ns: u64) -> bool {
    let entries = &host.kernel.entries;
    let pair = GrantKey { subject: row.subject.get(), resource: row.resource.get() };
    let held = entries.grants.get(&pair);
    held.is_some_and(|held| entries.counts(held.slot, held.epoch, host.boot_ns(now_ns)))
}

/// Whether the host has let go of a grant for a reason that it alone knows yet.
fn is_news(world: &World, index: usize, id: GrantId, row: &GrantRow) -> bool {
    let host = &world.hosts[index];
    let boot_ns = host.boot_ns(world.now_ns);
    let entries = &host.kernel.entries;
    let pair = GrantKey { subject: row.subject.get(), resource: row.resource.get() };
    let has_booted = world.central.db.hosts[index].boot != host.boot;
    let has_run_out = host.truth.deadlines.get(&id).is_none_or(|deadline| *deadline <= boot_ns);
    let is_idle = entries.grants.get(&pair).is_some_and(|held| entries.is_idle(held.slot, boot_ns));
    let in_memory = host.disk.recall(host.boot, boot_ns).ended;
    let by_agent = host.agent.as_ref().map(|agent| agent.grants.ended()).unwrap_or_default();
    let has_ended = in_memory.iter().chain(&by_agent).any(|ended| ended.grant == id);
    let limit = host.truth.limits.get(&row.resource.get());
    let is_cut_off = limit.is_some_and(|limit| {
        !host.truth.has_heard || boot_ns >= host.truth.heard_boot_ns.unwrap_or(0) + limit
    });
    let is_blank =
        host.agent.as_ref().is_some_and(|agent| agent.grants.applied().is_none_or(|held| held.1 == 0));
    has_booted || is_blank || has_run_out || is_idle || has_ended || is_cut_off
}

/// Each state was entered once, in order, with its event.
fn lives_are_on_record(world: &World) -> Held {
    let mut last: BTreeMap<GrantId, GrantState> = BTreeMap::new();
    let rank = |state: &GrantState| match state {
        // Every grant of these worlds begins when it is approved.
        GrantState::Scheduled | GrantState::Activating => 0,
        GrantState::Active => 1,
        GrantState::Ending(_) => 2,
        GrantState::Ended(_) => 3,
    };
    for (id, state) in &world.central.db.log {
        if last.insert(*id, *state).is_some_and(|before| rank(&before) >= rank(state)) {
            return Err(format!("{id} goes back to {state}"));
        }
    }
    let differing = world.central.db.grants.iter().find(|(id, row)| last.get(id) != Some(&row.life.state()));
    differing.map_or(Ok(()), |(id, row)| Err(format!("{id} is {}, which is not on record", row.life.state())))
}

/// Every verdict is once in the record, or in a gap, or on its way.
fn verdicts_are_accounted_for(world: &World) -> Held {
    let received = cookies(&world.central.db.received);
    let mut found: BTreeSet<u64> = received.iter().copied().collect();
    if found.len() < received.len() {
        return Err("a verdict is in the record twice".to_owned());
    }
    for host in &world.hosts {
        found.extend(host.kernel.ring.iter().map(|record| record.socket_cookie));
        found.extend(
            host.agent.iter().flat_map(|agent| cookies(agent.pending.iter().map(|entry| &entry.event))),
        );
        found.extend(cookies(host.disk.events()));
        found.extend(&host.truth.excused);
    }
    for (cookie, index) in world.verdicts.iter().filter(|(cookie, _)| !found.contains(cookie)) {
        let host = &world.hosts[*index];
        let number = host.truth.numbers.get(cookie);
        let events = host.disk.events().chain(&world.central.db.received);
        if !number.is_some_and(|number| is_in_a_gap(events, host, *number)) {
            return broken(host, format_args!("verdict {cookie}, {number:?}, is nowhere"));
        }
    }
    Ok(())
}

fn is_in_a_gap<'a>(
    mut events: impl Iterator<Item = &'a AuditEvent>,
    host: &Host,
    (epoch, number): (Uuid, u64),
) -> bool {
    events.any(|event| {
        let lost = event.gap.as_ref().and_then(|gap| gap.sequences);
        event.id.host.as_ref() == Some(&host.name)
            && event.id.epoch == epoch
            && lost.is_some_and(|(first, last)| (first..=last).contains(&number))
    })
}

/// Nothing goes wrong any more: what was under way comes to its end.
pub(crate) fn converge(world: &mut World) -> Held {
    world.settle();
    check(world)?;
    until_settled(world)?;
    // The clock is put right, and everything is over.
    world.happen(Event::StepClock { seconds: 3 });
    world.wait(LONG_NS);
    check(world)?;
    until_settled(world)?;
    let is_over = |row: &GrantRow| matches!(row.life.state(), GrantState::Ended(_));
    match world.central.db.grants.iter().find(|(_, row)| !is_over(row)) {
        Some((id, row)) => Err(format!("{id} is {} for ever", row.life.state())),
        None => Ok(()),
    }
}

fn until_settled(world: &mut World) -> Held {
    let mut settled = Ok(());
    for _ in 0..TALKS_MAX {
        world.talk();
        check(world)?;
        settled = is_settled(world);
        if settled.is_ok() {
            return Ok(());
        }
    }
    settled.map_err(|problem| format!("never settles: {problem}"))
}

fn is_settled(world: &World) -> Held {
    let is_stuck =
        |row: &GrantRow| matches!(row.life.state(), GrantState::Activating | GrantState::Ending(_));
    if let Some((id, row)) = world.central.db.grants.iter().find(|(_, row)| is_stuck(row)) {
        return Err(format!("{id} is {}", row.life.state()));
    }
    for (index, host) in world.hosts.iter().enumerate() {
        let Some(agent) = &host.agent else { return broken(host, "has no agent") };
        if !host.kernel.ring.is_empty() || !agent.pending.is_empty() || host.disk.events().next().is_some() {
            return broken(host, "has events that are not on record");
        }
        losses_are_told(world, host)?;
        let plan = world.central.db.plan(index);
        let ended = agent.grants.ended().iter().map(|ended| ended.grant).collect();
        let expected = plan.digest(&agent.refused, &ended, world.wall());
        let (Some(expected), Some(digest)) = (expected, host.digest(world.now_ns)) else {
            return broken(host, "cannot be compared yet");
        };
        // Hosts do not follow a clock that is set.
        if !world.has_stepped && digest != expected {
            return broken(host, format_args!("holds {digest:?} instead of {expected:?}"));
        }
    }
    Ok(())
}

/// What a ring has lost is in the record, once and by its number, unless that event itself was lost in a gap.
fn losses_are_told(world: &World, host: &Host) -> Held {
    let mut told = 0;
    for event in &world.central.db.received {
        if let Some(gap) = event.gap.as_ref().filter(|_| event.id.epoch == host.boot) {
            if gap.sequences.is_some() {
                return Ok(());
            }
            told += gap.lost;
        }
    }
    match told != host.kernel.lost {
        true => broken(host, format_args!("{} losses, {told} told", host.kernel.lost)),
        false => Ok(()),
    }
}
