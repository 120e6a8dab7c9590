//! `beeline cleanup`: nothing of Beeline is left on the node.

use anyhow::Result;

use crate::datapath::pins::Pins;

pub(super) fn run(pins: &Pins) -> Result<()> {
    let removed = pins.remove()?;
    for path in &removed {
        println!("removed {path}");
    }
    match removed.len() {
        0 => println!("nothing was pinned"),
        pins => println!("{pins} pins removed: the kernel translates nothing any more"),
    }
    Ok(())
}
