//! Room in maps that programs write: for the clients of each Service, and for the counts of many endpoints.

use std::time::Duration;

use lb_common::{Addr, Affinity, AffinityKey, BackendStats, Counter};
use lb_dataplane::stats::counters;
use lb_kernel::{bpf::typed::TypedMap, clock};

use crate::{
    Story,
    agent::{Agent, until, until_polled_every},
    node::{StoryNode, service, with_spec},
    sockets::{at, tcp_ask, tcp_server},
};

pub const STORIES: &[Story] = &[
    ("room_for_affinity_is_shared_by_services", affinity_is_shared),
    ("room_for_the_counts_of_250000_endpoints", counts_of_many_endpoints),
];

const BACKENDS: [&str; 4] = ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080", "10.0.0.4:8080"];

/// Returns the id of a service port.
fn id(agent: &Agent, name: &str) -> u32 {
    let names = agent.dump().names;
    let found = names.iter().find(|(_, port)| port.service.name() == name);
    *found.expect("a service port").0
}

fn counter(node: &StoryNode, wanted: Counter) -> u64 {
    let all = counters(&node.maps()).expect("the counters");
    all.into_iter().find(|(counter, _)| *counter == wanted).map_or(0, |(_, count)| count)
}

fn affinity_is_shared(node: &mut StoryNode) {
    BACKENDS.into_iter().for_each(tcp_server);
    let sticky = |name, vip| with_spec(&service(name, &[vip], "TCP", 80, &BACKENDS), "sessionAffinity: ClientIP");
    node.write("quiet.yaml", &sticky("quiet", "10.96.0.1"));
    node.write("late.yaml", &sticky("late", "10.96.0.2"));
    node.write("public.yaml", &sticky("public", "10.96.0.3"));
    let agent = node.agent(&[]);
    let first = tcp_ask(at("10.96.0.1:80")).expect("served").0;
    // The clients of a public Service, more than the map holds.
    let map = TypedMap::<AffinityKey, Affinity>::open(&node.maps(), "AFFINITY").expect("the map");
    let (size, service) = (map.size().expect("a size"), id(&agent, "public"));
    let (backend, _) = agent.dump().backends.into_iter().find(|(_, backend)| backend.service == service).expect("one");
    let count = u32::try_from(size).expect("a size");
    let client = |n: u32| AffinityKey { client: Addr::from_words([0, 0, 7, n]), service, is_netns: 0 };
    let keys: Vec<AffinityKey> = (0..count).map(client).collect();
    let value = Affinity { used: clock::monotonic_ns(), backend, _pad: 0 };
    assert!(map.put(&keys, &vec![value; keys.len()]).is_err(), "the map is full");
    let flooded = || map.read().expect("the entries").len() == size;
    assert!(flooded());
    // A client of another Service finds no room, and the agent makes some.
    let before = counter(node, Counter::AffinityFull);
    tcp_ask(at("10.96.0.2:80")).expect("served");
    assert!(counter(node, Counter::AffinityFull) > before);
    until_polled_every(Duration::from_millis(100), "there is room for others", || !flooded());
    let late = tcp_ask(at("10.96.0.2:80")).expect("served").0;
    for _ in 0..20 {
        assert_eq!(tcp_ask(at("10.96.0.2:80")).map(|(server, _)| server), Ok(late.clone()));
        assert_eq!(tcp_ask(at("10.96.0.1:80")).map(|(server, _)| server), Ok(first.clone()), "it kept its affinity");
    }
    assert_eq!(map.read().expect("the entries").len(), size / 4 * 3 + 1);
}

fn counts_of_many_endpoints(node: &mut StoryNode) {
    BACKENDS.into_iter().for_each(tcp_server);
    node.write("web.yaml", &service("web", &["10.96.0.1"], "TCP", 80, &BACKENDS));
    let agent = node.agent(&[]);
    let map = TypedMap::<u32, BackendStats>::open(&node.maps(), "BACKEND_STATS").expect("the map");
    let service = id(&agent, "web");
    let ids: Vec<u32> = (1_000_000..1_250_000).collect();
    let open = BackendStats { service, open: 1, connections: 1, ..BackendStats::default() };
    map.put(&ids, &vec![open; ids.len()]).expect("room for 250,000 endpoints");
    for _ in 0..40 {
        tcp_ask(at("10.96.0.1:80")).expect("served");
    }
    let own = || map.read().expect("the counts").into_iter().filter(|(id, _)| *id < 1_000_000);
    assert_eq!(own().map(|(_, stats)| stats.connections).sum::<u64>(), 40);
    until("every close is counted", || own().all(|(_, stats)| stats.open == 0));
    assert_eq!(counter(node, Counter::StatsFull), 0);
}
