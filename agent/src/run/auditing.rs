//! From records to the spool, and from the spool to the control plane.

use std::collections::BTreeMap;

use agent_ebpf::abi::{ClosedRecord, MovedRecord, Ring, VerdictRecord};
use proto::types::{AuditEvent, EventKind, HostName, Receipt};
use uuid::Uuid;

use crate::canary;
use crate::clock::Instants;
use crate::kernel::{Kept, Placed};
use crate::memory::Lost;
use crate::observe::Cgroups;
use crate::rules::audit::{Names, Numbering, RunTold};
use crate::rules::grants::Grants;
use crate::rules::queue::Sending;
use crate::rules::runs::Runs;
use crate::spool::{Cursor, Entry, Mark, Spool, SpoolError};

use super::enforcing::{Enforcing, PeriodEnd};

/// Events that one message carries; the contract's limit.
const BATCH_MAX: usize = 512;

/// The events of this host on their way.
pub(super) struct Auditing {
    numbering: Numbering,
    names: Names,
    spool: Spool,
    /// Numbered, and not in the spool: the disk refused them. While there are any, nothing more is read.
    pending: Vec<Entry>,
    error: Option<String>,
    /// What was sent in this session.
    sending: Sending,
    /// Losses that were counted, by the ABI version of the gate.
    lost: BTreeMap<u32, Lost>,
    /// Those of them whose events are in the spool: what a restart may take for reported.
    lost_kept: BTreeMap<u32, Lost>,
    lost_changed: bool,
}

impl Auditing {
    pub(super) fn new(host: HostName, boot_id: Uuid, spool: Spool, lost: BTreeMap<u32, Lost>) -> Self {
        let numbering = Numbering::new(host, boot_id, spool.next_sequence());
        Self {
            numbering,
            names: Names::default(),
            spool,
            pending: Vec::new(),
            error: None,
            sending: Sending::default(),
            lost_kept: lost.clone(),
            lost,
            lost_changed: false,
        }
    }

    pub(super) fn learn(&mut self, enforcing: &Enforcing) {
        let grants = enforcing.grants();
        self.names.learn(grants.resources(), grants.subjects());
        let paths = enforcing.unix_sockets().keys().iter();
        self.names.learn_paths(paths.map(|(key, (_, path))| (*key, path.clone())));
        self.names.learn_accounts(enforcing.accounts());
    }

    /// Whether records may be read from the kernel.
    pub(super) fn can_keep_more(&self) -> bool {
        self.pending.is_empty()
    }

    /// How far the records of a ring are kept: so much of their room may be given back, and no more.
    pub(super) fn kept(&self, ring: u32) -> Kept {
        match self.pending.is_empty() {
            true => Kept::All,
            false => Kept::Until(self.spool.marks().end(ring).unwrap_or(0)),
        }
    }

    /// Where the records of a ring end that an agent before this one has kept, and has not given back. None: there are none.
    pub(super) fn end(&self, ring: u32) -> Option<u64> {
        self.spool.marks().end(ring)
    }

    pub(super) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Turns records into events and keeps them. The canary's own are left out: they say nothing about anybody.
    pub(super) fn records(&mut self, records: &[Placed<VerdictRecord>], cgroups: &mut Cgroups) {
        let now = Instants::now();
        for Placed { record, place } in
            records.iter().filter(|placed| placed.record.resource != canary::NUMBER)
        {
            let process = cgroups.details(record.pid, record.cgroup_id, record.boot_ns);
            let event = self.numbering.verdict(record, &self.names, process, now.wall_at(record.boot_ns));
            self.pending.push(Entry { event, mark: Some(Mark::of_record(*place)) });
        }
        self.flush(now);
    }

    /// Turns the ends of connections into events and keeps them.
    pub(super) fn closed(&mut self, records: &[Placed<ClosedRecord>]) {
        self.ends(records.iter().map(|placed| (&placed.record, Some(Mark::of_record(placed.place)))));
    }

    /// The same of connections that the agent ended, of which no ring tells.
    pub(super) fn closed_here(&mut self, records: &[ClosedRecord]) {
        self.ends(records.iter().map(|record| (record, None)));
    }

    /// Turns moves into events and keeps them. The canary's own are left out.
    pub(super) fn moved(
        &mut self,
        records: &[Placed<MovedRecord>],
        (grants, cgroups): (&Grants, &mut Cgroups),
    ) {
        let now = Instants::now();
        for Placed { record, place } in
            records.iter().filter(|placed| placed.record.subject != canary::NUMBER)
        {
            let moved = cgroups.details(record.pid, record.cgroup_id, record.boot_ns);
            let mover = cgroups.details(record.mover_pid, record.mover_cgroup_id, record.boot_ns);
            let grant = grants.live_of(record.subject, record.boot_ns);
            let at = now.wall_at(record.boot_ns);
            let event = self.numbering.moved(record, &self.names, (&moved, &mover), grant, at);
            self.pending.push(Entry { event, mark: Some(Mark::of_record(*place)) });
        }
        if !records.is_empty() {
            self.flush(now);
        }
    }

    fn ends<'a>(&mut self, records: impl Iterator<Item = (&'a ClosedRecord, Option<Mark>)>) {
        let now = Instants::now();
        let mut any = false;
        for (record, mark) in records.filter(|(record, _)| record.resource != canary::NUMBER) {
            let event = self.numbering.closed(record, &self.names, now.wall_at(record.boot_ns));
            self.pending.push(Entry { event, mark });
            any = true;
        }
        if any {
            self.flush(now);
        }
    }

    pub(super) fn host_event(&mut self, kind: EventKind, comment: String) {
        let now = Instants::now();
        self.pending.push(self.numbering.host_event(kind, now.wall(), comment).into());
        self.flush(now);
    }

    /// Whose run each number is.
    pub(super) fn learn_runs(&mut self, runs: &Runs) {
        self.names.learn_runs(runs);
    }

    pub(super) fn run_event(&mut self, kind: EventKind, told: RunTold) {
        let now = Instants::now();
        self.pending.push(self.numbering.run(kind, told, now.wall()).into());
        self.flush(now);
    }

    /// Writes down what became of periods that ended.
    pub(super) fn receipts(&mut self, ends: &[PeriodEnd]) {
        let now = Instants::now();
        for end in ends {
            let reason = end.reason.as_str();
            let last_admitted = end.last_admitted_boot_ns.map(|boot_ns| now.wall_at(boot_ns));
            let receipt = Receipt { closed: end.closed, unconfirmed: end.unconfirmed, last_admitted };
            let names = &self.names;
            let event = self.numbering.receipt(end.pair, end.grant, reason, receipt, names, now.wall());
            self.pending.push(event.into());
        }
        if !ends.is_empty() {
            self.flush(now);
        }
    }

    /// `total` is what the ring of a gate of this ABI version has lost since it was made. Less than before: it is a new ring.
    /// `id`: the kernel's number of the ring; None: it is not known.
    pub(super) fn count_lost(&mut self, abi_version: u32, ring: Ring, total: u64, id: Option<u32>) {
        let reported = &mut self.lost.entry(abi_version).or_default()[ring as usize];
        if total == *reported {
            return;
        }
        let lost = total.checked_sub(*reported).unwrap_or(total);
        *reported = total;
        let now = Instants::now();
        if lost > 0 {
            tracing::error!(?ring, lost, "the ring was full: what happened has no record");
            let event = self.numbering.lost(ring, lost, now.wall());
            self.pending.push(Entry { event, mark: id.map(|ring| Mark::of_losses(ring, total)) });
        }
        self.flush(now);
    }

    /// The gate of this ABI version is gone, and its rings with it.
    pub(super) fn forget_lost(&mut self, abi_version: u32) {
        self.lost.remove(&abi_version);
        self.lost_changed |= self.lost_kept.remove(&abi_version).is_some();
    }

    /// Losses that are on their way to the record, whatever becomes of this process.
    pub(super) fn lost(&self) -> BTreeMap<u32, Lost> {
        self.lost_kept.clone()
    }

    /// Whether these are others than at the last call.
    pub(super) fn take_lost_changed(&mut self) -> bool {
        std::mem::take(&mut self.lost_changed)
    }

    /// Moves what is pending to the spool. What the disk refuses stays.
    fn flush(&mut self, now: Instants) {
        let result = self.spool.append(&self.pending, now.wall());
        let kept = self.spool.next_sequence();
        self.pending.retain(|entry| entry.event.id.sequence >= kept);
        if self.pending.is_empty() && self.lost_kept != self.lost {
            self.lost_kept.clone_from(&self.lost);
            self.lost_changed = true;
        }
        self.note(result);
    }

    /// Asks the disk to keep what was written, and tries again what it refused.
    pub(super) fn sync(&mut self) {
        if !self.pending.is_empty() {
            self.flush(Instants::now());
        }
        if self.pending.is_empty() {
            let result = self.spool.sync();
            self.note(result);
        }
    }

    fn note(&mut self, result: Result<(), SpoolError>) {
        let error = result.err().map(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            format!("{error}: {cause}")
        });
        if let Some(error) = error.as_ref().filter(|error| self.error.as_ref() != Some(error)) {
            tracing::error!(error, "events cannot be kept; records stay in the kernel until they can");
        }
        self.error = error;
    }

    /// A new session: what was sent and not acknowledged is sent again.
    pub(super) fn rewind(&mut self) {
        self.sending = Sending::default();
    }

    /// The next events to send; None: none, or the answer to the last ones is still awaited.
    pub(super) fn next_batch(&mut self) -> Option<Vec<AuditEvent>> {
        let cursor = Cursor { after: self.sending.next()? };
        let events = match self.spool.read(cursor, BATCH_MAX) {
            Ok(events) => events,
            Err(error) => {
                self.note(Err(error));
                return None;
            }
        };
        let last = events.last()?;
        self.sending.send(last.id.epoch, last.id.sequence);
        Some(events)
    }

    pub(super) fn acknowledged(&mut self, epoch: Uuid, sequence: u64) {
        self.sending.acknowledge(epoch, sequence);
        let result = self.spool.acknowledge(epoch, sequence);
        self.note(result);
    }
}
