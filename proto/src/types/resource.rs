//! Protected destinations.

use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

use super::{Invalid, List, ResourceName, ResourceNumber, all, quote};
use crate::wire::access as wire;

/// How many addresses, and how many port ranges, one resource may have: enough for a cluster's subnets, and a bound on
/// what one call can put into every kernel.
const PARTS_MAX: usize = 64;

/// A transport protocol whose ports can be protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, MPTCP's first subflow included.
    Tcp,
    /// UDP.
    Udp,
    /// DCCP.
    Dccp,
    /// SCTP.
    Sctp,
    /// UDP-Lite.
    UdpLite,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Tcp, Self::Udp, Self::Dccp, Self::Sctp, Self::UdpLite];

    /// As people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Dccp => "dccp",
            Self::Sctp => "sctp",
            Self::UdpLite => "udplite",
        }
    }
}

impl Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A run of ports of one protocol: `tcp/5432` or `udp/6000-6010`. Never empty, never port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    protocol: Protocol,
    first: u16,
    last: u16,
}

impl PortRange {
    /// `first` and `last` lie in 1..=65535, `first` is not above `last`.
    pub fn new(protocol: Protocol, first: u32, last: u32) -> Result<Self, Invalid> {
        let port = |value: u32| match u16::try_from(value) {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(Invalid::new("ports", format_args!("port {value} is not in 1..=65535"))),
        };
        let range = Self { protocol, first: port(first)?, last: port(last)? };
        if range.first > range.last {
            return Err(Invalid::new("ports", format_args!("{first}-{last} runs backwards")));
        }
        Ok(range)
    }

    /// The protocol.
    pub fn protocol(self) -> Protocol {
        self.protocol
    }

    /// First and last port, both included.
    pub fn bounds(self) -> (u16, u16) {
        (self.first, self.last)
    }

    /// Whether a port of one is a port of the other.
    pub fn overlaps(self, other: Self) -> bool {
        self.protocol == other.protocol && self.first <= other.last && other.first <= self.last
    }
}

impl Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}/{}", self.protocol, self.first),
            false => write!(f, "{}/{}-{}", self.protocol, self.first, self.last),
        }
    }
}

impl FromStr for PortRange {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let unclear = || {
            Invalid::new(
                "ports",
                format_args!(
                    "{} is not `tcp/PORT` or `udp/FIRST-LAST` (also dccp, sctp, udplite)",
                    quote(text)
                ),
            )
        };
        let (protocol, ports) = text.split_once('/').ok_or_else(unclear)?;
        let protocol =
            Protocol::ALL.into_iter().find(|known| known.as_str() == protocol).ok_or_else(unclear)?;
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let number = |text: &str| text.parse::<u32>().map_err(|_| unclear());
        Self::new(protocol, number(first)?, number(last)?)
    }
}

impl TryFrom<wire::PortRange> for PortRange {
    type Error = Invalid;

    fn try_from(wire: wire::PortRange) -> Result<Self, Invalid> {
        let protocol = match wire.protocol() {
            wire::Protocol::Tcp => Protocol::Tcp,
            wire::Protocol::Udp => Protocol::Udp,
            wire::Protocol::Dccp => Protocol::Dccp,
            wire::Protocol::Sctp => Protocol::Sctp,
            wire::Protocol::Udplite => Protocol::UdpLite,
            wire::Protocol::Unspecified => {
                return Err(Invalid::new(
                    "protocol",
                    format_args!("{} is not a known protocol", wire.protocol),
                ));
            }
        };
        Self::new(protocol, wire.first, wire.last)
    }
}

impl From<PortRange> for wire::PortRange {
    fn from(range: PortRange) -> Self {
        let protocol = match range.protocol {
            Protocol::Tcp => wire::Protocol::Tcp,
            Protocol::Udp => wire::Protocol::Udp,
            Protocol::Dccp => wire::Protocol::Dccp,
            Protocol::Sctp => wire::Protocol::Sctp,
            Protocol::UdpLite => wire::Protocol::Udplite,
        };
        Self { protocol: protocol.into(), first: range.first.into(), last: range.last.into() }
    }
}

/// A run of addresses that share their first bits. IPv4 and mapped IPv6 are the same thing here: both are kept as IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(IpNet);

impl Prefix {
    /// How many leading bits of a mapped IPv6 address say that it is IPv4.
    const MAPPED_BITS: u8 = 96;

    /// The 16 bytes of the first address, IPv4 as mapped IPv6, and how many leading bits count (0..=128).
    pub fn mapped(self) -> ([u8; 16], u8) {
        match self.0 {
            IpNet::V4(net) => (net.addr().to_ipv6_mapped().octets(), net.prefix_len() + Self::MAPPED_BITS),
            IpNet::V6(net) => (net.addr().octets(), net.prefix_len()),
        }
    }
}

impl From<IpAddr> for Prefix {
    fn from(address: IpAddr) -> Self {
        Self(IpNet::from(address.to_canonical()))
    }
}

impl Display for Prefix {
    /// A single address without its length.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.prefix_len() == self.0.max_prefix_len() {
            true => self.0.addr().fmt(f),
            false => self.0.fmt(f),
        }
    }
}

impl FromStr for Prefix {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse =
            |problem: &dyn Display| Invalid::new("addresses", format_args!("{} {problem}", quote(text)));
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(address.into());
        }
        let net: IpNet = text.parse().map_err(|_| {
            refuse(
                &"is not an address or a CIDR prefix, such as `10.0.0.7`, `10.0.0.0/24` or `2001:db8::/32`",
            )
        })?;
        if net.trunc() != net {
            return Err(refuse(&format_args!(
                "has bits set beyond its prefix length: write `{}`",
                net.trunc()
            )));
        }
        match net {
            IpNet::V6(v6) if in_mapped_space(v6.addr()) && v6.prefix_len() >= Self::MAPPED_BITS => {
                let v4 = v6.addr().to_ipv4_mapped().ok_or_else(|| refuse(&"is not a mapped address"))?;
                let net = ipnet::Ipv4Net::new(v4, v6.prefix_len() - Self::MAPPED_BITS);
                Ok(Self(net.map_err(|_| refuse(&"is not a mapped prefix"))?.into()))
            }
            net => Ok(Self(net)),
        }
    }
}

fn in_mapped_space(address: Ipv6Addr) -> bool {
    address.to_ipv4_mapped().is_some()
}

/// A resource as somebody asks for it: not stored yet, so without a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewResource {
    /// Its name.
    pub name: ResourceName,
    /// 1..=64, sorted, none twice.
    pub addresses: Vec<Prefix>,
    /// 1..=64, sorted, none overlapping.
    pub ports: Vec<PortRange>,
}

impl NewResource {
    /// Sorts and checks the parts.
    pub fn new(
        name: ResourceName,
        mut addresses: Vec<Prefix>,
        mut ports: Vec<PortRange>,
    ) -> Result<Self, Invalid> {
        for (field, count) in [("addresses", addresses.len()), ("ports", ports.len())] {
            if !(1..=PARTS_MAX).contains(&count) {
                return Err(Invalid::new(
                    field,
                    format_args!("has {count} entries; 1 to {PARTS_MAX} are possible"),
                ));
            }
        }
        addresses.sort_unstable();
        addresses.dedup();
        ports.sort_unstable();
        if let Some(pair) = ports.windows(2).find(|pair| pair[0].overlaps(pair[1])) {
            return Err(Invalid::new("ports", format_args!("`{}` and `{}` overlap", pair[0], pair[1])));
        }
        Ok(Self { name, addresses, ports })
    }
}

impl TryFrom<wire::Resource> for NewResource {
    type Error = Invalid;

    fn try_from(wire: wire::Resource) -> Result<Self, Invalid> {
        if wire.number != 0 {
            return Err(Invalid::new(
                "number",
                format_args!("{} was set; the control plane gives it", wire.number),
            ));
        }
        parts(wire)
    }
}

fn parts(wire: wire::Resource) -> Result<NewResource, Invalid> {
    NewResource::new(
        wire.name.parse().map_err(|error: Invalid| Invalid::new("name", error.problem))?,
        all("addresses", wire.addresses, PARTS_MAX, |text| {
            text.parse().map_err(|error: Invalid| Invalid::new("", error.problem))
        })?,
        all("ports", wire.ports, PARTS_MAX, |range| {
            range.try_into().map_err(|error: Invalid| Invalid::new("", error.problem))
        })?,
    )
}

/// A named protected destination: every address of it on every port of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// How kernels name it.
    pub number: ResourceNumber,
    /// Its name.
    pub name: ResourceName,
    /// 1..=64, sorted, none twice.
    pub addresses: Vec<Prefix>,
    /// 1..=64, sorted, none overlapping.
    pub ports: Vec<PortRange>,
}

impl Resource {
    /// The resource that `new` becomes under this number.
    pub fn numbered(number: ResourceNumber, new: NewResource) -> Self {
        Self { number, name: new.name, addresses: new.addresses, ports: new.ports }
    }

    /// Where another resource claims exactly the same: a prefix of both on a port of both. Nothing could then say whose it
    /// is, so two such resources cannot exist. A longer prefix within a shorter one is no conflict: the longer one wins.
    pub fn conflict(&self, other: &NewResource) -> Option<String> {
        let prefix = self.addresses.iter().find(|prefix| other.addresses.contains(prefix))?;
        let overlap = |range: &&PortRange| other.ports.iter().any(|theirs| theirs.overlaps(**range));
        let range = self.ports.iter().find(overlap)?;
        Some(format!("{prefix} on {range}"))
    }

    /// The destination as people read it: `10.0.0.7, 10.0.0.8 on tcp/5432`.
    pub fn destination(&self) -> String {
        format!("{} on {}", List(&self.addresses), List(&self.ports))
    }
}

impl TryFrom<wire::Resource> for Resource {
    type Error = Invalid;

    fn try_from(wire: wire::Resource) -> Result<Self, Invalid> {
        let number =
            wire.number.try_into().map_err(|error: Invalid| Invalid::new("number", error.problem))?;
        Ok(Self::numbered(number, parts(wire)?))
    }
}

impl From<Resource> for wire::Resource {
    fn from(resource: Resource) -> Self {
        Self {
            name: resource.name.into(),
            number: resource.number.get(),
            addresses: resource.addresses.iter().map(ToString::to_string).collect(),
            ports: resource.ports.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<NewResource> for wire::Resource {
    fn from(new: NewResource) -> Self {
        Self {
            name: new.name.into(),
            number: 0,
            addresses: new.addresses.iter().map(ToString::to_string).collect(),
            ports: new.ports.into_iter().map(Into::into).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check<T: FromStr<Err = Invalid> + Display>(text: &str, expected: Result<&str, &str>) {
        match (text.parse::<T>(), expected) {
            (Ok(value), Ok(expected)) => assert_eq!(value.to_string(), expected, "{text}"),
            (Err(error), Err(part)) => assert!(error.problem.contains(part), "{text}: {error}"),
            (Ok(value), Err(_)) => panic!("`{text}` was accepted as {value}"),
            (Err(error), Ok(_)) => panic!("`{text}`: {error}"),
        }
    }

    #[test]
    fn port_ranges() {
        check::<PortRange>("tcp/5432", Ok("tcp/5432"));
        check::<PortRange>("udp/1-65535", Ok("udp/1-65535"));
        for good in ["dccp/1", "sctp/1", "udplite/1"] {
            check::<PortRange>(good, Ok(good));
        }
        check::<PortRange>("tcp/7-7", Ok("tcp/7"));
        check::<PortRange>("tcp/0", Err("port 0 is not in 1..=65535"));
        check::<PortRange>("tcp/65536", Err("port 65536"));
        check::<PortRange>("tcp/9-7", Err("9-7 runs backwards"));
        for bad in ["", "5432", "tcp", "icmp/1", "tcp/", "tcp/-1", "tcp/1-", "tcp/a", "tcp/99999999999"] {
            check::<PortRange>(bad, Err("is not `tcp/PORT`"));
        }
    }

    #[test]
    fn prefixes() {
        check::<Prefix>("10.0.0.7", Ok("10.0.0.7"));
        check::<Prefix>("10.0.0.7/32", Ok("10.0.0.7"));
        check::<Prefix>("0.0.0.0/0", Ok("0.0.0.0/0"));
        check::<Prefix>("::/0", Ok("::/0"));
        check::<Prefix>("2001:DB8::/32", Ok("2001:db8::/32"));
        check::<Prefix>("::ffff:10.0.0.7", Ok("10.0.0.7"));
        check::<Prefix>("::ffff:10.0.0.0/104", Ok("10.0.0.0/8"));
        check::<Prefix>("10.0.0.7/8", Err("write `10.0.0.0/8`"));
        for bad in ["", "db", "10.0.0", "10.0.0.0/33", "::/129", "10.0.0.0/-1", "fe80::1%eth0"] {
            check::<Prefix>(bad, Err("is not an address or a CIDR prefix"));
        }
    }

    #[test]
    fn mapped_bytes() {
        let prefix: Prefix = "10.0.0.0/8".parse().expect("valid");
        assert_eq!(prefix.mapped(), ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 0], 104));
    }

    fn resource(addresses: &[&str], ports: &[&str]) -> Result<NewResource, Invalid> {
        NewResource::new(
            "db".parse()?,
            addresses.iter().map(|text| text.parse()).collect::<Result<_, _>>()?,
            ports.iter().map(|text| text.parse()).collect::<Result<_, _>>()?,
        )
    }

    #[test]
    fn resources() {
        assert!(resource(&["10.0.0.1"], &["tcp/1", "udp/1"]).is_ok());
        assert!(resource(&[], &["tcp/1"]).is_err());
        assert!(resource(&["10.0.0.1"], &[]).is_err());
        assert!(resource(&["10.0.0.1"], &["tcp/1-10", "tcp/10"]).is_err());
        assert_eq!(resource(&["10.0.0.1", "10.0.0.1/32"], &["tcp/1"]).map(|new| new.addresses.len()), Ok(1));
        let one = resource(&["10.0.0.1"], &["tcp/5432"]).expect("valid");
        let wire = wire::Resource { number: 3, ..one.clone().into() };
        assert!(NewResource::try_from(wire.clone()).is_err());
        let stored = Resource::try_from(wire).expect("valid");
        assert_eq!(stored.conflict(&one).as_deref(), Some("10.0.0.1 on tcp/5432"));
        assert_eq!(stored.conflict(&resource(&["10.0.0.0/24"], &["tcp/5432"]).expect("valid")), None);
        assert_eq!(stored.conflict(&resource(&["10.0.0.1"], &["udp/5432"]).expect("valid")), None);
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in ".{0,60}") {
            let _ = text.parse::<Prefix>();
            let _ = text.parse::<PortRange>();
        }

        #[test]
        fn what_is_shown_is_read_back(bits in proptest::prelude::any::<u128>(), length in 0u8..=128) {
            let net = ipnet::Ipv6Net::new(Ipv6Addr::from(bits), length).expect("length is in range").trunc();
            let prefix: Prefix = net.to_string().parse().expect("valid");
            proptest::prop_assert_eq!(prefix.to_string().parse::<Prefix>(), Ok(prefix));
        }
    }
}
