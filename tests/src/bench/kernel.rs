//! What the gate in the kernel costs: the whole benchmark, in order.

use anyhow::Result;

use super::gated::Gated;
use super::machine::Machine;
use super::place::Place;
use super::report::{Report, Table, complain, progress};
use super::{Effort, hooks, pooler, rates, verdicts};
use crate::tampering::attach_idle;

// Where each place has its servers. "Far" ones are outside the gate, the others within, as on a host that connects to itself.

/// Nobody protects it.
pub(super) const FREE: u16 = 8000;
/// The same.
pub(super) const FREE_FAR: u16 = 8100;
/// Protected, with a grant.
pub(super) const GRANTED: u16 = 7000;
/// The same.
pub(super) const GRANTED_FAR: u16 = 7100;
/// Protected, with a grant, and each write is judged.
pub(super) const CHECKED: u16 = 7500;
/// Protected, without.
pub(super) const DENIED: u16 = 9000;
/// A proxy's.
pub(super) const PROXIED: u16 = 6000;

fn gate(grants: u32) -> Result<Gated> {
    Gated::new((GRANTED.into(), u32::from(GRANTED) + 199), (DENIED.into(), u32::from(DENIED) + 99), grants)
}

/// Measures all parts with `only` in their names. What cannot be measured here is said, and left out.
pub fn measure(effort: Effort, only: &str) -> Result<Report> {
    let Effort { rounds, slice, database, flood, .. } = effort;
    let mut machine = Machine::look();
    progress("putting up two gates, proxies, a filter");
    let mut few = gate(10)?;
    // By itself: what judges writes is attached only where some resource wants it.
    let mut strict = gate(10)?;
    strict.check_senders((CHECKED.into(), u32::from(CHECKED) + 99))?;
    let many = gate(effort.many_grants)?;
    let dir = few.sandbox.dir().to_owned();
    let address = few.sandbox.address();
    let outside = few.sandbox.make_cgroup("outside")?;
    let far = few.sandbox.make_cgroup("far")?;

    let bare = Place::new(&outside, address, &[(&outside, &[FREE])])?;
    let inside = [(&few.subject, [FREE, GRANTED].as_slice()), (&far, &[FREE_FAR, GRANTED_FAR])];
    let gated = Place::new(&few.subject, address, &inside)?;
    let filtered = Place::new(&outside, address, &[(&outside, &[GRANTED])])?;
    let mut proxied = Place::new(&outside, address, &[(&outside, &[FREE])])?;
    let mut among_many = Place::new(&many.subject, many.sandbox.address(), &[(&far, &[GRANTED_FAR])])?;
    filtered.filter(&outside, &format!("{GRANTED}-{}", GRANTED + 199), &dir)?;
    proxied.proxy(PROXIED, FREE, &dir)?;
    let idle = few.sandbox.make_cgroup("idle")?;
    let _programs = attach_idle(&idle.directory)?;
    let idle = Place::new(&idle, address, &[(&idle, &[FREE])])?;
    let judged = Place::new(&strict.subject, strict.sandbox.address(), &[(&strict.subject, &[CHECKED])])?;
    let mut places = [bare, gated, filtered, proxied, idle, judged];

    let mut tables = Vec::new();
    let mut part = |name: &str, measure: &mut dyn FnMut() -> Result<Table>| {
        if !name.contains(only) {
            return;
        }
        progress(name);
        match measure() {
            Ok(table) => tables.push(table),
            Err(error) => complain(&format!("{name}: {error:#}")),
        }
    };
    part("rates", &mut || rates::compare(&mut places, effort));
    part("refusals", &mut || rates::denial(&mut places[1], effort));
    part("nanoseconds", &mut || {
        few.judge_arrivals(true)?;
        let table = hooks::costs(&few, &mut places[1], effort);
        few.judge_arrivals(false)?;
        table
    });
    part("growth", &mut || hooks::growth((&few, &mut places[1]), (&many, &mut among_many), effort));
    part("records", &mut || verdicts::account(&few, &mut places[1], effort));
    part("PostgreSQL", &mut || pooler::compare(&mut few, &outside, effort));

    machine.look_again();
    let effort = format!(
        "{rounds} rounds of {} ms each, all contenders in turn; PostgreSQL: {} rounds of {} connections; records: {} s each",
        slice.as_millis(),
        database.0,
        database.1,
        flood.as_secs_f64()
    );
    Ok(Report { machine, effort, tables })
}
