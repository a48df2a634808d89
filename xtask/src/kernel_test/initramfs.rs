//! What a guest boots into: a file system in memory, with the tests and what they need; below `/system` of it, for some, a Debian,
//! which is the file system then.
//!
//! Owns the lists of modules and programs. Knows nothing of what the tests do with them.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail};

use super::{kernels::Kernel, userland::Userland};
use crate::sh;

/// Loaded before the tests, where a kernel has them as modules. One that it lacks is told once; a
/// test that wants it has to find out for itself.
const MODULES: [&str; 28] = [
    // SOCK_DESTROY, which terminates connections, and listings of sockets.
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "raw_diag",
    "mptcp_diag",
    "unix_diag",
    // Protocols with ports. UDP-Lite is no module, DCCP is gone from 6.16 on.
    "sctp",
    "sctp_diag",
    "dccp",
    "dccp_ipv4",
    "dccp_ipv6",
    // Ways between network namespaces, and out of one.
    "veth",
    "dummy",
    "tun",
    "vxlan",
    "af_packet_diag",
    // Sockets between a host and its guests.
    "vsock",
    "vsock_loopback",
    // Sockets that go on over another kind of network, if there is one.
    "smc",
    // Rules that rewrite addresses on the way.
    "nf_tables",
    "nf_nat",
    "nft_chain_nat",
    "nft_nat",
    "nft_redir",
    "nft_ct",
    "nft_socket",
    // Classes of cgroup v1, beside v2.
    "cls_cgroup",
    "sch_ingress",
];

/// Copied from this machine, with the libraries they want.
const HOST_PROGRAMS: [&str; 2] = ["/usr/bin/setpriv", "/usr/sbin/ip"];

/// The first program of a guest.
const INIT: &str = include_str!("init.sh");
const INIT_OF_DEBIAN: &str = include_str!("init-debian.sh");

/// What runs the tests, and tells what came of them.
const GUEST: &str = include_str!("guest.sh");

/// Starts [`GUEST`] when Debian is up. It is nobody's job to end it.
const GUEST_UNIT: &str = "[Unit]\nDescription=The tests\nAfter=multi-user.target\n\n[Service]\nType=exec\n\
                          ExecStart=/bin/sh /tests/guest.sh\nEnvironment=HOME=/root\nDelegate=no\n";

const FOLDERS: [&str; 13] = [
    "bin", "dev", "etc", "modules", "proc", "root", "run", "sbin", "sys", "tests", "tmp", "usr/bin",
    "usr/sbin",
];

/// Root, and somebody else.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";

/// A program of tests, and what it is asked to run.
#[derive(Debug)]
pub(super) struct Program<'a> {
    pub(super) path: PathBuf,
    /// One run for each; empty: one run of everything.
    pub(super) filters: &'a [String],
}

/// What a guest runs, and has.
#[derive(Debug)]
pub(super) struct Tests<'a> {
    pub(super) programs: Vec<Program<'a>>,
    /// What lies in `/usr/bin` besides.
    pub(super) installed: Vec<PathBuf>,
    /// The Debian to run them in; None: there is nothing but the tests.
    pub(super) userland: Option<&'a Userland>,
}

/// Writes the file for one kernel; gives back the modules that the kernel lacks.
pub(super) fn write(kernel: &Kernel, tests: &Tests<'_>, file: &Path) -> Result<Vec<&'static str>> {
    let beside = file.parent().context("the file lies in a folder")?;
    let folder = tempfile::tempdir_in(beside).context("cannot make a temporary folder")?;
    let root = folder.path();
    for name in FOLDERS {
        fs::create_dir_all(root.join(name)).context("cannot make a folder")?;
    }
    let busybox = sh::which("busybox").context("`busybox` is not on PATH")?;
    copy(&busybox, &root.join("bin/busybox"))?;
    copy_libraries(&busybox, root)?;
    match tests.userland {
        None => {
            for program in HOST_PROGRAMS.map(Path::new) {
                copy(program, &within(root, program))?;
                copy_libraries(program, root)?;
            }
            write_texts(root, &[("etc/passwd", PASSWD), ("etc/group", GROUP), ("init", INIT)])?;
            furnish(root, tests)?;
        }
        Some(_) => {
            write_texts(root, &[("init", INIT_OF_DEBIAN)])?;
            let system = root.join("system");
            write_texts(&system, &[("etc/systemd/system/guest.service", GUEST_UNIT)])?;
            let wants = system.join("etc/systemd/system/multi-user.target.wants");
            fs::create_dir_all(&wants)
                .and_then(|()| symlink("../guest.service", wants.join("guest.service")))
                .context("cannot enable the unit of the tests")?;
            furnish(&system, tests)?;
        }
    }
    let lacking = copy_modules(kernel, &root.join("modules"))?;
    // The kernel unpacks one archive after the other, if there are several in the file.
    match tests.userland {
        None => fs::write(file, "").with_context(|| format!("cannot write {}", file.display()))?,
        Some(userland) => copy(&userland.archive, file)?,
    }
    append(root, file, &["--owner=+0:+0"])?;
    Ok(lacking)
}

/// Puts the tests, and what is installed, where they look for it.
fn furnish(root: &Path, tests: &Tests<'_>) -> Result<()> {
    for program in &tests.programs {
        copy(&program.path, &within(root, &in_guest(&program.path)?))?;
    }
    for program in &tests.installed {
        copy(program, &root.join("usr/bin").join(program.file_name().context("a program has a name")?))?;
    }
    write_texts(root, &[("tests/guest.sh", GUEST), ("tests/run", &tests.script()?)])
}

fn write_texts(root: &Path, texts: &[(&str, &str)]) -> Result<()> {
    for (name, text) in texts {
        let path = root.join(name);
        path.parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(&path, text))
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {name}"))?;
    }
    Ok(())
}

impl Tests<'_> {
    /// What the guest does once it is up; `run` is a function of `init.sh`.
    fn script(&self) -> Result<String> {
        let mut script = String::new();
        for Program { path, filters } in &self.programs {
            let program = in_guest(path)?;
            let mut run = |filter: &str| {
                let _ = writeln!(script, "run {} --color=never {filter}", program.display());
            };
            if filters.is_empty() {
                run("");
            }
            filters.iter().for_each(|filter| run(&sh::quoted(filter)));
        }
        Ok(script)
    }
}

/// Where a program of tests lies in the guest. It keeps its name: to its processes the name is part
/// of who they are.
fn in_guest(program: &Path) -> Result<PathBuf> {
    Ok(Path::new("/tests").join(program.file_name().context("a program of tests has a name")?))
}

fn within(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    to.parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::copy(from, to))
        .with_context(|| format!("cannot copy {} into the guest", from.display()))?;
    Ok(())
}

fn copy_libraries(program: &Path, root: &Path) -> Result<()> {
    // It fails for a program that is linked statically, which wants none.
    let listed = sh::output(sh::command("ldd").arg(program)).unwrap_or_default();
    for library in libraries(&listed) {
        copy(Path::new(library), &within(root, Path::new(library)))?;
    }
    Ok(())
}

/// The paths in what `ldd` prints: `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` for the loader.
fn libraries(ldd: &str) -> Vec<&str> {
    ldd.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/'))).collect()
}

/// Copies the modules and those they depend on, numbered in the order to load them in.
fn copy_modules(kernel: &Kernel, to: &Path) -> Result<Vec<&'static str>> {
    let Some(version) = kernel.modules_version() else { return Ok(MODULES.to_vec()) };
    let (mut files, mut lacking) = (Vec::new(), Vec::new());
    for module in MODULES {
        let mut modprobe = sh::command(sh::administration("modprobe"));
        modprobe.arg("-d").arg(&kernel.root).args(["-S", &version, "--show-depends", module]);
        match sh::output(&mut modprobe) {
            Ok(shown) => files.extend(modules(&shown).map(PathBuf::from)),
            Err(_) => lacking.push(module),
        }
    }
    let mut seen = BTreeSet::new();
    files.retain(|file| seen.insert(file.clone()));
    for (number, file) in files.iter().enumerate() {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let stem = name.split('.').next().unwrap_or_default();
        decompress(file, &to.join(format!("{number:03}-{stem}.ko")))?;
    }
    Ok(lacking)
}

/// The files in what `modprobe --show-depends` prints; a module that is built in has none.
fn modules(shown: &str) -> impl Iterator<Item = &str> {
    shown.lines().filter_map(|line| line.strip_prefix("insmod ")?.split_whitespace().next())
}

/// The guest's `insmod` takes only what is not compressed; Debian compresses with xz, or not at all.
fn decompress(module: &Path, to: &Path) -> Result<()> {
    if module.extension().is_none_or(|extension| extension != "xz") {
        return copy(module, to);
    }
    let out = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
    let status = sh::command("xz").arg("-dc").arg(module).stdout(out).status().context("cannot start xz")?;
    if !status.success() {
        bail!("cannot decompress {} ({status})", module.display());
    }
    Ok(())
}

/// Packs a folder, with the owners of what is in it.
pub(super) fn archive(root: &Path, file: &Path) -> Result<()> {
    fs::write(file, "").with_context(|| format!("cannot write {}", file.display()))?;
    append(root, file, &[])
}

/// Packs a folder at the end of a file. Uncompressed: it is read once, by a machine without a real processor.
fn append(root: &Path, file: &Path, options: &[&str]) -> Result<()> {
    let mut names = Vec::new();
    list(root, root, &mut names)?;
    let out = File::options().append(true).open(file);
    let out = out.with_context(|| format!("cannot write {}", file.display()))?;
    let mut cpio = sh::command("cpio");
    cpio.args(["--create", "--quiet", "--format=newc", "--null"]).args(options);
    let mut child =
        cpio.current_dir(root).stdin(Stdio::piped()).stdout(out).spawn().context("cannot start cpio")?;
    let mut stdin = child.stdin.take().context("cpio has an input")?;
    stdin.write_all(&names).context("cannot tell cpio what to pack")?;
    drop(stdin);
    let status = child.wait().context("cannot wait for cpio")?;
    if !status.success() {
        bail!("cpio failed ({status})");
    }
    Ok(())
}

/// Every path below a folder, the folders before what is in them, each ended by a zero byte.
fn list(root: &Path, folder: &Path, names: &mut Vec<u8>) -> Result<()> {
    for entry in fs::read_dir(folder).context("cannot list the guest's files")? {
        let path = entry.context("cannot list the guest's files")?.path();
        let name = path.strip_prefix(root).context("it lies below the root")?;
        names.extend_from_slice(name.as_os_str().as_encoded_bytes());
        names.push(0);
        if path.is_dir() && !path.is_symlink() {
            list(root, &path, names)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let printed = "\tlinux-vdso.so.1 (0x00007f1c52eb1000)
\tlibcap-ng.so.0 => /lib/x86_64-linux-gnu/libcap-ng.so.0 (0x00007f1c52e84000)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f1c52eb3000)\n";
        assert_eq!(
            libraries(printed),
            ["/lib/x86_64-linux-gnu/libcap-ng.so.0", "/lib64/ld-linux-x86-64.so.2"]
        );
        assert_eq!(libraries("\tstatically linked\n"), [""; 0]);
    }

    #[test]
    fn modules_are_read_in_order_and_builtin_ones_are_none() {
        let printed = "builtin inet\ninsmod /k/lib/modules/6.1/inet_diag.ko \ninsmod /k/tcp_diag.ko.xz a=1\n";
        let found: Vec<&str> = modules(printed).collect();
        assert_eq!(found, ["/k/lib/modules/6.1/inet_diag.ko", "/k/tcp_diag.ko.xz"]);
    }

    #[test]
    fn every_program_runs_once_for_each_filter() {
        let script = |filters: &[String]| {
            let program = |path: &str| Program { path: path.into(), filters };
            let programs = ["/target/deps/kernel-1f", "/target/deps/bypass-2e"].map(program).into();
            Tests { programs, installed: Vec::new(), userland: None }
                .script()
                .expect("the programs have names")
        };
        assert_eq!(script(&[]), "run /tests/kernel-1f --color=never \nrun /tests/bypass-2e --color=never \n");
        assert_eq!(
            script(&["udp".into(), "it's".into()]),
            "run /tests/kernel-1f --color=never udp\nrun /tests/kernel-1f --color=never 'it'\\''s'\n\
             run /tests/bypass-2e --color=never udp\nrun /tests/bypass-2e --color=never 'it'\\''s'\n"
        );
    }
}
