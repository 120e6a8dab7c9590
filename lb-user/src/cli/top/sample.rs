//! What the pins say at one moment. The maps are opened anew each time: one that has grown is another map under the same
//! name.

use std::{path::PathBuf, time::Instant};

use anyhow::Result;

use crate::{
    cli,
    datapath::{
        pins::Pins,
        stats::{StatMaps, Stats},
    },
    store::Dump,
};

/// A moment.
pub(super) struct Sample {
    /// When the counts were read.
    pub(super) at: Instant,
    /// The agent, when one runs.
    pub(super) agent: Option<u32>,
    /// What is served.
    pub(super) dump: Dump,
    /// What was counted.
    pub(super) stats: Stats,
}

/// Reads samples.
pub(super) struct Reader {
    pins: Pins,
    directory: PathBuf,
}

impl Reader {
    pub(super) fn new(pins: Pins) -> Self {
        Self { directory: pins.current(), pins }
    }

    /// The moment that is now.
    pub(super) fn read(&self) -> Result<Sample> {
        let maps = StatMaps::open(&self.directory)?;
        let (at, stats) = (Instant::now(), maps.read()?);
        Ok(Sample { at, agent: self.pins.agent(), dump: cli::dump(&self.directory)?, stats })
    }
}
