//! Links, addresses and routes of one namespace, collected and then made as one batch of ip(8).
//!
//! A node is a [`LabNamespace`] with links; a link is one end of a veth pair, a bridge, or a port of one. Another kind
//! of link (VLAN, VXLAN, tun, bond) is a variant of `Kind` and a constructor of [`LinkSpec`].

use std::fmt::Write as _;

use crate::netns::LabNamespace;

/// A link to make. It comes up at once.
#[derive(Clone, Debug)]
pub struct LinkSpec {
    kind: Kind,
    mtu: Option<u32>,
    mac: Option<&'static str>,
    master: Option<String>,
}

#[derive(Clone, Debug)]
enum Kind {
    Bridge,
    /// Name of the peer, and the path of its namespace if it is another.
    Veth(String, Option<String>),
}

impl LinkSpec {
    /// A bridge without multicast snooping.
    pub fn bridge() -> Self {
        Self::new(Kind::Bridge)
    }

    /// A veth pair. The peer, which stays down, is in the same namespace.
    pub fn veth(peer: &str) -> Self {
        Self::new(Kind::Veth(peer.to_owned(), None))
    }

    /// A veth pair. The peer, which stays down, is in another namespace.
    pub fn veth_to(namespace: &LabNamespace, peer: &str) -> Self {
        Self::new(Kind::Veth(peer.to_owned(), Some(namespace.path())))
    }

    fn new(kind: Kind) -> Self {
        Self { kind, mtu: None, mac: None, master: None }
    }

    /// The MTU, of the peer too.
    pub fn mtu(self, mtu: u32) -> Self {
        Self { mtu: Some(mtu), ..self }
    }

    /// The link address, as in `02:00:00:00:00:01`.
    pub fn mac(self, mac: &'static str) -> Self {
        Self { mac: Some(mac), ..self }
    }

    /// Makes the link a port of a bridge in the same namespace.
    pub fn port_of(self, bridge: &str) -> Self {
        Self { master: Some(bridge.to_owned()), ..self }
    }
}

/// Changes of a namespace's network that [`Setup::apply`] makes.
#[must_use]
pub struct Setup<'a> {
    namespace: &'a LabNamespace,
    lines: String,
}

impl LabNamespace {
    /// Begins a set of changes.
    pub fn setup(&self) -> Setup<'_> {
        Setup { namespace: self, lines: String::new() }
    }
}

impl Setup<'_> {
    /// Adds another command of ip(8).
    pub fn ip(mut self, command: &str) -> Self {
        self.lines += command;
        self.lines.push('\n');
        self
    }

    /// Brings a link up.
    pub fn up(self, link: &str) -> Self {
        self.ip(&format!("link set {link} up"))
    }

    /// Makes a link and brings it up.
    pub fn link(self, name: &str, link: &LinkSpec) -> Self {
        let LinkSpec { kind, mtu, mac, master } = link;
        let mtu = mtu.map_or_else(String::new, |mtu| format!(" mtu {mtu}"));
        let mut command = format!("link add {name}{mtu}");
        if let Some(mac) = mac {
            _ = write!(command, " address {mac}");
        }
        match kind {
            Kind::Bridge => command += " type bridge mcast_snooping 0",
            Kind::Veth(peer, None) => _ = write!(command, " type veth peer name {peer}{mtu}"),
            Kind::Veth(peer, Some(path)) => _ = write!(command, " type veth peer name {peer}{mtu} netns {path}"),
        }
        let setup = self.ip(&command);
        let setup = match master {
            Some(bridge) => setup.ip(&format!("link set {name} master {bridge}")),
            None => setup,
        };
        setup.up(name)
    }

    /// Gives a link an address with its prefix, as in `10.0.0.1/24`; IPv6 ones without duplicate address detection, so
    /// that they can be used at once.
    pub fn address(self, link: &str, address: &str) -> Self {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        self.ip(&format!("address add {address} dev {link}{nodad}"))
    }

    /// Adds a route, as in `default via 10.0.0.1`.
    pub fn route(self, route: &str) -> Self {
        self.ip(&format!("route add {route}"))
    }

    /// Runs all commands.
    pub fn apply(self) {
        self.namespace.ip(&self.lines);
    }
}
