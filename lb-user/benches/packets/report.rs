//! The table of the bench: medians with their spread, and the medians of the ratios within the rounds.

use lb_lab::{
    kube_proxy::Mode,
    packets::cost::ProgramCost,
    table::{Short, Spread},
};

use crate::{
    figures::{PacketFigure, PacketFigures},
    testbed::{BenchRoute, Contender},
};

const KUBE_PROXIES: [Contender; 2] = [Contender::KubeProxy(Mode::Iptables), Contender::KubeProxy(Mode::Nftables)];
const OURS: [Contender; 2] = [Contender::Beeline, Contender::HostRouting];

/// Prints the head of the table.
pub fn header() {
    let ([iptables, nftables], [plain, routing]) = (KUBE_PROXIES, OURS);
    println!(
        "| Services | what | {} | {iptables} | {nftables} | {plain} | {routing} \
         | both of the better kube-proxy | aim |",
        Contender::Floor,
    );
    println!("|---|---|---|---|---|---|---|---|---|");
}

/// Prints the rows for a number of Services, with a dash for a proxy that is missing.
pub fn rows(services: u32, figures: &PacketFigures) {
    let mut whats: Vec<(PacketFigure, BenchRoute)> =
        figures.keys().map(|&(figure, route, _)| (figure, route)).collect();
    whats.dedup();
    for (figure, route) in whats {
        let values = |by| figures.get(&(figure, route, by)).map(Vec::as_slice);
        let all = [Contender::Floor, KUBE_PROXIES[0], KUBE_PROXIES[1], OURS[0], OURS[1]];
        // No row for zero loss.
        if all.into_iter().filter_map(values).flatten().all(|value| *value == 0.0) {
            continue;
        }
        let cell = |by| {
            let Some(own) = values(by) else { return "-".to_owned() };
            let Spread { median, min, max } = Spread::of(own.iter().copied());
            let (median, min, max) = (Short(median), Short(min), Short(max));
            let of_floor = if by == Contender::Floor { None } else { ratio(own, values(Contender::Floor)) };
            let of_floor = of_floor.map_or_else(String::new, |ratio| format!("**{ratio:.2}** "));
            format!("{of_floor}{median} ({min} to {max})")
        };
        let better = better(figure, KUBE_PROXIES.map(values));
        let of_better = OURS.map(|by| {
            let ratio = values(by).and_then(|own| ratio(own, better));
            ratio.map_or_else(|| "-".to_owned(), |ratio| format!("**{ratio:.2}**"))
        });
        let of_better = of_better.join(", ");
        let cells = all.map(cell).join(" | ");
        println!("| {services} | {} | {cells} | {of_better} | {} |", name(figure, route), aim(figure, route));
    }
}

/// Prints the cost of the programs alone.
pub fn costs(costs: &[ProgramCost]) {
    println!("\nThe programs alone, by BPF_PROG_TEST_RUN, with warm caches:\n");
    println!("| program | packet | verdict | ns |\n|---|---|---|---|");
    for ProgramCost { program, what, verdict, ns } in costs {
        println!("| {program} | {what} | {verdict} | {ns} |");
    }
}

/// The mode of kube-proxy with the better median.
fn better(figure: PacketFigure, modes: [Option<&[f64]>; 2]) -> Option<&[f64]> {
    let median = |values: &&[f64]| {
        let median = Spread::of(values.iter().copied()).median;
        if matches!(figure, PacketFigure::Stream | PacketFigure::Packets) { -median } else { median }
    };
    modes.into_iter().flatten().min_by(|a, b| median(a).total_cmp(&median(b)))
}

/// The median over the rounds of the ratio within a round.
fn ratio(own: &[f64], other: Option<&[f64]>) -> Option<f64> {
    let ratios = own.iter().zip(other?).map(|(own, other)| own / other);
    Some(Spread::of(ratios).median).filter(|ratio| ratio.is_finite())
}

fn name(figure: PacketFigure, route: BenchRoute) -> String {
    let (what, unit) = match figure {
        PacketFigure::Connect => ("TCP connect and close", "µs"),
        PacketFigure::ConnectCpu => ("TCP connect and close, CPU", "µs"),
        PacketFigure::Stream => ("TCP stream", "Gbit/s"),
        PacketFigure::Packets => ("UDP datagrams that arrive", "thousand/s"),
        PacketFigure::PacketCpu => ("UDP datagram, CPU", "ns"),
        PacketFigure::ForwardCpu => ("UDP datagram, CPU without the ends", "ns"),
        PacketFigure::Lost => ("UDP datagrams that are lost", "%"),
    };
    let route = match route {
        BenchRoute::Local => "backend on the node",
        BenchRoute::Remote => "backend on the other node",
        BenchRoute::Pods => "pod to pod, no Service",
        BenchRoute::Ends => "to the node, nothing forwarded",
    };
    format!("{what}, {route}, {unit}")
}

/// The aims of issue 6. Packets that a CPU forwards in a second are the inverse of the cost of one.
fn aim(figure: PacketFigure, route: BenchRoute) -> &'static str {
    match (figure, route) {
        (PacketFigure::Connect | PacketFigure::ConnectCpu, BenchRoute::Local) => "≤ 1.05 of the floor",
        (PacketFigure::Connect | PacketFigure::ConnectCpu, BenchRoute::Remote) => "≤ 0.62 of kube-proxy",
        (PacketFigure::Stream, _) => "≥ 1.00 of the floor",
        (PacketFigure::ForwardCpu, _) => "≤ 0.59 of kube-proxy",
        _ => "",
    }
}
