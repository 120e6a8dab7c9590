//! What tells kube-proxy of the Services: the API server. It and all kube-proxies stand still while something is measured.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use lb_lab::{
    Process,
    api_client::ApiClient,
    api_server::{ApiServer, Assets},
};

/// The API server, and the cgroups that can be frozen.
pub struct Control {
    api: ApiServer,
    own: PathBuf,
    servers: PathBuf,
    proxies: PathBuf,
}

impl Control {
    /// Starts the API server in a cgroup below `cgroup`, where this process is.
    pub fn start(cgroup: &Path, assets: Assets) -> Self {
        let [own, servers, proxies] = ["bench", "servers", "proxies"].map(|name| cgroup.join(name));
        for cgroup in [&own, &servers, &proxies] {
            fs::create_dir(cgroup).expect("a cgroup");
        }
        let api = in_cgroup(&servers, &own, || ApiServer::start(assets));
        Self { api, own, servers, proxies }
    }

    /// Starts a proxy, which is frozen with the others.
    pub fn start_proxy(&self, start: impl FnOnce() -> Process) -> Process {
        in_cgroup(&self.proxies, &self.own, start)
    }

    /// A new client of the API server, which closes old connections when it has stood still.
    pub fn cluster(&self) -> ApiClient {
        ApiClient::new(&self.api.kubeconfig())
    }

    /// The API server's port on 127.0.0.1.
    pub fn api_port(&self) -> u16 {
        self.api.port()
    }

    /// Credentials.
    pub fn kubeconfig(&self) -> PathBuf {
        self.api.kubeconfig()
    }

    /// The API server runs, and no proxy listens: what happens now it learns later, at once.
    pub fn fill(&self) {
        freeze(&self.proxies, "1");
        freeze(&self.servers, "0");
    }

    /// Everything runs.
    pub fn run(&self) {
        freeze(&self.servers, "0");
        freeze(&self.proxies, "0");
    }

    /// Nothing runs.
    pub fn stand_still(&self) {
        freeze(&self.proxies, "1");
        freeze(&self.servers, "1");
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.run();
    }
}

/// Does something while this process, and so each child that it starts, is in a cgroup; then this process is elsewhere.
fn in_cgroup<T>(cgroup: &Path, own: &Path, work: impl FnOnce() -> T) -> T {
    let join = |cgroup: &Path| {
        fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).expect("joining a cgroup");
    };
    join(cgroup);
    let result = work();
    join(own);
    result
}

fn freeze(cgroup: &Path, wanted: &str) {
    fs::write(cgroup.join("cgroup.freeze"), wanted).expect("a cgroup");
    let deadline = Instant::now() + Duration::from_secs(10);
    let is_so = || {
        let events = fs::read_to_string(cgroup.join("cgroup.events")).expect("a cgroup");
        events.lines().any(|line| line.strip_prefix("frozen ") == Some(wanted))
    };
    while !is_so() {
        assert!(Instant::now() < deadline, "{} does not freeze or thaw", cgroup.display());
        thread::sleep(Duration::from_millis(1));
    }
}
