//! Damage to the datapath, as data and as one line of text. Pure.

use std::{fmt, path::PathBuf};

/// Most names that a line of the log lists; of more it has the number.
const MAX_NAMED: usize = 4;

/// A part of the datapath that another program took away or changed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    /// The mount of the bpffs.
    Mount(PathBuf),
    /// The pin directory.
    Directory(PathBuf),
    /// The lock of the pin directory.
    Lock,
    /// The pin of a map or a link, by its file name.
    Pin(String),
    /// The link of a program at the cgroup.
    Link(&'static str),
    /// The program of a link at the cgroup.
    Program {
        /// Name of the hook.
        hook: &'static str,
        /// Id of the program in its place.
        by: u32,
    },
    /// The programs at a network device, by its name.
    Device(String),
    /// The program at the node's look-up of sockets.
    SocketLookup,
}

impl Part {
    /// True if Services are not served without the part. Without the others they are, until the agent ends.
    #[must_use]
    pub const fn serves(&self) -> bool {
        matches!(self, Self::Link(_) | Self::Program { .. } | Self::Device(_) | Self::SocketLookup)
    }
}

/// A missing part, and the reason why it is still missing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// The part.
    pub part: Part,
    /// Error of the repair; none if the part is back.
    pub error: Option<String>,
}

impl Damage {
    /// Combines a part with the result of its repair.
    pub(crate) fn new(part: Part, repair: anyhow::Result<()>) -> Self {
        Self { part, error: repair.err().map(|error| format!("{error:#}")) }
    }
}

/// Describes damages of one state, repaired or not, as the causes that a line of the log lists.
#[must_use]
pub fn describe<'a>(damages: impl IntoIterator<Item = &'a Damage>) -> String {
    let (mut causes, mut pins, mut links, mut devices) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut errors: Vec<&str> = Vec::new();
    for Damage { part, error } in damages {
        match part {
            Part::Mount(at) => causes.push(format!("the bpffs at {} was unmounted", at.display())),
            Part::Directory(at) => causes.push(format!("the directory {} was removed", at.display())),
            Part::Lock => causes.push("the lock of the pin directory was lost".to_owned()),
            Part::SocketLookup => causes.push("detached from the network namespace: socket_lookup".to_owned()),
            Part::Program { hook, by } => causes.push(format!("program {by} took the place of {hook}")),
            Part::Pin(name) => pins.push(name.as_str()),
            Part::Link(hook) => links.push(*hook),
            Part::Device(name) => devices.push(name.as_str()),
        }
        errors.extend(error.as_deref());
    }
    for (names, what) in [
        (links, "detached from the cgroup"),
        (devices, "detached from a device, or replaced there"),
        (pins, "unpinned"),
    ] {
        if !names.is_empty() {
            causes.push(format!("{what}: {}", Names(&names)));
        }
    }
    errors.sort_unstable();
    errors.dedup();
    let errors: String = errors.iter().map(|error| format!(": {error}")).collect();
    causes.join("; ") + &errors
}

/// Names, or their number.
struct Names<'a>(&'a [&'a str]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.get(..MAX_NAMED) {
            Some(first) if self.0.len() > MAX_NAMED => {
                write!(f, "{} and {} more", first.join(", "), self.0.len() - MAX_NAMED)
            }
            _ => f.write_str(&self.0.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damage(part: Part, error: Option<&str>) -> Damage {
        Damage { part, error: error.map(str::to_owned) }
    }

    #[test]
    fn a_line_names_each_cause_once_and_few_names() {
        let check = |damages: &[Damage], expected: &str| assert_eq!(describe(damages), expected);
        check(&[damage(Part::Link("connect4"), None)], "detached from the cgroup: connect4");
        let program = Part::Program { hook: "connect4", by: 7 };
        check(&[damage(program, None)], "program 7 took the place of connect4");
        let pins = ["A", "B", "C", "D", "E", "F"].map(|name| damage(Part::Pin(name.to_owned()), None));
        check(&pins[..4], "unpinned: A, B, C, D");
        check(&pins, "unpinned: A, B, C, D and 2 more");
        let refused = ["A", "B"].map(|name| damage(Part::Pin(name.to_owned()), Some("EPERM")));
        let mount = damage(Part::Mount("/sys/fs/bpf".into()), Some("EPERM"));
        let all: Vec<_> = [mount].into_iter().chain(refused).collect();
        check(&all, "the bpffs at /sys/fs/bpf was unmounted; unpinned: A, B: EPERM");
    }

    #[test]
    fn services_are_served_without_pins_and_not_without_programs() {
        assert!(Part::Link("connect4").serves() && Part::Device("eth0".to_owned()).serves());
        assert!(!Part::Pin("SERVICES".to_owned()).serves() && !Part::Mount("/sys/fs/bpf".into()).serves());
    }
}
