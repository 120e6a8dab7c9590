//! What clients dial.

use crate::{
    Addr, Proto,
    mix::{folded, hash},
};

/// Key of `FRONTENDS`: what clients dial.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FrontendKey {
    /// The address dialled.
    pub addr: Addr,
    /// The port dialled, host order.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
    /// Zero.
    pub _pad: u8,
}

impl FrontendKey {
    /// The key for `addr`:`port` of `proto`.
    #[inline(always)]
    #[must_use]
    pub const fn new(addr: Addr, port: u16, proto: Proto) -> Self {
        Self { addr, port, proto: proto as u8, _pad: 0 }
    }

    /// The key under which a cluster IP itself stands, whatever the port: see [`Kind::Address`].
    #[inline(always)]
    #[must_use]
    pub const fn address(&self) -> Self {
        Self { addr: self.addr, port: 0, proto: 0, _pad: 0 }
    }

    /// The key under which a NodePort of the same number stands.
    #[inline(always)]
    #[must_use]
    pub const fn node_port(&self) -> Self {
        Self { addr: self.addr.unspecified(), port: self.port, proto: self.proto, _pad: 0 }
    }

    /// Its bit of `FRONTEND_BITS`: the word, and the bit in it. It is that of the port, or, for what stands for all ports, one
    /// of the address. A bit that is not set says that `FRONTENDS` has no such key, which spares most sockets and packets the
    /// look-ups, since no Service is about them; one that is set says nothing.
    #[inline(always)]
    #[must_use]
    pub const fn bit(&self) -> (u32, u64) {
        let bit = if self.port == 0 { 1 << 16 | hash(folded(&self.addr), 0) >> 16 } else { self.port as u32 };
        (bit / 64, 1 << (bit % 64))
    }
}

impl core::fmt::Display for FrontendKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if *self == self.address() {
            return write!(f, "{} any port", self.addr);
        }
        let proto = Proto::from_number(self.proto.into()).map_or("?", Proto::name);
        if self.addr.is_v4() {
            write!(f, "{}:{}/{proto}", self.addr, self.port)
        } else {
            write!(f, "[{}]:{}/{proto}", self.addr, self.port)
        }
    }
}

/// Value of `FRONTENDS`: the service port that answers.
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

/// The made-up next layout has a larger one.
pub(super) const FRONTEND_PAD: usize = if cfg!(feature = "next-layout") { 7 } else { 3 };

impl Frontend {
    /// A frontend of `kind` for the service port `service`.
    #[must_use]
    pub const fn new(service: u32, kind: Kind) -> Self {
        Self { service, kind: kind as u8, _pad: [0; FRONTEND_PAD] }
    }
}

/// What created a frontend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Kind {
    /// An entry of `spec.clusterIPs`.
    ClusterIp = 1,
    /// An entry of `spec.externalIPs`.
    ExternalIp = 2,
    /// An entry of `status.loadBalancer.ingress`.
    LoadBalancer = 3,
    /// `spec.ports[].nodePort`: it stands under the unspecified address, and answers at the node's own addresses.
    NodePort = 4,
    /// An entry of `spec.clusterIPs` itself, with port 0 and protocol 0: what comes for a port that no Service has there is
    /// rejected, and not sent on to nowhere (kube-proxy, pkg/proxy/nftables/README.md). It answers nothing.
    Address = 5,
}

impl Kind {
    /// The kind behind a stored number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::ClusterIp),
            2 => Some(Self::ExternalIp),
            3 => Some(Self::LoadBalancer),
            4 => Some(Self::NodePort),
            5 => Some(Self::Address),
            _ => None,
        }
    }

    /// The name that people know it by.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::ExternalIp => "ExternalIP",
            Self::LoadBalancer => "LoadBalancer",
            Self::NodePort => "NodePort",
            Self::Address => "Address",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity;
    use proptest::prelude::*;

    proptest! {
        /// A look-up asks for the bit of what was dialled, and means a NodePort as well.
        #[test]
        fn a_frontend_has_one_bit_of_the_map_and_shares_it_with_a_node_port(octets in any::<[u8; 16]>(), port in any::<u16>()) {
            let key = FrontendKey::new(Addr { octets }, port, Proto::Tcp);
            for key in [key, key.address(), key.node_port()] {
                let (word, bit) = key.bit();
                prop_assert!((word as usize) < capacity::FRONTEND_BITS && bit.count_ones() == 1);
            }
            prop_assert!(port == 0 || key.bit() == key.node_port().bit());
            prop_assert_ne!(FrontendKey { port: 1, ..key }.bit(), key.address().bit());
        }
    }
}
