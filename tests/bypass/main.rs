//! The bypass suite: every way we know to get a byte to a protected port, tried for real, with the proof at the receiver.
//!
//! Each technique is declared in `techniques/` with what it needs and what stops it, and is run four ways: without a grant
//! (nothing may arrive), with one, to a port that nobody protects (it must arrive: nothing is over-blocked), and on a socket
//! kept past the end of its grant; what is lent also where each write is judged. What cannot be stopped is reported, never hidden. Needs root and BPF; a technique that
//! the kernel cannot try is skipped by name, for one of the reasons in `technique::Feature`.

mod place;
mod probe;
mod receiver;
mod run;
mod scene;
mod table;
mod technique;
mod techniques;

use anyhow::{Result, bail};
use tests::runner::{Case, Outcome};

use crate::table::Row;
use crate::technique::Technique;

fn main() {
    let techniques = techniques::all();
    probe::run_if_asked(&techniques);
    let cases = techniques.iter().copied().map(|technique| Case {
        name: format!("bypass::{}", technique.name),
        run: Box::new(move || check(technique)),
    });
    tests::runner::run(cases.collect(), || table::write_if_asked(&techniques));
}

fn check(technique: &'static Technique) -> Result<Outcome> {
    if let Some(reason) = run::lacking(technique) {
        table::add(Row::skipped(technique, reason));
        return Ok(Outcome::Skipped(reason));
    }
    let (row, wrong) = run::run(technique)?;
    table::add(row);
    if !wrong.is_empty() {
        bail!("{}", wrong.join("; "));
    }
    Ok(Outcome::Passed)
}
