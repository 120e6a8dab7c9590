//! Which names in netfilter are kube-proxy's. Pure.
//!
//! By pkg/proxy/{iptables,ipvs,nftables}/proxier.go of Kubernetes. Others begin with `KUBE-` too and are not its own: kubelet's
//! (`KUBE-FIREWALL`, `KUBE-KUBELET-CANARY`, `KUBE-IPTABLES-HINT`, `KUBE-MARK-DROP`), and those of network policies of
//! kube-router (`KUBE-ROUTER-`, `KUBE-NWPLCY-`, `KUBE-POD-FW-`).

/// The table of its nftables mode, in `ip` and in `ip6`.
pub(super) const TABLE: &str = "kube-proxy";

/// One for each purpose, in its iptables and ipvs modes.
const NAMES: [&str; 13] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    "KUBE-LOAD-BALANCER",
    "KUBE-NODE-PORT",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];

/// One for each service port or endpoint.
const PREFIXES: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-XLB-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-"];

/// Whether a chain of iptables is kube-proxy's.
pub(super) fn is_kube_proxys(chain: &str) -> bool {
    NAMES.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_of_kube_proxy_are_told_from_those_of_others() {
        for own in ["KUBE-SERVICES", "KUBE-SVC-TCOU7JCQXEZGVUNU", "KUBE-SEP-A", "KUBE-NODE-PORT", "KUBE-MARK-MASQ"] {
            assert!(is_kube_proxys(own), "{own}");
        }
        let others = ["KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT", "KUBE-MARK-DROP", "PREROUTING"];
        let policies = ["KUBE-ROUTER-INPUT", "KUBE-NWPLCY-A", "KUBE-POD-FW-A", "CNI-A", "kube-services", "services"];
        for other in others.into_iter().chain(policies) {
            assert!(!is_kube_proxys(other), "{other}");
        }
    }
}
