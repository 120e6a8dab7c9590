//! What the demo shows then: edits while clients connect, a dry run, the agent's sudden end, the maps themselves, the end.

use std::fs;

use anyhow::{Context, Result};

use super::acts::{AGENT, Demo, MANY, count_by, number_after};

/// An edit must show within this many ms. It takes a few; a busy machine is given time.
const SOON: f64 = 500.0;

impl Demo {
    /// Takes backends away and gives them back, while clients connect.
    pub(super) fn edits(&mut self) -> Result<()> {
        self.paper.heading("Editing web.yaml while a client connects without pause");
        let whole = fs::read_to_string(self.stage.yaml().join("web.yaml")).context("reading web.yaml")?;
        let without = |address: &str, text: &str| text.replace(&format!("- addresses: [{address}]\n"), "");
        let one = without("10.0.0.2", &whole);
        let none = without("10.0.0.1", &one).replace("endpoints:\n", "endpoints: []\n");
        self.edit("without 10.0.0.2", "the last connection to web-b", &one, &["web-a"])?;
        self.edit("without both", "the last connection that was made", &none, &[])?;
        let why = self.show_failure("10.96.0.11")?;
        // The second on kernels before 5.18.
        let is_refused = ["refused", "not permitted"].iter().any(|errno| why.contains(errno));
        self.paper.claim(is_refused, "a Service without endpoints refuses")?;
        let got = self.show(&["beeline", "--pins", "$PINS", "trace", "tcp", "10.96.0.11:80"])?;
        self.paper.claim(got.status.code() == Some(1), "`trace` ends with 1 for what is refused")?;
        self.paper.claim(String::from_utf8_lossy(&got.stdout).contains("ECONNREFUSED"), "`trace` tells the errno")?;
        self.edit("as it was", "the last connection that was refused", &whole, &["web-a", "web-b"])
    }

    pub(super) fn edit(&mut self, what: &str, last: &str, text: &str, want: &[&str]) -> Result<()> {
        fs::write(self.stage.directory().join("staged"), text).context("writing the edited file")?;
        let mut words = vec!["xtask", "demo-part", "edit", "--from=$DIR/staged", "--to=$DIR/services/web.yaml"];
        words.push("--dial=10.96.0.11:80");
        words.extend(want.iter().flat_map(|name| ["--want", name]));
        let report = self.quiet(&words)?;
        let (ms, count) = report.trim().split_once(' ').context("no report of the edit")?;
        self.paper.say(&format!("{what:<17} {last:<37} {ms:>5} ms after the edit ({count} connections watched)"));
        self.paper.claim(ms.parse::<f64>()? < SOON, "an edit shows at once")
    }

    /// Asks what an edit would do.
    pub(super) fn dry_run(&mut self) -> Result<()> {
        self.paper.heading("A dry run: web with a third backend, 10.0.0.7");
        let planned = self.stage.directory().join("planned");
        fs::create_dir(&planned).context("making a directory")?;
        for entry in fs::read_dir(self.stage.yaml()).context("listing the YAML")? {
            let entry = entry?;
            let added = "- addresses: [10.0.0.2]\n- addresses: [10.0.0.7]\n";
            let text = fs::read_to_string(entry.path())?.replace("- addresses: [10.0.0.2]\n", added);
            fs::write(planned.join(entry.file_name()), text)?;
        }
        let words = ["beeline", "--pins", "$PINS", "plan", "-f", "$DIR/planned", "--node-name=demo"];
        let got = self.show(&words)?;
        let text = String::from_utf8_lossy(&got.stdout);
        self.paper.claim(
            text.lines().last().is_some_and(|line| line.starts_with("3 writes ")),
            "one more backend takes three writes",
        )?;
        let backends = self.quiet(&["beeline", "--pins", "$PINS", "get", "backends"])?;
        self.paper.claim(!backends.contains("10.0.0.7"), "a dry run writes nothing")
    }

    /// Kills the agent, goes on without it, and starts it again.
    pub(super) fn sudden_end(&mut self) -> Result<()> {
        self.paper.heading("kill -9, and life without an agent");
        let pid = self.stage.agent_pid()?.to_string();
        self.quiet(&["sh", "-c", "kill -9 \"$0\"", &pid])?;
        let status = self.stage.wait_for_agent()?;
        self.paper.say(&format!("The agent's end: {status}."));
        let got = self.show(&["curl", "-s", "http://10.96.0.10/"])?;
        self.paper
            .claim(String::from_utf8_lossy(&got.stdout).starts_with("outside at "), "curl works without an agent")?;
        let counts = count_by(&self.quiet(&["curl", "-s", &format!("http://10.96.0.11/?[1-{MANY}]")])?, 0);
        let text = counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ");
        self.paper.say(&format!("{MANY} more connections to 10.96.0.11: {text}."));
        self.paper.claim(counts.len() == 2 && counts.values().sum::<usize>() == MANY, "all connections still work")?;
        let said = self.stage.start_agent(&AGENT)?;
        let links = number_after(&said, "links_taken_over=").context("the agent does not tell its links")?;
        let writes = number_after(&said, "writes=").context("the agent does not tell its writes")?;
        self.paper
            .say(&format!("Started again, it takes over {links} links and the maps as they are: {writes} writes."));
        self.paper.claim(links > 0 && writes == 0, "a new start changes nothing")
    }

    /// Looks into the maps with the kernel's own tool, and follows one Service through them.
    pub(super) fn maps(&mut self) -> Result<()> {
        self.paper.heading("The maps, as bpftool prints them (of each the entry of my-service, on one line)");
        let name = self.map_entry("NAMES", &["\"my-service\"", "\"namespace\"", "\"default\""])?;
        let id = number_after(&name, "\"key\": ").context("an entry of NAMES has no number as key")?;
        self.map_entry("SERVICES", &[&format!("\"key\": {id},"), "\"cluster_len\": 1,"])?;
        self.map_entry("FRONTENDS", &[&format!("\"service\": {id},"), "\"port\": 80,", "\"octets\": ["])?;
        Ok(())
    }

    /// Shows the entry of a map that has all of `texts`.
    fn map_entry(&mut self, map: &str, texts: &[&str]) -> Result<String> {
        let version = self.quiet(&["beeline", "version"])?;
        let layout = version.trim().rsplit(' ').next().unwrap_or_default();
        let path = format!("$PINS/{layout}/{map}");
        let words = ["bpftool", "map", "dump", "pinned", &path];
        self.paper.command(&words);
        let all = entries(&self.quiet(&words)?);
        let found = all.into_iter().find(|entry| texts.iter().all(|text| entry.contains(text))).unwrap_or_default();
        self.paper.output(&found);
        self.paper.claim(!found.is_empty(), "bpftool prints the maps with the names of their fields")?;
        Ok(found)
    }

    /// Ends the agent, and removes Beeline from the node.
    pub(super) fn end(&mut self) -> Result<()> {
        self.paper.heading("The end");
        let pid = self.stage.agent_pid()?.to_string();
        self.quiet(&["sh", "-c", "kill -TERM \"$0\"", &pid])?;
        let status = self.stage.wait_for_agent()?;
        let log = self.stage.agent_log();
        self.paper.say("SIGTERM; the agent's last line:");
        self.paper.output(log.lines().last().unwrap_or_default());
        self.paper
            .claim(status.success() && log.contains("the datapath stays"), "an agent ends and leaves the datapath")?;
        let words = ["beeline", "--pins", "$PINS", "cleanup"];
        self.paper.command(&words);
        let text = self.quiet(&words)?;
        self.paper.output(text.lines().last().unwrap_or_default());
        let is_gone = self.quiet(&["test", "-e", "$PINS"]).is_err();
        self.paper.claim(is_gone, "no pin is left")?;
        let why = self.show_failure("10.96.0.10")?;
        self.paper.claim(why.contains("unreachable"), "after cleanup nothing is translated")
    }
}

/// The entries of a map in bpftool's output, each on one line.
fn entries(dump: &str) -> Vec<String> {
    let mut entries = vec![String::new()];
    let mut depth = 0;
    for c in dump.lines().map(str::trim).collect::<String>().chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        let is_between = depth == 0 && c != '}';
        if let Some(entry) = entries.last_mut().filter(|_| !is_between) {
            entry.push(c);
        }
        if depth == 0 && c == '}' {
            entries.push(String::new());
        }
    }
    entries.retain(|entry| !entry.is_empty());
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_told_apart_by_their_braces() {
        let dump = "[{\n  \"key\": 1,\n  \"value\": {\n  \"len\": [1,2]\n}\n},{\n  \"key\": 2\n}\n]\n";
        assert_eq!(entries(dump), ["{\"key\": 1,\"value\": {\"len\": [1,2]}}", "{\"key\": 2}"]);
        assert!(entries("[]\n").is_empty());
    }
}
