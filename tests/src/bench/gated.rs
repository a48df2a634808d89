//! A gate of its own for each benchmark, with an agent's work behind it: records are read, named, numbered and kept.

use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use agent::clock::{Instants, now_boot_ns};
use agent::kernel::{Gate, Kept, Placed, Rings, Settings};
use agent::observe::Cgroups;
use agent::rules::audit::{Names, Numbering};
use agent::rules::plan::{Entries, ResourceOptions, Wanted, WantedGrant, reconcile};
use agent::spool::{Entry, Mark, Spool};
use agent_ebpf::abi::{ClosedRecord, Ring, VerdictRecord};
use anyhow::{Result, anyhow, bail};
use proto::types::{GrantId, NewResource, PortRange, Prefix, Protocol, Resource, SubjectNumber};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::process::wait_for;
use crate::sandbox::{Cgroup, Sandbox};

/// What the subject may reach.
const GRANTED: u32 = 1;
/// What nobody may reach.
const DENIED: u32 = 2;
/// Subjects that are there to fill the maps begin here.
const OTHERS: u32 = 1000;
/// No cgroup has such an id: the kernel counts from 1.
const NO_CGROUPS: u64 = 1 << 48;

/// Longer than any benchmark.
const GRANT: Duration = Duration::from_secs(24 * 3600);

/// The gate, attached at a cgroup of its own sandbox.
pub struct Gated {
    gate: Gate,
    entries: Entries,
    wanted: Wanted,
    drain: Drain,
    /// The cgroup that the gate is attached at.
    pub root: Cgroup,
    /// Within it, and bound to a subject.
    pub subject: Cgroup,
    /// Last: it takes the pins away, and with them the gate.
    pub sandbox: Sandbox,
}

impl Gated {
    /// Puts it up, over these ports of the sandbox's address (TCP and UDP): `granted` with a grant for the subject, `denied`
    /// with none. `grants` is how many there are in all, each of a subject with a cgroup of its own.
    pub fn new(granted: (u32, u32), denied: (u32, u32), grants: u32) -> Result<Self> {
        let sandbox = Sandbox::new()?;
        let root = sandbox.make_cgroup("gated")?;
        let subject = sandbox.make_cgroup("gated/subject")?;
        let settings = Settings::new(sandbox.pin_dir());
        // The programs' diagnostics want a reactor to be awaited with.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (gate, streams) = runtime.block_on(async { Gate::raise(&settings, &root.directory) })?;
        let drain = Drain::start(streams.rings, &sandbox.dir().join("spool"))?;
        let (entries, wanted) = (gate.read()?, Wanted::default());
        let mut gated = Self { gate, entries, wanted, drain, root, subject, sandbox };
        let addresses = [gated.sandbox.address().into(), Ipv6Addr::LOCALHOST.into()];
        for (number, (first, last)) in [(GRANTED, granted), (DENIED, denied)] {
            let ports =
                [PortRange::new(Protocol::Tcp, first, last)?, PortRange::new(Protocol::Udp, first, last)?];
            gated.wanted.resources.push(resource(number, &addresses, &ports)?);
        }
        gated.wanted.grants.push(grant(1, GRANTED)?);
        for count in 1..grants {
            let subject = OTHERS + count;
            gated.wanted.cgroups.insert(NO_CGROUPS + u64::from(count), subject.try_into()?);
            gated.wanted.grants.push(grant(subject, GRANTED)?);
        }
        let subject = gated.subject.clone();
        gated.bind(&subject)?;
        Ok(gated)
    }

    /// Makes a cgroup the subject's too.
    pub fn bind(&mut self, cgroup: &Cgroup) -> Result<()> {
        self.wanted.cgroups.insert(cgroup.id()?, SubjectNumber::try_from(1)?);
        self.apply()
    }

    /// Protects one more TCP port of the sandbox's address, with a grant for the subject.
    pub fn grant_port(&mut self, port: u16) -> Result<()> {
        let number = 1 + u32::try_from(self.wanted.resources.len())?;
        let ports = [PortRange::new(Protocol::Tcp, port.into(), port.into())?];
        let address = self.sandbox.address().into();
        self.wanted.resources.push(resource(number, &[address], &ports)?);
        self.wanted.grants.push(grant(1, number)?);
        self.apply()
    }

    /// Protects more ports, with a grant for the subject, where each write is judged.
    pub fn check_senders(&mut self, (first, last): (u32, u32)) -> Result<()> {
        let number = 1 + u32::try_from(self.wanted.resources.len())?;
        let addresses = [self.sandbox.address().into(), Ipv6Addr::LOCALHOST.into()];
        let resource = resource(number, &addresses, &[PortRange::new(Protocol::Tcp, first, last)?])?;
        let options = ResourceOptions { per_send: true, ..ResourceOptions::default() };
        self.wanted.options.insert(resource.number, options);
        self.wanted.resources.push(resource);
        self.wanted.grants.push(grant(1, number)?);
        self.apply()
    }

    /// Has what arrives be judged, or not any more: the first resource is served to nobody but those of its own host, whom
    /// all places are.
    pub fn judge_arrivals(&mut self, on: bool) -> Result<()> {
        self.wanted.peers.clear();
        if on {
            let peer: Prefix = "192.0.2.0/24".parse()?;
            self.wanted.peers.insert(1.try_into()?, [peer.into()].into());
        }
        self.apply()
    }

    fn apply(&mut self) -> Result<()> {
        let (slots_max, now) = (self.gate.slots_max(), now_boot_ns());
        let outcome =
            reconcile(&mut self.entries, &self.wanted, slots_max, now, |write| self.gate.write(write));
        if !outcome.refused.is_empty() || !outcome.failed.is_empty() {
            bail!("the kernel refused: {outcome:?}");
        }
        Ok(())
    }

    /// How many records of a ring were read and how many are lost, once that is `attempted` or does not change any more.
    pub fn accounted(&self, ring: Ring, attempted: u64) -> Result<(u64, u64)> {
        let count = || Ok::<_, anyhow::Error>((self.drain.kept(ring), self.gate.lost(ring)?));
        let waited = wait_for("the last records", Duration::from_secs(20), || {
            let (kept, lost) = count()?;
            Ok((kept + lost >= attempted).then_some((kept, lost)))
        });
        waited.or_else(|_| count())
    }

    /// Whether records become events in a spool, as an agent makes them, or are only read and counted.
    pub fn keep_events(&self, keep: bool) {
        self.drain.shared.keep_events.store(keep, Ordering::Relaxed);
    }
}

fn resource(number: u32, addresses: &[IpAddr], ports: &[PortRange]) -> Result<Resource> {
    let name = format!("resource-{number}").parse()?;
    let addresses = addresses.iter().map(|address| (*address).into()).collect();
    Ok(Resource::numbered(number.try_into()?, NewResource::new(name, addresses, ports.to_vec())?))
}

fn grant(subject: u32, resource: u32) -> Result<WantedGrant> {
    Ok(WantedGrant {
        id: GrantId::new(),
        subject: subject.try_into()?,
        resource: resource.try_into()?,
        expires_at_boot_ns: now_boot_ns() + u64::try_from(GRANT.as_nanos())?,
        idle_limit_ns: 0,
    })
}

/// What an agent does with records, in a thread. Dropped, it ends.
struct Drain {
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Shared {
    keep_events: AtomicBool,
    kept: [AtomicU64; Ring::ALL.len()],
}

impl Drain {
    fn start(rings: Rings, spool: &Path) -> Result<Self> {
        let shared = Arc::new(Shared { keep_events: true.into(), ..Shared::default() });
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut keeper = Keeper::new(spool)?;
        let of_thread = Arc::clone(&shared);
        let thread =
            std::thread::spawn(move || runtime.block_on(drain(rings, &of_thread, &mut keeper, stopped)));
        Ok(Self { shared, stop: Some(stop), thread: Some(thread) })
    }

    fn kept(&self, ring: Ring) -> u64 {
        self.shared.kept[ring as usize].load(Ordering::Relaxed)
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended =
            self.thread.take().map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("it panicked"))));
        if let Some(Err(error)) = ended {
            super::report::complain(&format!("records were not read to the end: {error:#}"));
        }
    }
}

async fn drain(
    rings: Rings,
    shared: &Shared,
    keeper: &mut Keeper,
    mut stopped: oneshot::Receiver<()>,
) -> Result<()> {
    /// As many as an agent handles in one turn.
    const RECORDS_MAX: usize = 512;
    let Rings { allow, deny, closed, moved: _ } = rings;
    let (mut allow, mut deny, mut closed) = (allow.into_async()?, deny.into_async()?, closed.into_async()?);
    loop {
        let (ring, verdicts, ends) = tokio::select! {
            _ = &mut stopped => return Ok(()),
            records = deny.read(RECORDS_MAX) => (Ring::Deny, records?, Vec::new()),
            records = allow.read(RECORDS_MAX) => (Ring::Allow, records?, Vec::new()),
            records = closed.read(RECORDS_MAX) => (Ring::Closed, Vec::new(), records?),
        };
        if shared.keep_events.load(Ordering::Relaxed) {
            keeper.keep(&verdicts, &ends)?;
        }
        [&mut allow, &mut deny].into_iter().for_each(|ring| ring.release(Kept::All));
        closed.release(Kept::All);
        shared.kept[ring as usize].fetch_add((verdicts.len() + ends.len()) as u64, Ordering::Relaxed);
    }
}

/// Makes events and keeps them, and forgets them as if they were acknowledged.
struct Keeper {
    numbering: Numbering,
    names: Names,
    cgroups: Cgroups,
    spool: Spool,
    boot_id: Uuid,
    batches: u32,
}

impl Keeper {
    fn new(spool: &Path) -> Result<Self> {
        let boot_id = agent::observe::boot_id()?;
        let spool = Spool::open(spool, boot_id, 256 * 1024 * 1024)?;
        Ok(Self {
            numbering: Numbering::new("bench".parse()?, boot_id, spool.next_sequence()),
            names: Names::default(),
            cgroups: Cgroups::new(agent::observe::cgroup_root()?),
            spool,
            boot_id,
            batches: 0,
        })
    }

    fn keep(&mut self, verdicts: &[Placed<VerdictRecord>], ends: &[Placed<ClosedRecord>]) -> Result<()> {
        const ACKNOWLEDGE_EVERY: u32 = 64;
        let now = Instants::now();
        let mut events = Vec::with_capacity(verdicts.len() + ends.len());
        for Placed { record, place } in verdicts {
            let process = self.cgroups.details(record.pid, record.cgroup_id, record.boot_ns);
            let event = self.numbering.verdict(record, &self.names, process, now.wall_at(record.boot_ns));
            events.push(Entry { event, mark: Some(Mark::of_record(*place)) });
        }
        for Placed { record, place } in ends {
            let event = self.numbering.closed(record, &self.names, now.wall_at(record.boot_ns));
            events.push(Entry { event, mark: Some(Mark::of_record(*place)) });
        }
        self.spool.append(&events, now.wall())?;
        self.batches += 1;
        if self.batches.is_multiple_of(ACKNOWLEDGE_EVERY) {
            self.spool.acknowledge(self.boot_id, self.spool.next_sequence() - 1)?;
        }
        Ok(())
    }
}
