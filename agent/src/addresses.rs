//! The addresses of this host, as they come and go: what the kernel delivers here.
//!
//! Owns: reading them, and noticing that they changed. Must not know: what they are for.
//!
//! Read are the addresses of all interfaces with their broadcast addresses, and the table `local` of the routes, which also
//! has what somebody made local without an interface's address (`ip route add local …`), broadcast and anycast addresses.
//! All of this network namespace only.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use proto::types::Prefix;

use crate::netlink::{open, receive, send};

/// The table of what is delivered to this host.
const TABLE_LOCAL: u8 = 255;

/// What the kernel tells whoever listens: changes of addresses and routes, of both families (`RTNLGRP_*`).
const GROUPS: [u32; 4] = [5, 7, 9, 11];

/// This host's addresses, as they were when last looked at. Nothing is asked before the first look.
#[derive(Default)]
pub struct LocalAddresses {
    notices: Option<Socket>,
    known: BTreeSet<Prefix>,
    error: Option<String>,
}

impl LocalAddresses {
    /// What was there at the last look that worked.
    pub fn known(&self) -> &BTreeSet<Prefix> {
        &self.known
    }

    /// Why the last look did not work; None: it did.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Looks, if the kernel says that something changed since the last look, or if that did not work; in any case when
    /// `again`. Returns whether anything is another than before.
    pub fn look(&mut self, again: bool) -> bool {
        let looked = match &self.notices {
            Some(notices) => {
                let changed = has_notice(notices);
                (changed || again || self.error.is_some()).then(read)
            }
            // Listening first: what changes after the look is noticed.
            None => Some(listen().and_then(|notices| {
                self.notices = Some(notices);
                read()
            })),
        };
        let Some(looked) = looked else { return false };
        let (before, error_before) = (self.known.clone(), self.error.take());
        match looked {
            Ok(addresses) => self.known = addresses,
            Err(error) => {
                let error = format!("cannot read this host's addresses: {error}");
                if error_before.as_ref() != Some(&error) {
                    tracing::error!(error, "what is local may have changed");
                }
                self.error = Some(error);
            }
        }
        self.known != before || self.error != error_before
    }
}

fn listen() -> io::Result<Socket> {
    let socket = open(NETLINK_ROUTE)?;
    for group in GROUPS {
        socket.add_membership(group)?;
    }
    Ok(socket)
}

/// Takes what waits. That it came is all that counts; what cannot be read, as after an overflow, counts as well.
fn has_notice(socket: &Socket) -> bool {
    /// A flood of changes must not hold up everything else: what is left waits for the next look.
    const NOTICES_MAX: usize = 1024;
    let mut notice = Vec::with_capacity(4096);
    for taken in 0..NOTICES_MAX {
        notice.clear();
        match socket.recv(&mut notice, libc::MSG_DONTWAIT) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return taken > 0,
            Err(_) => return true,
        }
    }
    true
}

/// All of them. One that changes while they are read is read again at the next look.
fn read() -> io::Result<BTreeSet<Prefix>> {
    let mut found = BTreeSet::new();
    let socket = open(NETLINK_ROUTE)?;
    // The kernel then gives the one table that is asked for. Before Linux 4.20 there is no such thing.
    socket.set_netlink_get_strict_chk(true)?;
    send(&socket, NLM_F_DUMP, RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    receive(&socket, |message| {
        if let RouteNetlinkMessage::NewAddress(message) = message {
            found.extend(of_interface(&message).into_iter().map(Prefix::from));
        }
    })?;
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut route = RouteMessage::default();
        route.header.address_family = family;
        route.header.table = TABLE_LOCAL;
        send(&socket, NLM_F_DUMP, RouteNetlinkMessage::GetRoute(route))?;
        let read = receive(&socket, |message| {
            if let RouteNetlinkMessage::NewRoute(message) = message {
                found.extend(of_route(&message));
            }
        });
        match read {
            // Without any address there is no such table.
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {}
            read => read?,
        }
    }
    Ok(found)
}

/// What an interface is reached by. Of a point-to-point interface `Address` is the other end, and `Local` this one.
fn of_interface(message: &AddressMessage) -> BTreeSet<IpAddr> {
    let of = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    };
    let only = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    };
    let broadcast = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Broadcast(address) => Some(IpAddr::from(*address)),
        _ => None,
    };
    let own = message.attributes.iter().find_map(of);
    let own = own.or_else(|| message.attributes.iter().find_map(only));
    own.into_iter().chain(message.attributes.iter().filter_map(broadcast)).collect()
}

fn of_route(message: &RouteMessage) -> Option<Prefix> {
    let header = &message.header;
    if header.table != TABLE_LOCAL
        || !matches!(header.kind, RouteType::Local | RouteType::Broadcast | RouteType::Anycast)
    {
        return None;
    }
    let destination = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::from(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::from(*address)),
        _ => None,
    });
    // A route to everything names no destination.
    let everything = match header.address_family {
        AddressFamily::Inet6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        _ => IpAddr::from(Ipv4Addr::UNSPECIFIED),
    };
    Prefix::new(destination.unwrap_or(everything), header.destination_prefix_length).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_loopback() {
        let mut addresses = LocalAddresses::default();
        assert!(addresses.look(false), "{:?}", addresses.error());
        assert_eq!(addresses.error(), None);
        for address in ["127.0.0.1", "127.0.0.0/8"] {
            assert!(addresses.known().contains(&address.parse().expect("valid")), "{:?}", addresses.known());
        }
        assert!(!addresses.look(true), "nothing changed");
    }

    #[test]
    fn the_other_end_of_a_point_to_point_interface_is_not_local() {
        let mut message = AddressMessage::default();
        let [ours, theirs] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)].map(IpAddr::from);
        message.attributes = vec![AddressAttribute::Address(ours)];
        assert_eq!(of_interface(&message), [ours].into());
        message.attributes = vec![AddressAttribute::Address(theirs), AddressAttribute::Local(ours)];
        assert_eq!(of_interface(&message), [ours].into());
        let everybody = Ipv4Addr::new(10, 0, 0, 255);
        message.attributes.push(AddressAttribute::Broadcast(everybody));
        assert_eq!(of_interface(&message), [ours, everybody.into()].into());
    }
}
