//! `beeline get pod-modes`: pods with a mode other than `socket`, and their cells.

use std::path::Path;

use anyhow::{Context as _, Result};
use lb_common::PodModeEntry;

use super::Row;
use crate::inspect::{self, PodModeRow};
use lb_kernel::{
    bpf::typed::TypedMap,
    netlink::{NetlinkSocket, network_state},
};

/// Reads the pods of the pinned map, with the names of their links in this network namespace.
pub(super) fn read(pins: &Path) -> Result<Vec<PodModeRow>> {
    let entries = TypedMap::<u64, PodModeEntry>::open(pins, "POD_MODES")?.read()?;
    let links = NetlinkSocket::open()
        .and_then(|mut channel| network_state::links(&mut channel))
        .context("listing the links")?;
    Ok(inspect::pod_modes(&entries, |index| links.get(&index).map(|link| link.name.clone())))
}

impl Row for PodModeRow {
    const HEAD: &'static [&'static str] = &["NAMESPACE", "POD", "MODE", "BY", "DEVICE", "NETNS"];
    const WIDE: &'static [&'static str] = &["INDEX", "ADDRESSES"];

    fn cells(&self) -> Vec<String> {
        let device = self.device.clone().unwrap_or_else(|| "-".to_owned());
        let [namespace, pod] = [&self.namespace, &self.pod].map(Clone::clone);
        vec![namespace, pod, self.mode.to_owned(), self.by.to_owned(), device, self.netns.to_string()]
    }

    fn wide(&self) -> Vec<String> {
        let index = self.device_index.map_or_else(|| "-".to_owned(), |index| index.to_string());
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        vec![index, if addresses.is_empty() { "-".to_owned() } else { addresses.join(",") }]
    }
}
