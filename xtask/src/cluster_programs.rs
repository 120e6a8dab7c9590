//! Programs of a real cluster beside its API server: the rest of Kubernetes, containerd, CoreDNS, MetalLB, and the
//! daemon of its network, each built once.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cni::Cni;
use crate::go::{Cgo, Programs};
use crate::{kubernetes, workspace};

/// Programs of Kubernetes beside the API server and kubectl.
const KUBERNETES: [&str; 4] = ["kube-controller-manager", "kube-scheduler", "kubelet", kubernetes::KUBE_PROXY];

const CONTAINERD: Programs = Programs {
    module: "github.com/containerd/containerd/v2",
    version: "v2.2.9",
    packages: &["cmd/containerd", "cmd/containerd-shim-runc-v2", "cmd/ctr"],
    files: &[],
    // These parts need C libraries, and no node of a test has such file systems.
    tags: "no_btrfs no_devmapper no_zfs",
    cgo: Cgo::Without,
};

const COREDNS: Programs = Programs {
    module: "github.com/coredns/coredns",
    version: "v1.14.5",
    packages: &[""],
    files: &[],
    tags: "",
    cgo: Cgo::Without,
};

/// Allots and announces load balancer addresses, until Beeline takes them over.
const METALLB: Programs = Programs {
    module: "go.universe.tf/metallb",
    version: "v0.15.2",
    packages: &["speaker", "controller"],
    files: &["config/manifests/metallb-native.yaml", "configsamples"],
    tags: "",
    cgo: Cgo::Without,
};

/// flanneld. Its CNI plugin is another module that only delegates to the plugin `bridge`, which the stories call.
const FLANNEL: Programs = Programs {
    module: "github.com/flannel-io/flannel",
    version: "v0.27.4",
    packages: &[""],
    files: &[],
    tags: "",
    cgo: Cgo::With,
};

/// The daemon that is its own network: its plugin is `bridge`.
const KUBE_ROUTER: Programs = Programs {
    module: "github.com/cloudnativelabs/kube-router/v2",
    version: "v2.1.0",
    packages: &["cmd/kube-router"],
    files: &[],
    tags: "",
    cgo: Cgo::Without,
};

/// The directories with the programs; missing programs are built first.
pub(crate) fn ensure(cni: Cni) -> Result<Vec<PathBuf>> {
    let kubernetes = kubernetes::ensure_with(&KUBERNETES)?;
    let mut programs = vec![kubernetes, built(&CONTAINERD)?, built(&COREDNS)?, built(&METALLB)?];
    match cni {
        Cni::Flannel | Cni::FlannelHostGw => programs.push(built(&FLANNEL)?),
        Cni::KubeRouter => programs.push(built(&KUBE_ROUTER)?),
        Cni::Ptp | Cni::PtpIpv6 | Cni::Bridge | Cni::Docker | Cni::SecondNic => {}
    }
    Ok(programs)
}

/// The directory with CoreDNS: that in BEELINE_COREDNS, or the cache's, in which it is built first if it is missing.
pub(crate) fn ensure_coredns() -> Result<PathBuf> {
    std::env::var_os("BEELINE_COREDNS").map_or_else(|| built(&COREDNS), |given| Ok(given.into()))
}

fn built(programs: &Programs) -> Result<PathBuf> {
    let dir = workspace::cache().join(programs.module.replace('/', "-")).join(programs.version);
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    programs.ensure(&dir)?;
    Ok(dir)
}
