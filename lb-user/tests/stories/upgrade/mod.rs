//! Upgrade to a version whose maps have another layout, the way back, and both cut short: under load, and nothing fails.

mod packets;
mod sockets;

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use lb_common::LAYOUT_VERSION;
use lb_dataplane::upgrade::{pins::link_name, programs::HOOKS};

use crate::{
    Story,
    agent::{Agent, beeline, next_beeline, until, until_looking_each},
    node::{StoryNode, is_slow},
};

pub const STORIES: &[Story] = &[
    ("upgrade_and_rollback_of_the_layout_keep_sockets_counts_and_affinity", sockets::there_and_back),
    ("upgrade_and_rollback_cut_short_at_any_step_leave_sockets_served", sockets::cut_short),
    ("upgrade_and_rollback_of_the_layout_keep_flows_from_outside", packets::there_and_back),
    ("upgrade_and_rollback_cut_short_at_any_step_leave_packets_served", packets::cut_short),
];

/// A version of the agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Version {
    /// This one.
    Own,
    /// One that is made up: entries of `FRONTENDS` are larger.
    Next,
}

impl Version {
    fn other(self) -> Self {
        match self {
            Self::Own => Self::Next,
            Self::Next => Self::Own,
        }
    }

    /// Where its maps are.
    fn maps(self, node: &StoryNode) -> PathBuf {
        let layout = if self == Self::Own { LAYOUT_VERSION } else { LAYOUT_VERSION + 1 };
        node.pins.join(format!("v{layout}"))
    }

    fn start(self, node: &StoryNode, arguments: &[&str]) -> Agent {
        let command = if self == Self::Own { beeline() } else { next_beeline().expect("asked before") };
        Agent::start_as(command, node, arguments)
    }

    /// The only version that is left.
    fn is_alone(self, node: &StoryNode) {
        let left = std::fs::read_dir(&node.pins).expect("the pins").flatten().map(|entry| entry.path());
        let left: Vec<_> = left.filter(|path| !path.to_string_lossy().contains("clsact")).collect();
        assert_eq!(left, [self.maps(node)]);
    }
}

/// How many links a version has in its directory.
fn links(version: Version, node: &StoryNode) -> usize {
    let pins = std::fs::read_dir(version.maps(node)).into_iter().flatten().flatten();
    pins.filter(|pin| pin.file_name().to_string_lossy().starts_with("link_")).count()
}

/// Starts versions in turn, kills each a little later in its start than the one before, then while it takes the links over, and
/// looks after each kill. In the end
/// none runs; which of them is to finish it.
fn cut_short(start: impl Fn(Version) -> Agent, node: &StoryNode, mut look: impl FnMut()) -> Version {
    const STEPS: u32 = 8;
    let mut version = Version::Own;
    // How long it takes from its first sign of life until the other's maps have gone: whole, to begin with.
    let mut whole = Duration::ZERO;
    for _ in 0..2 {
        version = version.other();
        let mut agent = start(version);
        agent.wait_for_log("programs loaded");
        let began = Instant::now();
        agent.wait_for_log("out of service");
        whole = whole.max(began.elapsed());
        agent.kill();
        look();
    }
    println!("from `programs loaded` to the end of the other version: {whole:?}");
    let (mut halves, mut left) = (0, Vec::new());
    for step in 0..STEPS {
        version = version.other();
        let mut agent = start(version);
        agent.wait_for_log("programs loaded");
        thread::sleep(whole * step / STEPS);
        agent.kill();
        halves += u32::from(Version::Own.maps(node).exists() && Version::Next.maps(node).exists());
        left.push([links(Version::Own, node), links(Version::Next, node)]);
        look();
    }
    assert!(halves >= STEPS / 4, "some kills hit an agent in the middle of it: {halves} of {STEPS}");
    for hook in HOOKS.iter().step_by(3) {
        // One takes over as a whole, the other is killed as soon as it has this link, and the first has to begin again.
        let mut whole = start(version);
        whole.wait_until_in_service();
        until("it is alone", || !version.other().maps(node).exists());
        whole.kill();
        version = version.other();
        let mut agent = start(version);
        let link = version.maps(node).join(link_name(hook));
        // The next link is some microseconds away, and ten times as many where all is slow and others need the processor.
        let pause = Duration::from_micros(if is_slow() { 200 } else { 0 });
        until_looking_each(pause, "it has the link", || link.exists());
        agent.kill();
        left.push([links(Version::Own, node), links(Version::Next, node)]);
        look();
        version = version.other();
    }
    println!("links of either version after each kill: {left:?}");
    version
}
