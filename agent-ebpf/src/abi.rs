//! What lies in the maps and in the ring: keys, values, the verdict record, names, capacities, the ABI version.
//!
//! Everything is `repr(C)` without implicit padding, and every bit pattern is a value: both sides may read what the other
//! wrote byte by byte. Numbers are in the machine's byte order, ports included; addresses are in network order.

use core::mem::{align_of, size_of};

/// Stands in the pin path. Raise it whenever a type or map below changes its shape or its meaning: an agent adopts only
/// maps of its own version.
///
/// So that an agent can take the place of one of another version, newer or older, without ending what is connected, some
/// things are alike in every version:
/// - [`map::CONNECTIONS`] is a hash by socket cookie, and its entries begin with [`ConnectionEntry`] as it is here;
///   [`map::SLOTS`] is an array by its `slot`, and its elements begin with [`GrantSlot`] as it is here;
/// - the rings' records begin with [`VerdictRecord`] and [`ClosedRecord`] as they are here, and [`map::COUNTERS`] holds
///   [`RingCounters`];
/// - `resource` and `subject` are the control plane's numbers.
///
/// A version may append. One that must break this gives the map another name: the others then find nothing, and end what they
/// do not understand. This holds from version 4 on; earlier ones were never released, and what one of them had let through ends.
pub const ABI_VERSION: u32 = 5;

/// Map names, as the loader and the pins use them.
pub mod map {
    /// Array: [`port_index`](super::port_index) → class; 0 is not protected. Written by the agent.
    pub const PORT_CLASSES: &str = "PORT_CLASSES";
    /// LPM trie: [`AddressKey`](super::AddressKey) → [`ResourceEntry`](super::ResourceEntry). Written by the agent.
    pub const RESOURCES: &str = "RESOURCES";
    /// LPM trie: [`PeerKey`](super::PeerKey) → a `u32` that is 0: from where a resource is served that is not from everywhere.
    /// Written by the agent.
    pub const PEERS: &str = "PEERS";
    /// Hash: cgroup id → [`SubjectEntry`](super::SubjectEntry). Written by the agent.
    pub const SUBJECTS: &str = "SUBJECTS";
    /// Hash: [`GrantKey`](super::GrantKey) → [`GrantRef`](super::GrantRef). Written by the agent.
    pub const GRANTS: &str = "GRANTS";
    /// Array: slot → [`GrantSlot`](super::GrantSlot). Written by both, each word by itself.
    pub const SLOTS: &str = "SLOTS";
    /// Socket storage: [`Admission`](super::Admission): what is known of a socket that is in no other map. Written by the
    /// programs.
    pub const ADMISSIONS: &str = "ADMISSIONS";
    /// Hash: socket cookie → [`ConnectionEntry`](super::ConnectionEntry): the connections to protected destinations that are up.
    /// What a TCP connection was let through by stands here alone. Not LRU: a full map denies. Written and removed by the
    /// programs; the agent removes what it has seen closed.
    pub const CONNECTIONS: &str = "CONNECTIONS";
    /// Ring: [`VerdictRecord`](super::VerdictRecord)s of what was let through. Written by the programs.
    pub const EVENTS_ALLOW: &str = "EVENTS_ALLOW";
    /// Ring: [`VerdictRecord`](super::VerdictRecord)s of what was not, or would not have been. Written by the programs.
    pub const EVENTS_DENY: &str = "EVENTS_DENY";
    /// Ring: [`ClosedRecord`](super::ClosedRecord)s of connections that have ended. Written by the programs.
    pub const EVENTS_CLOSED: &str = "EVENTS_CLOSED";
    /// Ring: [`MovedRecord`](super::MovedRecord)s of processes that were moved into a cgroup that is bound. Written by the programs.
    pub const EVENTS_MOVED: &str = "EVENTS_MOVED";
    /// Per-CPU array: [`Ring`](super::Ring) → [`RingCounters`](super::RingCounters). Written by the programs.
    pub const COUNTERS: &str = "COUNTERS";
    /// Socket hash: socket cookie → socket: connections of which each write is judged. Belongs to an object of its own, as a
    /// kernel may lack the type. Written by the programs; a socket that is closed leaves by itself.
    pub const SENDERS: &str = "SENDERS";
    /// Hash: cgroup id → a `u32` that is 0: whose processes may have sockets of any family. Written by the agent.
    pub const EXEMPT_CGROUPS: &str = "EXEMPT_CGROUPS";
    /// Hash: [`FileKey`](super::FileKey) → its flags, a `u32`: which files are the agent, and which must stay. Belongs to the
    /// object of the tamper tier, as do the next two. Written by the agent.
    pub const TAMPER_FILES: &str = "TAMPER_FILES";
    /// Hash: [`ObjectKey`](super::ObjectKey) → a `u32` that is 0: what nobody but the agent gets hold of. Written by the agent.
    pub const TAMPER_OBJECTS: &str = "TAMPER_OBJECTS";
    /// Array of `u64`, see [`tamper_state`](super::tamper_state). Written by both.
    pub const TAMPER_STATE: &str = "TAMPER_STATE";
    /// Hash: the key of a unix socket's path, see [`unix`](crate::unix) → [`ResourceEntry`](super::ResourceEntry). Written by
    /// the agent.
    pub const UNIX_SOCKETS: &str = "UNIX_SOCKETS";
    /// Array of one `u32`: 0 while [`UNIX_SOCKETS`] has no entry, so that everybody else pays for one look-up. Written by the
    /// agent: set before the first entry, cleared after the last.
    pub const UNIX_GUARDED: &str = "UNIX_GUARDED";
}

/// How many cgroup levels above a process are looked at, the root included. Rootless containers under systemd were seen
/// at 8; a process below the last level is nobody's and is denied.
pub const CGROUP_LEVELS_MAX: u32 = 16;

/// Cgroups that can be bound to a subject, unless configured.
pub const SUBJECTS_MAX: u32 = 65_536;
/// Live (subject, resource) pairs, unless configured.
pub const GRANTS_MAX: u32 = 65_536;
/// Address prefixes over all classes, and as many of peers over all resources, unless configured.
pub const RESOURCES_MAX: u32 = 16_384;
/// Connections to protected destinations that are up at a time, unless configured.
pub const CONNECTIONS_MAX: u32 = 65_536;
/// Cgroups whose processes may have sockets of any family.
pub const EXEMPT_CGROUPS_MAX: u32 = 256;
/// Paths of unix sockets over all resources.
pub const UNIX_SOCKETS_MAX: u32 = 4096;
/// Files that the tamper tier knows: executables of the agent, pins and the directories above them.
pub const TAMPER_FILES_MAX: u32 = 256;
/// Maps, programs, links and mounts that the tamper tier keeps others from.
pub const TAMPER_OBJECTS_MAX: u32 = 512;
/// Size of each ring in bytes, unless configured; about 6,900 records. A power of two, as the kernel wants.
pub const RING_BYTES: u32 = 1024 * 1024;

/// IANA's numbers of the protocols whose ports can be protected.
pub mod protocol {
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDPLITE: u8 = 136;
    /// None of IANA's, which keeps it for experiments: stands for a unix socket in records.
    pub const UNIX: u8 = 254;

    /// All that have ports, in the order of [`map::PORT_CLASSES`](super::map::PORT_CLASSES).
    pub const ALL: [u8; 5] = [TCP, UDP, DCCP, SCTP, UDPLITE];
}

/// A resource's number that is never given: the agent's own question whether the programs for unix sockets run. Nothing about
/// it is recorded.
pub const UNIX_PROBE: u32 = u32::MAX - 1;

/// Ports of one protocol.
const PORTS: u32 = 1 << 16;
/// Entries of [`map::PORT_CLASSES`].
pub const PORT_CLASSES_MAX: u32 = protocol::ALL.len() as u32 * PORTS;

/// Where the class of a port stands. None: the protocol has no protected ports.
#[inline(always)]
pub const fn port_index(protocol: u8, port: u16) -> Option<u32> {
    let place = match protocol {
        protocol::TCP => 0,
        protocol::UDP => 1,
        protocol::DCCP => 2,
        protocol::SCTP => 3,
        protocol::UDPLITE => 4,
        _ => return None,
    };
    Some(place * PORTS + port as u32)
}

/// The part of an LPM key that is matched. The class counts in full, so a prefix length is [`CLASS_BITS`] plus that of
/// the address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressKey {
    /// Of the port; never 0.
    pub class: u32,
    /// Network order; IPv4 as mapped IPv6.
    pub address: [u8; 16],
}

/// Leading bits of an [`AddressKey`] that are its class.
pub const CLASS_BITS: u32 = 32;

/// The part of an LPM key that is matched. The resource counts in full, as the class does in an [`AddressKey`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerKey {
    /// [`ResourceEntry::number`].
    pub resource: u32,
    /// Of who sends; network order, IPv4 as mapped IPv6.
    pub address: [u8; 16],
}

/// Leading bits of a [`PeerKey`] that are its resource.
pub const RESOURCE_BITS: u32 = 32;

/// A protected destination.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceEntry {
    /// The control plane's number of the resource.
    pub number: u32,
    /// [`OBSERVE`](Self::OBSERVE), [`STRICT`](Self::STRICT), [`SENDERS`](Self::SENDERS), [`PEERS`](Self::PEERS).
    pub flags: u32,
}

impl ResourceEntry {
    /// Everything is judged and recorded, and nothing is held back.
    pub const OBSERVE: u32 = 1;
    /// Nobody is let through without a record: there must be room for it before.
    pub const STRICT: u32 = 2;
    /// Whoever writes on a connection must be the subject that it was let through for.
    pub const SENDERS: u32 = 4;
    /// Where it is: only the peers in [`map::PEERS`] are served.
    pub const PEERS: u32 = 8;

    /// Whether any of these flags is set.
    #[inline(always)]
    pub const fn has(&self, flags: u32) -> bool {
        self.flags & flags != 0
    }
}

/// Whose a cgroup is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubjectEntry {
    /// The control plane's number of the subject.
    pub number: u32,
    /// 0.
    pub reserved: u32,
}

/// Who wants to reach what.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrantKey {
    /// [`SubjectEntry::number`].
    pub subject: u32,
    /// [`ResourceEntry::number`].
    pub resource: u32,
}

/// Where the grant of a (subject, resource) pair lies, and since which epoch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrantRef {
    /// Index into [`map::SLOTS`].
    pub slot: u32,
    /// 0.
    pub reserved: u32,
    /// The reference counts only while the slot has this epoch.
    pub epoch: u64,
}

/// An epoch that no slot ever has, for what has ended: each begins at 0 and is raised one by one.
pub const NEVER: u64 = u64::MAX;

/// A slot: a time in which a pair is let through without a break. Overlapping grants of the pair share it, and it is named after
/// the one that ends last.
///
/// As large as a line of the processor's cache: whoever looks at one has all of it. Each word of 8 bytes is read and written by
/// itself, in shared memory. All 0: closed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrantSlot {
    /// Raised by the agent: one write revokes whatever refers to the slot.
    pub epoch: u64,
    /// `CLOCK_BOOTTIME` in nanoseconds; from this moment on nobody is let through. 0 is long past. Written by the agent; moved
    /// later only while it has not passed, so that it is a union's.
    pub deadline_boot_ns: u64,
    /// When a packet or connection was last admitted, `CLOCK_BOOTTIME` in nanoseconds. Written by the programs; set to 0 by the
    /// agent when the slot begins.
    pub last_admitted_boot_ns: u64,
    /// Nanoseconds without activity after which the slot has ended; 0: none. Written by the agent, before anything refers to
    /// the slot's epoch.
    pub idle_limit_ns: u64,
    /// When payload was last sent, or found to have been received, `CLOCK_BOOTTIME` in nanoseconds. Kept only where there is
    /// an idle limit. Written by the programs, and by the agent when the limit begins.
    pub last_active_boot_ns: u64,
    /// Which grant to name: UUID, network order. Written by the agent.
    pub grant: [u8; 16],
    /// 0.
    pub reserved: u64,
}

impl GrantSlot {
    /// How much of it every ABI version lays out alike: the first three words.
    pub const COMMON_BYTES: usize = 24;
}

/// What is known of a socket that is no TCP connection, and of a TCP connection what is rarely there. All 0: nothing.
///
/// The kernel takes a microsecond or two to make one, so none is made before there is something to remember.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// The slot's epoch when the socket was let through.
    pub epoch: u64,
    /// Of connected UDP: the payload bytes sent. With [`UNIX`](Self::UNIX): the key of the path that its connection leads to.
    pub bytes: u64,
    /// Its cookie; 0: its writes are not judged.
    pub socket_cookie: u64,
    /// Whose the cgroup is that the socket was made in; 0: nobody's, or nobody asked yet.
    pub creator_subject: u32,
    /// What the socket was let through to; 0: nothing.
    pub resource: u32,
    /// Whom it was let through for.
    pub subject: u32,
    /// By which slot.
    pub slot: u32,
    /// [`PASSIVE`](Self::PASSIVE), [`TOLD`](Self::TOLD), [`OBSERVED`](Self::OBSERVED), [`SENDERS`](Self::SENDERS),
    /// [`INHERITED`](Self::INHERITED), [`MPTCP`](Self::MPTCP), [`SUBFLOW`](Self::SUBFLOW), [`UNIX`](Self::UNIX),
    /// [`ACCEPTED`](Self::ACCEPTED).
    pub flags: u32,
    /// 0.
    pub reserved: u32,
}

impl Admission {
    /// The other side opened the connection: its packets go to no port that this side chose.
    pub const PASSIVE: u32 = 1;
    /// That its packets are held back has been recorded.
    pub const TOLD: u32 = 2;
    /// That it would be held back, were its resource not only observed, has been recorded.
    pub const OBSERVED: u32 = 4;
    /// Whoever writes on it is to be judged.
    pub const SENDERS: u32 = 16;
    /// A gate of another ABI version had let it through.
    pub const INHERITED: u32 = 32;
    /// It is one of MPTCP: what is let through are the sockets below it.
    pub const MPTCP: u32 = 1 << 16;
    /// It is such a socket below, on which the kernel writes.
    pub const SUBFLOW: u32 = 1 << 17;
    /// It is one end of a connection to a unix socket that is protected.
    pub const UNIX: u32 = 1 << 20;
    /// It is the end that the server accepts.
    pub const ACCEPTED: u32 = 1 << 21;

    /// What a connection was let through by; to nothing, if it was only observed.
    #[inline(always)]
    pub const fn of(connection: &ConnectionEntry) -> Self {
        Self {
            epoch: connection.epoch,
            bytes: 0,
            socket_cookie: 0,
            creator_subject: 0,
            resource: if connection.has(ConnectionEntry::OBSERVED) { 0 } else { connection.resource },
            subject: connection.subject,
            slot: connection.slot,
            flags: 0,
            reserved: 0,
        }
    }

    /// Whether a connection of the socket may be in [`map::CONNECTIONS`].
    #[inline(always)]
    pub const fn may_be_remembered(&self) -> bool {
        self.resource != 0 || self.flags & (Self::OBSERVED | Self::INHERITED) != 0
    }
}

/// A connection that is up. What each packet is judged by stands first.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionEntry {
    /// The slot's epoch when it was let through.
    pub epoch: u64,
    /// Destination; network order, IPv4 as mapped IPv6.
    pub address: [u8; 16],
    /// By which slot.
    pub slot: u32,
    /// What it leads to: [`ResourceEntry::number`].
    pub resource: u32,
    /// Whom it was let through for.
    pub subject: u32,
    /// Destination.
    pub port: u16,
    /// IANA's number.
    pub protocol: u8,
    /// [`OBSERVED`](Self::OBSERVED), [`INHERITED`](Self::INHERITED), [`SENDERS`](Self::SENDERS),
    /// [`RELEASED`](Self::RELEASED).
    pub flags: u8,
    /// `CLOCK_BOOTTIME` in nanoseconds, of the verdict.
    pub admitted_boot_ns: u64,
    /// Of the socket's network namespace.
    pub netns_cookie: u64,
    /// UUID, network order, of the grant that the slot was named after then; all 0: no grant.
    pub grant: [u8; 16],
    /// Of the task that connected.
    pub pid: u32,
    /// Lower half of the cookie of the socket of which it was seen that the subject had made it. Not a flag: the kernel gives
    /// the entry of a connection that has closed to the next one at once, and whoever was just writing to it writes to that.
    pub seen: u32,
    /// The bytes received by the connection (TCP) when it was last looked at; kept only where there is an idle limit.
    pub bytes: u64,
    /// The class of its port when it was let through; 0: not known.
    pub class: u32,
    /// How the resource was guarded then: [`ResourceEntry::flags`].
    pub guard: u32,
}

impl ConnectionEntry {
    /// No grant let it through: its resource was only observed. Slot and epoch say nothing.
    pub const OBSERVED: u8 = 1;
    /// A gate of another ABI version had let it through, and the agent wrote it down: its socket's storage says nothing of it.
    pub const INHERITED: u8 = 2;
    /// How much of it every ABI version lays out alike: all up to the pid, and four bytes to fill up. Of the flags no version
    /// knows more of another than the two above.
    pub const COMMON_BYTES: usize = 80;

    /// Whoever writes on it is to be judged.
    pub const SENDERS: u8 = 4;
    /// Its last file descriptor is closed.
    pub const RELEASED: u8 = 8;

    /// Whether it has this flag.
    #[inline(always)]
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Notes that the subject has made the socket of this cookie.
    #[inline(always)]
    pub const fn see(&mut self, cookie: u64) {
        self.seen = cookie as u32;
    }

    /// Whether that was noted. Never of a cookie whose lower half is 0, which is what an entry begins with.
    #[inline(always)]
    pub const fn is_seen(&self, cookie: u64) -> bool {
        self.seen != 0 && self.seen == cookie as u32
    }

    /// What it leads to, if the packet's destination is the one that it was let through to, and the port's class the same: what
    /// a class says of an address never changes. None: that must be looked up.
    #[inline(always)]
    pub fn leads_to(&self, class: u32, protocol: u8, address: &[u8; 16], port: u16) -> Option<ResourceEntry> {
        let is_same =
            self.class == class && self.protocol == protocol && self.port == port && self.address == *address;
        if is_same && class != 0 {
            Some(ResourceEntry { number: self.resource, flags: self.guard })
        } else {
            None
        }
    }

    /// All 0: what the fields not set are.
    pub const EMPTY: Self = Self {
        epoch: 0,
        address: [0; 16],
        slot: 0,
        resource: 0,
        subject: 0,
        port: 0,
        protocol: 0,
        flags: 0,
        admitted_boot_ns: 0,
        netns_cookie: 0,
        grant: [0; 16],
        pid: 0,
        seen: 0,
        bytes: 0,
        class: 0,
        guard: 0,
    };
}

/// A file, by the kernel's own numbers. Some file systems tell other ones to `stat`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileKey {
    /// `i_ino`.
    pub inode: u64,
    /// `s_dev`: the major number above 20 bits of the minor one.
    pub device: u32,
    /// 0.
    pub reserved: u32,
}

impl FileKey {
    /// Whoever runs it is the agent.
    pub const AGENT: u32 = 1;
    /// It is not removed, and not moved.
    pub const STAYS: u32 = 2;
    /// Nothing in it is removed or moved, and nothing is added.
    pub const CLOSED: u32 = 4;
    /// It is a pin that nobody opens.
    pub const PIN: u32 = 8;
}

/// Something of the kernel's that has a number.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// [`MAP`](Self::MAP), [`PROGRAM`](Self::PROGRAM), [`LINK`](Self::LINK), [`MOUNT`](Self::MOUNT).
    pub kind: u32,
    /// Among those of its kind.
    pub id: u32,
}

impl ObjectKey {
    /// A map.
    pub const MAP: u32 = 1;
    /// A program.
    pub const PROGRAM: u32 = 2;
    /// A link.
    pub const LINK: u32 = 3;
    /// A mount.
    pub const MOUNT: u32 = 4;
}

/// Indices into [`map::TAMPER_STATE`].
pub mod tamper_state {
    /// `CLOCK_BOOTTIME` in nanoseconds: before it nothing is refused, and nothing recorded.
    pub const LIFTED_UNTIL: u32 = 0;
    /// Process id of the agent's helper, which asks for what must be refused.
    pub const HELPER: u32 = 1;
    /// Of the file that was learnt: [`FileKey::inode`](super::FileKey::inode).
    pub const LEARNT_INODE: u32 = 2;
    /// Of the same: [`FileKey::device`](super::FileKey::device).
    pub const LEARNT_DEVICE: u32 = 3;
    /// From here on: how often the helper was refused what a [`Tampering`](super::Tampering) says.
    pub const REFUSED: u32 = 8;
    /// How many there are.
    pub const MAX: u32 = REFUSED + 24;
}

/// What somebody tried who is not the agent.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tampering {
    /// To get a descriptor of a map.
    OpenMap = 1,
    /// To get one of a program.
    OpenProgram = 2,
    /// To get one of a link.
    OpenLink = 3,
    /// To detach a link or to give it another program, by a descriptor that he had.
    ChangeLink = 4,
    /// To open a pin.
    OpenPin = 5,
    /// To remove a pin, or a directory of pins.
    RemovePin = 6,
    /// To move one, or something else to its place.
    MovePin = 7,
    /// To put something among the pins.
    AddPin = 8,
    /// To unmount the file system of the pins, or one that it is mounted on.
    Unmount = 9,
    /// To signal the agent.
    Signal = 10,
    /// To get into the agent's memory or at its descriptors.
    Trace = 11,
}

impl Tampering {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::OpenMap,
        Self::OpenProgram,
        Self::OpenLink,
        Self::ChangeLink,
        Self::OpenPin,
        Self::RemovePin,
        Self::MovePin,
        Self::AddPin,
        Self::Unmount,
        Self::Signal,
        Self::Trace,
    ];

    /// As audit events name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OpenMap => "open_map",
            Self::OpenProgram => "open_program",
            Self::OpenLink => "open_link",
            Self::ChangeLink => "change_link",
            Self::OpenPin => "open_pin",
            Self::RemovePin => "remove_pin",
            Self::MovePin => "move_pin",
            Self::AddPin => "add_pin",
            Self::Unmount => "unmount",
            Self::Signal => "signal",
            Self::Trace => "trace",
        }
    }

    /// What a record names. None: not one of ours.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|tampering| *tampering as u8 == code)
    }
}

/// Index into [`map::COUNTERS`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// [`map::EVENTS_ALLOW`].
    Allow = 0,
    /// [`map::EVENTS_DENY`].
    Deny = 1,
    /// [`map::EVENTS_CLOSED`].
    Closed = 2,
    /// [`map::EVENTS_MOVED`].
    Moved = 3,
}

impl Ring {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Allow, Self::Deny, Self::Closed, Self::Moved];
}

/// Entries of [`map::COUNTERS`].
pub const RINGS: u32 = Ring::ALL.len() as u32;

/// What one CPU did with one ring. `attempted` = records in the ring or read from it + `lost`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingCounters {
    /// Records that should have been written.
    pub attempted: u64,
    /// Records that found no room.
    pub lost: u64,
}

/// Which program decided.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// TCP or connected UDP, IPv4.
    Connect4 = 1,
    /// TCP or connected UDP, IPv6; mapped IPv4 too.
    Connect6 = 2,
    /// Unconnected UDP, IPv4; also from an IPv6 socket to a mapped address.
    Sendmsg4 = 3,
    /// Unconnected UDP, IPv6.
    Sendmsg6 = 4,
    /// A packet on its way out.
    Egress = 5,
    /// A write on a connection.
    Send = 6,
    /// A packet that has arrived where it goes.
    Ingress = 7,
    /// A datagram of a socket that was let through.
    Datagram = 8,
    /// Somebody wants a socket, of whichever family.
    SocketCreate = 32,
    /// A process is handed a file.
    FileReceive = 33,
    /// A connection to a unix socket.
    UnixConnect = 34,
    /// A datagram to a unix socket, or a write on a connection to one.
    UnixSend = 35,
    /// Somebody reaches for the gate itself, or for its agent: any program of the tamper tier.
    Tamper = 36,
}

impl Hook {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Connect4,
        Self::Connect6,
        Self::Sendmsg4,
        Self::Sendmsg6,
        Self::Egress,
        Self::Send,
        Self::Ingress,
        Self::Datagram,
        Self::SocketCreate,
        Self::FileReceive,
        Self::UnixConnect,
        Self::UnixSend,
        Self::Tamper,
    ];

    /// The program's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::Sendmsg4 => "sendmsg4",
            Self::Sendmsg6 => "sendmsg6",
            Self::Egress => "egress",
            Self::Send => "send",
            Self::Ingress => "ingress",
            Self::Datagram => "datagram",
            Self::SocketCreate => "socket_create",
            Self::FileReceive => "file_receive",
            Self::UnixConnect => "unix_connect",
            Self::UnixSend => "unix_send",
            Self::Tamper => "tamper",
        }
    }

    /// The hook that a record names. None: not one of ours.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| *hook as u8 == code)
    }
}

/// One verdict about a protected destination.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerdictRecord {
    /// `CLOCK_BOOTTIME` in nanoseconds.
    pub boot_ns: u64,
    /// That the socket was made in; 0: not known, as everywhere but at [`Hook::Egress`].
    pub creator_cgroup_id: u64,
    /// Of the calling task; at [`Hook::Egress`] and [`Hook::Ingress`] the socket's.
    pub cgroup_id: u64,
    /// Of the socket; unique within a boot.
    pub socket_cookie: u64,
    /// Of the socket's network namespace; 0 at [`Hook::Egress`], [`Hook::Ingress`], [`Hook::Send`] and [`Hook::Datagram`].
    pub netns_cookie: u64,
    /// That the grant was referred to by; 0: no grant.
    pub epoch: u64,
    /// UUID, network order; all 0: no grant.
    pub grant: [u8; 16],
    /// Destination; network order, IPv4 as mapped IPv6. Where there is a [`unix_key`](Self::unix_key), that and zeros.
    pub address: [u8; 16],
    /// Name of the task, ended by 0 unless 16 bytes long; empty at [`Hook::Egress`] and [`Hook::Ingress`], as are pid and uid:
    /// whichever task runs when a packet leaves or arrives has nothing to do with it; and at [`Hook::Send`] and
    /// [`Hook::Datagram`], where not every kernel tells.
    pub command: [u8; 16],
    /// Thread group id of the calling task: what people call its pid.
    pub pid: u32,
    /// Of the calling task, in the initial user namespace.
    pub uid: u32,
    /// 0 only of [`Hook::SocketCreate`], of [`Hook::Tamper`], of a packet that cannot be read, and of an MPTCP socket that is handed over.
    pub resource: u32,
    /// 0: nobody's.
    pub subject: u32,
    /// Destination; at [`Hook::Tamper`] the number of a signal.
    pub port: u16,
    /// IANA's number; [`protocol::UNIX`] of a unix socket.
    pub protocol: u8,
    /// A [`Hook`].
    pub hook: u8,
    /// A [`Verdict`](crate::verdict::Verdict).
    pub verdict: u8,
    /// A [`Reason`](crate::verdict::Reason).
    pub reason: u8,
    /// Address family of the socket at [`Hook::SocketCreate`]; a [`Tampering`] at [`Hook::Tamper`]; 0 elsewhere.
    pub family: u8,
    /// 0.
    pub reserved: [u8; 9],
    /// Who sent it, at [`Hook::Ingress`]: network order, IPv4 as mapped IPv6. All 0 elsewhere.
    pub peer: [u8; 16],
}

impl VerdictRecord {
    /// What a record of an earlier agent has at least.
    pub const BYTES_MIN: usize = 128;

    /// Says that it is about the unix socket whose path has this key.
    #[inline(always)]
    pub fn lead_to_unix(&mut self, key: u64) {
        let [a, b, c, d, e, f, g, h] = key.to_ne_bytes();
        self.address = [a, b, c, d, e, f, g, h, 0, 0, 0, 0, 0, 0, 0, 0];
        self.protocol = protocol::UNIX;
    }

    /// The key of the unix socket's path that it is about. None: it is about none.
    pub fn unix_key(&self) -> Option<u64> {
        let [a, b, c, d, e, f, g, h, ..] = self.address;
        // A packet can carry any protocol's number.
        let is_unix = self.protocol == protocol::UNIX && self.hook >= Hook::SocketCreate as u8;
        is_unix.then(|| u64::from_ne_bytes([a, b, c, d, e, f, g, h]))
    }

    /// All 0: what the fields not set are.
    pub const EMPTY: Self = Self {
        boot_ns: 0,
        creator_cgroup_id: 0,
        cgroup_id: 0,
        socket_cookie: 0,
        netns_cookie: 0,
        epoch: 0,
        grant: [0; 16],
        address: [0; 16],
        command: [0; 16],
        pid: 0,
        uid: 0,
        resource: 0,
        subject: 0,
        port: 0,
        protocol: 0,
        hook: 0,
        verdict: 0,
        reason: 0,
        family: 0,
        reserved: [0; 9],
        peer: [0; 16],
    };
}

/// A process, or one thread of it, was moved into a cgroup that is a subject's.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MovedRecord {
    /// `CLOCK_BOOTTIME` in nanoseconds.
    pub boot_ns: u64,
    /// Where it is now.
    pub cgroup_id: u64,
    /// The cgroup that is bound: the same, or the nearest one above.
    pub bound_cgroup_id: u64,
    /// Where whoever moved it is now; the same process perhaps.
    pub mover_cgroup_id: u64,
    /// Name of the task that was moved, ended by 0 unless 16 bytes long.
    pub command: [u8; 16],
    /// Of the one that moved it.
    pub mover_command: [u8; 16],
    /// Thread group id of the one that was moved.
    pub pid: u32,
    /// Its user, in the initial user namespace.
    pub uid: u32,
    /// Of the one that moved it.
    pub mover_pid: u32,
    /// Of the one that moved it.
    pub mover_uid: u32,
    /// Whose the cgroup is.
    pub subject: u32,
    /// 0.
    pub reserved: u32,
}

impl MovedRecord {
    /// All 0.
    pub const EMPTY: Self = Self {
        boot_ns: 0,
        cgroup_id: 0,
        bound_cgroup_id: 0,
        mover_cgroup_id: 0,
        command: [0; 16],
        mover_command: [0; 16],
        pid: 0,
        uid: 0,
        mover_pid: 0,
        mover_uid: 0,
        subject: 0,
        reserved: 0,
    };
}

/// Who ended a connection.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedBy {
    /// The other side said farewell first.
    Peer = 1,
    /// This side did.
    Own = 2,
    /// Its grant has ended.
    Grant = 3,
    /// Nobody said farewell: a reset by the other side, a time-out, or a disconnection by somebody of this host.
    Reset = 4,
}

impl EndedBy {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Peer, Self::Own, Self::Grant, Self::Reset];

    /// As audit events name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Own => "self",
            Self::Grant => "grant",
            Self::Reset => "reset",
        }
    }

    /// What a record names. None: not one of ours.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|ended_by| *ended_by as u8 == code)
    }
}

/// One connection that was let through, and has ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClosedRecord {
    /// `CLOCK_BOOTTIME` in nanoseconds, of the end.
    pub boot_ns: u64,
    /// The same, of the verdict that let it through.
    pub admitted_boot_ns: u64,
    /// Payload that the other side has acknowledged (TCP), or that was sent (UDP); [`UNKNOWN`](Self::UNKNOWN).
    pub bytes_sent: u64,
    /// Payload received; [`UNKNOWN`](Self::UNKNOWN) of UDP.
    pub bytes_received: u64,
    /// Of the socket; unique within a boot.
    pub socket_cookie: u64,
    /// Of the socket's network namespace.
    pub netns_cookie: u64,
    /// The slot's epoch when it was let through.
    pub epoch: u64,
    /// UUID, network order; all 0: it was let through by observation only.
    pub grant: [u8; 16],
    /// Destination; network order, IPv4 as mapped IPv6.
    pub address: [u8; 16],
    /// What it led to.
    pub resource: u32,
    /// Whom it was let through for; 0: nobody's.
    pub subject: u32,
    /// Of the task that connected.
    pub pid: u32,
    /// Destination.
    pub port: u16,
    /// IANA's number.
    pub protocol: u8,
    /// An [`EndedBy`].
    pub ended_by: u8,
    /// 0.
    pub reserved: [u8; 8],
}

impl ClosedRecord {
    /// Nobody counted.
    pub const UNKNOWN: u64 = u64::MAX;

    /// What is known of the connection; who ended it, and what it carried, is to be filled in.
    #[inline(always)]
    pub const fn of(entry: &ConnectionEntry, socket_cookie: u64, boot_ns: u64) -> Self {
        Self {
            boot_ns,
            admitted_boot_ns: entry.admitted_boot_ns,
            bytes_sent: Self::UNKNOWN,
            bytes_received: Self::UNKNOWN,
            socket_cookie,
            netns_cookie: entry.netns_cookie,
            epoch: entry.epoch,
            grant: entry.grant,
            address: entry.address,
            resource: entry.resource,
            subject: entry.subject,
            pid: entry.pid,
            port: entry.port,
            protocol: entry.protocol,
            ended_by: EndedBy::Reset as u8,
            reserved: [0; 8],
        }
    }
}

/// Fails to compile unless a type has this size and no stricter alignment: what a map or ring holds is bytes to both sides.
macro_rules! assert_layout {
    ($($type:ty: $size:literal,)*) => {
        $(const _: () = assert!(size_of::<$type>() == $size && align_of::<$type>() <= 8);)*
    };
}

assert_layout! {
    AddressKey: 20,
    PeerKey: 20,
    ResourceEntry: 8,
    SubjectEntry: 8,
    GrantKey: 8,
    GrantRef: 16,
    GrantSlot: 64,
    FileKey: 16,
    ObjectKey: 8,
    Admission: 48,
    ConnectionEntry: 96,
    RingCounters: 16,
    VerdictRecord: 144,
    ClosedRecord: 112,
}

#[cfg(feature = "user")]
mod pod {
    use super::{
        AddressKey, ConnectionEntry, FileKey, GrantKey, GrantRef, GrantSlot, ObjectKey, PeerKey,
        ResourceEntry, RingCounters, SubjectEntry,
    };

    /// Lets aya copy a type to and from a map.
    macro_rules! impl_pod {
        ($($type:ty),* $(,)?) => {
            $(
                // SAFETY: `Pod` asks for a `Copy` type of which every bit pattern is a value and which has no padding: these
                // are `repr(C)` structures of integers and byte arrays; `assert_layout` pins the sizes, which are the sums
                // of those of the fields.
                #[allow(unsafe_code, reason = "aya's marker trait is unsafe to implement")]
                unsafe impl aya::Pod for $type {}
            )*
        };
    }

    impl_pod!(
        AddressKey,
        ConnectionEntry,
        FileKey,
        GrantKey,
        GrantRef,
        GrantSlot,
        ObjectKey,
        PeerKey,
        ResourceEntry,
        RingCounters,
        SubjectEntry
    );
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::mem::offset_of;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn each_port_has_a_place_of_its_own() {
        let ports = [0, 1, 5432, u16::MAX];
        let places: Vec<u32> = protocol::ALL
            .into_iter()
            .flat_map(|protocol| ports.map(|port| port_index(protocol, port).expect("has ports")))
            .collect();
        assert!(places.is_sorted() && places.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(places.iter().all(|place| *place < PORT_CLASSES_MAX));
        assert_eq!(port_index(1, 1), None);
    }

    #[test]
    fn hooks_have_codes() {
        for hook in Hook::ALL {
            assert_eq!(Hook::from_code(hook as u8), Some(hook));
        }
        assert_eq!(Hook::from_code(0), None);
    }

    #[test]
    fn tamperings_have_codes_and_places() {
        for tampering in Tampering::ALL {
            assert_eq!(Tampering::from_code(tampering as u8), Some(tampering));
            assert!(tamper_state::REFUSED + u32::from(tampering as u8) < tamper_state::MAX);
        }
        assert_eq!(Tampering::from_code(0), None);
    }

    /// Agents of other ABI versions read it too, see [`ABI_VERSION`]: a later version may append, and move nothing.
    #[test]
    fn connection_offsets() {
        let offsets = [
            offset_of!(ConnectionEntry, epoch),
            offset_of!(ConnectionEntry, address),
            offset_of!(ConnectionEntry, slot),
            offset_of!(ConnectionEntry, resource),
            offset_of!(ConnectionEntry, subject),
            offset_of!(ConnectionEntry, port),
            offset_of!(ConnectionEntry, protocol),
            offset_of!(ConnectionEntry, flags),
            offset_of!(ConnectionEntry, admitted_boot_ns),
            offset_of!(ConnectionEntry, netns_cookie),
            offset_of!(ConnectionEntry, grant),
            offset_of!(ConnectionEntry, pid),
            offset_of!(ConnectionEntry, seen),
            offset_of!(ConnectionEntry, bytes),
            offset_of!(ConnectionEntry, class),
            offset_of!(ConnectionEntry, guard),
        ];
        assert_eq!(offsets, [0, 8, 24, 28, 32, 36, 38, 39, 40, 48, 56, 72, 76, 80, 88, 92]);
    }

    /// The same.
    #[test]
    fn slot_offsets() {
        let offsets = [
            offset_of!(GrantSlot, epoch),
            offset_of!(GrantSlot, deadline_boot_ns),
            offset_of!(GrantSlot, last_admitted_boot_ns),
            offset_of!(GrantSlot, idle_limit_ns),
            offset_of!(GrantSlot, last_active_boot_ns),
            offset_of!(GrantSlot, grant),
            offset_of!(GrantSlot, reserved),
        ];
        assert_eq!(offsets, [0, 8, 16, 24, 32, 40, 56]);
    }

    #[test]
    fn a_connection_leads_where_it_was_let_through_to() {
        let address = [1; 16];
        let entry = ConnectionEntry {
            address,
            class: 3,
            port: 5432,
            protocol: protocol::TCP,
            resource: 9,
            guard: ResourceEntry::STRICT,
            ..ConnectionEntry::EMPTY
        };
        let resource = ResourceEntry { number: 9, flags: ResourceEntry::STRICT };
        assert_eq!(entry.leads_to(3, protocol::TCP, &address, 5432), Some(resource));
        assert_eq!(entry.leads_to(4, protocol::TCP, &address, 5432), None, "the port has another class");
        assert_eq!(entry.leads_to(3, protocol::UDP, &address, 5432), None);
        assert_eq!(entry.leads_to(3, protocol::TCP, &[2; 16], 5432), None);
        assert_eq!(entry.leads_to(3, protocol::TCP, &address, 5433), None);
        assert_eq!(ConnectionEntry::EMPTY.leads_to(0, 0, &[0; 16], 0), None, "nothing is known of it");
    }

    #[test]
    fn a_creator_is_seen_for_one_cookie() {
        let mut entry = ConnectionEntry::EMPTY;
        for cookie in [0, 1, 1 << 32] {
            assert!(!entry.is_seen(cookie), "{cookie}");
        }
        entry.see(7);
        assert!(entry.is_seen(7) && !entry.is_seen(8));
        entry.see(1 << 32);
        assert!(!entry.is_seen(1 << 32));
    }

    /// A pinned ring may hold records that a program of another ABI version wrote: one may append, and move nothing.
    #[test]
    fn record_offsets() {
        let offsets = [
            offset_of!(VerdictRecord, boot_ns),
            offset_of!(VerdictRecord, creator_cgroup_id),
            offset_of!(VerdictRecord, cgroup_id),
            offset_of!(VerdictRecord, socket_cookie),
            offset_of!(VerdictRecord, netns_cookie),
            offset_of!(VerdictRecord, epoch),
            offset_of!(VerdictRecord, grant),
            offset_of!(VerdictRecord, address),
            offset_of!(VerdictRecord, command),
            offset_of!(VerdictRecord, pid),
            offset_of!(VerdictRecord, uid),
            offset_of!(VerdictRecord, resource),
            offset_of!(VerdictRecord, subject),
            offset_of!(VerdictRecord, port),
            offset_of!(VerdictRecord, protocol),
            offset_of!(VerdictRecord, hook),
            offset_of!(VerdictRecord, verdict),
            offset_of!(VerdictRecord, reason),
            offset_of!(VerdictRecord, family),
            offset_of!(VerdictRecord, reserved),
            offset_of!(VerdictRecord, peer),
        ];
        assert_eq!(
            offsets,
            [0, 8, 16, 24, 32, 40, 48, 64, 80, 96, 100, 104, 108, 112, 114, 115, 116, 117, 118, 119, 128]
        );
    }

    /// The same of moves.
    #[test]
    fn moved_record_offsets() {
        let offsets = [
            offset_of!(MovedRecord, boot_ns),
            offset_of!(MovedRecord, cgroup_id),
            offset_of!(MovedRecord, bound_cgroup_id),
            offset_of!(MovedRecord, mover_cgroup_id),
            offset_of!(MovedRecord, command),
            offset_of!(MovedRecord, mover_command),
            offset_of!(MovedRecord, pid),
            offset_of!(MovedRecord, uid),
            offset_of!(MovedRecord, mover_pid),
            offset_of!(MovedRecord, mover_uid),
            offset_of!(MovedRecord, subject),
            offset_of!(MovedRecord, reserved),
        ];
        assert_eq!(offsets, [0, 8, 16, 24, 32, 48, 64, 68, 72, 76, 80, 84]);
    }

    /// The same of what closed connections leave.
    #[test]
    fn closed_record_offsets() {
        let offsets = [
            offset_of!(ClosedRecord, boot_ns),
            offset_of!(ClosedRecord, admitted_boot_ns),
            offset_of!(ClosedRecord, bytes_sent),
            offset_of!(ClosedRecord, bytes_received),
            offset_of!(ClosedRecord, socket_cookie),
            offset_of!(ClosedRecord, netns_cookie),
            offset_of!(ClosedRecord, epoch),
            offset_of!(ClosedRecord, grant),
            offset_of!(ClosedRecord, address),
            offset_of!(ClosedRecord, resource),
            offset_of!(ClosedRecord, subject),
            offset_of!(ClosedRecord, pid),
            offset_of!(ClosedRecord, port),
            offset_of!(ClosedRecord, protocol),
            offset_of!(ClosedRecord, ended_by),
            offset_of!(ClosedRecord, reserved),
        ];
        assert_eq!(offsets, [0, 8, 16, 24, 32, 40, 48, 56, 72, 88, 92, 96, 100, 102, 103, 104]);
    }
}
