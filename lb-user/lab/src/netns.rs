//! Network namespaces without names: a descriptor holds each, so the kernel removes it with the last process that uses
//! it.

use std::{
    fs::{self, File},
    io::Write as _,
    os::fd::{AsFd as _, AsRawFd as _},
    process::{Child, Command, Stdio},
    thread,
};

use lb_kernel::unshare;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace. It lives as long as this value, or as a process in it.
pub struct LabNamespace(File);

impl LabNamespace {
    /// Makes a namespace with a loopback device only, which is down.
    #[expect(clippy::new_without_default, reason = "it changes the machine")]
    pub fn new() -> Self {
        let make = || {
            unshare::network().expect("a network namespace, which needs root");
            Self::current()
        };
        thread::scope(|scope| joined(scope.spawn(make)))
    }

    /// The namespace of the calling thread.
    pub fn current() -> Self {
        Self(File::open("/proc/thread-self/ns/net").expect("/proc"))
    }

    /// A path for `nsenter --net=` and `ip ... netns`, valid while this process lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Moves the calling thread into the namespace for good.
    pub fn join(&self) {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).expect("our own namespace");
    }

    /// Runs `work` in the namespace, on a thread that the caller waits for. Its sockets, threads and processes belong
    /// to the namespace, and it reads the namespace's /proc/sys/net.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let there = || {
            self.join();
            work()
        };
        thread::scope(|scope| joined(scope.spawn(there)))
    }

    /// Starts a process in the namespace.
    pub fn spawn(&self, command: &mut Command) -> Child {
        self.enter(|| command.spawn()).unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// Runs a command in the namespace, which must succeed, and returns its standard output.
    pub fn run(&self, words: &[&str]) -> String {
        let (program, arguments) = words.split_first().expect("a command");
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = self.spawn(&mut command).wait_with_output().expect("its end");
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Sets a sysctl below `net`, as in `ipv4/ip_forward`.
    pub fn set(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/net/{name}");
        self.enter(|| fs::write(&path, value)).unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    /// Runs commands of ip(8), one a line, as one batch.
    pub fn ip(&self, lines: &str) {
        self.ip_with(&[], lines);
    }

    /// As [`LabNamespace::ip`], with flags of ip(8), as in `-6`.
    pub fn ip_with(&self, flags: &[&str], lines: &str) {
        let mut command = Command::new("ip");
        command.args(flags).args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = self.spawn(&mut command);
        child.stdin.take().expect("piped").write_all(lines.as_bytes()).expect("ip reads to the end");
        let output = child.wait_with_output().expect("its end");
        assert!(output.status.success(), "{}\n{lines}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The result of a thread, or its panic.
fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
