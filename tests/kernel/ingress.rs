//! What arrives at a host that owns a resource: where it is served for some peers only, nothing else gets through, whatever was
//! translated on the way.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use agent::kernel::Gate;
use agent::rules::plan::{Check, ResourceOptions};
use agent_ebpf::abi::{Hook, VerdictRecord};
use agent_ebpf::verdict::{Reason, Verdict};
use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};
use proto::types::{GrantId, NewResource, PortRange, Prefix, Protocol, Resource};
use tests::listener::{Listener, StreamServer};
use tests::probe::{self, Attempt};
use tests::runner::Test;
use tests::sandbox::Cgroup;
use tests::tampering::Pinned;
use tests::{ensure_eq, netlink};

use crate::connections::{Streaming, wait_for_bytes};
use crate::fixture::{Fixture, HOUR, RESOURCE, own_faults};

pub(crate) const TESTS: &[Test] = &[
    ("ingress::a_peer_is_served_and_nobody_else_is", a_peer_is_served_and_nobody_else_is),
    (
        "ingress::the_same_network_namespace_is_judged_by_its_own_gate",
        the_same_namespace_is_judged_on_the_way_out,
    ),
    ("ingress::what_was_translated_on_the_way_is_seen", what_was_translated_on_the_way_is_seen),
    ("ingress::what_is_only_observed_goes_on_and_is_told_once", what_is_only_observed_goes_on),
    ("ingress::a_connection_starves_while_its_peer_is_not_served", a_connection_starves_while_not_served),
    ("ingress::it_is_attached_only_while_it_is_wanted", attached_only_while_it_is_wanted),
    ("ingress::it_outlives_its_agent_and_is_taken_over", it_outlives_its_agent),
    ("ingress::what_was_detached_is_put_back", what_was_detached_is_put_back),
];

/// A network namespace of a test's own.
struct Host {
    namespace: File,
}

impl Host {
    fn new() -> Result<Self> {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            netlink::set_up(netlink::LOOPBACK, 0)?;
            Ok(Self { namespace: File::open("/proc/thread-self/ns/net")? })
        };
        std::thread::scope(|scope| scope.spawn(make).join().expect("the thread does not panic"))
    }

    /// Does something there.
    fn within<T: Send>(&self, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let act = || {
            setns(&self.namespace, CloneFlags::CLONE_NEWNET)?;
            act()
        };
        std::thread::scope(|scope| scope.spawn(act).join().expect("the thread does not panic"))
    }

    /// Gives one of its devices addresses, and sets it up.
    fn set_up(&self, device: i32, addresses: &[(IpAddr, u8)]) -> Result<()> {
        self.within(|| {
            netlink::set_up(device, 0)?;
            Ok(addresses
                .iter()
                .try_for_each(|(address, bits)| netlink::add_address(device, *address, *bits))?)
        })
    }
}

/// The ends of a cable.
const HERE: i32 = 10;
const THERE: i32 = 11;

/// Two networks of a test's own, on the same cable.
#[derive(Clone, Copy)]
struct Networks {
    number: u16,
}

impl Networks {
    fn new() -> Self {
        static COUNT: AtomicU16 = AtomicU16::new(0);
        Self { number: COUNT.fetch_add(1, Ordering::Relaxed) * 2 }
    }

    fn address4(self, network: u16, host: u8) -> IpAddr {
        Ipv4Addr::new(10, std::process::id() as u8, (self.number + network) as u8, host).into()
    }

    fn address6(self, network: u16, host: u16) -> IpAddr {
        let process = std::process::id() as u16;
        Ipv6Addr::new(0xfd00, 0x7067, process, self.number + network, 0, 0, 0, host).into()
    }

    /// Of this host, in both networks.
    fn of(self, host: u8) -> [(IpAddr, u8); 4] {
        [
            (self.address4(0, host), 24),
            (self.address4(1, host), 24),
            (self.address6(0, host.into()), 64),
            (self.address6(1, host.into()), 64),
        ]
    }

    /// The first one.
    fn served(self) -> Vec<String> {
        vec![format!("{}/24", self.address4(0, 0)), format!("{}/64", self.address6(0, 0))]
    }
}

/// A host with a service on a protected port, and one with a granted client, each with an address in either network.
struct Stage {
    fixture: Fixture,
    networks: Networks,
    server: Host,
    client: Host,
    granted: Cgroup,
}

const SERVER: u8 = 1;
const CLIENT: u8 = 2;

impl Stage {
    fn new() -> Result<Self> {
        let (networks, server, client) = (Networks::new(), Host::new()?, Host::new()?);
        server.within(|| Ok(netlink::add_cable(HERE, THERE, client.namespace.as_fd())?))?;
        server.set_up(HERE, &networks.of(SERVER))?;
        client.set_up(THERE, &networks.of(CLIENT))?;
        let mut fixture = Fixture::new()?;
        let granted = fixture.subject("subject")?;
        fixture.grant(HOUR)?;
        Ok(Self { fixture, networks, server, client, granted })
    }

    /// Serves on every address of the server, mapped ones among them, and protects the port on them.
    fn serve(&mut self, protocol: Protocol) -> Result<Listener> {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let listener = self.server.within(|| Listener::start(protocol, any))?;
        self.protect(protocol, listener.address().port())?;
        Ok(listener)
    }

    fn protect(&mut self, protocol: Protocol, port: u16) -> Result<()> {
        let addresses = self.networks.of(SERVER).map(|(address, _)| address);
        self.fixture.wanted.resources = vec![resource(&addresses, protocol, port)?];
        self.fixture.apply()
    }

    fn serve_only(&mut self, prefixes: &[String]) -> Result<()> {
        serve_only(&mut self.fixture, prefixes)
    }

    /// Tries all of them at once, from the client's namespace. Gives which markers arrived.
    fn arrive(&self, attempt: Attempt, to: &[SocketAddr], listener: &Listener) -> Result<Vec<bool>> {
        attempts(&self.client, &self.granted, attempt, to, listener)
    }
}

fn resource(addresses: &[IpAddr], protocol: Protocol, port: u16) -> Result<Resource> {
    let ports = vec![PortRange::new(protocol, port.into(), port.into())?];
    let addresses = addresses.iter().map(|address| (*address).into()).collect();
    let new = NewResource::new("served".parse()?, addresses, ports)?;
    Ok(Resource::numbered(RESOURCE.try_into()?, new))
}

/// Empty: everybody.
fn serve_only(fixture: &mut Fixture, prefixes: &[String]) -> Result<()> {
    fixture.wanted.peers.clear();
    if !prefixes.is_empty() {
        let peers = prefixes.iter().map(|text| Ok(text.parse::<Prefix>()?.into()));
        fixture.wanted.peers.insert(RESOURCE.try_into()?, peers.collect::<Result<_>>()?);
    }
    fixture.apply()
}

fn attempts(
    from: &Host,
    cgroup: &Cgroup,
    attempt: Attempt,
    to: &[SocketAddr],
    listener: &Listener,
) -> Result<Vec<bool>> {
    let try_one = |to: SocketAddr| {
        let marker = format!("{attempt:?} {}", GrantId::new());
        let result = from.within(|| probe::run(cgroup, attempt, to, &marker))?;
        // A datagram that is dropped where it arrives was sent all the same: it is waited for as any other.
        match (attempt, result.as_str()) {
            (Attempt::Tcp, "timeout") => Ok(listener.arrived(&marker)),
            (_, "ok") => Ok(listener.has_received(&marker)),
            (_, other) => bail!("{attempt:?} to {to}: {other}"),
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = to.iter().map(|to| scope.spawn(move || try_one(*to))).collect();
        threads.into_iter().map(|thread| thread.join().expect("the thread does not panic")).collect()
    })
}

/// How long a packet may take through a cable.
const ON_ITS_WAY: Duration = Duration::from_millis(500);

const UDP: (Protocol, Attempt) = (Protocol::Udp, Attempt::UdpSend);
const TCP: (Protocol, Attempt) = (Protocol::Tcp, Attempt::Tcp);

const OBSERVED: ResourceOptions = ResourceOptions { observe: true, strict_audit: false, per_send: false };
const ENFORCED: ResourceOptions = ResourceOptions { observe: false, ..OBSERVED };

/// Of what arrived. A slow machine also holds back what says farewell to the service in the name of nobody, and tells that.
fn refusals(fixture: &mut Fixture) -> Vec<VerdictRecord> {
    let is_arrival = |record: &VerdictRecord| record.hook == Hook::Ingress as u8;
    fixture.denials().into_iter().filter(is_arrival).collect()
}

fn peer_of(record: &VerdictRecord) -> IpAddr {
    Ipv6Addr::from(record.peer).to_canonical()
}

fn a_peer_is_served_and_nobody_else_is() -> Result<()> {
    for (protocol, attempt) in [UDP, TCP] {
        let mut stage = Stage::new()?;
        let listener = stage.serve(protocol)?;
        let port = listener.address().port();
        let to = stage.networks.of(SERVER).map(|(address, _)| SocketAddr::new(address, port));
        let served = stage.networks.served();
        stage.serve_only(&served)?;
        // The first network, and not the second one.
        ensure_eq!(stage.arrive(attempt, &to, &listener)?, [true, false, true, false], "{protocol}");
        let denials = refusals(&mut stage.fixture);
        let client = stage.networks.of(CLIENT).map(|(address, _)| address);
        let peers: BTreeSet<IpAddr> = denials.iter().map(peer_of).collect();
        ensure_eq!(peers, BTreeSet::from([client[1], client[3]]), "{protocol}");
        // TCP asks for a connection again and again.
        ensure_eq!(denials.len() == 2 || protocol == Protocol::Tcp, true, "{denials:?}");
        for record in denials {
            ensure_eq!((record.verdict, record.reason), (Verdict::Deny as u8, Reason::PeerNotServed as u8));
            ensure_eq!((record.resource, record.port, record.pid, record.subject), (RESOURCE, port, 0, 0));
            ensure_eq!(record.socket_cookie != 0 && record.cgroup_id != 0, true, "{record:?}");
            let own = match peer_of(&record) {
                IpAddr::V4(_) => to[1].ip(),
                IpAddr::V6(_) => to[3].ip(),
            };
            ensure_eq!(Ipv6Addr::from(record.address).to_canonical(), own);
        }
        stage.serve_only(&[])?;
        ensure_eq!(stage.arrive(attempt, &to, &listener)?, [true; 4], "{protocol}, everybody");
    }
    Ok(())
}

/// Its own gate lets the granted one through, and nobody else.
fn the_same_namespace_is_judged_on_the_way_out() -> Result<()> {
    for (protocol, attempt) in [UDP, TCP] {
        let mut stage = Stage::new()?;
        let listener = stage.serve(protocol)?;
        let served = stage.networks.served();
        stage.serve_only(&served)?;
        let port = listener.address().port();
        let to = stage.networks.of(SERVER).map(|(address, _)| SocketAddr::new(address, port));
        let arrived = attempts(&stage.server, &stage.granted, attempt, &to, &listener)?;
        ensure_eq!(arrived, [true; 4], "{protocol}");
        ensure_eq!(refusals(&mut stage.fixture).len(), 0);
        let nobody = stage.fixture.sandbox.make_cgroup("nobody")?;
        let refused = stage.server.within(|| probe::run(&nobody, attempt, to[1], "nobody"))?;
        ensure_eq!(refused, "EPERM");
    }
    Ok(())
}

/// The client's host, one that passes on what comes to a port that nobody protects, and the one behind it that owns the resource:
/// neither the client's gate nor any other sees where the packet is going until it is there.
fn what_was_translated_on_the_way_is_seen() -> Result<()> {
    const SERVICE: u16 = 8080;
    const BEYOND: i32 = 12;
    for (protocol, attempt) in [UDP, TCP] {
        let networks = Networks::new();
        let (client, between, server) = (Host::new()?, Host::new()?, Host::new()?);
        let [near, gate, far, own] = [(0, CLIENT), (0, SERVER), (1, 3), (1, 4)]
            .map(|(network, host)| networks.address4(network, host));
        client.within(|| Ok(netlink::add_cable(HERE, THERE, between.namespace.as_fd())?))?;
        between.within(|| Ok(netlink::add_cable(BEYOND, HERE, server.namespace.as_fd())?))?;
        client.set_up(HERE, &[(near, 24)])?;
        between.set_up(THERE, &[(gate, 24)])?;
        between.set_up(BEYOND, &[(far, 24)])?;
        // Its network is wide enough for the client, for whom the one in between answers.
        server.set_up(HERE, &[(own, 16)])?;
        between.within(|| {
            for setting in ["ip_forward", "conf/all/proxy_arp"] {
                fs::write(format!("/proc/sys/net/ipv4/{setting}"), "1")?;
            }
            Ok(())
        })?;
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let listener = server.within(|| Listener::start(protocol, any))?;
        let port = listener.address().port();
        let IpAddr::V4(own4) = own else { bail!("{own} is not IPv4") };
        between.within(|| Ok(netlink::forward(SERVICE, own4, port)?))?;

        let mut fixture = Fixture::new()?;
        fixture.wanted.resources = vec![resource(&[own], protocol, port)?];
        fixture.apply()?;
        let nobody = fixture.sandbox.make_cgroup("nobody")?;
        let arrives = || attempts(&client, &nobody, attempt, &[SocketAddr::new(gate, SERVICE)], &listener);
        ensure_eq!(arrives()?, [true], "{protocol}: nobody looks at what arrives");
        serve_only(&mut fixture, &[far.to_string()])?;
        ensure_eq!(arrives()?, [false], "{protocol}");
        let denials = refusals(&mut fixture);
        let said: BTreeSet<_> =
            denials.iter().map(|record| (record.hook, record.reason, record.port, peer_of(record))).collect();
        ensure_eq!(said, BTreeSet::from([(Hook::Ingress as u8, Reason::PeerNotServed as u8, port, near)]));
        serve_only(&mut fixture, &[near.to_string()])?;
        ensure_eq!(arrives()?, [true], "{protocol}, served");
    }
    Ok(())
}

fn what_is_only_observed_goes_on() -> Result<()> {
    for (protocol, attempt) in [UDP, TCP] {
        let mut stage = Stage::new()?;
        let listener = stage.serve(protocol)?;
        stage.fixture.guard(RESOURCE, OBSERVED)?;
        let served = stage.networks.served();
        stage.serve_only(&served)?;
        let to = SocketAddr::new(stage.networks.address4(1, SERVER), listener.address().port());
        ensure_eq!(stage.arrive(attempt, &[to], &listener)?, [true], "{protocol}");
        let would = (Hook::Ingress as u8, Verdict::WouldDeny as u8, Reason::PeerNotServed as u8);
        let denials = refusals(&mut stage.fixture);
        let said: Vec<_> =
            denials.iter().map(|record| (record.hook, record.verdict, record.reason)).collect();
        ensure_eq!(said, [would], "{protocol}");
        stage.fixture.guard(RESOURCE, ENFORCED)?;
        ensure_eq!(stage.arrive(attempt, &[to], &listener)?, [false], "{protocol}, enforced");
    }
    Ok(())
}

fn a_connection_starves_while_not_served() -> Result<()> {
    let mut stage = Stage::new()?;
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let server = stage.server.within(|| StreamServer::start(Protocol::Tcp, any))?;
    stage.protect(Protocol::Tcp, server.address().port())?;
    let to = SocketAddr::new(stage.networks.address4(1, SERVER), server.address().port());
    let granted = stage.granted.clone();
    let _streaming = stage.client.within(|| Streaming::start(&granted, Attempt::TcpStream, to))?;
    wait_for_bytes(&server)?;
    let served = stage.networks.served();
    stage.serve_only(&served)?;
    // What was in the middle of arriving has arrived.
    std::thread::sleep(ON_ITS_WAY);
    let arrived = server.arrived();
    std::thread::sleep(Duration::from_secs(1));
    ensure_eq!(server.arrived(), arrived);
    let denials = refusals(&mut stage.fixture);
    let [record] = denials.as_slice() else { bail!("{denials:?}") };
    let client = stage.networks.address4(1, CLIENT);
    ensure_eq!((record.reason, peer_of(record)), (Reason::PeerNotServed as u8, client));
    // It was not ended: TCP tries again.
    stage.serve_only(&[])?;
    wait_for_bytes(&server)
}

fn attached_only_while_it_is_wanted() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let _listener = fixture.protected(Protocol::Tcp)?;
    let pin = Pinned::at(&fixture.settings.pin_dir).link(Hook::Ingress.as_str());
    let without = fixture.gate.attached();
    ensure_eq!(pin.exists(), false);
    serve_only(&mut fixture, &["10.1.0.0/16".to_owned()])?;
    ensure_eq!((fixture.gate.attached(), pin.exists()), (without + 1, true));
    ensure_eq!(fixture.gate.read_whole()?, fixture.entries);
    serve_only(&mut fixture, &[])?;
    ensure_eq!((fixture.gate.attached(), pin.exists()), (without, false));
    ensure_eq!(fixture.gate.read_whole()?, fixture.entries);
    Ok(())
}

fn it_outlives_its_agent() -> Result<()> {
    let mut stage = Stage::new()?;
    let listener = stage.serve(Protocol::Udp)?;
    let served = stage.networks.served();
    stage.serve_only(&served)?;
    let port = listener.address().port();
    let to = [0, 1].map(|network| SocketAddr::new(stage.networks.address4(network, SERVER), port));
    let Stage { fixture, client, granted, .. } = stage;
    let Fixture { gate, entries, wanted, allow, deny, closed, moved, settings, sandbox } = fixture;
    let attached = gate.attached();
    drop((gate, allow, deny, closed, moved));
    let arrive = || attempts(&client, &granted, Attempt::UdpSend, &to, &listener);
    ensure_eq!(arrive()?, [true, false], "without an agent");

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (gate, streams) = runtime.block_on(async { Gate::raise(&settings, sandbox.cgroup_root()) })?;
    ensure_eq!((gate.took_over(), gate.attached()), (true, attached));
    ensure_eq!(gate.read()?.peers, entries.peers);
    ensure_eq!(gate.read()?.judged, [Check::Arrivals].into());
    ensure_eq!(arrive()?, [true, false], "taken over");
    let agent::kernel::Rings { allow, deny, closed, moved } = streams.rings;
    let entries = gate.read()?;
    let mut fixture = Fixture { gate, entries, wanted, allow, deny, closed, moved, settings, sandbox };
    ensure_eq!(refusals(&mut fixture).len(), 2, "of either time");
    serve_only(&mut fixture, &[])?;
    ensure_eq!((arrive()?, fixture.gate.attached()), (vec![true, true], attached - 1));
    Ok(())
}

fn what_was_detached_is_put_back() -> Result<()> {
    let mut stage = Stage::new()?;
    let listener = stage.serve(Protocol::Udp)?;
    let served = stage.networks.served();
    stage.serve_only(&served)?;
    let to = [SocketAddr::new(stage.networks.address4(1, SERVER), listener.address().port())];
    ensure_eq!(stage.arrive(Attempt::UdpSend, &to, &listener)?, [false]);
    Pinned::at(&stage.fixture.settings.pin_dir).detach(Hook::Ingress.as_str())?;
    ensure_eq!(stage.arrive(Attempt::UdpSend, &to, &listener)?, [true]);
    let faults = own_faults(&mut stage.fixture.gate);
    let [fault] = faults.as_slice() else { bail!("{faults:?}") };
    ensure_eq!((fault.text.as_str(), fault.opens), ("ingress was detached; put back", true));
    ensure_eq!(stage.arrive(Attempt::UdpSend, &to, &listener)?, [false]);
    Ok(())
}
