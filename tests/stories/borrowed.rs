//! Sockets that somebody else made: whoever uses one hears of it soon.

use anyhow::Result;
use serde_json::json;
use tests::ensure_eq;
use tests::runner::Test;
use tests::socket_probe::{Lender, connect};
use tests::stage::Stage;

use crate::life::stage_with_resource;

pub(crate) const TESTS: &[Test] =
    &[("borrowed::nobody_waits_for_a_socket_of_somebody_else", nobody_waits_for_a_socket_of_somebody_else)];

fn nobody_waits_for_a_socket_of_somebody_else() -> Result<()> {
    // 1. Alice may reach the database. A process of hers is handed a socket that nobody's process has made.
    let (stage, listener): (Stage, _) = stage_with_resource()?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    let grant = stage.grant("user:alice", "db", "10m")?;
    let nobody = stage.sandbox().make_cgroup("nobody")?;
    let lender = Lender::start_unconnected(&nobody, stage.path("lender"))?;

    // 2. It gets nowhere, and is told so long before its connection would time out.
    ensure_eq!(connect(&alice, &lender, listener.address())?, "ECONNABORTED");
    let told = stage.wait_for_event("the refusal", |event| event["reason"] == "creator_differs")?;
    ensure_eq!((&told["event"], &told["grant"]), (&json!("conn.deny"), &json!(grant)));
    ensure_eq!(told["connection"]["port"], listener.address().port());

    // 3. By a socket of her own she gets through; so does one that she lends herself.
    let lender = Lender::start_unconnected(&alice, stage.path("own"))?;
    ensure_eq!(connect(&alice, &lender, listener.address())?, "ok");
    Ok(())
}
