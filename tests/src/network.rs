//! A network of one's own: two network namespaces, and a wire between them that can be cut.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::process::{Background, output, wait_for};

/// How long `unshare` may take.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// The two ends of the wire, in a network that is set aside for examples (RFC 5737).
pub const CONTROL_PLANE: &str = "192.0.2.1";
const HOST: &str = "192.0.2.2";

/// The name of the device at either end.
const DEVICE: &str = "wire";

/// Two namespaces. They are gone with the processes that hold them.
pub struct Network {
    /// Where the control plane is.
    pub control_plane: Namespace,
    /// Where the host is, with its agent and its people.
    pub host: Namespace,
}

/// A network namespace.
pub struct Namespace {
    holder: Background,
}

impl Network {
    /// Makes both, and the wire.
    pub fn new(dir: &Path) -> Result<Self> {
        let network =
            Self { control_plane: Namespace::new(dir, "control-plane")?, host: Namespace::new(dir, "host")? };
        let other = network.host.holder.pid().to_string();
        let wire = ["link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", &other];
        output(network.control_plane.command("ip").args(wire))?;
        for (namespace, address) in [(&network.control_plane, CONTROL_PLANE), (&network.host, HOST)] {
            output(namespace.command("ip").args([
                "address",
                "add",
                &format!("{address}/30"),
                "dev",
                DEVICE,
            ]))?;
            output(namespace.command("ip").args(["link", "set", DEVICE, "up"]))?;
        }
        Ok(network)
    }

    /// Nothing comes through any more, and nobody is told.
    pub fn cut(&self) -> Result<()> {
        output(self.control_plane.command("ip").args(["link", "set", DEVICE, "down"])).map(drop)
    }

    /// It is as it was.
    pub fn heal(&self) -> Result<()> {
        output(self.control_plane.command("ip").args(["link", "set", DEVICE, "up"])).map(drop)
    }
}

impl Namespace {
    fn new(dir: &Path, name: &str) -> Result<Self> {
        let up = dir.join(format!("{name}.up"));
        let mut command = Command::new("unshare");
        command.args(["--net", "/bin/sh", "-c", r#"ip link set lo up && touch "$0" && exec sleep infinity"#]);
        let log = dir.join(format!("{name}.netns.log"));
        let mut holder = Background::start("a network namespace", command.arg(&up), &log)?;
        wait_for("a network namespace", START_TIMEOUT, || {
            holder.ensure_running()?;
            Ok(up.exists().then_some(()))
        })?;
        Ok(Self { holder })
    }

    /// A command within it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(self.path()).arg(program);
        command
    }

    /// The argument of `nsenter`.
    pub fn path(&self) -> String {
        format!("--net=/proc/{}/ns/net", self.holder.pid())
    }
}
