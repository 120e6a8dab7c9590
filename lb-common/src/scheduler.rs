//! The schedulers, by their names in ipvs (Linux, net/netfilter/ipvs/ip_vs_*.c).

/// A scheduler: a value of [`crate::ServiceEntry::scheduler`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(u32)]
pub enum Scheduler {
    /// At random, in proportion to the weights.
    #[default]
    Random = 0,
    /// Round robin: each backend in turn.
    Rr = 1,
    /// Weighted round robin: each backend in turn, as often as its weight says.
    Wrr = 2,
    /// Least connection: of two random backends the one with fewer open sockets on this node.
    Lc = 3,
    /// Weighted least connection: of two random backends the one with fewer open sockets for its weight.
    Wlc = 4,
    /// Shortest expected delay: as `wlc`, counting the new socket.
    Sed = 5,
    /// Never queue: of the two a backend without open sockets, else as `sed`.
    Nq = 6,
    /// Source hashing: the same backend for each connect of a client.
    Sh = 7,
    /// Destination hashing: the same backend for each connect to a frontend.
    Dh = 8,
    /// Maglev hashing: the same backend for a flow on all nodes; few flows move when a backend is added or removed. A
    /// connecting socket has no flow yet and gets a random place in the table, in proportion to the weights.
    Mh = 9,
}

impl Scheduler {
    /// All schedulers, ordered by number.
    pub const ALL: [Self; 10] =
        [Self::Random, Self::Rr, Self::Wrr, Self::Lc, Self::Wlc, Self::Sed, Self::Nq, Self::Sh, Self::Dh, Self::Mh];

    /// The name in ipvsadm.
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

    /// Parses a name; `maglev` is another name of `mh`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let name = if name == "maglev" { Self::Mh.name() } else { name };
        Self::ALL.into_iter().find(|scheduler| scheduler.name() == name)
    }

    /// The scheduler of a stored number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|&scheduler| scheduler as u32 == number)
    }

    /// True if shares follow the weights. Weight 0, "no new connections", counts with every scheduler.
    #[must_use]
    pub const fn weighs(self) -> bool {
        matches!(self, Self::Random | Self::Wrr | Self::Wlc | Self::Sed | Self::Nq | Self::Mh)
    }

    /// The rule of the scheduler in words.
    #[must_use]
    pub const fn rule(self) -> &'static str {
        match self {
            Self::Random => "any of them, by chance",
            Self::Rr => "each in turn",
            Self::Wrr => "each in turn, as often as its weight says",
            Self::Lc => "of two by chance the one with fewer open sockets on this node",
            Self::Wlc => "of two by chance the one with fewer open sockets for its weight",
            Self::Sed => "of two by chance the one with fewer sockets for its weight, the new one counted in",
            Self::Nq => "of two by chance an idle one, else as sed",
            Self::Sh => "by the client: always the same for its network namespace",
            Self::Dh => "by the address dialled: always the same for one frontend",
            Self::Mh => "packets by the hash of their flow, the same on all nodes; sockets by chance",
        }
    }

    /// True if another connect of the same client to the same frontend may get any backend of the list.
    #[must_use]
    pub const fn is_by_chance(self) -> bool {
        match self {
            Self::Random | Self::Lc | Self::Wlc | Self::Sed | Self::Nq | Self::Mh => true,
            Self::Rr | Self::Wrr | Self::Sh | Self::Dh => false,
        }
    }

    /// True if the scheduler of this number compares open sockets. By number: a program that turned it into a
    /// `Scheduler` first would pay for each variant.
    #[inline(always)]
    #[must_use]
    pub(crate) const fn compares_open_sockets(number: u32) -> bool {
        const LC: u32 = Scheduler::Lc as u32;
        const WLC: u32 = Scheduler::Wlc as u32;
        const SED: u32 = Scheduler::Sed as u32;
        const NQ: u32 = Scheduler::Nq as u32;
        matches!(number, LC | WLC | SED | NQ)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheduler_is_found_by_its_name_and_by_its_number() {
        for scheduler in Scheduler::ALL {
            assert_eq!(Scheduler::from_name(scheduler.name()), Some(scheduler));
            assert_eq!(Scheduler::from_number(scheduler as u32), Some(scheduler));
        }
        assert_eq!(Scheduler::from_name("maglev"), Some(Scheduler::Mh));
        assert_eq!((Scheduler::from_name("RR"), Scheduler::from_number(10)), (None, None));
    }
}
