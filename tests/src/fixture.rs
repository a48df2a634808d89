//! A gate over one resource, a subject with a cgroup, and short ways to say what is wanted.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::listener::Listener;
use crate::probe::{self, Attempt};
use crate::sandbox::{self, Cgroup, Sandbox};
use agent::clock::now_boot_ns;
use agent::kernel::{Demand, Fault, Gate, LsmSettings, RecordRing, Rings, Settings};
use agent::rules::plan::{Entries, Outcome, ResourceOptions, Wanted, WantedGrant, reconcile};
use agent_ebpf::abi::{ClosedRecord, MovedRecord, VerdictRecord};
use anyhow::{Result, bail};
use proto::types::{GrantId, NewResource, PortRange, Protocol, Resource, SubjectNumber};

/// The one resource, unless a test adds others.
pub const RESOURCE: u32 = 1;
/// The one subject, unless a test adds others.
pub const SUBJECT: u32 = 1;

/// Long enough to outlast any test.
pub const HOUR: Duration = Duration::from_secs(3600);

/// The gate and what it should hold.
pub struct Fixture {
    /// The gate itself.
    pub gate: Gate,
    /// What its maps hold.
    pub entries: Entries,
    /// What they should hold.
    pub wanted: Wanted,
    /// Records of what was let through.
    pub allow: RecordRing,
    /// Records of what was not, or would not have been.
    pub deny: RecordRing,
    /// Records of connections that have ended.
    pub closed: RecordRing<ClosedRecord>,
    /// Records of processes that were moved.
    pub moved: RecordRing<MovedRecord>,
    /// What the gate was raised with.
    pub settings: Settings,
    /// Last: it takes the pins away, and with them the gate.
    pub sandbox: Sandbox,
}

impl Fixture {
    /// A gate that protects nothing yet.
    pub fn new() -> Result<Self> {
        Self::with(|_| {})
    }

    /// The same, with other settings.
    pub fn with(change: impl FnOnce(&mut Settings)) -> Result<Self> {
        let sandbox = Sandbox::new()?;
        let mut settings = Settings::new(sandbox.pin_dir());
        change(&mut settings);
        // The programs' diagnostics want a reactor to be awaited with.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (gate, streams) = runtime.block_on(async { Gate::raise(&settings, sandbox.cgroup_root()) })?;
        let entries = gate.read()?;
        let wanted = Wanted::default();
        let Rings { allow, deny, closed, moved } = streams.rings;
        Ok(Self { gate, entries, wanted, allow, deny, closed, moved, settings, sandbox })
    }

    /// The same, with the LSM tier as far as the kernel has it. It is for the tests' own processes: everybody else is exempt.
    pub fn with_lsm(change: impl FnOnce(&mut Settings)) -> Result<Self> {
        let exempt = sandbox::strangers()?.into_keys().collect();
        Self::with(|settings| {
            settings.lsm = LsmSettings { demand: Demand::Prefer, exempt, ..LsmSettings::default() };
            change(settings);
        })
    }

    /// Brings the maps to what is wanted, whatever comes of it.
    pub fn try_apply(&mut self) -> Outcome {
        for slot in self.entries.seeming_idle(now_boot_ns()) {
            if let Ok(active_boot_ns) = self.gate.last_active_boot_ns(slot) {
                self.entries.active.insert(slot, active_boot_ns);
            }
        }
        let slots_max = self.gate.slots_max();
        reconcile(&mut self.entries, &self.wanted, slots_max, now_boot_ns(), |write| self.gate.write(write))
    }

    /// Brings the maps to what is wanted.
    pub fn apply(&mut self) -> Result<()> {
        let outcome = self.try_apply();
        if !outcome.refused.is_empty() || !outcome.failed.is_empty() {
            bail!("the kernel refused: {outcome:?}");
        }
        Ok(())
    }

    /// A listener on the sandbox's address, which is protected as [`RESOURCE`].
    pub fn protected(&mut self, protocol: Protocol) -> Result<Listener> {
        let address = self.sandbox.address();
        self.protected_at(protocol, address.into())
    }

    /// The same, on another address.
    pub fn protected_at(&mut self, protocol: Protocol, address: IpAddr) -> Result<Listener> {
        let listener = Listener::start(protocol, SocketAddr::new(address, 0))?;
        let number = RESOURCE + u32::try_from(self.wanted.resources.len())?;
        self.wanted.resources.push(resource(number, listener.address(), protocol)?);
        self.apply()?;
        Ok(listener)
    }

    /// A cgroup that is bound to [`SUBJECT`].
    pub fn subject(&mut self, cgroup: &str) -> Result<Cgroup> {
        let cgroup = self.sandbox.make_cgroup(cgroup)?;
        self.bind(&cgroup, SUBJECT)?;
        Ok(cgroup)
    }

    /// Binds a cgroup to a subject.
    pub fn bind(&mut self, cgroup: &Cgroup, subject: u32) -> Result<()> {
        self.wanted.cgroups.insert(cgroup.id()?, SubjectNumber::try_from(subject)?);
        self.apply()
    }

    /// Lets [`SUBJECT`] through to [`RESOURCE`].
    pub fn grant(&mut self, duration: Duration) -> Result<WantedGrant> {
        self.grant_to(SUBJECT, RESOURCE, duration)
    }

    /// Lets a subject through to a resource.
    pub fn grant_to(&mut self, subject: u32, resource: u32, duration: Duration) -> Result<WantedGrant> {
        let grant = grant(subject, resource, duration)?;
        self.wanted.grants.push(grant);
        self.apply()?;
        Ok(grant)
    }

    /// Lets [`SUBJECT`] through to [`RESOURCE`] for an hour, unless it is idle for longer.
    pub fn grant_unless_idle(&mut self, limit: Duration) -> Result<WantedGrant> {
        let grant = WantedGrant {
            idle_limit_ns: u64::try_from(limit.as_nanos())?,
            ..grant(SUBJECT, RESOURCE, HOUR)?
        };
        self.wanted.grants.push(grant);
        self.apply()?;
        Ok(grant)
    }

    /// Guards a resource in another way from now on.
    pub fn guard(&mut self, resource: u32, options: ResourceOptions) -> Result<()> {
        self.wanted.options.insert(resource.try_into()?, options);
        self.apply()
    }

    /// Ends every grant.
    pub fn revoke_all(&mut self) -> Result<()> {
        self.wanted.grants.clear();
        self.apply()
    }

    /// All records of denials so far.
    pub fn denials(&mut self) -> Vec<VerdictRecord> {
        self.deny.by_ref().collect()
    }

    /// All records of connections that have ended, so far.
    pub fn ends(&mut self) -> Vec<ClosedRecord> {
        self.closed.by_ref().collect()
    }

    /// All records of allows so far.
    pub fn allows(&mut self) -> Vec<VerdictRecord> {
        self.allow.by_ref().collect()
    }
}

/// A grant from now on.
pub fn grant(subject: u32, resource: u32, duration: Duration) -> Result<WantedGrant> {
    Ok(WantedGrant {
        id: GrantId::new(),
        subject: subject.try_into()?,
        resource: resource.try_into()?,
        expires_at_boot_ns: now_boot_ns() + u64::try_from(duration.as_nanos())?,
        idle_limit_ns: 0,
    })
}

/// A resource of one address and port.
pub fn resource(number: u32, at: SocketAddr, protocol: Protocol) -> Result<Resource> {
    let port = u32::from(at.port());
    let name = format!("resource-{number}").parse()?;
    let ports = vec![PortRange::new(protocol, port, port)?];
    let new = NewResource::new(name, vec![at.ip().into()], ports)?;
    Ok(Resource::numbered(number.try_into()?, new))
}

/// What a gate finds wrong with itself, but for what runs after it: another test's gate may stand at the machine's root meanwhile.
pub fn own_faults(gate: &mut Gate) -> Vec<Fault> {
    gate.inspect().into_iter().filter(|fault| !fault.text.contains(" runs after ours at ")).collect()
}

/// Whether an attempt gets a marker through to the listener: `Ok` means that it arrived, `Err` that the caller was told EPERM
/// and nothing arrived; anything else fails the test.
pub fn reaches(cgroup: &Cgroup, attempt: Attempt, to: SocketAddr, listener: &Listener) -> Result<bool> {
    let marker = format!("{attempt:?} {}", GrantId::new());
    let result = probe::run(cgroup, attempt, to, &marker)?;
    match result.as_str() {
        "ok" if listener.has_received(&marker) => Ok(true),
        "EPERM" if !listener.arrived(&marker) => Ok(false),
        _ => bail!(
            "{attempt:?} from {} to {to}: {result}; arrived: {}",
            cgroup.path,
            listener.arrived(&marker)
        ),
    }
}
