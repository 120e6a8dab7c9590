//! The network of a soak, its servers, and the agent of its first node.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use lb_dataplane::pins::Pins;
use lb_lab::{
    ChildProcess,
    network::{Host, Lan, LanOptions},
    sandbox::Inside,
};

use crate::objects;

/// Port of the servers.
pub const TARGET: u16 = 8080;
/// Port of the servers that floods reach, so that they fill no queue of the others.
pub const FLOODED_TARGET: u16 = 8081;

pub struct Testbed {
    pub lan: Arc<Lan>,
    pub yaml: PathBuf,
    pub inside: Inside,
    pins: PathBuf,
    agent: Option<ChildProcess>,
    agents: usize,
}

/// Memory of the agent at one time.
#[derive(Clone, Debug)]
pub struct Sample {
    pub resident_mb: f64,
    pub descriptors: BTreeMap<String, usize>,
    pub threads: BTreeMap<String, usize>,
}

impl Testbed {
    pub fn make(inside: &Inside) -> Self {
        let pins = inside.enter().join("beeline");
        for name in ["outside", "node1/kubepods"] {
            fs::create_dir_all(inside.cgroup.join(name)).unwrap();
        }
        let yaml = inside.directory.join("yaml");
        fs::create_dir(&yaml).unwrap();
        let lan = Lan::make(LanOptions { pods: 3, ..LanOptions::default() });
        for range in ["10.96.0.0/16", "198.51.100.0/24"] {
            lan.client.net.run(&["ip", "route", "add", range, "via", "172.30.0.11"]);
        }
        let mut testbed = Self { lan: Arc::new(lan), yaml, inside: inside.clone(), pins, agent: None, agents: 0 };
        // The socket path translates no socket of a server.
        testbed.move_to("outside");
        testbed.servers().iter().for_each(|host| serve(host, TARGET));
        serve(testbed.servers()[0], FLOODED_TARGET);
        objects::write(&testbed.yaml, "steady.yaml", &objects::steady(&testbed.backends()));
        testbed.start_agent();
        // The first agent comes to devices without programs.
        let has_programs =
            || testbed.agent.as_ref().is_some_and(|agent| agent.log().contains("devices of the packet path"));
        assert!(within(Duration::from_secs(60), has_programs), "no device has the programs: {}", testbed.log_tail());
        testbed
    }

    /// Hosts with servers: a pod of this node, and those of the other one.
    pub fn servers(&self) -> Vec<&Host> {
        self.lan.node1.pods[2..].iter().chain(&self.lan.node2.pods).collect()
    }

    /// The servers' addresses, each with its node.
    pub fn backends(&self) -> Vec<(IpAddr, &'static str)> {
        let here = |index: usize| if index == 0 { "here" } else { "there" };
        let both = |host: &Host| [IpAddr::from(host.v4), host.v6.into()];
        self.servers()
            .into_iter()
            .enumerate()
            .flat_map(|(index, host)| both(host).map(|ip| (ip, here(index))))
            .collect()
    }

    /// Moves this process into a cgroup, in which its next sockets and processes are made.
    pub fn move_to(&self, cgroup: &str) {
        fs::write(self.inside.cgroup.join(cgroup).join("cgroup.procs"), std::process::id().to_string()).unwrap();
    }

    pub fn pods_cgroup(&self) -> PathBuf {
        self.inside.cgroup.join("node1/kubepods")
    }

    /// The directory of the pinned maps.
    pub fn maps(&self) -> PathBuf {
        Pins::at(self.pins.clone()).current()
    }

    fn start_agent(&mut self) {
        let mut command = beeline();
        command.arg("--pins").arg(&self.pins).args(["run", "--node-name", "here", "--directory"]).arg(&self.yaml);
        command.arg("--cgroup").arg(self.inside.cgroup.join("node1"));
        command.args(["--healthz-bind-address", "127.0.0.1:10256", "--metrics-bind-address", "127.0.0.1:10249"]);
        let log = self.log();
        self.agents += 1;
        let agent = self.lan.node1.host.net.enter(|| ChildProcess::start(&mut command, &log));
        agent.wait_until_in_service();
        self.agent = Some(agent);
    }

    fn log(&self) -> PathBuf {
        // Only the last logs are kept.
        self.inside.directory.join(format!("agent{}.log", self.agents % 4))
    }

    /// Kills the agent and starts another one.
    pub fn restart_agent(&mut self) {
        self.agent = None;
        self.start_agent();
    }

    /// Runs a command of the agent, and returns its standard output.
    pub fn beeline(&self, arguments: &[&str]) -> String {
        let mut command = beeline();
        command.arg("--pins").arg(&self.pins).args(arguments);
        let output = self.lan.node1.host.net.enter(|| command.output()).unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    pub fn agent_sample(&self) -> Sample {
        let agent = self.agent.as_ref().expect("it runs");
        let entries = |what: &str| fs::read_dir(format!("/proc/{}/{what}", agent.pid())).unwrap().flatten();
        let count = |names: &mut dyn Iterator<Item = String>| {
            let mut counts = BTreeMap::new();
            names.for_each(|name| *counts.entry(name).or_default() += 1);
            counts
        };
        // A descriptor may close, and a thread end, while they are listed.
        let target = |entry: fs::DirEntry| fs::read_link(entry.path()).ok();
        let kind = |target: PathBuf| target.to_string_lossy().split(":[").next().unwrap_or_default().to_owned();
        let name = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("comm")).ok();
        Sample {
            resident_mb: agent.memory("VmRSS:"),
            descriptors: count(&mut entries("fd").filter_map(target).map(kind)),
            threads: count(&mut entries("task").filter_map(name).map(|name| name.trim().to_owned())),
        }
    }

    /// Bytes that the pinned maps hold, by map, as the kernel counts them.
    pub fn memory_of_maps(&self) -> BTreeMap<String, u64> {
        let pins = fs::read_dir(self.maps()).unwrap().flatten();
        let memory = |path: &Path| {
            let map = aya::maps::MapData::from_pin(path).ok()?;
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd())).ok()?;
            info.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
        };
        pins.filter_map(|pin| Some((pin.file_name().into_string().ok()?, memory(&pin.path())?))).collect()
    }

    /// The last lines of the last agent's log.
    pub fn log_tail(&self) -> String {
        let log = self.agent.as_ref().map(ChildProcess::log).unwrap_or_default();
        log[log.len().saturating_sub(3000)..].to_owned()
    }
}

fn beeline() -> Command {
    Command::new(std::env::var_os("BEELINE_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_beeline").into()))
}

/// Servers that tell their name, and then return each octet.
fn serve(host: &Host, port: u16) {
    host.net.enter(|| {
        for ip in [IpAddr::from(host.v4), host.v6.into()] {
            let listener = TcpListener::bind((ip, port)).unwrap();
            let name = SocketAddr::new(ip, port).to_string() + "\n";
            let udp_name = name.clone();
            thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let name = name.clone();
                    thread::Builder::new()
                        .stack_size(64 << 10)
                        .spawn(move || {
                            let mut octet = [0];
                            let mut ok = stream.write_all(name.as_bytes());
                            while ok.is_ok() {
                                ok = stream.read_exact(&mut octet).and_then(|()| stream.write_all(&octet));
                            }
                        })
                        .unwrap();
                }
            });
            let socket = UdpSocket::bind((ip, port)).unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 64];
                loop {
                    if let Ok((_, client)) = socket.recv_from(&mut buffer) {
                        let _gone = socket.send_to(udp_name.as_bytes(), client);
                    }
                }
            });
        }
    });
}

/// Waits until a condition holds; false if it does not within `limit`.
pub fn within(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !holds() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(200));
    }
    true
}
