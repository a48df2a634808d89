//! A process, as it is now.

use procfs::process::Process;

use super::unified_path;

/// What is known of a process. It may be another one by the time that it is read: whoever asks makes sure that it is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessNow {
    /// Id of its parent.
    pub parent: i32,
    /// The user as whom it acts.
    pub uid: u32,
    /// Who logged in, by the kernel's audit; None: nobody, or the kernel keeps none.
    pub login_uid: Option<u32>,
    /// Path of its cgroup in the v2 hierarchy; None: it cannot be told.
    pub cgroup_path: Option<String>,
}

/// The process with this id; None: there is none.
pub fn process(pid: i32) -> Option<ProcessNow> {
    let process = Process::new(pid).ok()?;
    let status = process.status().ok()?;
    Some(ProcessNow {
        parent: status.ppid,
        uid: status.euid,
        login_uid: process.loginuid().ok().filter(|uid| *uid != u32::MAX),
        cgroup_path: unified_path(&process),
    })
}
