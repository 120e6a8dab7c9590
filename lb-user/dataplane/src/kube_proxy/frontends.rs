//! Frontends of kube-proxy's rules, and the endpoints to which each leads. Pure.
//!
//! By pkg/proxy/{iptables,nftables}/proxier.go of Kubernetes 1.37. In both modes a frontend leads to a chain: of the
//! cluster list (`service-`, `KUBE-SVC-`), of the local list (`local-`, `KUBE-SVL-`), or of external frontends
//! (`external-`, `KUBE-EXT-`). The latter leads to both: clients on the node to the cluster list, clients outside to
//! the local list.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{Addr, FrontendKey, Proto};

use lb_common::{AddrPort, Family};
use lb_kernel::netfilter::rule::{Rule, RuleAction, address};
use lb_kernel::netlink::codec::be16;

/// Endpoints of a frontend.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RuleEndpoints {
    /// Service port as kube-proxy names it; empty if the rules do not name it.
    pub name: String,
    /// Endpoints for clients on this node.
    pub from_node: BTreeSet<AddrPort>,
    /// Endpoints for clients outside.
    pub from_outside: BTreeSet<AddrPort>,
}

/// Endpoints by frontend. A NodePort has the unspecified address.
pub type RuleFrontends = BTreeMap<FrontendKey, RuleEndpoints>;

/// Chains and maps of a table, for one address family.
#[derive(Debug, Default)]
pub(super) struct Graph {
    pub(super) chains: BTreeMap<String, Vec<Rule>>,
    pub(super) maps: BTreeMap<String, Vec<(Vec<u8>, RuleAction)>>,
}

impl Graph {
    /// Lists the maps to which rules lead.
    pub(super) fn named_maps(&self) -> BTreeSet<String> {
        let actions = self.chains.values().flatten().flat_map(|rule| &rule.actions);
        actions
            .filter_map(|action| if let RuleAction::MapLookup(name) = action { Some(name.clone()) } else { None })
            .collect()
    }

    /// Returns the endpoints of a frontend that leads to this chain.
    fn endpoints(&self, chain: &str) -> RuleEndpoints {
        let reached = self.reach(chain);
        let of = |prefixes: [&str; 2]| {
            let first = reached.chains.iter().find(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)));
            first.map(|chain| self.reach(chain).endpoints)
        };
        let (local, cluster) = (of(["local-", "KUBE-SVL-"]), of(["service-", "KUBE-SVC-"]));
        let all = reached.endpoints;
        RuleEndpoints {
            name: name_of(chain),
            from_node: cluster.or_else(|| local.clone()).unwrap_or_else(|| all.clone()),
            from_outside: local.unwrap_or(all),
        }
    }

    fn reach(&self, chain: &str) -> Reached {
        let mut reached = Reached::default();
        let mut left = vec![chain.to_owned()];
        while let Some(chain) = left.pop() {
            if !reached.chains.insert(chain.clone()) {
                continue;
            }
            for action in self.chains.get(&chain).into_iter().flatten().flat_map(|rule| &rule.actions) {
                let through: Vec<&RuleAction> = match action {
                    RuleAction::MapLookup(map) => {
                        self.maps.get(map).into_iter().flatten().map(|(_, action)| action).collect()
                    }
                    other => vec![other],
                };
                for action in through {
                    match action {
                        RuleAction::Jump(next) => left.push(next.clone()),
                        RuleAction::Dnat(endpoint) => _ = reached.endpoints.insert(*endpoint),
                        RuleAction::MapLookup(_) | RuleAction::Drop | RuleAction::Accept => {}
                    }
                }
            }
        }
        reached
    }
}

#[derive(Default)]
struct Reached {
    chains: BTreeSet<String>,
    endpoints: BTreeSet<AddrPort>,
}

/// Reads the frontends of nftables mode: the keys of maps.
pub(super) fn of_nftables(family: Family, graph: &Graph) -> RuleFrontends {
    let mut frontends = RuleFrontends::new();
    for map in ["service-ips", "service-nodeports"] {
        for (key, action) in graph.maps.get(map).into_iter().flatten() {
            if let (Some(frontend), RuleAction::Jump(chain)) = (frontend(family, key), action) {
                frontends.insert(frontend, graph.endpoints(chain));
            }
        }
    }
    for map in ["no-endpoint-services", "no-endpoint-nodeports"] {
        for (key, _) in graph.maps.get(map).into_iter().flatten() {
            if let Some(frontend) = frontend(family, key) {
                // kube-proxy looks here first, for clients outside.
                frontends.entry(frontend).or_default().from_outside.clear();
            }
        }
    }
    frontends
}

/// Parses a map's key: an address (not for NodePorts), a protocol and a port, each padded to four octets.
fn frontend(family: Family, key: &[u8]) -> Option<FrontendKey> {
    let size = if family == Family::V4 { 4 } else { 16 };
    let (addr, rest) = match key.len() {
        8 => (any(family), key),
        length if length == size + 8 => (address(key.get(..size)?)?, key.get(size..)?),
        _ => return None,
    };
    Some(FrontendKey::new(addr, be16(rest, 4)?, Proto::from_number(u32::from(*rest.first()?))?))
}

fn any(family: Family) -> Addr {
    match family {
        Family::V4 => Addr::from_v4_word(0),
        Family::V6 => Addr::default(),
    }
}

/// Reads the frontends of iptables mode: rules of the table `nat` for frontends with endpoints, and of the table
/// `filter` for frontends without.
pub(super) fn of_iptables(family: Family, nat: &Graph, filter: &Graph) -> RuleFrontends {
    let mut frontends = RuleFrontends::new();
    for rule in ["KUBE-SERVICES", "KUBE-NODEPORTS"].iter().filter_map(|chain| nat.chains.get(*chain)).flatten() {
        if let (Some(frontend), [RuleAction::Jump(chain)]) = (frontend_of(family, rule), rule.actions.as_slice())
            && chain != "KUBE-MARK-MASQ"
        {
            let comment = rule.comment.as_deref().and_then(|comment| comment.split(' ').next());
            let name = comment.map(str::to_owned).unwrap_or_default();
            frontends.insert(frontend, RuleEndpoints { name, ..nat.endpoints(chain) });
        }
    }
    let refusing = ["KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS"];
    for rule in refusing.iter().filter_map(|chain| filter.chains.get(*chain)).flatten() {
        if let (Some(frontend), [RuleAction::Drop]) = (frontend_of(family, rule), rule.actions.as_slice()) {
            frontends.entry(frontend).or_default().from_outside.clear();
        }
    }
    frontends
}

fn frontend_of(family: Family, rule: &Rule) -> Option<FrontendKey> {
    let proto = Proto::from_number(u32::from(rule.proto?))?;
    Some(FrontendKey::new(rule.destination.unwrap_or_else(|| any(family)), rule.port()?, proto))
}

/// Parses the service port from a chain's name in nftables mode, as in `service-ULMVA6XW-default/web/tcp/http`.
fn name_of(chain: &str) -> String {
    let named = chain.splitn(3, '-').nth(2).filter(|rest| rest.contains('/')).unwrap_or_default();
    let parts: Vec<&str> = named.split('/').collect();
    match parts.as_slice() {
        [namespace, name, _, ""] | [namespace, name, _] => format!("{namespace}/{name}"),
        [namespace, name, _, port] => format!("{namespace}/{name}:{port}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> AddrPort {
        AddrPort::from(text.parse::<std::net::SocketAddr>().expect("an endpoint"))
    }

    fn chain(name: &str) -> RuleAction {
        RuleAction::Jump(name.to_owned())
    }

    fn rules(actions: &[RuleAction]) -> Vec<Rule> {
        actions.iter().map(|action| Rule { actions: vec![action.clone()], ..Rule::default() }).collect()
    }

    fn graph(chains: &[(&str, &[RuleAction])]) -> Graph {
        let chains = chains.iter().map(|(name, actions)| ((*name).to_owned(), rules(actions))).collect();
        Graph { chains, maps: BTreeMap::new() }
    }

    fn lines(frontends: &RuleFrontends) -> Vec<String> {
        let list = |all: &BTreeSet<AddrPort>| all.iter().map(AddrPort::to_string).collect::<Vec<_>>().join(",");
        frontends
            .iter()
            .map(|(key, to)| format!("{key} {} [{}] [{}]", to.name, list(&to.from_node), list(&to.from_outside)))
            .collect()
    }

    #[test]
    fn nftables_mode_is_read_from_its_maps() {
        let (a, b) = (RuleAction::Dnat(endpoint("10.0.0.1:8080")), RuleAction::Dnat(endpoint("10.0.0.2:8080")));
        let mut graph = graph(&[
            ("service-AAAA-default/web/tcp/http", &[RuleAction::MapLookup("__map0".to_owned())]),
            ("local-AAAA-default/web/tcp/http", &[chain("endpoint-A")]),
            (
                "external-AAAA-default/web/tcp/http",
                &[
                    chain("mark-for-masquerade"),
                    chain("service-AAAA-default/web/tcp/http"),
                    chain("local-AAAA-default/web/tcp/http"),
                ],
            ),
            ("endpoint-A", &[a]),
            ("endpoint-B", &[b]),
        ]);
        let key = |addr: &[u8], port: u16| [addr, &[6, 0, 0, 0], &port.to_be_bytes(), &[0, 0]].concat();
        let numbered = |number: u32, to: &str| (number.to_ne_bytes().to_vec(), chain(to));
        graph.maps.insert("__map0".to_owned(), vec![numbered(0, "endpoint-A"), numbered(1, "endpoint-B")]);
        graph.maps.insert(
            "service-ips".to_owned(),
            vec![(key(&[10, 96, 0, 1], 80), chain("service-AAAA-default/web/tcp/http"))],
        );
        graph.maps.insert(
            "service-nodeports".to_owned(),
            vec![(key(&[], 30080), chain("external-AAAA-default/web/tcp/http"))],
        );
        graph.maps.insert("no-endpoint-services".to_owned(), vec![(key(&[10, 96, 0, 9], 80), chain("reject-chain"))]);
        assert_eq!(
            lines(&of_nftables(Family::V4, &graph)),
            [
                "0.0.0.0:30080/TCP default/web:http [10.0.0.1:8080,10.0.0.2:8080] [10.0.0.1:8080]",
                "10.96.0.1:80/TCP default/web:http [10.0.0.1:8080,10.0.0.2:8080] [10.0.0.1:8080,10.0.0.2:8080]",
                "10.96.0.9:80/TCP  [] []",
            ]
        );
    }

    #[test]
    fn iptables_mode_is_read_from_its_rules() {
        let rule = |to: Option<[u8; 4]>, port: u16, action: RuleAction, comment: &str| Rule {
            destination: to.and_then(|octets| address(&octets)),
            proto: Some(6),
            ports: vec![port..=port],
            comment: Some(comment.to_owned()),
            actions: vec![action],
            ..Rule::default()
        };
        let mut nat = graph(&[
            ("KUBE-SVC-A", &[chain("KUBE-SEP-A"), chain("KUBE-SEP-B")]),
            ("KUBE-EXT-A", &[chain("KUBE-MARK-MASQ"), chain("KUBE-SVC-A")]),
            ("KUBE-SEP-A", &[chain("KUBE-MARK-MASQ"), RuleAction::Dnat(endpoint("10.0.0.1:8080"))]),
            ("KUBE-SEP-B", &[RuleAction::Dnat(endpoint("10.0.0.2:8080"))]),
        ]);
        let vip = Some([10, 96, 0, 1]);
        nat.chains.insert(
            "KUBE-SERVICES".to_owned(),
            vec![rule(vip, 80, chain("KUBE-SVC-A"), "default/web:http cluster IP"), Rule::default()],
        );
        nat.chains
            .insert("KUBE-NODEPORTS".to_owned(), vec![rule(None, 30080, chain("KUBE-EXT-A"), "default/web:http")]);
        let mut filter = Graph::default();
        let refused = rule(Some([10, 96, 0, 9]), 80, RuleAction::Drop, "default/none has no endpoints");
        filter.chains.insert("KUBE-SERVICES".to_owned(), vec![refused]);
        assert_eq!(
            lines(&of_iptables(Family::V4, &nat, &filter)),
            [
                "0.0.0.0:30080/TCP default/web:http [10.0.0.1:8080,10.0.0.2:8080] [10.0.0.1:8080,10.0.0.2:8080]",
                "10.96.0.1:80/TCP default/web:http [10.0.0.1:8080,10.0.0.2:8080] [10.0.0.1:8080,10.0.0.2:8080]",
                "10.96.0.9:80/TCP  [] []",
            ]
        );
    }
}
