//! The table of costs has a figure in each of its rows, of the verdict that stands there.

use lb_lab::packets::cost;

use crate::OBJECT;

#[test]
fn every_row_of_the_table_is_measured() {
    let rows = cost::table(OBJECT, 1000);
    for row in &rows {
        println!("{:10} {:42} {:14} {:5} ns", row.program, row.what, row.verdict, row.ns);
    }
    assert!(rows.len() > 20 && rows.iter().all(|row| row.ns > 0), "{rows:?}");
}
