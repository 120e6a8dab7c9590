//! API servers known from the pinned maps: the endpoints of `default/kubernetes` of the last run. With them an agent
//! that starts over its pins finds a server after all configured servers have moved.
//!
//! They get the credentials only over TLS with a verified certificate: otherwise, anyone with write access to Endpoints
//! would get the credentials.

use std::{collections::BTreeSet, fmt, net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use kube::Config;

/// A name in every API server's certificate, since pods use it
/// (<https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/>).
const COMMON_NAME: &str = "kubernetes.default.svc";

/// Addresses of API servers from an earlier run. `default()` has none.
#[derive(Clone, Default)]
pub struct RememberedServers(Option<Arc<ReadServers>>);

type ReadServers = dyn Fn() -> BTreeSet<SocketAddr> + Send + Sync;

impl RememberedServers {
    /// Creates a list that calls `read` each time the other servers do not answer.
    pub fn new(read: impl Fn() -> BTreeSet<SocketAddr> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(read)))
    }

    pub(super) fn addresses(&self) -> BTreeSet<SocketAddr> {
        self.0.as_ref().map(|read| read()).unwrap_or_default()
    }
}

impl fmt::Debug for RememberedServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RememberedServers").field(&self.0.is_some()).finish()
    }
}

/// Returns configurations for a server at `address`, one for each name that its certificate may have: the name in the
/// credentials, and the common one. Empty if the credentials do not verify certificates.
pub(super) fn configs_for(credentials: &Config, address: SocketAddr) -> anyhow::Result<Vec<Config>> {
    let url = &credentials.cluster_url;
    if url.scheme_str() != Some("https") || credentials.accept_invalid_certs {
        return Ok(Vec::new());
    }
    let host = url.host().map(|host| host.trim_start_matches('[').trim_end_matches(']'));
    let own = credentials.tls_server_name.as_deref().or(host);
    let mut names: Vec<&str> = own.into_iter().collect();
    if !names.contains(&COMMON_NAME) {
        names.push(COMMON_NAME);
    }
    let cluster_url: hyper::Uri = format!("https://{address}").parse().context("the URL of a remembered server")?;
    let config = |name: &str| {
        let mut config = credentials.clone();
        config.cluster_url = cluster_url.clone();
        config.tls_server_name = Some(name.to_owned());
        config
    };
    Ok(names.into_iter().map(config).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remembered_server_is_verified_by_the_name_in_the_credentials_or_the_common_one() {
        let check = |url: &str, tls: Option<&str>, address: &str, expected: &[&str]| {
            let mut credentials = Config::new(url.parse().unwrap());
            credentials.tls_server_name = tls.map(str::to_owned);
            let configs = configs_for(&credentials, address.parse().unwrap()).unwrap();
            assert!(
                configs.iter().all(|config| config.cluster_url.to_string() == format!("https://{address}/")),
                "{address}"
            );
            let names: Vec<_> = configs.into_iter().filter_map(|config| config.tls_server_name).collect();
            assert_eq!(names, expected, "{url}");
        };
        check("https://10.96.0.1", None, "192.0.2.1:6443", &["10.96.0.1", COMMON_NAME]);
        check("https://[fd96::1]:443", None, "[fd00::1]:6443", &["fd96::1", COMMON_NAME]);
        check("https://192.0.2.9:6443", Some("api.example.com"), "192.0.2.1:443", &["api.example.com", COMMON_NAME]);
        check("https://kubernetes.default.svc", None, "192.0.2.1:6443", &[COMMON_NAME]);
        check("http://127.0.0.1:8001", None, "192.0.2.1:6443", &[]);
    }

    #[test]
    fn credentials_are_not_sent_without_a_verified_certificate() {
        let mut credentials = Config::new("https://10.96.0.1".parse().unwrap());
        credentials.accept_invalid_certs = true;
        assert!(configs_for(&credentials, "192.0.2.1:6443".parse().unwrap()).unwrap().is_empty());
    }
}
