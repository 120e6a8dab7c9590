//! How an agent finds an API server before `default/kubernetes` is served: by what it is told, and by what its pins
//! remember.

use crate::{
    agent::{Agent, until},
    gate::Gate,
    node::Node,
    service,
};
use lb_lab::api_server::ApiServer;

/// Whether no agent can run here, which is said.
pub(crate) fn is_skipped() -> bool {
    let Some(reason) = Agent::lacking() else { return false };
    println!("skipped: {reason}");
    assert!(std::env::var_os("BEELINE_REQUIRE_KERNEL").is_none(), "{reason}");
    true
}

/// A node starts without its pins by the servers that it is told of, and over its pins also when these have moved; each
/// by a certificate.
pub(crate) fn moved_server_is_found_by_the_pins(server: &mut ApiServer) {
    if is_skipped() {
        return;
    }
    let node = Node::with("192.0.2.42/32");
    let gate = |at: &str| Gate::on(node.listen(at.parse().expect("an address")), server.port());
    // The server's certificate is for 127.0.0.1 and kubernetes.default.svc, among others, and neither for this address
    // nor for the one that the Endpoints have.
    let kubeconfig = server.kubeconfig_to("https://203.0.113.9:6443");
    let flags = "api-server: ['https://127.0.0.1:6444', 'https://127.0.0.1:6443']\n";
    server.apply(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {name: kubernetes, labels: {kubernetes.io/service-name: kubernetes}}\n\
         ports: [{name: https, port: 6443}]\nendpoints: [{addresses: [192.0.2.42]}]\n",
    );

    let told = gate("127.0.0.1:6443");
    let agent = Agent::start_on(&node, &kubeconfig, flags);
    until("it serves", || agent.log().contains("in service"));
    let said = agent.log();
    assert!(said.contains("do not answer: https://127.0.0.1:6444/: "), "the first of several is not there: {said}");
    drop(agent);
    drop(told);

    let agent = Agent::start_on(&node, &kubeconfig, flags);
    until("it says what it asks", || agent.log().contains("no API server answers"));
    let said = agent.log();
    for asked in
        ["https://127.0.0.1:6444/: ", "https://127.0.0.1:6443/: ", "https://192.0.2.42:6443, which the maps remember: "]
    {
        assert!(said.contains(asked), "{asked}: {said}");
    }
    let _moved = gate("192.0.2.42:6443");
    until("it finds the server", || agent.log().contains("INFO API server answers url=https://192.0.2.42:6443/"));
    server.apply(&service("after-the-move", ""));
    until("it learns of changes", || agent.log().contains("default/after-the-move"));
    server.kubectl(&["delete", "service/after-the-move", "endpointslice/kubernetes"]);
}

/// A server whose certificate is for another name gets no credentials, and the log has both names.
pub(crate) fn certificate_for_another_name_is_told(server: &mut ApiServer) {
    if is_skipped() {
        return;
    }
    let gate = Gate::on(std::net::TcpListener::bind("127.0.0.2:0").expect("a port"), server.port());
    let agent = Agent::start_with("n1", &server.kubeconfig(), &format!("api-server: ['{}']\n", gate.url()));
    until("it says so", || agent.log().contains("no API server answers"));
    let said = agent.log();
    for part in [&format!("{}/: ", gate.url()), "certificate", "127.0.0.2", "kubernetes.default.svc", "--api-server"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("INFO API server answers"), "{said}");
}
