//! Rows of network devices.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{Addr, Device, DeviceFlags};
use serde::Serialize;

use lb_dataplane::attach::tc::{self, Attachment};

/// A network device that receives or sends packets of Services.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceRow {
    /// Name in the network namespace of this process. `None` if the device is not there.
    pub device: Option<String>,
    /// Interface index.
    pub index: u32,
    /// Kind of the attachment, `tcx` or `clsact`. `None` without programs.
    pub attached: Option<&'static str>,
    /// Programs that are not attached, although the other one is.
    pub missing: Vec<&'static str>,
    /// `uplink`, `pod`, or `off` for the link of a pod in mode `off`, where only existing flows are translated. `None`
    /// without programs: packets may leave by the device nevertheless.
    pub role: Option<&'static str>,
    /// Source address of masqueraded IPv4 packets that leave by the device.
    pub snat_v4: Option<IpAddr>,
    /// Source address of masqueraded IPv6 packets that leave by the device.
    pub snat_v6: Option<IpAddr>,
    /// MTU (bytes).
    pub mtu: u32,
    /// True if flows between this device and another one with host routing bypass the node's routing.
    pub host_routing: bool,
    /// True if packets begin with an Ethernet header.
    pub ethernet: bool,
}

/// Lists all devices, by index. `entries` are those of `DEVICES`, `attached` the devices with programs.
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
    fn devices_with_and_without_programs_have_rows() {
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
        let found: Vec<_> = rows.iter().map(|row| (row.index, row.attached, row.role, row.ethernet)).collect();
        let wanted =
            [(2, Some("tcx"), Some("uplink"), true), (3, Some("clsact"), Some("pod"), false), (4, None, None, true)];
        assert_eq!(found, wanted);
        assert_eq!(rows.iter().map(|row| row.host_routing).collect::<Vec<_>>(), [false, false, true]);
        let [first, second, third] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!((first.snat_v4, first.snat_v6), (Some(IpAddr::from([192, 0, 2, 5])), None));
        assert_eq!((first.missing.len(), second.missing.as_slice()), (0, ["tc_egress"].as_slice()));
        assert_eq!((first.device.as_deref(), &third.device), (Some("dev2"), &None));
    }
}
