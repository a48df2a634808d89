//! Ending live connections.
//!
//! Owns: finding sockets by their cookies, in whichever network namespace they are, and closing them under their owners, so
//! that both ends learn at once. Must not know: why.
//!
//! Invariants: only sockets with a cookie that was named are ended, and only while they are connected: an unconnected UDP
//! socket would change its port under the application. What is not found again is gone only if its namespace was looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::sched::{CloneFlags, setns};

use crate::kernel::netns_cookie;
use crate::netlink::{open, receive, send};

/// A connection that is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Of its socket.
    pub cookie: u64,
    /// Of its network namespace.
    pub netns_cookie: u64,
    /// Whose namespace to look at first: the process that made the connection.
    pub pid: u32,
}

/// What became of the targets, by cookie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Ended here.
    pub closed: BTreeSet<u64>,
    /// Not there any more, in a namespace that was looked at.
    pub gone: BTreeSet<u64>,
    /// Perhaps still there: its namespace was not found, or the kernel would not end it.
    pub unconfirmed: BTreeSet<u64>,
}

/// How often it is looked again. A dump can miss a socket that moves within the kernel's tables while it runs.
const PASSES_MAX: usize = 4;

/// Ends every target that is connected, and looks again until none is left.
pub fn end(targets: &[Target]) -> Ended {
    let mut ended = Ended::default();
    let mut last = Pass::default();
    for _ in 0..PASSES_MAX {
        last = pass(targets, &mut ended.closed);
        if last.found.is_empty() {
            break;
        }
    }
    for Target { cookie, netns_cookie, .. } in targets {
        if last.found.contains(cookie) {
            ended.closed.remove(cookie);
            ended.unconfirmed.insert(*cookie);
        } else if !ended.closed.contains(cookie) {
            let place =
                if last.namespaces.contains(netns_cookie) { &mut ended.gone } else { &mut ended.unconfirmed };
            place.insert(*cookie);
        }
    }
    ended
}

/// What one look at the namespaces showed.
#[derive(Default)]
struct Pass {
    /// Cookies of the namespaces that were looked at.
    namespaces: BTreeSet<u64>,
    /// Cookies of the targets that were there.
    found: BTreeSet<u64>,
}

/// Looks at every namespace that may matter, and ends what it finds.
fn pass(targets: &[Target], closed: &mut BTreeSet<u64>) -> Pass {
    let wanted: BTreeSet<u64> = targets.iter().map(|target| target.cookie).collect();
    let needed: BTreeSet<u64> = targets.iter().map(|target| target.netns_cookie).collect();
    let mut pass = Pass::default();
    for namespace in namespaces_of(targets) {
        if needed.is_subset(&pass.namespaces) {
            break;
        }
        if let Err(error) = look(&namespace, &wanted, closed, &mut pass) {
            tracing::warn!(namespace = %namespace.display(), %error, "cannot look for sockets");
        }
    }
    pass
}

/// Files that stand for network namespaces, one for each: this one, those of the processes that connected, all others that
/// any process is in, and those that have a name.
fn namespaces_of(targets: &[Target]) -> Vec<PathBuf> {
    let of_process = |pid: String| PathBuf::from(format!("/proc/{pid}/ns/net"));
    let hinted = targets.iter().map(|target| of_process(target.pid.to_string()));
    let numbered = |name: &String| name.bytes().all(|byte| byte.is_ascii_digit());
    let names = |dir: &str| {
        let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    let processes = names("/proc").into_iter().filter(numbered).map(of_process);
    let named = names("/run/netns").into_iter().map(|name| PathBuf::from("/run/netns").join(name));
    let all = std::iter::once(of_process("self".to_owned())).chain(hinted).chain(processes).chain(named);
    let mut inodes = BTreeSet::new();
    all.filter(|path| fs::metadata(path).is_ok_and(|metadata| inodes.insert(metadata.ino()))).collect()
}

/// Ends the wanted sockets of one namespace.
fn look(
    namespace: &Path,
    wanted: &BTreeSet<u64>,
    closed: &mut BTreeSet<u64>,
    pass: &mut Pass,
) -> io::Result<()> {
    let socket = socket_in(File::open(namespace)?)?;
    for (protocol, states) in [(IPPROTO_TCP, connected_tcp()), (IPPROTO_UDP, StateFlags::ESTABLISHED)] {
        for family in [AF_INET, AF_INET6] {
            let found = dump(&socket, family, protocol, states.clone())?;
            for (cookie, id) in found.into_iter().filter(|(cookie, _)| wanted.contains(cookie)) {
                pass.found.insert(cookie);
                match destroy(&socket, family, protocol, id) {
                    Ok(()) => drop(closed.insert(cookie)),
                    Err(error) => tracing::warn!(cookie, %error, "cannot end a connection"),
                }
            }
        }
    }
    // Before Linux 5.14 the kernel does not tell, and every namespace is looked at.
    pass.namespaces.extend(netns_cookie(socket.as_fd()).ok());
    Ok(())
}

/// Neither listening nor already over.
fn connected_tcp() -> StateFlags {
    StateFlags::ESTABLISHED
        | StateFlags::SYN_SENT
        | StateFlags::SYN_RECV
        | StateFlags::FIN_WAIT1
        | StateFlags::FIN_WAIT2
        | StateFlags::CLOSE_WAIT
        | StateFlags::LAST_ACK
        | StateFlags::CLOSING
}

/// A netlink socket belongs to the namespace in which it is made, so a thread goes there, and ends.
fn socket_in(namespace: File) -> io::Result<Socket> {
    let make = move || -> io::Result<Socket> {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        open(NETLINK_SOCK_DIAG)
    };
    std::thread::spawn(make).join().map_err(|_| io::Error::other("the thread in the namespace panicked"))?
}

fn request(family: u8, protocol: u8, states: StateFlags, socket_id: SocketId) -> SockDiagMessage {
    let extensions = ExtensionFlags::empty();
    SockDiagMessage::InetRequest(InetRequest { family, protocol, extensions, states, socket_id })
}

/// The sockets of a kind, by cookie.
fn dump(
    socket: &Socket,
    family: u8,
    protocol: u8,
    states: StateFlags,
) -> io::Result<BTreeMap<u64, SocketId>> {
    let any = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    send(socket, NLM_F_DUMP, request(family, protocol, states, any))?;
    let mut found = BTreeMap::new();
    receive(socket, |message: SockDiagMessage| {
        if let SockDiagMessage::InetResponse(response) = message {
            let id = response.header.socket_id.clone();
            found.insert(u64::from_ne_bytes(id.cookie), id);
        }
    })?;
    Ok(found)
}

/// Ends one socket: its owner gets ECONNABORTED, the other side RST.
fn destroy(socket: &Socket, family: u8, protocol: u8, id: SocketId) -> io::Result<()> {
    send(socket, NLM_F_ACK, SockDiagDestroy::new(request(family, protocol, StateFlags::all(), id)))?;
    receive(socket, |_: SockDiagMessage| {})
}
