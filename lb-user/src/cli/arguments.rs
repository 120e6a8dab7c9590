//! Values of arguments that several commands have: names of objects and times.

use std::time::Duration;

use k8s_openapi::jiff::SignedDuration;
use lb_core::{host_ports, objects::Key};

/// Reads namespace and name of an object, written `NAMESPACE/NAME`.
pub(super) fn key(text: &str) -> Result<Key, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(Key::new(namespace, name))
        }
        _ => Err("want NAMESPACE/NAME, such as default/web".to_owned()),
    }
}

/// Reads the key of a Service, written `NAMESPACE/NAME`, or that of a pod with hostPorts, written `NAMESPACE/pod/NAME`.
pub(super) fn service(text: &str) -> Result<Key, String> {
    let pod = text.split_once("/pod/").filter(|(namespace, _)| !namespace.contains('/'));
    match pod {
        Some((namespace, name)) => key(&format!("{namespace}/{name}")).map(|pod| host_ports::service_key(&pod)),
        None => key(text),
    }
    .map_err(|error| format!("{error}, or NAMESPACE/pod/NAME of a pod with hostPorts"))
}

/// Reads a time with units, which may be zero.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let time = text.parse::<SignedDuration>().ok().and_then(|time| time.try_into().ok());
    time.ok_or_else(|| "want a time with a unit, such as 30s, 5m or 1h".to_owned())
}

/// Reads a time with units that is not zero.
pub(super) fn positive_time(text: &str) -> Result<Duration, String> {
    match time(text)? {
        Duration::ZERO => Err("want more than no time, such as 10s".to_owned()),
        positive => Ok(positive),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_has_a_namespace_and_a_name() {
        assert_eq!(key("default/web"), Ok(Key::new("default", "web")));
        for bad in ["web", "/web", "default/", "a/b/c", ""] {
            assert!(key(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_service_may_be_that_of_a_pod() {
        assert_eq!(service("default/web"), Ok(Key::new("default", "web")));
        assert_eq!(service("default/pod/web"), Ok(host_ports::service_key(&Key::new("default", "web"))));
        assert_eq!(service("pod/web"), Ok(Key::new("pod", "web")));
        for bad in ["web", "a/b/c", "/pod/web", "default/pod/", "default/pod/a/b", "a/b/pod/c", ""] {
            assert!(service(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_have_units() {
        for (text, millis) in
            [("0s", 0), ("250ms", 250), ("30s", 30_000), ("1.5m", 90_000), ("5m", 300_000), ("1h 30m", 5_400_000)]
        {
            assert_eq!(time(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "30", "s", "-1s", "soon"] {
            assert!(time(bad).is_err(), "{bad}");
        }
        assert!(positive_time("0s").is_err());
        assert_eq!(positive_time("1s"), Ok(Duration::from_secs(1)));
    }
}
