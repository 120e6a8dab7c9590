//! The choice of the events that are shown.

use ipnet::IpNet;
use lb_core::objects::Key;

use super::{WatchClient, WatchEvent};

/// Conditions on events. An event is shown if it meets every condition that is set.
#[derive(Clone, Default, Debug)]
pub struct WatchFilter {
    /// The Service.
    pub service: Option<Key>,
    /// Namespace of the Service or of the client's pod.
    pub namespace: Option<String>,
    /// The client's pod.
    pub pod: Option<Key>,
    /// Refused by Beeline.
    pub refused: bool,
    /// Refused, or without a connection.
    pub failed: bool,
    /// Address of a client outside.
    pub from: Option<IpNet>,
}

impl WatchFilter {
    /// True if the event is shown.
    #[must_use]
    pub fn shows(&self, event: &WatchEvent) -> bool {
        let service = event.port.as_ref().map(|port| (port.namespace.as_str(), port.service.as_str()));
        let pod = match &event.client {
            WatchClient::Pod(namespace, name) => Some((namespace.as_str(), name.as_str())),
            _ => None,
        };
        let is = |found: Option<(&str, &str)>, wanted: &Option<Key>| {
            wanted.as_ref().is_none_or(|wanted| found == Some((wanted.namespace(), wanted.name())))
        };
        let is_in_namespace = self
            .namespace
            .as_deref()
            .is_none_or(|wanted| [service, pod].into_iter().flatten().any(|(namespace, _)| namespace == wanted));
        let is_from = self.from.is_none_or(|from| event.from.is_some_and(|address| from.contains(&address)));
        is(service, &self.service)
            && is(pod, &self.pod)
            && is_in_namespace
            && is_from
            && (!self.refused || event.refused.is_some())
            && (!self.failed || event.is_failed())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lb_common::Counter;

    use super::*;
    use crate::watch::{Handshake, PortName};

    fn event(service: Option<&str>, client: WatchClient) -> WatchEvent {
        let port = service.map(|name| PortName {
            namespace: "default".to_owned(),
            service: name.to_owned(),
            port: String::new(),
            scheduler: "rr",
        });
        let dialled = "10.96.0.1:80".parse().expect("an address");
        WatchEvent {
            time: String::new(),
            client,
            from: None,
            process: None,
            cgroup: None,
            dialled,
            protocol: "tcp".to_owned(),
            port,
            backend: None,
            reason: None,
            refused: None,
            errno: 0,
            handshake: None,
            is_first: true,
        }
    }

    #[test]
    fn every_condition_that_is_set_must_hold() {
        let name = |text: &str| text.split_once('/').map(|(namespace, name)| Key::new(namespace, name));
        let web = event(Some("web"), WatchClient::Pod("shop".to_owned(), "cart".to_owned()));
        let unknown = WatchEvent { refused: Some(Counter::UnknownPort), ..event(None, WatchClient::Node) };
        let handshake = |state| Some((state, Duration::ZERO, 1));
        let reset = WatchEvent { handshake: handshake(Handshake::Refused), ..web.clone() };
        let open = WatchEvent { handshake: handshake(Handshake::Established), ..web.clone() };
        let pending = WatchEvent { handshake: handshake(Handshake::Pending), ..web.clone() };
        let outside = WatchEvent { from: "192.0.2.7".parse().ok(), ..web.clone() };
        let none = WatchFilter::default;
        let from = |net: &str| WatchFilter { from: net.parse().ok(), ..none() };
        for (filter, event, shown) in [
            (none(), &web, true),
            (none(), &unknown, true),
            (WatchFilter { service: name("default/web"), ..none() }, &web, true),
            (WatchFilter { service: name("shop/web"), ..none() }, &web, false),
            (WatchFilter { service: name("default/web"), ..none() }, &unknown, false),
            (WatchFilter { namespace: Some("default".to_owned()), ..none() }, &web, true),
            (WatchFilter { namespace: Some("shop".to_owned()), ..none() }, &web, true),
            (WatchFilter { namespace: Some("cart".to_owned()), ..none() }, &web, false),
            (WatchFilter { pod: name("shop/cart"), ..none() }, &web, true),
            (WatchFilter { pod: name("shop/cart"), ..none() }, &unknown, false),
            (WatchFilter { refused: true, ..none() }, &unknown, true),
            (WatchFilter { refused: true, ..none() }, &reset, false),
            (WatchFilter { failed: true, ..none() }, &unknown, true),
            (WatchFilter { failed: true, ..none() }, &reset, true),
            (WatchFilter { failed: true, ..none() }, &open, false),
            (WatchFilter { failed: true, ..none() }, &pending, false),
            (WatchFilter { failed: true, service: name("a/b"), ..none() }, &reset, false),
            (from("192.0.2.0/24"), &outside, true),
            (from("198.51.100.0/24"), &outside, false),
            (from("192.0.2.0/24"), &web, false),
        ] {
            assert_eq!(filter.shows(event), shown, "{filter:?} {event:?}");
        }
    }
}
