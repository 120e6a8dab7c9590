//! Slow start: the slots of a new endpoint over time, and over a restart of the agent.

use std::time::Instant;

use crate::{
    Story,
    agent::{Agent, until},
    node::{StoryNode, annotated, is_slow, service},
    sockets::{at, tcp_ask, tcp_server},
};

pub const STORIES: &[Story] = &[("a_new_endpoint_gets_its_weight_slowly_also_over_a_restart", weight_rises)];

const VIP: &str = "10.96.0.1:80";
const OLD: [&str; 2] = ["10.0.0.1:8080", "10.0.0.2:8080"];
const NEW: &str = "10.0.0.3:8080";

/// Slots of the new endpoint, and of all.
fn slots(agent: &Agent) -> (usize, usize) {
    let dump = agent.dump();
    let new = at(NEW).ip().into();
    (dump.slots.values().filter(|slot| slot.addr == new).count(), dump.slots.len())
}

fn weight_rises(node: &mut StoryNode) {
    let seconds = if is_slow() { 300 } else { 6 };
    let web = |backends: &[&str]| {
        let annotation = format!("beeline.io/slow-start: {seconds}s");
        annotated(&service("web", &["10.96.0.1"], "TCP", 80, backends), &annotation)
    };
    for server in OLD.into_iter().chain([NEW]) {
        tcp_server(server);
    }
    node.write("web.yaml", &web(&OLD));
    let mut agent = node.agent(&[]);
    assert_eq!(slots(&agent), (0, 2), "the first endpoints begin at once");
    let start = Instant::now();
    node.write("web.yaml", &web(&[OLD[0], OLD[1], NEW]));
    until("the new endpoint is in the list", || slots(&agent).0 > 0);
    let mut seen = vec![slots(&agent)];
    assert!(seen[0].0 <= 2 && seen[0].1 >= 20, "{seen:?}");
    let mut rises_to = |agent: &Agent, slots_of_new: usize| {
        until("the weight rises", || {
            let now = slots(agent);
            // Reading is not one step: a list may be seen between two lengths.
            if seen.last() != Some(&now) && now.0 >= seen.last().map_or(0, |last| last.0) {
                seen.push(now);
            }
            now.0 >= slots_of_new || now.1 == 3
        });
        slots(agent)
    };
    assert!(rises_to(&agent, 4).1 > 3, "not at once");
    agent.kill();
    let agent = node.agent(&[]);
    let (of_new, all) = slots(&agent);
    assert!((4..10).contains(&of_new) && all > 20, "{of_new} of {all}: it goes on");
    assert!(tcp_ask(at(VIP)).is_ok());
    until("every endpoint has its weight", || slots(&agent) == (1, 3));
    assert!(start.elapsed().as_secs() >= seconds - 1, "{:?}", start.elapsed());
}
