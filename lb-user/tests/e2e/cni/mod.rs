//! Networks of the pods: CNI plugins, and a script for the daemon, devices and rules that a node has with them.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::addresses;

/// A network of pods. `cargo xtask e2e --cni NAME` chooses one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cni {
    /// The plugin ptp: a route for each pod.
    Ptp,
    /// The plugin ptp in a cluster without IPv4.
    PtpIpv6,
    /// The plugin bridge with its own masquerade, which applies to pods of other nodes too.
    Bridge,
    /// flanneld with the backend vxlan, and what its plugin delegates to.
    Flannel,
    /// flanneld with the backend host-gw.
    FlannelHostGw,
    /// kube-router with its routes by BGP, its masquerade and its firewall; the plugin bridge.
    KubeRouter,
    /// The plugins ptp and firewall beside Docker's rules.
    Docker,
    /// The plugin ptp; packets of pods leave by a second device, chosen by their source, as on AWS.
    SecondNic,
}

/// Routes of the network itself to the pods of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routes {
    /// Routes by the node's first device.
    First,
    /// Routes by the node's second device.
    Second,
    /// No routes: a daemon on each node makes them, for nodes alone.
    ByDaemon,
}

impl Cni {
    /// The chosen network.
    pub fn chosen() -> Self {
        match std::env::var("BEELINE_E2E_CNI").as_deref() {
            Err(_) | Ok("ptp") => Self::Ptp,
            Ok("ptp-ipv6") => Self::PtpIpv6,
            Ok("bridge") => Self::Bridge,
            Ok("flannel") => Self::Flannel,
            Ok("flannel-host-gw") => Self::FlannelHostGw,
            Ok("kube-router") => Self::KubeRouter,
            Ok("docker") => Self::Docker,
            Ok("second-nic") => Self::SecondNic,
            Ok(other) => panic!("BEELINE_E2E_CNI: no network {other}"),
        }
    }

    /// The routes to pods that the network has from the start.
    pub fn routes(self) -> Routes {
        match self {
            Self::Ptp | Self::PtpIpv6 | Self::Bridge | Self::Docker => Routes::First,
            Self::SecondNic => Routes::Second,
            Self::Flannel | Self::FlannelHostGw | Self::KubeRouter => Routes::ByDaemon,
        }
    }

    /// True if connections of pods to addresses of the nodes' network come from the address of their node.
    pub fn masquerades(self) -> bool {
        match self {
            Self::Ptp | Self::PtpIpv6 | Self::Docker | Self::SecondNic => false,
            Self::Bridge | Self::Flannel | Self::FlannelHostGw | Self::KubeRouter => true,
        }
    }

    /// Writes the files of a node: the list of plugins, and the script that its init runs before containerd.
    pub fn write(self, number: usize, directory: &Path) {
        let list = json!({"cniVersion": "1.0.0", "name": "e2e", "plugins": self.plugins(number, directory)});
        // flanneld knows the MTU first: its script puts the list in place.
        let waits = matches!(self, Self::Flannel | Self::FlannelHostGw);
        let place = if waits { "10-e2e.conflist" } else { "cni/10-e2e.conflist" };
        fs::write(directory.join(place), format!("{list:#}\n")).expect("a file");
        if let Some(script) = self.script() {
            fs::write(directory.join("network.sh"), script).expect("a file");
        }
        if let Some(backend) = self.flannel_backend() {
            let config = json!({"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd44::/48",
                "Backend": {"Type": backend}});
            fs::write(directory.join("net-conf.json"), config.to_string()).expect("a file");
        }
    }

    fn plugins(self, number: usize, directory: &Path) -> Vec<Value> {
        let ranges = addresses::pods(number).into_iter().map(|range| json!([{"subnet": range}]));
        let routes = addresses::ranges("0.0.0.0/0", "::/0");
        let routes = routes.split(',').map(|everywhere| json!({"dst": everywhere}));
        let ipam = json!({
            "type": "host-local", "dataDir": directory.join("cni-data"),
            "ranges": ranges.collect::<Vec<_>>(), "routes": routes.collect::<Vec<_>>(),
        });
        let ptp = json!({"type": "ptp", "mtu": 1500, "ipMasq": false, "ipam": ipam});
        let bridge = |name: &str, masquerades: bool| {
            json!({"type": "bridge", "bridge": name, "mtu": 1500, "isGateway": true, "hairpinMode": true,
                "ipMasq": masquerades, "ipam": ipam})
        };
        let port_map = json!({"type": "portmap", "capabilities": {"portMappings": true}});
        match self {
            Self::Ptp | Self::PtpIpv6 | Self::SecondNic => vec![ptp],
            Self::Bridge => vec![bridge("cni0", true), port_map],
            Self::KubeRouter => vec![bridge("kube-bridge", false), port_map],
            Self::Flannel | Self::FlannelHostGw => vec![bridge("cni0", false), port_map],
            Self::Docker => vec![ptp, json!({"type": "firewall", "backend": "iptables"})],
        }
    }

    fn script(self) -> Option<&'static str> {
        match self {
            Self::Ptp | Self::PtpIpv6 | Self::Bridge => None,
            Self::Flannel | Self::FlannelHostGw => Some(include_str!("flannel.sh")),
            Self::KubeRouter => Some(include_str!("kube-router.sh")),
            Self::Docker => Some(include_str!("docker.sh")),
            Self::SecondNic => Some(include_str!("second-nic.sh")),
        }
    }

    fn flannel_backend(self) -> Option<&'static str> {
        match self {
            Self::Flannel => Some("vxlan"),
            Self::FlannelHostGw => Some("host-gw"),
            Self::Ptp | Self::PtpIpv6 | Self::Bridge | Self::KubeRouter | Self::Docker | Self::SecondNic => None,
        }
    }
}
