//! Links without programs by which pods sent packets to frontends: the programs of other devices note them in
//! `PACKET_LINKS`.

use std::{collections::BTreeSet, future::pending, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use tokio::time::sleep;

use lb_kernel::bpf::typed::TypedMap;

/// Interval of looks into the map. A sender repeats its packet after a second at the earliest.
const INTERVAL: Duration = Duration::from_millis(200);

/// `PACKET_LINKS`, and the links of the last look.
#[derive(Default)]
pub(super) struct PacketLinks {
    /// None until it is opened.
    map: Option<TypedMap<u32, u64>>,
    known: BTreeSet<u32>,
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
        let (known, gone): (BTreeSet<u32>, BTreeSet<u32>) = links(&map)?.into_iter().partition(|index| exists(*index));
        map.delete(&gone.into_iter().collect::<Vec<_>>()).context("writing PACKET_LINKS")?;
        self.map = Some(map);
        self.known.clone_from(&known);
        Ok(known)
    }

    /// Returns when the map has other links than at the last look.
    pub(super) async fn found(&self) {
        let Some(map) = &self.map else { return pending().await };
        loop {
            sleep(INTERVAL).await;
            match links(map) {
                Ok(links) if links == self.known => {}
                // The next pass reports the error.
                Ok(_) | Err(_) => return,
            }
        }
    }
}

fn links(map: &TypedMap<u32, u64>) -> Result<BTreeSet<u32>> {
    Ok(map.read()?.into_iter().map(|(index, _)| index).collect())
}
