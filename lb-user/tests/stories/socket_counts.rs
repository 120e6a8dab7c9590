//! A property test: after any sequence of socket calls the counts of open sockets equal those of a simple model.

use std::collections::BTreeMap;

use lb_common::{BackendStats, FrontendKey, Proto, TcpSock, Translation};
use lb_dataplane::stats::StatMaps;
use lb_kernel::bpf::typed::TypedMap;
use lb_lab::rng::Rng;

use crate::{
    Story,
    node::{StoryNode, annotated, service},
    sockets::{Client, at, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("open_socket_counts_match_a_model_after_any_sequence_of_calls", counts_match_the_model),
    ("open_socket_counts_lose_sockets_whose_close_no_hook_tells", closed_sockets_of_the_kernel),
];

/// A Service with one backend, `ONLY`.
const A: &str = "10.96.0.1:80";
const ONLY: &str = "10.0.0.1:8080";
/// A Service with two backends.
const B: &str = "10.96.0.2:80";
/// A TCP Service whose only backend does not listen.
const REFUSING: &str = "10.96.0.3:80";
/// An address of no Service.
const PLAIN: &str = "10.0.0.4:7";

/// A socket, and the VIPs that it has an open translation for.
enum Socket {
    Tcp(Client, Option<&'static str>),
    Udp(Client, Vec<&'static str>),
}

impl Socket {
    fn open_vips(&self) -> &[&'static str] {
        match self {
            Self::Tcp(_, vips) => vips.as_slice(),
            Self::Udp(_, vips) => vips,
        }
    }
}

/// Makes one random call on a socket and updates the model.
fn step(socket: &mut Socket, random: &mut Rng) {
    match socket {
        Socket::Tcp(client, vips) => {
            if vips.is_some_and(|vip| vip != REFUSING) {
                // The socket is connected: a second connect fails before any hook.
                assert!(client.connect(at(A)).is_err());
                return;
            }
            let to = [A, B, REFUSING][random.index(3)];
            assert_eq!(client.connect(at(to)).is_err(), to == REFUSING);
            *vips = Some(to);
        }
        Socket::Udp(client, vips) => {
            let add = |vips: &mut Vec<&'static str>, vip| {
                if !vips.contains(&vip) {
                    vips.push(vip);
                }
            };
            match random.index(8) {
                0 | 1 => {
                    let vip = [A, B][random.index(2)];
                    client.connect(at(vip)).expect("connected");
                    // A connected socket receives from its peer only: its other translations end.
                    *vips = vec![vip];
                }
                2 | 3 => {
                    let vip = [A, B][random.index(2)];
                    // The named destination counts, with or without a peer.
                    client.send_to(at(vip)).expect("sent");
                    add(vips, vip);
                }
                4 => {
                    client.connect(at(PLAIN)).expect("connected");
                    vips.clear();
                }
                5 => client.disconnect(),
                6 => {
                    client.connect(at(ONLY)).expect("connected");
                    vips.clear();
                }
                // A datagram straight to its backend removes the translation.
                _ => {
                    client.send_to(at(ONLY)).expect("sent");
                    vips.retain(|vip| *vip != A);
                }
            }
        }
    }
}

fn counts_match_the_model(node: &mut StoryNode) {
    const SOCKETS: usize = 40;
    const STEPS: usize = 3_000;
    let both = ["10.0.0.2:8080", "10.0.0.3:8080"];
    for server in both.into_iter().chain([ONLY]) {
        tcp_server(server);
        udp_server(server);
    }
    for (protocol, scheduler) in [("TCP", "wlc"), ("UDP", "rr")] {
        let tagged = |name: &str| format!("{name}-{}", protocol.to_lowercase());
        let write = |name: &str, vip: &str, backends: &[&str]| {
            let yaml = service(&tagged(name), &[vip], protocol, 80, backends);
            node.write(
                &format!("{}.yaml", tagged(name)),
                &annotated(&yaml, &format!("beeline.io/scheduler: {scheduler}")),
            );
        };
        write("a", "10.96.0.1", &[ONLY]);
        write("b", "10.96.0.2", &both);
        write("refusing", "10.96.0.3", &["10.0.0.4:9"]);
    }
    let agent = node.agent(&[]);
    let dump = agent.dump();
    let open = || {
        let stats = StatMaps::open(&node.maps()).and_then(|maps| maps.read()).expect("the pinned maps");
        let of = |vip, proto| {
            let key = FrontendKey::new(at(vip).ip().into(), at(vip).port(), proto);
            stats.open(dump.frontends[&key].service)
        };
        let both = |vip| ((vip, "TCP"), of(vip, Proto::Tcp), (vip, "UDP"), of(vip, Proto::Udp));
        let mut counts = BTreeMap::new();
        for (tcp, tcp_open, udp, udp_open) in [A, B, REFUSING].map(both) {
            counts.extend([(tcp, tcp_open), (udp, udp_open)]);
        }
        counts
    };
    for seed in 1..=3 {
        let mut random = Rng::new(seed);
        let mut sockets: Vec<Socket> = Vec::new();
        for number in 0..STEPS {
            if sockets.len() < SOCKETS {
                sockets.push(match random.index(2) {
                    0 => Socket::Tcp(Client::tcp(at(A)), None),
                    _ => Socket::Udp(Client::udp(at(A)), Vec::new()),
                });
            }
            let at = random.index(sockets.len());
            if random.index(10) == 0 {
                sockets.swap_remove(at);
            } else {
                step(&mut sockets[at], &mut random);
            }
            if number % 50 == 0 || number == STEPS - 1 {
                let mut expected: BTreeMap<_, u64> = open().into_keys().map(|key| (key, 0)).collect();
                for socket in &sockets {
                    let proto = if matches!(socket, Socket::Tcp(..)) { "TCP" } else { "UDP" };
                    for vip in socket.open_vips() {
                        *expected.get_mut(&(*vip, proto)).expect("a VIP") += 1;
                    }
                }
                assert_eq!(open(), expected, "seed {seed}, step {number}");
            }
        }
        drop(sockets);
        assert!(open().values().all(|count| *count == 0), "seed {seed}: {:?}", open());
    }
}

/// The entries stand for those of sockets of the kernel itself, such as NFS opens: their sockets are gone, and no hook
/// has run.
fn closed_sockets_of_the_kernel(node: &mut StoryNode) {
    tcp_server(ONLY);
    node.write("a.yaml", &service("a", &["10.96.0.1"], "TCP", 80, &[ONLY]));
    let mut agent = node.agent(&[]);
    agent.wait_until_in_service();
    let clients: Vec<Client> = (0..3).map(|_| Client::tcp(at(A))).collect();
    clients.iter().for_each(|client| client.connect(at(A)).expect("connected"));
    agent.kill();
    let places = TypedMap::<u32, TcpSock>::open(&node.maps(), "TCP_SOCKS").expect("the map");
    let more = TypedMap::<u64, Translation>::open(&node.maps(), "TCP_MORE").expect("the map");
    let counts = TypedMap::<u32, BackendStats>::open(&node.maps(), "BACKEND_STATS").expect("the map");
    let held = |places: &TypedMap<u32, TcpSock>| {
        let all = places.read().expect("entries").into_iter();
        all.filter(|(_, place)| place.cookie != 0).collect::<Vec<_>>()
    };
    let known = held(&places);
    assert_eq!(known.len(), 3);
    let &(index, taken) = known.first().expect("an entry");
    // Cookies beyond all that the kernel has given.
    let cookie = |index: u32| (1 << 40) | u64::from(index);
    let free = (0..).find(|index| known.iter().all(|(held, _)| held != index)).expect("a free place");
    places.put(&[free], &[TcpSock { cookie: cookie(free), ..taken }]).expect("written");
    more.put(&[cookie(index)], &[taken.given]).expect("written");
    places.put(&[index], &[TcpSock { more: 1, ..taken }]).expect("written");
    let backend = taken.given.backend;
    let before = counts.get(&backend).expect("the map").expect("counts");
    assert_eq!(before.open, 3);
    counts.put(&[backend], &[BackendStats { open: 5, ..before }]).expect("written");
    let agent = node.agent(&[]);
    agent.wait_for_log("TCP sockets without a connection");
    assert_eq!(counts.get(&backend).expect("the map").expect("counts").open, 3);
    assert_eq!((held(&places), more.read().expect("entries").len()), (known, 0));
    clients.iter().for_each(|client| assert_eq!(client.peer(), Some(at(A))));
    drop(clients);
    assert_eq!(counts.get(&backend).expect("the map").expect("counts").open, 0);
}
