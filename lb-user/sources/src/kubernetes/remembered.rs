//! The API servers that the pinned maps remember: the endpoints of `default/kubernetes` as they were last known. A node that
//! starts over its pins finds a server by them when every one that it was told of has moved.
//!
//! They get the credentials only where a certificate proves who they are: whoever may write Endpoints would get them
//! otherwise.

use std::{collections::BTreeSet, fmt, net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use kube::Config;

/// Every API server's certificate is for it, since pods may ask for the server by it
/// (<https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/>).
const NAME_OF_ALL: &str = "kubernetes.default.svc";

/// Addresses of API servers from an earlier run. The default remembers none.
#[derive(Clone, Default)]
pub struct Remembered(Option<Arc<Recall>>);

type Recall = dyn Fn() -> BTreeSet<SocketAddr> + Send + Sync;

impl Remembered {
    /// Calls `recall` each time the other servers do not answer.
    pub fn by(recall: impl Fn() -> BTreeSet<SocketAddr> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(recall)))
    }

    pub(super) fn servers(&self) -> BTreeSet<SocketAddr> {
        self.0.as_ref().map(|recall| recall()).unwrap_or_default()
    }
}

impl fmt::Debug for Remembered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Remembered").field(&self.0.is_some()).finish()
    }
}

/// The ways to a server at `address`, by the names that its certificate may be for: that by which the credentials know the
/// servers, and the one that all of them have. None where no certificate would be asked for.
pub(super) fn ways(credentials: &Config, address: SocketAddr) -> anyhow::Result<Vec<Config>> {
    let url = &credentials.cluster_url;
    if url.scheme_str() != Some("https") || credentials.accept_invalid_certs {
        return Ok(Vec::new());
    }
    let host = url.host().map(|host| host.trim_start_matches('[').trim_end_matches(']'));
    let own = credentials.tls_server_name.as_deref().or(host);
    let mut names: Vec<&str> = own.into_iter().collect();
    if !names.contains(&NAME_OF_ALL) {
        names.push(NAME_OF_ALL);
    }
    let cluster_url: hyper::Uri = format!("https://{address}").parse().context("the URL of a remembered server")?;
    let way = |name: &str| {
        let mut way = credentials.clone();
        way.cluster_url = cluster_url.clone();
        way.tls_server_name = Some(name.to_owned());
        way
    };
    Ok(names.into_iter().map(way).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remembered_server_is_known_by_the_name_of_the_credentials_or_the_one_that_all_have() {
        let check = |url: &str, tls: Option<&str>, address: &str, expected: &[&str]| {
            let mut credentials = Config::new(url.parse().unwrap());
            credentials.tls_server_name = tls.map(str::to_owned);
            let ways = ways(&credentials, address.parse().unwrap()).unwrap();
            assert!(ways.iter().all(|way| way.cluster_url.to_string() == format!("https://{address}/")), "{address}");
            let names: Vec<_> = ways.into_iter().filter_map(|way| way.tls_server_name).collect();
            assert_eq!(names, expected, "{url}");
        };
        check("https://10.96.0.1", None, "192.0.2.1:6443", &["10.96.0.1", NAME_OF_ALL]);
        check("https://[fd96::1]:443", None, "[fd00::1]:6443", &["fd96::1", NAME_OF_ALL]);
        check("https://192.0.2.9:6443", Some("api.example.com"), "192.0.2.1:443", &["api.example.com", NAME_OF_ALL]);
        check("https://kubernetes.default.svc", None, "192.0.2.1:6443", &[NAME_OF_ALL]);
        check("http://127.0.0.1:8001", None, "192.0.2.1:6443", &[]);
    }

    #[test]
    fn credentials_go_to_nobody_who_does_not_prove_who_he_is() {
        let mut credentials = Config::new("https://10.96.0.1".parse().unwrap());
        credentials.accept_invalid_certs = true;
        assert!(ways(&credentials, "192.0.2.1:6443".parse().unwrap()).unwrap().is_empty());
    }
}
