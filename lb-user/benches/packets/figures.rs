//! The figures, and the rounds that measure them.

use std::{collections::BTreeMap, time::Duration};

use lb_lab::table::Spread;

use crate::{
    testbed::{BenchRoute, Contender, Testbed},
    worker::TrafficCost,
};

/// A measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Measurement {
    /// TCP connections, closed at once.
    Connects,
    /// A TCP stream.
    Stream,
    /// A flood of datagrams.
    Packets,
}

/// A result. CPU time is that of the client's CPU, on which packets take their whole route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PacketFigure {
    /// Microseconds of a connection.
    Connect,
    /// Microseconds of CPU time of a connection.
    ConnectCpu,
    /// Gigabits a second.
    Stream,
    /// Thousands of datagrams that arrive in a second.
    Packets,
    /// Nanoseconds of CPU time for each datagram that arrives.
    PacketCpu,
    /// The same without the cost of the ends: the nodes and the links between them.
    ForwardCpu,
    /// Lost datagrams, in percent.
    Lost,
}

/// Values of the rounds, by figure, route and proxy.
pub type PacketFigures = BTreeMap<(PacketFigure, BenchRoute, Contender), Vec<f64>>;

/// Connections of one round.
const CONNECTS: u32 = 1_000;
const STREAM: Duration = Duration::from_millis(250);
const FLOOD: Duration = Duration::from_millis(250);

impl Measurement {
    fn routes(self) -> &'static [BenchRoute] {
        match self {
            Self::Connects => &[BenchRoute::Local, BenchRoute::Remote, BenchRoute::Pods],
            Self::Stream => &[BenchRoute::Local, BenchRoute::Remote],
            Self::Packets => &[BenchRoute::Remote, BenchRoute::Ends],
        }
    }

    fn measure(self, testbed: &mut Testbed, route: BenchRoute) -> Vec<(PacketFigure, f64)> {
        let (client, to, server) = testbed.ends(route);
        match self {
            Self::Connects => {
                let TrafficCost { amount, seconds, cpu } = client.connects(to, CONNECTS);
                vec![(PacketFigure::Connect, seconds / amount * 1e6), (PacketFigure::ConnectCpu, cpu / amount * 1e6)]
            }
            Self::Stream => {
                let TrafficCost { amount, seconds, .. } = client.stream(to, STREAM);
                vec![(PacketFigure::Stream, amount * 8.0 / seconds / 1e9)]
            }
            Self::Packets => {
                // Datagrams that came since the last flood do not count.
                server.arrived();
                let TrafficCost { amount, seconds, cpu } = client.flood(to, FLOOD);
                let arrived = server.arrived();
                vec![
                    (PacketFigure::Packets, arrived / seconds / 1e3),
                    (PacketFigure::PacketCpu, cpu / arrived * 1e9),
                    (PacketFigure::Lost, (amount - arrived) / amount * 100.0),
                ]
            }
        }
    }
}

/// Measures everything once in each round, on all testbeds in turn.
pub fn rounds(testbeds: &mut [Testbed], kinds: &[Measurement], count: usize) -> PacketFigures {
    let mut figures = PacketFigures::new();
    // The first round warms up. The order rotates, so that no testbed always follows the same one.
    for round in 0..=count {
        for kind in kinds {
            for route in kind.routes() {
                for step in 0..testbeds.len() {
                    let index = (round + step) % testbeds.len();
                    let Some(testbed) = testbeds.get_mut(index) else { continue };
                    if *route == BenchRoute::Ends && testbed.proxy != Contender::Floor {
                        continue;
                    }
                    let measured = kind.measure(testbed, *route);
                    for (figure, value) in measured.into_iter().filter(|_| round > 0) {
                        figures.entry((figure, *route, testbed.proxy)).or_default().push(value);
                    }
                }
            }
        }
    }
    forwarding(&mut figures);
    figures
}

/// Subtracts the cost of the ends, which is the same for all proxies.
fn forwarding(figures: &mut PacketFigures) {
    let Some(ends) = figures.get(&(PacketFigure::PacketCpu, BenchRoute::Ends, Contender::Floor)) else { return };
    let ends = Spread::of(ends.iter().copied()).median;
    let whole: Vec<_> = figures
        .iter()
        .filter(|((figure, route, _), _)| (*figure, *route) == (PacketFigure::PacketCpu, BenchRoute::Remote))
        .map(|((.., by), values)| (*by, values.iter().map(|whole| whole - ends).collect()))
        .collect();
    figures.extend(whole.into_iter().map(|(by, values)| ((PacketFigure::ForwardCpu, BenchRoute::Remote, by), values)));
}
