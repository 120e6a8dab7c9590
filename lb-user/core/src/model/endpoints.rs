//! The endpoints that a Service has, and addresses that cannot be backends. The choice among endpoints is made in
//! `topology`.
//!
//! EndpointSlices count, all of them. An Endpoints object counts exactly when Kubernetes' mirroring controller would
//! make slices of it and has not: the result equals that of kube-proxy beside that controller, and is right where the
//! controller does not run (pkg/controller/endpointslicemirroring).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use crate::{
    objects::{EndpointGroup, Key, Selector, SliceManager},
    world::View,
};

/// The object of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum EndpointOrigin<'a> {
    /// An EndpointSlice.
    Slice(&'a Key),
    /// An Endpoints object.
    Endpoints(&'a Key),
}

impl fmt::Display for EndpointOrigin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slice(key) => write!(f, "EndpointSlice {key}"),
            Self::Endpoints(key) => write!(f, "Endpoints {key}"),
        }
    }
}

/// The effect of an Endpoints object beside the slices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Effect {
    /// The endpoints of the object count.
    Counts,
    /// The object's own label or annotation keeps the mirroring controller off.
    NotMirrored,
    /// The Service has a selector, so that a controller writes its slices.
    HasSelector,
    /// The mirroring controller has made slices of it.
    Mirrored,
}

impl Effect {
    /// Returns the reason why the object does not count; none if it does.
    pub(super) const fn reason(self) -> Option<&'static str> {
        match self {
            Self::Counts => None,
            Self::NotMirrored => Some("a label or annotation of it says that no slices shall be made of it"),
            Self::HasSelector => Some("the Service has a selector, and a controller writes its EndpointSlices"),
            Self::Mirrored => Some("EndpointSlices that were made of it stand in its place"),
        }
    }
}

/// Returns the effect of the Service's Endpoints object, if there is one.
pub(super) fn effect(view: &View<'_>) -> Option<Effect> {
    let object = view.endpoints?;
    Some(if !object.mirrorable {
        Effect::NotMirrored
    } else if view.service.selector != Selector::None {
        Effect::HasSelector
    } else if view.slices.iter().any(|slice| slice.manager == SliceManager::Mirroring) {
        Effect::Mirrored
    } else {
        Effect::Counts
    })
}

/// The author of endpoints.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Author {
    /// Kubernetes' controller, by the Service's selector: they are pods of the Service's namespace.
    Selector,
    /// A user or another controller with the right to write such objects.
    Hand,
}

/// Lists the groups of endpoints that count, in a stable order.
pub(super) fn effective<'a>(
    view: &View<'a>,
) -> impl Iterator<Item = (Author, EndpointOrigin<'a>, &'a EndpointGroup)> + use<'a> {
    let has_selector = view.service.selector == Selector::Some;
    // The controller corrects slices with its label, but not those of a Service without selector.
    let author = move |manager| match manager {
        SliceManager::Selecting if has_selector => Author::Selector,
        _ => Author::Hand,
    };
    let object = view.endpoints.filter(|_| effect(view) == Some(Effect::Counts));
    let groups = object.into_iter().flat_map(|object| {
        object.groups.iter().map(|group| (Author::Hand, EndpointOrigin::Endpoints(&object.key), group))
    });
    let slices = view.slices.iter();
    slices.map(move |slice| (author(slice.manager), EndpointOrigin::Slice(&slice.key), &slice.group)).chain(groups)
}

/// Returns the kind of an address that can be neither backend nor frontend, with its article; none for other addresses.
/// The API refuses such endpoints; files are not validated.
pub(super) fn unusable(addr: &IpAddr) -> Option<&'static str> {
    let (loopback, unspecified, multicast) = (addr.is_loopback(), addr.is_unspecified(), addr.is_multicast());
    let (link_local, broadcast) = match addr.to_canonical() {
        IpAddr::V4(addr) => (addr.is_link_local(), addr == Ipv4Addr::BROADCAST),
        IpAddr::V6(addr) => (addr.is_unicast_link_local(), false),
    };
    if loopback {
        Some("a loopback")
    } else if unspecified {
        Some("an unspecified")
    } else if multicast {
        Some("a multicast")
    } else if link_local {
        Some("a link-local")
    } else if broadcast {
        Some("a broadcast")
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
            ("127.0.0.1", Some("a loopback")),
            ("::1", Some("a loopback")),
            ("0.0.0.0", Some("an unspecified")),
            ("::", Some("an unspecified")),
            ("224.0.0.1", Some("a multicast")),
            ("ff02::1", Some("a multicast")),
            ("169.254.1.1", Some("a link-local")),
            ("fe80::1", Some("a link-local")),
            ("255.255.255.255", Some("a broadcast")),
            ("10.0.0.1", None),
            ("fd00::1", None),
            ("192.0.2.42", None),
        ];
        for (text, expected) in cases {
            assert_eq!(unusable(&text.parse().expect("an address")), expected, "{text}");
        }
    }
}
