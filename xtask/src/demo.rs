//! `demo`: the story of Portcullis on this machine.
//!
//! Owns only the way there: building what the story uses, and the server it needs. The story itself is the program `demo`
//! of the package `tests`, which stands on the same ground as the tests.

use anyhow::{Result, bail};

use crate::{
    setup::{self, Thing},
    sh::{self, Checkout},
};

pub(crate) fn run(checkout: &Checkout) -> Result<()> {
    if !sh::is_root() {
        bail!(
            "the demo loads programs into the kernel, which takes root: try `sudo -E env PATH=\"$PATH\" cargo xtask demo`"
        );
    }
    setup::ensure(checkout, &[Thing::RustComponents, Thing::BpfLinker, Thing::Postgres])?;
    eprintln!("building (some minutes the first time) …");
    sh::run(checkout.cargo().args(["build", "--quiet", "--workspace", "--bins"]))?;
    sh::run(checkout.cargo().args(["run", "--quiet", "--package", "tests", "--bin", "demo"]))
}
