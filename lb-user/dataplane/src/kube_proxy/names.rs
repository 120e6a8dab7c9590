//! Names of kube-proxy's tables and chains in netfilter. Pure.
//!
//! By pkg/proxy/{iptables,ipvs,nftables}/proxier.go of Kubernetes. Other chains begin with `KUBE-` too: those of
//! kubelet (`KUBE-FIREWALL`, `KUBE-KUBELET-CANARY`, `KUBE-IPTABLES-HINT`, `KUBE-MARK-DROP`), and those of kube-router's
//! network policies (`KUBE-ROUTER-`, `KUBE-NWPLCY-`, `KUBE-POD-FW-`).

/// Table of nftables mode, in the families `ip` and `ip6`.
pub(super) const TABLE: &str = "kube-proxy";

/// Chains of iptables and ipvs mode with fixed names.
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

/// Prefixes of chains of one service port or endpoint.
const PREFIXES: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-XLB-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-"];

/// True if a chain of iptables is kube-proxy's.
pub(super) fn is_kube_proxys(chain: &str) -> bool {
    NAMES.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kube_proxys_chains_count() {
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
