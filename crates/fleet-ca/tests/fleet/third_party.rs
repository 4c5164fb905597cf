//! What OpenSSL says of our certificates.

use std::path::Path;
use std::process::Command;

use fleet_ca::{CA_FILE, CERTIFICATE_FILE, KEY_FILE, join};

use crate::support::{Fleet, HOUR, issue, now, options};

/// Runs it; `None` where it is not installed.
fn openssl(args: &[&str], dir: &Path) -> Option<(bool, String)> {
    let output = match Command::new("openssl").args(args).current_dir(dir).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let message = "skipped: openssl is not installed";
            assert!(std::env::var_os("EMBERBOX_REQUIRE_ALL").is_none(), "{message}, and EMBERBOX_REQUIRE_ALL is set");
            eprintln!("{message}");
            return None;
        }
        Err(error) => panic!("openssl: {error}"),
    };
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    Some((output.status.success(), text.into_owned()))
}

#[tokio::test]
async fn openssl_agrees() {
    let fleet = Fleet::start().await;
    let dir = fleet.member_dir("w");
    let mut wanted = options("w-1");
    wanted.hosts = Some(vec!["10.0.0.7".parse().unwrap(), "w.example.org".parse().unwrap()]);
    join(&fleet.token("worker,pollers", 1).await, wanted, &dir).await.unwrap();
    let (path, other) = (dir.path().to_owned(), Fleet::start().await);
    let run = |args: &[&str]| openssl(args, &path);
    let strict = ["verify", "-x509_strict", "-CAfile", CA_FILE];
    for purpose in ["sslclient", "sslserver"] {
        let Some((good, said)) = run(&[&strict[..], &["-purpose", purpose, CERTIFICATE_FILE]].concat()) else { return };
        assert!(good, "{said}");
    }
    let (good, said) = run(&[&strict[..], &["-verify_ip", "10.0.0.7", CERTIFICATE_FILE]].concat()).unwrap();
    assert!(good, "{said}");
    let (_, text) = run(&["x509", "-noout", "-text", "-in", CERTIFICATE_FILE]).unwrap();
    for part in [
        "Issuer: CN = test fleet CA",
        "Subject: CN = w-1",
        "URI:emberbox://fleet/pollers/w-1, URI:emberbox://fleet/worker/w-1, IP Address:10.0.0.7, DNS:w.example.org",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "CA:FALSE",
        "NIST CURVE: P-256",
        "X509v3 Authority Key Identifier",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let (_, text) = run(&["x509", "-noout", "-text", "-in", CA_FILE]).unwrap();
    for part in ["CA:TRUE, pathlen:0", "Certificate Sign, CRL Sign", "CN = test fleet CA"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let (good, said) = run(&["pkey", "-in", KEY_FILE, "-noout", "-check"]).unwrap();
    assert!(good, "{said}");
    // And it disagrees where it should.
    let (member, _) = issue(&other.ca(), "w-1", "worker", &[], now(), HOUR);
    std::fs::write(path.join("foreign.pem"), member).unwrap();
    let (good, said) = run(&[&strict[..], &["foreign.pem"]].concat()).unwrap();
    assert!(!good, "{said}");
}
