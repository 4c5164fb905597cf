//! What the CA makes, and what it does not.

use std::fs;
use std::time::Duration;

use fleet_ca::{CA_CERTIFICATE, CA_KEY, Ca, CaError, Csr, IssueError, Subject, identity_of};
use rcgen::{CertificateParams, IsCa, KeyPair, PublicKeyData, SanType};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, Error, RootCertStore};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::support::{HOUR, der, identity, issue, mode, now, provider};

const DAY: Duration = Duration::from_secs(86_400);

fn verify(certificate: &CertificateDer<'_>, ca: &Ca, at: UnixTime) -> Result<(), Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate().clone()).unwrap();
    let parsed = ParsedCertificate::try_from(certificate)?;
    let algorithms = provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], at, algorithms)
}

#[test]
fn is_made_once_and_its_key_is_for_its_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/ca");
    let ca = Ca::create(&path, "home", now()).unwrap();
    assert_eq!((mode(&path), mode(&path.join(CA_KEY)), mode(&path.join(CA_CERTIFICATE))), (0o700, 0o600, 0o644));
    assert!(!format!("{ca:?}").contains("PRIVATE"));
    assert_eq!(Ca::load(&path).unwrap().fingerprint(), ca.fingerprint());
    let (key, pem) = (fs::read(path.join(CA_KEY)).unwrap(), fs::read(path.join(CA_CERTIFICATE)).unwrap());
    let error = Ca::create(&path, "home", now()).unwrap_err();
    assert!(matches!(error, CaError::Exists(_)), "{error}");
    fs::remove_file(path.join(CA_CERTIFICATE)).unwrap();
    assert!(matches!(Ca::create(&path, "home", now()), Err(CaError::Exists(_))), "half of one counts");
    assert_eq!(fs::read(path.join(CA_KEY)).unwrap(), key);
    assert!(matches!(Ca::load(&path), Err(CaError::Missing(_))));
    fs::write(path.join(CA_CERTIFICATE), pem).unwrap();
    Ca::load(&path).unwrap();
    for name in ["", "a\nb", &"x".repeat(51)] {
        assert!(matches!(Ca::create(&dir.path().join("other"), name, now()), Err(CaError::Name(_))));
    }
}

#[test]
fn is_not_read_where_it_cannot_be_trusted() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (dir.path().join("one"), dir.path().join("other"));
    Ca::create(&one, "one", now()).unwrap();
    let other_ca = Ca::create(&other, "other", now()).unwrap();
    fs::copy(other.join(CA_CERTIFICATE), one.join(CA_CERTIFICATE)).unwrap();
    let error = Ca::load(&one).unwrap_err().to_string();
    assert!(error.contains("does not belong to the key"), "{error}");
    // A member's certificate with its key is no authority.
    let (member, key) = issue(&other_ca, "w", "worker", &[], now(), HOUR);
    fs::write(one.join(CA_CERTIFICATE), member).unwrap();
    fs::write(one.join(CA_KEY), key.to_pem()).unwrap();
    let error = Ca::load(&one).unwrap_err().to_string();
    assert!(error.contains("not the certificate of an authority"), "{error}");
    fs::set_permissions(other.join(CA_KEY), fs::Permissions::from_mode(0o644)).unwrap();
    let error = Ca::load(&other).unwrap_err().to_string();
    assert!(error.contains("chmod 600"), "{error}");
    for broken in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        fs::write(one.join(CA_CERTIFICATE), broken).unwrap();
        assert!(matches!(Ca::load(&one), Err(CaError::Broken(..))));
    }
}

#[test]
fn decides_what_stands_in_a_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::create(dir.path(), "test", now()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut wanted = CertificateParams::new(["evil.example.org".to_owned(), "192.0.2.1".to_owned()]).unwrap();
    wanted.subject_alt_names.push(SanType::URI("emberbox://fleet/frontend/root".try_into().unwrap()));
    wanted.subject_alt_names.push(SanType::URI("emberbox://fleet/join/server".try_into().unwrap()));
    wanted.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    wanted.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    wanted.distinguished_name.push(rcgen::DnType::CommonName, "root");
    let csr = Csr::parse(&wanted.serialize_request(&key).unwrap().pem().unwrap()).unwrap();
    let hosts = ["w.example.org", "10.0.0.7", "fd00::7"].map(|host| host.parse().unwrap()).to_vec();
    let subject = Subject { identity: identity("w-1", "worker,pollers"), hosts };
    let first = der(&ca.issue(&csr, &subject, now(), 30 * DAY).unwrap());
    assert_eq!(identity_of(&first).unwrap(), subject.identity);
    let (_, parsed) = X509Certificate::from_der(&first).unwrap();
    assert_eq!(parsed.subject().to_string(), "CN=w-1");
    assert_eq!(parsed.public_key().raw, key.subject_public_key_info());
    assert!(!parsed.is_ca());
    let names = &parsed.subject_alternative_name().unwrap().unwrap().value.general_names;
    let names: Vec<_> = names
        .iter()
        .map(|name| match name {
            GeneralName::URI(text) | GeneralName::DNSName(text) => (*text).to_owned(),
            GeneralName::IPAddress(bytes) => format!("{bytes:?}"),
            other => panic!("{other}"),
        })
        .collect();
    let v6 = "[253, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]";
    let uris = ["emberbox://fleet/pollers/w-1", "emberbox://fleet/worker/w-1"];
    assert_eq!(names, [&uris[..], &["w.example.org", "[10, 0, 0, 7]", v6]].concat());
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth && !usage.any && !usage.code_signing && usage.other.is_empty());
    assert_eq!(parsed.key_usage().unwrap().unwrap().value.flags, 1, "digitalSignature alone");
    let life = parsed.validity().not_after.timestamp() - now().unix_timestamp();
    assert!((30 * 86_400 - 60..=30 * 86_400).contains(&life), "{life}");
    let again = der(&ca.issue(&csr, &subject, now(), 30 * DAY).unwrap());
    let (_, again) = X509Certificate::from_der(&again).unwrap();
    assert_ne!(parsed.serial, again.serial);
    verify(&first, &ca, UnixTime::now()).unwrap();
}

#[test]
fn a_certificate_ends_and_none_outlives_its_authority() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::create(dir.path(), "test", now()).unwrap();
    let (member, key) = issue(&ca, "w", "worker", &[], now(), HOUR);
    let at = |offset: Duration| UnixTime::since_unix_epoch(UnixTime::now().as_secs_duration() + offset);
    verify(&der(&member), &ca, at(HOUR - Duration::from_secs(60))).unwrap();
    let late = verify(&der(&member), &ca, at(HOUR + Duration::from_secs(60))).unwrap_err();
    assert!(matches!(late, Error::InvalidCertificate(CertificateError::ExpiredContext { .. })), "{late}");
    let (long, _) = issue(&ca, "w", "worker", &[], now(), 10_000 * DAY);
    let long = der(&long);
    let (_, long) = X509Certificate::from_der(&long).unwrap();
    assert!(long.validity().not_after.timestamp() < (now() + 367 * DAY).unix_timestamp());
    let last_day = ca.not_after() - Duration::from_secs(3600);
    let (last, _) = issue(&ca, "w", "worker", &[], last_day, 30 * DAY);
    let last = der(&last);
    let (_, last) = X509Certificate::from_der(&last).unwrap();
    assert_eq!(last.validity().not_after.timestamp(), ca.not_after().unix_timestamp());
    let csr = Csr::parse(&key.csr("w").unwrap()).unwrap();
    let subject = Subject { identity: identity("w", "worker"), hosts: Vec::new() };
    assert!(matches!(ca.issue(&csr, &subject, ca.not_after(), HOUR), Err(IssueError::Ended(_))));
    assert!(matches!(ca.issue(&csr, &subject, now(), Duration::ZERO), Err(IssueError::NoLife)));
}

trait AsSecs {
    fn as_secs_duration(&self) -> Duration;
}

impl AsSecs for UnixTime {
    fn as_secs_duration(&self) -> Duration {
        Duration::from_secs(self.as_secs())
    }
}

#[test]
fn no_byte_of_a_certificate_can_be_changed() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::create(dir.path(), "test", now()).unwrap();
    let (member, _) = issue(&ca, "w-1", "worker", &["10.0.0.7"], now(), HOUR);
    let good = der(&member).to_vec();
    verify(&CertificateDer::from(good.clone()), &ca, UnixTime::now()).unwrap();
    for at in 0..good.len() {
        for bit in [0x01, 0x80] {
            let mut changed = good.clone();
            changed[at] ^= bit;
            assert!(verify(&CertificateDer::from(changed), &ca, UnixTime::now()).is_err(), "byte {at}");
        }
    }
}

#[test]
fn a_member_makes_no_members() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::create(dir.path(), "test", now()).unwrap();
    let (member, key) = issue(&ca, "w-1", "worker", &[], now(), HOUR);
    // What it signs itself, sent with its own certificate between.
    let own = KeyPair::from_pem(&key.to_pem()).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_der(&der(&member), own).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI("emberbox://fleet/frontend/f".try_into().unwrap())];
    let forged = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate().clone()).unwrap();
    let parsed = ParsedCertificate::try_from(forged.der()).unwrap();
    let algorithms = provider().signature_verification_algorithms.all;
    let between = [der(&member)];
    verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &between, UnixTime::now(), algorithms).unwrap_err();
}

#[test]
fn an_identity_is_one_member() {
    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let of = |uris: &[&str]| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        identity_of(params.self_signed(&key).unwrap().der())
    };
    let known = of(&["emberbox://fleet/worker/a", "emberbox://fleet/time-traveller/b", "https://example.org/worker/c"]);
    assert_eq!(known.unwrap(), identity("a", "worker"), "roles of later versions are passed over");
    assert!(known_is(&of(&["emberbox://fleet/worker/a", "emberbox://fleet/frontend/a"]), "a", "frontend,worker"));
    for none in [
        &["emberbox://fleet/worker/a", "emberbox://fleet/frontend/b"][..],
        &["emberbox://fleet/worker/a/b"],
        &["emberbox://fleet/worker/"],
        &["emberbox://fleet/join/server"],
        &["EMBERBOX://fleet/worker/a"],
        &[],
    ] {
        assert!(of(none).is_err(), "{none:?}");
    }
    drop(dir);
}

fn known_is(found: &Result<fleet_ca::Identity, fleet_ca::InvalidIdentity>, id: &str, roles: &str) -> bool {
    found.as_ref() == Ok(&identity(id, roles))
        && found.as_ref().is_ok_and(|found| found.is("worker") && !found.is("placement"))
}
