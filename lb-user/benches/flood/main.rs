//! Clients of a Service while first packets from forged addresses flood another one: `cargo xtask bench flood`.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use lb_kernel::packet_socket::PacketSocket;
use lb_lab::{
    ChildProcess,
    network::{Host, Lan, LanOptions},
    sandbox::{Inside, run_again},
};
use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};

/// First packets a second.
const RATE: u64 = 100_000;
/// Connections to the Service that is not flooded.
const TRIES: usize = 1_000;
/// Time between the beginnings of two of them.
const PACE: Duration = Duration::from_millis(10);
/// Limit of a connection: a second packet is sent after one second.
const LIMIT: Duration = Duration::from_millis(900);
/// Open connections that must survive.
const OPEN: usize = 100;

/// Backend of the Service that is flooded: on the other node, which drops its packets.
const SILENT: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 250);

const TARGET: u16 = 8080;
const FLOODED: u16 = 30080;
const QUIET: u16 = 30081;

fn main() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("the bench of a flood needs root");
        std::process::exit(1);
    }
    match Inside::find() {
        Some(inside) => measure(&inside),
        None => std::process::exit(run_again("bench")),
    }
}

fn measure(inside: &Inside) {
    inside.join_cgroup();
    let pins = inside.enter().join("beeline");
    let directory = tempfile::tempdir().expect("a directory");
    let lan = Lan::make(LanOptions::default());
    let here = lan.node1.pods.first().expect("a pod");
    echo(here);
    // Beyond this node: its pod would cost more CPU time than all else, and leave too little for the rate.
    let (silent, route) = (SILENT.to_string(), format!("{SILENT}/32"));
    lan.node2.host.net.run(&["ip", "route", "add", "blackhole", &route]);
    let services = [service(FLOODED, &silent), service(QUIET, &here.v4.to_string())].concat();
    fs::write(directory.path().join("web.yaml"), services).expect("a file");
    let agent = start_agent(inside, &pins, directory.path(), &lan.node1.host);
    agent.wait_until_in_service();

    let node = lan.node1.host.v4;
    let quiet = SocketAddr::from((node, QUIET));
    let ask = |to: SocketAddr| {
        lan.client.net.enter(|| TcpStream::connect_timeout(&to, LIMIT).and_then(|stream| exchange(&stream)))
    };
    while ask(quiet).is_err() {
        thread::sleep(Duration::from_millis(50));
    }
    let open: Vec<TcpStream> = lan.client.net.enter(|| (0..OPEN).map(|_| ask_open(quiet)).collect());
    let counts = |name: &str| counter(&pins, name);
    let before = ["flows_early_drop", "flows_full", "snat_exhausted"].map(counts);
    let (is_over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let began = Instant::now();
    let (failed, slowest) = thread::scope(|scope| {
        scope.spawn(|| lan.client.net.enter(|| flood(&lan, &is_over, &sent)));
        // The flood has filled what it can fill.
        thread::sleep(Duration::from_secs(5));
        let (mut failed, mut slowest) = (0, Duration::ZERO);
        for number in 0..TRIES {
            let begin = Instant::now();
            failed += usize::from(ask(quiet).is_err());
            slowest = slowest.max(begin.elapsed());
            let next = began + Duration::from_secs(5) + PACE * u32::try_from(number).expect("few");
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        is_over.store(true, Ordering::Relaxed);
        (failed, slowest)
    });
    let rate = sent.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
    let lost = open.iter().filter(|stream| exchange(stream).is_err()).count();
    let after = ["flows_early_drop", "flows_full", "snat_exhausted"].map(counts);
    println!("| what | figure |\n|---|---|");
    println!("| first packets a second, aim {RATE} | {rate:.0} |");
    println!("| failed of {TRIES} connections to the other Service, aim 1 | {failed} |");
    println!("| slowest of them | {slowest:.1?} |");
    println!("| lost of {OPEN} open connections, aim 0 | {lost} |");
    for ((name, before), after) in
        ["flows_early_drop", "flows_full", "snat_exhausted"].into_iter().zip(before).zip(after)
    {
        println!("| {name} | {} |", after - before);
    }
}

fn start_agent(inside: &Inside, pins: &Path, yaml: &Path, host: &Host) -> ChildProcess {
    let cgroup = inside.cgroup.join("node1");
    fs::create_dir(&cgroup).expect("a cgroup");
    let mut command = Command::new(env!("CARGO_BIN_EXE_beeline"));
    command.arg("--pins").arg(pins).args(["run", "--node-name", "here", "--directory"]).arg(yaml);
    command.args(["--healthz-bind-address", "", "--metrics-bind-address", "", "--cgroup"]).arg(cgroup);
    host.net.enter(|| ChildProcess::start(&mut command, &yaml.join("agent.log")))
}

/// Returns a Service with a TCP NodePort, and one backend.
fn service(node_port: u16, backend: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web-{node_port}}}\nspec:\n  type: NodePort\n  \
         clusterIP: 10.96.0.{last}\n  ports: [{{port: 80, protocol: TCP, nodePort: {node_port}}}]\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: web-{node_port}, labels: {{kubernetes.io/service-name: web-{node_port}}}}}\n\
         addressType: IPv4\nports: [{{port: {TARGET}, protocol: TCP}}]\n\
         endpoints: [{{addresses: [\"{ip}\"]}}]\n---\n",
        last = node_port - 30_000,
        ip = backend,
    )
}

/// Starts a server that returns each octet.
fn echo(host: &Host) {
    let listener = host.net.enter(|| TcpListener::bind((host.v4, TARGET))).expect("a free port");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut octet = [0];
                while stream.read_exact(&mut octet).and_then(|()| stream.write_all(&octet)).is_ok() {}
            });
        }
    });
}

fn ask_open(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&to, LIMIT).expect("a connection before the flood");
    exchange(&stream).expect("an answer before the flood");
    stream
}

fn exchange(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

/// Sends first packets of connections, each from another forged address, until it is over.
fn flood(lan: &Lan, is_over: &AtomicBool, sent: &AtomicU64) {
    let any = socket(AddressFamily::INET, SocketType::DGRAM, None).expect("a socket");
    let device = PacketSocket::open(name_to_index(&any, "eth0").expect("the uplink")).expect("a packet socket");
    let (to, from) = (link_address(&lan.node1.host), link_address(&lan.client));
    let began = Instant::now();
    let mut number = 0_u64;
    while !is_over.load(Ordering::Relaxed) {
        let due = began.elapsed().as_micros() as u64 * RATE / 1_000_000;
        let end = due.min(number + 500);
        while number < end {
            let source = Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 0).to_bits() | (number as u32 & 0x1_ffff));
            let frame = syn(to, from, (source, 1_024 + (number >> 17) as u16), (lan.node1.host.v4, FLOODED));
            sent.fetch_add(u64::from(device.send(&frame).is_ok()), Ordering::Relaxed);
            number += 1;
        }
        if number >= due {
            thread::sleep(Duration::from_micros(200));
        }
    }
}

fn link_address(host: &Host) -> [u8; 6] {
    let text = host.net.run(&["ip", "-oneline", "link", "show", "dev", "eth0"]);
    let address = text.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).expect("an address");
    let octets: Vec<u8> = address.split(':').filter_map(|octet| u8::from_str_radix(octet, 16).ok()).collect();
    octets.try_into().expect("six octets")
}

fn syn(to: [u8; 6], from: [u8; 6], source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> Vec<u8> {
    let mut ip = [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0].to_vec();
    ip.extend(source.0.octets());
    ip.extend(destination.0.octets());
    let checksum = sum(&ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut tcp = [source.1.to_be_bytes(), destination.1.to_be_bytes()].concat();
    tcp.extend([0, 0, 1, 0, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    let pseudo = [&source.0.octets()[..], &destination.0.octets(), &[0, 6, 0, 20], &tcp].concat();
    tcp[16..18].copy_from_slice(&sum(&pseudo).to_be_bytes());
    [&to[..], &from, &[8, 0], &ip, &tcp].concat()
}

fn sum(octets: &[u8]) -> u16 {
    let sum: u32 = octets.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

/// Returns the value of a counter.
fn counter(pins: &Path, name: &str) -> u64 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_beeline"));
    let output = command.arg("--pins").arg(pins).args(["get", "counters"]).output().expect("the beeline binary");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let row = text.lines().find(|line| line.contains(name)).expect("a counter");
    row.split_whitespace().find_map(|word| word.parse().ok()).expect("a number")
}
