//! `beeline get devices`: network devices and their cells.

use std::{net::IpAddr, path::Path};

use anyhow::{Context as _, Result};
use lb_common::Device;

use super::Row;
use crate::inspect::{self, DeviceRow};
use lb_dataplane::attach::tc;
use lb_kernel::{
    bpf::typed::TypedMap,
    netlink::{NetlinkSocket, network_state},
};

/// Reads the devices of the pinned map and of the pinned links, with their names in this network namespace.
pub(super) fn read(pins: &Path) -> Result<Vec<DeviceRow>> {
    let entries = TypedMap::<u32, Device>::open(pins, "DEVICES")?.read()?.into_iter().collect();
    let attached = tc::attached(pins, pins.parent().context("the directory of the pins has no parent")?)?;
    let links = NetlinkSocket::open()
        .and_then(|mut channel| network_state::links(&mut channel))
        .context("listing the links")?;
    Ok(inspect::devices(&entries, &attached, |index| links.get(&index).map(|link| link.name.clone())))
}

impl Row for DeviceRow {
    const HEAD: &'static [&'static str] = &["DEVICE", "INDEX", "ATTACHED", "ROLE", "SNAT IPV4", "SNAT IPV6"];
    const WIDE: &'static [&'static str] = &["MTU", "LINK LAYER"];

    fn cells(&self) -> Vec<String> {
        let or_none = |text: Option<&str>| text.unwrap_or("-").to_owned();
        let attached = match self.missing.as_slice() {
            [] => or_none(self.attached),
            missing => format!("{}, without {}", or_none(self.attached), missing.join(", ")),
        };
        let address = |ip: Option<IpAddr>| ip.map_or_else(|| "-".to_owned(), |ip| ip.to_string());
        vec![
            or_none(self.device.as_deref()),
            self.index.to_string(),
            attached,
            or_none(self.role) + if self.host_routing { ", host routing" } else { "" },
            address(self.snat_v4),
            address(self.snat_v6),
        ]
    }

    fn wide(&self) -> Vec<String> {
        vec![self.mtu.to_string(), if self.ethernet { "Ethernet" } else { "none" }.to_owned()]
    }
}
