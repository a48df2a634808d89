//! The tree on a temporary directory: what comes, goes, takes a place, and what is not to be trusted.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use nix::unistd::geteuid;
use proto::types::Selector;
use tempfile::TempDir;

use super::*;
use crate::observe::Cgroups;
use crate::rules::workloads::Doubt;

const NONE: [u64; 0] = [];
const ID: &str = "4c01db0b339c8f6e8d3c1a5b7e9f0a2c4d6e8f0b1c3d5e7f9a0b2c4d6e8f0a1b";

/// Directories with the files that cgroups have, in which whoever runs the tests stands for root.
struct World {
    directory: TempDir,
    cgroups: Cgroups,
}

impl World {
    fn new(selectors: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let root = directory.path().to_owned();
        let world = Self { directory, cgroups: Cgroups::owned_by(root, geteuid()) };
        world.furnish("");
        world.following(selectors)
    }

    fn following(mut self, selectors: &[&str]) -> Self {
        let selectors: Vec<Selector> = selectors.iter().map(|text| text.parse().expect("valid")).collect();
        self.cgroups.follow(selectors.iter());
        self
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn furnish(&self, path: &str) {
        set_mode(&self.path(path), 0o755);
        for file in ["cgroup.procs", "cgroup.threads"] {
            let file = self.path(path).join(file);
            fs::write(&file, "").expect("written");
            set_mode(&file, 0o644);
        }
    }

    /// Makes a cgroup, and those above it that are not there.
    fn make(&self, path: &str) -> u64 {
        let way = parents(path).filter(|way| !way.is_empty()).chain([path]);
        for way in way.filter(|way| !self.path(way).exists()) {
            fs::create_dir(self.path(way)).expect("made");
            self.furnish(way);
        }
        fs::metadata(self.path(path)).expect("made").ino()
    }

    fn remove(&self, path: &str) {
        fs::remove_dir_all(self.path(path)).expect("removed");
    }

    fn find(&self, selector: &str) -> Vec<u64> {
        let found = self.cgroups.find(&selector.parse().expect("valid"));
        found.expect("no doubt").into_iter().collect()
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
}

#[test]
fn selectors_stand_for_directories() {
    let mut world =
        World::new(&["cgroup:/app/job", "cgroup:/app/file", "cgroup:/link/job", "unix-user:root"]);
    let (job, user) = (world.make("app/job"), world.make("user.slice/user-0.slice"));
    let unit = world.make("system.slice/nginx.service");
    fs::write(world.path("app/file"), "").expect("written");
    symlink(world.path("app"), world.path("link")).expect("linked");
    assert!(world.cgroups.look(false));
    assert_eq!(world.find("cgroup:/app/job"), [job]);
    assert_eq!(world.find("cgroup:/app/file"), NONE);
    assert_eq!(world.find("cgroup:/link/job"), NONE);
    assert_eq!(world.find("unix-user:0"), [user]);
    assert_eq!(world.find("unix-user:root"), [user]);
    assert_eq!(world.find("unix-user:4242"), NONE);
    assert_eq!(world.find("systemd-unit:nginx.service"), [unit]);
    assert!(!world.cgroups.look(false));
    assert!(!world.cgroups.look(true));
}

#[test]
fn what_comes_and_goes_is_followed_without_a_look_at_everything() {
    let container = format!("container:{ID}");
    let mut world = World::new(&["cgroup:/a/b/c"]);
    world.cgroups.look(false);
    // All at once, with directories that nobody could have watched yet.
    let c = world.make("a/b/c");
    let scope = world.make(&format!("system.slice/docker-{ID}.scope"));
    assert!(world.cgroups.look(false));
    assert_eq!((world.find("cgroup:/a/b/c"), world.find(&container)), (vec![c], vec![scope]));
    world.remove("a");
    world.remove(&format!("system.slice/docker-{ID}.scope"));
    assert!(world.cgroups.look(false));
    assert_eq!((world.find("cgroup:/a/b/c"), world.find(&container)), (vec![], vec![]));
    assert_eq!(world.find("systemd-unit:system.slice").len(), 1);
}

#[test]
fn what_took_the_place_of_another_is_another() {
    let mut world = World::new(&[]);
    let first = world.make("system.slice/nginx.service");
    world.cgroups.look(false);
    assert_eq!(world.find("systemd-unit:nginx.service"), [first]);
    // It is kept from being given to the next one, as cgroupfs does by itself.
    let held = fs::File::open(world.path("system.slice/nginx.service")).expect("opened");
    world.remove("system.slice");
    let second = world.make("system.slice/nginx.service");
    assert!(world.cgroups.look(false));
    assert_eq!(world.find("systemd-unit:nginx.service"), [second]);
    assert_ne!(first, second);
    drop(held);
}

#[test]
fn what_comes_to_be_asked_for_is_looked_for() {
    let mut world = World::new(&[]);
    let job = world.make("app/job");
    world.cgroups.look(false);
    assert_eq!(world.find("cgroup:/app/job"), NONE);
    let mut world = world.following(&["cgroup:/app/job"]);
    assert!(world.cgroups.look(false));
    assert_eq!(world.find("cgroup:/app/job"), [job]);
    let mut world = world.following(&[]);
    assert!(world.cgroups.look(false));
    assert_eq!(world.find("cgroup:/app/job"), NONE);
}

#[test]
fn where_others_may_write_nothing_is_known() {
    let unit = "systemd-unit:nginx.service";
    for (file, mode) in [("", 0o757), ("", 0o777), ("cgroup.procs", 0o646), ("cgroup.threads", 0o666)] {
        let mut world = World::new(&["cgroup:/system.slice/job"]);
        let (id, job) = (world.make("system.slice/nginx.service"), world.make("system.slice/job"));
        world.cgroups.look(false);
        assert_eq!((world.find(unit), world.find("cgroup:/system.slice/job")), (vec![id], vec![job]));
        let path = world.path("system.slice").join(file);
        let before = fs::metadata(&path).expect("there").permissions();
        set_mode(&path, mode);
        assert!(world.cgroups.look(false), "{file} {mode:o}");
        assert_eq!(world.find(unit), NONE, "{file} {mode:o}");
        let doubt = world.cgroups.find(&"cgroup:/system.slice/job".parse().expect("valid"));
        assert_eq!(doubt, Err(Doubt::Writable { directory: "/system.slice/".to_owned() }));
        // The slice itself is root's to make, whoever may write in it.
        assert_eq!(world.find("systemd-unit:system.slice").len(), 1);
        fs::set_permissions(&path, before).expect("set");
        assert!(world.cgroups.look(false), "{file} {mode:o}");
        assert_eq!(world.find(unit), [id], "{file} {mode:o}");
    }
    // Somebody else's from the start.
    let mut world = World::new(&[]);
    world.make("system.slice/nginx.service");
    let root = world.directory.path().to_owned();
    world.cgroups = Cgroups::owned_by(root, (geteuid().as_raw() + 1).into());
    world.cgroups.look(false);
    assert_eq!(world.find(unit), NONE);
}

#[test]
fn a_directory_without_the_files_of_a_cgroup_is_nobodys() {
    let mut world = World::new(&[]);
    fs::create_dir_all(world.path("system.slice/nginx.service")).expect("made");
    world.cgroups.look(false);
    assert_eq!(world.find("systemd-unit:nginx.service"), NONE);
}

#[test]
fn without_notices_each_look_is_a_whole_one() {
    let mut world = World::new(&[]);
    let mut tree = Tree::new(world.directory.path().to_owned(), geteuid().as_raw());
    tree.notices = None;
    tree.look(false);
    assert!(tree.problem().is_some());
    let unit = world.make("system.slice/nginx.service");
    assert!(tree.look(false));
    assert!(!tree.look(false));
    world.cgroups.look(false);
    assert_eq!(world.find("systemd-unit:nginx.service"), [unit]);
    assert_eq!(*tree.census(), *world.cgroups.tree.census());
}

#[test]
fn a_flood_of_notices_leads_to_a_whole_look() {
    let mut world = World::new(&[]);
    world.cgroups.look(false);
    world.make("system.slice");
    world.cgroups.look(false);
    let max = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").expect("read");
    let max: usize = max.trim().parse().expect("a number");
    // Two of the same in a row are one notice, so these alternate.
    for _ in 0..=max / 2 {
        fs::create_dir(world.path("system.slice/x")).expect("made");
        fs::remove_dir(world.path("system.slice/x")).expect("removed");
    }
    let unit = world.make("system.slice/nginx.service");
    assert!(world.cgroups.look(false));
    assert_eq!(world.find("systemd-unit:nginx.service"), [unit]);
}

#[test]
fn a_root_that_is_not_there_has_nothing() {
    let mut tree = Tree::new("/nowhere".into(), 0);
    assert!(!tree.look(false));
    assert_eq!(tree.problem(), Some("the root of cgroup v2 cannot be opened"));
}
