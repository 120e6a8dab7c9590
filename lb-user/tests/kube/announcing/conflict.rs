//! Another host that claims an announced address, told by an Event.

use std::{net::UdpSocket, time::Duration};

use lb_lab::api_server::ApiServer;

use super::{
    until,
    wire::{Wire, address, delete_objects, make_objects, until_answered, until_group},
};
use crate::{bootstrap::is_skipped, deploy};

/// The client gives its interface an address that the node announces, and asks for the node from it.
pub(crate) fn a_host_that_claims_an_announced_address_is_told_by_an_event(server: &mut ApiServer) {
    if is_skipped() {
        return;
    }
    make_objects(server, 1);
    let wire = Wire::make(server, 1);
    // The same account gets one more right.
    let _overlay_and_credentials = deploy::with_events(server);
    let asking = wire.client();
    let agent = wire.start_agent_with(1, "events: true\n");
    until_group(server, &[1]);
    until_answered(&asking, "every address has an answerer", |_, _| true);
    asking.end();
    // Claims within a second after a move do not count.
    std::thread::sleep(Duration::from_secs(2));
    let claimed = address(1);
    let host = wire.client_host();
    host.setup().address("eth0", &format!("{claimed}/24")).apply();
    let claim = || {
        host.run(&["ip", "neighbour", "flush", "dev", "eth0"]);
        host.enter(|| UdpSocket::bind((claimed, 0)).and_then(|socket| socket.send_to(b"x", "10.99.0.11:9")))
            .expect("a datagram");
    };
    let events = || {
        let path =
            "--output=jsonpath={range .items[?(@.reason==\"AddressConflict\")]}{.regarding.name}: {.note}\n{end}";
        server.kubectl(&["get", "events.events.k8s.io", path])
    };
    until("an Event", || {
        claim();
        !events().is_empty()
    });
    let link = host.run(&["ip", "-oneline", "link", "show", "eth0"]);
    let link = link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).expect("a link address");
    let expected = format!(
        "announced-1: on node n1: another host on the link, {link}, claims {claimed}, which the node announces"
    );
    let told = events();
    println!("{told}");
    assert!(told.lines().count() == 1 && told.starts_with(&expected), "{told}");
    assert!(agent.log().contains(&format!("another host on the link, {link}")), "it is in the log, too");
    drop((agent, wire));
    server.kubectl(&["delete", "events.events.k8s.io", "--all"]);
    delete_objects(server, 1);
}
