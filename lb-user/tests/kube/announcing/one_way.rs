//! A node whose datagrams get lost in one direction: it hears the others and they do not hear it, or the reverse.
//! Clients and the API server reach it.

use std::time::Duration;

use lb_lab::api_server::ApiServer;

use super::{CUT, Group, REPLACED, until, until_answered};
use crate::bootstrap::is_skipped;

/// Time in which addresses that came back stay.
const QUIET: Duration = Duration::from_secs(3);

/// Datagrams that get lost.
#[derive(Clone, Copy, Debug)]
enum Lost {
    /// Datagrams that the node sends.
    Sent,
    /// Datagrams that the node should receive.
    Received,
}

/// Two and three nodes. No question ever has two answers, and each address moves once when the loss begins, and once
/// after its end.
pub(crate) fn a_node_that_hears_or_is_heard_only_loses_its_addresses_once(server: &mut ApiServer) {
    if is_skipped() {
        return;
    }
    for count in [2, 3] {
        let group = Group::start(server, count);
        for lost in [Lost::Sent, Lost::Received] {
            in_one_direction(&group, lost);
        }
        group.end(server);
    }
}

fn in_one_direction(group: &Group, lost: Lost) {
    let (count, node) = (group.agents.len(), group.holder);
    let start = group.now();
    set_loss(group, lost, true);
    if count == 2 {
        // Either of the two may take the vote of the API server, and the addresses with it.
        until("one node answers for all", || {
            group.macs.iter().any(|mac| group.client.all_answered_by(|_, answerer| answerer == *mac))
        });
    } else {
        group.until_others_answer();
    }
    std::thread::sleep(CUT);
    let what = format!("{lost:?} datagrams of node {node} are lost");
    group.assert_gap(&what, start, REPLACED);
    group.assert_moves(&what, start);
    let end = group.now();
    set_loss(group, lost, false);
    until_answered(&group.client, "the addresses are back", |addr, mac| mac == group.holders[&addr]);
    std::thread::sleep(QUIET);
    group.assert_gap(&format!("no more {what}"), end, REPLACED);
    group.assert_moves(&format!("no more {what}"), end);
}

/// Drops datagrams of announcers where they arrive, or lets them through again.
fn set_loss(group: &Group, lost: Lost, is_lost: bool) {
    let run = |number: usize, arguments: &[&str]| {
        group.wire.nodes[number - 1].net().run(&[&["nft"], arguments].concat());
    };
    let deaf: Vec<usize> = match lost {
        Lost::Sent => (1..=group.agents.len()).filter(|number| *number != group.holder).collect(),
        Lost::Received => vec![group.holder],
    };
    for number in deaf {
        if !is_lost {
            run(number, &["delete", "table", "inet", "loss"]);
            continue;
        }
        let from = match lost {
            Lost::Sent => format!("ip saddr 10.99.0.{} ", 10 + group.holder),
            Lost::Received => String::new(),
        };
        let chain = format!("chain input {{ type filter hook input priority 0; {from}udp dport 10269 drop; }}");
        run(number, &[&format!("table inet loss {{ {chain}; }}")]);
    }
}
