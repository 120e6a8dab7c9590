//! `beeline doctor`: asks the source of the objects, runs the checks, and prints the findings.

use std::process::ExitCode;

use anyhow::{Context as _, Error, Result};
use clap::Args;
use serde::Serialize;

use super::{
    log::{self, LogFormat},
    objects::{self, FlagSource, ObjectSource, ReportFormat, SourceArgs},
    print_text,
};
use crate::doctor::{self, Agent, Finding, Objects, Severity, SourceAnswer, Subject};
use lb_agent::Source;
use lb_core::text::number;
use lb_dataplane::pins::Pins;
use lb_sources::{
    directory::{self, DirectoryState},
    kubernetes,
};

/// Arguments of `beeline doctor`: form of the output, and source of the objects.
#[derive(Args)]
#[command(after_help = "Examples:
  beeline doctor                  beside the agent of this node, or before its first start
  beeline doctor -f ./services    compares the maps with the objects of a directory
  beeline doctor -o json

Without -f, --kubeconfig and --api-server the objects come from the running agent's source, with the agent's flags.
doctor changes nothing. It connects one socket to a Service, which counts as a connection of that Service. On a node
that has announced addresses it asks on the links which hosts answer for them, as arping does.

Exit codes: 0 no problems, or notes only; 1 there are warnings; 2 there are errors.")]
pub(super) struct DoctorArgs {
    /// Form of the output.
    #[arg(short, long, default_value = "text", value_name = "FORM")]
    output: ReportFormat,

    #[command(flatten)]
    source: SourceArgs,
}

/// Output of `-o json`.
#[derive(Serialize)]
struct DoctorReport<'a> {
    /// Highest severity.
    severity: Severity,
    findings: &'a [Finding],
}

pub(super) fn run(pins: Pins, flags: FlagSource, arguments: DoctorArgs) -> Result<ExitCode> {
    // Findings report the errors of the source and of the pass.
    log::start(LogFormat::Text, "off")?;
    let output = arguments.output;
    let running = objects::agent(&pins);
    let agent = running.as_ref().ok().and_then(Option::as_ref).map(|agent| Agent {
        pid: agent.pid,
        cgroup: agent.arguments.cgroup.clone(),
        fixed_sizes: agent.arguments.map_size.iter().filter_map(|(map, _)| map.table()).collect(),
        devices: agent.arguments.devices.clone().unwrap_or_default(),
    });
    let objects = match flags {
        FlagSource::CommandLine => arguments.source.object_source(),
        FlagSource::Agent => running.and_then(|agent| Ok(agent.context("no agent runs on this node")?.objects)),
    };
    let findings = doctor::examine(&Subject { pins, agent, objects: objects.map(ask) });
    let severity = doctor::worst(&findings);
    let text = match output {
        ReportFormat::Json => serde_json::to_string_pretty(&DoctorReport { severity, findings: &findings })? + "\n",
        ReportFormat::Text => render(&findings),
    };
    print_text(&text)?;
    Ok(ExitCode::from(exit_code(severity)))
}

/// Returns the exit code for the highest severity.
const fn exit_code(severity: Severity) -> u8 {
    match severity {
        Severity::Ok | Severity::Note => 0,
        Severity::Warning => 1,
        Severity::Error => 2,
    }
}

/// Asks the source once, without loading the objects yet.
fn ask(ObjectSource { text, source, settings, node_name }: ObjectSource) -> Objects {
    let answer = match &source {
        Source::Directory(options) => {
            let mut good = DirectoryState::new(options.proxy_name.clone());
            let loaded = directory::load(&options.path, &mut good);
            SourceAnswer::Directory(match loaded {
                Ok(_) => Ok(good.problems().map(str::to_owned).collect()),
                Err(error) => Err(format!("{error:#}")),
            })
        }
        Source::Kubernetes(options) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let answers =
                runtime.map_err(Error::from).and_then(|runtime| runtime.block_on(kubernetes::ask_each(options)));
            SourceAnswer::Servers(answers.map_err(|error| format!("{error:#}")))
        }
    };
    let load = Box::new(move || objects::load(source.clone()));
    Objects { text, source: answer, settings, node_name, load }
}

/// Formats a line for each finding, its cure below it, and a last line with their number.
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
    fn each_finding_is_above_its_cure() {
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
        let report = DoctorReport { severity: doctor::worst(&findings), findings: &findings[1..2] };
        let json = serde_json::to_string(&report).expect("JSON");
        assert_eq!(
            json,
            r#"{"severity":"warning","findings":[{"check":"a","severity":"warning","what":"what a saw","cure":"do b"}]}"#
        );
    }

    #[test]
    fn the_highest_severity_sets_the_exit_code() {
        let codes = [Severity::Ok, Severity::Note, Severity::Warning, Severity::Error].map(exit_code);
        assert_eq!(codes, [0, 0, 1, 2]);
        assert_eq!(doctor::worst(&[]), Severity::Ok);
    }
}
