//! What is measured, and the rounds that measure it.

use std::{collections::BTreeMap, time::Duration};

use lb_lab::table::Spread;

use crate::{
    site::{By, Site, Way},
    worker::Cost,
};

/// A measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Kind {
    /// Connections over TCP that are opened and closed at once.
    Connects,
    /// A stream over TCP.
    Stream,
    /// A flood of datagrams.
    Packets,
}

/// What comes out of one. CPU time is that of the client's CPU, on which packets go their whole way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Figure {
    /// Microseconds of a connection.
    Connect,
    /// Microseconds of CPU time of a connection.
    ConnectCpu,
    /// Gigabits a second.
    Stream,
    /// Thousands of datagrams that arrive in a second.
    Packets,
    /// Nanoseconds of CPU time for each of these.
    PacketCpu,
    /// The same without what the ends cost, which is what the nodes do and the wires between them.
    ForwardCpu,
    /// Of a hundred datagrams that are sent, how many do not arrive.
    Lost,
}

/// Values of the rounds, by what was measured, where, and with which proxy.
pub type Figures = BTreeMap<(Figure, Way, By), Vec<f64>>;

/// Connections of one round, thousands over all rounds.
const CONNECTS: u32 = 1_000;
const STREAM: Duration = Duration::from_millis(250);
const FLOOD: Duration = Duration::from_millis(250);

impl Kind {
    fn ways(self) -> &'static [Way] {
        match self {
            Self::Connects => &[Way::Here, Way::There, Way::Pods],
            Self::Stream => &[Way::Here, Way::There],
            Self::Packets => &[Way::There, Way::Ends],
        }
    }

    fn measure(self, site: &mut Site, way: Way) -> Vec<(Figure, f64)> {
        let (client, to, server) = site.ends(way);
        match self {
            Self::Connects => {
                let Cost { amount, seconds, cpu } = client.connects(to, CONNECTS);
                vec![(Figure::Connect, seconds / amount * 1e6), (Figure::ConnectCpu, cpu / amount * 1e6)]
            }
            Self::Stream => {
                let Cost { amount, seconds, .. } = client.stream(to, STREAM);
                vec![(Figure::Stream, amount * 8.0 / seconds / 1e9)]
            }
            Self::Packets => {
                // What came between two floods is none of this one's.
                server.arrived();
                let Cost { amount, seconds, cpu } = client.flood(to, FLOOD);
                let arrived = server.arrived();
                vec![
                    (Figure::Packets, arrived / seconds / 1e3),
                    (Figure::PacketCpu, cpu / arrived * 1e9),
                    (Figure::Lost, (amount - arrived) / amount * 100.0),
                ]
            }
        }
    }
}

/// Measures everything once in each round, all sites one after the other.
pub fn rounds(sites: &mut [Site], kinds: &[Kind], count: usize) -> Figures {
    let mut figures = Figures::new();
    // The first round warms up. The order turns from round to round, so that none is always the one after another.
    for round in 0..=count {
        for kind in kinds {
            for way in kind.ways() {
                for step in 0..sites.len() {
                    let index = (round + step) % sites.len();
                    let Some(site) = sites.get_mut(index) else { continue };
                    if *way == Way::Ends && site.proxy != By::Floor {
                        continue;
                    }
                    let measured = kind.measure(site, *way);
                    for (figure, value) in measured.into_iter().filter(|_| round > 0) {
                        figures.entry((figure, *way, site.proxy)).or_default().push(value);
                    }
                }
            }
        }
    }
    forwarding(&mut figures);
    figures
}

/// Takes away what the ends cost, which is the same for all.
fn forwarding(figures: &mut Figures) {
    let Some(ends) = figures.get(&(Figure::PacketCpu, Way::Ends, By::Floor)) else { return };
    let ends = Spread::of(ends.iter().copied()).median;
    let whole: Vec<_> = figures
        .iter()
        .filter(|((figure, way, _), _)| (*figure, *way) == (Figure::PacketCpu, Way::There))
        .map(|((.., by), values)| (*by, values.iter().map(|whole| whole - ends).collect()))
        .collect();
    figures.extend(whole.into_iter().map(|(by, values)| ((Figure::ForwardCpu, Way::There, by), values)));
}
