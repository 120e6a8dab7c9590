//! The table of a list with the scheduler `mh`: which backend each hash of a flow gets, by the backends' addresses, ports
//! and weights alone, so that all nodes that know the same backends have the same table.
//!
//! Eisenbud and others, "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, 3.4: each backend goes
//! through the places in an order of its own, and takes in turn the next one that is free. One of half the weight has half
//! as many turns.

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
    /// Which the table shall say.
    pub id: u32,
}

/// A backend that takes places.
struct Taker {
    id: u32,
    /// The place that it tries next.
    place: usize,
    /// How far it goes on from there; the number of places is a prime, so that it comes by all of them.
    skip: usize,
    weight: u32,
    /// A turn costs as much as the heaviest weighs.
    credit: u32,
}

/// The table of the backends, which come in the order of their targets. None without any, and where there are more of them
/// than places: some would get no flow at all.
pub(super) fn table(entries: impl Iterator<Item = Entry> + Clone) -> Option<Box<Maglev>> {
    let heaviest = entries.clone().map(|entry| u32::from(entry.weight)).max()?;
    let mut takers: Vec<Taker> = entries.map(|entry| Taker::new(entry, heaviest)).collect();
    if takers.len() > MAGLEV_LEN {
        return None;
    }
    let mut table = Box::new(Maglev { backends: [0; MAGLEV_LEN] });
    let mut free = MAGLEV_LEN;
    loop {
        for taker in &mut takers {
            taker.credit += taker.weight;
            if taker.credit < heaviest {
                continue;
            }
            taker.credit -= heaviest;
            // No id is 0.
            while table.backends[taker.place] != 0 {
                taker.place = (taker.place + taker.skip) % MAGLEV_LEN;
            }
            table.backends[taker.place] = taker.id;
            free -= 1;
            if free == 0 {
                return Some(table);
            }
        }
    }
}

impl Taker {
    /// Each has a turn in the first round, whatever it weighs.
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

/// 64 bits that depend on all of a target. They are the same in each version and on each processor.
fn hash(target: &AddrPort, seed: u64) -> u64 {
    let addr = u128::from_be_bytes(target.addr.octets);
    let [low, high] = [addr, addr >> 64].map(|half| u64::try_from(half & u128::from(u64::MAX)).expect("64 bits"));
    [high, low, u64::from(target.port)].into_iter().fold(seed, |so_far, word| mix(so_far ^ word))
}

/// A step of splitmix64.
const fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
