//! Network devices in the words of people.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{Addr, Device, DeviceFlags};
use serde::Serialize;

use lb_dataplane::attach::tc::{self, Attachment};

/// A network device that packets of Services come in by or go out by.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceRow {
    /// Its name in the network namespace that asks; none where it is not there.
    pub device: Option<String>,
    /// By which the kernel knows it.
    pub index: u32,
    /// How the programs are attached to it; none where they are not.
    pub attached: Option<&'static str>,
    /// Which of them are not, where only some are.
    pub missing: Vec<&'static str>,
    /// `uplink`; `pod`; `off` of a pod that has chosen so, where only flows that stand go on; none for one without programs, by which packets may leave all the same.
    pub role: Option<&'static str>,
    /// The source of IPv4 packets that go out here on behalf of others.
    pub snat_v4: Option<IpAddr>,
    /// The same for IPv6.
    pub snat_v6: Option<IpAddr>,
    /// The largest packet.
    pub mtu: u32,
    /// Whether flows between this one and another such device go past the kernel's own routing.
    pub host_routing: bool,
    /// Whether packets begin with an Ethernet header.
    pub ethernet: bool,
}

/// All devices, by index.
#[must_use]
pub fn devices(
    entries: &BTreeMap<u32, Device>,
    attached: &BTreeMap<u32, Attachment>,
    name_of: impl Fn(u32) -> Option<String>,
) -> Vec<DeviceRow> {
    let known = |addr: Addr| (!addr.is_unspecified()).then(|| addr.to_ip());
    let row = |index: &u32| {
        let (device, has) = (entries.get(index).copied().unwrap_or_default(), attached.get(index));
        let missing = |has: &Attachment| {
            let both = tc::PROGRAMS.iter().zip(has.programs);
            both.filter(|(_, program)| program.is_none()).map(|((_, name), _)| *name).collect()
        };
        let role = match device.flags & (DeviceFlags::POD | DeviceFlags::OFF) {
            0 => "uplink",
            DeviceFlags::POD => "pod",
            _ => "off",
        };
        DeviceRow {
            device: name_of(*index),
            index: *index,
            attached: has.map(|has| has.method.name()),
            missing: has.map(missing).unwrap_or_default(),
            role: has.map(|_| role),
            snat_v4: known(device.snat_v4),
            snat_v6: known(device.snat_v6),
            mtu: device.mtu,
            host_routing: device.flags & DeviceFlags::HOST_ROUTING != 0,
            ethernet: device.flags & DeviceFlags::NO_ETHERNET == 0,
        }
    };
    entries.keys().chain(attached.keys()).collect::<BTreeSet<_>>().into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_dataplane::attach::tc::AttachMethod;

    #[test]
    fn devices_with_and_without_programs_are_told() {
        let addr = |text: &str| text.parse::<IpAddr>().expect("an address").into();
        let device = |flags| Device { snat_v4: addr("192.0.2.5"), snat_v6: Addr::default(), flags, mtu: 1500 };
        let entries = [
            (2, device(0)),
            (3, device(DeviceFlags::POD | DeviceFlags::NO_ETHERNET)),
            (4, device(DeviceFlags::HOST_ROUTING)),
        ]
        .into();
        let attached = [
            (2, Attachment { method: AttachMethod::Tcx, programs: [Some(1), Some(2)] }),
            (3, Attachment { method: AttachMethod::Clsact, programs: [Some(1), None] }),
        ]
        .into();
        let rows = devices(&entries, &attached, |index| (index != 4).then(|| format!("dev{index}")));
        let told: Vec<_> = rows.iter().map(|row| (row.index, row.attached, row.role, row.ethernet)).collect();
        let wanted =
            [(2, Some("tcx"), Some("uplink"), true), (3, Some("clsact"), Some("pod"), false), (4, None, None, true)];
        assert_eq!(told, wanted);
        assert_eq!(rows.iter().map(|row| row.host_routing).collect::<Vec<_>>(), [false, false, true]);
        let [first, second, third] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!((first.snat_v4, first.snat_v6), (Some(IpAddr::from([192, 0, 2, 5])), None));
        assert_eq!((first.missing.len(), second.missing.as_slice()), (0, ["tc_egress"].as_slice()));
        assert_eq!((first.device.as_deref(), &third.device), (Some("dev2"), &None));
    }
}
