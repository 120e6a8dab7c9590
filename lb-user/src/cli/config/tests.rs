//! Files of flags, the files in `deploy/` among them, and the arguments that they become.

use super::*;

/// Returns the arguments that a file adds to a command line.
fn file_arguments(line: &[&str], text: &str) -> Result<Vec<String>> {
    let line = ["beeline", "run"].iter().chain(line);
    let matches = Cli::command().try_get_matches_from(line).expect("a right command line");
    arguments(text, &run_command(), matches.subcommand_matches("run").expect("run"))
}

#[track_caller]
fn check(line: &[&str], text: &str, expected: &[&str]) {
    assert_eq!(file_arguments(line, text).expect("a right file"), expected, "{text}");
}

#[track_caller]
fn is_refused(text: &str, expected: &str) {
    let error = format!("{:#}", file_arguments(&[], text).expect_err(text));
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_key_is_a_flag() {
    check(&[], "", &[]);
    check(&[], "# nothing\n", &[]);
    check(&[], "scheduler: wrr\nlog-level: info,kube=debug\n", &["--scheduler=wrr", "--log-level=info,kube=debug"]);
    check(&[], "ipvs-scheduler: rr", &["--ipvs-scheduler=rr"]);
    check(&[], "pins: /x/y", &["--pins=/x/y"]);
    check(&[], "healthz-bind-address: ''", &["--healthz-bind-address="]);
    check(&[], "node-name: no", &["--node-name=no"]);
    check(&[], "node-name: 17", &["--node-name=17"]);
    check(&[], "cleanup-on-exit: true", &["--cleanup-on-exit"]);
    check(&[], "cleanup-on-exit: false", &[]);
    check(&[], "metrics-backends: 20", &["--metrics-backends=20"]);
    check(&[], "metrics-backends: true", &["--metrics-backends"]);
    check(&[], "api-server: a:1", &["--api-server=a:1"]);
    check(&[], "api-server: ['a:1', 'b:2']", &["--api-server=a:1", "--api-server=b:2"]);
}

#[test]
fn errors_name_key_and_line() {
    is_refused("# a\nschedular: wrr", "line 2: schedular: unknown key: want the name of a flag");
    is_refused("config: x", "line 1: config: unknown key");
    is_refused("help: true", "line 1: help: unknown key");
    is_refused("cleanup-on-exit: 'yes'", "line 1: cleanup-on-exit: want true or false");
    is_refused("scheduler: [rr, wrr]", "line 1: scheduler: want one value");
    is_refused("scheduler: true", "line 1: scheduler: want a text or a number");
    is_refused("scheduler: {a: b}", "line 1: scheduler: want a text or a number");
    is_refused("node-name: 1.10", "line 1: node-name: put a number");
    is_refused("kubeconfig:", "line 1: kubeconfig: has no value");
    is_refused("scheduler: rr\nscheduler: wrr", "line 2");
    is_refused("- scheduler", "line 1");
    is_refused("a: [", "line 1");
}

#[test]
fn the_command_line_wins() {
    let file = "scheduler: wrr\napi-server: [a, b]\nlog-format: json\ncleanup-on-exit: true\n";
    let own = ["--scheduler=sh", "--api-server=c", "--cleanup-on-exit"];
    check(&own, file, &["--log-format=json"]);
    check(&["--cleanup-on-exit", "--pins=/a"], "pins: /b\ncleanup-on-exit: false", &[]);
    // A flag of the command line excludes a key of the file, whichever of the two declares the conflict.
    check(&["--kubeconfig=k"], "directory: d\nlog-format: json", &["--log-format=json"]);
    check(&["--directory=d"], "kubeconfig: k\napi-server: a\nlog-format: json", &["--log-format=json"]);
}

/// Parses a command line with a file.
fn completed(line: &[&str], text: &str) -> Result<ArgMatches> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("a file");
    let line: Vec<OsString> = line.iter().map(OsString::from).collect();
    let matches = Cli::command().try_get_matches_from(&line).expect("a right command line");
    let (_, matches) = complete(line, matches, |named| {
        assert_eq!(named, Path::new("/etc/x.yaml"));
        file.path().to_owned()
    })?;
    Ok(matches.subcommand_matches("run").expect("run").clone())
}

#[test]
fn a_file_completes_the_command_line() {
    let line = ["beeline", "run", "--config", "/etc/x.yaml", "--log-level=warn"];
    let run = completed(&line, "log-level: debug\nnode-name: n\n").expect("a right file");
    assert_eq!(run.get_one::<String>("log_level").map(String::as_str), Some("warn"));
    assert_eq!(run.get_one::<String>("node_name").map(String::as_str), Some("n"));
    for (text, expected) in [
        ("scheduler: x", "--config /etc/x.yaml: invalid value 'x' for '--scheduler <NAME>': unknown scheduler"),
        ("directory: d\nkubeconfig: k", "--config /etc/x.yaml: the argument '--directory <DIR>' cannot be used"),
        ("a: 1", "--config /etc/x.yaml: line 1: a: unknown key"),
    ] {
        let error = format!("{:#}", completed(&line, text).expect_err(text));
        assert!(error.starts_with(expected) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn a_command_line_without_a_file_stays_as_it_is() {
    for line in [["beeline", "version"], ["beeline", "run"]] {
        let line: Vec<OsString> = line.map(OsString::from).into();
        let matches = Cli::command().try_get_matches_from(&line).expect("a right command line");
        let (same, _) = complete(line.clone(), matches, |_| unreachable!("no file")).expect("nothing to do");
        assert_eq!(same, line);
    }
}

/// Files that list every flag, set or not. A flag that is not set follows a `#` without a space.
const FILES: [(&str, &str); 2] = [
    ("deploy/base/beeline.yaml", include_str!("../../../../deploy/base/beeline.yaml")),
    ("deploy/systemd/beeline.yaml", include_str!("../../../../deploy/systemd/beeline.yaml")),
];

/// Returns the options in the chart's values, in the form of a file.
fn chart_options() -> String {
    let values = include_str!("../../../../deploy/chart/values.yaml");
    let (_, options) = values.split_once("\nconfig:\n").expect("options");
    let options = options.lines().take_while(|line| line.is_empty() || line.starts_with(' '));
    options.map(|line| line.strip_prefix("  ").unwrap_or(line).to_owned() + "\n").collect()
}

#[test]
fn files_of_deploy_have_every_flag_and_are_right_with_each() {
    let run = run_command();
    let matches = |arguments: &[String]| {
        let line = ["beeline", "run"].into_iter().chain(arguments.iter().map(String::as_str));
        Cli::command().try_get_matches_from(line)
    };
    let chart = chart_options();
    for (file, text) in FILES.into_iter().chain([("deploy/chart/values.yaml", chart.as_str())]) {
        let uncommented = |line: &str| match line.strip_prefix('#') {
            Some(option) if !option.is_empty() && !option.starts_with(' ') => option.to_owned(),
            _ => line.to_owned(),
        };
        let all: String = text.lines().map(|line| uncommented(line) + "\n").collect();
        let keys: BTreeMap<String, Value> = serde_saphyr::from_str(&all).expect(file);
        for arg in known(&run).filter_map(Arg::get_long) {
            assert!(keys.contains_key(arg), "{file}: no line has --{arg}");
        }
        // One flag at a time, since some exclude each other.
        for (key, value) in keys {
            let arguments = flags_of(find(&run, &key).expect(file), &key, &value).expect(file);
            matches(&arguments).unwrap_or_else(|error| panic!("{file}: {key}: {error}"));
        }
        matches(&file_arguments(&[], text).expect(file)).expect(file);
    }
}
