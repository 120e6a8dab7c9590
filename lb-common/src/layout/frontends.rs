//! Layout of `FRONTENDS`, and the bits of `FRONTEND_BITS`.

use crate::{
    Addr, Proto,
    hash::{fold, splitmix},
};

/// Key of `FRONTENDS`: the address, port and protocol that clients dial. With a block, a key of `PORT_RANGES`: see
/// [`FrontendKey::block`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FrontendKey {
    /// The address dialled.
    pub addr: Addr,
    /// The port dialled, host order.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
    /// 0 for a single port, as always in `FRONTENDS`. Otherwise a block of ports, for `PORT_RANGES`: 1 and the number
    /// of low bits of the port that differ within the block, and are 0 in `port`.
    pub block: u8,
}

impl FrontendKey {
    /// The key for `addr`:`port` of `proto`.
    #[inline(always)]
    #[must_use]
    pub const fn new(addr: Addr, port: u16, proto: Proto) -> Self {
        Self { addr, port, proto: proto as u8, block: 0 }
    }

    /// The key of a cluster IP itself, for all ports: see [`Kind::Address`].
    #[inline(always)]
    #[must_use]
    pub const fn address(&self) -> Self {
        Self { addr: self.addr, port: 0, proto: 0, block: 0 }
    }

    /// The key of an external address itself, for all ports: see [`Kind::ExternalAddress`]. Not that of a cluster IP,
    /// since a Service may name the cluster IP of another one as its external IP.
    #[inline(always)]
    #[must_use]
    pub const fn external_address(&self) -> Self {
        Self { addr: self.addr, port: 0, proto: u8::MAX, block: 0 }
    }

    /// True for the key of an address itself, for all ports. No service port has port 0.
    #[inline(always)]
    #[must_use]
    pub const fn is_address(&self) -> bool {
        self.port == 0
    }

    /// The key of the NodePort, or of the hostPort without hostIP, with the same port.
    #[inline(always)]
    #[must_use]
    pub const fn node_port(&self) -> Self {
        Self { addr: self.addr.unspecified(), port: self.port, proto: self.proto, block: 0 }
    }

    /// The first and the last port of the key.
    #[must_use]
    pub const fn ports(&self) -> (u16, u16) {
        let differ = if self.block == 0 { 0 } else { ((1_u32 << (self.block - 1)) - 1) as u16 };
        (self.port, self.port | differ)
    }

    /// True if a call to `dialled`, a single port, is one to a port of the key.
    #[must_use]
    pub fn covers(&self, dialled: &Self) -> bool {
        let (first, last) = self.ports();
        (self.addr, self.proto) == (dialled.addr, dialled.proto) && (first..=last).contains(&dialled.port)
    }

    /// The key's bit of `FRONTEND_BITS`: index of the word, and mask in it. The bit is that of the port; for a key of
    /// all ports or a block, a bit of the address. A clear bit means that `FRONTENDS` and `PORT_RANGES` have no such
    /// key, which spares most sockets and packets the look-ups, since their destination is no Service; a set bit means
    /// nothing.
    #[inline(always)]
    #[must_use]
    pub const fn bit(&self) -> (u32, u64) {
        let bit = if self.port == 0 || self.block != 0 {
            1 << 16 | splitmix(fold(&self.addr), 0) >> 16
        } else {
            self.port as u32
        };
        (bit / 64, 1 << (bit % 64))
    }
}

impl core::fmt::Display for FrontendKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if self.is_address() {
            return write!(f, "{} any port", self.addr);
        }
        let proto = Proto::from_number(self.proto.into()).map_or("?", Proto::name);
        if self.addr.is_v4() {
            write!(f, "{}:", self.addr)?;
        } else {
            write!(f, "[{}]:", self.addr)?;
        }
        match self.ports() {
            (first, last) if first == last => write!(f, "{first}/{proto}"),
            (first, last) => write!(f, "{first}-{last}/{proto}"),
        }
    }
}

/// Value of `FRONTENDS` and `PORT_RANGES`: the service port of a frontend.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frontend {
    /// Id of the service port; never 0.
    pub service: u32,
    /// A [`Kind`].
    pub kind: u8,
    /// Zero.
    pub _pad: [u8; FRONTEND_PAD],
}

/// The layout of `next-layout` has more padding.
pub(super) const FRONTEND_PAD: usize = if cfg!(feature = "next-layout") { 7 } else { 3 };

impl Frontend {
    /// The frontend of no service port.
    pub const NONE: Self = Self { service: 0, kind: 0, _pad: [0; FRONTEND_PAD] };

    /// A frontend of `kind` for the service port `service`.
    #[must_use]
    pub const fn new(service: u32, kind: Kind) -> Self {
        Self { service, kind: kind as u8, _pad: [0; FRONTEND_PAD] }
    }
}

/// The field of the Service that created a frontend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Kind {
    /// An entry of `spec.clusterIPs`.
    ClusterIp = 1,
    /// An entry of `spec.externalIPs`.
    ExternalIp = 2,
    /// An entry of `status.loadBalancer.ingress`.
    LoadBalancer = 3,
    /// `spec.ports[].nodePort`: keyed by the unspecified address, and served at the addresses in `NODE_ADDRS`.
    NodePort = 4,
    /// An entry of `spec.clusterIPs` itself, with port 0 and protocol 0. No service port: packets to a port that no
    /// Service has there are rejected instead of leaving the node (kube-proxy, pkg/proxy/nftables/README.md).
    Address = 5,
    /// An entry of `spec.externalIPs` or `status.loadBalancer.ingress` itself, with port 0 and protocol 255. No service
    /// port: the node refuses packets to a port that no Service has there, unless its routes lead them elsewhere.
    ExternalAddress = 6,
    /// As [`Kind::Address`], of a cluster IP that an interface of the node owns: its other ports belong to processes.
    OwnAddress = 7,
    /// A hostPort of a pod on this node: keyed by its hostIP, or by the unspecified address, and served at the
    /// addresses in `NODE_ADDRS`.
    HostPort = 8,
}

impl Kind {
    /// The kind of a stored number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::ClusterIp),
            2 => Some(Self::ExternalIp),
            3 => Some(Self::LoadBalancer),
            4 => Some(Self::NodePort),
            5 => Some(Self::Address),
            6 => Some(Self::ExternalAddress),
            7 => Some(Self::OwnAddress),
            8 => Some(Self::HostPort),
            _ => None,
        }
    }

    /// The name in output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::ExternalIp => "ExternalIP",
            Self::LoadBalancer => "LoadBalancer",
            Self::NodePort => "NodePort",
            Self::Address => "Address",
            Self::ExternalAddress => "ExternalAddress",
            Self::OwnAddress => "OwnAddress",
            Self::HostPort => "HostPort",
        }
    }

    /// True for an address itself, which clients do not dial.
    #[must_use]
    pub const fn is_address(self) -> bool {
        matches!(self, Self::Address | Self::ExternalAddress | Self::OwnAddress)
    }

    /// True for the addresses, NodePorts and hostPorts by which clients outside come.
    #[must_use]
    pub const fn is_external(self) -> bool {
        matches!(self, Self::ExternalIp | Self::LoadBalancer | Self::NodePort | Self::HostPort)
    }

    /// True for ports of the node itself, which are served at its own addresses only.
    #[must_use]
    pub const fn is_of_node(self) -> bool {
        matches!(self, Self::NodePort | Self::HostPort)
    }

    /// As [`Kind::is_of_node`], for the stored number of a frontend with a port, which no [`Kind::is_address`] has. One
    /// look at the bits of both.
    #[inline(always)]
    #[must_use]
    pub(crate) const fn is_port_of_node(number: u8) -> bool {
        number & (Self::NodePort as u8 | Self::HostPort as u8) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NodeAddr, NodeAddrFlags, capacity};
    use proptest::prelude::*;

    #[test]
    fn ports_of_the_node_are_known_by_the_bits_of_their_number() {
        for number in 0..=u8::MAX {
            let Some(kind) = Kind::from_number(number).filter(|kind| !kind.is_address()) else { continue };
            assert_eq!(Kind::is_port_of_node(number), kind.is_of_node(), "{}", kind.name());
            assert_eq!((kind as u8, kind.is_of_node() && !kind.is_external()), (number, false));
        }
        let left_out = NodeAddr { flags: NodeAddrFlags::HOST_ONLY | NodeAddrFlags::NO_NODE_PORTS };
        assert!(!left_out.serves(Kind::NodePort as u8) && left_out.serves(Kind::HostPort as u8));
        assert!(NodeAddr::default().serves(Kind::NodePort as u8));
    }

    proptest! {
        /// A look-up tests the bit of the destination only, and may find a NodePort.
        #[test]
        fn a_frontend_has_one_bit_of_the_map_and_shares_it_with_a_node_port(
            octets in any::<[u8; 16]>(),
            port in any::<u16>(),
        ) {
            let key = FrontendKey::new(Addr { octets }, port, Proto::Tcp);
            for key in [key, key.address(), key.external_address(), key.node_port()] {
                let (word, bit) = key.bit();
                prop_assert!((word as usize) < capacity::FRONTEND_BITS && bit.count_ones() == 1);
            }
            prop_assert_eq!(FrontendKey { block: 1, ..key }.bit(), key.address().bit());
            prop_assert!(port == 0 || key.bit() == key.node_port().bit());
            prop_assert_ne!(FrontendKey { port: 1, ..key }.bit(), key.address().bit());
            prop_assert_eq!(key.external_address().bit(), key.address().bit());
        }
    }
}
