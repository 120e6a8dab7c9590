//! The later sections: edits while clients connect, a dry run, a killed agent, the maps themselves, the removal.

use std::fs;

use anyhow::{Context, Result};

use super::sections::{AGENT, Demo, MANY, count_by, number_after};

/// Limit in ms for an edit to take effect. It takes a few ms; a busy machine needs more.
const EDIT_LIMIT: f64 = 500.0;

impl Demo {
    /// Removes backends and adds them again, while clients connect.
    pub(super) fn edits(&mut self) -> Result<()> {
        self.out.heading("Editing web.yaml while a client connects without pause");
        let whole = fs::read_to_string(self.environment.yaml().join("web.yaml")).context("reading web.yaml")?;
        let without = |address: &str, text: &str| text.replace(&format!("- addresses: [{address}]\n"), "");
        let one = without("10.0.0.2", &whole);
        let none = without("10.0.0.1", &one).replace("endpoints:\n", "endpoints: []\n");
        self.edit("without 10.0.0.2", "the last connection to web-b", &one, &["web-a"])?;
        self.edit("without both", "the last connection that succeeded", &none, &[])?;
        let why = self.show_failure("10.96.0.11")?;
        // EPERM on kernels before 5.18.
        let is_refused = ["refused", "not permitted"].iter().any(|errno| why.contains(errno));
        self.out.check(is_refused, "a Service without endpoints refuses")?;
        let output = self.show(&["beeline", "--pins", "$PINS", "trace", "tcp", "10.96.0.11:80"])?;
        self.out.check(output.status.code() == Some(1), "`trace` exits with 1 for a refused connection")?;
        self.out.check(String::from_utf8_lossy(&output.stdout).contains("ECONNREFUSED"), "`trace` names the errno")?;
        self.edit("as it was", "the last connection that was refused", &whole, &["web-a", "web-b"])
    }

    pub(super) fn edit(&mut self, what: &str, last: &str, text: &str, want: &[&str]) -> Result<()> {
        fs::write(self.environment.directory().join("staged"), text).context("writing the edited file")?;
        let mut words = vec!["xtask", "demo-process", "edit", "--from=$DIR/staged", "--to=$DIR/services/web.yaml"];
        words.push("--dial=10.96.0.11:80");
        words.extend(want.iter().flat_map(|name| ["--want", name]));
        let report = self.quiet(&words)?;
        let (ms, count) = report.trim().split_once(' ').context("no report of the edit")?;
        self.out.text(&format!("{what:<17} {last:<37} {ms:>5} ms after the edit ({count} connections watched)"));
        self.out.check(ms.parse::<f64>()? < EDIT_LIMIT, "an edit takes effect at once")
    }

    /// Plans an edit without making it.
    pub(super) fn dry_run(&mut self) -> Result<()> {
        self.out.heading("A dry run: web with a third backend, 10.0.0.7");
        let planned = self.environment.directory().join("planned");
        fs::create_dir(&planned).context("making a directory")?;
        for entry in fs::read_dir(self.environment.yaml()).context("listing the YAML")? {
            let entry = entry?;
            let added = "- addresses: [10.0.0.2]\n- addresses: [10.0.0.7]\n";
            let text = fs::read_to_string(entry.path())?.replace("- addresses: [10.0.0.2]\n", added);
            fs::write(planned.join(entry.file_name()), text)?;
        }
        let words = ["beeline", "--pins", "$PINS", "plan", "-f", "$DIR/planned", "--node-name=demo"];
        let output = self.show(&words)?;
        let text = String::from_utf8_lossy(&output.stdout);
        self.out.check(
            text.lines().last().is_some_and(|line| line.starts_with("3 writes ")),
            "one more backend takes three writes",
        )?;
        let backends = self.quiet(&["beeline", "--pins", "$PINS", "get", "backends"])?;
        self.out.check(!backends.contains("10.0.0.7"), "a dry run writes nothing")
    }

    /// Kills the agent, connects without it, and starts it again.
    pub(super) fn agent_killed(&mut self) -> Result<()> {
        self.out.heading("kill -9: the datapath without an agent");
        let pid = self.environment.agent_pid()?.to_string();
        self.quiet(&["sh", "-c", "kill -9 \"$0\"", &pid])?;
        let status = self.environment.wait_for_agent()?;
        self.out.text(&format!("The agent ended: {status}."));
        let output = self.show(&["curl", "-s", "http://10.96.0.10/"])?;
        self.out
            .check(String::from_utf8_lossy(&output.stdout).starts_with("outside at "), "curl works without an agent")?;
        let counts = count_by(&self.quiet(&["curl", "-s", &format!("http://10.96.0.11/?[1-{MANY}]")])?, 0);
        let text = counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ");
        self.out.text(&format!("{MANY} more connections to 10.96.0.11: {text}."));
        self.out.check(counts.len() == 2 && counts.values().sum::<usize>() == MANY, "all connections still work")?;
        let line = self.environment.start_agent(&AGENT)?;
        let links = number_after(&line, "links_taken_over=").context("the agent does not log its links")?;
        let writes = number_after(&line, "writes=").context("the agent does not log its writes")?;
        self.out.text(&format!("Started again, it adopts {links} links and the maps: {writes} writes."));
        self.out.check(links > 0 && writes == 0, "a restart changes nothing")
    }

    /// Prints the maps with bpftool, and follows one Service through them.
    pub(super) fn maps(&mut self) -> Result<()> {
        self.out.heading("The maps by bpftool (the entry of my-service in each, on one line)");
        let name = self.map_entry("NAMES", &["\"my-service\"", "\"namespace\"", "\"default\""])?;
        let id = number_after(&name, "\"key\": ").context("an entry of NAMES has no number as key")?;
        self.map_entry("SERVICES", &[&format!("\"key\": {id},"), "\"cluster_len\": 1,"])?;
        self.map_entry("FRONTENDS", &[&format!("\"service\": {id},"), "\"port\": 80,", "\"octets\": ["])?;
        Ok(())
    }

    /// Prints the entry of a map that contains all of `texts`.
    fn map_entry(&mut self, map: &str, texts: &[&str]) -> Result<String> {
        let version = self.quiet(&["beeline", "version"])?;
        let layout = version.trim().rsplit(' ').next().unwrap_or_default();
        let path = format!("$PINS/{layout}/{map}");
        let words = ["bpftool", "map", "dump", "pinned", &path];
        self.out.command(&words);
        let all = entries(&self.quiet(&words)?);
        let found = all.into_iter().find(|entry| texts.iter().all(|text| entry.contains(text))).unwrap_or_default();
        self.out.output(&found);
        self.out.check(!found.is_empty(), "bpftool prints the maps with the names of their fields")?;
        Ok(found)
    }

    /// Stops the agent, and removes Beeline from the node.
    pub(super) fn removal(&mut self) -> Result<()> {
        self.out.heading("Removal");
        let pid = self.environment.agent_pid()?.to_string();
        self.quiet(&["sh", "-c", "kill -TERM \"$0\"", &pid])?;
        let status = self.environment.wait_for_agent()?;
        let log = self.environment.agent_log();
        self.out.text("SIGTERM; the agent's last line:");
        self.out.output(log.lines().last().unwrap_or_default());
        self.out
            .check(status.success() && log.contains("the datapath stays"), "an agent that ends leaves the datapath")?;
        let words = ["beeline", "--pins", "$PINS", "cleanup"];
        self.out.command(&words);
        let text = self.quiet(&words)?;
        self.out.output(text.lines().last().unwrap_or_default());
        let is_gone = self.quiet(&["test", "-e", "$PINS"]).is_err();
        self.out.check(is_gone, "no pin is left")?;
        let why = self.show_failure("10.96.0.10")?;
        self.out.check(why.contains("unreachable"), "after cleanup nothing is translated")
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
    fn entries_are_split_by_their_braces() {
        let dump = "[{\n  \"key\": 1,\n  \"value\": {\n  \"len\": [1,2]\n}\n},{\n  \"key\": 2\n}\n]\n";
        assert_eq!(entries(dump), ["{\"key\": 1,\"value\": {\"len\": [1,2]}}", "{\"key\": 2}"]);
        assert!(entries("[]\n").is_empty());
    }
}
