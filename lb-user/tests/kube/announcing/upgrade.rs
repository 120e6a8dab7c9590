//! Upgrade to a version with another map layout, and rollback, of an announcer that is alone.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use lb_lab::api_server::ApiServer;

use super::{
    until,
    wire::{Wire, delete_objects, make_objects, until_answered, until_group},
};
use crate::bootstrap::is_skipped;

/// Most time without an answer: some questions that a busy machine loses.
const LOST: Duration = Duration::from_millis(500);

/// The map with the addresses goes over to the next version, whose programs answer on.
pub(crate) fn addresses_are_answered_over_changes_of_the_layout(server: &mut ApiServer) {
    let Some(next) = std::env::var_os("BEELINE_NEXT_BIN").map(PathBuf::from).filter(|_| !is_skipped()) else {
        println!("skipped: no BEELINE_NEXT_BIN");
        return;
    };
    let own = Path::new(env!("CARGO_BIN_EXE_beeline"));
    make_objects(server, 1);
    let wire = Wire::make(server, 1);
    let client = wire.client();
    let mut agent = wire.start_service(1, own);
    until_group(server, &[1]);
    until_answered(&client, "every address has an answerer", |_, _| true);
    for (what, program) in [("upgrade", next.as_path()), ("rollback", own), ("upgrade again", &next)] {
        let start = Instant::now();
        agent.terminate();
        agent = wire.start_service(1, program);
        until("the other version is out of service", || agent.log().contains("out of service"));
        // The agent holds the addresses itself, once it has read its group.
        std::thread::sleep(Duration::from_secs(3));
        wire.assert_gap(&client, what, start, LOST);
    }
    let questions = client.end();
    println!("{questions} questions, none with two answers");
    drop((agent, wire));
    delete_objects(server, 1);
}
