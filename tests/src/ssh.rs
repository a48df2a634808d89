//! A real OpenSSH server of one's own, and the client's command line to it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{Background, output, wait_for};

/// It takes a fraction of a second to start; more where the machine is busy.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// The server. Dropped, it is ended, with every session.
pub struct Ssh {
    dir: PathBuf,
    address: Ipv4Addr,
    port: u16,
    process: Background,
}

impl Ssh {
    /// Makes keys in `dir`, and serves logins of root with them on this address.
    pub fn start(dir: &Path, address: Ipv4Addr, port: u16) -> Result<Self> {
        let dir = dir.join("ssh");
        fs::create_dir(&dir)?;
        for key in ["host", "client"] {
            let file = dir.join(key);
            output(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&file))
                .context("cannot make a key: run `cargo xtask setup`")?;
        }
        let here = dir.display();
        // Modes of folders above are the machine's, and nobody else has the key.
        let configuration = format!(
            "ListenAddress {address}:{port}\nHostKey {here}/host\nAuthorizedKeysFile {here}/client.pub\n\
             StrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\nPidFile none\n"
        );
        fs::write(dir.join("sshd_config"), configuration)?;
        // The server insists on a folder below /run. It gets a /run of its own, with nothing else in it.
        let mut command = Command::new("unshare");
        let line =
            r#"mount -t tmpfs none /run && mkdir -m 755 /run/sshd && exec /usr/sbin/sshd -D -e -f "$0""#;
        command.args(["--mount", "/bin/sh", "-c", line]).arg(dir.join("sshd_config"));
        let process = Background::start("sshd", &mut command, &dir.join("log"))?;
        let mut ssh = Self { dir, address, port, process };
        wait_for("sshd to listen", START_TIMEOUT, || {
            ssh.process.ensure_running()?;
            Ok(ssh.process.log().contains("Server listening").then_some(()))
        })?;
        Ok(ssh)
    }

    /// What the client is told before the remote command.
    pub fn arguments(&self) -> Vec<String> {
        let here = self.dir.display();
        let options = [
            // Nothing of the machine's own settings.
            "-F".to_owned(),
            "none".to_owned(),
            "-i".to_owned(),
            format!("{here}/client"),
            "-oBatchMode=yes".to_owned(),
            "-oStrictHostKeyChecking=no".to_owned(),
            format!("-oUserKnownHostsFile={here}/known_hosts"),
            "-oLogLevel=ERROR".to_owned(),
            "-p".to_owned(),
            self.port.to_string(),
            format!("root@{}", self.address),
        ];
        options.into()
    }
}
