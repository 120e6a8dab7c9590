//! The first sections: the objects, the responses of the cluster IPs, and the commands that look inside.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::environment::{self, Environment};
use super::render::{Renderer, bar, diagram};
use crate::workspace;

/// The running demo.
pub(super) struct Demo {
    pub(super) environment: Environment,
    pub(super) out: Renderer,
}

/// Connections that show the distribution.
pub(super) const MANY: usize = 100;

/// Least connections of [`MANY`] for one of two backends: a fair choice gives fewer once in 10^11 times.
const MIN_SHARE: usize = 17;

/// The flags of the agent.
pub(super) const AGENT: [&str; 9] =
    ["beeline", "--pins", "$PINS", "run", "--node-name=demo", "--directory", "$DIR/services", "--cgroup", "$CGROUP"];

impl Demo {
    /// Prints addresses and paths, and shows that no connection reaches a cluster IP yet.
    pub(super) fn environment(&mut self) -> Result<()> {
        self.out.heading("The environment");
        let list = |addresses: &[&str]| {
            addresses.iter().map(|a| a.split('/').next().unwrap_or(a)).collect::<Vec<_>>().join(" ")
        };
        let text = format!(
            "network namespace of the node: agent and clients\n    {}\n\
             network namespace of the backends: servers\n    {}\n\
             CGROUP={}\nDIR={}\nPINS=$DIR/bpffs/beeline",
            list(&environment::NODE),
            list(&environment::BACKENDS),
            self.environment.cgroup().display(),
            self.environment.directory().display()
        );
        self.out.text(&text);
        self.out.text("The node has no route to a cluster IP, and no agent yet:");
        let why = self.show_failure("10.96.0.10")?;
        self.out.check(why.contains("unreachable"), "without Beeline no connection to a cluster IP")
    }

    /// Reads the objects and starts the agent.
    pub(super) fn objects(&mut self) -> Result<()> {
        self.out.heading("The objects (deploy/examples/demo)");
        let mut services = 0;
        for name in ["my-service.yaml", "web.yaml", "dns.yaml", "dual.yaml"] {
            let text = fs::read_to_string(workspace::root().join("deploy/examples/demo").join(name))
                .with_context(|| format!("reading {name}"))?;
            let objects = objects_of(&text);
            services += objects.iter().filter(|object| object.starts_with("Service ")).count();
            self.out.text(&format!("{name:<16} {}", objects.join(", ")));
            fs::write(self.environment.yaml().join(name), text).with_context(|| format!("copying {name}"))?;
        }
        self.out.command(&AGENT);
        let start = Instant::now();
        let line = self.environment.start_agent(&AGENT)?;
        let took = start.elapsed().as_millis();
        let writes = number_after(&line, "writes=").context("the agent does not log its writes")?;
        let changed = self.environment.agent_log().lines().filter(|line| line.contains(" changed ")).count();
        self.out.text(&format!("In service {took} ms after its start: {changed} Services in {writes} map writes."));
        self.out.check(changed == services, "the agent serves every Service of the directory")
    }

    /// Draws the frontends and backends of the maps.
    pub(super) fn diagrams(&mut self) -> Result<()> {
        self.out.heading("Client -> cluster IP -> backend, from the maps");
        let rows = |demo: &Self, what: &str| -> Result<Vec<serde_json::Value>> {
            let text = demo.quiet(&["beeline", "--pins", "$PINS", "get", what, "-o", "json"])?;
            serde_json::from_str(&text).with_context(|| format!("reading {what}"))
        };
        let (mut frontends, backends) = (rows(self, "frontends")?, rows(self, "backends")?);
        // An entry without a port stands for the whole address.
        frontends.retain(|frontend| !frontend["port"].is_null());
        let address = |row: &serde_json::Value| {
            let (ip, port) = (row["address"].as_str().unwrap_or_default(), &row["port"]);
            if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
        };
        for frontend in &frontends {
            let service = frontend["service"].as_str().unwrap_or_default();
            let of_it: Vec<String> = backends.iter().filter(|b| b["service"] == service).map(address).collect();
            let client = if service.contains("/UDP") { "ask" } else { "curl" };
            let name = service.split('/').nth(1).unwrap_or(service);
            self.out.text(&diagram(client, &format!("{} {name}", address(frontend)), &of_it));
        }
        self.out.check(frontends.len() == 5 && backends.len() == 9, "five cluster IPs, nine backends")
    }

    /// Connects once to each cluster IP.
    pub(super) fn responses(&mut self) -> Result<()> {
        self.out.heading("Responses");
        let peer = "curl sees %{remote_ip}:%{remote_port}\\n";
        let output = self.show(&["curl", "-s", "-w", peer, "http://10.96.0.10/"])?;
        let text = String::from_utf8_lossy(&output.stdout);
        self.out.check(text.starts_with("outside at 192.0.2.42:9376, asked by 192.0.2.1:"), "my-service answers")?;
        self.out.check(text.ends_with("curl sees 10.96.0.10:80\n"), "the client sees the address that it dialled")?;
        self.held_connection()?;
        for (dialled, name) in [("10.96.0.11", "web-"), ("10.96.0.12", "dual-"), ("[fd96::12]", "dual-")] {
            let output = self.show(&["curl", "-s", &format!("http://{dialled}/")])?;
            self.out.check(String::from_utf8_lossy(&output.stdout).starts_with(name), "each cluster IP answers")?;
        }
        self.out.text("A DNS query over UDP; the answer comes from the address of the query:");
        let output = self.show(&["xtask", "demo-process", "ask", "10.96.0.53:53"])?;
        self.out.check(
            String::from_utf8_lossy(&output.stdout).starts_with("10.96.0.53:53 dns-"),
            "the name server answers from the address of the query",
        )
    }

    /// Shows an open connection in the kernel's list of sockets: the peer is the backend.
    fn held_connection(&mut self) -> Result<()> {
        let mut curl = self.environment.command(&["curl", "-s", "http://10.96.0.10/held"])?;
        let mut held = curl.stdout(Stdio::piped()).spawn().context("starting curl")?;
        let words = ["ss", "-Htn", "state", "established", "dst", "192.0.2.42"];
        let mut sockets = String::new();
        environment::until("the connection is open", || {
            sockets = self.quiet(&words)?;
            Ok(!sockets.is_empty())
        })?;
        let body = std::io::read_to_string(held.stdout.take().context("curl without stdout")?)?;
        self.out.check(held.wait()?.success(), "the held connection works")?;
        self.out.text("While such a connection is open, the kernel lists it as a direct connection to the backend:");
        self.out.command(&words);
        let sockets = sockets.split_whitespace().collect::<Vec<_>>().join(" ");
        self.out.output(&sockets);
        let client = body.trim().rsplit(' ').next().unwrap_or_default();
        let is_direct = sockets.ends_with(&format!("{client} 192.0.2.42:9376"));
        self.out.check(is_direct, "client and server see the same connection")
    }

    /// Connects many times to each cluster IP with two backends.
    pub(super) fn distribution(&mut self) -> Result<()> {
        self.out.heading(&format!("Distribution of {MANY} new connections, or of queries from {MANY} sockets"));
        for host in ["10.96.0.11", "10.96.0.12", "[fd96::12]"] {
            let url = format!("http://{host}/?[1-{MANY}]");
            let text = self.quiet(&["curl", "-s", url.replace("[fd96::12]", "\\[fd96::12\\]").as_str()])?;
            self.chart(&format!("{host}:80"), &text, 0)?;
        }
        let (count, server) = (MANY.to_string(), "10.96.0.53:53");
        let text = self.quiet(&["xtask", "demo-process", "ask", server, "--count", &count])?;
        self.chart(&format!("{server} UDP"), &text, 1)?;
        let text = self.quiet(&["xtask", "demo-process", "ask", server, "--count", "20", "--one-socket"])?;
        let names = count_by(&text, 1);
        let text = names.keys().map(String::as_str).collect::<Vec<_>>().join(" and ");
        self.out.text(&format!("20 queries from one socket, which keeps its backend: all to {text}."));
        self.out.check(names.len() == 1, "a socket keeps its backend")
    }

    fn chart(&mut self, vip: &str, text: &str, word: usize) -> Result<()> {
        let counts = count_by(text, word);
        for (name, count) in &counts {
            self.out.text(&bar(&format!("{vip:<18} {name}"), *count, MANY));
        }
        self.out.check(counts.values().sum::<usize>() == MANY, "every connection is answered")?;
        self.out
            .check(counts.len() == 2 && counts.values().all(|count| *count >= MIN_SHARE), "the distribution is even")
    }

    /// Looks inside by the command line.
    pub(super) fn inspection(&mut self) -> Result<()> {
        self.out.heading("Looking inside, with or without an agent");
        for (what, lines) in [("services", 6), ("backends", 10)] {
            let output = self.show(&["beeline", "--pins", "$PINS", "get", what])?;
            let shown = String::from_utf8_lossy(&output.stdout).lines().count();
            self.out.check(output.status.success() && shown == lines, "`get` lists what is served")?;
        }
        let output = self.show(&["beeline", "--pins", "$PINS", "trace", "tcp", "10.96.0.10:80"])?;
        self.out
            .check(String::from_utf8_lossy(&output.stdout).contains("192.0.2.42:9376"), "`trace` names the backend")?;
        let output = self.show(&["beeline", "--pins", "$PINS", "trace", "tcp", "10.96.0.10:81"])?;
        self.out.check(
            String::from_utf8_lossy(&output.stdout).contains("10.96.0.10:80/TCP"),
            "`trace` knows the ports of a cluster IP",
        )
    }

    /// Runs a command on the node, and prints the command and its output.
    pub(super) fn show(&self, words: &[&str]) -> Result<Output> {
        self.out.command(words);
        let output = self.output(words)?;
        self.out.output(&String::from_utf8_lossy(&output.stdout));
        self.out.output(&String::from_utf8_lossy(&output.stderr));
        Ok(output)
    }

    /// Runs curl, which must fail to connect, and prints and returns its reason.
    pub(super) fn show_failure(&self, host: &str) -> Result<String> {
        let url = format!("http://{host}/");
        let words = ["curl", "-sv", &url];
        self.out.command(&words);
        let output = self.output(&words)?;
        ensure!(output.status.code() == Some(7), "curl to {host} does not fail to connect: {}", output.status);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let why =
            stderr.lines().find(|line| line.contains("fail") && line.contains(": ")).context("curl gives no reason")?;
        self.out.output(why);
        Ok(why.to_owned())
    }

    /// Runs a command on the node, which must succeed, and returns its standard output.
    pub(super) fn quiet(&self, words: &[&str]) -> Result<String> {
        let output = self.output(words)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} ended with {}: {stderr}", words.join(" "), output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn output(&self, words: &[&str]) -> Result<Output> {
        let mut command: Command = self.environment.command(words)?;
        command.output().with_context(|| format!("running {}", words.join(" ")))
    }
}

/// Counts the lines by their word number `word`.
pub(super) fn count_by(text: &str, word: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for name in text.lines().filter_map(|line| line.split(' ').nth(word)) {
        *counts.entry(name.to_owned()).or_default() += 1;
    }
    counts
}

/// Returns the number after `label`.
pub(super) fn number_after(text: &str, label: &str) -> Option<u64> {
    let (_, after) = text.split_once(label)?;
    after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Lists kind and name of each document. In the files of the demo both are at the start of a line.
fn objects_of(text: &str) -> Vec<String> {
    let after =
        |document: &str, label: &str| document.lines().find_map(|line| line.strip_prefix(label).map(str::to_owned));
    let object = |document: &str| Some(format!("{} {}", after(document, "kind: ")?, after(document, "  name: ")?));
    text.split("\n---\n").filter_map(object).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_listed_by_kind_and_name() {
        let text = "kind: Service\nmetadata:\n  name: a\n---\nkind: Endpoints\nmetadata:\n  name: a\n";
        assert_eq!(objects_of(text), ["Service a", "Endpoints a"]);
    }

    #[test]
    fn numbers_and_words_are_found_in_lines() {
        assert_eq!(number_after("in service writes=17 x=3", "writes="), Some(17));
        assert_eq!(number_after("in service", "writes="), None);
        assert_eq!(count_by("a x\nb x\na y\n", 0), BTreeMap::from([("a".to_owned(), 2), ("b".to_owned(), 1)]));
    }
}
