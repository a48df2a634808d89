//! From a kernel record to an audit event, with the names that people know.
//!
//! Owns: what an event says. Must not know: disk, network, where process details were read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv6Addr;

use agent_ebpf::abi::{
    ClosedRecord, EndedBy, GrantKey, Hook, MovedRecord, Ring, Tampering, VerdictRecord, protocol,
};
use agent_ebpf::family;
use agent_ebpf::verdict::{Reason, Verdict};
use proto::types::{
    AuditEvent, Closed, Connection, EventId, EventKind, Gap, GrantId, HostName, Receipt, Resource,
    ResourceName, RunDetails, Subject, SubjectId, Timestamp, UnixPath,
};
use uuid::Uuid;

use super::runs::{FIRST_NUMBER, Runs};

/// Gives each event of this host and boot its number: from 1, without holes.
#[derive(Clone, Debug)]
pub struct Numbering {
    host: HostName,
    boot_id: Uuid,
    next: u64,
}

impl Numbering {
    /// Goes on from `next`, the first number that was not given yet.
    pub fn new(host: HostName, boot_id: Uuid, next: u64) -> Self {
        Self { host, boot_id, next }
    }

    fn give(&mut self) -> EventId {
        let id = EventId { host: Some(self.host.clone()), epoch: self.boot_id, sequence: self.next };
        self.next += 1;
        id
    }

    /// An event about the host itself; people read `comment`.
    pub fn host_event(&mut self, kind: EventKind, at: Timestamp, comment: String) -> AuditEvent {
        let event = AuditEvent::new(self.give(), kind, at);
        AuditEvent { actor: format!("host:{}", event.host), comment, ..event }
    }

    /// Records that a ring had no room for.
    pub fn lost(&mut self, ring: Ring, lost: u64, at: Timestamp) -> AuditEvent {
        let place = match ring {
            Ring::Allow => "kernel.allow",
            Ring::Deny => "kernel.deny",
            Ring::Closed => "kernel.closed",
            Ring::Moved => "kernel.moved",
        };
        let event = AuditEvent::new(self.give(), EventKind::AuditGap, at);
        AuditEvent { gap: Some(Gap { place: place.to_owned(), lost, sequences: None }), ..event }
    }

    /// A grant that has ended on this host, and what became of its connections.
    pub fn receipt(
        &mut self,
        pair: GrantKey,
        grant: [u8; 16],
        reason: &str,
        receipt: Receipt,
        names: &Names,
        at: Timestamp,
    ) -> AuditEvent {
        let comment = if pair.subject >= FIRST_NUMBER { "in a run" } else { "" };
        let event = self.host_event(EventKind::GrantReceipt, at, comment.to_owned());
        AuditEvent {
            subject: names.subject(pair.subject),
            resource: names.resource(pair.resource),
            grant: GrantId::from_bytes(grant).map(|id| id.to_string()).unwrap_or_default(),
            reason: reason.to_owned(),
            receipt: Some(receipt),
            ..event
        }
    }

    /// What became of a run, or of somebody who wanted one.
    pub fn run(&mut self, kind: EventKind, told: RunTold, at: Timestamp) -> AuditEvent {
        let subject = told.subject.map(String::from).unwrap_or_default();
        AuditEvent {
            subject,
            grant: told.grant.map(|id| id.to_string()).unwrap_or_default(),
            reason: told.reason.to_owned(),
            run: Some(told.run),
            ..self.host_event(kind, at, told.comment)
        }
    }

    /// One verdict.
    pub fn verdict(
        &mut self,
        record: &VerdictRecord,
        names: &Names,
        process: ProcessDetails,
        at: Timestamp,
    ) -> AuditEvent {
        if Hook::from_code(record.hook) == Some(Hook::Tamper) {
            return self.tampering(record, &process, at);
        }
        // A code that is not ours can only be a denial to us: nothing is called allowed that was not proven to be.
        let kind = match Verdict::from_code(record.verdict) {
            Some(Verdict::Allow) => EventKind::ConnectionAllowed,
            Some(Verdict::WouldDeny) => EventKind::ConnectionWouldDeny,
            Some(Verdict::Deny) | None => EventKind::ConnectionDenied,
        };
        AuditEvent {
            subject: names.subject(record.subject),
            resource: names.resource(record.resource),
            grant: GrantId::from_bytes(record.grant).map(|id| id.to_string()).unwrap_or_default(),
            reason: Reason::from_code(record.reason).map_or("unknown", Reason::as_str).to_owned(),
            connection: Some(connection(record, names, process)),
            ..AuditEvent::new(self.give(), kind, at)
        }
    }

    /// Somebody was refused who reached for the gate itself, or for its agent.
    fn tampering(&mut self, record: &VerdictRecord, process: &ProcessDetails, at: Timestamp) -> AuditEvent {
        let named = |what: &str, text: &str| match text {
            "" => String::new(),
            text => format!(", {what}{text}"),
        };
        let signal = if record.port == 0 { String::new() } else { record.port.to_string() };
        let comment = format!(
            "by {} (pid {}, uid {}){}{}{}",
            command(&record.command),
            record.pid,
            record.uid,
            named("", &process.executable),
            named("in ", &process.cgroup_path),
            named("signal ", &signal),
        );
        let reason = Tampering::from_code(record.family).map_or("unknown", Tampering::as_str).to_owned();
        AuditEvent { reason, ..self.host_event(EventKind::GateTampering, at, comment) }
    }
}

impl Numbering {
    /// A process was moved into a cgroup that is a subject's; what is known of it, and of whoever moved it. `grant`: by which the
    /// subject is let through somewhere.
    pub fn moved(
        &mut self,
        record: &MovedRecord,
        names: &Names,
        (moved, mover): (&ProcessDetails, &ProcessDetails),
        grant: Option<GrantId>,
        at: Timestamp,
    ) -> AuditEvent {
        let process = |command_bytes, pid: u32, uid: u32, details: &ProcessDetails, place: &str| {
            let mut text = format!("{} (pid {pid}, uid {uid})", command(command_bytes));
            if !details.executable.is_empty() {
                text.push_str(&format!(", {}", details.executable));
            }
            if !details.cgroup_path.is_empty() {
                text.push_str(&format!(", {place} {}", details.cgroup_path));
            }
            text
        };
        let whom = process(&record.command, record.pid, record.uid, moved, "into");
        let comment = match record.mover_pid == record.pid {
            true => format!("{whom}, by itself"),
            false => {
                let who = process(&record.mover_command, record.mover_pid, record.mover_uid, mover, "in");
                format!("{whom}, by {who}")
            }
        };
        AuditEvent {
            subject: names.subject(record.subject),
            grant: grant.map(|id| id.to_string()).unwrap_or_default(),
            reason: if grant.is_some() { "granted" } else { "not_granted" }.to_owned(),
            ..self.host_event(EventKind::WorkloadEntered, at, comment)
        }
    }

    /// The end of a connection that was let through.
    pub fn closed(&mut self, record: &ClosedRecord, names: &Names, at: Timestamp) -> AuditEvent {
        let counted = |bytes: u64| (bytes != ClosedRecord::UNKNOWN).then_some(bytes);
        let closed = Closed {
            protocol: protocol_name(record.protocol),
            address: address(record.address),
            port: record.port,
            pid: record.pid,
            socket_cookie: record.socket_cookie,
            boot_time_ns: record.boot_ns,
            duration_ns: record.boot_ns.saturating_sub(record.admitted_boot_ns),
            bytes_sent: counted(record.bytes_sent),
            bytes_received: counted(record.bytes_received),
        };
        AuditEvent {
            subject: names.subject(record.subject),
            resource: names.resource(record.resource),
            grant: GrantId::from_bytes(record.grant).map(|id| id.to_string()).unwrap_or_default(),
            reason: EndedBy::from_code(record.ended_by).map_or("unknown", EndedBy::as_str).to_owned(),
            closed: Some(closed),
            ..AuditEvent::new(self.give(), EventKind::ConnectionClosed, at)
        }
    }
}

/// What there is to say of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunTold {
    /// Whose it is; None: nobody's that is known.
    pub subject: Option<SubjectId>,
    /// The grant of one action that it has used up.
    pub grant: Option<GrantId>,
    /// As one word; empty: it needs none.
    pub reason: &'static str,
    /// For people.
    pub comment: String,
    /// Which, and who.
    pub run: RunDetails,
}

/// What was still to be learned of a process when its record was read. Empty: nothing any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessDetails {
    /// Path of its executable.
    pub executable: String,
    /// Path of its cgroup below the root.
    pub cgroup_path: String,
    /// The account by which its login began. None: it is in none, or nobody remembers it.
    pub login_uid: Option<u32>,
}

/// The names behind the numbers that kernels use.
#[derive(Clone, Debug, Default)]
pub struct Names {
    subjects: HashMap<u32, SubjectId>,
    resources: HashMap<u32, ResourceName>,
    /// Paths of unix sockets, by key.
    paths: HashMap<u64, UnixPath>,
    /// The accounts by which subjects are found, by number: as they are now.
    accounts: BTreeMap<u32, BTreeSet<u32>>,
}

impl Names {
    /// Adds those of a new set. Earlier ones stay: records of them may still be on their way, and a number never gets
    /// another name within a timeline.
    pub fn learn(&mut self, resources: &[Resource], subjects: &[Subject]) {
        self.resources
            .extend(resources.iter().map(|resource| (resource.number.get(), resource.name.clone())));
        self.subjects.extend(subjects.iter().map(|subject| (subject.number.get(), subject.id.clone())));
    }

    /// Adds whose run each number is.
    pub fn learn_runs(&mut self, runs: &Runs) {
        self.subjects.retain(|number, _| *number < FIRST_NUMBER);
        self.subjects.extend(runs.names().map(|(number, subject)| (number, subject.clone())));
    }

    /// Adds paths of unix sockets; earlier ones stay, as names do.
    pub fn learn_paths(&mut self, paths: impl Iterator<Item = (u64, UnixPath)>) {
        self.paths.extend(paths);
    }

    /// Takes over which accounts subjects are found by now.
    pub fn learn_accounts(&mut self, accounts: BTreeMap<u32, BTreeSet<u32>>) {
        self.accounts = accounts;
    }

    /// Whether a subject is found by an account, and this is another one's login.
    fn login_differs(&self, subject: u32, login_uid: Option<u32>) -> bool {
        let accounts = self.accounts.get(&subject).filter(|accounts| !accounts.is_empty());
        accounts.zip(login_uid).is_some_and(|(accounts, uid)| !accounts.contains(&uid))
    }

    fn path(&self, key: u64) -> String {
        self.paths.get(&key).map_or_else(|| format!("#{key:016x}"), ToString::to_string)
    }

    fn subject(&self, number: u32) -> String {
        match number {
            0 => String::new(),
            _ => self.subjects.get(&number).map_or_else(|| format!("#{number}"), ToString::to_string),
        }
    }

    fn resource(&self, number: u32) -> String {
        // Of a packet that could not be read, or a socket that leads to no port.
        if number == 0 {
            return String::new();
        }
        self.resources.get(&number).map_or_else(|| format!("#{number}"), ToString::to_string)
    }
}

fn connection(record: &VerdictRecord, names: &Names, process: ProcessDetails) -> Connection {
    let path = record.unix_key().map(|key| names.path(key)).unwrap_or_default();
    Connection {
        hook: Hook::from_code(record.hook).map_or("unknown", Hook::as_str).to_owned(),
        protocol: match Hook::from_code(record.hook) {
            Some(Hook::SocketCreate) => {
                family::name(record.family).map_or_else(|| record.family.to_string(), str::to_owned)
            }
            _ if record.unix_key().is_some() => "unix".to_owned(),
            _ => protocol_name(record.protocol),
        },
        // Of a socket that leads nowhere yet.
        address: match Ipv6Addr::from(record.address) {
            _ if record.unix_key().is_some() => String::new(),
            Ipv6Addr::UNSPECIFIED if record.port == 0 => String::new(),
            _ => address(record.address),
        },
        port: record.port,
        peer: match Hook::from_code(record.hook) {
            Some(Hook::Ingress) => address(record.peer),
            _ => String::new(),
        },
        pid: record.pid,
        uid: record.uid,
        command: command(&record.command),
        executable: process.executable,
        cgroup_id: record.cgroup_id,
        cgroup_path: process.cgroup_path,
        socket_cookie: record.socket_cookie,
        boot_time_ns: record.boot_ns,
        path,
        login_uid: process.login_uid,
        login_differs: names.login_differs(record.subject, process.login_uid),
    }
}

fn protocol_name(number: u8) -> String {
    match number {
        protocol::TCP => "tcp".to_owned(),
        protocol::UDP => "udp".to_owned(),
        protocol::DCCP => "dccp".to_owned(),
        protocol::SCTP => "sctp".to_owned(),
        protocol::UDPLITE => "udplite".to_owned(),
        number => number.to_string(),
    }
}

fn address(address: [u8; 16]) -> String {
    Ipv6Addr::from(address).to_canonical().to_string()
}

/// A task's name: any bytes up to the first 0. What is no UTF-8 shows as the replacement character.
fn command(bytes: &[u8; 16]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use agent_ebpf::abi::ConnectionEntry;

    use super::*;

    fn record() -> VerdictRecord {
        VerdictRecord {
            boot_ns: 5_000_000_000,
            creator_cgroup_id: 42,
            cgroup_id: 42,
            socket_cookie: 7,
            netns_cookie: 1,
            epoch: 3,
            grant: [0; 16],
            address: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 7],
            command: *b"psql\0\0\0\0\0\0\0\0\0\0\0\0",
            pid: 4711,
            uid: 1000,
            resource: 1,
            subject: 2,
            port: 5432,
            protocol: 6,
            hook: Hook::Connect4 as u8,
            verdict: Verdict::Deny as u8,
            reason: Reason::NoLiveGrant as u8,
            family: 0,
            reserved: [0; 9],
            peer: [0; 16],
        }
    }

    fn numbering() -> Numbering {
        Numbering::new("db-7".parse().expect("valid"), Uuid::from_u128(1), 9)
    }

    fn event_of(record: &VerdictRecord, names: &Names) -> AuditEvent {
        let at = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
        numbering().verdict(record, names, ProcessDetails::default(), at)
    }

    /// A process that root has put into somebody's slice began with another login, or with none.
    #[test]
    fn a_login_of_another_account_is_marked() {
        let mut names = Names::default();
        names.learn_accounts([(2, [1000].into()), (3, [].into())].into());
        let at = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
        let told = |subject, login_uid| {
            let details = ProcessDetails { login_uid, ..ProcessDetails::default() };
            let event = numbering().verdict(&VerdictRecord { subject, ..record() }, &names, details, at);
            event.connection.map(|connection| (connection.login_uid, connection.login_differs))
        };
        assert_eq!(told(2, Some(1000)), Some((Some(1000), false)));
        assert_eq!(told(2, Some(1001)), Some((Some(1001), true)));
        assert_eq!(told(2, None), Some((None, false)), "that a service has none says nothing");
        assert_eq!(told(3, Some(1001)), Some((Some(1001), false)), "no account is known");
        assert_eq!(told(4, Some(1001)), Some((Some(1001), false)), "it is found by something else");
    }

    #[test]
    fn whoever_enters_is_told_with_whoever_moved_it() {
        let mut names = Names::default();
        let subject = proto::types::NewSubject {
            id: "user:alice".parse().expect("valid"),
            selectors: vec![],
            role: proto::types::SubjectRole::Member,
        };
        names.learn(&[], &[Subject::numbered(2.try_into().expect("not 0"), subject)]);
        let record = MovedRecord {
            command: *b"psql\0\0\0\0\0\0\0\0\0\0\0\0",
            mover_command: *b"bash\0\0\0\0\0\0\0\0\0\0\0\0",
            pid: 4711,
            uid: 1000,
            mover_pid: 12,
            subject: 2,
            ..MovedRecord::EMPTY
        };
        let details = |executable: &str, cgroup_path: &str| ProcessDetails {
            executable: executable.to_owned(),
            cgroup_path: cgroup_path.to_owned(),
            login_uid: None,
        };
        let (moved, mover) = (details("/usr/bin/psql", "/user.slice/a"), details("", "/system.slice"));
        let at = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
        let told = |record, grant| numbering().moved(&record, &names, (&moved, &mover), grant, at);
        let event = told(record, None);
        assert_eq!((event.kind, event.subject.as_str()), (EventKind::WorkloadEntered, "user:alice"));
        assert_eq!((event.reason.as_str(), event.grant.as_str()), ("not_granted", ""));
        assert_eq!(
            event.comment,
            "psql (pid 4711, uid 1000), /usr/bin/psql, into /user.slice/a, by bash (pid 12, uid 0), in /system.slice"
        );
        let grant = GrantId::new();
        let event = told(MovedRecord { mover_pid: 4711, ..record }, Some(grant));
        assert_eq!((event.reason.as_str(), event.grant), ("granted", grant.to_string()));
        assert_eq!(event.comment, "psql (pid 4711, uid 1000), /usr/bin/psql, into /user.slice/a, by itself");
    }

    #[test]
    fn a_denial_in_full() {
        insta::assert_debug_snapshot!(event_of(&record(), &Names::default()));
    }

    #[test]
    fn an_allow_names_its_grant() {
        let grant = GrantId::new();
        let allow = VerdictRecord {
            verdict: Verdict::Allow as u8,
            reason: Reason::Granted as u8,
            grant: *grant.as_bytes(),
            ..record()
        };
        let event = event_of(&allow, &Names::default());
        assert_eq!((event.kind, event.grant), (EventKind::ConnectionAllowed, grant.to_string()));
    }

    #[test]
    fn what_would_be_denied_is_no_denial() {
        let observed = VerdictRecord { verdict: Verdict::WouldDeny as u8, ..record() };
        let event = event_of(&observed, &Names::default());
        assert_eq!((event.kind, event.reason.as_str()), (EventKind::ConnectionWouldDeny, "no_live_grant"));
    }

    #[test]
    fn the_end_of_a_connection_in_full() {
        let grant = GrantId::from_bytes([7; 16]).expect("not 0");
        let entry = ConnectionEntry {
            epoch: 3,
            admitted_boot_ns: 5_000_000_000,
            address: record().address,
            grant: *grant.as_bytes(),
            resource: 1,
            subject: 2,
            pid: 4711,
            port: 5432,
            protocol: protocol::TCP,
            ..ConnectionEntry::EMPTY
        };
        let mut closed = ClosedRecord::of(&entry, 7, 6_500_000_000);
        (closed.bytes_sent, closed.bytes_received) = (10, 20);
        closed.ended_by = EndedBy::Peer as u8;
        let at = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
        insta::assert_debug_snapshot!(numbering().closed(&closed, &Names::default(), at));
    }

    #[test]
    fn what_is_not_ours_is_no_allow() {
        let event =
            event_of(&VerdictRecord { verdict: 77, reason: 77, hook: 77, ..record() }, &Names::default());
        assert_eq!((event.kind, event.reason.as_str()), (EventKind::ConnectionDenied, "unknown"));
    }

    #[test]
    fn a_refused_family_is_named() {
        let refused = |family| {
            let record = VerdictRecord {
                hook: Hook::SocketCreate as u8,
                reason: Reason::FamilyRefused as u8,
                family,
                ..VerdictRecord::EMPTY
            };
            let event = event_of(&record, &Names::default());
            let connection = event.connection.expect("a verdict has one");
            (event.reason, event.resource, connection.protocol, connection.address)
        };
        let expected = |name: &str| ("family_refused".into(), String::new(), name.to_owned(), String::new());
        assert_eq!(refused(family::PACKET), expected("packet"));
        assert_eq!(refused(60), expected("60"));
    }

    #[test]
    fn who_was_not_served_is_named() {
        let peer = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1];
        let peer_of = |hook: Hook| {
            let record = VerdictRecord { hook: hook as u8, peer, ..record() };
            event_of(&record, &Names::default()).connection.expect("a verdict has one").peer
        };
        assert_eq!((peer_of(Hook::Ingress).as_str(), peer_of(Hook::Egress).as_str()), ("192.0.2.1", ""));
    }

    #[test]
    fn tampering_is_told_with_who_and_what() {
        let refused = VerdictRecord {
            hook: Hook::Tamper as u8,
            reason: Reason::Tampering as u8,
            family: Tampering::Signal as u8,
            port: 9,
            ..record()
        };
        let process = ProcessDetails {
            executable: "/bin/kill".into(),
            cgroup_path: "/user.slice".into(),
            login_uid: None,
        };
        let at = Timestamp::from_unix_ms(0).expect("in range");
        let event = numbering().verdict(&refused, &Names::default(), process, at);
        assert_eq!((event.kind, event.reason.as_str()), (EventKind::GateTampering, "signal"));
        assert_eq!(event.comment, "by psql (pid 4711, uid 1000), /bin/kill, in /user.slice, signal 9");
        assert_eq!((event.actor.as_str(), event.connection), ("host:db-7", None));
    }

    #[test]
    fn a_unix_socket_is_named_by_its_path() {
        let mut record =
            VerdictRecord { address: [0; 16], port: 0, hook: Hook::UnixConnect as u8, ..record() };
        record.lead_to_unix(0x1234);
        let of = |record: &VerdictRecord, names: &Names| {
            let connection = event_of(record, names).connection.expect("a verdict has one");
            (connection.hook, connection.protocol, connection.address, connection.port, connection.path)
        };
        let expected = |path: &str| ("unix_connect".into(), "unix".into(), String::new(), 0, path.to_owned());
        let mut names = Names::default();
        assert_eq!(of(&record, &names), expected("#0000000000001234"));
        names.learn_paths([(0x1234, "/run/s".parse().expect("valid"))].into_iter());
        assert_eq!(of(&record, &names), expected("/run/s"));
        // A packet of the protocol that stands for it in records is one of that protocol.
        assert_eq!(of(&VerdictRecord { hook: Hook::Egress as u8, ..record }, &names).1, "254");
    }

    #[test]
    fn commands_are_any_bytes() {
        assert_eq!(command(b"0123456789abcdef"), "0123456789abcdef");
        assert_eq!(command(b"\xff\0aaaaaaaaaaaaaa"), "\u{fffd}");
    }

    #[test]
    fn numbers_have_no_holes() {
        let (mut numbering, at) = (numbering(), Timestamp::from_unix_ms(0).expect("in range"));
        let first = numbering.host_event(EventKind::AgentStarted, at, String::new());
        let second = numbering.lost(Ring::Deny, 3, at);
        assert_eq!((first.id.sequence, second.id.sequence), (9, 10));
    }

    proptest::proptest! {
        #[test]
        fn no_record_panics(bytes in proptest::array::uniform16(0u8..), codes in proptest::array::uniform4(0u8..)) {
            let [hook, verdict, reason, protocol] = codes;
            let record =
                VerdictRecord { command: bytes, address: bytes, grant: bytes, hook, verdict, reason, protocol, ..record() };
            event_of(&record, &Names::default());
        }
    }
}
