//! Which endpoints a Service has, and which of them no backend can be made of. Choosing among them is topology's work.
//!
//! EndpointSlices count, all of them. An Endpoints object counts exactly when Kubernetes' mirroring controller would make
//! slices of it and has not: then the result equals that of kube-proxy beside that controller, and it is right where the
//! controller does not run (pkg/controller/endpointslicemirroring).

use std::net::{IpAddr, Ipv4Addr};

use crate::{
    objects::{EndpointGroup, Mirrored, Selector},
    world::View,
};

/// The groups of endpoints that count, in a stable order.
pub fn effective<'a>(view: &View<'a>) -> impl Iterator<Item = &'a EndpointGroup> + use<'a> {
    let own = if counts(view) { view.endpoints } else { None };
    view.slices.iter().map(|slice| &slice.group).chain(own.into_iter().flat_map(|object| &object.groups))
}

/// Whether the Service's Endpoints object counts beside its slices.
#[must_use]
pub fn counts(view: &View<'_>) -> bool {
    view.endpoints.is_some_and(|object| object.mirrorable)
        && view.service.selector == Selector::None
        && !view.slices.iter().any(|slice| slice.mirrored == Mirrored::Yes)
}

/// Why no traffic may be sent to, or dialled at, an address. The API refuses these; files were checked by nobody.
#[must_use]
pub fn unusable(addr: &IpAddr) -> Option<&'static str> {
    let (loopback, unspecified, multicast) = (addr.is_loopback(), addr.is_unspecified(), addr.is_multicast());
    let (link_local, broadcast) = match addr.to_canonical() {
        IpAddr::V4(addr) => (addr.is_link_local(), addr == Ipv4Addr::BROADCAST),
        IpAddr::V6(addr) => (addr.is_unicast_link_local(), false),
    };
    if loopback {
        Some("loopback")
    } else if unspecified {
        Some("unspecified")
    } else if multicast {
        Some("multicast")
    } else if link_local {
        Some("link-local")
    } else if broadcast {
        Some("broadcast")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_unusable() {
        let cases = [
            ("127.0.0.1", Some("loopback")),
            ("::1", Some("loopback")),
            ("0.0.0.0", Some("unspecified")),
            ("::", Some("unspecified")),
            ("224.0.0.1", Some("multicast")),
            ("ff02::1", Some("multicast")),
            ("169.254.1.1", Some("link-local")),
            ("fe80::1", Some("link-local")),
            ("255.255.255.255", Some("broadcast")),
            ("10.0.0.1", None),
            ("fd00::1", None),
            ("192.0.2.42", None),
        ];
        for (text, expected) in cases {
            assert_eq!(unusable(&text.parse().expect("an address")), expected, "{text}");
        }
    }
}
