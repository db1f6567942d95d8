//! The user id that an instance's code runs as: one that no other process of this machine has, so
//! that what the kernel counts by user (inotify, pipes, queues, AIO, processes) is the instance's
//! own. Only ids are given out; no user account is made.
//!
//! Ids are drawn at random from a large range and checked against the machine's processes, so that
//! agents that share an engine need not coordinate. An id is free again when its [`UserIdLease`] is
//! dropped, after its container is removed.

use parking_lot::Mutex;
use rand::RngExt;
use std::{
    collections::HashSet, fmt, fs, io, ops::RangeInclusive, os::unix::fs::MetadataExt, sync::Arc,
};

/// Draws before the range is scanned for a free id. In the default range the first draw is free.
const DRAWS: usize = 64;
/// Its directories belong to the users of the machine's processes.
const PROCESSES: &str = "/proc";

/// The user and the group that code runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CodeUser {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl CodeUser {
    /// What distroless images call `nonroot`.
    const NONROOT: Self = Self { uid: 65_532, gid: 65_532 };

    /// The user that instances share when they have none of their own: `nonroot` if the agent is
    /// root, else the agent's own.
    pub(crate) fn shared() -> Self {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        if uid.is_root() { Self::NONROOT } else { Self { uid: uid.as_raw(), gid: gid.as_raw() } }
    }

    /// An `/etc/passwd` in which this user has a name and a home: `os.userInfo()` throws for an id
    /// that has none.
    pub(crate) fn passwd(self) -> String {
        let Self { uid, gid } = self;
        format!(
            "root:x:0:0:root:/root:/usr/sbin/nologin\n\
             nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n\
             function:x:{uid}:{gid}:function:/tmp:/usr/sbin/nologin\n"
        )
    }
}

impl fmt::Display for CodeUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

/// Allocates the user ids of this VM.
#[derive(Debug)]
pub(crate) struct UserIds {
    /// `None`: all instances share one.
    range: Option<RangeInclusive<u32>>,
    taken: Arc<Mutex<HashSet<u32>>>,
}

/// A user id of one instance. Dropping it frees the id.
#[derive(Debug)]
pub(crate) struct UserIdLease {
    user: CodeUser,
    /// `None`: shared, nothing to free.
    taken: Option<Arc<Mutex<HashSet<u32>>>>,
}

/// No id is free.
#[derive(Debug, thiserror::Error)]
#[error("no user id of `vm_agent.user_ids` is free")]
pub(crate) struct UserIdsExhausted(#[source] Option<io::Error>);

impl UserIds {
    /// `range`: the operator's `vm_agent.user_ids`. An agent that is not root cannot give
    /// directories to other users, so it ignores the range.
    pub(crate) fn new(range: Option<RangeInclusive<u32>>) -> Self {
        let range = range.filter(|_| rustix::process::geteuid().is_root());
        Self { range, taken: Arc::default() }
    }

    /// Takes an id that no process of this machine has. Reads the machine's process list, about a
    /// millisecond.
    pub(crate) fn lease(&self) -> Result<UserIdLease, UserIdsExhausted> {
        let Some(range) = &self.range else { return Ok(self.shared()) };
        let running = running().map_err(|err| UserIdsExhausted(Some(err)))?;
        for _ in 0..DRAWS {
            let id = rand::rng().random_range(range.clone());
            if !running.contains(&id) && self.taken.lock().insert(id) {
                return Ok(self.of(id));
            }
        }
        // A small range that is nearly full: any id that is left.
        let free = range.clone().find(|id| !running.contains(id) && self.taken.lock().insert(*id));
        free.map(|id| self.of(id)).ok_or(UserIdsExhausted(None))
    }

    /// The id of a container that an earlier run of this agent started.
    pub(crate) fn adopt(&self, id: Option<u32>) -> UserIdLease {
        let Some(id) = id else { return self.shared() };
        self.taken.lock().insert(id);
        self.of(id)
    }

    fn shared(&self) -> UserIdLease {
        UserIdLease { user: CodeUser::shared(), taken: None }
    }

    fn of(&self, id: u32) -> UserIdLease {
        let user = CodeUser { uid: id, gid: id };
        UserIdLease { user, taken: Some(Arc::clone(&self.taken)) }
    }
}

impl UserIdLease {
    pub(crate) fn user(&self) -> CodeUser {
        self.user
    }

    /// The id, unless it is shared.
    pub(crate) fn own_id(&self) -> Option<u32> {
        self.taken.as_ref().map(|_| self.user.uid)
    }
}

impl Drop for UserIdLease {
    fn drop(&mut self) {
        if let Some(taken) = &self.taken {
            taken.lock().remove(&self.user.uid);
        }
    }
}

/// User ids of the processes on this machine.
fn running() -> io::Result<HashSet<u32>> {
    let processes = fs::read_dir(PROCESSES)?.filter_map(|entry| {
        let entry = entry.ok()?;
        let name = entry.file_name();
        let is_process = name.to_str()?.bytes().all(|b| b.is_ascii_digit());
        // A process that has just ended has no owner any more.
        is_process.then(|| entry.metadata().ok().map(|found| found.uid()))?
    });
    Ok(processes.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(range: RangeInclusive<u32>) -> UserIds {
        UserIds { range: Some(range), taken: Arc::default() }
    }

    #[test]
    fn an_id_is_one_instances_until_that_is_gone() {
        let ids = ids(1_900_000_000..=1_900_000_002);
        let mut leases: Vec<UserIdLease> = (0..3).map(|_| ids.lease().unwrap()).collect();
        let seen: HashSet<u32> = leases.iter().filter_map(UserIdLease::own_id).collect();
        assert_eq!(seen.len(), 3);
        assert!(ids.lease().is_err());
        let freed = leases.pop().unwrap().own_id();
        assert_eq!(ids.lease().unwrap().own_id(), freed);
    }

    #[test]
    fn id_of_a_running_process_is_not_given_out() {
        let own = rustix::process::geteuid().as_raw();
        assert!(running().unwrap().contains(&own));
        assert!(ids(own..=own).lease().is_err());
    }

    #[test]
    fn adopted_id_is_taken_and_missing_one_shared() {
        let ids = ids(1_900_000_000..=1_900_000_000);
        let adopted = ids.adopt(Some(1_900_000_000));
        assert!(ids.lease().is_err());
        drop(adopted);
        assert!(ids.lease().is_ok());
        assert_eq!(ids.adopt(None).own_id(), None);
    }

    #[test]
    fn without_a_range_all_share_one() {
        let ids = UserIds::new(None);
        let (one, other) = (ids.lease().unwrap(), ids.lease().unwrap());
        assert_eq!((one.own_id(), one.user()), (None, other.user()));
    }

    #[test]
    fn the_user_has_a_name() {
        let passwd = CodeUser { uid: 7, gid: 8 }.passwd();
        assert!(passwd.lines().any(|line| line.starts_with("function:x:7:8:function:/tmp:")));
    }
}
