//! Multicast groups of announced IPv6 addresses: a neighbour solicitation goes to the group of its target, which
//! network cards filter, and switches that follow MLD. Sockets hold the memberships, so that the kernel reports them,
//! and leaves the groups when the agent ends: nothing answers then for longer than the deadline.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv6Addr, UdpSocket},
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Most memberships of a socket: the kernel limits their memory (`net.core.optmem_max`).
const MAX_GROUPS: usize = 64;

/// A group at a device.
type Group = (u32, Ipv6Addr);

/// Memberships of groups.
#[derive(Default)]
pub(super) struct Groups {
    sockets: Vec<(UdpSocket, BTreeSet<Group>)>,
    /// Groups that could not be joined.
    failed: BTreeSet<Group>,
}

impl Groups {
    /// Joins the groups of addresses at devices, and leaves the others. Failures are logged once.
    pub(super) fn update(&mut self, addresses: &BTreeSet<IpAddr>, indexes: impl Iterator<Item = u32>) {
        let wanted = groups(addresses, indexes);
        for (socket, joined) in &mut self.sockets {
            joined.retain(|group| {
                let stays = wanted.contains(group);
                if !stays {
                    // The device may be gone, and its memberships with it.
                    let _left = socket.leave_multicast_v6(&group.1, group.0);
                }
                stays
            });
        }
        self.sockets.retain(|(_, joined)| !joined.is_empty());
        let joined: BTreeSet<Group> = self.sockets.iter().flat_map(|(_, joined)| joined.iter().copied()).collect();
        let failed: BTreeMap<Group, io::Error> =
            wanted.difference(&joined).filter_map(|group| Some((*group, self.join(*group).err()?))).collect();
        for ((index, group), error) in failed.iter().filter(|(group, _)| !self.failed.contains(group)) {
            tracing::warn!(
                %group,
                device = index,
                "neighbour solicitations for an announced address may not reach this node: joining its group: {error}; \
                 is IPv6 disabled at the device?"
            );
        }
        self.failed = failed.into_keys().collect();
    }

    fn join(&mut self, group: Group) -> io::Result<()> {
        let with_room = self.sockets.iter_mut().find(|(_, joined)| joined.len() < MAX_GROUPS);
        if let Some((socket, joined)) = with_room {
            socket.join_multicast_v6(&group.1, group.0)?;
            joined.insert(group);
            return Ok(());
        }
        // Unbound: it receives nothing.
        let socket = socket_with(AddressFamily::INET6, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        let socket = UdpSocket::from(socket);
        socket.join_multicast_v6(&group.1, group.0)?;
        self.sockets.push((socket, BTreeSet::from([group])));
        Ok(())
    }
}

/// Returns the groups of the IPv6 addresses at each device.
fn groups(addresses: &BTreeSet<IpAddr>, indexes: impl Iterator<Item = u32>) -> BTreeSet<Group> {
    let of_address = |address: &IpAddr| match address {
        IpAddr::V6(ip) => Some(solicited_node(*ip)),
        IpAddr::V4(_) => None,
    };
    let all: BTreeSet<Ipv6Addr> = addresses.iter().filter_map(of_address).collect();
    indexes.flat_map(|index| all.iter().map(move |group| (index, *group))).collect()
}

/// Returns the solicited-node group of an address (RFC 4291, 2.7.1).
fn solicited_node(ip: Ipv6Addr) -> Ipv6Addr {
    let [.., high, low] = ip.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | high & 0xff, low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_equal_ends_share_a_group_at_each_device() {
        let addresses = ["2001:db8::12:3456", "fd00::12:3456", "2001:db8::ff12:3457", "192.0.2.7"];
        let addresses = addresses.map(|text| text.parse().expect("an address")).into();
        let texts: Vec<String> =
            groups(&addresses, [2, 5].into_iter()).iter().map(|(index, group)| format!("{group}@{index}")).collect();
        assert_eq!(texts, ["ff02::1:ff12:3456@2", "ff02::1:ff12:3457@2", "ff02::1:ff12:3456@5", "ff02::1:ff12:3457@5"]);
    }
}
