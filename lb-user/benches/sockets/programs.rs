//! Nanoseconds of each program as the kernel counts them (`BPF_ENABLE_STATS`, Linux 5.8).

use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use rustix::net::{RecvFlags, SendFlags, connect, getpeername, recvfrom, sendto};

use crate::traffic;

const RUNS: u32 = 20_000;

/// Mean time of a run of each program, by what it met.
pub fn nanoseconds() -> Vec<(&'static str, f64)> {
    let _enabled = enable_stats(Stats::RunTime).expect("statistics");
    let (vip, direct) = ((traffic::VIP, traffic::PORT).into(), (traffic::LOOPBACK, traffic::TARGET).into());
    let tcp = |to| move || (0..RUNS / 4).for_each(|_| traffic::tcp_connect(to));
    let udp = |to: std::net::SocketAddr| {
        move || {
            let socket = traffic::udp();
            (0..RUNS).for_each(|_| connect(&socket, &to).expect("connected"));
        }
    };
    let send = |to: std::net::SocketAddr| {
        move || {
            let socket = traffic::udp();
            (0..RUNS).for_each(|_| {
                sendto(&socket, b"x", SendFlags::empty(), &to).expect("sent");
            });
        }
    };
    let receive = || {
        // A server that this process is itself, so that a reply is there at once.
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
    vec![
        ("connect4, TCP, VIP", mean("connect4", tcp(vip))),
        ("connect4, TCP, no Service", mean("connect4", tcp(direct))),
        ("connect4, UDP, VIP", mean("connect4", udp(vip))),
        ("connect4, UDP, no Service", mean("connect4", udp(direct))),
        ("sendmsg4, VIP", mean("sendmsg4", send(vip))),
        ("sendmsg4, no Service", mean("sendmsg4", send(direct))),
        ("recvmsg4, no VIP", mean("recvmsg4", receive)),
        ("getpeername4, UDP, VIP", mean("getpeername4", peer)),
        ("sock_release, TCP, VIP", mean("sock_release", tcp(vip))),
    ]
}

fn mean(program: &str, work: impl FnOnce()) -> f64 {
    let (time, runs) = total(program);
    work();
    let (later, more) = total(program);
    (later - time) / (more - runs)
}

/// Of the newest program of that name, which is the bench's own.
fn total(name: &str) -> (f64, f64) {
    let ours = loaded_programs().flatten().filter(|program| program.name_as_str() == Some(name)).last();
    let ours = ours.expect("the program is loaded");
    (ours.run_time().as_nanos() as f64, ours.run_count() as f64)
}
