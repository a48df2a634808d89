//! Where load is made: a cgroup, a network namespace that nobody else is in, servers in it, and what stands between them.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::worker::{ECHO, GREETING, SINK, Worker};
use crate::process::{Background, in_cgroup, output, wait_for};
use crate::sandbox::Cgroup;

/// A worker and its servers.
pub struct Place {
    /// Who makes the load.
    pub worker: Worker,
    address: Ipv4Addr,
    _servers: Vec<Worker>,
    _between: Option<Background>,
}

impl Place {
    /// A worker in `cgroup`, and for each pair a server in that cgroup, which counts its ports from those.
    pub fn new(cgroup: &Cgroup, address: Ipv4Addr, servers: &[(&Cgroup, &[u16])]) -> Result<Self> {
        let mut command = in_cgroup(cgroup, "taskset");
        command.args(["--cpu-list", "0", "unshare", "--net", "/bin/sh", "-c"]);
        command.args([r#"ip link set lo up && exec "$@""#, "sh"]);
        let worker = Worker::start(command)?;
        let mut place = Self { worker, address, _servers: Vec::new(), _between: None };
        for (cgroup, ports) in servers {
            let mut command = in_cgroup(cgroup, "taskset");
            // Away from the worker, if there is such a place.
            let last = std::thread::available_parallelism().map_or(0, |count| count.get() - 1);
            command.args(["--cpu-list", &last.to_string(), "nsenter"]).arg(place.netns());
            let addresses: Vec<SocketAddr> = ports.iter().map(|port| place.at(*port)).collect();
            place._servers.push(Worker::serve(command, &addresses)?);
        }
        Ok(place)
    }

    /// A port at the place's address.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address.into(), port)
    }

    /// The argument of `nsenter`.
    fn netns(&self) -> String {
        format!("--net=/proc/{}/ns/net", self.worker.pid())
    }

    /// A command within the place's network namespace.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(self.netns()).arg(program);
        command
    }

    /// Lets one cgroup through to these ports and nobody else, by nftables. The rules are gone with the namespace.
    pub fn filter(&self, cgroup: &Cgroup, ports: &str, dir: &Path) -> Result<()> {
        let path = in_nftables(cgroup)?;
        let (address, level) = (self.address, cgroup.path.matches('/').count());
        let rule = |protocol: &str| {
            // `nft` looks for the path below this directory, but the level counts from the root of cgroup v2.
            format!(
                "ip daddr {address} {protocol} dport {ports} socket cgroupv2 level {level} != \"{path}\" drop"
            )
        };
        let rules = format!(
            "table inet portcullis {{\nchain output {{\ntype filter hook output priority filter; policy accept;\n{}\n{}\n}}\n}}\n",
            rule("tcp"),
            rule("udp")
        );
        let file = dir.join("bench.nft");
        fs::write(&file, rules)?;
        output(self.command("nft").arg("-f").arg(&file)).map(drop)
    }

    /// Puts HAProxy, in TCP mode, before the servers that count from `to`; clients find it counting from `from`.
    pub fn proxy(&mut self, from: u16, to: u16, dir: &Path) -> Result<()> {
        let mut text = "global\n  maxconn 4096\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n".to_owned();
        for offset in [GREETING, ECHO, SINK] {
            let (front, back) = (self.at(from + offset), self.at(to + offset));
            text += &format!("listen port-{offset}\n  bind {front}\n  server it {back}\n");
        }
        let file = dir.join("haproxy.cfg");
        fs::write(&file, text)?;
        let mut command = self.command("haproxy");
        command.arg("-db").arg("-f").arg(&file);
        let log = dir.join("haproxy.log");
        let mut process = Background::start("HAProxy", &mut command, &log)?;
        let front = self.at(from + GREETING);
        wait_for("HAProxy to answer", Duration::from_secs(10), || {
            process.ensure_running()?;
            let tried = self.worker.repeat(super::load::Operation::Served, front, Duration::ZERO);
            Ok(tried.ok().map(drop))
        })?;
        self._between = Some(process);
        Ok(())
    }
}

/// The cgroup as `nft` looks for it.
fn in_nftables(cgroup: &Cgroup) -> Result<String> {
    let path = cgroup.directory.strip_prefix("/sys/fs/cgroup");
    Ok(path.context("nft looks for cgroups in /sys/fs/cgroup only")?.display().to_string())
}
