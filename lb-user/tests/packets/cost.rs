//! The table of program costs has a time in each of its rows; the table itself checks the verdicts.

use lb_lab::packets::cost;

use crate::OBJECT;

#[test]
fn every_row_of_the_cost_table_has_a_time() {
    let rows = cost::table(OBJECT, 1000);
    for row in &rows {
        println!("{:10} {:42} {:14} {:5} ns", row.program, row.what, row.verdict, row.ns);
    }
    assert!(rows.len() > 20 && rows.iter().all(|row| row.ns > 0), "{rows:?}");
}
