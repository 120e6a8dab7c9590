//! Time to end the sockets of a dead backend, and old sockets, among many other sockets: `cargo xtask bench kill`.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};

use foldhash::HashMap;

use lb_common::{
    AddrPort, Backend, Frontend, FrontendKey, Kind, List, Proto, ServiceEntry, Slot, SlotKey, Translation,
};
use lb_core::{op::Op, store::Store as _};
use lb_dataplane::{
    load::Loader,
    pins::Pins,
    sockets::{self, Aged, EndReport, Search},
    upgrade::programs::MapSizes,
};
use lb_lab::{
    sandbox::{Inside, enter_namespaces, run_again},
    table::{Spread, header, row},
};
use rustix::{
    net::{AddressFamily, SocketType, bind, connect, listen, socket},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

/// Rounds of a figure; odd, so that there is a median.
const ROUNDS: usize = 11;

/// Other open sockets.
const OTHERS: usize = 100_000;

/// Processes that hold these sockets, since the limit of descriptors is per process.
const HOLDERS: u8 = 10;

/// Longest queue of a listener that accepts no connection: all of them.
const QUEUE: i32 = 2 * OTHERS as i32;

/// Other network namespaces.
const PODS: usize = 100;

/// Ids of the two service ports, and of the one backend of each.
const LIVING: u32 = 1;
const DYING: u32 = 2;
/// The service port of TCP.
const AGED: u32 = 3;

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    if let [_, flag, number] = arguments.as_slice()
        && flag == "--hold"
    {
        return hold(number.parse().expect("a number"));
    }
    if let [_, flag, number] = arguments.as_slice()
        && flag == "--hold-tcp"
    {
        return hold_tcp(number.parse().expect("a number"));
    }
    if arguments.iter().any(|flag| flag == "--pod") {
        enter_namespaces();
        return wait();
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("the bench of ending sockets needs root");
        std::process::exit(1);
    }
    match Inside::find() {
        Some(inside) => measure(&inside),
        None => std::process::exit(run_again("bench")),
    }
}

fn measure(inside: &Inside) {
    inside.join_cgroup();
    let pins = Pins::at(inside.enter().join("beeline"));
    let mut datapath = Loader::load(pins.clone(), MapSizes::new()).expect("the programs load");
    datapath.store().expect("the maps").apply(&all_ops()).expect("room in the maps");
    datapath.attach(&inside.cgroup).expect("the programs attach");
    let pins = pins.current();

    let others = Holders::start((0..HOLDERS).map(|number| vec!["--hold".to_owned(), number.to_string()]));
    let dying = AddrPort::from(backend(DYING));
    header();
    for count in [1, 100] {
        let what = format!("end {count} of {} UDP sockets", OTHERS + count);
        row(&what, "100 ms", "ms", &rounds(count, || end(&pins, Some(&[dying]))));
    }
    let what = format!("the same with 64 backends dead, 100 of {} UDP sockets", OTHERS + 100);
    let many: Vec<_> = (0..63).map(|n| SocketAddr::from(([10, 9, 9, n], 53)).into()).chain([dying]).collect();
    row(&what, "100 ms", "ms", &rounds(100, || end(&pins, Some(&many))));
    let pods = Holders::start((0..PODS).map(|_| vec!["--pod".to_owned()]));
    let what = format!("end 100 of {} UDP sockets, and {PODS} pods without any", OTHERS + 100);
    row(&what, "100 ms", "ms", &rounds(100, || end(&pins, Some(&[dying]))));
    drop(pods);
    let what = format!("after a start: look at all {} UDP sockets, end 100", OTHERS + 100);
    row(&what, "1000 ms", "ms", &rounds(100, || end(&pins, None)));
    drop(others);
    measure_ages(&pins);
}

/// Measures a look at the ages of TCP sockets, and the questions to those whose time is over. All of them are busy: a
/// client without an answer.
fn measure_ages(pins: &Path) {
    std::fs::write("/proc/sys/net/core/somaxconn", QUEUE.to_string()).expect("a namespace of its own");
    let listener = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    bind(&listener, &backend(AGED)).expect("a free port");
    listen(&listener, QUEUE).expect("a listener");
    let _clients = Holders::start((0..HOLDERS).map(|number| vec!["--hold-tcp".to_owned(), number.to_string()]));
    let time = |work: &dyn Fn()| {
        let times = (0..ROUNDS).map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64() * 1e3
        });
        Spread::of(times.collect::<Vec<_>>().into_iter())
    };
    let read = || sockets::translated(pins).expect("the maps");
    let known = read();
    assert_eq!(known.len(), OTHERS);
    row(&format!("read the backends of {OTHERS} TCP sockets"), "100 ms", "ms", &time(&|| drop(read())));
    let aged = Aged { peer: backend(AGED).into(), service: AGED, must_end: false };
    for count in [100, OTHERS] {
        let over: HashMap<u64, Aged> = known.iter().take(count).map(|(cookie, _)| (*cookie, aged)).collect();
        let ask = || {
            let report = sockets::end_aged(&over).expect("/proc");
            assert_eq!((report.ended.len(), report.failures.len()), (0, 0), "{report:?}");
        };
        row(&format!("ask {count} busy ones of {OTHERS} TCP sockets"), "1000 ms", "ms", &time(&ask));
    }
}

/// Ends the UDP sockets that lead to the dying backend, among those with these peers.
fn end(pins: &Path, peers: Option<&[AddrPort]>) -> EndReport {
    let is_lost = |translation: &Translation| translation.backend == DYING;
    let peers = peers.map(|peers| peers.iter().copied().collect());
    let search = Search { proto: Proto::Udp, peers, is_lost: Box::new(is_lost) };
    sockets::end(pins, vec![search]).expect("the maps and /proc")
}

/// Milliseconds to end `count` sockets, by round.
fn rounds(count: usize, end: impl Fn() -> EndReport) -> Spread {
    let times = (0..ROUNDS).map(|_| {
        let _victims = open(Ipv4Addr::new(127, 1, 2, 1), vip(DYING), count);
        let report = end();
        assert_eq!((report.ended.get(&DYING), report.failures.len()), (Some(&(count as u64)), 0), "{report:?}");
        report.took.as_secs_f64() * 1e3
    });
    Spread::of(times.collect::<Vec<_>>().into_iter())
}

/// Opens UDP sockets at one address and connects them to another.
fn open(at: Ipv4Addr, to: SocketAddr, count: usize) -> Vec<UdpSocket> {
    let open = |port| {
        let socket = UdpSocket::bind((at, port)).expect("a free port");
        socket.connect(to).expect("connected");
        socket
    };
    (10_000..).take(count).map(open).collect()
}

/// Processes that hold sockets or namespaces open.
struct Holders(Vec<Child>);

impl Holders {
    fn start(commands: impl Iterator<Item = Vec<String>>) -> Self {
        let start = |arguments: Vec<String>| {
            let mut command = this_program();
            command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
            command.spawn().expect("this program starts")
        };
        let mut children: Vec<_> = commands.map(start).collect();
        for child in &mut children {
            child
                .stdout
                .as_mut()
                .expect("a pipe")
                .read_exact(&mut [0])
                .expect("the process reports that everything is open");
        }
        Self(children)
    }
}

impl Drop for Holders {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ended = child.kill();
            let _ended = child.wait();
        }
    }
}

/// Holds sockets open. Half of the processes dial the VIP of the living backend, half its own address.
fn hold(number: u8) {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("as many descriptors as allowed");
    let to = if number.is_multiple_of(2) { vip(LIVING) } else { backend(LIVING) };
    let _sockets = open(Ipv4Addr::new(127, 1, 1, number), to, OTHERS / usize::from(HOLDERS));
    wait();
}

/// Holds TCP connections through the VIP open.
fn hold_tcp(number: u8) {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("as many descriptors as allowed");
    let at = |port| SocketAddr::from(([127, 1, 3, number], port));
    let open = |port| -> OwnedFd {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        bind(&socket, &at(port)).expect("a free port");
        connect(&socket, &vip(AGED)).expect("a connection");
        socket
    };
    let _sockets: Vec<_> = (10_000..).take(OTHERS / usize::from(HOLDERS)).map(open).collect();
    wait();
}

/// Reports that everything is open, and waits until stdin closes.
fn wait() {
    print!("r");
    std::io::stdout().flush().expect("a pipe");
    let _closed = std::io::stdin().read(&mut [0]);
}

fn this_program() -> Command {
    Command::new(std::env::current_exe().expect("this program"))
}

fn vip(id: u32) -> SocketAddr {
    ([10, 96, 0, id as u8], 53).into()
}

fn backend(id: u32) -> SocketAddr {
    ([127, 0, 0, id as u8], 53).into()
}

/// The map writes for all Services.
fn all_ops() -> Vec<Op> {
    [ops(LIVING, Proto::Udp), ops(DYING, Proto::Udp), ops(AGED, Proto::Tcp)].concat()
}

/// The map writes for a Service with one backend.
fn ops(id: u32, proto: Proto) -> Vec<Op> {
    let (frontend, target) = (vip(id), backend(id));
    let slot = Slot { addr: target.ip().into(), port: target.port(), weight: 1, backend: id };
    let key = FrontendKey::new(frontend.ip().into(), frontend.port(), proto);
    let (word, bits) = key.bit();
    vec![
        Op::PutFrontendBits(word, bits),
        Op::PutBackend(
            id,
            Backend { addr: slot.addr, port: slot.port, flags: lb_common::BackendFlags::CLUSTER, service: id },
        ),
        Op::PutSlot(SlotKey::new(id, List::Cluster, 0), slot),
        Op::PutService(id, ServiceEntry { cluster_len: 1, ..ServiceEntry::default() }),
        Op::PutFrontend(key, Frontend::new(id, Kind::ClusterIp)),
    ]
}
