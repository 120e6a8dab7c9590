//! How a backend is chosen from a list: the names that ipvs gave them (Linux, net/netfilter/ipvs/ip_vs_*.c).

/// A scheduler, as it stands in [`crate::Service::scheduler`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(u32)]
pub enum Scheduler {
    /// Any, by chance, in proportion to the weights.
    #[default]
    Random = 0,
    /// Round robin: each in turn.
    Rr = 1,
    /// Weighted round robin: each in turn, as often as its weight says.
    Wrr = 2,
    /// Least connection: of two by chance the one with fewer open sockets on this node.
    Lc = 3,
    /// Weighted least connection: of two by chance the one with fewer open sockets for its weight.
    Wlc = 4,
    /// Shortest expected delay: as `wlc`, with the new socket counted in.
    Sed = 5,
    /// Never queue: one without open sockets if there is one among the two, else as `sed`.
    Nq = 6,
    /// Source hashing: the same for each connect of one client.
    Sh = 7,
    /// Destination hashing: the same for each connect to one frontend.
    Dh = 8,
    /// Maglev hashing: the same for each packet of one flow, on all nodes; few flows move when a backend comes or goes. A
    /// socket has no such flow yet when it connects: there it is by chance, in proportion to the weights.
    Mh = 9,
}

impl Scheduler {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 10] =
        [Self::Random, Self::Rr, Self::Wrr, Self::Lc, Self::Wlc, Self::Sed, Self::Nq, Self::Sh, Self::Dh, Self::Mh];

    /// The name that ipvsadm knows it by.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Rr => "rr",
            Self::Wrr => "wrr",
            Self::Lc => "lc",
            Self::Wlc => "wlc",
            Self::Sed => "sed",
            Self::Nq => "nq",
            Self::Sh => "sh",
            Self::Dh => "dh",
            Self::Mh => "mh",
        }
    }

    /// The scheduler of a name. `maglev` is what others call `mh`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let name = if name == "maglev" { Self::Mh.name() } else { name };
        Self::ALL.into_iter().find(|scheduler| scheduler.name() == name)
    }

    /// The scheduler behind a stored number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|&scheduler| scheduler as u32 == number)
    }

    /// Whether a backend of twice the weight gets twice as much. Weight 0, "nothing new", counts with all of them.
    #[must_use]
    pub const fn weighs(self) -> bool {
        matches!(self, Self::Random | Self::Wrr | Self::Wlc | Self::Sed | Self::Nq | Self::Mh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_lead_back() {
        for scheduler in Scheduler::ALL {
            assert_eq!(Scheduler::from_name(scheduler.name()), Some(scheduler));
            assert_eq!(Scheduler::from_number(scheduler as u32), Some(scheduler));
        }
        assert_eq!(Scheduler::from_name("maglev"), Some(Scheduler::Mh));
        assert_eq!((Scheduler::from_name("RR"), Scheduler::from_number(10)), (None, None));
    }
}
