//! A real container, by a real runtime, on a root file system made on the spot: busybox and nothing else.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::cleanup;
use crate::sandbox::{Cgroup, Sandbox};

/// The runtimes that are here, of those that Debian has. They are the ones below Docker, containerd, CRI-O and Podman.
pub fn runtimes() -> Vec<&'static str> {
    const DIRECTORIES: [&str; 4] = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];
    let is_there = |name: &&str| DIRECTORIES.iter().any(|directory| Path::new(directory).join(name).exists());
    ["crun", "runc"].into_iter().filter(is_there).collect()
}

/// The container. Dropped, it is ended.
pub struct Container {
    _cleanup: cleanup::Entry,
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

/// What starts a runtime: a cgroup namespace that begins at the sandbox's own cgroup, so that nothing outside of it is touched,
/// with its hierarchy where runtimes look for it. They go by what is mounted there, whatever the machine has.
const ENTER: &str = r#"echo 0 > "$0/cgroup.procs" && exec unshare --cgroup --mount /bin/sh -c '
mount --make-rprivate / && umount -l /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup &&
mkdir -p /sys/fs/cgroup/runtime && echo 0 > /sys/fs/cgroup/runtime/cgroup.procs && exec "$@"' - "$@""#;

impl Container {
    /// Starts one with this id, in the cgroup `parent/ID` below the sandbox's own, as Docker without systemd does. It has the
    /// machine's network and a cgroup namespace of its own, with the hierarchy writable, and runs as root.
    pub fn start(runtime: &str, sandbox: &Sandbox, parent: &str, id: &str) -> Result<Self> {
        let bundle = sandbox.dir().join(id);
        // An earlier one of this id is gone.
        let _ = fs::remove_dir_all(&bundle);
        furnish(&bundle, parent, id)?;
        let state = sandbox.dir().join(format!("{runtime}-state"));
        let root = sandbox.make_cgroup("")?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", ENTER]).arg(&root.directory).arg(runtime).arg("--root").arg(&state);
        command.args(["run", "--bundle"]).arg(&bundle).arg(id).process_group(0);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {runtime}"))?;
        let cgroup = root.directory.join(parent).join(id);
        let _cleanup = cleanup::register(move || {
            // All that is in it, at once; of what has ended nothing is left to end.
            let _ = fs::write(cgroup.join("cgroup.kill"), "1");
        });
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("a pipe was asked for")?);
        let mut container = Self { _cleanup, child, input, output };
        container.run("true").with_context(|| format!("the container did not start with {runtime}"))?;
        Ok(container)
    }

    /// Runs a line of shell in it. Gives whether it succeeded.
    pub fn run(&mut self, line: &str) -> Result<bool> {
        let input = self.input.as_mut().context("it has ended")?;
        writeln!(input, "{line}").and_then(|()| input.flush())?;
        let mut answer = String::new();
        self.output.read_line(&mut answer)?;
        match answer.trim() {
            "done 0" => Ok(true),
            answer if answer.starts_with("done ") => Ok(false),
            answer => bail!("`{line}` in the container answers {answer:?}"),
        }
    }

    /// Tries to send a marker to a TCP server. Gives whether it could connect.
    pub fn connects(&mut self, to: SocketAddr, marker: &str) -> Result<bool> {
        self.run(&connect_line(to, marker))
    }

    /// Lets it end by itself.
    pub fn end(mut self) -> Result<()> {
        drop(self.input.take());
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        drop(self.input.take());
        // It ends when it reads no more lines.
        let _ = self.child.wait();
    }
}

/// A bundle: what is in the container, and how it is run.
fn furnish(bundle: &Path, parent: &str, id: &str) -> Result<()> {
    let root = bundle.join("rootfs");
    for directory in ["bin", "proc", "dev", "sys/fs/cgroup"] {
        fs::create_dir_all(root.join(directory))?;
    }
    let busybox = busybox().context("there is no busybox: run `cargo xtask setup`")?;
    fs::copy(busybox, root.join("bin/busybox"))?;
    for name in ["sh", "nc", "mkdir", "true", "grep"] {
        symlink("busybox", root.join("bin").join(name))?;
    }
    // Each line is run, and answered with what came of it; what it says itself is nobody's.
    let serve = r#"while read -r line; do (eval "$line") >/dev/null 2>&1; echo "done $?"; done"#;
    let configuration = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 }, "cwd": "/", "env": ["PATH=/bin"], "args": ["/bin/sh", "-c", serve],
            "noNewPrivileges": true, "capabilities": {},
        },
        "root": { "path": "rootfs", "readonly": true },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"] },
        ],
        "linux": {
            "cgroupsPath": format!("/{parent}/{id}"),
            "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "cgroup" }],
        },
    });
    fs::write(bundle.join("config.json"), configuration.to_string())?;
    Ok(())
}

fn busybox() -> Option<PathBuf> {
    ["/usr/bin/busybox", "/bin/busybox"].into_iter().map(PathBuf::from).find(|path| path.exists())
}

/// What a container's shell sends a marker with.
pub fn connect_line(to: SocketAddr, marker: &str) -> String {
    format!("echo -n {marker} | nc -w 2 {} {}", to.ip(), to.port())
}

/// An id such as runtimes make.
pub fn new_id() -> Result<String> {
    let mut bytes = [0; 32];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The cgroup of a container that is not there yet.
pub fn cgroup_of(sandbox: &Sandbox, parent: &str, id: &str) -> Result<Cgroup> {
    let root = sandbox.make_cgroup("")?;
    let path = format!("{}/{parent}/{id}", root.path);
    Ok(Cgroup { path, directory: root.directory.join(parent).join(id) })
}
