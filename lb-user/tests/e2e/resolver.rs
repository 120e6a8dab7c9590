//! A resolver: one question, or questions at a steady rate, whether answers come or not. Its counts tell who answered
//! and which questions were lost.

use std::{
    fs,
    io::{Read as _, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::{
    cluster::Cluster,
    pods,
    process::{try_run, until},
};

/// The name that a cache and the pods of DNS answer differently.
pub const NAME: &str = "who.test";
/// The answer of a cache.
pub const BY_CACHE: &str = "192.0.2.1";
/// The answer of the pods of DNS.
pub const BY_SERVICE: &str = "192.0.2.2";

/// 500 questions a second.
const PERIOD: Duration = Duration::from_millis(2);
/// Limit for an answer, generous for busy machines.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two lines of counts.
const LINE: Duration = Duration::from_millis(200);

/// Zone of a Corefile that answers [`NAME`]; `bind` is its line `bind …`, or empty.
pub fn zone(bind: &str, answer: &str) -> String {
    format!("{NAME}:53 {{\n  {bind}\n  template IN A {{\n    answer \"{{{{ .Name }}}} 60 IN A {answer}\"\n  }}\n}}\n")
}

/// Seconds since 1970, the same on all nodes of this machine.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs_f64()
}

/// Asks `udp=ADDRESS:PORT` or `tcp=ADDRESS:PORT` for the address of [`NAME`], and prints it.
pub fn main(target: &str) -> ExitCode {
    let (kind, server) = target.split_once('=').expect("kind=address:port");
    let server: SocketAddr = server.parse().expect("address:port");
    let query = query();
    let answer = if kind == "udp" { ask_udp(server, &query) } else { ask_tcp(server, &query) };
    match answer.map_err(|error| error.to_string()).and_then(|answer| address_in(&answer, &query)) {
        Ok(address) => println!("{address}"),
        Err(error) => {
            println!("failed: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Asks from a pod.
pub fn ask_from_pod(cluster: &Cluster, pod: &str, target: &str) -> Result<String, String> {
    cluster.try_kubectl(&["exec", pod, "--", "/e2e", "resolve", target]).map(|answer| answer.trim_end().to_owned())
}

/// Asks from a process of a node.
pub fn ask_from_node(cluster: &Cluster, node: &str, target: &str) -> Result<String, String> {
    let own = std::env::current_exe().expect("this program");
    try_run(cluster.node(node).host_process(own).args(["resolve", target])).map(|answer| answer.trim_end().to_owned())
}

fn any(server: SocketAddr) -> SocketAddr {
    if server.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() }
}

fn ask_udp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = UdpSocket::bind(any(server))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.send(query)?;
    let mut answer = vec![0; 512];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

fn ask_tcp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let length = u16::try_from(query.len()).expect("short").to_be_bytes();
    stream.write_all(&[&length, query].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

/// A question for the address of [`NAME`], with an id of its own.
fn query() -> Vec<u8> {
    static ID: AtomicU16 = AtomicU16::new(1);
    let id = ID.fetch_add(1, Relaxed).to_be_bytes();
    let mut query = vec![id[0], id[1], 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in NAME.split('.') {
        query.push(u8::try_from(label.len()).expect("short"));
        query.extend(label.bytes());
    }
    // The root, type A, class IN.
    query.extend([0, 0, 1, 0, 1]);
    query
}

/// The address at the end of an answer to this question.
fn address_in(answer: &[u8], query: &[u8]) -> Result<IpAddr, String> {
    let is_answer = answer.get(..2) == query.get(..2) && answer.get(7) == Some(&1);
    let address = answer.last_chunk::<4>().filter(|_| is_answer);
    address.map(|address| IpAddr::from(*address)).ok_or_else(|| format!("no address in {answer:?}"))
}

/// A question without an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Lost {
    /// Seconds since 1970 when it was sent.
    pub sent: f64,
    /// The error, and the kind of socket.
    pub error: String,
}

/// Counts so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// Questions sent.
    pub asked: u64,
    /// Answers of the cache.
    pub by_cache: u64,
    /// Answers of the pods of DNS.
    pub by_service: u64,
    /// Questions without an answer, after the first answer.
    pub lost: Vec<Lost>,
}

#[derive(Default)]
struct Shared {
    by_cache: AtomicU64,
    by_service: AtomicU64,
    /// Lines for the file.
    lost: Mutex<Vec<String>>,
}

/// Asks `server` for ever, every other question from a connected socket as glibc does, the others as musl does. Writes
/// lines into a file: `lost TIME ERROR`, and `counts ASKED BY_CACHE BY_SERVICE`.
pub fn ask_steadily(file: &str, server: &str) -> ExitCode {
    let server: SocketAddr = server.parse().expect("address:port");
    let mut file = fs::File::create(file).expect("a file to write to");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let shared = Arc::<Shared>::default();
        let (mut tick, mut written) = (interval(PERIOD), Instant::now());
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        for asked in 1_u64.. {
            // A burst in the place of ticks that a busy machine has missed would fill the buffer of the server.
            tick.tick().await;
            let shared_too = Arc::clone(&shared);
            tokio::spawn(async move { ask_and_count(server, asked.is_multiple_of(2), &shared_too).await });
            if written.elapsed() >= LINE {
                written = Instant::now();
                let mut text: String = shared.lost.lock().expect("no panic").drain(..).collect();
                let [by_cache, by_service] = [&shared.by_cache, &shared.by_service].map(|count| count.load(Relaxed));
                text += &format!("counts {asked} {by_cache} {by_service}\n");
                file.write_all(text.as_bytes()).expect("a disk");
            }
        }
    });
    ExitCode::SUCCESS
}

async fn ask_and_count(server: SocketAddr, connects: bool, shared: &Shared) {
    let sent = now();
    let query = query();
    let answer = match timeout(TIMEOUT, ask(server, connects, &query)).await {
        Ok(Ok(answer)) => address_in(&answer, &query).map(|address| address.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {TIMEOUT:?}")),
    };
    match answer.as_deref() {
        Ok(BY_CACHE) => _ = shared.by_cache.fetch_add(1, Relaxed),
        Ok(BY_SERVICE) => _ = shared.by_service.fetch_add(1, Relaxed),
        _ if shared.by_cache.load(Relaxed) + shared.by_service.load(Relaxed) == 0 => {}
        other => {
            let kind = if connects { "connected" } else { "unconnected" };
            shared.lost.lock().expect("no panic").push(format!("lost {sent} {kind}: {other:?}\n"));
        }
    }
}

async fn ask(server: SocketAddr, connects: bool, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = tokio::net::UdpSocket::bind(any(server)).await?;
    if connects {
        socket.connect(server).await?;
        socket.send(query).await?;
    } else {
        socket.send_to(query, server).await?;
    }
    let mut answer = vec![0; 512];
    let (length, from) = socket.recv_from(&mut answer).await?;
    if from != server {
        return Err(std::io::Error::other(format!("an answer from {from}")));
    }
    answer.truncate(length);
    Ok(answer)
}

fn parse(text: &str) -> Counts {
    let mut counts = Counts::default();
    for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        if let Some(lost) = line.strip_prefix("lost ").and_then(|rest| rest.split_once(' ')) {
            counts.lost.push(Lost { sent: lost.0.parse().expect("a time"), error: lost.1.to_owned() });
        } else if let Some(numbers) = line.strip_prefix("counts ") {
            let numbers: Vec<u64> = numbers.split(' ').filter_map(|number| number.parse().ok()).collect();
            [counts.asked, counts.by_cache, counts.by_service] = numbers.try_into().expect("three numbers");
        }
    }
    counts
}

/// A pod that asks 500 times a second.
pub struct Resolver<'a> {
    cluster: &'a Cluster,
    name: String,
    file: PathBuf,
}

impl<'a> Resolver<'a> {
    /// Starts the pod on a node, and waits for its first answers.
    pub fn start(cluster: &'a Cluster, name: &str, node: &str, server: &str) -> Self {
        let file = cluster.directory.join(node).join(format!("{name}.resolver"));
        let arguments = ["resolve-steadily".to_owned(), format!("/logs/{name}.resolver"), server.to_owned()];
        pods::start_writer(cluster, name, node, &arguments);
        let resolver = Self { cluster, name: name.to_owned(), file };
        resolver.until_more("answers come", |counts| counts.by_cache + counts.by_service);
        resolver
    }

    /// The counts so far. The pod writes them every 200 ms.
    pub fn counts(&self) -> Counts {
        parse(&fs::read_to_string(&self.file).unwrap_or_default())
    }

    /// Waits until a count has grown by ten.
    #[track_caller]
    pub fn until_more(&self, what: &str, count: impl Fn(&Counts) -> u64) {
        let before = count(&self.counts());
        until(what, 120, || {
            let counts = self.counts();
            if count(&counts) >= before + 10 { Ok(()) } else { Err(format!("{counts:?}")) }
        });
    }

    /// The counts, once every question that was sent before this call has its answer or is lost.
    pub fn settled(&self) -> Counts {
        std::thread::sleep(TIMEOUT + Duration::from_secs(1));
        self.counts()
    }
}

impl Drop for Resolver<'_> {
    fn drop(&mut self) {
        pods::remove_writer(self.cluster, &self.name);
    }
}
