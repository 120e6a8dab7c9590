//! What the demo shows first: the objects, what clients get from the cluster IPs, and what the command line tells.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::paper::{Paper, bar, picture};
use super::stage::{self, Stage};
use crate::workspace;

/// The demo under way.
pub(super) struct Demo {
    pub(super) stage: Stage,
    pub(super) paper: Paper,
}

/// How many connections are made to see how they spread.
pub(super) const MANY: usize = 100;

/// Of [`MANY`], the fewest for one of two backends: a fair choice gives fewer once in 10^11 times.
const FEWEST: usize = 17;

/// The flags of the agent.
pub(super) const AGENT: [&str; 9] =
    ["beeline", "--pins", "$PINS", "run", "--node-name=demo", "--directory", "$DIR/services", "--cgroup", "$CGROUP"];

impl Demo {
    /// Says where everything is, and that nothing is there that would reach a cluster IP.
    pub(super) fn place(&mut self) -> Result<()> {
        self.paper.heading("The place");
        let list = |addresses: &[&str]| {
            addresses.iter().map(|a| a.split('/').next().unwrap_or(a)).collect::<Vec<_>>().join(" ")
        };
        let [node, backends] = self.stage.namespaces() else { anyhow::bail!("not two namespaces") };
        let text = format!(
            "network namespace {node}: agent and clients\n    {}\nnetwork namespace {backends}: servers\n    {}\n\
             CGROUP={}\nDIR={}\nPINS=$DIR/bpffs/beeline",
            list(&stage::NODE),
            list(&stage::BACKENDS),
            self.stage.cgroup().display(),
            self.stage.directory().display()
        );
        self.paper.say(&text);
        self.paper.say("The node has no route to a cluster IP, and no agent yet:");
        let why = self.show_failure("10.96.0.10")?;
        self.paper.claim(why.contains("unreachable"), "without Beeline no connection to a cluster IP")
    }

    /// Reads the objects and starts the agent.
    pub(super) fn objects(&mut self) -> Result<()> {
        self.paper.heading("The objects (deploy/examples/demo)");
        let mut services = 0;
        for name in ["my-service.yaml", "web.yaml", "dns.yaml", "dual.yaml"] {
            let text = fs::read_to_string(workspace::root().join("deploy/examples/demo").join(name))
                .with_context(|| format!("reading {name}"))?;
            let objects = objects_of(&text);
            services += objects.iter().filter(|object| object.starts_with("Service ")).count();
            self.paper.say(&format!("{name:<16} {}", objects.join(", ")));
            fs::write(self.stage.yaml().join(name), text).with_context(|| format!("copying {name}"))?;
        }
        self.paper.command(&AGENT);
        let start = Instant::now();
        let said = self.stage.start_agent(&AGENT)?;
        let took = start.elapsed().as_millis();
        let writes = number_after(&said, "writes=").context("the agent does not tell its writes")?;
        let changed = self.stage.agent_log().lines().filter(|line| line.contains(" changed ")).count();
        self.paper.say(&format!("In service {took} ms after its start: {changed} Services in {writes} map writes."));
        self.paper.claim(changed == services, "the agent serves every Service that was read")
    }

    /// Draws what stands in the maps.
    pub(super) fn pictures(&mut self) -> Result<()> {
        self.paper.heading("Client -> cluster IP -> backend, as the maps have it");
        let rows = |demo: &Self, what: &str| -> Result<Vec<serde_json::Value>> {
            let text = demo.quiet(&["beeline", "--pins", "$PINS", "get", what, "-o", "json"])?;
            serde_json::from_str(&text).with_context(|| format!("reading {what}"))
        };
        let (mut frontends, backends) = (rows(self, "frontends")?, rows(self, "backends")?);
        // An address as a whole is there for packets that nobody asked for.
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
            self.paper.say(&picture(client, &format!("{} {name}", address(frontend)), &of_it));
        }
        self.paper.claim(frontends.len() == 5 && backends.len() == 9, "five cluster IPs, nine backends")
    }

    /// Goes once to each cluster IP.
    pub(super) fn answers(&mut self) -> Result<()> {
        self.paper.heading("What clients get");
        let peer = "curl sees %{remote_ip}:%{remote_port}\\n";
        let got = self.show(&["curl", "-s", "-w", peer, "http://10.96.0.10/"])?;
        let text = String::from_utf8_lossy(&got.stdout);
        self.paper.claim(text.starts_with("outside at 192.0.2.42:9376, asked by 192.0.2.1:"), "my-service answers")?;
        self.paper.claim(text.ends_with("curl sees 10.96.0.10:80\n"), "the client sees the address that it dialled")?;
        self.held_connection()?;
        for (dialled, name) in [("10.96.0.11", "web-"), ("10.96.0.12", "dual-"), ("[fd96::12]", "dual-")] {
            let got = self.show(&["curl", "-s", &format!("http://{dialled}/")])?;
            self.paper.claim(String::from_utf8_lossy(&got.stdout).starts_with(name), "each of them answers")?;
        }
        self.paper.say("A DNS question over UDP; the answer comes from the address that was asked:");
        let got = self.show(&["xtask", "demo-part", "ask", "10.96.0.53:53"])?;
        self.paper.claim(
            String::from_utf8_lossy(&got.stdout).starts_with("10.96.0.53:53 dns-"),
            "the name server answers from the address that was asked",
        )
    }

    /// While a connection is open, the kernel's own list of sockets names the backend.
    fn held_connection(&mut self) -> Result<()> {
        let mut curl = self.stage.command(&["curl", "-s", "http://10.96.0.10/held"])?;
        let mut held = curl.stdout(Stdio::piped()).spawn().context("starting curl")?;
        let words = ["ss", "-Htn", "state", "established", "dst", "192.0.2.42"];
        let mut sockets = String::new();
        stage::until("the connection is open", || {
            sockets = self.quiet(&words)?;
            Ok(!sockets.is_empty())
        })?;
        let body = std::io::read_to_string(held.stdout.take().context("curl without stdout")?)?;
        self.paper.claim(held.wait()?.success(), "the connection that is looked at works")?;
        self.paper.say("While such a connection is open, the kernel knows it as what it is, with nothing in between:");
        self.paper.command(&words);
        let sockets = sockets.split_whitespace().collect::<Vec<_>>().join(" ");
        self.paper.output(&sockets);
        let client = body.trim().rsplit(' ').next().unwrap_or_default();
        let is_direct = sockets.ends_with(&format!("{client} 192.0.2.42:9376"));
        self.paper.claim(is_direct, "client and server see the same connection")
    }

    /// Goes many times to each cluster IP that has two backends.
    pub(super) fn spread(&mut self) -> Result<()> {
        self.paper.heading(&format!("How {MANY} new connections, or questions by {MANY} sockets, spread"));
        for host in ["10.96.0.11", "10.96.0.12", "[fd96::12]"] {
            let url = format!("http://{host}/?[1-{MANY}]");
            let text = self.quiet(&["curl", "-s", url.replace("[fd96::12]", "\\[fd96::12\\]").as_str()])?;
            self.chart(&format!("{host}:80"), &text, 0)?;
        }
        let (count, server) = (MANY.to_string(), "10.96.0.53:53");
        let text = self.quiet(&["xtask", "demo-part", "ask", server, "--count", &count])?;
        self.chart(&format!("{server} UDP"), &text, 1)?;
        let text = self.quiet(&["xtask", "demo-part", "ask", server, "--count", "20", "--one-socket"])?;
        let names = count_by(&text, 1);
        let text = names.keys().map(String::as_str).collect::<Vec<_>>().join(" and ");
        self.paper.say(&format!("20 questions by one socket, which keeps its backend: all to {text}."));
        self.paper.claim(names.len() == 1, "a socket keeps its backend")
    }

    fn chart(&mut self, vip: &str, text: &str, word: usize) -> Result<()> {
        let counts = count_by(text, word);
        for (name, count) in &counts {
            self.paper.say(&bar(&format!("{vip:<18} {name}"), *count, MANY));
        }
        self.paper.claim(counts.values().sum::<usize>() == MANY, "every connection is answered")?;
        self.paper.claim(counts.len() == 2 && counts.values().all(|count| *count >= FEWEST), "they spread evenly")
    }

    /// The command line's view.
    pub(super) fn looking(&mut self) -> Result<()> {
        self.paper.heading("Looking inside, with or without an agent");
        for (what, lines) in [("services", 6), ("backends", 10)] {
            let got = self.show(&["beeline", "--pins", "$PINS", "get", what])?;
            let shown = String::from_utf8_lossy(&got.stdout).lines().count();
            self.paper.claim(got.status.success() && shown == lines, "`get` shows what is served")?;
        }
        let got = self.show(&["beeline", "--pins", "$PINS", "trace", "tcp", "10.96.0.10:80"])?;
        self.paper
            .claim(String::from_utf8_lossy(&got.stdout).contains("192.0.2.42:9376"), "`trace` tells the backend")?;
        let got = self.show(&["beeline", "--pins", "$PINS", "trace", "tcp", "10.96.0.10:81"])?;
        self.paper.claim(
            String::from_utf8_lossy(&got.stdout).contains("10.96.0.10:80/TCP"),
            "`trace` knows the ports of a cluster IP",
        )
    }

    /// Runs a command on the node and shows both.
    pub(super) fn show(&self, words: &[&str]) -> Result<Output> {
        self.paper.command(words);
        let output = self.output(words)?;
        self.paper.output(&String::from_utf8_lossy(&output.stdout));
        self.paper.output(&String::from_utf8_lossy(&output.stderr));
        Ok(output)
    }

    /// Lets curl fail to connect, shows the line in which it tells why, and returns that.
    pub(super) fn show_failure(&self, host: &str) -> Result<String> {
        let url = format!("http://{host}/");
        let words = ["curl", "-sv", &url];
        self.paper.command(&words);
        let output = self.output(&words)?;
        ensure!(output.status.code() == Some(7), "curl to {host} does not fail to connect: {}", output.status);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        let why =
            told.lines().find(|line| line.contains("fail") && line.contains(": ")).context("curl gives no reason")?;
        self.paper.output(why);
        Ok(why.to_owned())
    }

    /// Runs a command on the node, which must succeed, and returns what it prints.
    pub(super) fn quiet(&self, words: &[&str]) -> Result<String> {
        let output = self.output(words)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} ended with {}: {stderr}", words.join(" "), output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn output(&self, words: &[&str]) -> Result<Output> {
        let mut command: Command = self.stage.command(words)?;
        command.output().with_context(|| format!("running {}", words.join(" ")))
    }
}

/// How often each text stands as word number `word` of a line.
pub(super) fn count_by(text: &str, word: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for name in text.lines().filter_map(|line| line.split(' ').nth(word)) {
        *counts.entry(name.to_owned()).or_default() += 1;
    }
    counts
}

/// The number that follows `label`.
pub(super) fn number_after(text: &str, label: &str) -> Option<u64> {
    let (_, after) = text.split_once(label)?;
    after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Kind and name of each document: the demo's own files have both at the start of a line of their own.
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
    fn objects_are_told_by_kind_and_name() {
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
