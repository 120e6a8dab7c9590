//! Clients in the kernel itself: a mount of NFS by a VIP. Its sockets are the kernel's, in the root cgroup, and no hook
//! tells their close.
//!
//! The agent is attached to the root cgroup for it. So the story runs on a machine of its own alone: `cargo xtask
//! kernels` boots one.

use std::{
    ffi::{CStr, CString},
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use lb_common::BackendStats;
use lb_kernel::bpf::typed::TypedMap;
use nfsserve::{
    nfs::{fattr3, fileid3, filename3, ftype3, nfspath3, nfsstat3, nfstime3, sattr3},
    tcp::{NFSTcp as _, NFSTcpListener},
    vfs::{DirEntry, NFSFileSystem, ReadDirResult, VFSCapabilities},
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tokio::sync::oneshot;

use crate::{
    Story,
    agent::until_within,
    node::{StoryNode, is_own_machine, service},
};

pub const STORIES: &[Story] = &[("a_mount_of_nfs_by_a_vip_is_counted_and_moves_to_another_backend", nfs)];

const VIP: &str = "10.96.0.1";
/// The servers. Both know the file handles of each other, as two heads of one store do.
const SERVERS: [&str; 2] = ["10.0.0.1:2049", "10.0.0.2:2049"];
const FILE: &str = "server";

const ROOT_ID: fileid3 = 1;
const FILE_ID: fileid3 = 2;

/// A directory with one file, which holds the number of the server.
struct Tree(u32);

impl Tree {
    fn content(&self) -> Vec<u8> {
        self.0.to_string().into_bytes()
    }
}

#[async_trait::async_trait]
impl NFSFileSystem for Tree {
    fn capabilities(&self) -> VFSCapabilities {
        VFSCapabilities::ReadOnly
    }

    fn root_dir(&self) -> fileid3 {
        ROOT_ID
    }

    async fn lookup(&self, directory: fileid3, name: &filename3) -> Result<fileid3, nfsstat3> {
        match (directory, name.as_slice()) {
            (ROOT_ID, b"." | b"..") => Ok(ROOT_ID),
            (ROOT_ID, name) if name == FILE.as_bytes() => Ok(FILE_ID),
            _ => Err(nfsstat3::NFS3ERR_NOENT),
        }
    }

    async fn getattr(&self, fileid: fileid3) -> Result<fattr3, nfsstat3> {
        // By the time of its change the client learns that its copy is of the other server.
        let time = nfstime3 { seconds: 1_000_000_000 + self.0, nseconds: 0 };
        let times = fattr3 { fileid, atime: time, mtime: time, ctime: time, nlink: 1, ..fattr3::default() };
        match fileid {
            ROOT_ID => Ok(fattr3 { ftype: ftype3::NF3DIR, mode: 0o755, ..times }),
            FILE_ID => Ok(fattr3 { ftype: ftype3::NF3REG, mode: 0o644, size: self.content().len() as u64, ..times }),
            _ => Err(nfsstat3::NFS3ERR_STALE),
        }
    }

    async fn read(&self, id: fileid3, offset: u64, _count: u32) -> Result<(Vec<u8>, bool), nfsstat3> {
        if id != FILE_ID {
            return Err(nfsstat3::NFS3ERR_ISDIR);
        }
        Ok((self.content().split_off(usize::try_from(offset).unwrap_or(usize::MAX).min(self.content().len())), true))
    }

    async fn readdir(&self, _: fileid3, after: fileid3, _: usize) -> Result<ReadDirResult, nfsstat3> {
        let attr = self.getattr(FILE_ID).await?;
        let all = [DirEntry { fileid: FILE_ID, name: FILE.as_bytes().into(), attr }];
        Ok(ReadDirResult { entries: all.into_iter().filter(|entry| entry.fileid > after).collect(), end: true })
    }

    async fn setattr(&self, _: fileid3, _: sattr3) -> Result<fattr3, nfsstat3> {
        Err(nfsstat3::NFS3ERR_ROFS)
    }

    async fn write(&self, _: fileid3, _: u64, _: &[u8]) -> Result<fattr3, nfsstat3> {
        Err(nfsstat3::NFS3ERR_ROFS)
    }

    async fn create(&self, _: fileid3, _: &filename3, _: sattr3) -> Result<(fileid3, fattr3), nfsstat3> {
        Err(nfsstat3::NFS3ERR_ROFS)
    }

    async fn create_exclusive(&self, _: fileid3, _: &filename3) -> Result<fileid3, nfsstat3> {
        Err(nfsstat3::NFS3ERR_ROFS)
    }

    async fn mkdir(&self, _: fileid3, _: &filename3) -> Result<(fileid3, fattr3), nfsstat3> {
        Err(nfsstat3::NFS3ERR_ROFS)
    }

    async fn remove(&self, _: fileid3, _: &filename3) -> Result<(), nfsstat3> {
        Err(nfsstat3::NFS3ERR_ROFS)
    }

    async fn rename(&self, _: fileid3, _: &filename3, _: fileid3, _: &filename3) -> Result<(), nfsstat3> {
        Err(nfsstat3::NFS3ERR_ROFS)
    }

    async fn symlink(
        &self,
        _: fileid3,
        _: &filename3,
        _: &nfspath3,
        _: &sattr3,
    ) -> Result<(fileid3, fattr3), nfsstat3> {
        Err(nfsstat3::NFS3ERR_ROFS)
    }

    async fn readlink(&self, _: fileid3) -> Result<nfspath3, nfsstat3> {
        Err(nfsstat3::NFS3ERR_INVAL)
    }
}

/// A server, which ends with its connections when dropped.
struct Server {
    end: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    fn start(number: u32, at: &'static str) -> Self {
        let (end, ended) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = NFSTcpListener::bind(at, Tree(number)).await.expect("a free port");
                tokio::select! {
                    _ = ended => {}
                    error = listener.handle_forever() => panic!("{error:?}"),
                }
            });
        });
        Self { end: Some(end), thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.end.take().map(|end| end.send(()));
        _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

/// A mount, which ends when dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(node: &StoryNode) -> Self {
        let place = node.directory.join("nfs");
        fs::create_dir_all(&place).expect("a directory");
        let options = format!(
            "vers=3,proto=tcp,port=2049,mountproto=tcp,mountport=2049,nolock,noac,soft,timeo=50,retrans=2,addr={VIP}"
        );
        let options = CString::new(options).expect("no zero");
        mount(format!("{VIP}:/"), &place, "nfs", MountFlags::empty(), Some(options.as_ref() as &CStr))
            .expect("a mount");
        Self(place)
    }

    fn read(&self) -> std::io::Result<String> {
        fs::read_to_string(self.0.join(FILE))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn nfs(node: &mut StoryNode) {
    let known = fs::read_to_string("/proc/filesystems").expect("a list");
    if !is_own_machine() || !known.lines().any(|line| line.ends_with("\tnfs")) {
        println!("LACKS NFS on a machine of its own");
        return;
    }
    let [first, second] = [1, 2].map(|number: u32| Server::start(number, SERVERS[number as usize - 1]));
    node.write("a.yaml", &service("a", &[VIP], "TCP", 2049, &SERVERS[..1]));
    let start = |node: &StoryNode| node.agent(&["--cgroup", "/sys/fs/cgroup"]);
    let mut agent = start(node);
    let counts = TypedMap::<u32, BackendStats>::open(&node.maps(), "BACKEND_STATS").expect("the map");
    let open = || counts.read().expect("counts").into_iter().map(|(_, stats)| stats.open).sum::<u64>();

    // The mount has asked the server for the handle by a connection of its own, which is closed.
    let mount = Mount::new(node);
    assert_eq!(mount.read().expect("read"), "1");
    println!("open after the mount: {}", open());
    until_within(Duration::from_secs(60), "the mount alone counts as open", || open() == 1);

    node.write("a.yaml", &service("a", &[VIP], "TCP", 2049, &SERVERS[1..]));
    agent.wait_for("the second server", |dump| {
        dump.backends.values().any(|backend| backend.addr.to_string() == "10.0.0.2")
    });
    drop(first);
    let start_of_move = Instant::now();
    until_within(Duration::from_secs(60), "the mount has moved", || {
        mount.read().inspect_err(|error| println!("{error}")).is_ok_and(|text| text == "2")
    });
    println!("the mount moved within {:?}", start_of_move.elapsed());

    // The first look is soon after a start.
    drop(mount);
    agent.kill();
    let agent = start(node);
    agent.wait_for_log("TCP sockets without a connection");
    assert_eq!(open(), 0);
    drop(second);
}
