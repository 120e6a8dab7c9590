//! Hosts that a node reaches otherwise than by its uplink: behind a second device, a bridge, a link without addresses,
//! and a tunnel.
//!
//! ```text
//! node1 ── eth1 10.9.0.1/24, fd09::1 ────────── host 10.9.0.42, fd09::42, which has no gateway
//!       ── docker0 172.17.0.1/16, fd17::1 ───── container 172.17.0.2, fd17::2
//!       ── cali1, with routes only ──────────── pod 10.66.0.2, fd66::2
//!       ── tun0 10.8.0.1/24, fd08::1 ────────── host 10.8.0.42, fd08::42, without Ethernet
//! ```

use std::io;

use crate::{
    link::LinkSpec,
    network::{Host, LabNode},
    tunnel::Tunnel,
};

/// Link address of the node's end of a link without addresses, as Calico sets it, and the IPv6 address made from it.
const CALICO: (&str, &str) = ("ee:ee:ee:ee:ee:ee", "fe80::ecee:eeff:feee:eeee");

impl LabNode {
    /// Adds a second device, `eth1`, and a host on its network.
    pub fn add_network(&self) -> Host {
        let host = Host::new([10, 9, 0, 42], [0xfd09, 0, 0, 0, 0, 0, 0, 0x42]);
        let setup = self.host.net.setup().link("eth1", &LinkSpec::veth_to(&host.net, "eth0"));
        setup.address("eth1", "10.9.0.1/24").address("eth1", "fd09::1/64").apply();
        host.setup([24, 64]).apply();
        host
    }

    /// Adds a bridge, `docker0`, and a container behind it.
    pub fn add_container(&self) -> Host {
        let container = Host::new([172, 17, 0, 2], [0xfd17, 0, 0, 0, 0, 0, 0, 2]);
        let setup = self.host.net.setup().link("docker0", &LinkSpec::bridge());
        setup
            .address("docker0", "172.17.0.1/16")
            .address("docker0", "fd17::1/64")
            .link("docker-veth", &LinkSpec::veth_to(&container.net, "eth0").port_of("docker0"))
            .apply();
        container.setup([16, 64]).route("default via 172.17.0.1").route("default via fd17::1").apply();
        container
    }

    /// Adds a tunnel, `tun0`, and a host at its far end.
    ///
    /// # Errors
    /// If the kernel has no TUN devices.
    pub fn add_tunnel(&self) -> io::Result<(Host, Tunnel)> {
        let host = Host::new([10, 8, 0, 42], [0xfd08, 0, 0, 0, 0, 0, 0, 0x42]);
        let tunnel = Tunnel::make([(&self.host.net, "tun0"), (&host.net, "eth0")])?;
        let setup = self.host.net.setup().up("tun0");
        setup.address("tun0", "10.8.0.1/24").address("tun0", "fd08::1/64").apply();
        host.setup([24, 64]).route("default via 10.8.0.1").route("default via fd08::1").apply();
        Ok((host, tunnel))
    }

    /// Adds a pod behind a link without addresses, `cali1`, as Calico and the plugins of AWS and Azure do.
    pub fn add_unnumbered_pod(&self) -> Host {
        let pod = Host::new([10, 66, 0, 2], [0xfd66, 0, 0, 0, 0, 0, 0, 2]);
        let (mac, gateway6) = CALICO;
        let setup = self.host.net.setup().link("cali1", &LinkSpec::veth_to(&pod.net, "eth0").mac(mac));
        setup.route("10.66.0.2/32 dev cali1 scope link").route("fd66::2/128 dev cali1").apply();
        self.host.net.set("ipv4/conf/cali1/proxy_arp", "1");
        pod.setup([32, 128])
            .route("169.254.1.1 dev eth0 scope link")
            .route("default via 169.254.1.1 dev eth0")
            .route(&format!("default via {gateway6} dev eth0"))
            .apply();
        pod
    }
}
