//! Choice of the node that shall hold an address, by rendezvous hashing: of the candidates the one with the highest
//! hash of address and name. A node that comes or goes moves its own addresses only.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::Node;

/// Nodes that may hold an address, as far as its Services are concerned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Candidates {
    /// All announcers.
    All,
    /// Announcers of these nodes, which have ready endpoints.
    Of(BTreeSet<Node>),
}

impl Candidates {
    /// True if the node may hold the address.
    #[must_use]
    pub fn contains(&self, node: &str) -> bool {
        match self {
            Self::All => true,
            Self::Of(nodes) => nodes.contains(node),
        }
    }
}

/// Merges the candidates of the Services at each address: nodes that may hold it for all of them, or for any if none
/// may for all.
#[must_use]
pub fn merge<'a>(services: impl Iterator<Item = &'a (IpAddr, Candidates)>) -> BTreeMap<IpAddr, Candidates> {
    let mut sets: BTreeMap<IpAddr, Vec<&BTreeSet<Node>>> = BTreeMap::new();
    for (addr, candidates) in services {
        let sets = sets.entry(*addr).or_default();
        if let Candidates::Of(nodes) = candidates {
            sets.push(nodes);
        }
    }
    let merged = |sets: Vec<&BTreeSet<Node>>| {
        let Some((first, others)) = sets.split_first() else { return Candidates::All };
        let in_all = |node: &&Node| others.iter().all(|set| set.contains(*node));
        let common: BTreeSet<Node> = first.iter().filter(in_all).cloned().collect();
        if !common.is_empty() {
            return Candidates::Of(common);
        }
        Candidates::Of(sets.into_iter().flatten().cloned().collect())
    };
    sets.into_iter().map(|(addr, sets)| (addr, merged(sets))).collect()
}

/// Chooses among candidates, each with its rank: a lower one goes first.
pub fn choose<'a, R: Ord>(addr: IpAddr, candidates: impl Iterator<Item = (&'a Node, R)>) -> Option<&'a Node> {
    let key = |(node, rank): (&'a Node, R)| (rank, Reverse((hash(addr, node), node)));
    candidates.map(key).min().map(|(_, Reverse((_, node)))| node)
}

/// Hash of an address and a name: FNV-1a with a finalizer, since all nodes, of all versions, must agree on it.
fn hash(addr: IpAddr, node: &str) -> u64 {
    let octets = match addr {
        IpAddr::V4(addr) => addr.to_ipv6_mapped().octets(),
        IpAddr::V6(addr) => addr.octets(),
    };
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    mix(octets.iter().chain(node.as_bytes()).fold(0xcbf2_9ce4_8422_2325, step))
}

/// The finalizer of MurmurHash3: every bit of the input changes half of the output.
pub(super) fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn nodes(count: usize) -> Vec<Node> {
        (0..count).map(|i| format!("node-{i}").into()).collect()
    }

    fn choices(nodes: &[Node]) -> BTreeMap<IpAddr, Node> {
        let addresses = (0..1000u32).map(|i| IpAddr::from(Ipv4Addr::from(0xc000_0200 + i)));
        let choice = |addr| choose(addr, nodes.iter().map(|node| (node, false))).cloned().expect("a candidate");
        addresses.map(|addr| (addr, choice(addr))).collect()
    }

    #[test]
    fn addresses_are_spread_evenly() {
        for count in [2, 3, 8] {
            let nodes = nodes(count);
            let choices = choices(&nodes);
            for node in &nodes {
                let share = choices.values().filter(|choice| *choice == node).count();
                let even = 1000 / count;
                assert!(share.abs_diff(even) < even / 3, "{node} of {count} has {share}");
            }
        }
    }

    #[test]
    fn a_node_that_goes_moves_its_own_addresses_only() {
        let all = nodes(5);
        let (before, after) = (choices(&all), choices(&all[1..]));
        for (addr, node) in &before {
            assert!(*node == all[0] || after[addr] == *node, "{addr}");
        }
    }

    #[test]
    fn services_that_share_an_address_need_a_node_of_all_or_else_of_any() {
        let addr = IpAddr::from(Ipv4Addr::new(192, 0, 2, 1));
        let of = |nodes: &[&str]| Candidates::Of(nodes.iter().map(|node| Node::from(*node)).collect());
        let check = |services: &[Candidates], expected: Candidates| {
            let services: Vec<_> = services.iter().map(|candidates| (addr, candidates.clone())).collect();
            assert_eq!(merge(services.iter())[&addr], expected, "{services:?}");
        };
        check(&[Candidates::All, Candidates::All], Candidates::All);
        check(&[Candidates::All, of(&["a"])], of(&["a"]));
        check(&[of(&["a", "b"]), of(&["b", "c"])], of(&["b"]));
        check(&[of(&["a"]), of(&["b"])], of(&["a", "b"]));
        check(&[of(&[])], of(&[]));
    }

    #[test]
    fn a_node_that_is_drained_is_chosen_only_if_there_is_no_other() {
        let nodes = nodes(2);
        let addr = IpAddr::from(Ipv4Addr::new(192, 0, 2, 1));
        let chosen = |last: [bool; 2]| choose(addr, nodes.iter().zip(last)).cloned();
        assert_eq!(chosen([true, false]), Some(nodes[1].clone()));
        assert_eq!(chosen([false, true]), Some(nodes[0].clone()));
        assert_eq!(chosen([true, true]), chosen([false, false]));
        assert_eq!(choose::<bool>(addr, std::iter::empty()), None);
    }
}
