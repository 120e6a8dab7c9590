//! The section on options of a Service: a NodePort, a scheduler, weights; and how `explain` reports them.

use std::fs;

use anyhow::{Context, Result};

use super::environment;
use super::sections::{Demo, MANY, count_by};

impl Demo {
    /// Gives web a NodePort, a scheduler and weights, uses them, and takes them away again.
    pub(super) fn options(&mut self) -> Result<()> {
        self.out.heading("web with a NodePort, and weight 3 for 10.0.0.2");
        let whole = fs::read_to_string(self.environment.yaml().join("web.yaml")).context("reading web.yaml")?;
        let annotations = "  annotations: {beeline.io/scheduler: wrr, beeline.io/weights: 10.0.0.2=3}\n";
        let edited = whole
            .replacen("  name: web\n", &format!("  name: web\n{annotations}"), 1)
            .replacen("spec:\n", "spec:\n  type: NodePort\n", 1)
            .replacen("    port: 80\n", "    port: 80\n    nodePort: 30011\n", 1);
        self.edit("with options", "the last connection by the old options", &edited, &["web-a", "web-b"])?;
        self.until_maps_agree(true)?;
        let mut words = vec!["curl", "-s", "http://192.0.2.1:30011/"];
        if self.kernel_has_netns_cookies()? {
            words.push("http://127.0.0.1:30011/");
        }
        let output = self.show(&words)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let answers = text.lines().filter(|line| line.starts_with("web-")).count();
        self.out.check(answers == words.len() - 2, "a NodePort answers at the node's addresses")?;
        let counts = count_by(&self.quiet(&["curl", "-s", &format!("http://10.96.0.11/?[1-{MANY}]")])?, 0);
        let text = counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ");
        self.out.text(&format!("{MANY} connections in weighted round-robin: {text}."));
        self.out
            .check(counts.get("web-b") == Some(&(MANY / 4 * 3)), "weighted round-robin follows the weights exactly")?;
        let output = self.show(&["beeline", "--pins", "$PINS", "explain", "default/web"])?;
        let text = String::from_utf8_lossy(&output.stdout);
        self.out.check(text.contains("agree: the pinned maps"), "`explain` finds maps and objects in agreement")?;
        self.edit("as it was", "the last connection by the old options", &whole, &["web-a", "web-b"])?;
        self.until_maps_agree(false)
    }

    /// Waits until the maps agree with the objects, with or without web's NodePort. `edit` waits for backends only,
    /// which stay the same.
    fn until_maps_agree(&self, has_node_port: bool) -> Result<()> {
        environment::until("the maps agree with the objects", || {
            let explained = self.quiet(&["beeline", "--pins", "$PINS", "explain", "default/web"]);
            let agrees =
                |text: String| text.contains("agree: the pinned maps") && text.contains(":30011/TCP") == has_node_port;
            Ok(explained.is_ok_and(agrees))
        })
    }

    /// True if programs can read the network namespace of a socket (Linux 5.14). On older kernels they take the demo's
    /// namespace for a pod's.
    fn kernel_has_netns_cookies(&self) -> Result<bool> {
        let release = self.quiet(&["uname", "-r"])?;
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse::<u32>().ok());
        Ok((numbers.next(), numbers.next()) >= (Some(5), Some(14)))
    }
}
