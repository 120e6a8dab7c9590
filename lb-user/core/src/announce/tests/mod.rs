//! Tests of the protocol over the model: safety under faults, and the times of moves without.

mod model;

use std::collections::BTreeSet;

use super::{Body, Candidates, Node, Time};
use model::{Faults, Happening, MS, Model, STEP, address, name};

const ALL: Faults =
    Faults { loss: 20, delay: 50, stall: 3000, death: 1500, boot: 6000, partition: 800, group: 1500, candidates: 1000 };

/// Runs a model with faults, then without, and then every address has a holder again.
fn check(seed: u64, count: usize, faults: Faults) {
    let mut model = Model::new(seed, count, 3, faults);
    model.run_for(60_000 * MS);
    model.faults = Faults::default();
    (model.is_api_up, model.apart, model.cut) = (true, BTreeSet::new(), BTreeSet::new());
    model.changes += 1;
    model.nodes = (0..count).map(name).collect();
    model.wished.values_mut().for_each(|candidates| *candidates = Candidates::All);
    model.machines.iter_mut().for_each(|machine| machine.sees_api = true);
    model.settle(30_000 * MS);
}

fn seeds() -> std::ops::Range<u64> {
    let count = std::env::var("BEELINE_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(6);
    0..count
}

#[test]
fn at_no_moment_two_nodes_answer_for_one_address() {
    for seed in seeds() {
        let count = 2 + usize::try_from(seed % 4).unwrap_or_default();
        check(seed, count, ALL);
    }
}

#[test]
fn a_voter_that_starts_again_has_forgotten_its_permits_and_grants_none_for_their_time() {
    for seed in 0..16 {
        let mut model = at_rest(seed, 3);
        let holder = model.holders(&address(1))[0];
        let others: Vec<Node> = (0..3).filter(|i| *i != holder).map(name).collect();
        let next = super::choose(address(1), others.iter().map(|node| (node, false))).cloned();
        let voter = (0..3).find(|i| *i != holder && Some(name(*i)) != next).expect("a third one");
        let next = 3 - holder - voter;
        // The next one takes the holder for dead, and only the voter stands in its way.
        model.cut.extend([(holder, next), (next, holder)]);
        model.run_for(3000 * MS);
        assert_eq!(model.holders(&address(1)), [holder]);
        model.kill(voter);
        let delay = model.random.below(300) * MS;
        model.machines[voter].starts_at = Some(model.now + delay);
        model.run_for(5000 * MS);
    }
}

#[test]
fn changes_of_the_group_under_partitions_never_give_two_holders() {
    for seed in seeds() {
        let faults = Faults { group: 200, partition: 300, loss: 50, delay: 100, ..Faults::default() };
        check(seed ^ 0x5555, 3 + usize::try_from(seed % 3).unwrap_or_default(), faults);
    }
}

/// Returns a group at rest: all nodes are members, and every address has a holder.
fn at_rest(seed: u64, count: usize) -> Model {
    let mut model = Model::new(seed, count, 4, Faults { loss: 100, ..Faults::default() });
    model.run_for(20_000 * MS);
    let members = model.lease.as_ref().and_then(|lease| lease.membership.clone()).expect("a membership");
    assert_eq!((members.members, members.next), ((0..count).map(name).collect(), None));
    model.settle(MS);
    model
}

#[test]
fn at_rest_addresses_are_where_the_hash_says_and_the_lease_is_not_written() {
    for count in 1..=5 {
        let mut model = at_rest(count as u64, count);
        let (writes, until) = (model.writes, model.now + 60_000 * MS);
        while model.now < until {
            model.run_for(100 * MS);
            for (addr, _) in model.wished.clone() {
                let nodes: Vec<Node> = (0..count).map(name).collect();
                let chosen = super::choose(addr, nodes.iter().map(|node| (node, false))).cloned();
                let holders: Vec<Node> = model.holders(&addr).into_iter().map(name).collect();
                assert_eq!(holders, chosen.into_iter().collect::<Vec<_>>(), "{count}");
            }
        }
        assert_eq!(model.writes, writes, "{count}");
    }
}

#[test]
fn the_loss_of_a_node_is_answered_within_two_seconds() {
    let mut worst = 0;
    for seed in seeds() {
        let count = 2 + usize::try_from(seed % 4).unwrap_or_default();
        let mut model = at_rest(seed, count);
        let phase = model.random.below(1000) * MS;
        model.run_for(phase);
        let lost = model.holders(&address(1))[0];
        model.power_off(lost);
        let took = model.settle(2000 * MS);
        worst = worst.max(took);
        model.run_for(5000 * MS);
    }
    assert!(worst > 500 * MS, "the time of a permit passes");
    println!("worst of {:?}: {} ms", seeds(), worst / MS);
}

/// Returns a group that keeps its addresses for two minutes without the API server, and has then lost a holder.
fn without_api_server_and_a_holder(seed: u64, count: usize) -> Model {
    let mut model = at_rest(seed, count);
    model.is_api_up = false;
    model.run_for(120_000 * MS);
    model.settle(MS);
    let lost = model.holders(&address(1))[0];
    model.power_off(lost);
    model
}

#[test]
fn a_node_of_three_is_replaced_without_the_api_server() {
    for seed in seeds() {
        let mut model = without_api_server_and_a_holder(seed, 3);
        model.settle(2000 * MS);
    }
}

#[test]
fn a_pair_without_the_api_server_keeps_its_addresses_until_a_node_is_lost() {
    let mut model = without_api_server_and_a_holder(1, 2);
    model.run_for(20_000 * MS);
    assert!(model.holders(&address(1)).is_empty());
    model.is_api_up = true;
    model.settle(5000 * MS);
}

#[test]
fn an_agent_that_starts_again_in_time_leaves_no_gap() {
    for count in 1..=4 {
        let mut model = at_rest(7, count);
        model.faults.loss = 0;
        let i = model.holders(&address(1))[0];
        let held = model.machines[i].map.clone();
        model.kill(i);
        model.machines[i].starts_at = Some(model.now + 900 * MS);
        let until = model.now + 10_000 * MS;
        while model.now < until {
            model.run_for(STEP);
            let lacks = held.iter().find(|addr| model.holders(addr) != [i]);
            assert_eq!(lacks, None, "{count} at {}", model.now / MS);
        }
    }
}

#[test]
fn an_announcer_that_is_alone_needs_no_agent() {
    let mut model = at_rest(3, 1);
    model.kill(0);
    model.is_api_up = false;
    model.run_for(600_000 * MS);
    assert_eq!(model.holders(&address(1)), [0]);
    model.start(0);
    model.run_for(10_000 * MS);
    assert_eq!(model.holders(&address(1)), [0], "it starts without the API server");
}

#[test]
fn a_drain_hands_over_without_a_gap_that_a_client_sees() {
    let mut model = at_rest(5, 3);
    let i = model.holders(&address(1))[0];
    model.machines[i].agent.as_mut().expect("an agent").announcer.set_last(true);
    let (until, mut gap) = (model.now + 3000 * MS, 0);
    while model.now < until {
        model.run_for(STEP);
        gap += u64::from(model.holders(&address(1)).is_empty());
    }
    assert!(model.machines[i].map.is_empty(), "all addresses have gone");
    assert!(gap <= 3, "{gap} steps without a holder");
}

#[test]
fn a_node_whose_links_are_down_leaves_the_vote_of_the_lease_to_the_other_one() {
    for seed in seeds() {
        let mut model = at_rest(seed, 2);
        let phase = model.random.below(1000) * MS;
        model.run_for(phase);
        let lost = model.holders(&address(1))[0];
        let other = 1 - lost;
        // Both reach the API server.
        model.machines[lost].agent.as_mut().expect("an agent").announcer.set_cut_off(true);
        model.cut.extend([(lost, other), (other, lost)]);
        model.run_for(3000 * MS);
        let until = model.now + 10_000 * MS;
        while model.now < until {
            model.run_for(100 * MS);
            let lacks = model.wished.keys().find(|addr| model.holders(addr) != [other]);
            assert_eq!(lacks, None, "seed {seed}");
        }
    }
}

#[test]
fn a_node_that_sends_and_hears_nothing_or_hears_and_sends_nothing_is_replaced() {
    for seed in seeds() {
        for (count, is_deaf) in [(2, true), (2, false), (3, true), (3, false)] {
            let mut model = at_rest(seed, count);
            let phase = model.random.below(1000) * MS;
            model.run_for(phase);
            model.faults.loss = 0;
            let lost = model.holders(&address(1))[0];
            for other in (0..count).filter(|i| *i != lost) {
                model.cut.insert(if is_deaf { (other, lost) } else { (lost, other) });
            }
            model.run_for(3000 * MS);
            for _ in 0..100 {
                model.run_for(100 * MS);
                let lacks = model.wished.keys().find(|addr| model.holders(addr).is_empty());
                assert_eq!(lacks, None, "seed {seed}, {count} nodes, deaf: {is_deaf}");
            }
        }
    }
}

#[test]
fn an_announcer_that_stood_still_takes_no_other_one_for_dead() {
    let mut model = at_rest(2, 3);
    let clock = model.machines[0].clock(model.now) + Time::from_secs(2);
    let announcer = &mut model.machines[0].agent.as_mut().expect("an agent").announcer;
    announcer.poll(clock);
    assert_eq!(announcer.silent_members(clock), [] as [Node; 0], "their datagrams wait to be read");
    for i in 1..8 {
        announcer.poll(clock + i * Time::from_millis(300));
    }
    assert_eq!(announcer.silent_members(clock + Time::from_millis(2100)), [name(1), name(2)]);
}

#[test]
fn a_pause_that_is_shorter_than_a_permit_moves_no_address() {
    for seed in seeds() {
        let count = 2 + usize::try_from(seed % 4).unwrap_or_default();
        let mut model = at_rest(seed, count);
        model.faults.loss = 0;
        let holder = model.holders(&address(1))[0];
        for _ in 0..30 {
            // Others count it as dead meanwhile.
            model.machines[holder].stalled_until = model.now + 1000 * MS;
            model.run_for(4000 * MS);
            assert_eq!(model.holders(&address(1)), [holder], "seed {seed}, {count} nodes");
        }
        let lapses = model.machines[holder].agent.as_ref().expect("an agent").announcer.lapses();
        assert!(lapses <= 3, "seed {seed}: {lapses} lapses, as answers that overtake each other are lost");
    }
}

#[test]
fn one_late_node_moves_addresses_to_others_and_takes_them_back_ever_more_seldom() {
    for seed in seeds() {
        let count = 2 + usize::try_from(seed % 4).unwrap_or_default();
        let mut model = at_rest(seed, count);
        model.faults.loss = 0;
        let late = model.holders(&address(1))[0];
        let (mut holder, mut moves) = (late, 0);
        for _ in 0..20 {
            model.machines[late].stalled_until = model.now + 2500 * MS;
            let end = model.now + 10_000 * MS;
            while model.now < end {
                model.run_for(STEP);
                if let [node] = model.holders(&address(1))[..] {
                    moves += usize::from(node != holder);
                    holder = node;
                }
            }
        }
        // Without a hold-down two moves for each pause.
        assert!((2..=8).contains(&moves), "seed {seed}, {count} nodes: {moves}");
        model.run_for(60_000 * MS);
        assert_eq!(model.holders(&address(1)), [late], "seed {seed}, {count} nodes: it is late no more");
    }
}

#[test]
fn a_node_in_a_hold_down_takes_addresses_that_lose_their_holder_as_fast_as_any() {
    for seed in seeds() {
        let mut model = at_rest(seed, 2);
        let late = model.holders(&address(1))[0];
        // The last hold-down is of 12 s. The other node has given the vote of the Lease back by then.
        for time in [10_000, 10_000, 8000] {
            model.machines[late].stalled_until = model.now + 2500 * MS;
            model.run_for(time * MS);
        }
        assert_eq!(model.holders(&address(1)), [1 - late], "seed {seed}");
        model.power_off(1 - late);
        model.settle(2000 * MS);
    }
}

#[test]
fn a_node_without_a_link_in_the_network_of_an_address_goes_after_others_and_after_drained_ones() {
    let mut model = at_rest(5, 3);
    let networks = |model: &mut Model, i: usize, networks: &[&str]| {
        let networks = networks.iter().map(|network| network.parse().expect("a network"));
        model.machines[i].agent.as_mut().expect("an agent").announcer.set_networks(networks);
    };
    let here = format!("{}/24", address(0));
    // None has the network: all are equal.
    let i = model.holders(&address(1))[0];
    (0..3).for_each(|i| networks(&mut model, i, &["198.51.100.0/24"]));
    model.run_for(3000 * MS);
    assert_eq!(model.holders(&address(1)), [i]);
    // Another one gets it, and is drained.
    let other = (i + 1) % 3;
    networks(&mut model, other, &["198.51.100.0/24", &here]);
    model.machines[other].agent.as_mut().expect("an agent").announcer.set_last(true);
    model.run_for(3000 * MS);
    assert_eq!(model.holders(&address(1)), [other]);
    // The first one gets it, too.
    networks(&mut model, i, &[&here]);
    model.run_for(3000 * MS);
    assert_eq!(model.holders(&address(1)), [i]);
}

#[test]
fn a_node_that_comes_takes_its_share_without_a_gap_that_a_client_sees() {
    for count in [2, 3] {
        let mut model = at_rest(6, count);
        model.faults.loss = 0;
        let i = model.holders(&address(1))[0];
        model.power_off(i);
        model.settle(2000 * MS);
        model.start(i);
        let (until, mut gap) = (model.now + 6000 * MS, 0);
        while model.now < until {
            model.run_for(STEP);
            gap += u64::from(model.holders(&address(1)).is_empty());
        }
        assert_eq!(model.holders(&address(1)), [i], "{count}");
        assert!(gap <= 3, "{gap} steps of {count} without a holder");
    }
}

#[test]
fn a_dead_member_leaves_a_group_of_three_but_not_a_pair() {
    for (count, left) in [(2, 2), (3, 2), (4, 3)] {
        let mut model = at_rest(9, count);
        model.power_off(count - 1);
        model.run_for(90_000 * MS);
        let members = model.lease.as_ref().and_then(|lease| lease.membership.clone()).expect("a membership");
        assert_eq!(members.members.len(), left, "of {count}");
    }
}

#[test]
fn a_recorded_datagram_has_no_effect() {
    let mut model = at_rest(4, 2);
    let i = model.holders(&address(1))[0];
    let other = 1 - i;
    let clock = |model: &Model| model.machines[other].clock(model.now);
    let mut recorded = Vec::new();
    let until = model.now + 1000 * MS;
    while model.now < until {
        model.run_for(STEP);
        recorded.extend(model.queue.values().filter_map(|happening| match happening {
            Happening::Arrives(datagram) if datagram.from == name(i) => Some(datagram.clone()),
            _ => None,
        }));
    }
    assert!(recorded.iter().any(|datagram| matches!(datagram.body, Body::Ask { .. })));
    model.power_off(i);
    model.run_for(5000 * MS);
    for datagram in recorded {
        let now = clock(&model);
        let announcer = &mut model.machines[other].agent.as_mut().expect("an agent").announcer;
        announcer.receive(datagram, now);
        assert!(announcer.peers.alive(&name(i), now).is_none());
    }
}
