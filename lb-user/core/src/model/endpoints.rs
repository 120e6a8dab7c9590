//! Which endpoints a Service has, and which of them no backend can be made of. Choosing among them is topology's work.
//!
//! EndpointSlices count, all of them. An Endpoints object counts exactly when Kubernetes' mirroring controller would make
//! slices of it and has not: then the result equals that of kube-proxy beside that controller, and it is right where the
//! controller does not run (pkg/controller/endpointslicemirroring).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use crate::{
    objects::{EndpointGroup, Key, Manager, Selector},
    world::View,
};

/// The object that an endpoint stands in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin<'a> {
    /// This EndpointSlice.
    Slice(&'a Key),
    /// This Endpoints object.
    Endpoints(&'a Key),
}

impl fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slice(key) => write!(f, "EndpointSlice {key}"),
            Self::Endpoints(key) => write!(f, "Endpoints {key}"),
        }
    }
}

/// Whether an Endpoints object counts beside the slices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// It does.
    Counts,
    /// Its own label or annotation keeps the mirroring controller off.
    NotMirrored,
    /// The Service has a selector, so that a controller writes its slices.
    HasSelector,
    /// The mirroring controller has made slices of it.
    Mirrored,
}

impl Effect {
    /// Why it does not count.
    #[must_use]
    pub const fn reason(self) -> Option<&'static str> {
        match self {
            Self::Counts => None,
            Self::NotMirrored => Some("a label or annotation of it says that no slices shall be made of it"),
            Self::HasSelector => Some("the Service has a selector, and a controller writes its EndpointSlices"),
            Self::Mirrored => Some("EndpointSlices that were made of it stand in its place"),
        }
    }
}

/// What the Endpoints object of a Service is good for, if there is one.
#[must_use]
pub fn effect(view: &View<'_>) -> Option<Effect> {
    let object = view.endpoints?;
    Some(if !object.mirrorable {
        Effect::NotMirrored
    } else if view.service.selector != Selector::None {
        Effect::HasSelector
    } else if view.slices.iter().any(|slice| slice.manager == Manager::Mirroring) {
        Effect::Mirrored
    } else {
        Effect::Counts
    })
}

/// Who has found out what endpoints there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    /// Kubernetes' controller, by the Service's selector: they are pods of the Service's namespace.
    BySelector,
    /// Whoever may write such objects.
    ByHand,
}

/// The groups of endpoints that count, in a stable order.
pub fn effective<'a>(view: &View<'a>) -> impl Iterator<Item = (Written, Origin<'a>, &'a EndpointGroup)> + use<'a> {
    let has_selector = view.service.selector == Selector::Some;
    // The controller mends slices that have its label, but not those of a Service without selector.
    let written = move |manager| match manager {
        Manager::Selecting if has_selector => Written::BySelector,
        _ => Written::ByHand,
    };
    let own = view.endpoints.filter(|_| effect(view) == Some(Effect::Counts));
    let own = own
        .into_iter()
        .flat_map(|object| object.groups.iter().map(|group| (Written::ByHand, Origin::Endpoints(&object.key), group)));
    let slices = view.slices.iter();
    slices.map(move |slice| (written(slice.manager), Origin::Slice(&slice.key), &slice.group)).chain(own)
}

/// Why no traffic may be sent to, or dialled at, an address: what address it is, with an article. The API refuses these; files were checked by nobody.
#[must_use]
pub fn unusable(addr: &IpAddr) -> Option<&'static str> {
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
