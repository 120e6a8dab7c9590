//! What a flow has seen.

use lb_lab::packets::{Fixture, Packet, ServicePort};

use crate::{
    enter,
    family::{V4, V6},
};

/// Lets packets of a connection pass, `>` from the client and `<` from the backend, each with its flags; the states
/// after each of them, of which both entries must be sure.
fn states(packets: &[&str]) -> Vec<String> {
    let mut fixture = enter();
    fixture.serve(ServicePort::tcp().node_port(V4.any).backends(&[V4.here]));
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

fn pass(fixture: &Fixture, packet: &str) {
    let flags = match &packet[1..] {
        "S" => "S",
        "SA" => "SA",
        "A" => "A",
        "FA" => "FA",
        "R" => "R",
        "RA" => "RA",
        other => panic!("{other}"),
    };
    if packet.starts_with('>') {
        let packet = Packet::tcp(V4.client, V4.node_port).flags(flags);
        fixture.comes_in("uplink", &packet).goes_on_as(&packet.becomes(V4.client, V4.here));
    } else {
        let packet = Packet::tcp(V4.here, V4.client).flags(flags);
        fixture.goes_out("uplink", &packet).goes_on_as(&packet.becomes(V4.node_port, V4.client));
    }
}

#[test]
fn a_connection_that_the_client_closes() {
    assert_eq!(
        states(&[">S", "<SA", ">A", "<A", ">FA", "<A", "<FA", ">A"]),
        ["SYN_SENT", "ESTABLISHED", "ESTABLISHED", "ESTABLISHED", "CLOSE_WAIT", "CLOSE_WAIT", "CLOSE", "CLOSE"]
    );
}

#[test]
fn a_connection_that_the_backend_closes_waits() {
    assert_eq!(
        states(&[">S", "<SA", ">A", "<FA", ">A", ">FA", "<A"]),
        ["SYN_SENT", "ESTABLISHED", "ESTABLISHED", "CLOSE_WAIT", "CLOSE_WAIT", "TIME_WAIT", "TIME_WAIT"]
    );
}

#[test]
fn a_reset_ends_a_connection_from_either_side() {
    assert_eq!(states(&[">S", "<RA"]), ["SYN_SENT", "CLOSE"]);
    assert_eq!(states(&[">S", "<SA", ">R"]), ["SYN_SENT", "ESTABLISHED", "CLOSE"]);
    assert_eq!(states(&[">S", "<SA", ">A", "<FA", ">R"])[3..], ["CLOSE_WAIT", "CLOSE"]);
    assert_eq!(states(&[">S", "<SA", ">A", "<FA", ">FA", ">R"])[4..], ["TIME_WAIT", "CLOSE"]);
}

#[test]
fn a_port_that_is_used_again_begins_anew() {
    for end in [&[">FA", "<FA"][..], &["<FA", ">FA"], &["<R"], &[">RA"]] {
        let packets = [&[">S", "<SA", ">A"][..], end, &[">S", "<SA", ">FA"]].concat();
        assert_eq!(states(&packets)[3 + end.len()..], ["SYN_SENT", "ESTABLISHED", "CLOSE_WAIT"], "{end:?}");
    }
}

#[test]
fn a_connection_that_is_over_may_go_to_another_backend() {
    let mut fixture = enter();
    let mut web = fixture.serve(ServicePort::tcp().node_port(V4.any).backends(&[V4.here]));
    [">S", "<SA", ">A"].iter().for_each(|packet| pass(&fixture, packet));
    // One that is open stays, whatever it sends.
    web.change(fixture.maps(), &[V4.here, V4.beside]);
    web.drain(fixture.maps(), V4.here);
    pass(&fixture, ">A");
    pass(&fixture, ">R");
    let syn = Packet::syn(V4.client, V4.node_port);
    fixture.comes_in("uplink", &syn).goes_on_as(&syn.becomes(V4.client, V4.beside));
    let answer = Packet::tcp(V4.beside, V4.client).flags("SA");
    fixture.goes_out("uplink", &answer).goes_on_as(&answer.becomes(V4.node_port, V4.client));
    // What the first backend sends late is still translated.
    pass(&fixture, "<RA");
}

#[test]
fn a_flow_by_the_node_goes_through_the_same_states() {
    for of in [V4, V6] {
        let mut fixture = enter();
        fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[of.there]));
        let mut node = String::new();
        for (packet, want) in [
            (">S", "SYN_SENT"),
            ("<SA", "ESTABLISHED"),
            ("<FA", "CLOSE_WAIT"),
            (">FA", "TIME_WAIT"),
            // The client's port once more, and with it the node's: its backend knows the connection by its numbers.
            (">S", "SYN_SENT"),
            ("<SA", "ESTABLISHED"),
        ] {
            let flags = match &packet[1..] {
                "S" => "S",
                "SA" => "SA",
                _ => "FA",
            };
            if packet.starts_with('>') {
                let packet = Packet::tcp(of.client, of.node_port).flags(flags);
                let sent = fixture.comes_in("uplink", &packet);
                let end = sent.ends().0;
                assert!(node.is_empty() || node == end);
                sent.is_sent_as(&packet.becomes(&end, of.there).one_hop_on());
                node = end;
            } else {
                let packet = Packet::tcp(of.there, &node).flags(flags);
                let back = packet.becomes(of.node_port, of.client).one_hop_on();
                fixture.comes_in("uplink", &packet).is_sent_as(&back);
            }
            let flows = fixture.flows();
            assert!(flows.len() == 2 && flows.iter().all(|flow| flow.ends_with(want)), "{packet}: {flows:?}");
        }
    }
}

#[test]
fn an_association_opens_and_shuts_down() {
    let mut fixture = enter();
    fixture.serve(ServicePort::sctp().node_port(V4.any).backends(&[V4.here]));
    // INIT, INIT ACK, DATA, SHUTDOWN, SHUTDOWN ACK, SHUTDOWN COMPLETE (RFC 9260, 3.2).
    for (from_client, chunk, want) in [
        (true, 1, "SYN_SENT"),
        (false, 2, "ESTABLISHED"),
        (true, 0, "ESTABLISHED"),
        (true, 7, "CLOSE_WAIT"),
        (false, 8, "CLOSE"),
        (true, 14, "CLOSE"),
        (true, 1, "SYN_SENT"),
    ] {
        if from_client {
            let packet = Packet::sctp_init(V4.client, V4.node_port).chunk(chunk);
            fixture.comes_in("uplink", &packet).goes_on_as(&packet.becomes(V4.client, V4.here));
        } else {
            let packet = Packet::sctp_init(V4.here, V4.client).chunk(chunk);
            fixture.goes_out("uplink", &packet).goes_on_as(&packet.becomes(V4.node_port, V4.client));
        }
        let flows = fixture.flows();
        assert!(flows.len() == 2 && flows.iter().all(|flow| flow.ends_with(want)), "chunk {chunk}: {flows:?}");
    }
}

#[test]
fn datagrams_are_assured_by_the_first_answer() {
    let mut fixture = enter();
    fixture.serve(ServicePort::udp().node_port(V6.any).backends(&[V6.here]));
    let packet = Packet::udp(V6.client, V6.node_port);
    let is = |fixture: &mut Fixture, want| assert!(fixture.flows().iter().all(|flow| flow.ends_with(want)));
    fixture.comes_in("uplink", &packet).goes_on_as(&packet.becomes(V6.client, V6.here));
    is(&mut fixture, "UNREPLIED");
    let answer = Packet::udp(V6.here, V6.client);
    fixture.goes_out("uplink", &answer).goes_on_as(&answer.becomes(V6.node_port, V6.client));
    is(&mut fixture, "ASSURED");
}

#[test]
fn a_question_by_a_port_used_again_leaves_a_backend_that_drains_and_a_conversation_stays() {
    let ask = |fixture: &Fixture, backend| {
        let question = Packet::udp(V4.client, V4.node_port);
        fixture.comes_in("uplink", &question).goes_on_as(&question.becomes(V4.client, backend));
    };
    let answer = |fixture: &Fixture, backend| {
        let answer = Packet::udp(backend, V4.client);
        fixture.goes_out("uplink", &answer).goes_on_as(&answer.becomes(V4.node_port, V4.client));
    };
    for is_conversation in [false, true] {
        let mut fixture = enter();
        let mut dns = fixture.serve(ServicePort::udp().node_port(V4.any).backends(&[V4.here]));
        ask(&fixture, V4.here);
        answer(&fixture, V4.here);
        if is_conversation {
            ask(&fixture, V4.here);
        }
        dns.change(fixture.maps(), &[V4.here, V4.beside]);
        dns.drain(fixture.maps(), V4.here);
        ask(&fixture, if is_conversation { V4.here } else { V4.beside });
        // What the first backend still says is translated.
        answer(&fixture, V4.here);
    }
}
