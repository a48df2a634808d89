//! Which uids the accounts have that selectors name.
//!
//! Owns: when the host's accounts are asked again. Must not know: who wants to know.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::unistd::User;
use proto::types::UnixUser;

/// Where most hosts have their accounts. Others are asked over a network, perhaps, and do not tell when they change.
const PASSWD: &str = "/etc/passwd";

/// The accounts by name. Asking can cost a question over the network, so what was answered is kept until something points to
/// another answer: a user's slice came or went, the file of accounts is another; and an answer by which something is bound is
/// asked for again at each thorough look.
#[derive(Default)]
pub(super) struct Accounts {
    uids: BTreeMap<String, Option<u32>>,
    /// Whose slices were there when it was asked.
    users: BTreeSet<u32>,
    passwd: Option<Stamp>,
    /// Names that were not asked for yet.
    is_stale: bool,
}

/// What of a file changes when somebody edits it: its inode, size, and when it was written.
type Stamp = (u64, u64, i64, i64);

impl Accounts {
    /// From the next look on these names are known.
    pub(super) fn follow<'a>(&mut self, users: impl Iterator<Item = &'a UnixUser>) {
        let mut before = std::mem::take(&mut self.uids);
        for user in users {
            if let UnixUser::Name(name) = user {
                let known = before.remove(name);
                self.is_stale |= known.is_none();
                self.uids.insert(name.clone(), known.flatten());
            }
        }
    }

    /// The uid of an account; None: there is no such account, or it is not followed.
    pub(super) fn uid_of(&self, user: &UnixUser) -> Option<u32> {
        match user {
            UnixUser::Uid(uid) => Some(*uid),
            UnixUser::Name(name) => self.uids.get(name).copied().flatten(),
        }
    }

    /// Asks again what may have another answer. `users`: whose slices are there; without any nobody needs to know. `again`:
    /// also what nothing points to. Returns whether something has.
    pub(super) fn look(&mut self, users: BTreeSet<u32>, again: bool) -> bool {
        if users.is_empty() || self.uids.is_empty() {
            self.is_stale |= self.users != users;
            self.users = users;
            return false;
        }
        let passwd = stamp();
        let ask_all = self.is_stale || self.users != users || self.passwd != passwd;
        let mut changed = false;
        for (name, uid) in &mut self.uids {
            if ask_all || (again && uid.is_some_and(|uid| users.contains(&uid))) {
                let now = User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
                changed |= std::mem::replace(uid, now) != now;
            }
        }
        self.users = users;
        self.passwd = passwd;
        self.is_stale = false;
        changed
    }
}

fn stamp() -> Option<Stamp> {
    let file = fs::metadata(PASSWD).ok()?;
    Some((file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_asked_for_where_somebody_is_there() {
        let (root, nobody) =
            (UnixUser::Name("root".to_owned()), UnixUser::Name("nobody-has-this-name".to_owned()));
        let mut accounts = Accounts::default();
        accounts.follow([&root, &nobody].into_iter());
        assert!(!accounts.look(BTreeSet::new(), true));
        assert_eq!(accounts.uid_of(&root), None);
        assert!(accounts.look([1000].into(), false));
        assert_eq!(accounts.uid_of(&root), Some(0));
        assert_eq!(accounts.uid_of(&nobody), None);
        assert_eq!(accounts.uid_of(&UnixUser::Uid(7)), Some(7));
        assert!(!accounts.look([0, 1000].into(), true));
        accounts.follow([&nobody].into_iter());
        assert_eq!(accounts.uid_of(&root), None);
    }
}
