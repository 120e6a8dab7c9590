//! The text form of a dump, stable and sorted by name: `get`, golden tests and bug reports show it. `{}` shows no ids,
//! since two agents that agree may number differently; `{:#}` shows them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use lb_common::{
    Backend, BackendFlags, FrontendKey, Kind, List, MaglevKey, NEVER, Scheduler, ServiceFlags, Slot, SlotKey,
    Tables as _,
};

use super::Dump;
use crate::{objects::WORST_TIER, op::eject_text, port_ranges, ranges};
use lb_common::AddrPort;

impl fmt::Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut frontends: BTreeMap<u32, Vec<_>> = BTreeMap::new();
        for (key, frontend) in &self.frontends {
            frontends.entry(frontend.service).or_default().push((key.to_string(), frontend.kind));
        }
        let blocks = self.port_ranges.iter().map(|(key, frontend)| (*key, (frontend.service, frontend.kind)));
        for (addr, proto, span, (service, kind)) in port_ranges::joined(blocks) {
            let text = port_ranges::frontend_text(addr, proto, span);
            frontends.entry(service).or_default().push((text, kind));
        }
        let mut named: Vec<_> = self.names.iter().map(|(&id, key)| (Some(key), id)).collect();
        let mentioned = self.services.keys().chain(frontends.keys()).copied();
        let mentioned = mentioned.chain(self.slots.keys().map(|key| key.service));
        let mentioned = mentioned.chain(self.source_ranges.iter().map(|key| key.range.service));
        let mentioned: BTreeSet<u32> = mentioned.chain(self.maglev.keys().map(|key| key.service)).collect();
        named.extend(mentioned.into_iter().filter(|id| !self.names.contains_key(id)).map(|id| (None, id)));
        // Service ports without a name come last.
        named.sort_by(|a, b| a.0.is_none().cmp(&b.0.is_none()).then(a.cmp(b)));
        for (key, id) in named {
            match key {
                Some(key) => write!(f, "{key}")?,
                None => write!(f, "(no name)")?,
            }
            if f.alternate() {
                write!(f, " #{id}")?;
            }
            let service = self.services.get(&id);
            writeln!(f, "{}", if service.is_some() { "" } else { " (no entry in SERVICES)" })?;
            for (key, kind) in frontends.get(&id).into_iter().flatten() {
                writeln!(f, "  {key} {}", Kind::from_number(*kind).map_or("?", Kind::name))?;
            }
            let service = service.copied().unwrap_or_default();
            let has = |flag| service.flags & flag != 0;
            let some_local = has(ServiceFlags::INTERNAL_LOCAL) || has(ServiceFlags::EXTERNAL_LOCAL);
            for (list, name) in [(List::Cluster, "cluster"), (List::Local, "local")] {
                if list == List::Cluster || some_local || service.local_len > 0 {
                    write!(f, "  {name}")?;
                    self.list(f, id, list, service.len(list))?;
                    writeln!(f)?;
                }
            }
            self.kept(f, id)?;
            if has(ServiceFlags::EXTERNAL_LOCAL) {
                let cluster_ips = if has(ServiceFlags::INTERNAL_LOCAL) { " and at cluster IPs" } else { "" };
                writeln!(f, "  the local list is used from outside{cluster_ips}")?;
            }
            self.ranges(f, id, has(ServiceFlags::SOURCE_RANGES))?;
            self.tables(f, id)?;
            if service.scheduler != Scheduler::Random as u32 {
                writeln!(f, "  scheduler {}", Scheduler::from_number(service.scheduler).map_or("?", Scheduler::name))?;
            }
            if service.affinity_seconds != 0 {
                writeln!(f, "  affinity {} s", service.affinity_seconds)?;
            }
            if service.eject.is_on() {
                writeln!(f, "  eject {}", eject_text(&service.eject))?;
            }
            // An absent entry reads as zeros.
            if service.drain_seconds != NEVER && self.services.contains_key(&id) {
                writeln!(f, "  drain after {} s", service.drain_seconds)?;
            }
            if has(ServiceFlags::REDIRECTED) {
                writeln!(f, "  the local list is of another Service, which takes the clients of cluster IPs")?;
            }
            match (service.flags & ServiceFlags::TIER) >> ServiceFlags::TIER_SHIFT {
                // Without tiers.
                0 if !has(ServiceFlags::TIERED) => {}
                tier if tier > u32::from(WORST_TIER) => {
                    writeln!(f, "  endpoints of every priority, since none has enough")?;
                }
                tier => writeln!(f, "  endpoints of priority {tier}")?,
            }
            if has(ServiceFlags::PROBED_OUT) {
                writeln!(f, "  endpoints are left out by their probes")?;
            }
            if has(ServiceFlags::PREFERS_LOCAL) {
                writeln!(f, "  this node's endpoints are preferred")?;
            }
            if has(ServiceFlags::UDP_CONNECT) {
                writeln!(f, "  without endpoints UDP sockets connect all the same")?;
            }
            let known = ServiceFlags::INTERNAL_LOCAL
                | ServiceFlags::EXTERNAL_LOCAL
                | ServiceFlags::SOURCE_RANGES
                | ServiceFlags::UDP_CONNECT
                | ServiceFlags::NOTES;
            if service.flags & !known != 0 {
                writeln!(f, "  flags {:#x}", service.flags)?;
            }
        }
        if !self.node_addrs.is_empty() {
            write!(f, "node addresses")?;
            self.node_addrs.keys().try_for_each(|addr| write!(f, " {addr}"))?;
            writeln!(f)?;
        }
        self.leftovers(f)
    }
}

impl Dump {
    fn list(&self, f: &mut fmt::Formatter<'_>, id: u32, list: List, len: u32) -> fmt::Result {
        if len == 0 {
            write!(f, " none")?;
        }
        let of = |from, to| self.slots.range(SlotKey::new(id, list, from)..=SlotKey::new(id, list, to));
        let mut expected = 0;
        if len > 0 {
            for (key, slot) in of(0, len - 1) {
                gap(f, key.index - expected)?;
                self.entry(f, slot)?;
                expected = key.index + 1;
            }
            gap(f, len - expected)?;
        }
        let beyond = of(len, u32::MAX).count();
        if beyond > 0 {
            write!(f, " ({beyond} beyond the end)")?;
        }
        Ok(())
    }

    fn entry(&self, f: &mut fmt::Formatter<'_>, slot: &Slot) -> fmt::Result {
        let flags = self.backends.get(&slot.backend).map_or(0, |backend| backend.flags);
        write!(f, " {}", port_ranges::target_text(&AddrPort { addr: slot.addr, port: slot.port }, flags))?;
        if slot.weight != 1 {
            write!(f, "*{}", slot.weight)?;
        }
        if f.alternate() { write!(f, "#{}", slot.backend) } else { Ok(()) }
    }

    /// Writes the backends in no list, which are kept for their sockets.
    fn kept(&self, f: &mut fmt::Formatter<'_>, id: u32) -> fmt::Result {
        let kept = self.backends.values().filter(|backend| backend.service == id && !is_listed(backend));
        let kept: BTreeSet<_> =
            kept.map(|backend| (AddrPort { addr: backend.addr, port: backend.port }, backend.flags)).collect();
        if kept.is_empty() {
            return Ok(());
        }
        write!(f, "  kept")?;
        kept.iter().try_for_each(|(target, flags)| write!(f, " {}", port_ranges::target_text(target, *flags)))?;
        writeln!(f)
    }

    /// Writes the source ranges of the load balancer addresses.
    fn ranges(&self, f: &mut fmt::Formatter<'_>, id: u32, is_bound: bool) -> fmt::Result {
        let ranges = || self.source_ranges.iter().filter(|key| key.range.service == id);
        if !is_bound && ranges().next().is_none() {
            return Ok(());
        }
        write!(f, "  {} from", if is_bound { "only" } else { "not only" })?;
        ranges().try_for_each(|key| write!(f, " {}", ranges::text(key)))?;
        if ranges().next().is_none() { writeln!(f, " nowhere") } else { writeln!(f) }
    }

    /// Writes the number of places of each backend in the Maglev tables.
    fn tables(&self, f: &mut fmt::Formatter<'_>, id: u32) -> fmt::Result {
        let keys = MaglevKey { service: id, list: 0 }..=MaglevKey { service: id, list: u32::MAX };
        for (key, table) in self.maglev.range(keys) {
            match List::ALL.into_iter().find(|list| *list as u32 == key.list) {
                Some(List::Cluster) => write!(f, "  maglev cluster")?,
                Some(List::Local) => write!(f, "  maglev local")?,
                None => write!(f, "  maglev list {}", key.list)?,
            }
            let mut places: BTreeMap<Option<(AddrPort, u16)>, usize> = BTreeMap::new();
            for id in &table.backends {
                let backend = self.backends.get(id);
                *places
                    .entry(backend.map(|backend| (AddrPort { addr: backend.addr, port: backend.port }, backend.flags)))
                    .or_default() += 1;
            }
            for (target, places) in places {
                match target {
                    Some((target, flags)) => write!(f, " {}={places}", port_ranges::target_text(&target, flags))?,
                    None => write!(f, " (not in BACKENDS)={places}")?,
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }

    /// Writes entries without a counterpart, which exist only while a change is half done.
    fn leftovers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: BTreeSet<u32> = self.slots.values().map(|slot| slot.backend).collect();
        let unnamed = self.backends.iter().filter(|(id, backend)| is_listed(backend) && !named.contains(id)).count();
        let missing = named.iter().filter(|id| !self.backends.contains_key(id)).count();
        let bits = |key: &&FrontendKey| !self.may_have(key);
        let keys = self.frontends.keys().chain(self.port_ranges.keys());
        let hidden: Vec<String> = keys.filter(bits).map(ToString::to_string).collect();
        if !hidden.is_empty() {
            writeln!(f, "(FRONTEND_BITS has no bit for {})", hidden.join(", "))?;
        }
        if unnamed > 0 {
            writeln!(f, "({unnamed} backends that no slot names)")?;
        }
        if missing > 0 {
            writeln!(f, "({missing} backends that slots name and BACKENDS has not)")?;
        }
        Ok(())
    }
}

fn is_listed(backend: &Backend) -> bool {
    backend.flags & (BackendFlags::CLUSTER | BackendFlags::LOCAL) != 0
}

fn gap(f: &mut fmt::Formatter<'_>, slots: u32) -> fmt::Result {
    match slots {
        0 => Ok(()),
        1 => write!(f, " -"),
        _ => write!(f, " -x{slots}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{objects::Key, spec::PortKey};
    use expect_test::{Expect, expect};
    use lb_common::Family;
    use lb_common::{Frontend, FrontendKey, Proto, ServiceEntry};
    use std::net::Ipv4Addr;

    fn slot(last: u8, backend: u32) -> Slot {
        Slot { addr: Ipv4Addr::new(10, 0, 0, last).into(), port: 8080, weight: 1, backend }
    }

    fn check(dump: &Dump, plain: &Expect, wide: &Expect) {
        plain.assert_eq(&dump.to_string());
        wide.assert_eq(&format!("{dump:#}"));
    }

    #[test]
    fn the_text_shows_a_whole_service_and_every_oddity() {
        let mut dump = Dump::default();
        let key =
            PortKey { service: Key::new("default", "a"), name: "http".into(), proto: Proto::Tcp, family: Family::V4 };
        dump.names.insert(7, key);
        let vip = FrontendKey::new(Ipv4Addr::new(10, 96, 0, 1).into(), 80, Proto::Tcp);
        dump.frontends.insert(vip, Frontend::new(7, Kind::ClusterIp));
        let mut dump = dump.with_bits();
        dump.services.insert(
            7,
            ServiceEntry {
                cluster_len: 2,
                flags: ServiceFlags::INTERNAL_LOCAL,
                drain_seconds: NEVER,
                ..ServiceEntry::default()
            },
        );
        for (index, slot) in [slot(1, 4), slot(2, 5)].into_iter().enumerate() {
            let index = u32::try_from(index).expect("small");
            dump.slots.insert(SlotKey::new(7, List::Cluster, index), slot);
            let Slot { addr, port, backend, .. } = slot;
            dump.backends.insert(backend, Backend { addr, port, flags: BackendFlags::CLUSTER, service: 7 });
        }
        check(
            &dump,
            &expect![[r"
                default/a:http/TCP
                  10.96.0.1:80/TCP ClusterIP
                  cluster 10.0.0.1:8080 10.0.0.2:8080
                  local none
            "]],
            &expect![[r"
                default/a:http/TCP #7
                  10.96.0.1:80/TCP ClusterIP
                  cluster 10.0.0.1:8080#4 10.0.0.2:8080#5
                  local none
            "]],
        );
        dump.slots.remove(&SlotKey::new(7, List::Cluster, 0));
        dump.slots.insert(SlotKey::new(7, List::Cluster, 9), slot(9, 9));
        dump.slots.insert(SlotKey::new(8, List::Cluster, 0), slot(8, 8));
        check(
            &dump,
            &expect![[r"
                default/a:http/TCP
                  10.96.0.1:80/TCP ClusterIP
                  cluster - 10.0.0.2:8080 (1 beyond the end)
                  local none
                (no name) (no entry in SERVICES)
                  cluster none (1 beyond the end)
                (1 backends that no slot names)
                (2 backends that slots name and BACKENDS has not)
            "]],
            &expect![[r"
                default/a:http/TCP #7
                  10.96.0.1:80/TCP ClusterIP
                  cluster - 10.0.0.2:8080#5 (1 beyond the end)
                  local none
                (no name) #8 (no entry in SERVICES)
                  cluster none (1 beyond the end)
                (1 backends that no slot names)
                (2 backends that slots name and BACKENDS has not)
            "]],
        );
    }
}
