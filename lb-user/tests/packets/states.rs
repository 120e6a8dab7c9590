//! States of a flow, by the packets that it has seen.

use lb_lab::packets::{Fixture, FixtureService, PacketSpec};

use crate::{
    addresses::{V4, V6},
    enter,
};

/// Sends packets of a connection, `>` from the client and `<` from the backend, each with its TCP flags. Returns the
/// state after each packet, in which both entries of the flow must agree.
fn states(packets: &[&str]) -> Vec<String> {
    let mut fixture = enter();
    fixture.serve(FixtureService::tcp().node_port(V4.any).backends(&[V4.local]));
    let mut states = Vec::new();
    for packet in packets {
        pass(&fixture, packet);
        let flows = fixture.flows();
        let state = |flow: &String| flow.rsplit_once(", ").expect("a state").1.to_owned();
        assert_eq!((flows.len(), state(&flows[0])), (2, state(&flows[1])), "{flows:?}");
        states.push(state(&flows[0]));
    }
    states
}

/// Passes a packet. A reset has the next sequence number of its sender, and a forged one (`R!`) another.
fn pass(fixture: &Fixture, packet: &str) {
    let flags = match &packet[1..] {
        "S" => "S",
        "SA" => "SA",
        "A" => "A",
        "FA" => "FA",
        "R" | "R!" => "R",
        "RA" => "RA",
        other => panic!("{other}"),
    };
    let first = PacketSpec::tcp(V4.client, V4.node_port);
    let end = first.clone().flags("S").next_seq();
    let seq = if packet.ends_with('!') { end + 1 } else { end };
    let numbered = |spec: PacketSpec| if flags.starts_with('R') { spec.numbered(seq) } else { spec };
    if packet.starts_with('>') {
        let packet = numbered(first.flags(flags));
        fixture.ingress("uplink", &packet).passes_as(&packet.becomes(V4.client, V4.local));
    } else {
        let packet = numbered(PacketSpec::tcp(V4.local, V4.client).flags(flags));
        fixture.egress("uplink", &packet).passes_as(&packet.becomes(V4.node_port, V4.client));
    }
}

#[test]
fn a_connection_that_the_client_closes_first_ends_in_close() {
    assert_eq!(
        states(&[">S", "<SA", ">A", "<A", ">FA", "<A", "<FA", ">A"]),
        ["SYN_SENT", "SYN_RECV", "ESTABLISHED", "ESTABLISHED", "CLOSE_WAIT", "CLOSE_WAIT", "CLOSE", "CLOSE"]
    );
}

#[test]
fn a_connection_that_the_backend_closes_first_ends_in_time_wait() {
    assert_eq!(
        states(&[">S", "<SA", ">A", "<FA", ">A", ">FA", "<A"]),
        ["SYN_SENT", "SYN_RECV", "ESTABLISHED", "CLOSE_WAIT", "CLOSE_WAIT", "TIME_WAIT", "TIME_WAIT"]
    );
}

#[test]
fn a_reset_ends_a_connection_from_either_side() {
    assert_eq!(states(&[">S", "<RA"]), ["SYN_SENT", "CLOSE"]);
    // The client repeats its first packet, and the backend its answer.
    assert_eq!(states(&[">S", "<SA", ">S", "<SA"]), ["SYN_SENT", "SYN_RECV", "SYN_RECV", "SYN_RECV"]);
    assert_eq!(states(&[">S", "<SA", ">R"]), ["SYN_SENT", "SYN_RECV", "CLOSE"]);
    assert_eq!(states(&[">S", "<SA", ">A", "<FA", ">R"])[3..], ["CLOSE_WAIT", "CLOSE"]);
    assert_eq!(states(&[">S", "<SA", ">A", "<FA", ">FA", ">R"])[4..], ["TIME_WAIT", "CLOSE"]);
}

#[test]
fn a_reset_with_a_wrong_sequence_number_changes_nothing_and_reaches_its_end() {
    assert_eq!(states(&[">S", "<SA", ">A", "<A", ">R!", "<R!"])[2..], ["ESTABLISHED"; 4]);
    assert_eq!(
        states(&[">S", ">R!", "<SA", "<R!", ">A"]),
        ["SYN_SENT", "SYN_SENT", "SYN_RECV", "SYN_RECV", "ESTABLISHED"]
    );
    assert_eq!(states(&[">S", "<SA", ">A", ">FA", ">R!", ">R"])[3..], ["CLOSE_WAIT", "CLOSE_WAIT", "CLOSE"]);
    // The first packet of the backend: its number is unknown.
    assert_eq!(states(&[">S", "<R!"]), ["SYN_SENT", "CLOSE"]);
}

/// Passes packets with a sequence number each, or that after the packet before (0). Returns the last state.
fn last_state(packets: &[(&'static str, u32)]) -> String {
    let mut fixture = enter();
    fixture.serve(FixtureService::tcp().node_port(V4.any).backends(&[V4.local]));
    let mut next = 0;
    for (packet, number) in packets {
        let number = if *number == 0 { next } else { *number };
        if let Some(flags) = packet.strip_prefix('>') {
            let packet = PacketSpec::tcp(V4.client, V4.node_port).flags(flags).numbered(number);
            next = packet.next_seq();
            fixture.ingress("uplink", &packet).passes_as(&packet.becomes(V4.client, V4.local));
        } else {
            let packet = PacketSpec::tcp(V4.local, V4.client).flags(&packet[1..]).numbered(number);
            next = packet.next_seq();
            fixture.egress("uplink", &packet).passes_as(&packet.becomes(V4.node_port, V4.client));
        }
    }
    let flows = fixture.flows();
    flows[0].rsplit_once(", ").expect("a state").1.to_owned()
}

#[test]
fn forged_packets_that_fit_each_other_end_no_flow() {
    const FORGED: u32 = 0x4000_0000;
    let open = [(">S", 1000), ("<SA", 5000), (">A", 1001), ("<A", 5001)];
    let with = |more: &[(&'static str, u32)]| last_state(&[&open[..], more].concat());
    assert_eq!(with(&[(">A", FORGED), (">R", 0)]), "ESTABLISHED");
    assert_eq!(with(&[("<A", FORGED), ("<R", 0)]), "ESTABLISHED");
    assert_eq!(with(&[(">S", FORGED), (">R", 0)]), "ESTABLISHED");
    assert_eq!(with(&[(">FA", FORGED), ("<FA", FORGED)]), "ESTABLISHED");
    // Packets before these were lost on the way here.
    assert_eq!(with(&[(">A", 500_000), (">R", 0)]), "CLOSE");
    assert_eq!(with(&[(">FA", 500_000)]), "CLOSE_WAIT");
}

#[test]
fn a_client_that_connects_anew_before_a_reply_has_other_sequence_numbers() {
    let packets = [(">S", 1000), (">S", 0x4000_0000), ("<SA", 5000), (">A", 0x4000_0001), (">R", 0)];
    assert_eq!(last_state(&packets), "CLOSE");
}

#[test]
fn a_sender_that_goes_on_has_not_reset_the_connection() {
    assert_eq!(states(&[">S", "<SA", ">A", ">R", "<A", ">A"])[3..], ["CLOSE", "CLOSE", "ESTABLISHED"]);
    assert_eq!(states(&[">S", "<SA", ">A", "<R", ">A", "<A"])[3..], ["CLOSE", "CLOSE", "ESTABLISHED"]);
}

#[test]
fn an_abort_with_a_wrong_tag_changes_nothing() {
    let mut fixture = enter();
    fixture.serve(FixtureService::sctp().node_port(V4.any).backends(&[V4.local]));
    // INIT has the tag 0, and each end then the tag that the other one chose.
    for (from_client, chunk, tag, want) in [
        (true, 1, 0, "SYN_SENT"),
        (false, 2, 77, "SYN_RECV"),
        (true, 0, 88, "ESTABLISHED"),
        (true, 6, 77, "ESTABLISHED"),
        (false, 6, 88, "ESTABLISHED"),
        (true, 6, 88, "CLOSE"),
    ] {
        let numbered = |spec: PacketSpec| spec.chunk(chunk).numbered(tag);
        if from_client {
            let packet = numbered(PacketSpec::sctp_init(V4.client, V4.node_port));
            fixture.ingress("uplink", &packet).passes_as(&packet.becomes(V4.client, V4.local));
        } else {
            let packet = numbered(PacketSpec::sctp_init(V4.local, V4.client));
            fixture.egress("uplink", &packet).passes_as(&packet.becomes(V4.node_port, V4.client));
        }
        let flows = fixture.flows();
        assert!(flows.len() == 2 && flows.iter().all(|flow| flow.ends_with(want)), "chunk {chunk}: {flows:?}");
    }
}

#[test]
fn a_syn_over_a_closed_connection_starts_its_states_anew() {
    for end in [&[">FA", "<FA"][..], &["<FA", ">FA"], &["<R"], &[">RA"]] {
        let packets = [&[">S", "<SA", ">A"][..], end, &[">S", "<SA", ">FA"]].concat();
        assert_eq!(states(&packets)[3 + end.len()..], ["SYN_SENT", "SYN_RECV", "CLOSE_WAIT"], "{end:?}");
    }
}

#[test]
fn a_syn_over_a_closed_connection_may_choose_another_backend() {
    let mut fixture = enter();
    let mut web = fixture.serve(FixtureService::tcp().node_port(V4.any).backends(&[V4.local]));
    [">S", "<SA", ">A"].iter().for_each(|packet| pass(&fixture, packet));
    // An open connection keeps its backend.
    web.change(fixture.maps(), &[V4.local, V4.local2]);
    web.drain(fixture.maps(), V4.local);
    pass(&fixture, ">A");
    pass(&fixture, ">R");
    let syn = PacketSpec::syn(V4.client, V4.node_port);
    fixture.ingress("uplink", &syn).passes_as(&syn.becomes(V4.client, V4.local2));
    let answer = PacketSpec::tcp(V4.local2, V4.client).flags("SA");
    fixture.egress("uplink", &answer).passes_as(&answer.becomes(V4.node_port, V4.client));
    // A late packet of the first backend is still translated.
    pass(&fixture, "<RA");
}

#[test]
fn a_masqueraded_flow_goes_through_the_same_states() {
    for net in [V4, V6] {
        let mut fixture = enter();
        fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.remote]));
        let mut node = String::new();
        for (packet, want) in [
            (">S", "SYN_SENT"),
            ("<SA", "SYN_RECV"),
            ("<FA", "CLOSE_WAIT"),
            (">FA", "TIME_WAIT"),
            // A new connection from the same port keeps the masquerade port: the backend, in TIME_WAIT, accepts the
            // client's sequence numbers.
            (">S", "SYN_SENT"),
            ("<SA", "SYN_RECV"),
        ] {
            let flags = match &packet[1..] {
                "S" => "S",
                "SA" => "SA",
                _ => "FA",
            };
            if packet.starts_with('>') {
                let packet = PacketSpec::tcp(net.client, net.node_port).flags(flags);
                let sent = fixture.ingress("uplink", &packet);
                let end = sent.ends().0;
                assert!(node.is_empty() || node == end);
                sent.is_redirected_as(&packet.becomes(&end, net.remote).routed());
                node = end;
            } else {
                let packet = PacketSpec::tcp(net.remote, &node).flags(flags);
                let back = packet.becomes(net.node_port, net.client).routed();
                fixture.ingress("uplink", &packet).is_redirected_as(&back);
            }
            let flows = fixture.flows();
            assert!(flows.len() == 2 && flows.iter().all(|flow| flow.ends_with(want)), "{packet}: {flows:?}");
        }
    }
}

#[test]
fn an_sctp_association_opens_and_shuts_down() {
    let mut fixture = enter();
    fixture.serve(FixtureService::sctp().node_port(V4.any).backends(&[V4.local]));
    // INIT, INIT ACK, DATA, SHUTDOWN, SHUTDOWN ACK, SHUTDOWN COMPLETE (RFC 9260, 3.2).
    for (from_client, chunk, want) in [
        (true, 1, "SYN_SENT"),
        (false, 2, "SYN_RECV"),
        (true, 0, "ESTABLISHED"),
        (true, 7, "CLOSE_WAIT"),
        (false, 8, "CLOSE"),
        (true, 14, "CLOSE"),
        (true, 1, "SYN_SENT"),
    ] {
        if from_client {
            let packet = PacketSpec::sctp_init(V4.client, V4.node_port).chunk(chunk);
            fixture.ingress("uplink", &packet).passes_as(&packet.becomes(V4.client, V4.local));
        } else {
            let packet = PacketSpec::sctp_init(V4.local, V4.client).chunk(chunk);
            fixture.egress("uplink", &packet).passes_as(&packet.becomes(V4.node_port, V4.client));
        }
        let flows = fixture.flows();
        assert!(flows.len() == 2 && flows.iter().all(|flow| flow.ends_with(want)), "chunk {chunk}: {flows:?}");
    }
}

#[test]
fn a_udp_flow_is_assured_by_the_first_answer() {
    let mut fixture = enter();
    fixture.serve(FixtureService::udp().node_port(V6.any).backends(&[V6.local]));
    let packet = PacketSpec::udp(V6.client, V6.node_port);
    let is = |fixture: &mut Fixture, want| assert!(fixture.flows().iter().all(|flow| flow.ends_with(want)));
    fixture.ingress("uplink", &packet).passes_as(&packet.becomes(V6.client, V6.local));
    is(&mut fixture, "UNREPLIED");
    let answer = PacketSpec::udp(V6.local, V6.client);
    fixture.egress("uplink", &answer).passes_as(&answer.becomes(V6.node_port, V6.client));
    is(&mut fixture, "ASSURED");
}

#[test]
fn a_query_from_a_reused_port_leaves_a_serving_terminating_backend_and_a_conversation_stays() {
    let ask = |fixture: &Fixture, backend| {
        let question = PacketSpec::udp(V4.client, V4.node_port);
        fixture.ingress("uplink", &question).passes_as(&question.becomes(V4.client, backend));
    };
    let answer = |fixture: &Fixture, backend| {
        let answer = PacketSpec::udp(backend, V4.client);
        fixture.egress("uplink", &answer).passes_as(&answer.becomes(V4.node_port, V4.client));
    };
    for is_conversation in [false, true] {
        let mut fixture = enter();
        let mut dns = fixture.serve(FixtureService::udp().node_port(V4.any).backends(&[V4.local]));
        ask(&fixture, V4.local);
        answer(&fixture, V4.local);
        if is_conversation {
            ask(&fixture, V4.local);
        }
        dns.change(fixture.maps(), &[V4.local, V4.local2]);
        dns.drain(fixture.maps(), V4.local);
        ask(&fixture, if is_conversation { V4.local } else { V4.local2 });
        // Answers of the first backend are still translated.
        answer(&fixture, V4.local);
    }
}
