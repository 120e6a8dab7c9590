//! Devices that answer for announced addresses, and the link addresses in their answers: the map `LINK_ADDRS`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use lb_common::LinkAddr;
use lb_kernel::{
    bpf::typed::TypedMap,
    netlink::network_state::{Link, NetworkState},
};

use super::desired::{DesiredDevice, Role};

/// Name of the map.
const MAP: &str = "LINK_ADDRS";

/// Kinds of devices whose ports answer with the link address of the device.
const KINDS_WITH_PORTS: [&str; 3] = ["bridge", "bond", "team"];

/// A device that answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AnsweringLink {
    /// Link address in its answers.
    pub address: LinkAddr,
    /// True if the device has a carrier: hosts may hear its answers.
    pub has_carrier: bool,
    /// Networks of its addresses; of those with one host alone, none.
    pub networks: Vec<IpNet>,
}

/// Devices that answer for announced addresses.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AnsweringLinks {
    /// Devices by index.
    pub by_index: BTreeMap<u32, AnsweringLink>,
    /// False before the first pass over devices.
    pub is_known: bool,
}

impl AnsweringLinks {
    /// Returns the devices by which hosts may hear answers, with the link addresses in them.
    #[must_use]
    pub fn with_carrier(&self) -> BTreeMap<u32, LinkAddr> {
        let heard = self.by_index.iter().filter(|(_, link)| link.has_carrier);
        heard.map(|(index, link)| (*index, link.address)).collect()
    }

    /// Returns the networks in which hosts may hear answers.
    pub fn networks(&self) -> impl Iterator<Item = IpNet> {
        let heard = self.by_index.values().filter(|link| link.has_carrier);
        let networks: BTreeSet<IpNet> = heard.flat_map(|link| &link.networks).copied().collect();
        networks.into_iter()
    }

    /// True if the node is known to have no device by which hosts may hear its answers.
    #[must_use]
    pub fn cannot_answer(&self) -> bool {
        self.is_known && !self.by_index.values().any(|link| link.has_carrier)
    }

    /// Finds the devices that answer: uplinks whose neighbours ask by ARP or neighbour discovery.
    pub(super) fn find(network: &NetworkState, desired: &BTreeMap<u32, DesiredDevice>) -> Self {
        let answering = |(index, device): (&u32, &DesiredDevice)| {
            let link = network.links.get(index).filter(|link| link.has_neighbours())?;
            if device.role != Some(Role::Uplink) {
                return None;
            }
            let address = LinkAddr::new(answered_address(network, link)?);
            let has_carrier = link.has_carrier();
            Some((*index, AnsweringLink { address, has_carrier, networks: networks_of(network, *index) }))
        };
        Self { by_index: desired.iter().filter_map(answering).collect(), is_known: true }
    }
}

/// Returns the networks of a link's global addresses.
fn networks_of(network: &NetworkState, index: u32) -> Vec<IpNet> {
    let own = network.addresses.iter().filter(|addr| addr.interface == index && addr.scope == libc::RT_SCOPE_UNIVERSE);
    let networks = own.filter_map(|addr| IpNet::new(addr.ip, addr.prefix_len).ok());
    networks.filter(|network| network.prefix_len() < network.max_prefix_len()).map(|network| network.trunc()).collect()
}

/// Returns the address by which other hosts reach the node at a link.
fn answered_address(network: &NetworkState, link: &Link) -> Option<[u8; 6]> {
    let controller = link.controller.and_then(|index| network.links.get(&index));
    let controller = controller.filter(|controller| KINDS_WITH_PORTS.contains(&controller.kind.as_str()));
    controller.unwrap_or(link).address
}

/// `LINK_ADDRS` and its entries.
#[derive(Default)]
pub(super) struct LinkAddrs {
    /// None until it is read.
    map: Option<TypedMap<u32, LinkAddr>>,
    entries: BTreeMap<u32, LinkAddr>,
}

impl LinkAddrs {
    /// Reads the map again at the next write, since it may be another one.
    pub(super) fn reread(&mut self) {
        self.map = None;
    }

    /// Makes the map, pinned in `directory`, equal to the devices.
    pub(super) fn write(&mut self, directory: &Path, links: &AnsweringLinks) -> Result<()> {
        let map = match self.map.take() {
            Some(map) => map,
            None => {
                let map = TypedMap::open(directory, MAP)?;
                self.entries = map.read()?.into_iter().collect();
                map
            }
        };
        let wanted: BTreeMap<u32, LinkAddr> =
            links.by_index.iter().map(|(index, link)| (*index, link.address)).collect();
        let gone: Vec<u32> = self.entries.keys().copied().filter(|index| !wanted.contains_key(index)).collect();
        let (keys, values): (Vec<u32>, Vec<LinkAddr>) =
            wanted.iter().filter(|(index, address)| self.entries.get(index) != Some(*address)).unzip();
        map.delete(&gone).context("writing LINK_ADDRS")?;
        map.put(&keys, &values).context("writing LINK_ADDRS")?;
        // After a failure the map is read again.
        self.map = Some(map);
        self.entries = wanted;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::fixture::network;

    /// Checks the last octets of the link addresses by which devices answer, where all of them are uplinks, unless
    /// they are called `pod`.
    fn check(text: &str, expected: &[(u32, u8)]) {
        let network = network(text);
        let role = |name: &str| Some(if name.starts_with("pod") { Role::Pod } else { Role::Uplink });
        let device = |(index, link): (&u32, &Link)| {
            let (name, device) = (link.name.clone(), lb_common::Device::default());
            (*index, DesiredDevice { role: role(&name), name, device })
        };
        let desired = network.links.iter().map(device).collect();
        let links = AnsweringLinks::find(&network, &desired);
        let found: Vec<_> = links.by_index.iter().map(|(index, link)| (*index, link.address.octets[5])).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn uplinks_answer_with_their_own_address_and_ports_with_that_of_their_bridge_or_bond() {
        check("2 eth0 up at 7", &[(2, 7)]);
        check("2 eth0 up at 7\n3 eth0.5 up kind vlan at 8", &[(2, 7), (3, 8)]);
        check("2 eth0 up at 7 port-of 3\n3 bond0 up kind bond at 9", &[(2, 9), (3, 9)]);
        check("2 eth0 up at 7 port-of 3\n3 br0 up kind bridge at 9", &[(2, 9), (3, 9)]);
        check("2 eth0 up at 7 port-of 3\n3 red up kind vrf at 9", &[(2, 7), (3, 9)]);
        check("2 eth0 up at 7 port-of 3\n3 ovs-system up kind openvswitch at 9", &[(2, 7), (3, 9)]);
    }

    #[test]
    fn networks_are_those_of_links_with_a_carrier() {
        let check = |text: &str, expected: &[&str]| {
            let network = network(text);
            let device = |index| {
                let role = Some(Role::Uplink);
                (index, DesiredDevice { role, name: String::new(), device: lb_common::Device::default() })
            };
            let desired = network.links.keys().map(|index| device(*index)).collect();
            let found: Vec<String> =
                AnsweringLinks::find(&network, &desired).networks().map(|network| network.to_string()).collect();
            assert_eq!(found, expected, "{text}");
        };
        let two = "addr 2 192.0.2.11/24\naddr 2 2001:db8::b/64\naddr 2 fe80::1/64 link\naddr 3 10.0.0.11/16";
        check(
            &format!("2 eth0 up carrier at 7\n3 eth1 up carrier at 8\n{two}"),
            &["10.0.0.0/16", "192.0.2.0/24", "2001:db8::/64"],
        );
        check(&format!("2 eth0 up at 7\n3 eth1 up carrier at 8\n{two}"), &["10.0.0.0/16"]);
        check("2 eth0 up carrier at 7\naddr 2 192.0.2.11/32", &[]);
    }

    #[test]
    fn links_of_pods_and_links_without_neighbours_do_not_answer() {
        check("2 pod1 up at 7", &[]);
        check("2 tun0 up layer 65534", &[]);
        check("2 dummy0 up noarp at 7", &[]);
        check("2 ib0 up layer 32", &[]);
    }

    #[test]
    fn a_node_without_devices_cannot_answer_once_that_is_known() {
        let none = AnsweringLinks::find(&network(""), &BTreeMap::new());
        assert!(none.cannot_answer() && !AnsweringLinks::default().cannot_answer());
    }

    #[test]
    fn a_link_has_a_carrier_while_it_is_up_and_runs() {
        for (text, expected) in
            [("2 eth0 up carrier at 7", true), ("2 eth0 up at 7", false), ("2 eth0 carrier at 7", false)]
        {
            let network = network(text);
            let desired = BTreeMap::from([(
                2,
                DesiredDevice {
                    name: "eth0".to_owned(),
                    role: Some(Role::Uplink),
                    device: lb_common::Device::default(),
                },
            )]);
            let links = AnsweringLinks::find(&network, &desired);
            assert_eq!((!links.with_carrier().is_empty(), links.cannot_answer()), (expected, !expected), "{text}");
        }
    }
}
