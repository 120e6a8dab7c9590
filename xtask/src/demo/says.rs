//! What the demo shows of what else a Service can say: a NodePort, a scheduler, weights; and how `explain` reads it.

use std::fs;

use anyhow::{Context, Result};

use super::acts::{Demo, MANY, count_by};

impl Demo {
    /// Gives web a NodePort, a scheduler and weights, uses them, and takes them away again.
    pub(super) fn says(&mut self) -> Result<()> {
        self.paper.heading("web with a NodePort, and three connections of four for 10.0.0.2");
        let whole = fs::read_to_string(self.stage.yaml().join("web.yaml")).context("reading web.yaml")?;
        let annotations = "  annotations: {beeline.io/scheduler: wrr, beeline.io/weights: 10.0.0.2=3}\n";
        let more = whole
            .replacen("  name: web\n", &format!("  name: web\n{annotations}"), 1)
            .replacen("spec:\n", "spec:\n  type: NodePort\n", 1)
            .replacen("    port: 80\n", "    port: 80\n    nodePort: 30011\n", 1);
        self.edit("with more to say", "the last connection to the old choice", &more, &["web-a", "web-b"])?;
        let mut words = vec!["curl", "-s", "http://192.0.2.1:30011/"];
        if self.kernel_tells_namespaces()? {
            words.push("http://127.0.0.1:30011/");
        }
        let got = self.show(&words)?;
        let text = String::from_utf8_lossy(&got.stdout);
        let answers = text.lines().filter(|line| line.starts_with("web-")).count();
        self.paper.claim(answers == words.len() - 2, "a NodePort answers at the node's addresses")?;
        let counts = count_by(&self.quiet(&["curl", "-s", &format!("http://10.96.0.11/?[1-{MANY}]")])?, 0);
        let text = counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ");
        self.paper.say(&format!("{MANY} connections in turns: {text}."));
        self.paper.claim(counts.get("web-b") == Some(&(MANY / 4 * 3)), "turns follow the weights exactly")?;
        let got = self.show(&["beeline", "--pins", "$PINS", "explain", "default/web"])?;
        let text = String::from_utf8_lossy(&got.stdout);
        self.paper.claim(text.contains("agree: the pinned maps"), "`explain` finds the maps as the objects have it")?;
        self.edit("as it was", "the last connection to the old choice", &whole, &["web-a", "web-b"])
    }

    /// Whether the kernel tells the node's network namespace from others (Linux 5.14): before, the demo's is not the node's.
    fn kernel_tells_namespaces(&self) -> Result<bool> {
        let release = self.quiet(&["uname", "-r"])?;
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse::<u32>().ok());
        Ok((numbers.next(), numbers.next()) >= (Some(5), Some(14)))
    }
}
