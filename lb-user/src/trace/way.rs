//! The way of a packet of a client outside to its backend, as the programs decide it from the kernel's route. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::{Device, DeviceFlags, SlowPath};
use lb_kernel::netlink::route::FoundRoute;

/// Facts about the way of one packet.
pub(crate) struct Way<'a> {
    /// The client, which may be its own backend (hairpin).
    pub(crate) client: IpAddr,
    pub(crate) backend: IpAddr,
    /// True if `nodeName` says that the backend is on this node.
    pub(crate) on_node: bool,
    /// True if the traffic policy of the frontend is Local.
    pub(crate) is_local: bool,
    /// Index of the device by which the packet enters.
    pub(crate) entered_by: u32,
    /// The kernel's route to the backend, or the reason for none.
    pub(crate) route: Result<FoundRoute, String>,
    /// The route to the backend of a packet of this node, with its source.
    pub(crate) own: Option<FoundRoute>,
    /// Entries of `DEVICES`.
    pub(crate) devices: &'a BTreeMap<u32, Device>,
    /// Names of devices by index.
    pub(crate) names: &'a BTreeMap<u32, String>,
}

impl Way<'_> {
    /// Describes the way as a line of the trace.
    pub(crate) fn text(&self) -> String {
        format!("  way        to {}: {}\n", self.backend, self.describe())
    }

    fn describe(&self) -> String {
        const KEPT: &str = "the kernel's routing, with the client's address";
        let entered_by = self.devices.get(&self.entered_by).map_or(0, |device| device.flags);
        let always = entered_by & DeviceFlags::MASQUERADE != 0 && !self.is_local;
        let may_be_marked = !self.on_node && entered_by & DeviceFlags::MARKS != 0;
        let route = match &self.route {
            Ok(route) if route.is_local => return format!("{KEPT}: the backend is this node"),
            Ok(route) if route.encapsulates && !self.on_node => return self.slow(route.device, SlowPath::Encap),
            Ok(route) => route,
            Err(_) if self.on_node && always => return self.slow(self.entered_by, SlowPath::Policy),
            Err(_) if self.on_node => return format!("{KEPT}: the backend is on this node"),
            Err(_) if may_be_marked => return self.slow(self.entered_by, SlowPath::Marks),
            Err(reason) => return format!("none, and the packet is dropped: {reason}"),
        };
        let name = self.name(route.device);
        let Some(device) = self.devices.get(&route.device) else {
            return match self.on_node {
                true if always => self.slow(route.device, SlowPath::Policy),
                true => format!("{KEPT}, by {name}"),
                false => format!("none, and the packet is dropped: {name} has no entry in DEVICES"),
            };
        };
        let is_hairpin = self.client == self.backend;
        let passes_answers = device.flags & (DeviceFlags::POD | DeviceFlags::NO_PROGRAMS) != 0;
        let is_behind_node = self.on_node
            && route.device != self.entered_by
            && (device.flags & DeviceFlags::BRIDGE != 0 || self.is_local);
        if !is_hairpin && (passes_answers || is_behind_node) {
            if always {
                return self.slow(route.device, SlowPath::Policy);
            }
            return format!("{KEPT}, by {name}");
        }
        let enters_bare = (entered_by & DeviceFlags::NO_ETHERNET != 0).then_some(SlowPath::NoEthernet);
        if let Some(reason) = SlowPath::of_device(device.flags).or(enters_bare) {
            return self.slow(route.device, reason);
        }
        let usual = if self.backend.is_ipv4() { device.snat_v4 } else { device.snat_v6 };
        let of_route =
            self.own.filter(|own| own.device == route.device && device.flags & DeviceFlags::SEVERAL_SOURCES != 0);
        let source = of_route.and_then(|own| own.source).unwrap_or_else(|| usual.to_ip());
        if source.is_unspecified() {
            return format!("none, and the packet is dropped: {name} has no source address for it");
        }
        format!("a redirect to {name}, masqueraded as {source}")
    }

    fn slow(&self, device: u32, reason: SlowPath) -> String {
        let why = match reason {
            SlowPath::NoEthernet => "a device without an Ethernet header",
            SlowPath::Ipsec => "IPsec policies",
            SlowPath::Marks => "rules that choose routes by marks or traffic classes",
            SlowPath::Encap => "a route that encapsulates",
            SlowPath::Fragmented => "it is above the MTU",
            SlowPath::Policy => "--masquerade always",
        };
        let name = self.name(device);
        format!("the slow path by {name}: the kernel forwards, and netfilter masquerades ({why})")
    }

    fn name(&self, device: u32) -> String {
        self.names.get(&device).cloned().unwrap_or_else(|| format!("device {device}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::Addr;

    const ETH0: u32 = 2;
    const OTHER: u32 = 3;

    fn check(flags: [u32; 2], on_node: bool, route: Result<FoundRoute, String>, expected: &str) {
        let own: IpAddr = [192, 0, 2, 1].into();
        let device = |flags| Device { flags, snat_v4: Addr::from(own), ..Device::default() };
        let devices = BTreeMap::from([(ETH0, device(flags[0])), (OTHER, device(flags[1]))]);
        let names = BTreeMap::from([(ETH0, "eth0".to_owned()), (OTHER, "other".to_owned())]);
        let way = Way {
            client: [198, 51, 100, 9].into(),
            backend: [10, 0, 0, 1].into(),
            on_node,
            is_local: false,
            entered_by: ETH0,
            route,
            own: Some(FoundRoute { source: Some([10, 0, 0, 5].into()), ..by(OTHER).expect("a route") }),
            devices: &devices,
            names: &names,
        };
        assert_eq!(way.text(), format!("  way        to 10.0.0.1: {expected}\n"));
    }

    fn by(device: u32) -> Result<FoundRoute, String> {
        Ok(FoundRoute { device, is_local: false, encapsulates: false, source: None })
    }

    #[test]
    fn a_way_is_named_with_its_reason() {
        let kept = "the kernel's routing, with the client's address";
        let slow = "the slow path by other: the kernel forwards, and netfilter masquerades";
        check([0, 0], false, by(OTHER), "a redirect to other, masqueraded as 192.0.2.1");
        let several = DeviceFlags::SEVERAL_SOURCES;
        check([0, several], false, by(OTHER), "a redirect to other, masqueraded as 10.0.0.5");
        check([several, several], false, by(ETH0), "a redirect to eth0, masqueraded as 192.0.2.1");
        check([0, DeviceFlags::POD], false, by(OTHER), &format!("{kept}, by other"));
        let always = format!("{slow} (--masquerade always)");
        check([DeviceFlags::MASQUERADE, DeviceFlags::POD], false, by(OTHER), &always);
        check([DeviceFlags::MASQUERADE, DeviceFlags::BRIDGE], true, by(OTHER), &always);
        check([0, 0], true, by(OTHER), "a redirect to other, masqueraded as 192.0.2.1");
        check([0, DeviceFlags::BRIDGE], true, by(OTHER), &format!("{kept}, by other"));
        let local = Ok(FoundRoute { device: 1, is_local: true, encapsulates: false, source: None });
        check([0, 0], false, local, &format!("{kept}: the backend is this node"));
        let bare = DeviceFlags::NO_ETHERNET;
        let no_ethernet = format!("{slow} (a device without an Ethernet header)");
        check([0, bare], false, by(OTHER), &no_ethernet);
        check([bare, 0], false, by(OTHER), &no_ethernet);
        check([0, DeviceFlags::IPSEC], false, by(OTHER), &format!("{slow} (IPsec policies)"));
        let marks = "rules that choose routes by marks or traffic classes";
        check([0, DeviceFlags::MARKS], false, by(OTHER), &format!("{slow} ({marks})"));
        let encap = Ok(FoundRoute { device: OTHER, is_local: false, encapsulates: true, source: None });
        check([0, 0], false, encap, &format!("{slow} (a route that encapsulates)"));
        let none = || Err("no route".to_owned());
        check([0, 0], false, none(), "none, and the packet is dropped: no route");
        check([0, 0], true, none(), &format!("{kept}: the backend is on this node"));
        let by_mark = slow.replace("other", "eth0");
        check([DeviceFlags::MARKS, 0], false, none(), &format!("{by_mark} ({marks})"));
    }
}
