//! Programs at network devices as filters of a clsact qdisc, by rtnetlink: for kernels without TCX (before 6.6).
//! Filters and qdiscs outlive the agent. Qdiscs that Beeline created are marked in the pin directory, as empty
//! directories: a bpffs holds no plain files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::{
        fd::{AsFd, AsRawFd as _},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail};
use lb_common::Hook;

use lb_kernel::{
    bpf::errors::{self, FailedCall},
    netlink::{
        NetlinkSocket,
        codec::{attributes, put_attribute, text, u32_at},
    },
};

// include/uapi/linux/pkt_sched.h and pkt_cls.h
const TC_H_CLSACT: u32 = 0xffff_fff1;
const HANDLE: u32 = 0xffff_0000;
const PARENT_INGRESS: u32 = 0xffff_fff2;
const PARENT_EGRESS: u32 = 0xffff_fff3;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

/// Length of a `struct tcmsg`.
const TC_HEADER: usize = 20;

/// Priorities of our filters, best first. A filter that ends the packet (TC_ACT_OK, as all programs of Cilium and
/// Calico do) hides it from filters behind it. At a priority that has filters of another kind or protocol there is no
/// room for ours; at one with filters of our kind the newest comes first (`cls_bpf_change`). Filters without an
/// explicit priority come after both.
const PRIORITIES: [u16; 2] = [1, 7];

/// Handle of our filter.
const FILTER: u32 = 0xbee;

/// Prefix of our filters' names; the name of the program follows.
const NAME: &str = "beeline:";

/// Prefix of the directory with the marks of one network namespace, which is named by its inode.
const MARK: &str = "clsact_";

/// Ids of our programs at a device, in the order of [`super::tc::PROGRAMS`].
pub type ProgramIds = [Option<u32>; 2];

const HOOKS: [(Hook, u32); 2] = [(Hook::Ingress, PARENT_INGRESS), (Hook::Egress, PARENT_EGRESS)];

/// Our filters in this thread's network namespace.
pub struct Clsact {
    channel: NetlinkSocket,
    marks: PathBuf,
}

/// Returns an error that names what failed, and cause and cure if known.
fn failed(call: FailedCall, what: &str, error: io::Error) -> anyhow::Error {
    let cause = errors::explain(call, &error).map_or_else(String::new, |cause| format!(": {cause}"));
    anyhow::Error::from(error).context(format!("{what}{cause}"))
}

impl Clsact {
    /// Opens a netlink socket. Marks are below `root`, the pin directory.
    ///
    /// # Errors
    /// If netlink or /proc is not available.
    pub fn open(root: &Path) -> Result<Self> {
        let channel = NetlinkSocket::open().context("opening a netlink socket")?;
        Ok(Self { channel, marks: root.join(format!("{MARK}{}", namespace()?)) })
    }

    /// Lists the devices with filters of ours.
    ///
    /// # Errors
    /// If qdiscs or filters cannot be listed.
    pub fn attached(&mut self) -> Result<BTreeMap<u32, ProgramIds>> {
        // No marks: no filter was ever added here.
        if !self.marks.exists() {
            return Ok(BTreeMap::new());
        }
        let mut attached = BTreeMap::new();
        for device in self.with_qdisc()? {
            let programs = self.programs(device)?;
            if programs.iter().any(Option::is_some) {
                attached.insert(device, programs);
            }
        }
        Ok(attached)
    }

    /// Lists the devices with a clsact qdisc.
    fn with_qdisc(&mut self) -> Result<Vec<u32>> {
        self.channel.dump(libc::RTM_GETQDISC, &header(0, 0, 0, 0), clsact_of).context("listing qdiscs")
    }

    fn programs(&mut self, device: u32) -> Result<ProgramIds> {
        let mut programs = [None; 2];
        for (own, (_, parent)) in programs.iter_mut().zip(HOOKS) {
            *own = self.filters(device, parent)?.iter().find(|filter| filter.is_ours()).map(|filter| filter.program);
        }
        Ok(programs)
    }

    fn filters(&mut self, device: u32, parent: u32) -> Result<Vec<Filter>> {
        let listed = self.channel.dump(libc::RTM_GETTFILTER, &header(device, 0, parent, 0), Filter::parse);
        listed.with_context(|| format!("listing the filters of device {device}"))
    }

    /// Adds our filter at a hook of a device, or replaces its program atomically. Foreign filters stay.
    pub(super) fn attach(&mut self, device: u32, hook: Hook, name: &str, program: impl AsFd) -> Result<()> {
        fs::create_dir_all(&self.marks).with_context(|| format!("making {}", self.marks.display()))?;
        let mut qdisc = header(device, HANDLE, TC_H_CLSACT, 0);
        put_attribute(&mut qdisc, libc::TCA_KIND, b"clsact\0");
        match self.channel.execute(libc::RTM_NEWQDISC, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &qdisc) {
            Ok(()) => fs::create_dir_all(self.mark(device)).context("marking a qdisc as ours")?,
            // A clsact qdisc exists, ours or a foreign one; or a qdisc for ingress alone, which would take the filter
            // of egress for one of ingress.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                if !self.with_qdisc()?.contains(&device) {
                    bail!(
                        "another tool has the qdisc `ingress` there, beside which there is no room for a program at \
                         egress before Linux 6.6: have it use clsact, which takes the same filters"
                    );
                }
            }
            Err(error) => return Err(failed(FailedCall::AddClsact, "adding a clsact qdisc", error)),
        }
        let parent = parent(hook);
        let existing = self.filters(device, parent)?;
        let mut options = Vec::new();
        put_attribute(&mut options, TCA_BPF_FD, &program.as_fd().as_raw_fd().to_ne_bytes());
        put_attribute(&mut options, TCA_BPF_NAME, format!("{NAME}{name}\0").as_bytes());
        put_attribute(&mut options, TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes());
        let mut result = Ok(());
        for priority in PRIORITIES {
            let is_foreign = |filter: &Filter| filter.is_at(priority) && !filter.is_ours();
            if existing.iter().any(is_foreign) {
                result = Err(anyhow!("another filter has priority {priority}, handle {FILTER:#x}"));
                continue;
            }
            let mut filter = header(device, FILTER, parent, info(priority));
            put_attribute(&mut filter, libc::TCA_KIND, b"bpf\0");
            put_attribute(&mut filter, libc::TCA_OPTIONS, &options);
            let added = self.channel.execute(libc::RTM_NEWTFILTER, libc::NLM_F_CREATE, &filter);
            if let Err(error) = added {
                result = Err(failed(FailedCall::AddFilter, "adding a filter", error));
                continue;
            }
            // The priority of an earlier version, or the second best while another filter had the best.
            for other in existing.iter().filter(|filter| filter.is_ours() && !filter.is_at(priority)) {
                self.remove(device, parent, other)?;
            }
            return Ok(());
        }
        result
    }

    /// Removes a filter of ours.
    fn remove(&mut self, device: u32, parent: u32, filter: &Filter) -> Result<()> {
        let mut ours = header(device, FILTER, parent, info(filter.priority));
        put_attribute(&mut ours, libc::TCA_KIND, b"bpf\0");
        accept_missing(self.channel.execute(libc::RTM_DELTFILTER, 0, &ours)).context("removing a filter")
    }

    /// Lists filters of others that run before ours at each device with filters of ours: a filter that ends a packet
    /// hides it from ours. Each has its device, the hook, and a description.
    ///
    /// # Errors
    /// If qdiscs or filters cannot be listed.
    pub fn foreign_before_ours(&mut self) -> Result<Vec<(u32, Hook, String)>> {
        let mut found = Vec::new();
        for device in self.attached()?.into_keys() {
            for (hook, parent) in HOOKS {
                let filters = self.filters(device, parent)?;
                found.extend(before_ours(&filters).iter().map(|filter| (device, hook, filter.text())));
            }
        }
        Ok(found)
    }

    /// Removes our filters of a device, and the qdisc if it is marked as ours and has no foreign filter.
    pub(super) fn detach(&mut self, device: u32) -> Result<()> {
        let mut others = 0;
        for (_, parent) in HOOKS {
            for filter in self.filters(device, parent)? {
                if filter.is_ours() {
                    self.remove(device, parent, &filter)?;
                } else {
                    others += 1;
                }
            }
        }
        let mark = self.mark(device);
        if !mark.exists() {
            return Ok(());
        }
        if others == 0 {
            let mut qdisc = header(device, HANDLE, TC_H_CLSACT, 0);
            put_attribute(&mut qdisc, libc::TCA_KIND, b"clsact\0");
            accept_missing(self.channel.execute(libc::RTM_DELQDISC, 0, &qdisc)).context("removing a clsact qdisc")?;
        }
        fs::remove_dir(&mark).with_context(|| format!("removing {}", mark.display()))
    }

    /// Removes the marks of deleted devices.
    pub(super) fn forget_deleted(&self, exists: impl Fn(u32) -> bool) -> Result<()> {
        for device in marked(&self.marks)?.into_iter().filter(|device| !exists(*device)) {
            fs::remove_dir(self.mark(device)).context("removing a mark")?;
        }
        Ok(())
    }

    /// Lists the directories that mark qdiscs as ours, with the directory that holds them if it exists.
    pub(super) fn marks(&self) -> Result<Vec<PathBuf>> {
        let all = self.marks.exists().then(|| self.marks.clone());
        Ok(all.into_iter().chain(marked(&self.marks)?.into_iter().map(|device| self.mark(device))).collect())
    }

    fn mark(&self, device: u32) -> PathBuf {
        self.marks.join(device.to_string())
    }
}

/// Removes our filters in every network namespace with marks below `root`. Returns a line of text for each device.
pub(crate) fn remove(root: &Path) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for entry in fs::read_dir(root).with_context(|| format!("reading {}", root.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(inode) = name.strip_prefix(MARK).and_then(|inode| inode.parse::<u64>().ok()) else {
            continue;
        };
        // A deleted namespace took its devices along.
        removed.extend(lb_kernel::netns::in_namespace(inode, || remove_here(root))?.unwrap_or_else(|| Ok(Vec::new()))?);
        fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(removed)
}

fn remove_here(root: &Path) -> Result<Vec<String>> {
    let mut clsact = Clsact::open(root)?;
    let mut removed = Vec::new();
    let marked = marked(&clsact.marks)?;
    for device in clsact.attached()?.into_keys().chain(marked).collect::<BTreeSet<u32>>() {
        clsact.detach(device)?;
        removed.push(format!("the filters of device {device}"));
    }
    Ok(removed)
}

/// Returns the inode number of this thread's network namespace.
fn namespace() -> Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/net").context("looking at /proc/thread-self/ns/net")?.ino())
}

fn marked(marks: &Path) -> Result<Vec<u32>> {
    match fs::read_dir(marks) {
        Ok(entries) => Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("reading {}", marks.display())),
    }
}

/// Accepts errors that say that the object to remove does not exist.
fn accept_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
        other => other,
    }
}

const fn parent(hook: Hook) -> u32 {
    match hook {
        Hook::Ingress => PARENT_INGRESS,
        Hook::Egress => PARENT_EGRESS,
    }
}

/// Returns priority and protocol (`ETH_P_ALL`) of a filter of ours.
fn info(priority: u16) -> u32 {
    let all = u16::try_from(libc::ETH_P_ALL).unwrap_or_default();
    (u32::from(priority) << 16) | u32::from(all.to_be())
}

/// Returns the filters of others before ours. `filters` are in the kernel's order, the order in which they run.
fn before_ours(filters: &[Filter]) -> &[Filter] {
    let ours = filters.iter().position(Filter::is_ours).unwrap_or(0);
    filters.get(..ours).unwrap_or_default()
}

/// Encodes a `struct tcmsg`.
fn header(device: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    for word in [device, handle, parent, info] {
        body.extend(word.to_ne_bytes());
    }
    body
}

/// Returns the device of a qdisc, if it is a clsact.
fn clsact_of(body: &[u8]) -> Option<u32> {
    let mut all = attributes(body.get(TC_HEADER..)?);
    all.any(|(kind, value)| kind == libc::TCA_KIND && text(value) == "clsact").then(|| u32_at(body, 4))?
}

/// A filter as the kernel lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Filter {
    handle: u32,
    priority: u16,
    kind: String,
    name: String,
    program: u32,
}

impl Filter {
    /// Parses a filter. None for the entry without a handle that heads the filters of a priority.
    fn parse(body: &[u8]) -> Option<Self> {
        let (handle, info) = (u32_at(body, 8)?, u32_at(body, 16)?);
        let priority = u16::try_from(info >> 16).ok()?;
        let mut filter = Self { handle, priority, kind: String::new(), name: String::new(), program: 0 };
        let mut is_one = handle != 0;
        for (kind, value) in attributes(body.get(TC_HEADER..)?) {
            if kind == libc::TCA_KIND {
                filter.kind = text(value);
            }
            if kind == libc::TCA_OPTIONS {
                is_one = true;
                for (kind, value) in attributes(value) {
                    match kind {
                        TCA_BPF_NAME => filter.name = text(value),
                        TCA_BPF_ID => filter.program = u32_at(value, 0).unwrap_or(0),
                        _ => {}
                    }
                }
            }
        }
        is_one.then_some(filter)
    }

    const fn is_at(&self, priority: u16) -> bool {
        self.handle == FILTER && self.priority == priority
    }

    fn is_ours(&self) -> bool {
        PRIORITIES.iter().any(|priority| self.is_at(*priority)) && self.name.starts_with(NAME)
    }

    /// Describes the filter, as in `filter cil_from_netdev (bpf, priority 1)`.
    fn text(&self) -> String {
        let name = if self.name.is_empty() { "without a name" } else { &self.name };
        format!("filter {name} ({}, priority {})", self.kind, self.priority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Encodes a filter as the kernel lists it.
    fn listed(handle: u32, name: &str) -> Vec<u8> {
        listed_at(7, handle, name)
    }

    fn listed_at(priority: u16, handle: u32, name: &str) -> Vec<u8> {
        let mut options = Vec::new();
        put_attribute(&mut options, TCA_BPF_NAME, format!("{name}\0").as_bytes());
        put_attribute(&mut options, TCA_BPF_ID, &4711_u32.to_ne_bytes());
        let mut body = header(3, handle, PARENT_INGRESS, info(priority));
        put_attribute(&mut body, libc::TCA_KIND, b"bpf\0");
        put_attribute(&mut body, libc::TCA_OPTIONS, &options);
        body
    }

    #[test]
    fn a_filter_is_ours_by_place_and_name() {
        let is_ours =
            |body: &[u8]| Filter::parse(body).is_some_and(|filter| filter.is_ours() && filter.program == 4711);
        assert!(is_ours(&listed(FILTER, "beeline:tc_ingress")));
        assert!(!is_ours(&listed(FILTER, "cil_from_netdev")));
        assert!(!is_ours(&listed(1, "beeline:tc_ingress")));
        // The head of a priority has no options.
        let mut head = header(3, 0, PARENT_INGRESS, info(7));
        put_attribute(&mut head, libc::TCA_KIND, b"bpf\0");
        assert_eq!(Filter::parse(&head), None);
    }

    #[test]
    fn filters_of_others_before_ours_are_named() {
        let list = |filters: &[(u16, u32, &str)]| {
            let filters = filters.iter().map(|(priority, handle, name)| listed_at(*priority, *handle, name));
            let filters: Vec<_> = filters.filter_map(|body| Filter::parse(&body)).collect();
            before_ours(&filters).iter().map(Filter::text).collect::<Vec<_>>()
        };
        let ours = "beeline:tc_ingress";
        let theirs = "filter cil_from_netdev (bpf, priority 1)";
        assert_eq!(list(&[(1, FILTER, ours), (1, 1, "cil_from_netdev")]), [""; 0]);
        assert_eq!(list(&[(1, 1, "cil_from_netdev"), (7, FILTER, ours), (8, 1, "other")]), [theirs]);
        assert_eq!(list(&[(1, 1, "cil_from_netdev")]), [""; 0], "ours is not there");
    }

    #[test]
    fn only_a_clsact_qdisc_counts() {
        let mut body = header(3, HANDLE, TC_H_CLSACT, 0);
        put_attribute(&mut body, libc::TCA_KIND, b"clsact\0");
        assert_eq!(clsact_of(&body), Some(3));
        let mut body = header(3, HANDLE, TC_H_CLSACT, 0);
        put_attribute(&mut body, libc::TCA_KIND, b"ingress\0");
        assert_eq!(clsact_of(&body), None);
    }
}
