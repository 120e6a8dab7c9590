//! `beeline cleanup`: nothing of Beeline is left on the node.

use anyhow::Result;

use crate::datapath::pins::Pins;

pub(super) fn run(pins: &Pins) -> Result<()> {
    let removed = pins.remove()?;
    for path in &removed {
        println!("removed {path}");
    }
    println!("{} pins removed: the kernel translates nothing any more", removed.len());
    Ok(())
}
