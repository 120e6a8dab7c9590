//! Move of flows to a map of another size, without a gap: both maps are in use for a moment.
//!
//! Devices get the new programs one after the other, and a reply may enter by another device than its flow began. So
//! programs come first that begin flows in the old map, but know those of the new one too
//! ([`crate::upgrade::programs::load_bridge`]): at all devices, before the new programs begin flows at any.
//!
//! Flows that programs began in the old map after the copy are still there when the new programs come. These look there
//! first, and take the flow over. Then the rest is moved: until the next start they look into an empty map.

use anyhow::{Context as _, Result};
use lb_common::{Flow, FlowKey, flow::Serial};
use lb_kernel::bpf::typed::{TypedMap, Walk};
use tracing::{info, warn};

use super::STEP;
use crate::{
    pins::Pins,
    upgrade::programs::{FLOWS, FLOWS_BEFORE},
};

/// A move, if there is one.
pub(crate) struct FlowMove(Option<Maps>);

struct Maps {
    before: TypedMap<FlowKey, Flow>,
    flows: TypedMap<FlowKey, Flow>,
    copied: usize,
}

impl FlowMove {
    /// True if the start replaces the map of an earlier one.
    pub(crate) fn is_due(pins: &Pins) -> bool {
        // The kept map is tiny and empty, and no new map of flows waits, in a start without a move.
        pins.staging().join(FLOWS).exists() && pins.current().join(FLOWS).exists()
    }

    /// Copies the flows of a map that is to be replaced. A failure is logged: then flows end that do not fit.
    pub(crate) fn begin(pins: &Pins) -> Self {
        if !Self::is_due(pins) {
            return Self(None);
        }
        let staging = pins.staging();
        let open = || -> Result<Maps> {
            let before = TypedMap::open(&staging, FLOWS_BEFORE)?;
            Ok(Maps { before, flows: TypedMap::open(&staging, FLOWS)?, copied: 0 })
        };
        let maps = open().and_then(|mut maps| maps.copy().map(|()| maps));
        Self(maps.inspect_err(|error| warn!("flows do not move to the new map FLOWS: {error:#}")).ok())
    }

    /// Moves the rest, and empties the old map: all programs use the new one.
    pub(crate) fn end(self) {
        let Some(maps) = self.0 else { return };
        match maps.finish() {
            Ok(moved) => info!(entries = maps.copied.max(moved), "the flows have moved to a map of another size"),
            Err(error) => warn!("some flows do not move to the new map FLOWS: {error:#}"),
        }
    }
}

impl Maps {
    fn copy(&mut self) -> Result<()> {
        let mut walk = Walk::new(STEP);
        while let Some(entries) = self.before.step(&mut walk)? {
            let copy =
                |(key, flow): (FlowKey, Flow)| (key, Flow { used: Serial::of_copy(key.proto, flow.used), ..flow });
            let (keys, values): (Vec<_>, Vec<_>) = entries.into_iter().map(copy).unzip();
            self.flows.put(&keys, &values).context("writing the new map FLOWS")?;
            self.copied += keys.len();
        }
        Ok(())
    }

    /// Returns the number of entries that the old map had.
    fn finish(&self) -> Result<usize> {
        let (mut walk, mut moved) = (Walk::new(STEP), 0);
        while let Some(entries) = self.before.step(&mut walk)? {
            for (key, flow) in &entries {
                // The new programs may have written it since.
                self.flows.add(key, flow)?;
            }
            moved += entries.len();
        }
        // The memory of the old map is free, but for its buckets, which go with the next load of the programs.
        let keys: Vec<_> = self.before.read()?.into_iter().map(|(key, _)| key).collect();
        self.before.delete(&keys).context("emptying the old map FLOWS")?;
        Ok(moved)
    }
}
