//! Pods of this node in another mode than `socket`: located by their processes and links, and written to the map
//! `POD_MODES`, which tells the programs. [`crate::devices`] attaches programs to the links of pods before the map is
//! written.

mod netns;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_common::{Addr, Name, PodMode, PodModeEntry};
use tracing::{info, warn};

use lb_core::{
    model::pod_modes::{HOST_NETWORK, ModeSource, PodModes, PodWithMode, refusal},
    objects::Key,
};
use lb_kernel::{
    bpf::typed::TypedMap,
    netlink::{
        NetlinkSocket,
        network_state::{self, NetworkState},
    },
};
use netns::{NetnsSearch, PodNamespace, find};

/// Interval of searches through all processes without a change: a pod may get further network namespaces.
const CHECK: Duration = Duration::from_secs(30);
/// Time after which a started pod without a process is logged.
const START_TIMEOUT: Duration = Duration::from_secs(30);

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// A pod with its network namespaces and links.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LocatedPod<'a> {
    /// The pod and its mode.
    pod: &'a PodWithMode,
    /// Cookies of the pod's network namespaces; or the reason why it stays in mode `socket`, if there is one to log.
    cookies: Result<BTreeSet<u64>, Option<String>>,
    /// Links of this node whose other end is in the pod.
    links: BTreeSet<u32>,
}

/// Locates pods, and writes `POD_MODES`.
#[derive(Default)]
pub(crate) struct PodModeManager {
    /// Pods of the last search.
    searched: PodModes,
    /// Results of the last search, in the order of the pods.
    results: Vec<NetnsSearch>,
    last_search: Option<Instant>,
    /// Pods that were not found, and since when.
    missing: BTreeMap<Key, Instant>,
    /// Time until the next pass; none if all pods are located.
    retry: Option<Duration>,
    /// Entries of `POD_MODES`; none until they are read.
    written: Option<BTreeMap<u64, PodModeEntry>>,
    /// Problems that were logged.
    logged: BTreeSet<String>,
}

impl PodModeManager {
    /// Locates the pods. `facts` were read from `channel` just before.
    pub(crate) fn locate<'a>(
        &mut self,
        modes: &'a PodModes,
        facts: &NetworkState,
        channel: &mut NetlinkSocket,
    ) -> Result<Vec<LocatedPod<'a>>> {
        let now = Instant::now();
        if self.searched != *modes {
            self.searched = modes.clone();
            (self.last_search, self.retry) = (None, None);
        }
        let is_due = self.last_search.is_none_or(|at| now.duration_since(at) >= CHECK);
        if !modes.pods.is_empty() && (is_due || !self.results.iter().all(NetnsSearch::is_current)) {
            self.results =
                find(modes.pods.iter().map(|pod| &pod.netns)).context("looking for the processes of pods")?;
            self.last_search = Some(now);
        }
        self.missing.retain(|key, _| modes.pods.iter().any(|pod| pod.key == *key));
        let mut located = Vec::new();
        for (pod, result) in modes.pods.iter().zip(&self.results) {
            let mut links = BTreeSet::new();
            let cookies = match result {
                NetnsSearch::Found(namespaces) => {
                    for namespace in namespaces.iter().filter_map(PodNamespace::open) {
                        let number =
                            network_state::nsid(channel, &namespace).context("asking for a network namespace")?;
                        let leads = facts.links.iter().filter(|(_, link)| number.is_some() && link.peer_nsid == number);
                        links.extend(leads.map(|(index, _)| *index));
                    }
                    Ok(namespaces.iter().map(|namespace| namespace.cookie).collect())
                }
                NetnsSearch::HostNetwork => Err(Some(HOST_NETWORK.to_owned())),
                NetnsSearch::Failed(reason) => Err(Some(reason.clone())),
                NetnsSearch::NoProcess => {
                    let since = *self.missing.entry(pod.key.clone()).or_insert(now);
                    let is_late = pod.started && now.duration_since(since) >= START_TIMEOUT;
                    Err(is_late.then(|| NO_PROCESS.to_owned()))
                }
            };
            if !matches!(result, NetnsSearch::NoProcess) {
                self.missing.remove(&pod.key);
            }
            located.push(LocatedPod { pod, cookies, links });
        }
        Ok(located)
    }

    /// Returns the time until the next pass, if a pod is not located yet.
    pub(crate) const fn retry(&self) -> Option<Duration> {
        self.retry
    }

    /// Reads the map again before the next write, since it may be another one.
    pub(crate) fn reread(&mut self) {
        self.written = None;
    }

    /// Writes the map, pinned in `directory`, and logs problems that are new. `serving` are the links with programs.
    pub(crate) fn write(
        &mut self,
        directory: &Path,
        modes: &PodModes,
        pods: &[LocatedPod<'_>],
        serving: &BTreeSet<u32>,
    ) -> Result<()> {
        let (wanted, refused) = entries(pods, serving);
        let is_complete = pods.iter().all(|pod| pod.cookies.is_ok()) && refused.is_empty();
        let later = self.retry.map_or(FIRST_RETRY, |retry| (retry * 2).min(LAST_RETRY));
        self.retry = (!is_complete).then_some(later);
        let problems: BTreeSet<String> = modes.problems.iter().cloned().chain(refused).collect();
        for problem in problems.difference(&self.logged) {
            warn!("{problem}");
        }
        self.logged = problems;
        if self.written.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let map = TypedMap::<u64, PodModeEntry>::open(directory, "POD_MODES")?;
        let before = match self.written.take() {
            Some(written) => written,
            None => map.read()?.into_iter().collect(),
        };
        let new = wanted.iter().filter(|(cookie, entry)| before.get(cookie) != Some(entry));
        let (keys, values): (Vec<u64>, Vec<PodModeEntry>) = new.map(|(cookie, entry)| (*cookie, *entry)).unzip();
        let gone: Vec<u64> = before.keys().copied().filter(|cookie| !wanted.contains_key(cookie)).collect();
        // First, since an entry counts only when this says so.
        let used = TypedMap::<u32, u32>::open(directory, "POD_MODES_USED")?;
        used.put(&[0], &[u32::try_from(wanted.len())?]).context("writing POD_MODES_USED")?;
        map.put(&keys, &values).context("writing POD_MODES")?;
        map.delete(&gone).context("writing POD_MODES")?;
        log(&wanted, &before);
        self.written = Some(wanted);
        Ok(())
    }
}

/// Logs the pods whose mode changes.
fn log(wanted: &BTreeMap<u64, PodModeEntry>, before: &BTreeMap<u64, PodModeEntry>) {
    let name = |entry: &PodModeEntry| (format!("{}/{}", entry.namespace, entry.name), entry.path);
    let [now, then] = [wanted, before].map(|modes| modes.values().map(name).collect::<BTreeSet<_>>());
    for (pod, mode) in now.difference(&then) {
        info!(pod, mode = PodMode::from_number(*mode).map_or("?", PodMode::name), "the pod has another mode");
    }
    for (pod, _) in then.iter().filter(|(pod, _)| !now.iter().any(|(other, _)| other == pod)) {
        info!(pod, "the pod is back in mode socket, or is gone");
    }
}

const NO_PROCESS: &str = "no process of it is found in /proc; let the agent see those of pods (hostPID: true)";

/// Returns the entries of `POD_MODES` if the links `serving` have programs, and the pods left out with the reason. A
/// pod in mode `packet` without a serving link stays in mode `socket`, since its packets would not be translated.
fn entries(pods: &[LocatedPod<'_>], serving: &BTreeSet<u32>) -> (BTreeMap<u64, PodModeEntry>, Vec<String>) {
    let (mut entries, mut refused) = (BTreeMap::new(), Vec::new());
    for LocatedPod { pod, cookies, links } in pods {
        let reason = match cookies {
            Err(reason) => reason.as_deref(),
            Ok(_) if pod.mode != PodMode::Packet || links.iter().any(|link| serving.contains(link)) => None,
            Ok(_) if links.is_empty() => Some(NO_LINK),
            Ok(_) => Some("the programs could not be attached to its link; the log says why"),
        };
        refused.extend(reason.map(|reason| refusal(&pod.key, pod.mode, reason)));
        if let (None, Ok(cookies)) = (reason, cookies) {
            let entry = entry(pod, links.iter().find(|link| serving.contains(link)).or_else(|| links.first()));
            cookies.iter().for_each(|cookie| _ = entries.entry(*cookie).or_insert(entry));
        }
    }
    (entries, refused)
}

const NO_LINK: &str = "no link of this node leads to it (veth or netkit), where its packets could be translated; give \
                       it the label beeline.io/path: socket";

fn entry(pod: &PodWithMode, device: Option<&u32>) -> PodModeEntry {
    let [v4, v6] = [true, false].map(|is_v4| pod.ips.iter().find(|ip| ip.is_ipv4() == is_v4).copied());
    PodModeEntry {
        v4: v4.map_or(Addr::from_v4_word(0), Addr::from),
        v6: v6.map_or(Addr::default(), Addr::from),
        namespace: cut(pod.key.namespace()),
        name: cut(pod.key.name()),
        device: device.copied().unwrap_or(0),
        path: pod.mode as u8,
        by_namespace: u8::from(pod.by == ModeSource::Namespace),
        _pad: 0,
    }
}

/// Shortens a name to the 63 octets of a map's field: names of pods may be longer.
fn cut(name: &str) -> Name {
    let end = (0..name.len().min(lb_common::NAME_LEN - 1) + 1).rev().find(|end| name.is_char_boundary(*end));
    Name::new(name.get(..end.unwrap_or(0)).unwrap_or_default()).expect("it has room")
}

/// Returns the modes of pods by their links. A link of several pods has the mode of the first.
pub(crate) fn modes_by_link(pods: &[LocatedPod<'_>]) -> BTreeMap<u32, PodMode> {
    let mut modes = BTreeMap::new();
    for LocatedPod { pod, links, .. } in pods.iter().filter(|pod| pod.cookies.is_ok()) {
        links.iter().for_each(|link| _ = modes.entry(*link).or_insert(pod.mode));
    }
    modes
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_core::model::pod_modes::PodNetns;

    fn pod(name: &str, mode: PodMode) -> PodWithMode {
        let ips = vec!["fd00::1".parse().expect("an address"), "10.0.0.1".parse().expect("an address")];
        let netns = PodNetns::OfCgroup(name.into());
        PodWithMode { key: Key::new("n", name), mode, by: ModeSource::Namespace, netns, ips, started: true }
    }

    fn located<'a>(pod: &'a PodWithMode, cookie: u64, links: &[u32]) -> LocatedPod<'a> {
        LocatedPod { pod, cookies: Ok([cookie].into()), links: links.iter().copied().collect() }
    }

    #[test]
    fn mode_packet_needs_a_link_with_programs_and_off_needs_none() {
        let (packet, off) = (pod("a", PodMode::Packet), pod("b", PodMode::Off));
        let check = |pod: &LocatedPod<'_>, serving: &[u32], device: Option<u32>, reason: &str| {
            let (entries, refused) = entries(std::slice::from_ref(pod), &serving.iter().copied().collect());
            assert_eq!(entries.get(&7).map(|entry| entry.device), device, "{pod:?}");
            assert_eq!(
                (refused.len(), refused.iter().all(|text| text.contains(reason))),
                (usize::from(!reason.is_empty()), true)
            );
        };
        check(&located(&packet, 7, &[3, 4]), &[4, 5], Some(4), "");
        check(&located(&packet, 7, &[]), &[4], None, "no link of this node leads to it");
        check(&located(&packet, 7, &[3]), &[4], None, "could not be attached");
        check(&located(&off, 7, &[]), &[], Some(0), "");
        check(&located(&off, 7, &[3]), &[], Some(3), "");
        let not_found =
            |reason: Option<&str>| LocatedPod { cookies: Err(reason.map(str::to_owned)), ..located(&off, 7, &[]) };
        check(&not_found(None), &[], None, "");
        check(&not_found(Some("because")), &[], None, "because");
    }

    #[test]
    fn an_entry_has_the_pods_addresses_and_its_shortened_name() {
        let long = "é".repeat(40);
        let pod = pod(&long, PodMode::Off);
        let (entries, _) = entries(&[located(&pod, 7, &[])], &BTreeSet::new());
        let entry = entries.get(&7).expect("an entry");
        assert_eq!((entry.v4.to_string().as_str(), entry.v6.to_string().as_str()), ("10.0.0.1", "fd00::1"));
        assert_eq!((entry.namespace.to_string().as_str(), entry.name.bytes().count()), ("n", 62));
        assert_eq!((entry.path, entry.by_namespace), (PodMode::Off as u8, 1));
    }
}
