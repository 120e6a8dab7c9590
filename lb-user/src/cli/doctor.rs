//! `beeline doctor`: what stands in the way of Services on this node, and its cure, for people and for scripts.

use std::process::ExitCode;

use anyhow::{Context as _, Error, Result};
use clap::Args;
use serde::Serialize;

use super::{
    log,
    objects::{self, Flags, Named, Origin, Output},
    say,
};
use crate::doctor::{self, Agent, Finding, Objects, Severity, Subject};
use lb_agent::Source;
use lb_core::text::number;
use lb_dataplane::pins::Pins;
use lb_sources::{
    directory::{self, DirectoryState},
    kubernetes,
};

/// Where the objects are that the maps are compared with.
#[derive(Args)]
#[command(after_help = "Examples:
  beeline doctor                  beside the agent of this node, or before its first start
  beeline doctor -f ./services    the maps beside the objects of a directory
  beeline doctor -o json

Without -f, --kubeconfig and --api-server the objects come from where the running agent has them, and its flags count.
Nothing is changed. One socket dials a Service, and is counted with it.

Exit codes: 0 all is well, or there are notes; 1 there are warnings; 2 there are errors.")]
pub(super) struct Arguments {
    /// Form of the output.
    #[arg(short, long, default_value = "text", value_name = "FORM")]
    output: Output,

    #[command(flatten)]
    named: Named,
}

/// Everything that is said.
#[derive(Serialize)]
struct Told<'a> {
    /// How bad the worst is.
    severity: Severity,
    findings: &'a [Finding],
}

pub(super) fn run(pins: Pins, flags: Flags, arguments: Arguments) -> Result<ExitCode> {
    // What the source and the pass would say is said as findings.
    log::start(log::Format::Text, "off")?;
    let output = arguments.output;
    let running = objects::agent(&pins);
    let agent = running.as_ref().ok().and_then(Option::as_ref).map(|agent| Agent {
        pid: agent.pid,
        cgroup: agent.arguments.cgroup.clone(),
        fixed: agent.arguments.map_size.iter().map(|(table, _)| *table).collect(),
        devices: agent.arguments.devices.clone().unwrap_or_default(),
    });
    let origin = match flags {
        Flags::Given => arguments.named.origin(),
        Flags::Agents => running.and_then(|agent| Ok(agent.context("no agent runs on this node")?.origin)),
    };
    let findings = doctor::examine(&Subject { pins, agent, objects: origin.map(ask) });
    let severity = doctor::worst(&findings);
    let text = match output {
        Output::Json => serde_json::to_string_pretty(&Told { severity, findings: &findings })? + "\n",
        Output::Text => render(&findings),
    };
    say(&text)?;
    Ok(ExitCode::from(exit_code(severity)))
}

/// For scripts.
const fn exit_code(severity: Severity) -> u8 {
    match severity {
        Severity::Ok | Severity::Note => 0,
        Severity::Warning => 1,
        Severity::Error => 2,
    }
}

/// Asks the source whether it answers, and for nothing else yet.
fn ask(Origin { text, source, settings, node_name }: Origin) -> Objects {
    let answered = match &source {
        Source::Directory(options) => {
            let mut good = DirectoryState::new(options.proxy_name.clone());
            let loaded = directory::load(&options.path, &mut good);
            doctor::Source::Directory(match loaded {
                Ok(_) => Ok(good.problems().map(str::to_owned).collect()),
                Err(error) => Err(format!("{error:#}")),
            })
        }
        Source::Kubernetes(options) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let answers =
                runtime.map_err(Error::from).and_then(|runtime| runtime.block_on(kubernetes::ask_each(options)));
            doctor::Source::Servers(answers.map_err(|error| format!("{error:#}")))
        }
    };
    let load = Box::new(move || objects::load(source.clone()));
    Objects { text, source: answered, settings, node_name, load }
}

/// A line for each finding, its cure below it, and how many there are.
fn render(findings: &[Finding]) -> String {
    let width = |text: fn(&Finding) -> &str| findings.iter().map(|finding| text(finding).len()).max().unwrap_or(0);
    let (severities, checks) = (width(|finding| finding.severity.name()), width(|finding| finding.check));
    let mut text = String::new();
    for Finding { check, severity, what, cure } in findings {
        text += &format!("{:severities$}  {check:checks$}  {what}\n", severity.name());
        if let Some(cure) = cure {
            text += &format!("{:severities$}  {:checks$}  cure: {cure}\n", "", "");
        }
    }
    let count = |wanted| findings.iter().filter(|finding| finding.severity == wanted).count();
    let [errors, warnings, notes] = [Severity::Error, Severity::Warning, Severity::Note].map(count);
    text + &format!("{}, {}, {}\n", number(errors, "error"), number(warnings, "warning"), number(notes, "note"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(check: &'static str, severity: Severity, cure: Option<&str>) -> Finding {
        Finding { check, severity, what: format!("what {check} saw"), cure: cure.map(str::to_owned) }
    }

    #[test]
    fn each_finding_stands_above_its_cure() {
        let findings = [
            finding("kernel", Severity::Ok, None),
            finding("a", Severity::Warning, Some("do b")),
            finding("c", Severity::Note, Some("do d")),
        ];
        expect_test::expect![[r"
            ok       kernel  what kernel saw
            warning  a       what a saw
                             cure: do b
            note     c       what c saw
                             cure: do d
            0 errors, 1 warning, 1 note
        "]]
        .assert_eq(&render(&findings));
        let told = Told { severity: doctor::worst(&findings), findings: &findings[1..2] };
        let json = serde_json::to_string(&told).expect("JSON");
        assert_eq!(
            json,
            r#"{"severity":"warning","findings":[{"check":"a","severity":"warning","what":"what a saw","cure":"do b"}]}"#
        );
    }

    #[test]
    fn scripts_are_told_by_the_worst() {
        let codes = [Severity::Ok, Severity::Note, Severity::Warning, Severity::Error].map(exit_code);
        assert_eq!(codes, [0, 0, 1, 2]);
        assert_eq!(doctor::worst(&[]), Severity::Ok);
    }
}
