//! Rows of pods with a mode other than `socket`.

use std::net::IpAddr;

use lb_common::{PodMode, PodModeEntry};
use serde::Serialize;

use lb_core::model::pod_modes::ModeSource;

/// A pod with a mode other than `socket`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodModeRow {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Mode: `packet` or `off`. The key in JSON and YAML is older than the word.
    #[serde(rename = "path")]
    pub mode: &'static str,
    /// Object with the label: `pod` or `namespace`.
    pub by: &'static str,
    /// Name of the node's end of the pod's link. `None` if it is unknown.
    pub device: Option<String>,
    /// Interface index of the node's end of the pod's link.
    pub device_index: Option<u32>,
    /// Cookie of its network namespace.
    pub netns: u64,
    /// Known addresses of the pod.
    pub addresses: Vec<IpAddr>,
}

/// Returns the object whose label sets the mode.
#[must_use]
pub const fn labelled(entry: &PodModeEntry) -> ModeSource {
    if entry.by_namespace == 0 { ModeSource::Pod } else { ModeSource::Namespace }
}

/// Returns the name of the mode.
#[must_use]
pub fn mode_name(entry: &PodModeEntry) -> &'static str {
    PodMode::from_number(entry.path).map_or("?", PodMode::name)
}

/// Lists the pods, by namespace and name. `name_of` returns the name of an interface by its index.
#[must_use]
pub fn pod_modes(entries: &[(u64, PodModeEntry)], name_of: impl Fn(u32) -> Option<String>) -> Vec<PodModeRow> {
    let row = |(netns, entry): &(u64, PodModeEntry)| PodModeRow {
        namespace: entry.namespace.to_string(),
        pod: entry.name.to_string(),
        mode: mode_name(entry),
        by: labelled(entry).name(),
        device: name_of(entry.device),
        device_index: (entry.device != 0).then_some(entry.device),
        netns: *netns,
        addresses: [entry.v4, entry.v6].iter().filter(|addr| !addr.is_unspecified()).map(|addr| addr.to_ip()).collect(),
    };
    let mut rows: Vec<PodModeRow> = entries.iter().map(row).collect();
    rows.sort_unstable();
    rows
}

#[cfg(test)]
mod tests {
    use lb_common::Name;

    use super::*;

    #[test]
    fn a_row_has_mode_label_and_device_of_a_pod() {
        let name = |text| Name::new(text).expect("short");
        let entry = |of, mode: PodMode, device, by_namespace| PodModeEntry {
            v4: "10.0.0.1".parse::<IpAddr>().expect("an address").into(),
            v6: lb_common::Addr::default(),
            namespace: name("n"),
            name: name(of),
            device,
            path: mode as u8,
            by_namespace,
            _pad: 0,
        };
        let entries = [(9, entry("b", PodMode::Off, 0, 1)), (7, entry("a", PodMode::Packet, 3, 0))];
        let rows = pod_modes(&entries, |index| (index == 3).then(|| "veth3".to_owned()));
        let [a, b] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!(
            (a.pod.as_str(), a.mode, a.by, a.device.as_deref(), a.netns),
            ("a", "packet", "pod", Some("veth3"), 7)
        );
        assert_eq!((b.pod.as_str(), b.mode, b.by, b.device_index, b.netns), ("b", "off", "namespace", None, 9));
        assert_eq!(b.addresses, [IpAddr::from([10, 0, 0, 1])]);
    }
}
