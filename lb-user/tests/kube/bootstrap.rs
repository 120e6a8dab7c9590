//! Bootstrap: the agent finds an API server before `default/kubernetes` is served, by its flags and by the pinned maps.

use crate::{
    agent::{KubeTestAgent, alone_on_this_node, until},
    node::KubeTestNode,
    relay::Relay,
    service,
};
use lb_lab::api_server::ApiServer;

/// True, with a line on stdout, if no agent can run on this machine.
pub(crate) fn is_skipped() -> bool {
    let Some(reason) = KubeTestAgent::obstacle() else { return false };
    println!("skipped: {reason}");
    assert!(std::env::var_os("BEELINE_REQUIRE_KERNEL").is_none(), "{reason}");
    true
}

/// Without pins the agent starts with the servers of its flags; over pins it also finds a server that has moved. Each
/// must have the right certificate.
pub(crate) fn a_server_that_has_moved_is_found_by_the_pins(server: &mut ApiServer) {
    if is_skipped() {
        return;
    }
    let node = KubeTestNode::with_address("192.0.2.42/32");
    let relay = |at: &str| Relay::from(node.listen(at.parse().expect("an address")), server.port());
    // The server's certificate covers 127.0.0.1 and kubernetes.default.svc, but neither this address nor the endpoint.
    let kubeconfig = server.kubeconfig_to("https://203.0.113.9:6443");
    let flags = "api-server: ['https://127.0.0.1:6444', 'https://127.0.0.1:6443']\n";
    server.apply(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {name: kubernetes, labels: {kubernetes.io/service-name: kubernetes}}\n\
         ports: [{name: https, port: 6443}]\nendpoints: [{addresses: [192.0.2.42]}]\n",
    );

    let by_flag = relay("127.0.0.1:6443");
    let agent = KubeTestAgent::start_on(&node, &kubeconfig, flags);
    until("the agent is in service", || agent.log().contains("in service"));
    let log = agent.log();
    assert!(
        log.contains("do not answer: https://127.0.0.1:6444/: "),
        "the log names the server that does not answer: {log}"
    );
    drop(agent);
    drop(by_flag);

    let agent = KubeTestAgent::start_on(&node, &kubeconfig, flags);
    until("the agent logs the servers that it tries", || agent.log().contains("no API server answers"));
    let log = agent.log();
    for server in
        ["https://127.0.0.1:6444/: ", "https://127.0.0.1:6443/: ", "https://192.0.2.42:6443, which the maps remember: "]
    {
        assert!(log.contains(server), "{server}: {log}");
    }
    let _moved = relay("192.0.2.42:6443");
    until("the agent finds the server", || {
        agent.log().contains("INFO API server answers url=https://192.0.2.42:6443/")
    });
    server.apply(&service("after-the-move", ""));
    until("a change arrives", || agent.log().contains("default/after-the-move"));
    server.kubectl(&["delete", "service/after-the-move", "endpointslice/kubernetes"]);
}

/// A server with a certificate for another name gets no credentials, and the log has both names.
pub(crate) fn a_certificate_for_another_name_is_refused_and_logged(server: &mut ApiServer) {
    if is_skipped() {
        return;
    }
    let _alone = alone_on_this_node();
    let relay = Relay::from(std::net::TcpListener::bind("127.0.0.2:0").expect("a port"), server.port());
    let agent = KubeTestAgent::start_with("n1", &server.kubeconfig(), &format!("api-server: ['{}']\n", relay.url()));
    until("the agent logs the failure", || agent.log().contains("no API server answers"));
    let log = agent.log();
    for part in [&format!("{}/: ", relay.url()), "certificate", "127.0.0.2", "kubernetes.default.svc", "--api-server"] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert!(!log.contains("INFO API server answers"), "{log}");
}
