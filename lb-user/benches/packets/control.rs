//! The API server that kube-proxy watches. It and all kube-proxies are frozen while the bench measures.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use lb_lab::{
    ChildProcess,
    api_client::ApiClient,
    api_server::{ApiServer, Assets},
};

/// The API server, and the cgroups that are frozen.
pub struct Control {
    api: ApiServer,
    own: PathBuf,
    servers: PathBuf,
    proxies: PathBuf,
}

impl Control {
    /// Starts the API server in a cgroup below `cgroup`, the cgroup of this process.
    pub fn start(cgroup: &Path, assets: Assets) -> Self {
        let [own, servers, proxies] = ["bench", "servers", "proxies"].map(|name| cgroup.join(name));
        for cgroup in [&own, &servers, &proxies] {
            fs::create_dir(cgroup).expect("a cgroup");
        }
        let api = in_cgroup(&servers, &own, || ApiServer::start(assets));
        Self { api, own, servers, proxies }
    }

    /// Starts a proxy in the cgroup of the proxies.
    pub fn start_proxy(&self, start: impl FnOnce() -> ChildProcess) -> ChildProcess {
        in_cgroup(&self.proxies, &self.own, start)
    }

    /// A new client of the API server: the server closes old connections after it was frozen.
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

    /// Runs the API server without the proxies, which see the changes later, all at once.
    pub fn fill(&self) {
        freeze(&self.proxies, "1");
        freeze(&self.servers, "0");
    }

    /// Runs everything.
    pub fn run(&self) {
        freeze(&self.servers, "0");
        freeze(&self.proxies, "0");
    }

    /// Freezes everything.
    pub fn freeze_all(&self) {
        freeze(&self.proxies, "1");
        freeze(&self.servers, "1");
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.run();
    }
}

/// Runs `work` with this process, and so its new children, in `cgroup`; then moves this process to `own`.
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
