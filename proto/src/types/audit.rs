//! Audit events: numbered lines.

use std::fmt::{self, Display};

use uuid::Uuid;

use super::session::uuid;
use super::{HostName, Invalid, RunDetails, Timestamp, all, optional_run, time};
use crate::wire::audit as wire;

/// The source of what the control plane itself did.
pub(crate) const CONTROL_PLANE_SOURCE: &str = "control-plane";

/// The longest text that one field of an event may have, in bytes. PATH_MAX of Linux, as paths are the longest.
const TEXT_MAX_BYTES: usize = 4096;

/// Which line: the same event always has the same id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EventId {
    /// The host whose kernel or agent saw it; None: the control plane.
    pub host: Option<HostName>,
    /// Of a host: the boot. Of the control plane: the timeline of its database.
    pub epoch: Uuid,
    /// From 1, per source and epoch; without holes, but where a gap of the spool says which are missing.
    pub sequence: u64,
}

impl EventId {
    /// The source as the wire and people name it.
    pub fn source(&self) -> &str {
        self.host.as_ref().map_or(CONTROL_PLANE_SOURCE, HostName::as_str)
    }
}

impl Display for EventId {
    /// `SOURCE/EPOCH/SEQUENCE`, by which consumers drop repeats.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.source(), self.epoch, self.sequence)
    }
}

/// What kind of line it is: declares the kinds once, with their wire form and the name that consumers see.
macro_rules! event_kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        /// What kind of line it is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum EventKind {
            $($(#[$doc])* $kind,)*
        }

        impl EventKind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// The name that consumers see.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }
        }

        impl TryFrom<wire::EventKind> for EventKind {
            type Error = Invalid;

            fn try_from(wire: wire::EventKind) -> Result<Self, Invalid> {
                match wire {
                    $(wire::EventKind::$kind => Ok(Self::$kind),)*
                    wire::EventKind::Unspecified => Err(Invalid::new("kind", "is missing or unknown")),
                }
            }
        }

        impl From<EventKind> for wire::EventKind {
            fn from(kind: EventKind) -> Self {
                match kind {
                    $(EventKind::$kind => Self::$kind,)*
                }
            }
        }
    };
}

event_kinds! {
    /// A kernel let somebody through.
    ConnectionAllowed = "conn.allow",
    /// A kernel let nobody through.
    ConnectionDenied = "conn.deny",
    /// A kernel would have let nobody through, had it not only observed.
    ConnectionWouldDeny = "conn.would_deny",
    /// A connection that was let through has ended.
    ConnectionClosed = "conn.closed",
    /// Somebody asked.
    RequestCreated = "request.created",
    /// An approver said yes.
    RequestApproved = "request.approved",
    /// An approver said no.
    RequestDenied = "request.denied",
    /// Who asked, or whom it was for, took it back.
    RequestWithdrawn = "request.withdrawn",
    /// Nobody decided in time.
    RequestLapsed = "request.lapsed",
    /// One person said yes, and others have to, too.
    ApprovalGiven = "approval.given",
    /// A policy is in force from now on.
    PolicyApplied = "policy.applied",
    /// A grant was made whose time begins later.
    GrantScheduled = "grant.scheduled",
    /// A grant is on its way to its hosts.
    GrantIssued = "grant.issued",
    /// Every host concerned confirmed that its kernel holds it.
    GrantActive = "grant.active",
    /// Somebody ended it; its hosts have not all confirmed yet.
    GrantEnding = "grant.ending",
    /// No kernel lets anybody through by it any more.
    GrantEnded = "grant.ended",
    /// A grant lives on beyond the deadline that it had.
    GrantExtended = "grant.extended",
    /// A host's kernel has ended a grant, and its connections with it.
    GrantReceipt = "grant.receipt",
    /// Somebody has access by a role for emergencies.
    BreakGlassUsed = "break_glass.used",
    /// Somebody else has looked at it.
    BreakGlassReviewed = "break_glass.reviewed",
    /// Resources are closed for a time.
    FreezeBegan = "freeze.began",
    /// They are open again.
    FreezeEnded = "freeze.ended",
    /// A flag is up that conditions of policies see; or its end has moved.
    IncidentOpened = "incident.opened",
    /// It is down again.
    IncidentClosed = "incident.closed",
    /// A destination is protected from now on.
    ResourceAdded = "resource.added",
    /// A destination is guarded in another way from now on.
    ResourceChanged = "resource.changed",
    /// A destination is not protected any more.
    ResourceRemoved = "resource.removed",
    /// Somebody became known.
    SubjectAdded = "subject.added",
    /// A person signed in with an identity provider.
    SubjectSignedIn = "subject.signed_in",
    /// A person ended their session.
    SubjectSignedOut = "subject.signed_out",
    /// A person's name belongs to one account from now on.
    SubjectBound = "subject.bound",
    /// It belongs to none any more.
    SubjectUnbound = "subject.unbound",
    /// Somebody was shut out.
    SubjectDisabled = "subject.disabled",
    /// They were let in again.
    SubjectEnabled = "subject.enabled",
    /// A host became known.
    HostAdded = "host.added",
    /// A host got a certificate for a join token.
    HostJoined = "host.joined",
    /// A host got its next certificate.
    HostRenewed = "host.renewed",
    /// All that a host could prove itself by has ended.
    HostRevoked = "host.revoked",
    /// Somebody has a copy of a host's key.
    HostKeyCopied = "host.key_copied",
    /// Somebody got a new token.
    TokenIssued = "token.issued",
    /// A host's kernel does not hold what the control plane wants there.
    HostDisagrees = "host.disagrees",
    /// An agent took over, or put up, the gate of its host.
    AgentStarted = "agent.started",
    /// Root lifted the gate of a host.
    AgentDetached = "agent.detached",
    /// An agent's session began.
    AgentConnected = "agent.connected",
    /// An agent's session ended.
    AgentDisconnected = "agent.disconnected",
    /// A host became enforcing, degraded or not enforcing.
    AgentStateChanged = "agent.state_changed",
    /// Somebody else had changed what the kernel holds of the gate; it has been put right.
    HostDrift = "host.drift",
    /// Somebody was refused who reached for the gate itself, or for its agent.
    GateTampering = "gate.tampering",
    /// A process was moved into a cgroup that is a subject's.
    WorkloadEntered = "workload.entered",
    /// A range of verdicts known to be lost.
    AuditGap = "audit.gap",
    /// The control plane has given a subject its word for the agent of a host.
    RunPassIssued = "run.pass_issued",
    /// A process was put into a run.
    RunStarted = "run.started",
    /// Nothing is in a run any more.
    RunEnded = "run.ended",
    /// An agent did not do what a program asked for.
    RunRefused = "run.refused",
    /// A caller asked for what it may not do.
    CallRefused = "call.refused",
    /// An ID token was not taken.
    SignInRefused = "sign_in.refused",
    /// Somebody was not told of something, and will not be.
    NotificationFailed = "notification.failed",
    /// A grant is about to end.
    GrantExpiring = "grant.expiring",
    /// What was denied can be asked for.
    DraftOpened = "draft.opened",
    /// The wall clock of a control plane was set.
    ClockStepped = "clock.stepped",
}

impl EventKind {
    /// Whether it is about a run.
    pub fn is_of_a_run(self) -> bool {
        matches!(self, Self::RunStarted | Self::RunEnded | Self::RunRefused)
    }

    /// Whether it is one verdict of a kernel.
    pub fn is_verdict(self) -> bool {
        matches!(self, Self::ConnectionAllowed | Self::ConnectionDenied | Self::ConnectionWouldDeny)
    }
}

impl Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One line of the record. A field that does not apply to the kind is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEvent {
    /// Which line.
    pub id: EventId,
    /// What kind of line.
    pub kind: EventKind,
    /// When it happened, by the source's wall clock; of the control plane by its steady clock.
    pub time: Timestamp,
    /// Where the control plane stored it, from 1; 0: not stored yet.
    pub position: u64,
    /// Host name.
    pub host: String,
    /// Subject id.
    pub subject: String,
    /// Resource name.
    pub resource: String,
    /// Request id.
    pub request: String,
    /// Grant id.
    pub grant: String,
    /// Who caused it.
    pub actor: String,
    /// By what the one who caused it was recognised: a word of [`Credential`](super::Credential); empty: no subject caused it.
    pub credential: String,
    /// Why, as one word of a closed list.
    pub reason: String,
    /// Free text.
    pub comment: String,
    /// Of a grant: its deadline.
    pub expires: Option<Timestamp>,
    /// Of a verdict.
    pub connection: Option<Connection>,
    /// Of a gap.
    pub gap: Option<Gap>,
    /// Of a receipt.
    pub receipt: Option<Receipt>,
    /// Of a connection that has ended.
    pub closed: Option<Closed>,
    /// Of a changed resource.
    pub changes: Vec<Change>,
    /// Of a run.
    pub run: Option<RunDetails>,
}

impl AuditEvent {
    /// A line in which nothing else is said yet.
    pub fn new(id: EventId, kind: EventKind, time: Timestamp) -> Self {
        Self {
            host: id.host.as_ref().map(ToString::to_string).unwrap_or_default(),
            id,
            kind,
            time,
            position: 0,
            subject: String::new(),
            resource: String::new(),
            request: String::new(),
            grant: String::new(),
            actor: String::new(),
            credential: String::new(),
            reason: String::new(),
            comment: String::new(),
            expires: None,
            connection: None,
            gap: None,
            receipt: None,
            closed: None,
            changes: Vec::new(),
            run: None,
        }
    }
}

/// A setting that is another one from now on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Its name.
    pub setting: String,
    /// What it was.
    pub was: String,
    /// What it is.
    pub is: String,
}

/// How many settings one event can tell of: more than anything has.
const CHANGES_MAX: usize = 64;

/// What became of the connections that a grant had let through, on one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// Ended by the agent.
    pub closed: u32,
    /// Perhaps still there, though no packet of theirs leaves.
    pub unconfirmed: u32,
    /// When the last connection or packet was let through; None: none was.
    pub last_admitted: Option<Timestamp>,
}

/// A connection attempt, or one unconnected datagram, that met a protected resource. Fields as in the `.proto`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "audit.proto says it, and saying it twice makes one of them wrong")]
pub struct Connection {
    pub hook: String,
    pub protocol: String,
    pub address: String,
    pub port: u16,
    pub peer: String,
    pub pid: u32,
    pub uid: u32,
    pub command: String,
    pub executable: String,
    pub cgroup_id: u64,
    pub cgroup_path: String,
    pub socket_cookie: u64,
    pub boot_time_ns: u64,
    pub path: String,
    pub login_uid: Option<u32>,
    pub login_differs: bool,
}

/// A connection that was let through, and has ended. Fields as in the `.proto`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "audit.proto says it, and saying it twice makes one of them wrong")]
pub struct Closed {
    pub protocol: String,
    pub address: String,
    pub port: u16,
    pub pid: u32,
    pub socket_cookie: u64,
    pub boot_time_ns: u64,
    pub duration_ns: u64,
    pub bytes_sent: Option<u64>,
    pub bytes_received: Option<u64>,
}

/// Records that a kernel or a spool had to drop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gap {
    /// `kernel.allow`, `kernel.deny`, `kernel.closed` or `spool`.
    pub place: String,
    /// How many; exact for a kernel ring, and the length of the range for `spool`.
    pub lost: u64,
    /// For `spool`: the sequence numbers lost, both ends included.
    pub sequences: Option<(u64, u64)>,
}

impl TryFrom<wire::EventId> for EventId {
    type Error = Invalid;

    fn try_from(wire: wire::EventId) -> Result<Self, Invalid> {
        if wire.sequence == 0 {
            return Err(Invalid::new("sequence", "0 is no sequence number"));
        }
        let host = match wire.source.as_str() {
            CONTROL_PLANE_SOURCE => None,
            name => Some(name.parse().map_err(|error: Invalid| Invalid::new("source", error.problem))?),
        };
        Ok(Self { host, epoch: uuid("epoch", &wire.epoch)?, sequence: wire.sequence })
    }
}

impl From<EventId> for wire::EventId {
    fn from(id: EventId) -> Self {
        Self { source: id.source().to_owned(), epoch: id.epoch.to_string(), sequence: id.sequence }
    }
}

fn text(field: &str, text: String) -> Result<String, Invalid> {
    match text.len() > TEXT_MAX_BYTES {
        true => Err(Invalid::new(
            field,
            format_args!("has {} bytes, at most {TEXT_MAX_BYTES} are possible", text.len()),
        )),
        false => Ok(text),
    }
}

impl TryFrom<wire::AuditEvent> for AuditEvent {
    type Error = Invalid;

    fn try_from(wire: wire::AuditEvent) -> Result<Self, Invalid> {
        let kind: EventKind = wire.kind().try_into()?;
        let id = wire.id.ok_or_else(|| Invalid::missing("id"))?;
        let connection = wire.connection.map(TryInto::try_into).transpose();
        let connection: Option<Connection> =
            connection.map_err(|error: Invalid| error.within("connection"))?;
        if kind.is_verdict() != connection.is_some() {
            return Err(Invalid::new("connection", format_args!("does not go with {kind}")));
        }
        if (kind == EventKind::AuditGap) != wire.gap.is_some() {
            return Err(Invalid::new("gap", format_args!("does not go with {kind}")));
        }
        if (kind == EventKind::GrantReceipt) != wire.receipt.is_some() {
            return Err(Invalid::new("receipt", format_args!("does not go with {kind}")));
        }
        if (kind == EventKind::ConnectionClosed) != wire.closed.is_some() {
            return Err(Invalid::new("closed", format_args!("does not go with {kind}")));
        }
        let closed = wire.closed.map(TryInto::try_into).transpose();
        if (kind == EventKind::ResourceChanged) == wire.changes.is_empty() {
            return Err(Invalid::new("changes", format_args!("does not go with {kind}")));
        }
        if kind.is_of_a_run() != wire.run.is_some() {
            return Err(Invalid::new("run", format_args!("does not go with {kind}")));
        }
        let receipt = wire.receipt.map(TryInto::try_into).transpose();
        let run = wire.run.map(TryInto::try_into).transpose();
        Ok(Self {
            id: id.try_into().map_err(|error: Invalid| error.within("id"))?,
            kind,
            time: time::required("time", wire.time)?,
            position: wire.position,
            host: text("host", wire.host)?,
            subject: text("subject", wire.subject)?,
            resource: text("resource", wire.resource)?,
            request: text("request", wire.request)?,
            grant: text("grant", wire.grant)?,
            actor: text("actor", wire.actor)?,
            credential: text("credential", wire.credential)?,
            reason: text("reason", wire.reason)?,
            comment: text("comment", wire.comment)?,
            expires: time::optional("expires", wire.expires)?,
            connection,
            gap: wire.gap.map(TryInto::try_into).transpose().map_err(|error: Invalid| error.within("gap"))?,
            receipt: receipt.map_err(|error: Invalid| error.within("receipt"))?,
            closed: closed.map_err(|error: Invalid| error.within("closed"))?,
            changes: all("changes", wire.changes, CHANGES_MAX, TryInto::try_into)?,
            run: run.map_err(|error: Invalid| error.within("run"))?,
        })
    }
}

impl From<AuditEvent> for wire::AuditEvent {
    fn from(event: AuditEvent) -> Self {
        Self {
            id: Some(event.id.into()),
            kind: wire::EventKind::from(event.kind).into(),
            time: Some(event.time.into()),
            position: event.position,
            host: event.host,
            subject: event.subject,
            resource: event.resource,
            request: event.request,
            grant: event.grant,
            actor: event.actor,
            credential: event.credential,
            reason: event.reason,
            comment: event.comment,
            expires: event.expires.map(Into::into),
            connection: event.connection.map(Into::into),
            gap: event.gap.map(Into::into),
            receipt: event.receipt.map(Into::into),
            closed: event.closed.map(Into::into),
            changes: event.changes.into_iter().map(Into::into).collect(),
            run: event.run.map(Into::into),
        }
    }
}

impl TryFrom<wire::Run> for RunDetails {
    type Error = Invalid;

    fn try_from(wire: wire::Run) -> Result<Self, Invalid> {
        Ok(Self {
            id: optional_run(&wire.id)?,
            pid: wire.pid,
            uid: wire.uid,
            cgroup_id: wire.cgroup_id,
            login_uid: wire.login_uid,
        })
    }
}

impl From<RunDetails> for wire::Run {
    fn from(run: RunDetails) -> Self {
        Self {
            id: run.id.map(|id| id.to_string()).unwrap_or_default(),
            pid: run.pid,
            uid: run.uid,
            cgroup_id: run.cgroup_id,
            login_uid: run.login_uid,
        }
    }
}

impl TryFrom<wire::Change> for Change {
    type Error = Invalid;

    fn try_from(wire: wire::Change) -> Result<Self, Invalid> {
        Ok(Self {
            setting: text("setting", wire.setting)?,
            was: text("was", wire.was)?,
            is: text("is", wire.is)?,
        })
    }
}

impl From<Change> for wire::Change {
    fn from(change: Change) -> Self {
        Self { setting: change.setting, was: change.was, is: change.is }
    }
}

impl TryFrom<wire::Connection> for Connection {
    type Error = Invalid;

    fn try_from(wire: wire::Connection) -> Result<Self, Invalid> {
        Ok(Self {
            hook: text("hook", wire.hook)?,
            protocol: text("protocol", wire.protocol)?,
            address: text("address", wire.address)?,
            port: port(wire.port)?,
            peer: text("peer", wire.peer)?,
            pid: wire.pid,
            uid: wire.uid,
            command: text("command", wire.command)?,
            executable: text("executable", wire.executable)?,
            cgroup_id: wire.cgroup_id,
            cgroup_path: text("cgroup_path", wire.cgroup_path)?,
            socket_cookie: wire.socket_cookie,
            boot_time_ns: wire.boot_time_ns,
            path: text("path", wire.path)?,
            login_uid: wire.login_uid,
            login_differs: wire.login_differs,
        })
    }
}

impl From<Connection> for wire::Connection {
    fn from(connection: Connection) -> Self {
        Self {
            hook: connection.hook,
            protocol: connection.protocol,
            address: connection.address,
            port: connection.port.into(),
            peer: connection.peer,
            pid: connection.pid,
            uid: connection.uid,
            command: connection.command,
            executable: connection.executable,
            cgroup_id: connection.cgroup_id,
            cgroup_path: connection.cgroup_path,
            socket_cookie: connection.socket_cookie,
            boot_time_ns: connection.boot_time_ns,
            path: connection.path,
            login_uid: connection.login_uid,
            login_differs: connection.login_differs,
        }
    }
}

impl TryFrom<wire::Closed> for Closed {
    type Error = Invalid;

    fn try_from(wire: wire::Closed) -> Result<Self, Invalid> {
        Ok(Self {
            protocol: text("protocol", wire.protocol)?,
            address: text("address", wire.address)?,
            port: port(wire.port)?,
            pid: wire.pid,
            socket_cookie: wire.socket_cookie,
            boot_time_ns: wire.boot_time_ns,
            duration_ns: wire.duration_ns,
            bytes_sent: wire.bytes_sent,
            bytes_received: wire.bytes_received,
        })
    }
}

impl From<Closed> for wire::Closed {
    fn from(closed: Closed) -> Self {
        Self {
            protocol: closed.protocol,
            address: closed.address,
            port: closed.port.into(),
            pid: closed.pid,
            socket_cookie: closed.socket_cookie,
            boot_time_ns: closed.boot_time_ns,
            duration_ns: closed.duration_ns,
            bytes_sent: closed.bytes_sent,
            bytes_received: closed.bytes_received,
        }
    }
}

fn port(port: u32) -> Result<u16, Invalid> {
    u16::try_from(port).map_err(|_| Invalid::new("port", format_args!("{port} is above 65535")))
}

impl TryFrom<wire::Receipt> for Receipt {
    type Error = Invalid;

    fn try_from(wire: wire::Receipt) -> Result<Self, Invalid> {
        let last_admitted = time::optional("last_admitted", wire.last_admitted)?;
        Ok(Self { closed: wire.closed, unconfirmed: wire.unconfirmed, last_admitted })
    }
}

impl From<Receipt> for wire::Receipt {
    fn from(receipt: Receipt) -> Self {
        Self {
            closed: receipt.closed,
            unconfirmed: receipt.unconfirmed,
            last_admitted: receipt.last_admitted.map(Into::into),
        }
    }
}

impl TryFrom<wire::Gap> for Gap {
    type Error = Invalid;

    fn try_from(wire: wire::Gap) -> Result<Self, Invalid> {
        let sequences = match (wire.first_sequence, wire.last_sequence) {
            (0, 0) => None,
            (first, last) if first <= last && first > 0 => Some((first, last)),
            (first, last) => {
                return Err(Invalid::new("first_sequence", format_args!("{first}-{last} is no range")));
            }
        };
        Ok(Self { place: text("where", wire.r#where)?, lost: wire.lost, sequences })
    }
}

impl From<Gap> for wire::Gap {
    fn from(gap: Gap) -> Self {
        let (first_sequence, last_sequence) = gap.sequences.unwrap_or((0, 0));
        Self { r#where: gap.place, lost: gap.lost, first_sequence, last_sequence }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: EventKind) -> AuditEvent {
        let id = EventId { host: "db-7".parse().ok(), epoch: Uuid::now_v7(), sequence: 1 };
        let time = Timestamp::from_unix_ms(1_795_000_000_123).expect("in range");
        let connection = Connection { port: 5432, hook: "connect4".into(), ..Connection::default() };
        let closed = Closed { port: 5432, bytes_sent: Some(0), ..Closed::default() };
        AuditEvent {
            connection: kind.is_verdict().then_some(connection),
            closed: (kind == EventKind::ConnectionClosed).then_some(closed),
            receipt: (kind == EventKind::GrantReceipt).then(Receipt::default),
            run: kind.is_of_a_run().then(RunDetails::default),
            changes: match kind {
                EventKind::ResourceChanged => {
                    vec![Change { setting: "mode".into(), was: "observe".into(), is: "enforce".into() }]
                }
                _ => Vec::new(),
            },
            gap: (kind == EventKind::AuditGap).then(|| Gap {
                place: "spool".into(),
                lost: 2,
                sequences: Some((4, 5)),
            }),
            ..AuditEvent::new(id, kind, time)
        }
    }

    #[test]
    fn every_kind_survives_the_wire() {
        for kind in EventKind::ALL {
            let event = event(*kind);
            assert_eq!(AuditEvent::try_from(wire::AuditEvent::from(event.clone())), Ok(event));
        }
    }

    #[test]
    fn names_of_kinds() {
        let names: Vec<&str> = EventKind::ALL.iter().map(|kind| kind.as_str()).collect();
        insta::assert_snapshot!(names.join("\n"));
    }

    #[test]
    fn broken_events_are_refused() {
        let breaks: [fn(&mut wire::AuditEvent); 8] = [
            |wire| wire.id = None,
            |wire| wire.kind = 999,
            |wire| wire.time = None,
            |wire| wire.connection = None,
            |wire| wire.gap = Some(wire::Gap::default()),
            |wire| wire.changes = vec![wire::Change::default()],
            |wire| wire.comment = "x".repeat(TEXT_MAX_BYTES + 1),
            |wire| wire.id.as_mut().expect("is there").sequence = 0,
        ];
        for (index, break_it) in breaks.into_iter().enumerate() {
            let mut wire = wire::AuditEvent::from(event(EventKind::ConnectionDenied));
            break_it(&mut wire);
            assert!(AuditEvent::try_from(wire).is_err(), "{index}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            if let Ok(wire) = <wire::AuditEvent as prost::Message>::decode(bytes.as_slice()) {
                let _ = AuditEvent::try_from(wire);
            }
        }
    }
}
