//! The priority of renewals, with the capabilities of `deploy/systemd`.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use lb_lab::api_server::ApiServer;

use super::{
    until,
    wire::{Wire, delete_objects, make_objects, until_answered, until_group},
};
use crate::bootstrap::is_skipped;

const UNIT: &str = include_str!("../../../../deploy/systemd/beeline.service");
const SYS_NICE: &str = "CAP_SYS_NICE";

/// The thread that renews goes before others, if the agent may arrange that; else the log says so.
pub(crate) fn renewals_have_a_priority(server: &mut ApiServer) {
    if is_skipped() {
        return;
    }
    let unit = UNIT.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("a bounding set");
    let of_unit: Vec<&str> = unit.split(' ').collect();
    let without: Vec<&str> = of_unit.iter().copied().filter(|name| *name != SYS_NICE).collect();
    make_objects(server, 1);
    let wire = Wire::make(server, 1);
    let client = wire.client();
    for (capabilities, has_right) in [(of_unit, true), (without, false)] {
        let agent = wire.start_service(1, &limited(wire.directory(), &capabilities));
        until("the agent is in service", || agent.log().contains("announcers members"));
        until_group(server, &[1]);
        until_answered(&client, "every address has an answerer", |_, _| true);
        let of_others = nice(agent.pid(), "beeline");
        let expected = if has_right { -20 } else { of_others };
        assert_eq!(nice(agent.pid(), "announcing"), expected, "{capabilities:?}");
        assert_ne!(of_others, -20, "it is not the priority of all threads");
        assert_eq!(agent.log().contains("renewals of announced addresses have no priority"), !has_right);
    }
    client.end();
    drop(wire);
    delete_objects(server, 1);
}

/// Writes a program that runs `beeline` with these capabilities.
fn limited(directory: &Path, capabilities: &[&str]) -> PathBuf {
    let program = directory.join(format!("beeline-{}", capabilities.len()));
    let mut bounds = "-all".to_owned();
    for name in capabilities {
        let name = name.strip_prefix("CAP_").unwrap_or(name).to_lowercase();
        write!(bounds, ",+{name}").expect("a string");
    }
    let own = env!("CARGO_BIN_EXE_beeline");
    fs::write(&program, format!("#!/bin/sh\nexec setpriv --bounding-set={bounds} {own} \"$@\"\n")).expect("a file");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a program");
    program
}

/// The nice value of a thread.
fn nice(pid: u32, name: &str) -> i32 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("threads").flatten();
    let stats = tasks.map(|task| fs::read_to_string(task.path().join("stat")).unwrap_or_default());
    let stat = stats.into_iter().find(|stat| stat.contains(&format!("({name})"))).expect("the thread");
    let (_, fields) = stat.rsplit_once(") ").expect("proc(5)");
    // Field 19; the first after the name is field 3.
    fields.split(' ').nth(16).and_then(|nice| nice.parse().ok()).expect("a nice value")
}
