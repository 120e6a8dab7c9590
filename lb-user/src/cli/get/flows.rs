//! `beeline get flows`: filters, and cells of a flow.

use std::{net::IpAddr, path::Path};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use lb_common::Proto;

use super::Row;
use crate::inspect::{self, FlowFilter, FlowRow};
use lb_core::op::Table;
use lb_dataplane::{flows::Flows, store::BpfStore};
use lb_kernel::clock;

/// Filters of flows.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "Filters of flows")]
pub(super) struct FlowArgs {
    /// Service.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = parse_service)]
    service: Option<(String, String)>,
    /// Protocol.
    #[arg(long, ignore_case = true)]
    proto: Option<ProtoName>,
    /// Address or network of the client.
    #[arg(long, value_name = "ADDR[/LEN]", value_parser = parse_network)]
    client: Option<IpNet>,
    /// Address of the backend.
    #[arg(long, value_name = "ADDR")]
    backend: Option<IpAddr>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProtoName {
    Tcp,
    Udp,
    Sctp,
}

fn parse_service(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err("want NAMESPACE/NAME, such as default/web".to_owned()),
    }
}

fn parse_network(text: &str) -> Result<IpNet, String> {
    let network = text.parse::<IpAddr>().map(IpNet::from).or_else(|_| text.parse());
    network.map_err(|_| "want an address or a prefix, such as 192.0.2.9 or 192.0.2.0/24".to_owned())
}

impl FlowArgs {
    /// Fails if a filter is set, for a table other than flows.
    pub(super) fn ensure_unset(&self) -> Result<()> {
        let is_given =
            self.service.is_some() || self.proto.is_some() || self.client.is_some() || self.backend.is_some();
        ensure!(!is_given, "--service, --proto, --client and --backend filter flows: use them with `get flows`");
        Ok(())
    }

    fn flow_filter(&self) -> FlowFilter {
        let proto = self.proto.map(|name| match name {
            ProtoName::Tcp => Proto::Tcp,
            ProtoName::Udp => Proto::Udp,
            ProtoName::Sctp => Proto::Sctp,
        });
        FlowFilter { service: self.service.clone(), proto, client: self.client, backend: self.backend }
    }
}

/// Reads the flows of the pinned map that pass the filter.
pub(super) fn read(pins: &Path, filter: &FlowArgs) -> Result<Vec<FlowRow>> {
    let names = BpfStore::open(pins)?.dump_of(&[Table::Names])?;
    Ok(inspect::flows(&Flows::open(pins)?.read()?, &filter.flow_filter(), &names, clock::monotonic_ns()))
}

impl Row for FlowRow {
    const HEAD: &'static [&'static str] =
        &["PROTOCOL", "CLIENT", "VIP", "BACKEND", "SOURCE", "STATE", "IDLE", "EXPIRES", "SERVICE"];
    const WIDE: &'static [&'static str] = &["SERVICE ID", "BACKEND ID"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.protocol.to_owned(),
            self.client.to_string(),
            self.vip.to_string(),
            self.backend.to_string(),
            self.source.map_or_else(|| "-".to_owned(), |source| source.to_string()),
            self.state.to_owned(),
            format!("{}s", self.idle_seconds),
            format!("{}s", self.expires_seconds),
            self.service.clone(),
        ]
    }

    fn wide(&self) -> Vec<String> {
        vec![self.service_id.to_string(), self.backend_id.to_string()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_names_addresses_and_prefixes() {
        assert_eq!(parse_service("default/web"), Ok(("default".to_owned(), "web".to_owned())));
        for bad in ["web", "/web", "default/", "a/b/c", ""] {
            assert!(parse_service(bad).is_err(), "{bad}");
        }
        for (text, network) in [
            ("192.0.2.9", "192.0.2.9/32"),
            ("192.0.2.0/24", "192.0.2.0/24"),
            ("fd00::1", "fd00::1/128"),
            ("fd00::/8", "fd00::/8"),
        ] {
            assert_eq!(parse_network(text).map(|network| network.to_string()), Ok(network.to_owned()));
        }
        for bad in ["", "192.0.2", "192.0.2.0/33", "x/8"] {
            assert!(parse_network(bad).is_err(), "{bad}");
        }
    }
}
