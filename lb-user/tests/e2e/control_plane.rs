//! The control plane: etcd, API server, controllers, scheduler and CoreDNS, in the namespace `control`.

use std::{cell::RefCell, fs, path::PathBuf, process::Command};

use lb_lab::ChildProcess;

use crate::{
    addresses,
    process::{asset, run, try_run, until, within},
    resolver,
};

/// The programs of the control plane, killed when dropped.
pub struct ControlPlane {
    directory: PathBuf,
    api_server: RefCell<Option<ChildProcess>>,
    _others: Vec<ChildProcess>,
}

impl ControlPlane {
    /// Starts all programs and waits until the API server is ready.
    pub fn start(directory: PathBuf) -> Self {
        let pki = directory.join("pki");
        fs::create_dir(&pki).expect("a directory");
        make_keys(&pki.display().to_string());
        let kubeconfig = directory.join("admin.conf");
        fs::write(&kubeconfig, kubeconfig_of("admin-token", &pki.join("ca.crt").display().to_string())).unwrap();
        fs::write(pki.join("tokens.csv"), "admin-token,admin,admin,system:masters\n").unwrap();
        let etcd = ChildProcess::start_appending(
            within("control", asset("etcd")).arg("--data-dir").arg(directory.join("etcd")).args([
                "--unsafe-no-fsync",
                "--logger=zap",
                "--log-level=error",
            ]),
            &directory.join("log/etcd.log"),
        );
        let mut control = Self { directory, api_server: RefCell::default(), _others: vec![etcd] };
        control.start_api_server();
        let started = [control.controllers(), control.scheduler(), control.coredns()];
        control._others.extend(started);
        control
    }

    /// A kubeconfig with all rights.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("admin.conf")
    }

    /// Kills the API server; etcd runs on.
    pub fn stop_api_server(&self) {
        *self.api_server.borrow_mut() = None;
    }

    /// Starts the API server, and waits until it is ready.
    pub fn start_api_server(&self) {
        let pki = |file: &str| self.directory.join("pki").join(file).display().to_string();
        let mut command = within("control", asset("kube-apiserver"));
        command.args(["--etcd-servers=http://127.0.0.1:2379", "--secure-port=6443", "--authorization-mode=RBAC"]);
        command.args(["--allow-privileged=true", "--kubelet-preferred-address-types=InternalIP"]);
        command.arg(format!("--service-cluster-ip-range={}", addresses::service_ranges()));
        command.args(["--service-account-issuer=https://kubernetes.default.svc"]);
        for (flag, value) in [
            ("advertise-address", addresses::control().to_owned()),
            ("bind-address", addresses::control().to_owned()),
            ("service-account-key-file", pki("sa.pub")),
            ("service-account-signing-key-file", pki("sa.key")),
            ("tls-cert-file", pki("api.crt")),
            ("tls-private-key-file", pki("api.key")),
            ("client-ca-file", pki("ca.crt")),
            ("token-auth-file", pki("tokens.csv")),
        ] {
            command.arg(format!("--{flag}={value}"));
        }
        let log = self.directory.join("log/api-server.log");
        *self.api_server.borrow_mut() = Some(ChildProcess::start_appending(&mut command, &log));
        let kubeconfig = self.kubeconfig();
        until("the API server is ready", 120, || {
            try_run(Command::new(asset("kubectl")).arg("--kubeconfig").arg(&kubeconfig).args(["get", "--raw=/readyz"]))
        });
    }

    fn controllers(&self) -> ChildProcess {
        let pki = |file: &str| self.directory.join("pki").join(file).display().to_string();
        let mut command = within("control", asset("kube-controller-manager"));
        command.arg("--kubeconfig").arg(self.kubeconfig()).args([
            "--leader-elect=false",
            "--use-service-account-credentials=true",
            "--allocate-node-cidrs=true",
            // A restarted node must become NotReady and Ready again within a story.
            "--node-monitor-period=2s",
            "--node-monitor-grace-period=15s",
        ]);
        command.arg(format!("--cluster-cidr={}", addresses::pod_ranges()));
        command.arg(format!("--service-cluster-ip-range={}", addresses::service_ranges()));
        if addresses::is_ipv6_only() {
            command.arg("--node-cidr-mask-size=64");
        } else {
            command.args(["--node-cidr-mask-size-ipv4=24", "--node-cidr-mask-size-ipv6=64"]);
        }
        command.arg(format!("--service-account-private-key-file={}", pki("sa.key")));
        command.arg(format!("--root-ca-file={}", pki("ca.crt")));
        ChildProcess::start_appending(&mut command, &self.directory.join("log/controllers.log"))
    }

    fn scheduler(&self) -> ChildProcess {
        let mut command = within("control", asset("kube-scheduler"));
        command.arg("--kubeconfig").arg(self.kubeconfig()).arg("--leader-elect=false");
        ChildProcess::start_appending(&mut command, &self.directory.join("log/scheduler.log"))
    }

    fn coredns(&self) -> ChildProcess {
        let corefile = self.directory.join("Corefile");
        let control = addresses::control();
        let text = format!(
            "{}.:53 {{\n  bind {control}\n  errors\n  kubernetes cluster.local in-addr.arpa ip6.arpa {{\n    \
             kubeconfig {} admin\n    pods insecure\n    ttl 5\n  }}\n}}\n",
            resolver::zone(&format!("bind {control}"), resolver::BY_SERVICE),
            self.kubeconfig().display()
        );
        fs::write(&corefile, text).unwrap();
        let mut command = within("control", asset("coredns"));
        ChildProcess::start_appending(command.arg("-conf").arg(corefile), &self.directory.join("log/coredns.log"))
    }
}

fn make_keys(dir: &str) {
    let file = |name: &str| format!("{dir}/{name}");
    let openssl = |words: &[&str]| drop(run("openssl", words));
    let new_key = ["req", "-newkey", "rsa:2048", "-nodes"];
    let ca = ["-x509", "-days", "3650", "-subj", "/CN=ca", "-keyout", &file("ca.key"), "-out", &file("ca.crt")];
    openssl(&[&new_key[..], &ca].concat());
    let server = ["-subj", "/CN=kube-apiserver", "-keyout", &file("api.key"), "-out", &file("api.csr")];
    openssl(&[&new_key[..], &server].concat());
    let (control, service) = (addresses::control(), addresses::first("10.96.0.1", "fd96::1"));
    let names = format!("subjectAltName=IP:{control},IP:{service},DNS:kubernetes,DNS:kubernetes.default.svc\n");
    fs::write(file("names"), names).unwrap();
    let sign = ["x509", "-req", "-days", "3650", "-CAcreateserial", "-in", &file("api.csr"), "-out", &file("api.crt")];
    openssl(&[&sign[..], &["-CA", &file("ca.crt"), "-CAkey", &file("ca.key"), "-extfile", &file("names")]].concat());
    openssl(&["genrsa", "-out", &file("sa.key"), "2048"]);
    openssl(&["rsa", "-in", &file("sa.key"), "-pubout", "-out", &file("sa.pub")]);
}

fn kubeconfig_of(token: &str, authority: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\n\
         clusters: [{{name: e2e, cluster: \
         {{server: 'https://{}', certificate-authority: '{authority}'}}}}]\n\
         users: [{{name: admin, user: {{token: {token}}}}}]\n\
         contexts: [{{name: admin, context: {{cluster: e2e, user: admin}}}}]\ncurrent-context: admin\n",
        addresses::at(addresses::control(), 6443)
    )
}
