//! Protected destinations.

use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

use super::{Invalid, List, Outage, ResourceName, ResourceNumber, all, quote};
use crate::wire::access as wire;

/// How many addresses, how many port ranges and how many unix sockets one resource may have: enough for a cluster's subnets, and a bound on
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

    /// The addresses that share the first `bits` bits of `address`, which has no other bit set.
    pub fn new(address: IpAddr, bits: u8) -> Result<Self, Invalid> {
        format!("{address}/{bits}").parse()
    }

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

/// Where a resource is, as people write it: `local`, or a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// Every address by which a service on the connecting host itself can be reached.
    Local,
    /// These.
    Prefix(Prefix),
}

impl Address {
    const LOCAL: &str = "local";
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        Self::Prefix(address.into())
    }
}

impl Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str(Self::LOCAL),
            Self::Prefix(prefix) => prefix.fmt(f),
        }
    }
}

impl FromStr for Address {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            Self::LOCAL => Ok(Self::Local),
            text => text.parse().map(Self::Prefix),
        }
    }
}

/// Where a unix socket is on a host: an absolute path, as a kernel can be asked about it. Names are ASCII without white space
/// and control characters; none is `.` or `..`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixPath(String);

impl UnixPath {
    /// What the kernel can bind a socket to, without the byte that ends it.
    const MAX_BYTES: usize = 107;
    /// From the root on. Kernels are asked about so many.
    const NAMES_MAX: usize = 8;
    /// Kernels keep longer names where they cannot be asked about them.
    const NAME_MAX_BYTES: usize = 31;

    /// As people write it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Display for UnixPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for UnixPath {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse =
            |problem: &dyn Display| Err(Invalid::new("unix", format_args!("{} {problem}", quote(text))));
        let Some(rest) = text.strip_prefix('/') else {
            return refuse(&"is not an absolute path, such as `/run/postgresql/.s.PGSQL.5432`");
        };
        if text.len() > Self::MAX_BYTES {
            return refuse(&format_args!(
                "has {} bytes, and a unix socket's path has at most {}",
                text.len(),
                Self::MAX_BYTES
            ));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return refuse(&"has white space, or something that is not ASCII");
        }
        let names: Vec<&str> = rest.split('/').collect();
        if names.iter().any(|name| ["", ".", ".."].contains(name)) {
            return refuse(
                &"is not the shortest way to write it: leave out `//`, `.`, `..` and a `/` at the end",
            );
        }
        if names.len() > Self::NAMES_MAX {
            return refuse(&format_args!(
                "has {} names, and kernels can be asked about at most {}",
                names.len(),
                Self::NAMES_MAX
            ));
        }
        if let Some(name) = names.iter().find(|name| name.len() > Self::NAME_MAX_BYTES) {
            return refuse(&format_args!(
                "has the name `{name}` of {} bytes, and kernels can be asked about names of at most {}",
                name.len(),
                Self::NAME_MAX_BYTES
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl From<UnixPath> for String {
    fn from(path: UnixPath) -> Self {
        path.0
    }
}

/// What a kernel does about a connection to a resource that no grant covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceMode {
    /// Denies it.
    #[default]
    Enforce,
    /// Lets it through, and records that it would have been denied.
    Observe,
}

impl ResourceMode {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Enforce, Self::Observe];

    /// As people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
        }
    }
}

impl Display for ResourceMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for ResourceMode {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let unknown = || Invalid::new("mode", format_args!("{} is not enforce or observe", quote(text)));
        Self::ALL.into_iter().find(|mode| mode.as_str() == text).ok_or_else(unknown)
    }
}

impl TryFrom<wire::ResourceMode> for ResourceMode {
    type Error = Invalid;

    fn try_from(wire: wire::ResourceMode) -> Result<Self, Invalid> {
        match wire {
            wire::ResourceMode::Enforce => Ok(Self::Enforce),
            wire::ResourceMode::Observe => Ok(Self::Observe),
            wire::ResourceMode::Unspecified => Err(Invalid::new("mode", "is missing or unknown")),
        }
    }
}

impl From<ResourceMode> for wire::ResourceMode {
    fn from(mode: ResourceMode) -> Self {
        match mode {
            ResourceMode::Enforce => Self::Enforce,
            ResourceMode::Observe => Self::Observe,
        }
    }
}

/// How a resource is guarded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ResourceOptions {
    /// What becomes of a connection that no grant covers.
    pub mode: ResourceMode,
    /// No record, no access.
    pub strict: bool,
    /// Each write is judged by who writes, not only by who connected.
    pub check_senders: bool,
    /// From where a host that has the resource serves it: at most 64, sorted, none twice. None: from everywhere.
    pub serve_only: Vec<Prefix>,
    /// What becomes of live grants on a host that does not hear the control plane.
    pub outage: Outage,
    /// A denied attempt opens the draft of a request. Nothing that hosts know.
    pub drafts: bool,
}

impl ResourceOptions {
    /// Each setting by its name, as people read it.
    pub fn settings(&self) -> [(&'static str, String); 6] {
        let serve_only = match self.serve_only.is_empty() {
            true => "anyone".to_owned(),
            false => List(&self.serve_only).to_string(),
        };
        [
            ("mode", self.mode.to_string()),
            ("strict", self.strict.to_string()),
            ("check_senders", self.check_senders.to_string()),
            ("serve_only", serve_only),
            ("outage", self.outage.to_string()),
            ("drafts", self.drafts.to_string()),
        ]
    }

    /// Checks and sorts what is to be its `serve_only`.
    pub fn peers(mut prefixes: Vec<Prefix>) -> Result<Vec<Prefix>, Invalid> {
        prefixes.sort_unstable();
        prefixes.dedup();
        match prefixes.len() > PARTS_MAX {
            true => Err(Invalid::new(
                "serve_only",
                format_args!("has {} entries; at most {PARTS_MAX} are possible", prefixes.len()),
            )),
            false => Ok(prefixes),
        }
    }
}

fn peers_from(texts: Vec<String>) -> Result<Vec<Prefix>, Invalid> {
    let prefix = |text: String| text.parse().map_err(|error: Invalid| Invalid::new("", error.problem));
    ResourceOptions::peers(all("serve_only", texts, PARTS_MAX, prefix)?)
}

impl TryFrom<wire::ResourceOptions> for ResourceOptions {
    type Error = Invalid;

    fn try_from(wire: wire::ResourceOptions) -> Result<Self, Invalid> {
        Ok(Self {
            mode: wire.mode().try_into()?,
            strict: wire.strict,
            check_senders: wire.check_senders,
            serve_only: peers_from(wire.serve_only)?,
            outage: Outage::from_wire(wire.outage)?,
            drafts: wire.drafts,
        })
    }
}

impl From<ResourceOptions> for wire::ResourceOptions {
    fn from(options: ResourceOptions) -> Self {
        Self {
            mode: wire::ResourceMode::from(options.mode).into(),
            strict: options.strict,
            check_senders: options.check_senders,
            serve_only: options.serve_only.iter().map(ToString::to_string).collect(),
            outage: (options.outage != Outage::HOLD).then(|| options.outage.into()),
            drafts: options.drafts,
        }
    }
}

/// Other options for a resource; what is None stays as it is. At least one is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceChange {
    /// Of which resource.
    pub name: ResourceName,
    /// See [`ResourceOptions`].
    pub mode: Option<ResourceMode>,
    /// See [`ResourceOptions`].
    pub strict: Option<bool>,
    /// See [`ResourceOptions`].
    pub check_senders: Option<bool>,
    /// See [`ResourceOptions`].
    pub serve_only: Option<Vec<Prefix>>,
    /// See [`ResourceOptions`].
    pub outage: Option<Outage>,
    /// See [`ResourceOptions`].
    pub drafts: Option<bool>,
}

impl ResourceChange {
    /// The options that `before` become.
    pub fn applied_to(&self, before: &ResourceOptions) -> ResourceOptions {
        ResourceOptions {
            mode: self.mode.unwrap_or(before.mode),
            strict: self.strict.unwrap_or(before.strict),
            check_senders: self.check_senders.unwrap_or(before.check_senders),
            serve_only: self.serve_only.clone().unwrap_or_else(|| before.serve_only.clone()),
            outage: self.outage.unwrap_or(before.outage),
            drafts: self.drafts.unwrap_or(before.drafts),
        }
    }
}

impl TryFrom<wire::SetResourceRequest> for ResourceChange {
    type Error = Invalid;

    fn try_from(wire: wire::SetResourceRequest) -> Result<Self, Invalid> {
        let mode = wire.mode.is_some().then(|| wire.mode().try_into()).transpose()?;
        let is_empty = wire.strict.is_none()
            && wire.check_senders.is_none()
            && wire.serve_only.is_none()
            && wire.outage.is_none()
            && wire.drafts.is_none();
        if mode.is_none() && is_empty {
            return Err(Invalid::new(
                "mode",
                "is missing, and so is every other option: nothing would change",
            ));
        }
        Ok(Self {
            name: wire.name.parse().map_err(|error: Invalid| Invalid::new("name", error.problem))?,
            mode,
            strict: wire.strict,
            check_senders: wire.check_senders,
            serve_only: wire.serve_only.map(|peers| peers_from(peers.prefixes)).transpose()?,
            outage: wire.outage.map(|outage| Outage::from_wire(Some(outage))).transpose()?,
            drafts: wire.drafts,
        })
    }
}

impl From<ResourceChange> for wire::SetResourceRequest {
    fn from(change: ResourceChange) -> Self {
        Self {
            name: change.name.into(),
            mode: change.mode.map(|mode| wire::ResourceMode::from(mode).into()),
            strict: change.strict,
            check_senders: change.check_senders,
            serve_only: change
                .serve_only
                .map(|peers| wire::Peers { prefixes: peers.iter().map(ToString::to_string).collect() }),
            outage: change.outage.map(Into::into),
            drafts: change.drafts,
        }
    }
}

/// A resource as somebody asks for it: not stored yet, so without a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewResource {
    /// Its name.
    pub name: ResourceName,
    /// At most 64, sorted, none twice; none only if it is `local`, or has unix sockets and no ports.
    pub addresses: Vec<Prefix>,
    /// Also every local address of the connecting host.
    pub local: bool,
    /// At most 64, sorted, none overlapping; none only if there are unix sockets, and no addresses.
    pub ports: Vec<PortRange>,
    /// At most 64, sorted, none twice.
    pub unix: Vec<UnixPath>,
    /// How it is guarded.
    pub options: ResourceOptions,
}

impl NewResource {
    /// Sorts and checks the parts. It is enforced, and nothing else, until other options are given.
    pub fn new(name: ResourceName, addresses: Vec<Address>, ports: Vec<PortRange>) -> Result<Self, Invalid> {
        Self::with_unix(name, addresses, ports, Vec::new())
    }

    /// The same, of one that has unix sockets: also, or only.
    pub fn with_unix(
        name: ResourceName,
        addresses: Vec<Address>,
        mut ports: Vec<PortRange>,
        mut unix: Vec<UnixPath>,
    ) -> Result<Self, Invalid> {
        if unix.len() > PARTS_MAX {
            let count = unix.len();
            return Err(Invalid::new(
                "unix",
                format_args!("has {count} entries; at most {PARTS_MAX} are possible"),
            ));
        }
        unix.sort_unstable();
        unix.dedup();
        if !unix.is_empty() && addresses.is_empty() && ports.is_empty() {
            let options = ResourceOptions::default();
            return Ok(Self { name, addresses: Vec::new(), local: false, ports, unix, options });
        }
        for (field, count) in [("addresses", addresses.len()), ("ports", ports.len())] {
            if !(1..=PARTS_MAX).contains(&count) {
                return Err(Invalid::new(
                    field,
                    format_args!("has {count} entries; 1 to {PARTS_MAX} are possible"),
                ));
            }
        }
        let (addresses, local) = split(addresses);
        ports.sort_unstable();
        if let Some(pair) = ports.windows(2).find(|pair| pair[0].overlaps(pair[1])) {
            return Err(Invalid::new("ports", format_args!("`{}` and `{}` overlap", pair[0], pair[1])));
        }
        Ok(Self { name, addresses, local, ports, unix, options: ResourceOptions::default() })
    }

    /// Its addresses as people write them.
    pub fn addresses(&self) -> Vec<Address> {
        join(&self.addresses, self.local)
    }
}

/// The prefixes, sorted, none twice; and whether `local` is among the addresses.
fn split(addresses: Vec<Address>) -> (Vec<Prefix>, bool) {
    let local = addresses.contains(&Address::Local);
    let prefix = |address| match address {
        Address::Local => None,
        Address::Prefix(prefix) => Some(prefix),
    };
    let mut prefixes: Vec<Prefix> = addresses.into_iter().filter_map(prefix).collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    (prefixes, local)
}

/// The other way round.
fn join(prefixes: &[Prefix], local: bool) -> Vec<Address> {
    let prefixes = prefixes.iter().copied().map(Address::Prefix);
    local.then_some(Address::Local).into_iter().chain(prefixes).collect()
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
    let options = wire.options.ok_or_else(|| Invalid::missing("options"))?;
    let options = options.try_into().map_err(|error: Invalid| error.within("options"))?;
    let mut addresses = all("addresses", wire.addresses, PARTS_MAX, |text| {
        text.parse().map(Address::Prefix).map_err(|error: Invalid| Invalid::new("", error.problem))
    })?;
    if wire.local {
        addresses.push(Address::Local);
    }
    let new = NewResource::with_unix(
        wire.name.parse().map_err(|error: Invalid| Invalid::new("name", error.problem))?,
        addresses,
        all("ports", wire.ports, PARTS_MAX, |range| {
            range.try_into().map_err(|error: Invalid| Invalid::new("", error.problem))
        })?,
        all("unix", wire.unix, PARTS_MAX, |text| {
            text.parse().map_err(|error: Invalid| Invalid::new("", error.problem))
        })?,
    )?;
    Ok(NewResource { options, ..new })
}

/// A named protected destination: every address of it on every port of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// How kernels name it.
    pub number: ResourceNumber,
    /// Its name.
    pub name: ResourceName,
    /// At most 64, sorted, none twice; none only if it is `local`, or has unix sockets and no ports.
    pub addresses: Vec<Prefix>,
    /// Also every local address of the connecting host.
    pub local: bool,
    /// At most 64, sorted, none overlapping; none only if there are unix sockets, and no addresses.
    pub ports: Vec<PortRange>,
    /// At most 64, sorted, none twice.
    pub unix: Vec<UnixPath>,
    /// How it is guarded.
    pub options: ResourceOptions,
}

impl Resource {
    /// The resource that `new` becomes under this number.
    pub fn numbered(number: ResourceNumber, new: NewResource) -> Self {
        let NewResource { name, addresses, local, ports, unix, options } = new;
        Self { number, name, addresses, local, ports, unix, options }
    }

    /// Where another resource claims exactly the same: a prefix of both, or `local` of both, on a port of both; or a unix
    /// socket of both. Nothing could then say whose it is, so two such resources cannot exist. A longer prefix within a shorter one is no conflict: the
    /// longer one wins. Nor is a prefix that is local to some host: who names it has it.
    pub fn conflict(&self, other: &NewResource) -> Option<String> {
        if let Some(path) = self.unix.iter().find(|path| other.unix.contains(path)) {
            return Some(path.to_string());
        }
        let theirs = other.addresses();
        let address = self.addresses().into_iter().find(|address| theirs.contains(address))?;
        let overlap = |range: &&PortRange| other.ports.iter().any(|theirs| theirs.overlaps(**range));
        let range = self.ports.iter().find(overlap)?;
        Some(format!("{address} on {range}"))
    }

    /// Its addresses as people write them.
    pub fn addresses(&self) -> Vec<Address> {
        join(&self.addresses, self.local)
    }

    /// The destination as people read it: `10.0.0.7, 10.0.0.8 on tcp/5432; /run/db.sock`.
    pub fn destination(&self) -> String {
        let ports = format!("{} on {}", List(&self.addresses()), List(&self.ports));
        match (self.ports.is_empty(), self.unix.is_empty()) {
            (_, true) => ports,
            (true, false) => List(&self.unix).to_string(),
            (false, false) => format!("{ports}; {}", List(&self.unix)),
        }
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
        let Resource { number, name, addresses, local, ports, unix, options } = resource;
        Self { number: number.get(), ..NewResource { name, addresses, local, ports, unix, options }.into() }
    }
}

impl From<NewResource> for wire::Resource {
    fn from(new: NewResource) -> Self {
        Self {
            name: new.name.into(),
            number: 0,
            addresses: new.addresses.iter().map(ToString::to_string).collect(),
            ports: new.ports.into_iter().map(Into::into).collect(),
            local: new.local,
            unix: new.unix.into_iter().map(Into::into).collect(),
            options: Some(new.options.into()),
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
    fn unix_paths() {
        for good in
            ["/s", "/run/postgresql/.s.PGSQL.5432", "/1/2/3/4/5/6/7/8", "/0123456789012345678901234567890"]
        {
            check::<UnixPath>(good, Ok(good));
        }
        for bad in ["", "s", "run/s", "@abstract", "./s"] {
            check::<UnixPath>(bad, Err("is not an absolute path"));
        }
        for bad in ["/", "//s", "/s/", "/a//s", "/./s", "/a/../s", "/.."] {
            check::<UnixPath>(bad, Err("is not the shortest way"));
        }
        for bad in ["/a b", "/a\n", "/a\0", "/\u{e4}"] {
            check::<UnixPath>(bad, Err("has white space, or something that is not ASCII"));
        }
        check::<UnixPath>("/1/2/3/4/5/6/7/8/9", Err("has 9 names, and kernels can be asked about at most 8"));
        let long = "/01234567890123456789012345678901";
        check::<UnixPath>(long, Err("of 32 bytes, and kernels can be asked about names of at most 31"));
        check::<UnixPath>(&"/0123456789".repeat(10), Err("has 110 bytes"));
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

    #[test]
    fn resources_with_unix_sockets() {
        let new = |addresses: &[&str], ports: &[&str], unix: &[&str]| {
            NewResource::with_unix(
                "db".parse()?,
                addresses.iter().map(|text| text.parse()).collect::<Result<_, _>>()?,
                ports.iter().map(|text| text.parse()).collect::<Result<_, _>>()?,
                unix.iter().map(|text| text.parse()).collect::<Result<_, _>>()?,
            )
        };
        let both = new(&["10.0.0.1"], &["tcp/1"], &["/run/b", "/run/a", "/run/b"]).expect("valid");
        let only = new(&[], &[], &["/run/a"]).expect("valid");
        for bad in [new(&[], &["tcp/1"], &["/a"]), new(&["10.0.0.1"], &[], &["/a"]), new(&[], &[], &[])] {
            assert!(bad.is_err(), "{bad:?}");
        }
        let stored = Resource::numbered(3.try_into().expect("not 0"), both);
        assert_eq!(stored.destination(), "10.0.0.1 on tcp/1; /run/a, /run/b");
        assert_eq!(Resource::try_from(wire::Resource::from(stored.clone())), Ok(stored.clone()));
        assert_eq!(stored.conflict(&only).as_deref(), Some("/run/a"));
        assert_eq!(stored.conflict(&new(&[], &[], &["/run/c"]).expect("valid")), None);
        let stored = Resource::numbered(3.try_into().expect("not 0"), only);
        assert_eq!(stored.destination(), "/run/a");
        assert_eq!(Resource::try_from(wire::Resource::from(stored.clone())), Ok(stored));
    }

    #[test]
    fn local_resources() {
        let local = resource(&["10.0.0.1", "local"], &["tcp/5432"]).expect("valid");
        assert_eq!((local.local, local.addresses.len()), (true, 1));
        let stored = Resource::numbered(3.try_into().expect("not 0"), local.clone());
        assert_eq!(stored.destination(), "local, 10.0.0.1 on tcp/5432");
        assert_eq!(Resource::try_from(wire::Resource::from(stored.clone())), Ok(stored.clone()));
        let other = resource(&["local"], &["tcp/5000-6000"]).expect("valid");
        assert_eq!(stored.conflict(&other).as_deref(), Some("local on tcp/5432"));
        assert_eq!(stored.conflict(&resource(&["127.0.0.1"], &["tcp/5432"]).expect("valid")), None);
        assert_eq!(stored.conflict(&resource(&["local"], &["udp/5432"]).expect("valid")), None);
    }

    #[test]
    fn options() {
        let one = resource(&["10.0.0.1"], &["tcp/5432"]).expect("valid");
        for mode in ResourceMode::ALL {
            let serve_only = vec!["10.1.0.0/16".parse().expect("valid"), "::1".parse().expect("valid")];
            let options = ResourceOptions {
                mode,
                strict: true,
                check_senders: true,
                serve_only,
                outage: Outage::CUT,
                drafts: true,
            };
            let new = NewResource { options, ..one.clone() };
            assert_eq!(NewResource::try_from(wire::Resource::from(new.clone())), Ok(new));
            assert_eq!(mode.as_str().parse(), Ok(mode));
        }
        let without = wire::Resource { options: None, ..one.clone().into() };
        let unclear = wire::Resource { options: Some(wire::ResourceOptions::default()), ..one.into() };
        for (wire, words) in [(without, "options: is missing"), (unclear, "options.mode: is missing")] {
            let error = NewResource::try_from(wire).expect_err("is refused");
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn peers_are_sorted_and_few() {
        let serving = |texts: &[&str]| {
            let serve_only = texts.iter().map(ToString::to_string).collect();
            let mode = wire::ResourceMode::Enforce.into();
            ResourceOptions::try_from(wire::ResourceOptions {
                mode,
                serve_only,
                ..wire::ResourceOptions::default()
            })
        };
        let told = |texts: &[&str]| serving(texts).expect("valid").settings()[3].1.clone();
        assert_eq!(told(&[]), "anyone");
        assert_eq!(told(&["10.2.0.0/16", "::ffff:10.1.0.1", "10.2.0.0/16"]), "10.1.0.1, 10.2.0.0/16");
        let error = serving(&["10.1.0.1/16"]).expect_err("is refused").to_string();
        assert!(error.contains("serve_only") && error.contains("write `10.1.0.0/16`"), "{error}");
        let many: Vec<String> = (0..65).map(|last| format!("10.0.0.{last}")).collect();
        assert!(serving(&many.iter().map(String::as_str).collect::<Vec<_>>()).is_err());
    }

    #[test]
    fn changes() {
        let wire = wire::SetResourceRequest { name: "db".into(), ..wire::SetResourceRequest::default() };
        let none = ResourceChange::try_from(wire.clone()).expect_err("is refused");
        assert!(none.to_string().contains("nothing would change"), "{none}");
        assert!(
            ResourceChange::try_from(wire::SetResourceRequest { mode: Some(0), ..wire.clone() }).is_err()
        );
        assert!(
            ResourceChange::try_from(wire::SetResourceRequest { mode: Some(9), ..wire.clone() }).is_err()
        );
        let strict = wire::SetResourceRequest { strict: Some(false), ..wire };
        let change = ResourceChange::try_from(strict.clone()).expect("valid");
        assert_eq!(wire::SetResourceRequest::from(change.clone()), strict);
        let before = ResourceOptions {
            mode: ResourceMode::Observe,
            strict: true,
            check_senders: true,
            serve_only: vec!["10.1.0.0/16".parse().expect("valid")],
            outage: Outage::CUT,
            drafts: true,
        };
        let expected = ResourceOptions { strict: false, ..before.clone() };
        assert_eq!(change.applied_to(&before), expected);
        let everybody = wire::SetResourceRequest { serve_only: Some(wire::Peers::default()), ..strict };
        let change = ResourceChange::try_from(everybody).expect("valid");
        assert_eq!(change.applied_to(&before), ResourceOptions { serve_only: Vec::new(), ..expected });
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in ".{0,60}") {
            let _ = text.parse::<Prefix>();
            let _ = text.parse::<PortRange>();
            let _ = text.parse::<UnixPath>();
        }

        #[test]
        fn what_is_shown_is_read_back(bits in proptest::prelude::any::<u128>(), length in 0u8..=128) {
            let net = ipnet::Ipv6Net::new(Ipv6Addr::from(bits), length).expect("length is in range").trunc();
            let prefix: Prefix = net.to_string().parse().expect("valid");
            proptest::prop_assert_eq!(prefix.to_string().parse::<Prefix>(), Ok(prefix));
        }
    }
}
