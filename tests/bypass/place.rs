//! Network namespaces of a test's own.
//!
//! Invariant: nothing here changes a network namespace unless the calling thread has just made it.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};
use tests::netlink;

use crate::technique::Place;

/// Index of the cable's end at the service.
pub(crate) const CABLE: i32 = 10;
/// Index of its other end.
const THERE: i32 = 11;

/// How small packets are in a namespace of one's own: less than what some techniques send in one go.
const MTU: u32 = 1500;

/// Whether it works in a new network namespace.
pub(crate) fn alone(try_it: impl FnOnce() -> io::Result<()> + Send + 'static) -> bool {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        try_it()
    });
    thread.join().is_ok_and(|result| result.is_ok())
}

/// Makes a cable, in a new network namespace.
pub(crate) fn has_cable() -> io::Result<()> {
    let there = new_namespace(|| Ok(()))?;
    netlink::add_cable(CABLE, THERE, there.as_fd())
}

/// A new network namespace, with something done in it first.
fn new_namespace(prepare: impl FnOnce() -> io::Result<()> + Send) -> io::Result<File> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            prepare()?;
            File::open("/proc/thread-self/ns/net")
        });
        thread.join().expect("the thread does not panic")
    })
}

/// Where the services of one test are.
pub(crate) struct Ground {
    /// What the service binds to.
    pub(crate) bind: IpAddr,
    /// How it is reached.
    pub(crate) reach: IpAddr,
    /// What is protected, as a prefix.
    pub(crate) prefix: String,
    /// The network namespace at the cable's other end. It lives as long as this does.
    other_end: Option<File>,
    place: Place,
}

impl Ground {
    /// Where the probe starts; None: where the calling thread is.
    pub(crate) fn probes_namespace(&self) -> Option<&File> {
        self.other_end.as_ref().filter(|_| self.place == Place::Cable)
    }
}

/// Brings the calling thread to the place, which makes it if it is not the host's own network namespace. The thread must be
/// the test's own.
pub(crate) fn go_to(place: Place) -> Result<Ground> {
    let own4 = own_address();
    let own6 = own_address6();
    let (bind, reach): (IpAddr, IpAddr) = match place {
        Place::Host | Place::Own | Place::OwnTunnel => (own4.into(), own4.into()),
        Place::Host6 | Place::OwnLoopback6 => (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()),
        Place::Own6 => (own6.into(), own6.into()),
        Place::OwnLoopback => (Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()),
        Place::OwnAny => (Ipv4Addr::UNSPECIFIED.into(), own4.into()),
        Place::OwnAny6 | Place::CableAny6 => (Ipv6Addr::UNSPECIFIED.into(), own6.into()),
        Place::Cable => (cable_address(1).into(), cable_address(1).into()),
    };
    let prefix = match place {
        Place::OwnAny | Place::OwnAny6 | Place::CableAny6 => "::/0".to_owned(),
        _ => reach.to_string(),
    };
    let mut other_end = None;
    if !matches!(place, Place::Host | Place::Host6) {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        netlink::set_up(netlink::LOOPBACK, MTU).context("cannot set lo up")?;
        if fs::exists("/proc/sys/net/ipv6")? {
            netlink::add_address(netlink::LOOPBACK, own6.into(), 128).context("cannot add an address")?;
        }
        relax().context("cannot set what the namespace permits")?;
    }
    if place == Place::OwnTunnel {
        add_tunnel().context("cannot make a tunnel's end")?;
    }
    if matches!(place, Place::Cable | Place::CableAny6) {
        let there = new_namespace(|| netlink::set_up(netlink::LOOPBACK, 0))?;
        netlink::add_cable(CABLE, THERE, there.as_fd()).context("cannot make a cable")?;
        netlink::add_address(CABLE, cable_address(1).into(), 24)?;
        netlink::set_up(CABLE, 0)?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                nix::sched::setns(&there, CloneFlags::CLONE_NEWNET)?;
                netlink::add_address(THERE, cable_address(2).into(), 24)?;
                netlink::set_up(THERE, 0)
            });
            thread.join().expect("the thread does not panic")
        })
        .context("cannot set up the cable's other end")?;
        if place == Place::CableAny6 {
            // Usable at once, unlike the one that the kernel gives it.
            netlink::add_address(CABLE, own_address6().into(), 64)?;
        }
        other_end = Some(there);
    }
    Ok(Ground { bind, reach, prefix, other_end, place })
}

/// The tunnel's network and port.
pub(crate) const TUNNEL: (u32, u16) = (42, 4789);

/// Makes an end of a tunnel.
pub(crate) fn add_tunnel() -> io::Result<()> {
    let (network, port) = TUNNEL;
    netlink::add_tunnel(CABLE, network, port)?;
    netlink::set_up(CABLE, 0)
}

/// What a host may permit, so that a technique is stopped by the gate, if at all, and not by a default.
fn relax() -> io::Result<()> {
    let settings = [
        // Fast Open for clients and servers, without cookies and without asking for it.
        ("ipv4/tcp_fastopen", "1543"),
        ("ipv4/conf/all/accept_local", "1"),
        ("ipv4/conf/all/route_localnet", "1"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/lo/rp_filter", "0"),
        ("ipv4/conf/all/accept_source_route", "1"),
        ("ipv4/conf/lo/accept_source_route", "1"),
        ("ipv6/conf/all/seg6_enabled", "1"),
        ("ipv6/conf/lo/seg6_enabled", "1"),
        ("ipv6/conf/all/accept_source_route", "1"),
        ("ipv6/conf/lo/accept_source_route", "1"),
    ];
    for (name, value) in settings {
        match fs::write(format!("/proc/sys/net/{name}"), value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
    }
    Ok(())
}

/// A port that no other test of this process uses, below those that the kernel gives to clients.
pub(crate) fn own_port() -> u16 {
    static COUNT: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id().wrapping_mul(97) as u16;
    15_000 + first.wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed)) % 15_000
}

fn count() -> u16 {
    static COUNT: AtomicU16 = AtomicU16::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

/// In 127.128.0.0/9, by process and count: gates of other tests see this test's traffic too.
fn own_address() -> Ipv4Addr {
    let (process, count) = (std::process::id() as u16, count());
    Ipv4Addr::new(127, 128 | (process >> 8) as u8, process as u8, 1 + (count % 250) as u8)
}

/// Of the kind that is never routed between sites.
fn own_address6() -> Ipv6Addr {
    let process = std::process::id();
    Ipv6Addr::new(0xfd00, 0x706f, (process >> 16) as u16, process as u16, 0, 0, count(), 1)
}

fn cable_address(host: u8) -> Ipv4Addr {
    let process = std::process::id() as u16;
    Ipv4Addr::new(10, (process >> 8) as u8, process as u8, host)
}

/// The same port at another address.
pub(crate) fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}
