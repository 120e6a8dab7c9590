//! The network namespace of a fixture: a node with an uplink, pods, and a route of a smaller MTU.
//!
//! ```text
//! fixture 198.51.100.9 ── gateway 192.0.2.254 ─┐
//! node2 192.0.2.2 ── its pods 10.0.2.0/24 ───┴─ uplink 192.0.2.1 ┌──────┐ pod1 ── 10.0.1.1
//!                                                                │ node │ pod2 ── 10.0.1.2
//! a tunnel ── pods 10.0.3.0/24 ─────────── thin 172.16.0.1 ──────│      │ bare: no Ethernet, 8.0.0.0/8
//!               pods 10.0.6.1 and 10.0.6.2 ─ bridge 10.0.6.254 ──└──────┘ plain: no programs ── pod 10.0.5.1
//! ```
//!
//! IPv6 is the same by 2001:db8:9::9, 2001:db8::fe, ::2 and ::1, fd00:0:0:1::1, fd00:0:0:2::/64, fd00:0:0:3::/64,
//! fd16::1 and fd08::/16.

use lb_common::{Addr, Device, DeviceFlags};
use lb_kernel::device_options;
use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};

use crate::{link::LinkSpec, netns::LabNamespace};

/// MTU of `thin`.
pub const THIN: u32 = 1300;
/// MTU of the other devices.
pub const MTU: u32 = 1500;

/// Addresses of the node at which NodePorts answer.
pub const OWN: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

/// Each device: its flags, the addresses of the node on it, and its MTU.
const DEVICES: [(&str, u32, &str, &str, u32); 7] = [
    ("uplink", 0, "192.0.2.1", "2001:db8::1", MTU),
    ("pod1", DeviceFlags::POD, "10.0.1.254", "fd00:0:0:1::fe", MTU),
    ("pod2", DeviceFlags::POD, "10.0.1.254", "fd00:0:0:1::fe", MTU),
    ("thin", 0, "172.16.0.1", "fd16::1", THIN),
    ("bare", DeviceFlags::NO_ETHERNET, "8.255.0.1", "fd08::1", MTU),
    ("plain", DeviceFlags::POD | DeviceFlags::NO_PROGRAMS, "192.0.2.1", "2001:db8::1", MTU),
    ("bridge", 0, "10.0.6.254", "fd00:0:0:6::fe", MTU),
];

/// Commands of ip(8). Every neighbour is permanent.
const COMMANDS: &str = "\
address add 192.0.2.1/24 dev uplink
address add 2001:db8::1/64 dev uplink nodad
neighbour add 192.0.2.2 lladdr 02:00:00:00:00:02 dev uplink
neighbour add 192.0.2.254 lladdr 02:00:00:00:00:fe dev uplink
neighbour add 2001:db8::2 lladdr 02:00:00:00:00:02 dev uplink
neighbour add 2001:db8::fe lladdr 02:00:00:00:00:fe dev uplink
route add default via 192.0.2.254
route add default via 2001:db8::fe
route add 10.0.2.0/24 via 192.0.2.2
route add fd00:0:0:2::/64 via 2001:db8::2
address add 10.0.1.254/32 dev pod1
address add 10.0.1.254/32 dev pod2
address add fd00:0:0:1::fe/128 dev pod1 nodad
address add fd00:0:0:1::fe/128 dev pod2 nodad
route add 10.0.1.1/32 dev pod1
route add 10.0.1.2/32 dev pod2
route add fd00:0:0:1::1/128 dev pod1
route add fd00:0:0:1::2/128 dev pod2
neighbour add 10.0.1.1 lladdr 02:00:00:00:00:11 dev pod1
neighbour add 10.0.1.2 lladdr 02:00:00:00:00:12 dev pod2
neighbour add fd00:0:0:1::1 lladdr 02:00:00:00:00:11 dev pod1
neighbour add fd00:0:0:1::2 lladdr 02:00:00:00:00:12 dev pod2
address add 172.16.0.1/24 dev thin
address add fd16::1/64 dev thin nodad
neighbour add 172.16.0.2 lladdr 02:00:00:00:00:03 dev thin
neighbour add fd16::2 lladdr 02:00:00:00:00:03 dev thin
route add 10.0.3.0/24 via 172.16.0.2
route add fd00:0:0:3::/64 via fd16::2
address add 8.255.0.1/8 dev bare
address add fd08::1/16 dev bare nodad
route add 10.0.5.1/32 dev plain
route add fd00:0:0:5::1/128 dev plain
neighbour add 10.0.5.1 lladdr 02:00:00:00:00:51 dev plain
neighbour add fd00:0:0:5::1 lladdr 02:00:00:00:00:51 dev plain
address add 10.0.6.254/24 dev bridge
address add fd00:0:0:6::fe/64 dev bridge nodad
neighbour add 10.0.6.1 lladdr 02:00:00:00:00:61 dev bridge
neighbour add 10.0.6.2 lladdr 02:00:00:00:00:62 dev bridge
neighbour add fd00:0:0:6::1 lladdr 02:00:00:00:00:61 dev bridge
neighbour add fd00:0:0:6::2 lladdr 02:00:00:00:00:62 dev bridge
route add unreachable 10.0.4.0/24
route add unreachable fd00:0:0:4::/64
";

/// Moves this thread into a new namespace, which ends with it.
pub fn enter() {
    assert!(
        rustix::process::geteuid().is_root(),
        "packets run through programs of the kernel: only root may load them"
    );
    let net = LabNamespace::new();
    net.join();
    // Before there is any device: each takes its own from `default`.
    for name in ["all", "default"] {
        net.set(&format!("ipv4/conf/{name}/forwarding"), "1");
        net.set(&format!("ipv6/conf/{name}/forwarding"), "1");
        net.set(&format!("ipv6/conf/{name}/accept_dad"), "0");
    }
    let mut setup = net.setup().up("lo");
    for (name, .., mtu) in DEVICES {
        let peer = format!("{name}-end");
        setup = setup.link(name, &LinkSpec::veth(&peer).mac("02:00:00:00:00:01").mtu(mtu)).up(&peer);
    }
    setup.ip(COMMANDS.trim_end()).apply();
    wait_for_local_routes();
}

/// Waits until the kernel has the routes to the node's own IPv6 addresses, which it adds in the background.
fn wait_for_local_routes() {
    let own = DEVICES.map(|(.., v6, _)| {
        let octets = v6.parse::<std::net::Ipv6Addr>().expect("an address").octets();
        octets.iter().map(|octet| format!("{octet:02x}")).collect::<String>()
    });
    for _ in 0..10_000 {
        let routes = std::fs::read_to_string("/proc/thread-self/net/ipv6_route").expect("/proc");
        // RTF_LOCAL of include/uapi/linux/ipv6_route.h, in the last column but one.
        let is_local = |line: &str| line.split_whitespace().rev().nth(1).is_some_and(|flags| flags.starts_with('8'));
        if own.iter().all(|own| routes.lines().any(|line| line.starts_with(own.as_str()) && is_local(line))) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    panic!("no local routes to the node's own IPv6 addresses");
}

/// The devices: name, index, and entry of `DEVICES`.
pub fn devices() -> Vec<(&'static str, u32, Device)> {
    let addr = |text: &str| Addr::from(text.parse::<std::net::IpAddr>().expect("an address"));
    let device = |(name, flags, v4, v6, mtu): (_, _, &str, &str, _)| {
        (name, index(name), Device { snat_v4: addr(v4), snat_v6: addr(v6), flags, mtu })
    };
    DEVICES.map(device).into()
}

/// The index of a device.
pub fn index(name: &str) -> u32 {
    let any = socket(AddressFamily::INET, SocketType::DGRAM, None).expect("a socket");
    name_to_index(&any, name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Runs commands of ip(8), one a line, in the namespace of this thread.
pub fn ip(lines: &str) {
    LabNamespace::current().ip(lines);
}

/// Sets a sysctl below `net` in the namespace of this thread.
pub fn set(name: &str, value: &str) {
    LabNamespace::current().set(name, value);
}

/// As [`ip`], with flags of ip(8).
pub fn ip_with(flags: &[&str], lines: &str) {
    LabNamespace::current().ip_with(flags, lines);
}

/// Turns off the transmit checksums of a device: the kernel finishes them before it sends.
pub fn disable_offloads(device: &str) {
    device_options::disable_tx_checksums(device).expect("a device of this node");
}
