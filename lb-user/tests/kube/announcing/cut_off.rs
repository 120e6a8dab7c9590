//! Nodes that are cut off from the API server, from the other announcers, from the link, or from all of them.

use std::time::Duration;

use lb_lab::api_server::ApiServer;

use super::{CUT, Group, REPLACED, lease, name, until, until_answered};
use crate::bootstrap::is_skipped;

/// Two and three nodes. No question ever has two answers.
pub(crate) fn a_node_that_is_cut_off_stops_before_another_begins(server: &mut ApiServer) {
    if is_skipped() {
        return;
    }
    for count in [2, 3] {
        let group = Group::start(server, count);
        from_the_api_server(&group);
        from_the_other_announcers(server, &group);
        from_the_link(server, &group);
        from_the_link_and_the_api_server(server, &group);
        group.end(server);
    }
}

fn from_the_api_server(group: &Group) {
    let start = group.now();
    group.wire.set_way_to_api_server(group.holder, "down");
    std::thread::sleep(CUT);
    group.until_holders_are_back();
    group.assert_gap("no API server", start, Duration::from_secs(1));
    group.wire.set_way_to_api_server(group.holder, "up");
}

/// Clients and the API server still reach the node.
fn from_the_other_announcers(server: &ApiServer, group: &Group) {
    let (count, cut) = (group.agents.len(), group.holder);
    let set_routes = |verb: &str| {
        for other in (1..=count).filter(|number| *number != cut) {
            for (from, to) in [(cut, other), (other, cut)] {
                let route = format!("route {verb} blackhole 10.99.0.{}/32", 10 + to);
                group.wire.nodes[from - 1].net().setup().ip(&route).apply();
            }
        }
    };
    let start = group.now();
    set_routes("add");
    if count == 2 {
        // Either of the two may take the vote of the API server, and the addresses with it.
        until("one has the vote", || !lease(server).holder.is_empty());
        let holder = lease(server).holder;
        let number = (1..=count).find(|number| name(*number) == holder).expect("a node");
        until_answered(&group.client, "the node with the vote answers", |_, mac| mac == group.macs[number - 1]);
    } else {
        group.until_others_answer();
    }
    group.assert_gap("no way to other announcers", start, REPLACED);
    std::thread::sleep(CUT);
    set_routes("del");
    group.until_holders_are_back();
}

/// The node reaches the API server by another way, and could take its vote.
fn from_the_link(server: &ApiServer, group: &Group) {
    let start = group.now();
    group.wire.set_link(group.holder, "down");
    group.until_others_answer();
    group.assert_gap("no link", start, REPLACED);
    // The node may have had the vote since before, and gives it back.
    until("a node without a link leaves the vote to others", || lease(server).holder != name(group.holder));
    std::thread::sleep(CUT);
    group.until_others_answer();
    assert_ne!(lease(server).holder, name(group.holder), "it takes no vote");
    group.wire.set_link(group.holder, "up");
    group.until_holders_are_back();
}

/// The node loses the link and the API server, and its processes run on.
fn from_the_link_and_the_api_server(server: &ApiServer, group: &Group) {
    let start = group.now();
    group.wire.set_link(group.holder, "down");
    group.wire.set_way_to_api_server(group.holder, "down");
    group.until_others_answer();
    group.assert_gap("neither link nor API server", start, REPLACED);
    std::thread::sleep(CUT);
    // The members are known, so that the node takes part without the API server.
    group.wire.set_link(group.holder, "up");
    group.until_holders_are_back();
    group.wire.set_way_to_api_server(group.holder, "up");
    until("the Lease has no holder", || lease(server).holder.is_empty());
}
