//! Continuous load that counts failures: new connections, long connections, and UDP queries.

use std::{
    collections::HashSet,
    fmt,
    io::{BufRead as _, BufReader, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket},
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Limit for an answer, generous for busy machines.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two connections to one target.
const PAUSE: Duration = Duration::from_millis(10);

/// Ports of one asker before it uses them again: most of `ip_local_port_range`.
const PORTS: usize = 20_000;

/// Failures after which an asker gives up.
const FAILURES: usize = 4;
/// Queries at a time, when many are asked for.
const ASKERS: usize = 8;

/// The counts of one target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// The target as on the command line.
    pub target: String,
    /// Connections, exchanges or answers that succeeded.
    pub done: u64,
    /// Connections, exchanges or answers that failed.
    pub failed: u64,
    /// The first errors.
    pub errors: Vec<String>,
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, done, failed, errors } = self;
        write!(
            f,
            "{target}: {done} done, {failed} failed{}",
            errors.iter().fold(String::new(), |all, one| all + "\n     " + one)
        )
    }
}

#[derive(Default)]
struct Counters {
    done: AtomicU64,
    failed: AtomicU64,
    errors: Mutex<Vec<String>>,
}

impl Counters {
    /// Counts a result. Failures before the first success do not count: the Service may be too new.
    fn add(&self, result: Result<(), String>) {
        match result {
            Ok(()) => _ = self.done.fetch_add(1, Relaxed),
            Err(_) if self.done.load(Relaxed) == 0 => {}
            Err(error) => {
                self.failed.fetch_add(1, Relaxed);
                let mut errors = self.errors.lock().expect("no panic");
                if errors.len() < 5 {
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs_f64();
                    errors.push(format!("at {now:.1}: {error}"));
                }
            }
        }
    }
}

/// Loads targets such as `tcp=10.96.0.1:80`, `long=…` (one connection, a line every 100 ms) and `udp=…` (a socket for
/// each query). Prints all counts once a second, as a line of JSON, to stdout or `--into=FILE`.
pub fn main(arguments: &[&str]) -> ExitCode {
    let mut all = Vec::new();
    let mut output: Box<dyn Write> = Box::new(std::io::stdout());
    for target in arguments {
        if let Some(file) = target.strip_prefix("--into=") {
            output = Box::new(std::fs::File::create(file).expect("a file to write to"));
            continue;
        }
        let (kind, address) = target.split_once('=').expect("kind=address:port");
        let (kind, address): (String, SocketAddr) = (kind.to_owned(), address.parse().expect("address:port"));
        let counters = Arc::new(Counters::default());
        all.push(((*target).to_owned(), Arc::clone(&counters)));
        thread::spawn(move || match kind.as_str() {
            "tcp" => repeat(&counters, || ask_tcp(address).map(drop)),
            "udp" => {
                let mut used = HashSet::new();
                repeat(&counters, || ask_udp_from(fresh_port(address, &mut used), address).map(drop));
            }
            "long" => long(&counters, address),
            _ => panic!("{kind}: tcp, udp or long"),
        });
    }
    loop {
        thread::sleep(Duration::from_secs(1));
        let count = |(target, counters): &(String, Arc<Counters>)| {
            let errors = counters.errors.lock().expect("no panic").clone();
            let [done, failed] = [&counters.done, &counters.failed].map(|count| count.load(Relaxed));
            serde_json::json!({"target": target, "done": done, "failed": failed, "errors": errors})
        };
        let counts = serde_json::Value::from(all.iter().map(count).collect::<Vec<_>>());
        output.write_all(format!("{counts}\n").as_bytes()).expect("a reader");
    }
}

/// Reads the last line in the output of [`main`].
pub fn parse(output: &str) -> Option<Vec<Count>> {
    let line = output.lines().rfind(|line| line.starts_with('['))?;
    let counts: Vec<serde_json::Value> = serde_json::from_str(line).ok()?;
    let count = |value: &serde_json::Value| {
        let errors = value["errors"].as_array()?.iter().filter_map(|error| error.as_str().map(str::to_owned)).collect();
        let (done, failed) = (value["done"].as_u64()?, value["failed"].as_u64()?);
        Some(Count { target: value["target"].as_str()?.to_owned(), done, failed, errors })
    };
    counts.iter().map(count).collect()
}

/// Sends one query to `tcp=NAME:PORT` or `udp=NAME:PORT` and prints the answer. Resolves names.
pub fn ask_once(target: &str) -> ExitCode {
    let (kind, name) = target.split_once('=').expect("kind=name:port");
    let answer = name.to_socket_addrs().map_err(|error| format!("{name}: {error}")).and_then(|mut addresses| {
        let address = addresses.next().ok_or("no address")?;
        if kind == "udp" { ask_udp(address) } else { ask_tcp(address) }
    });
    match answer {
        Ok(answer) => println!("{answer}"),
        Err(error) => {
            println!("failed: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Sends a number of queries, each from a socket of its own, and fails if one of them does. Ends early after many
/// failures.
pub fn ask_often(target: &str, times: &str) -> ExitCode {
    let (kind, address) = target.split_once('=').expect("kind=address:port");
    let (address, times): (SocketAddr, usize) =
        (address.parse().expect("address:port"), times.parse().expect("a number"));
    let ask = if kind == "udp" { ask_udp } else { ask_tcp };
    let failures: Vec<String> = thread::scope(|scope| {
        let askers = [(); ASKERS].map(|()| {
            scope.spawn(|| (0..times / ASKERS).filter_map(|_| ask(address).err()).take(FAILURES).collect::<Vec<_>>())
        });
        askers.into_iter().flat_map(|asker| asker.join().expect("no panic")).collect()
    });
    println!(
        "{} of {} failed: {:?}",
        failures.len(),
        times / ASKERS * ASKERS,
        failures.iter().take(3).collect::<Vec<_>>()
    );
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn repeat(counters: &Counters, mut ask: impl FnMut() -> Result<(), String>) {
    loop {
        counters.add(ask());
        thread::sleep(PAUSE);
    }
}

/// Uses one connection until it breaks, then the next.
fn long(counters: &Counters, address: SocketAddr) {
    let connection = |stream: TcpStream| -> Result<(), String> {
        let mut writer = stream.try_clone().map_err(|error| error.to_string())?;
        let mut reader = BufReader::new(stream);
        loop {
            let start = Instant::now();
            writer.write_all(b"ping\n").map_err(|error| format!("write: {error}"))?;
            read(&mut reader).map_err(|error| format!("{error} after {:?}", start.elapsed()))?;
            counters.add(Ok(()));
            thread::sleep(Duration::from_millis(100));
        }
    };
    repeat(counters, || connection(open(address)?));
}

fn open(address: SocketAddr) -> Result<TcpStream, String> {
    let start = Instant::now();
    let stream = TcpStream::connect_timeout(&address, TIMEOUT);
    let stream = stream.map_err(|error| format!("connect: {error} after {:?}", start.elapsed()))?;
    stream
        .set_read_timeout(Some(TIMEOUT))
        .and_then(|()| stream.set_nodelay(true))
        .map_err(|error| error.to_string())?;
    Ok(stream)
}

fn read(reader: &mut BufReader<TcpStream>) -> Result<String, String> {
    let mut line = String::new();
    match reader.read_line(&mut line) {
        Ok(0) => Err("closed by the server".to_owned()),
        Ok(_) => Ok(line.trim_end().to_owned()),
        Err(error) => Err(format!("read: {error}")),
    }
}

fn ask_tcp(address: SocketAddr) -> Result<String, String> {
    let mut stream = open(address)?;
    stream.write_all(b"who\n").map_err(|error| format!("write: {error}"))?;
    read(&mut BufReader::new(stream))
}

/// Binds a socket to a port that is not among the used ones. A query from a port that has asked twice before belongs to
/// a conversation, which stays with its backend to the end; a query of a new client does not.
fn fresh_port(address: SocketAddr, used: &mut HashSet<u16>) -> std::io::Result<UdpSocket> {
    if used.len() > PORTS {
        used.clear();
    }
    loop {
        let socket = any_port(address)?;
        if used.insert(socket.local_addr()?.port()) {
            return Ok(socket);
        }
    }
}

fn any_port(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    UdpSocket::bind(any)
}

fn ask_udp(address: SocketAddr) -> Result<String, String> {
    ask_udp_from(any_port(address), address)
}

/// Sends one query. No link of this network loses datagrams, so a missing answer is a failure.
fn ask_udp_from(socket: std::io::Result<UdpSocket>, address: SocketAddr) -> Result<String, String> {
    let socket = socket.map_err(|error| format!("udp: {error}"))?;
    let ask = || -> std::io::Result<String> {
        socket.connect(address)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.send(b"who")?;
        let mut buffer = [0; 2048];
        let length = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned())
    };
    ask().map_err(|error| format!("udp from {:?}: {error}", socket.local_addr()))
}
