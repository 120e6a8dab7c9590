//! Links without programs by which pods sent packets to frontends: the programs of other devices note them in
//! `PACKET_LINKS`.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lb_common::GETS_NO_PROGRAMS;
use tokio::time::sleep;

use lb_kernel::bpf::typed::TypedMap;

/// Interval of looks into the map. A sender repeats its packet after a second at the earliest.
const INTERVAL: Duration = Duration::from_millis(200);

/// `PACKET_LINKS`, and its entries at the last look.
#[derive(Default)]
pub(super) struct PacketLinks {
    /// None until it is opened.
    map: Option<TypedMap<u32, u64>>,
    known: BTreeMap<u32, u64>,
}

impl PacketLinks {
    /// Opens the map again at the next look, since it may be another one.
    pub(super) fn reread(&mut self) {
        self.map = None;
    }

    /// Reads the links from the map, pinned in `directory`, and deletes links that do not exist.
    pub(super) fn read(&mut self, directory: &Path, exists: impl Fn(u32) -> bool) -> Result<BTreeSet<u32>> {
        let map = match self.map.take() {
            Some(map) => map,
            None => TypedMap::open(directory, "PACKET_LINKS")?,
        };
        let (known, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            map.read()?.into_iter().partition(|(index, _)| exists(*index));
        map.delete(&gone.into_keys().collect::<Vec<_>>()).context("writing PACKET_LINKS")?;
        self.map = Some(map);
        self.known = known;
        Ok(self.known.keys().copied().collect())
    }

    /// Tells the programs which of the links of the last look get no programs, so that they refuse further packets.
    pub(super) fn answer(&mut self, gets_none: impl Fn(u32) -> bool) -> Result<()> {
        let Some(map) = &self.map else { return Ok(()) };
        let is_new = |(index, since): &(&u32, &mut u64)| **since != GETS_NO_PROGRAMS && gets_none(**index);
        let answered: Vec<_> = self.known.iter_mut().filter(is_new).collect();
        let keys: Vec<u32> = answered.iter().map(|(index, _)| **index).collect();
        map.put(&keys, &vec![GETS_NO_PROGRAMS; keys.len()]).context("writing PACKET_LINKS")?;
        answered.into_iter().for_each(|(_, since)| *since = GETS_NO_PROGRAMS);
        Ok(())
    }

    /// Returns when the map has other links than at the last look.
    pub(super) async fn found(&self) {
        let Some(map) = &self.map else { return pending().await };
        loop {
            sleep(INTERVAL).await;
            match map.read() {
                Ok(links)
                    if links.iter().map(|(index, _)| index).collect::<BTreeSet<_>>() == self.known.keys().collect() => {
                }
                // The next pass reports the error.
                Ok(_) | Err(_) => return,
            }
        }
    }
}
