//! From a path on this host to what the kernel knows a unix socket there by: its file system, and the names from its root on.
//!
//! Owns: the kernel's table of mounts, and the key of a place in it. Must not know: how either was read.

use agent_ebpf::unix::{self, NAME_MAX_BYTES, NAMES_MAX};

/// One line of `/proc/PID/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The kernel's number of it.
    pub id: u64,
    /// Of its file system, as the kernel numbers it. What `stat` says of a file there may be another one.
    pub device: u32,
    /// The path within the file system that is mounted here.
    pub root: String,
    /// Where it is mounted.
    pub point: String,
}

/// Where a path leads, as far as it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The mount.
    pub mount_id: u64,
    /// What is there, without symbolic links: a path that begins with the mount's point.
    pub path: String,
    /// The names that come after and are not there, the last one last.
    pub rest: Vec<String>,
}

/// The table, without lines that cannot be understood.
pub fn mounts(mountinfo: &str) -> Vec<Mount> {
    mountinfo.lines().filter_map(mount).collect()
}

fn mount(line: &str) -> Option<Mount> {
    let mut fields = line.split(' ');
    let (id, _parent, device) = (fields.next()?, fields.next()?, fields.next()?);
    let (root, point) = (fields.next()?, fields.next()?);
    let (major, minor) = device.split_once(':')?;
    Some(Mount {
        id: id.parse().ok()?,
        device: unix::device(major.parse().ok()?, minor.parse().ok()?),
        root: unescape(root),
        point: unescape(point),
    })
}

/// The table of mounts writes white space and backslashes as three octal digits.
pub fn unescape(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(path.to_owned(), |path, (code, char)| path.replace(code, char))
}

/// The key of a place. The error is why it has none.
pub fn key(mounts: &[Mount], place: &Place) -> Result<u64, String> {
    let mount = mounts.iter().find(|mount| mount.id == place.mount_id);
    let mount = mount.ok_or_else(|| format!("{} lies on no mount of the host", place.path))?;
    let beneath = place.path.strip_prefix(mount.point.trim_end_matches('/'));
    let beneath = beneath.filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let beneath =
        beneath.ok_or_else(|| format!("{} does not lie on the mount {}", place.path, mount.point))?;
    let names = mount.root.split('/').chain(beneath.split('/')).chain(place.rest.iter().map(String::as_str));
    let names: Vec<&str> = names.filter(|name| !name.is_empty()).collect();
    let key = unix::key(mount.device, names.iter().map(|name| name.as_bytes()));
    key.ok_or_else(|| {
        format!(
            "it is /{} on its file system, and only paths of up to {NAMES_MAX} names of up to {NAME_MAX_BYTES} bytes there \
             can be protected",
            names.join("/")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
28 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 28 0:26 / /run rw,nosuid shared:2 - tmpfs tmpfs rw
31 28 0:40 /@data/pg /srv rw shared:3 - btrfs /dev/vdb rw
32 28 254:0 /var/lib/a\\040b/s /mnt/s rw - ext4 /dev/vda rw
33 30 0:26 /x/sock /run/y/sock rw - tmpfs tmpfs rw
nonsense";

    fn place(mount_id: u64, path: &str, rest: &[&str]) -> Place {
        Place { mount_id, path: path.to_owned(), rest: rest.iter().map(|name| (*name).to_owned()).collect() }
    }

    #[track_caller]
    fn check(place: Place, device: (u32, u32), names: &[&str]) {
        let device = unix::device(device.0, device.1);
        let expected = unix::key(device, names.iter().map(|name| name.as_bytes()));
        assert_eq!(key(&mounts(TABLE), &place).ok(), expected, "{place:?}");
    }

    #[test]
    fn a_place_is_known_by_its_file_system() {
        check(place(30, "/run/postgresql/s", &[]), (0, 26), &["postgresql", "s"]);
        check(place(30, "/run", &["postgresql", "s"]), (0, 26), &["postgresql", "s"]);
        check(place(28, "/var/s", &[]), (254, 0), &["var", "s"]);
        check(place(28, "/", &["s"]), (254, 0), &["s"]);
        check(place(31, "/srv/s", &[]), (0, 40), &["@data", "pg", "s"]);
        check(place(32, "/mnt/s", &["t"]), (254, 0), &["var", "lib", "a b", "s", "t"]);
        check(place(33, "/run/y/sock", &[]), (0, 26), &["x", "sock"]);
    }

    #[test]
    fn what_has_no_key_says_why() {
        let error = |place| key(&mounts(TABLE), &place).expect_err("has none");
        assert_eq!(error(place(99, "/a", &[])), "/a lies on no mount of the host");
        assert_eq!(error(place(30, "/runs/a", &[])), "/runs/a does not lie on the mount /run");
        assert!(error(place(31, "/srv/1/2/3/4/5/6", &["7"])).starts_with("it is /@data/pg/1/2/3/4/5/6/7 on"));
        assert_eq!(mounts(TABLE).len(), 5);
    }
}
