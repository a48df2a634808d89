//! "This port on any local address": whichever way a service of this host is reached, it is protected.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;

use agent::addresses::LocalAddresses;
use agent::rules::local;
use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, unshare};
use proto::types::{NewResource, Protocol, Resource};
use tests::ensure_eq;
use tests::fixture::{Fixture, HOUR, RESOURCE, reaches};
use tests::listener::Listener;
use tests::netlink::{LOOPBACK, set_up};
use tests::probe::Attempt;
use tests::process::output;
use tests::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("local::a_service_on_any_address_is_protected_by_each", on_any_address),
    ("local::addresses_are_followed_as_they_come_and_go", come_and_go),
];

/// That interface.
const DEVICE: &str = "local-test";
const OWN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const LATER: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
const EVERYBODY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 255);
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 77, 0, 1);
/// Local by a route, without being an interface's address.
const ROUTED: &str = "10.79.0.0/24";
const WITHIN_ROUTED: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 7);
/// Of the same network, and not this host's.
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// Does it in a network namespace of its own, with an interface besides loopback: one end of a cable.
fn in_a_namespace(test: fn() -> Result<()>) -> Result<()> {
    // A thread of its own: it takes the namespace with it.
    let there = std::thread::spawn(move || -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        set_up(LOOPBACK, 0)?;
        ip(&["link", "add", DEVICE, "type", "veth", "peer", "name", "other-end"])?;
        ip(&["address", "add", "10.77.0.1/24", "broadcast", "10.77.0.255", "dev", DEVICE])?;
        ip(&["link", "set", DEVICE, "up"])?;
        ip(&["link", "set", "other-end", "up"])?;
        // What has no other way, everybody on the link among it.
        ip(&["route", "add", "default", "dev", DEVICE])?;
        test()
    });
    there.join().map_err(|_| anyhow!("the thread in the namespace panicked"))?
}

fn ip(arguments: &[&str]) -> Result<()> {
    output(Command::new("ip").args(arguments)).map(drop)
}

/// A resource on any local address, at the listener's port.
fn protect(fixture: &mut Fixture, addresses: &LocalAddresses, listener: &Listener) -> Result<()> {
    let port = format!("{}/{}", listener.protocol(), listener.address().port());
    let new = NewResource::new("own".parse()?, vec!["local".parse()?], vec![port.parse()?])?;
    let resource = Resource::numbered(RESOURCE.try_into()?, new);
    fixture.wanted.resources = local::expand(vec![resource], addresses.known());
    fixture.apply()
}

fn on_any_address() -> Result<()> {
    in_a_namespace(|| {
        ip(&["route", "add", "local", ROUTED, "dev", "lo"])?;
        let mut addresses = LocalAddresses::default();
        addresses.look(false);
        ensure_eq!(addresses.error(), None);
        let unicast = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 9, 9, 9), OWN, WITHIN_ROUTED];
        let also_udp = [EVERYBODY, Ipv4Addr::BROADCAST, GROUP];
        for (protocol, attempt, to) in [
            (Protocol::Tcp, Attempt::Tcp, unicast.to_vec()),
            (Protocol::Udp, Attempt::UdpSend, [&unicast[..], &also_udp].concat()),
            (Protocol::Udp, Attempt::UdpConnect, [&unicast[..], &also_udp].concat()),
        ] {
            let mut fixture = Fixture::new()?;
            let listener = Listener::start(protocol, (Ipv4Addr::UNSPECIFIED, 0).into())?;
            // Whoever listens on every address hears what anybody of this host has joined.
            let member = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            member.join_multicast_v4(&GROUP, &OWN)?;
            let alice = fixture.subject("alice")?;
            let way = |address: Ipv4Addr| SocketAddr::new(IpAddr::from(address), listener.address().port());
            for address in &to {
                // That each of them is a way to the service at all.
                ensure_eq!(
                    reaches(&alice, attempt, way(*address), &listener)?,
                    true,
                    "{attempt:?} {address}"
                );
            }
            protect(&mut fixture, &addresses, &listener)?;
            for address in &to {
                ensure_eq!(
                    reaches(&alice, attempt, way(*address), &listener)?,
                    false,
                    "{attempt:?} {address}"
                );
            }
            fixture.grant(HOUR)?;
            for address in &to {
                ensure_eq!(
                    reaches(&alice, attempt, way(*address), &listener)?,
                    true,
                    "{attempt:?} {address}"
                );
            }
            ensure_eq!(fixture.denials().len(), to.len());
        }
        // What is not this host's is not protected by it.
        ensure_eq!(addresses.known().contains(&IpAddr::from(NEIGHBOUR).into()), false);
        Ok(())
    })
}

fn come_and_go() -> Result<()> {
    in_a_namespace(|| {
        let mut fixture = Fixture::new()?;
        let listener = Listener::start(Protocol::Tcp, (Ipv4Addr::UNSPECIFIED, 0).into())?;
        let alice = fixture.subject("alice")?;
        let mut addresses = LocalAddresses::default();
        addresses.look(false);
        protect(&mut fixture, &addresses, &listener)?;
        let to = SocketAddr::new(LATER.into(), listener.address().port());
        ip(&["address", "add", "10.78.0.1/24", "dev", DEVICE])?;
        ensure_eq!(reaches(&alice, Attempt::Tcp, to, &listener)?, true, "before anybody looked");
        ensure_eq!(addresses.look(false), true, "the kernel gave notice");
        protect(&mut fixture, &addresses, &listener)?;
        ensure_eq!(reaches(&alice, Attempt::Tcp, to, &listener)?, false);
        ip(&["address", "del", "10.78.0.1/24", "dev", DEVICE])?;
        ensure_eq!(addresses.look(false), true, "the kernel gave notice");
        ensure_eq!(addresses.known().contains(&IpAddr::from(LATER).into()), false);
        ensure_eq!(addresses.look(false), false, "nothing changed since");
        Ok(())
    })
}
