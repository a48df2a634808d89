//! PostgreSQL, reached directly and through PgBouncer, with and without the gate.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Effort;
use super::gated::Gated;
use super::report::{Row, Table};
use super::series::{Spread, ratios};
use crate::postgres::Postgres;
use crate::process::{Background, in_cgroup, output, wait_for};
use crate::sandbox::Cgroup;

const PORT: u16 = 5432;
const POOLED: u16 = 6431;
const POOLED_WITH_GATE: u16 = 6432;

/// A way to the database.
struct Way<'a> {
    name: &'static str,
    /// Of the client.
    cgroup: &'a Cgroup,
    port: u16,
}

/// Measures connections a second and the latency of a query, by four ways in turn. `outside` is a cgroup outside the gate.
pub fn compare(gated: &mut Gated, outside: &Cgroup, effort: Effort) -> Result<Table> {
    let (dir, address) = (gated.sandbox.dir().to_owned(), gated.sandbox.address());
    let postgres = Postgres::start(&dir, address, PORT)?;
    let pooler = gated.sandbox.make_cgroup("gated/pooler")?;
    gated.bind(&pooler)?;
    gated.grant_port(PORT)?;
    let _poolers = [
        start_pooler(&postgres, outside, &dir, address, POOLED)?,
        start_pooler(&postgres, &pooler, &dir, address, POOLED_WITH_GATE)?,
    ];
    let inside = gated.subject.clone();
    let ways = [
        Way { name: "direct", cgroup: outside, port: PORT },
        Way { name: "direct, gate, granted", cgroup: &inside, port: PORT },
        Way { name: "PgBouncer", cgroup: outside, port: POOLED },
        Way { name: "PgBouncer, gate, it is granted", cgroup: &inside, port: POOLED_WITH_GATE },
    ];
    let script = dir.join("select.sql");
    fs::write(&script, "select 1;\n")?;

    let (rounds, count) = effort.database;
    let mut found: [[Vec<f64>; 2]; 4] = Default::default();
    for round in 0..rounds {
        for turn in 0..ways.len() {
            let index = (round + turn) % ways.len();
            let way = &ways[index];
            let connections = pgbench(&postgres, way, address, &script, &["-C", "-t", &count.to_string()])?;
            found[index][0].push(figure(&connections, "tps = ")?);
            let queries = pgbench(&postgres, way, address, &script, &["-t", &(count * 20).to_string()])?;
            found[index][1].push(figure(&queries, "latency average = ")? * 1e3);
        }
    }
    let mut rows = Vec::new();
    for (what, figure) in [("connections with a query/s", 0), ("query on one connection, µs", 1)] {
        for (index, way) in ways.iter().enumerate() {
            let (values, base) = (&found[index][figure], &found[0][figure]);
            let Some(value) = Spread::of(values) else { continue };
            let speeds = if figure == 1 { ratios(base, values) } else { ratios(values, base) };
            let ratio = (index > 0).then(|| Spread::of(&speeds)).flatten();
            rows.push(Row { ratio, ..Row::new(what, way.name, value) });
        }
    }
    Ok(Table { title: "PostgreSQL, and how fast that is compared with the direct way".to_owned(), rows })
}

fn pgbench(
    postgres: &Postgres,
    way: &Way<'_>,
    address: Ipv4Addr,
    script: &Path,
    more: &[&str],
) -> Result<String> {
    let mut command = in_cgroup(way.cgroup, postgres.pgbench());
    command.args(["-n", "-h", &address.to_string(), "-p", &way.port.to_string(), "-U", "demo"]);
    command.arg("-f").arg(script).args(more).arg("postgres");
    output(&mut command)
}

/// The number after these words.
fn figure(printed: &str, words: &str) -> Result<f64> {
    let rest = printed.lines().find_map(|line| line.strip_prefix(words));
    let number = rest.and_then(|rest| rest.split(' ').next()?.parse().ok());
    number.with_context(|| format!("no `{words}` in what pgbench printed:\n{printed}"))
}

fn start_pooler(
    postgres: &Postgres,
    cgroup: &Cgroup,
    dir: &Path,
    address: Ipv4Addr,
    port: u16,
) -> Result<Background> {
    let text = format!(
        "[databases]\npostgres = host={address} port={PORT} user=demo\n\
         [pgbouncer]\nlisten_addr = {address}\nlisten_port = {port}\nunix_socket_dir =\n\
         auth_type = any\npool_mode = transaction\nlog_connections = 0\nlog_disconnections = 0\n"
    );
    let file = dir.join(format!("pgbouncer-{port}.ini"));
    fs::write(&file, text)?;
    // It refuses to run as root.
    let mut command = in_cgroup(cgroup, "/usr/bin/setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "pgbouncer", "-q"]).arg(&file);
    let mut process =
        Background::start("PgBouncer", &mut command, &dir.join(format!("pgbouncer-{port}.log")))?;
    wait_for("PgBouncer to answer", Duration::from_secs(10), || {
        process.ensure_running()?;
        let mut query = Command::new(postgres.psql());
        query.args([
            "-h",
            &address.to_string(),
            "-p",
            &port.to_string(),
            "-U",
            "demo",
            "-c",
            "select 1",
            "postgres",
        ]);
        Ok(query.output()?.status.success().then_some(()))
    })?;
    Ok(process)
}
