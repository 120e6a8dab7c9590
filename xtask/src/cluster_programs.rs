//! Programs of a real cluster beside its API server: the rest of Kubernetes, containerd and CoreDNS, each built once.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::go::Programs;
use crate::{kubernetes, workspace};

/// Programs of Kubernetes beside the API server and kubectl.
const KUBERNETES: [&str; 4] = ["kube-controller-manager", "kube-scheduler", "kubelet", kubernetes::KUBE_PROXY];

const CONTAINERD: Programs = Programs {
    module: "github.com/containerd/containerd/v2",
    version: "v2.2.9",
    packages: &["cmd/containerd", "cmd/containerd-shim-runc-v2", "cmd/ctr"],
    // They need C libraries, and no node of a test has such file systems.
    tags: "no_btrfs no_devmapper no_zfs",
};

const COREDNS: Programs =
    Programs { module: "github.com/coredns/coredns", version: "v1.14.5", packages: &[""], tags: "" };

/// The directories with the programs; missing programs are built first.
pub(crate) fn ensure() -> Result<Vec<PathBuf>> {
    let kubernetes = kubernetes::ensure_with(&KUBERNETES)?;
    Ok(vec![kubernetes, built(&CONTAINERD)?, built(&COREDNS)?])
}

fn built(programs: &Programs) -> Result<PathBuf> {
    let dir = workspace::cache().join(programs.module.replace('/', "-")).join(programs.version);
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    programs.ensure(&dir)?;
    Ok(dir)
}
