//! The Maglev table of a list for the scheduler `mh`: the backend of each flow hash. It depends on addresses, ports and
//! weights of the backends alone, so that all nodes with the same backends have the same table.
//!
//! Eisenbud and others, "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, 3.4: each backend goes
//! through the places in an order of its own and takes the next free place in its turn. A backend of half the weight
//! has half as many turns.

use lb_common::{MAGLEV_LEN, Maglev};

use lb_common::AddrPort;

const PLACES: u64 = MAGLEV_LEN as u64;

/// A backend of the list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Address and port.
    pub target: AddrPort,
    /// At least 1.
    pub weight: u16,
    /// Id of the backend, as written to the table.
    pub id: u32,
}

/// A backend that takes places in turn.
struct Candidate {
    id: u32,
    /// The next place to try.
    place: usize,
    /// Step to the place after it; the number of places is prime, so that all are visited.
    skip: usize,
    weight: u32,
    /// Credit towards the next turn, which costs the largest weight.
    credit: u32,
}

/// Returns the table of backends that come sorted by address and port. None without backends, and with more backends
/// than places: some would get no flow.
pub(super) fn table(entries: impl Iterator<Item = Entry> + Clone) -> Option<Box<Maglev>> {
    let heaviest = entries.clone().map(|entry| u32::from(entry.weight)).max()?;
    let mut candidates: Vec<Candidate> = entries.map(|entry| Candidate::new(entry, heaviest)).collect();
    if candidates.len() > MAGLEV_LEN {
        return None;
    }
    let mut table = Box::new(Maglev { backends: [0; MAGLEV_LEN] });
    let mut free = MAGLEV_LEN;
    loop {
        for candidate in &mut candidates {
            candidate.credit += candidate.weight;
            if candidate.credit < heaviest {
                continue;
            }
            candidate.credit -= heaviest;
            // No id is 0.
            while table.backends[candidate.place] != 0 {
                candidate.place = (candidate.place + candidate.skip) % MAGLEV_LEN;
            }
            table.backends[candidate.place] = candidate.id;
            free -= 1;
            if free == 0 {
                return Some(table);
            }
        }
    }
}

impl Candidate {
    /// Gives each backend a turn in the first round, whatever its weight.
    fn new(Entry { target, weight, id }: Entry, heaviest: u32) -> Self {
        let first = hash(&target, 1);
        let weight = u32::from(weight);
        Self {
            id,
            place: below(first, PLACES),
            skip: 1 + below(hash(&target, first), PLACES - 1),
            weight,
            credit: heaviest - weight,
        }
    }
}

fn below(hash: u64, limit: u64) -> usize {
    usize::try_from(hash % limit).expect("below the number of places")
}

/// Hashes address and port to 64 bits, equal in every version and on every processor.
fn hash(target: &AddrPort, seed: u64) -> u64 {
    let addr = u128::from_be_bytes(target.addr.octets);
    let [low, high] = [addr, addr >> 64].map(|half| u64::try_from(half & u128::from(u64::MAX)).expect("64 bits"));
    [high, low, u64::from(target.port)].into_iter().fold(seed, |so_far, word| splitmix64(so_far ^ word))
}

/// One step of splitmix64.
const fn splitmix64(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
