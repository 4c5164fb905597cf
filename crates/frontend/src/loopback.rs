//! Keeps web pages away from a server that trusts everyone on its machine.
//!
//! Without credentials, being able to connect to a loopback address is what entitles a caller. A browser on the same
//! machine can do that on behalf of any page it shows, so such requests are told apart by what a browser cannot
//! leave out: `Origin`, `Sec-Fetch-Site`, and the `Host` that a rebound DNS name leaves behind.

use std::net::IpAddr;

use http::HeaderMap;
use http::header::{HOST, ORIGIN};

/// Where a function's own SDK finds the host: the address of the sandbox's gateway to a local endpoint.
const SANDBOX_GATEWAY: &str = "169.254.100.1";

/// Checks that a request was not made by a page from elsewhere.
///
/// # Errors
/// The message for the caller.
pub fn check(headers: &HeaderMap, authority: Option<&str>, allowed_hosts: &[String]) -> Result<(), String> {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).or(authority).unwrap_or_default();
    if !is_local(host_of(host), allowed_hosts) {
        return Err(format!(
            "Emberbox has no credentials configured and answers only to loopback names, not to Host '{}'. Use \
             127.0.0.1 or localhost, or add the name to allowed_hosts.",
            host.escape_default().take(100).collect::<String>(),
        ));
    }
    for origin in headers.get_all(ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        let local = origin.split_once("://").is_some_and(|(_, host)| is_local(host_of(host), allowed_hosts));
        if !local {
            return Err(format!(
                "Emberbox has no credentials configured and takes no requests from web pages of other origins ('{}').",
                origin.escape_default().take(100).collect::<String>(),
            ));
        }
    }
    if headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site") {
        return Err("Emberbox has no credentials configured and takes no cross-site requests from browsers.".into());
    }
    Ok(())
}

/// Without port and brackets; empty for what no browser sends.
fn host_of(authority: &str) -> &str {
    if authority.contains(['@', '/']) {
        return "";
    }
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split_once(']').map_or("", |(address, _)| address);
    }
    authority.split_once(':').map_or(authority, |(host, _)| host)
}

fn is_local(host: &str, allowed_hosts: &[String]) -> bool {
    let ends_with = |end: &str| {
        let tail = host.len().checked_sub(end.len()).and_then(|at| host.get(at..));
        tail.is_some_and(|tail| tail.eq_ignore_ascii_case(end))
    };
    host.eq_ignore_ascii_case("localhost")
        || ends_with(".localhost")
        || host == SANDBOX_GATEWAY
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        || allowed_hosts.iter().any(|allowed| host.eq_ignore_ascii_case(allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(pairs: &[(&'static str, &str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        check(&headers, None, &["box.internal".into()]).is_ok()
    }

    #[test]
    fn local_names_pass() {
        for host in [
            "127.0.0.1:4566",
            "localhost",
            "LOCALHOST:1",
            "[::1]:4566",
            "x.localhost",
            "169.254.100.1",
            "box.internal:80",
        ] {
            assert!(allowed(&[("host", host)]), "{host}");
        }
        assert!(allowed(&[("host", "localhost:4566"), ("origin", "http://localhost:3000")]));
        assert!(allowed(&[("host", "localhost"), ("sec-fetch-site", "same-origin")]));
    }

    #[test]
    fn a_rebound_name_or_a_foreign_page_does_not() {
        for host in ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "", "[::1", "[]"] {
            assert!(!allowed(&[("host", host)]), "{host}");
        }
        assert!(!allowed(&[]));
        for origin in
            ["http://evil.example", "null", "https://localhost.evil.example", "", "http://localhost:1@evil.example"]
        {
            assert!(!allowed(&[("host", "localhost"), ("origin", origin)]), "{origin}");
        }
        assert!(!allowed(&[("host", "localhost"), ("sec-fetch-site", "cross-site")]));
    }
}
