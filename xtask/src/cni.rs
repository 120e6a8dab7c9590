//! Networks of pods in the cluster of `e2e`, by name. The test `e2e` knows what each is made of.

use std::ffi::OsString;

use clap::ValueEnum;

/// A network of pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cni {
    /// The plugin ptp, and routes between the nodes.
    #[default]
    Ptp,
    /// The plugin ptp in a cluster of IPv6 alone.
    #[value(name = "ptp-ipv6")]
    PtpIpv6,
    /// The plugin bridge, which masquerades all that leaves the node's pods.
    Bridge,
    /// flannel with VXLAN: an overlay, and masquerade to random ports.
    Flannel,
    /// flannel without an overlay: routes between the nodes, and masquerade to random ports.
    FlannelHostGw,
    /// kube-router without its proxy for Services: routes by BGP, masquerade, and a firewall for pods.
    KubeRouter,
    /// The plugins ptp and firewall on hosts with Docker's rules, which drop what they do not know.
    Docker,
    /// Pods with a network interface of the node to themselves, routed by source, as on AWS.
    SecondNic,
}

impl Cni {
    /// The variable that names the network to the test.
    pub(crate) fn variable(self) -> (&'static str, OsString) {
        let value = self.to_possible_value().map(|value| value.get_name().into()).unwrap_or_default();
        ("BEELINE_E2E_CNI", value)
    }
}
