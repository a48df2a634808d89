//! Proof that the gate denies: a connection and a datagram of each family to a destination that nobody is ever granted.
//!
//! Owns: the destination and the attempts. Must not know: who asks for the proof.
//!
//! The destination leads nowhere: the last address but one of 127.0.0.0/8, and one of the IPv6 discard prefix (RFC 6666),
//! both on the discard port (RFC 863). Should the gate be open, nothing is reached either.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use agent_ebpf::abi::Hook;
use nix::errno::Errno;
use proto::types::{NewResource, PortRange, Protocol, Resource};

/// The canary's resource number. The control plane counts from 1 and never gets here.
pub const RESOURCE_NUMBER: u32 = u32::MAX;

const ADDRESS4: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 254);
const ADDRESS6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0x9);
const PORT: u16 = 9;

/// Long enough for an answer from this machine; a closed gate answers at once.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(100);

/// What is protected so that the attempts are denied.
pub fn resource() -> Resource {
    let new = RESOURCE_NUMBER
        .try_into()
        .and_then(|number| Ok((number, "portcullis-canary".parse()?)))
        .and_then(|(number, name)| {
            let range = |protocol| PortRange::new(protocol, PORT.into(), PORT.into());
            let ports = [Protocol::Tcp, Protocol::Udp].into_iter().map(range).collect::<Result<_, _>>()?;
            let addresses = vec![IpAddr::from(ADDRESS4).into(), IpAddr::from(ADDRESS6).into()];
            Ok(Resource::numbered(number, NewResource::new(name, addresses, ports)?))
        });
    new.expect("the canary's constants are valid, as its test shows")
}

/// What an attempt showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It was denied, as it must be.
    Shut,
    /// It was not.
    Open,
    /// This host cannot make such an attempt, and so nobody on it can.
    Impossible,
}

/// Tries every hook. Blocks for some 100 ms at the most if the gate is open, for microseconds otherwise.
pub fn test() -> [(Hook, Finding); 4] {
    let mapped = IpAddr::from(ADDRESS4.to_ipv6_mapped());
    [
        (Hook::Connect4, judge(connect(ADDRESS4.into()))),
        // An IPv6 socket, and an address that can be reached without IPv6.
        (Hook::Connect6, judge(connect(mapped))),
        (Hook::Sendmsg4, judge(send(Ipv4Addr::UNSPECIFIED.into(), ADDRESS4.into()))),
        (Hook::Sendmsg6, judge(send(Ipv6Addr::UNSPECIFIED.into(), ADDRESS6.into()))),
    ]
}

fn connect(address: IpAddr) -> io::Result<()> {
    TcpStream::connect_timeout(&SocketAddr::new(address, PORT), CONNECT_TIMEOUT).map(drop)
}

fn send(from: IpAddr, to: IpAddr) -> io::Result<()> {
    UdpSocket::bind(SocketAddr::new(from, 0))?.send_to(&[], SocketAddr::new(to, PORT)).map(drop)
}

fn judge(attempt: io::Result<()>) -> Finding {
    match attempt.map_err(|error| error.raw_os_error().map(Errno::from_raw)) {
        Err(Some(Errno::EPERM)) => Finding::Shut,
        // No IPv6 at all: no socket, or no address to bind to.
        Err(Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL)) => Finding::Impossible,
        Ok(()) | Err(_) => Finding::Open,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_canary_is_a_resource() {
        let resource = resource();
        assert_eq!(resource.number.get(), RESOURCE_NUMBER);
        assert_eq!(resource.destination(), "127.255.255.254, 100::9 on tcp/9, udp/9");
    }

    #[test]
    fn only_a_denial_is_a_closed_gate() {
        let error = |errno: Errno| Err(io::Error::from(errno));
        assert_eq!(judge(error(Errno::EPERM)), Finding::Shut);
        assert_eq!(judge(error(Errno::EAFNOSUPPORT)), Finding::Impossible);
        for open in [Ok(()), error(Errno::ECONNREFUSED), error(Errno::ENETUNREACH), error(Errno::ETIMEDOUT)] {
            assert_eq!(judge(open), Finding::Open);
        }
    }
}
