//! A real API server with its etcd, on free ports of this machine, stopped when dropped.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{guard::Guard, process::ChildProcess};

/// Time for the server to become ready.
const START: Duration = Duration::from_secs(180);

/// The programs of an API server.
pub struct Assets {
    kube_apiserver: PathBuf,
    kubectl: PathBuf,
    etcd: PathBuf,
}

impl Assets {
    /// Finds them in the directory `$KUBEBUILDER_ASSETS`, else in `$PATH`.
    ///
    /// # Errors
    /// The name of the missing program.
    pub fn find() -> Result<Self, String> {
        Ok(Self { kube_apiserver: program("kube-apiserver")?, kubectl: program("kubectl")?, etcd: program("etcd")? })
    }
}

fn program(name: &str) -> Result<PathBuf, String> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    assets
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| format!("no {name} in $KUBEBUILDER_ASSETS or $PATH"))
}

/// A running API server.
pub struct ApiServer {
    assets: Assets,
    api: Option<ChildProcess>,
    _etcd: ChildProcess,
    api_port: u16,
    etcd_port: u16,
    // Dropped after the processes that use it.
    dir: TempDir,
    _guard: Guard,
}

impl ApiServer {
    /// Starts etcd and the API server and waits until it is ready.
    pub fn start(assets: Assets) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let guard = Guard::of(None, dir.path()).expect("a process");
        let (api_port, etcd_port, peer_port) = (free_port(), free_port(), free_port());
        let key = Command::new("openssl").args(["genrsa", "-out"]).arg(dir.path().join("sa.key")).output();
        assert!(key.expect("run openssl").status.success(), "openssl genrsa");
        fs::write(dir.path().join("tokens.csv"), "admintoken,admin,admin,system:masters\n").expect("a file");
        let peer = format!("http://127.0.0.1:{peer_port}");
        let client = format!("http://127.0.0.1:{etcd_port}");
        let etcd = ChildProcess::start_appending(
            Command::new(&assets.etcd)
                .arg("--data-dir")
                .arg(dir.path().join("etcd"))
                .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
                .args(["--initial-cluster", &format!("default={peer}")])
                .args(["--unsafe-no-fsync", "--logger", "zap", "--log-level", "error"]),
            &dir.path().join("etcd.log"),
        );
        let mut server = Self { assets, api: None, _etcd: etcd, api_port, etcd_port, dir, _guard: guard };
        server.write_kubeconfig(&server.kubeconfig(), "admintoken", &server.url());
        server.start_api();
        server
    }

    /// URL of the server.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.api_port)
    }

    /// Port of the server on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.api_port
    }

    /// A kubeconfig with all rights.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    /// A kubeconfig of the account that owns `token`, in a file of its own.
    pub fn kubeconfig_with(&self, token: &str) -> PathBuf {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.path().join(format!("kubeconfig-of-account-{number}"));
        self.write_kubeconfig(&path, token, &self.url());
        path
    }

    /// A kubeconfig with all rights, at another URL.
    pub fn kubeconfig_to(&self, url: &str) -> PathBuf {
        let path = self.dir.path().join("kubeconfig-to-another-url");
        self.write_kubeconfig(&path, "admintoken", url);
        path
    }

    fn write_kubeconfig(&self, path: &Path, token: &str, url: &str) {
        let text = format!(
            "apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: '{}', certificate-authority: '{}'}}}}]
users: [{{name: u, user: {{token: '{token}'}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
",
            url,
            self.dir.path().join("certs/apiserver.crt").display()
        );
        fs::write(path, text).expect("a file");
    }

    /// Kills the API server; etcd runs on.
    pub fn stop_api(&mut self) {
        self.api = None;
    }

    /// Starts the API server, on the same port and with the same certificate as before, and waits until it is ready.
    pub fn start_api(&mut self) {
        let dir = self.dir.path();
        let at = |name: &str| dir.join(name).display().to_string();
        let api = ChildProcess::start_appending(
            Command::new(&self.assets.kube_apiserver)
                .arg(format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port))
                .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
                .arg(format!("--secure-port={}", self.api_port))
                .arg(format!("--cert-dir={}", at("certs")))
                .args(["--service-cluster-ip-range=10.96.0.0/16,fd96::/108"])
                .args(["--service-account-issuer=https://kubernetes.default.svc"])
                .arg(format!("--service-account-key-file={}", at("sa.key")))
                .arg(format!("--service-account-signing-key-file={}", at("sa.key")))
                .arg(format!("--token-auth-file={}", at("tokens.csv")))
                .args(["--authorization-mode=RBAC", "--disable-admission-plugins=ServiceAccount"])
                .args(["--endpoint-reconciler-type=none", "--allow-privileged=true"]),
            &dir.join("kube-apiserver.log"),
        );
        self.api = Some(api);
        let deadline = Instant::now() + START;
        for request in [&["get", "--raw", "/readyz"][..], &["get", "namespace", "default"]] {
            while let Err(error) = self.try_kubectl(request, "") {
                let log = fs::read_to_string(dir.join("kube-apiserver.log")).unwrap_or_default();
                let running = self.api.as_mut().is_some_and(ChildProcess::is_running);
                let tail = &log[log.len().saturating_sub(3000)..];
                assert!(running && Instant::now() < deadline, "the API server does not start: {error}\n{tail}");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }

    /// Runs kubectl; panics if it fails.
    #[track_caller]
    pub fn kubectl(&self, args: &[&str]) -> String {
        self.try_kubectl(args, "").unwrap_or_else(|error| panic!("kubectl {args:?}: {error}"))
    }

    /// Applies YAML with kubectl; panics if it fails.
    #[track_caller]
    pub fn apply(&self, yaml: &str) {
        self.try_kubectl(&["apply", "-f", "-"], yaml).unwrap_or_else(|error| panic!("kubectl apply: {error}\n{yaml}"));
    }

    /// Runs kubectl with `input` and returns its standard output.
    ///
    /// # Errors
    /// Standard error of the command, if it fails.
    pub fn try_kubectl(&self, args: &[&str], input: &str) -> Result<String, String> {
        let mut kubectl = Command::new(&self.assets.kubectl)
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            // The command's cache of the API belongs here, not in the home directory.
            .arg("--cache-dir")
            .arg(self.dir.path().join("kubectl"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut stdin = kubectl.stdin.take().expect("piped");
        stdin.write_all(input.as_bytes()).map_err(|error| error.to_string())?;
        drop(stdin);
        let output = kubectl.wait_with_output().map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Compacts etcd's history: a watch from an earlier revision must list anew.
    pub fn compact(&self) {
        let header = self.etcd("/v3/kv/range", r#"{"key":"AA=="}"#);
        let (_, revision) = header.split_once("\"revision\":\"").expect("a revision");
        let (revision, _) = revision.split_once('"').expect("a revision");
        self.etcd("/v3/kv/compaction", &format!(r#"{{"revision":"{revision}","physical":true}}"#));
    }

    /// Calls etcd's JSON gateway.
    fn etcd(&self, path: &str, body: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.etcd_port)).expect("etcd listens");
        let length = body.len();
        write!(stream, "POST {path} HTTP/1.0\r\nHost: etcd\r\nContent-Length: {length}\r\n\r\n{body}")
            .expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        assert!(head.contains(" 200 "), "{path}: {answer}");
        body.to_owned()
    }
}

/// A port of 127.0.0.1 without a listener.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|any| any.local_addr()).expect("a free port").port()
}
