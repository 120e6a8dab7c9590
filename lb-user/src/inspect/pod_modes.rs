//! Pods that have chosen another path than `socket`, in the words of people.

use std::net::IpAddr;

use lb_common::{PathChoice, PodPath};
use serde::Serialize;

use lb_core::model::pod_modes::ModeSource;

/// A network namespace of a pod.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PathRow {
    /// Namespace of the pod.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// `packet` or `off`.
    pub path: &'static str,
    /// Whose label says so: `pod` or `namespace`.
    pub by: &'static str,
    /// Name of the device that leads to it, on this node; none where there is none.
    pub device: Option<String>,
    /// Its index.
    pub device_index: Option<u32>,
    /// Cookie of its network namespace.
    pub netns: u64,
    /// Its addresses, as far as they are known.
    pub addresses: Vec<IpAddr>,
}

/// Who said what a pod has chosen.
#[must_use]
pub const fn by(path: &PodPath) -> ModeSource {
    if path.by_namespace == 0 { ModeSource::Pod } else { ModeSource::Namespace }
}

/// The name of what a pod has chosen.
#[must_use]
pub fn choice(path: &PodPath) -> &'static str {
    PathChoice::from_number(path.path).map_or("?", PathChoice::name)
}

/// All of them, by namespace and name.
#[must_use]
pub fn paths(entries: &[(u64, PodPath)], name_of: impl Fn(u32) -> Option<String>) -> Vec<PathRow> {
    let row = |(netns, path): &(u64, PodPath)| PathRow {
        namespace: path.namespace.to_string(),
        pod: path.name.to_string(),
        path: choice(path),
        by: by(path).name(),
        device: name_of(path.device),
        device_index: (path.device != 0).then_some(path.device),
        netns: *netns,
        addresses: [path.v4, path.v6].iter().filter(|addr| !addr.is_unspecified()).map(|addr| addr.to_ip()).collect(),
    };
    let mut rows: Vec<PathRow> = entries.iter().map(row).collect();
    rows.sort_unstable();
    rows
}

#[cfg(test)]
mod tests {
    use lb_common::Name;

    use super::*;

    #[test]
    fn a_row_says_who_chose_what_and_where_it_is() {
        let name = |text| Name::new(text).expect("short");
        let path = |of, path: PathChoice, device, by_namespace| PodPath {
            v4: "10.0.0.1".parse::<IpAddr>().expect("an address").into(),
            v6: lb_common::Addr::default(),
            namespace: name("n"),
            name: name(of),
            device,
            path: path as u8,
            by_namespace,
            _pad: 0,
        };
        let entries = [(9, path("b", PathChoice::Off, 0, 1)), (7, path("a", PathChoice::Packet, 3, 0))];
        let rows = paths(&entries, |index| (index == 3).then(|| "veth3".to_owned()));
        let [a, b] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!(
            (a.pod.as_str(), a.path, a.by, a.device.as_deref(), a.netns),
            ("a", "packet", "pod", Some("veth3"), 7)
        );
        assert_eq!((b.pod.as_str(), b.path, b.by, b.device_index, b.netns), ("b", "off", "namespace", None, 9));
        assert_eq!(b.addresses, [IpAddr::from([10, 0, 0, 1])]);
    }
}
