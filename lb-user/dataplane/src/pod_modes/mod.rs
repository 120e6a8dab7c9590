//! The pods of this node that have chosen another path than `socket`: looked for among the processes and links, and told to
//! the programs by the map `POD_MODES`. Which links get programs for them is for `devices` to do, before the map says so.

pub mod find;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_common::{Addr, Name, PodMode, PodModeEntry};
use tracing::{info, warn};

use find::{Sought, find};
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

/// How often all processes are looked at again though nothing has changed: a pod may have more network namespaces than one.
const CHECK: Duration = Duration::from_secs(30);
/// For so long a pod that has been started may be without a process before anybody is told.
const PATIENCE: Duration = Duration::from_secs(30);

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// A pod, and where it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placed<'a> {
    /// What it has chosen.
    pub chosen: &'a PodWithMode,
    /// Cookies of its network namespaces; or why it keeps the path of sockets, as far as there is anything to say.
    pub cookies: Result<BTreeSet<u64>, Option<String>>,
    /// The links of this node of which the other end is there.
    pub links: BTreeSet<u32>,
}

/// Looks for the pods, and keeps the map.
#[derive(Default)]
pub struct Keeper {
    /// Of which choices the next is what was found.
    asked: PodModes,
    sought: Vec<Sought>,
    looked: Option<Instant>,
    /// Pods of which nothing is found, and since when.
    missing: BTreeMap<Key, Instant>,
    /// None: nothing is waited for.
    retry: Option<Duration>,
    /// None: to be read from the map.
    written: Option<BTreeMap<u64, PodModeEntry>>,
    told: BTreeSet<String>,
}

impl Keeper {
    /// Where the pods are now. The facts were read by the channel just before.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn look<'a>(
        &mut self,
        paths: &'a PodModes,
        facts: &NetworkState,
        channel: &mut NetlinkSocket,
    ) -> Result<Vec<Placed<'a>>> {
        let now = Instant::now();
        if self.asked != *paths {
            self.asked = paths.clone();
            (self.looked, self.retry) = (None, None);
        }
        let is_due = self.looked.is_none_or(|at| now.duration_since(at) >= CHECK);
        let stands = |sought: &Sought| matches!(sought, Sought::Found(found) if found.iter().all(find::Found::stands));
        if !paths.pods.is_empty() && (is_due || !self.sought.iter().all(stands)) {
            self.sought = find(paths.pods.iter().map(|pod| &pod.netns)).context("looking for the processes of pods")?;
            self.looked = Some(now);
        }
        self.missing.retain(|key, _| paths.pods.iter().any(|pod| pod.key == *key));
        let mut placed = Vec::new();
        for (chosen, sought) in paths.pods.iter().zip(&self.sought) {
            let mut links = BTreeSet::new();
            let cookies = match sought {
                Sought::Found(found) => {
                    for namespace in found.iter().filter_map(find::Found::open) {
                        let number =
                            network_state::nsid(channel, &namespace).context("asking for a network namespace")?;
                        let leads = facts.links.iter().filter(|(_, link)| number.is_some() && link.peer_nsid == number);
                        links.extend(leads.map(|(index, _)| *index));
                    }
                    Ok(found.iter().map(|found| found.cookie).collect())
                }
                Sought::Node => Err(Some(HOST_NETWORK.to_owned())),
                Sought::Failed(why) => Err(Some(why.clone())),
                Sought::Nothing => {
                    let since = *self.missing.entry(chosen.key.clone()).or_insert(now);
                    let is_late = chosen.started && now.duration_since(since) >= PATIENCE;
                    Err(is_late.then(|| NO_PROCESS.to_owned()))
                }
            };
            if !matches!(sought, Sought::Nothing) {
                self.missing.remove(&chosen.key);
            }
            placed.push(Placed { chosen, cookies, links });
        }
        Ok(placed)
    }

    /// When to look again, if something is waited for.
    #[must_use]
    pub const fn retry(&self) -> Option<Duration> {
        self.retry
    }

    /// The map may be another one.
    pub fn forget(&mut self) {
        self.written = None;
    }

    /// Tells the programs, once the links are `serving` that shall. The map is one of the pins of `directory`.
    ///
    /// # Errors
    /// When the map cannot be read or written.
    pub fn tell(
        &mut self,
        directory: &Path,
        paths: &PodModes,
        placed: &[Placed<'_>],
        serving: &BTreeSet<u32>,
    ) -> Result<()> {
        let (wanted, refused) = settle(placed, serving);
        let is_complete = placed.iter().all(|placed| placed.cookies.is_ok()) && refused.is_empty();
        let later = self.retry.map_or(FIRST_RETRY, |retry| (retry * 2).min(LAST_RETRY));
        self.retry = (!is_complete).then_some(later);
        let problems: BTreeSet<String> = paths.problems.iter().cloned().chain(refused).collect();
        for problem in problems.difference(&self.told) {
            warn!("{problem}");
        }
        self.told = problems;
        if self.written.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let map = TypedMap::<u64, PodModeEntry>::open(directory, "POD_MODES")?;
        let before = match self.written.take() {
            Some(written) => written,
            None => map.read()?.into_iter().collect(),
        };
        let new = wanted.iter().filter(|(cookie, path)| before.get(cookie) != Some(path));
        let (keys, values): (Vec<u64>, Vec<PodModeEntry>) = new.map(|(cookie, path)| (*cookie, *path)).unzip();
        let gone: Vec<u64> = before.keys().copied().filter(|cookie| !wanted.contains_key(cookie)).collect();
        map.put(&keys, &values).context("writing POD_MODES")?;
        let used = TypedMap::<u32, u32>::open(directory, "POD_MODES_USED")?;
        used.put(&[0], &[u32::try_from(wanted.len())?]).context("writing POD_MODES_USED")?;
        map.delete(&gone).context("writing POD_MODES")?;
        log(&wanted, &before);
        self.written = Some(wanted);
        Ok(())
    }
}

/// What changes for whom.
fn log(wanted: &BTreeMap<u64, PodModeEntry>, before: &BTreeMap<u64, PodModeEntry>) {
    let name = |path: &PodModeEntry| (format!("{}/{}", path.namespace, path.name), path.path);
    let [now, then] = [wanted, before].map(|paths| paths.values().map(name).collect::<BTreeSet<_>>());
    for (pod, path) in now.difference(&then) {
        info!(pod, path = PodMode::from_number(*path).map_or("?", PodMode::name), "another path to Services");
    }
    for (pod, _) in then.iter().filter(|(pod, _)| !now.iter().any(|(other, _)| other == pod)) {
        info!(pod, "the path of sockets again, or gone");
    }
}

const NO_PROCESS: &str = "no process of it is found in /proc; let the agent see those of pods (hostPID: true)";

/// What shall stand in `POD_MODES` when these links have the programs, and why pods are left out. A pod whose packets nobody would
/// translate is better served by its sockets.
#[must_use]
pub fn settle(placed: &[Placed<'_>], serving: &BTreeSet<u32>) -> (BTreeMap<u64, PodModeEntry>, Vec<String>) {
    let (mut entries, mut refused) = (BTreeMap::new(), Vec::new());
    for Placed { chosen, cookies, links } in placed {
        let why = match cookies {
            Err(why) => why.as_deref(),
            Ok(_) if chosen.path != PodMode::Packet || links.iter().any(|link| serving.contains(link)) => None,
            Ok(_) if links.is_empty() => Some(NO_LINK),
            Ok(_) => Some("the programs could not be attached to its link; the log says why"),
        };
        refused.extend(why.map(|why| refusal(&chosen.key, chosen.path, why)));
        if let (None, Ok(cookies)) = (why, cookies) {
            let entry = entry(chosen, links.iter().find(|link| serving.contains(link)).or_else(|| links.first()));
            cookies.iter().for_each(|cookie| _ = entries.entry(*cookie).or_insert(entry));
        }
    }
    (entries, refused)
}

const NO_LINK: &str = "no link of this node leads to it (veth or netkit), where its packets could be translated; give it \
                       the label beeline.io/path: socket";

fn entry(chosen: &PodWithMode, device: Option<&u32>) -> PodModeEntry {
    let [v4, v6] = [true, false].map(|is_v4| chosen.ips.iter().find(|ip| ip.is_ipv4() == is_v4).copied());
    PodModeEntry {
        v4: v4.map_or(Addr::from_v4_word(0), Addr::from),
        v6: v6.map_or(Addr::default(), Addr::from),
        namespace: cut(chosen.key.namespace()),
        name: cut(chosen.key.name()),
        device: device.copied().unwrap_or(0),
        path: chosen.path as u8,
        by_namespace: u8::from(chosen.by == ModeSource::Namespace),
        _pad: 0,
    }
}

/// Names of pods may be longer than the 63 octets that a map has for one.
fn cut(name: &str) -> Name {
    let end = (0..name.len().min(lb_common::NAME_LEN - 1) + 1).rev().find(|end| name.is_char_boundary(*end));
    Name::new(name.get(..end.unwrap_or(0)).unwrap_or_default()).expect("it has room")
}

/// The links of pods, and what these have chosen. A link of several follows the first.
#[must_use]
pub fn choices(placed: &[Placed<'_>]) -> BTreeMap<u32, PodMode> {
    let mut choices = BTreeMap::new();
    for placed in placed.iter().filter(|placed| placed.cookies.is_ok()) {
        placed.links.iter().for_each(|link| _ = choices.entry(*link).or_insert(placed.chosen.path));
    }
    choices
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_core::model::pod_modes::PodNetns;

    fn chosen(name: &str, path: PodMode) -> PodWithMode {
        let ips = vec!["fd00::1".parse().expect("an address"), "10.0.0.1".parse().expect("an address")];
        let netns = PodNetns::OfCgroup(name.into());
        PodWithMode { key: Key::new("n", name), path, by: ModeSource::Namespace, netns, ips, started: true }
    }

    fn placed<'a>(chosen: &'a PodWithMode, cookie: u64, links: &[u32]) -> Placed<'a> {
        Placed { chosen, cookies: Ok([cookie].into()), links: links.iter().copied().collect() }
    }

    #[test]
    fn packets_need_a_link_with_programs_and_off_needs_none() {
        let (packet, off) = (chosen("a", PodMode::Packet), chosen("b", PodMode::Off));
        let check = |placed: &Placed<'_>, serving: &[u32], device: Option<u32>, why: &str| {
            let (entries, refused) = settle(std::slice::from_ref(placed), &serving.iter().copied().collect());
            assert_eq!(entries.get(&7).map(|entry| entry.device), device, "{placed:?}");
            assert_eq!(
                (refused.len(), refused.iter().all(|told| told.contains(why))),
                (usize::from(!why.is_empty()), true)
            );
        };
        check(&placed(&packet, 7, &[3, 4]), &[4, 5], Some(4), "");
        check(&placed(&packet, 7, &[]), &[4], None, "no link of this node leads to it");
        check(&placed(&packet, 7, &[3]), &[4], None, "could not be attached");
        check(&placed(&off, 7, &[]), &[], Some(0), "");
        check(&placed(&off, 7, &[3]), &[], Some(3), "");
        let nowhere = |why: Option<&str>| Placed { cookies: Err(why.map(str::to_owned)), ..placed(&off, 7, &[]) };
        check(&nowhere(None), &[], None, "");
        check(&nowhere(Some("because")), &[], None, "because");
    }

    #[test]
    fn an_entry_says_whose_it_is() {
        let long = "é".repeat(40);
        let chosen = chosen(&long, PodMode::Off);
        let (entries, _) = settle(&[placed(&chosen, 7, &[])], &BTreeSet::new());
        let entry = entries.get(&7).expect("an entry");
        assert_eq!((entry.v4.to_string().as_str(), entry.v6.to_string().as_str()), ("10.0.0.1", "fd00::1"));
        assert_eq!((entry.namespace.to_string().as_str(), entry.name.bytes().count()), ("n", 62));
        assert_eq!((entry.path, entry.by_namespace), (PodMode::Off as u8, 1));
    }
}
