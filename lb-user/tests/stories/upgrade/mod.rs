//! Upgrade to a version with another map layout, rollback, and both interrupted: under load no connection fails.

mod packets;
mod sockets;

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use lb_common::LAYOUT_VERSION;
use lb_dataplane::{attach::cgroup::HOOKS, pins::link_name};

use crate::{
    Story,
    agent::{Agent, beeline, next_beeline, until, until_polled_every},
    node::{StoryNode, is_slow},
};

pub const STORIES: &[Story] = &[
    ("upgrade_and_rollback_of_the_layout_keep_sockets_counts_and_affinity", sockets::upgrade_and_rollback),
    ("upgrade_and_rollback_cut_short_at_any_step_leave_sockets_served", sockets::interrupted),
    ("upgrade_and_rollback_of_the_layout_keep_flows_from_outside", packets::upgrade_and_rollback),
    ("upgrade_and_rollback_cut_short_at_any_step_leave_packets_served", packets::interrupted),
];

/// Stories of this version alone.
pub const OWN: &[Story] = &[
    ("flows_from_outside_go_on_in_a_map_of_another_size", packets::resized),
    ("flows_by_two_devices_begin_while_the_map_gets_another_size", packets::resized_amid_devices),
    ("flows_without_an_answer_give_way_after_the_map_got_smaller", packets::give_way_after_shrinking),
];

/// A version of the agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Version {
    /// The version under test.
    Own,
    /// A made-up next version with larger entries in `FRONTENDS`.
    Next,
}

impl Version {
    fn other(self) -> Self {
        match self {
            Self::Own => Self::Next,
            Self::Next => Self::Own,
        }
    }

    /// Returns the directory of the maps of this version.
    fn maps(self, node: &StoryNode) -> PathBuf {
        let layout = if self == Self::Own { LAYOUT_VERSION } else { LAYOUT_VERSION + 1 };
        node.pins.join(format!("v{layout}"))
    }

    fn start(self, node: &StoryNode, arguments: &[&str]) -> Agent {
        let command = if self == Self::Own { beeline() } else { next_beeline().expect("the runner has checked it") };
        Agent::start_as(command, node, arguments)
    }

    /// Asserts that no pins of another version are left.
    fn assert_alone(self, node: &StoryNode) {
        let left = std::fs::read_dir(&node.pins).expect("the pins").flatten().map(|entry| entry.path());
        let left: Vec<_> = left.filter(|path| !path.to_string_lossy().contains("clsact")).collect();
        assert_eq!(left, [self.maps(node)]);
    }
}

/// Returns the number of pinned links of a version.
fn link_count(version: Version, node: &StoryNode) -> usize {
    let pins = std::fs::read_dir(version.maps(node)).into_iter().flatten().flatten();
    pins.filter(|pin| pin.file_name().to_string_lossy().starts_with("link_")).count()
}

/// Starts the two versions in turn and kills each during its start: first each a little later than the one before, then
/// while it adopts the links. Calls `check` after each kill. Returns the version to start next.
fn interrupt(start: impl Fn(Version) -> Agent, node: &StoryNode, mut check: impl FnMut()) -> Version {
    const STEPS: u32 = 8;
    let mut version = Version::Own;
    // First measure a complete take-over, from loaded programs to the removal of the other version.
    let mut duration = Duration::ZERO;
    for _ in 0..2 {
        version = version.other();
        let mut agent = start(version);
        agent.wait_for_log("programs loaded");
        let began = Instant::now();
        agent.wait_for_log("out of service");
        duration = duration.max(began.elapsed());
        agent.kill();
        check();
    }
    println!("from `programs loaded` to the end of the other version: {duration:?}");
    let (mut interrupted, mut link_counts) = (0, Vec::new());
    for step in 0..STEPS {
        version = version.other();
        let mut agent = start(version);
        agent.wait_for_log("programs loaded");
        thread::sleep(duration * step / STEPS);
        agent.kill();
        interrupted += u32::from(Version::Own.maps(node).exists() && Version::Next.maps(node).exists());
        link_counts.push([link_count(Version::Own, node), link_count(Version::Next, node)]);
        check();
    }
    assert!(interrupted >= STEPS / 4, "kills that left both versions: {interrupted} of {STEPS}");
    for hook in HOOKS.iter().step_by(3) {
        // One version takes over completely, then the other is killed as soon as it has this link.
        let mut first = start(version);
        first.wait_until_in_service();
        until("the other version is removed", || !version.other().maps(node).exists());
        first.kill();
        version = version.other();
        let mut agent = start(version);
        let link = version.maps(node).join(link_name(hook));
        // The next link follows within microseconds, so poll without pause. On an emulated machine leave CPU time to
        // the agent.
        let pause = Duration::from_micros(if is_slow() { 200 } else { 0 });
        until_polled_every(pause, "the version has the link", || link.exists());
        agent.kill();
        link_counts.push([link_count(Version::Own, node), link_count(Version::Next, node)]);
        check();
        version = version.other();
    }
    println!("links of each version after each kill: {link_counts:?}");
    version
}
