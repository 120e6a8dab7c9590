//! A tunnel between two namespaces: two TUN devices, which have no link header, and a thread that carries the packets
//! from each to the other. It stands for WireGuard, ipip and other L3 devices.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use lb_kernel::tun;
use rustix::event::{PollFd, PollFlags, poll};

use crate::netns::LabNamespace;

/// Interval at which a thread checks for the end of the tunnel.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// A tunnel, which ends with this value.
pub struct Tunnel {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Tunnel {
    /// Makes the device of each end, which is down.
    ///
    /// # Errors
    /// If the kernel has no TUN devices.
    pub fn make(ends: [(&LabNamespace, &str); 2]) -> io::Result<Self> {
        let [one, other] = ends.map(|(namespace, device)| namespace.enter(|| tun::create(device)));
        let (one, other) = (one?, other?);
        let is_over = Arc::new(AtomicBool::new(false));
        let pairs = [(one.try_clone()?, other.try_clone()?), (other, one)];
        let threads = pairs.map(|(from, to)| {
            let is_over = Arc::clone(&is_over);
            thread::spawn(move || carry(&from, &to, &is_over))
        });
        Ok(Self { is_over, threads: threads.into() })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ended = thread.join();
        }
    }
}

/// Carries packets until the tunnel is over. A device that is down takes none, and the packet is lost.
fn carry(mut from: &File, mut to: &File, is_over: &AtomicBool) {
    let mut packet = vec![0; 1 << 16];
    while !is_over.load(Ordering::Relaxed) {
        match from.read(&mut packet) {
            Ok(length) => {
                let _lost = to.write(packet.get(..length).unwrap_or_default());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let timeout = CHECK_INTERVAL.try_into().expect("short");
                let _ready = poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&timeout));
            }
            // The device is down.
            Err(_) => thread::sleep(CHECK_INTERVAL),
        }
    }
}
