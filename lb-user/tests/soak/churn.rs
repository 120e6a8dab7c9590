//! Changes during a soak: of objects, of pods and of links.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    process::Command,
    sync::atomic::Ordering,
    time::Duration,
};

use lb_lab::{LabNamespace, link::LinkSpec, network::Lan, rng::Rng};

use crate::{
    Activity,
    clients::{ask_tcp, ask_udp},
    objects::{self, CHANGING, STEADY},
};

/// Changes one Service after the other.
pub fn objects(activity: &Activity, yaml: &Path) {
    let mut rng = Rng::new(1);
    let backends: Vec<(IpAddr, &str)> = [(1, 4), (2, 2), (2, 3), (2, 4)]
        .into_iter()
        .flat_map(|(node, last)| {
            let name = if node == 1 { "here" } else { "there" };
            let v4 = Ipv4Addr::new(10, 244, node, last);
            let v6 = Ipv6Addr::new(0xfd44, 0, 0, node.into(), 0, 0, 0, last.into());
            [(v4.into(), name), (v6.into(), name)]
        })
        .collect();
    while activity.goes_on_after(Duration::from_millis(60)) {
        let number = rng.below(CHANGING);
        let file = format!("c{number}.yaml");
        if rng.chance(15) {
            // The file may not exist.
            let _absent = fs::remove_file(yaml.join(file));
        } else {
            objects::write(yaml, &file, &objects::changing(&mut rng, number, &backends));
        }
        activity.objects.fetch_add(1, Ordering::Relaxed);
    }
    for number in 0..CHANGING {
        let _absent = fs::remove_file(yaml.join(format!("c{number}.yaml")));
    }
}

/// Makes pods on the first node, each with a mode and a few calls, and removes them.
pub fn pods(activity: &Activity, lan: &Lan, yaml: &Path, cgroups: &Path) {
    let mut rng = Rng::new(2);
    let node = &lan.node1.host.net;
    while activity.goes_on_after(Duration::from_millis(300)) {
        let last = 100 + u8::try_from(rng.below(100)).unwrap();
        let (v4, v6) = (Ipv4Addr::new(10, 244, 1, last), Ipv6Addr::new(0xfd44, 0, 0, 1, 0, 0, 0, last.into()));
        let (link, net) = (format!("veth{last}"), LabNamespace::new());
        node.setup()
            .link(&link, &LinkSpec::veth_to(&net, "eth0"))
            .address(&link, "10.244.1.1/32")
            .address(&link, "fd44:0:0:1::1/128")
            .route(&format!("{v4}/32 dev {link}"))
            .route(&format!("{v6}/128 dev {link}"))
            .apply();
        net.setup()
            .up("lo")
            .up("eth0")
            .address("eth0", &format!("{v4}/32"))
            .address("eth0", &format!("{v6}/128"))
            .route("10.244.1.1/32 dev eth0 scope link")
            .route("fd44:0:0:1::1/128 dev eth0")
            .route("default via 10.244.1.1")
            .route("default via fd44:0:0:1::1")
            .apply();
        let number = activity.pods.load(Ordering::Relaxed);
        let uid = format!("{:08x}-0000-4a54-9c9e-{number:012x}", std::process::id());
        let cgroup = cgroups.join(format!("besteffort/pod{uid}/3f9a"));
        fs::create_dir_all(&cgroup).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec sleep 1000"]).arg(&cgroup);
        let mut process = net.spawn(&mut command);
        let mode = rng.pick(&["socket", "packet", "off"]);
        objects::write(yaml, "pod.yaml", &objects::pod("p", [v4.into(), v6.into()], &uid, mode));
        let steady: Vec<SocketAddr> = STEADY.map(|ip| SocketAddr::new(ip.parse().unwrap(), 80)).into();
        for _ in 0..rng.below(4) {
            // The pod's mode may change in between, or leave the address to the network.
            net.enter(|| {
                for &to in &steady {
                    let _answer = (ask_tcp(to, Duration::from_millis(200)), ask_udp(to, Duration::from_millis(200)));
                }
            });
        }
        process.kill().unwrap();
        process.wait().unwrap();
        if rng.chance(50) {
            fs::remove_file(yaml.join("pod.yaml")).unwrap();
        }
        node.run(&["ip", "link", "delete", &link]);
        drop(net);
        for directory in [cgroup.as_path(), cgroup.parent().unwrap()] {
            let _busy = fs::remove_dir(directory);
        }
        activity.pods.fetch_add(1, Ordering::Relaxed);
    }
    let _absent = fs::remove_file(yaml.join("pod.yaml"));
}

/// Makes links of several kinds on the first node, and removes them.
pub fn links(activity: &Activity, lan: &Lan) {
    let mut rng = Rng::new(3);
    let net = &lan.node1.host.net;
    let mut made: Vec<String> = Vec::new();
    while activity.goes_on_after(Duration::from_millis(150)) {
        if made.len() > 5 || (rng.chance(40) && !made.is_empty()) {
            let index = usize::try_from(rng.below(made.len() as u64)).unwrap();
            net.run(&["ip", "link", "delete", &made.swap_remove(index)]);
        } else {
            let number = activity.links.fetch_add(1, Ordering::Relaxed);
            let name = format!("soak{number}");
            let kind = match rng.below(3) {
                0 => format!("link add {name} type bridge"),
                1 => format!("link add {name} type veth peer name peer{number}"),
                _ => format!("link add {name} type veth peer name peer{number} mtu 9000"),
            };
            let octet = number % 250;
            net.ip(&format!("{kind}\nlink set {name} up\naddress add 10.77.{octet}.1/24 dev {name}"));
            made.push(name);
        }
    }
    made.iter().for_each(|name| _ = net.run(&["ip", "link", "delete", name]));
}
