//! Nanoseconds of each program by the kernel's statistics (`BPF_ENABLE_STATS`, Linux 5.8).

use std::{
    path::Path,
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use lb_dataplane::{
    pins::{Pins, link_name},
    watch::{Lost, WatchReader, WatchScope},
};
use lb_kernel::bpf as sys;
use rustix::net::{RecvFlags, SendFlags, connect, getpeername, recvfrom, sendto};

use crate::traffic;

const RUNS: u32 = 20_000;

/// Mean time of a run of each program, by case.
pub fn nanoseconds(pins: &Path) -> Vec<(&'static str, f64)> {
    let _enabled = enable_stats(Stats::RunTime).expect("statistics");
    let (vip, direct) = ((traffic::VIP, traffic::PORT).into(), (traffic::LOOPBACK, traffic::TARGET).into());
    let tcp = |to| move || (0..RUNS / 4).for_each(|_| traffic::tcp_connect(to));
    let udp = |to: std::net::SocketAddr| {
        move || {
            let socket = traffic::udp();
            (0..RUNS).for_each(|_| connect(&socket, &to).expect("connected"));
        }
    };
    let new_udp = |to| move || (0..RUNS).for_each(|_| traffic::udp_connect(to));
    let send = |to: std::net::SocketAddr| {
        move || {
            let socket = traffic::udp();
            (0..RUNS).for_each(|_| {
                sendto(&socket, b"x", SendFlags::empty(), &to).expect("sent");
            });
        }
    };
    let receive = || {
        // This process is the server too, so that a reply is there at once.
        let (here, client) = (std::net::UdpSocket::bind("127.0.0.1:0").expect("a port"), traffic::udp());
        let to = here.local_addr().expect("bound");
        for _ in 0..RUNS / 4 {
            sendto(&client, b"x", SendFlags::empty(), &to).expect("sent");
            let (_, from) = here.recv_from(&mut [0; 8]).expect("received");
            here.send_to(b"y", from).expect("sent");
            recvfrom(&client, &mut [0; 8][..], RecvFlags::empty()).expect("received");
        }
    };
    let peer = || {
        let socket = traffic::udp();
        connect(&socket, &vip).expect("connected");
        (0..RUNS).for_each(|_| {
            getpeername(&socket).expect("a peer");
        });
    };
    let close = || (0..RUNS).for_each(|_| drop(traffic::udp()));
    vec![
        // The program finds no state: little more than the cost of the statistics themselves.
        ("sock_release, UDP, unused", mean(pins, "sock_release", close)),
        ("connect4, TCP, VIP", mean(pins, "connect4", tcp(vip))),
        ("connect4, TCP, no Service", mean(pins, "connect4", tcp(direct))),
        ("connect4, new UDP socket, VIP", mean(pins, "connect4", new_udp(vip))),
        ("connect4, new UDP socket, no Service", mean(pins, "connect4", new_udp(direct))),
        ("connect4, UDP again, VIP", mean(pins, "connect4", udp(vip))),
        ("connect4, UDP again, no Service", mean(pins, "connect4", udp(direct))),
        ("sendmsg4, VIP", mean(pins, "sendmsg4", send(vip))),
        ("sendmsg4, no Service", mean(pins, "sendmsg4", send(direct))),
        ("recvmsg4, no VIP", mean(pins, "recvmsg4", receive)),
        ("getpeername4, UDP, VIP", mean(pins, "getpeername4", peer)),
        ("sock_release, TCP, VIP", mean(pins, "sock_release", tcp(vip))),
        ("sock_release, UDP, VIP", mean(pins, "sock_release", new_udp(vip))),
        ("sock_release, UDP, no Service", mean(pins, "sock_release", new_udp(direct))),
    ]
}

/// Mean time of a run of the programs while `beeline watch` reads, by case.
pub fn watched_nanoseconds(pins: &Pins) -> Vec<(&'static str, f64)> {
    let _enabled = enable_stats(Stats::RunTime).expect("statistics");
    let (is_reading, is_over) = (Barrier::new(2), AtomicBool::new(false));
    let (vip, current) = ((traffic::VIP, traffic::PORT).into(), pins.current());
    thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut reader = WatchReader::open(pins, WatchScope::Sockets).expect("a reader");
            is_reading.wait();
            let mut records = 0;
            while !is_over.load(Ordering::Relaxed) {
                records += reader.read().len();
                thread::sleep(Duration::from_millis(10));
            }
            assert!(records > 0, "records");
            assert_eq!(reader.lost().expect("the map"), Lost::default());
        });
        is_reading.wait();
        let tcp = || (0..RUNS / 4).for_each(|_| traffic::tcp_connect(vip));
        let udp = || (0..RUNS / 4).for_each(|_| traffic::udp_connect(vip));
        let rows = vec![
            ("connect4, TCP, VIP, watched", mean(&current, "connect4", tcp)),
            ("connect4, new UDP socket, VIP, watched", mean(&current, "connect4", udp)),
            ("sock_release, TCP, VIP, watched", mean(&current, "sock_release", tcp)),
        ];
        is_over.store(true, Ordering::Relaxed);
        reading.join().expect("the reader");
        rows
    })
}

/// Nanoseconds of a run of the program that is pinned below `pins`.
fn mean(pins: &Path, program: &str, work: impl FnOnce()) -> f64 {
    let link = sys::open_pin(&pins.join(link_name(program))).and_then(sys::cgroup_link).expect("a pinned link");
    let total = || {
        let info = loaded_programs().flatten().find(|program| program.id() == link.program).expect("a program");
        (info.run_time().as_nanos() as f64, info.run_count() as f64)
    };
    let (time, runs) = total();
    work();
    let (later, more) = total();
    (later - time) / (more - runs)
}
