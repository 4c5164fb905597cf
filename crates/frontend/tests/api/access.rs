//! Who gets in, and as whom.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use domain::AccountId;
use frontend::{Config, Credential};

use crate::client::{Reply, send};
use crate::fakes::{Running, config, start, start_with};

const FUNCTIONS: &str = "/2015-03-31/functions";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

fn closed() -> Config {
    let credential = |key: &str, token: Option<&str>| Credential {
        access_key_id: key.into(),
        secret_access_key: SECRET.into(),
        session_token: token.map(str::to_owned),
        account: AccountId::parse("123456789012").unwrap(),
    };
    Config { credentials: vec![credential("AKIDEXAMPLE", None), credential("ASIATEMP", Some("token"))], ..config() }
}

/// How a request is signed.
struct Signer {
    key: &'static str,
    secret: &'static str,
    token: Option<&'static str>,
    service: &'static str,
    time: SystemTime,
}

fn signer() -> Signer {
    Signer { key: "AKIDEXAMPLE", secret: SECRET, token: None, service: "lambda", time: SystemTime::now() }
}

impl Signer {
    async fn send(&self, server: &Running, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let identity = Credentials::new(self.key, self.secret, self.token.map(str::to_owned), None, "test").into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region("eu-west-1")
            .name(self.service)
            .time(self.time)
            .settings(SigningSettings::default())
            .build()
            .unwrap()
            .into();
        let url = format!("http://{}{path}", server.address);
        let signable = SignableRequest::new(method, url, headers.iter().copied(), SignableBody::Bytes(body)).unwrap();
        let (signature, _) = sign(signable, &params).unwrap().into_parts();
        let mut all = headers.to_vec();
        all.extend(signature.headers());
        send(server.address, method, path, &all, body).await
    }
}

#[tokio::test]
async fn a_signed_request_is_its_accounts() {
    let server = start_with(closed()).await;
    assert_eq!(signer().send(&server, "GET", FUNCTIONS, &[], b"").await.status, 200);
    let caller = server.state.callers.lock().unwrap().pop().unwrap();
    assert_eq!((caller.account.as_str(), &*caller.region), ("123456789012", "eu-west-1"));
    let temporary = Signer { key: "ASIATEMP", token: Some("token"), ..signer() };
    assert_eq!(temporary.send(&server, "GET", FUNCTIONS, &[], b"").await.status, 200);
    let path = "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aeu-west-1%3A123456789012%3Afunction%3Af/invocations?Qualifier=%24LATEST";
    assert_eq!(signer().send(&server, "POST", path, &[], b"[1]").await.text(), "[1]");
}

#[tokio::test]
async fn what_is_not_signed_right_is_refused_as_on_aws() {
    let server = start_with(closed()).await;
    let reply = send(server.address, "GET", FUNCTIONS, &[], b"").await;
    assert_eq!(reply.status, 403);
    assert_eq!(reply.error(), ("MissingAuthenticationTokenException", "Missing Authentication Token".into()));

    let unknown = "The security token included in the request is invalid.";
    for wrong in [
        Signer { key: "AKIDOTHER", ..signer() },
        Signer { token: Some("token"), ..signer() },
        Signer { key: "ASIATEMP", ..signer() },
        Signer { key: "ASIATEMP", token: Some("other"), ..signer() },
    ] {
        let reply = wrong.send(&server, "GET", FUNCTIONS, &[], b"").await;
        assert_eq!((reply.status, reply.error()), (403, ("UnrecognizedClientException", unknown.into())));
    }
    let reply = Signer { secret: "other", ..signer() }.send(&server, "GET", FUNCTIONS, &[], b"").await;
    let (name, message) = reply.error();
    assert_eq!((reply.status, name), (403, "InvalidSignatureException"));
    assert!(message.starts_with("The request signature we calculated does not match the signature you provided."));

    let old = Signer { time: SystemTime::now() - Duration::from_secs(600), ..signer() };
    let (_, message) = old.send(&server, "GET", FUNCTIONS, &[], b"").await.error();
    assert!(message.starts_with("Signature expired: "), "{message}");
    let (_, message) = Signer { service: "s3", ..signer() }.send(&server, "GET", FUNCTIONS, &[], b"").await.error();
    assert_eq!(message, "Credential should be scoped to correct service: 'lambda'. ");

    let broken = [("authorization", "AWS4-HMAC-SHA256 Credential=x")];
    let reply = send(server.address, "GET", FUNCTIONS, &broken, b"").await;
    assert_eq!((reply.status, reply.error().0), (403, "IncompleteSignatureException"));
    assert!(server.state.callers.lock().unwrap().is_empty());
}

#[tokio::test]
async fn logs_have_a_scope_of_their_own() {
    let server = start_with(closed()).await;
    let target = [("x-amz-target", "Logs_20140328.DescribeLogGroups")];
    let reply = Signer { service: "logs", ..signer() }.send(&server, "POST", "/", &target, b"{}").await;
    assert_eq!((reply.status, reply.text()), (200, r#"{"logGroups":[]}"#));
    assert_eq!(signer().send(&server, "POST", "/", &target, b"{}").await.status, 403);
}

#[tokio::test]
async fn probes_need_no_signature() {
    let server = start_with(closed()).await;
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(send(server.address, "GET", path, &[], b"").await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn without_credentials_web_pages_are_kept_out() {
    let server = start().await;
    for header in [("origin", "https://evil.example"), ("host", "evil.example"), ("sec-fetch-site", "cross-site")] {
        for path in [FUNCTIONS, "/healthz", "/metrics"] {
            let reply = send(server.address, "GET", path, &[header], b"").await;
            assert_eq!((reply.status, reply.error().0), (403, "AccessDeniedException"), "{header:?}");
        }
    }
    for host in ["localhost:1", "169.254.100.1:4566", "[::1]"] {
        assert_eq!(send(server.address, "GET", FUNCTIONS, &[("host", host)], b"").await.status, 200, "{host}");
    }
}

#[tokio::test]
async fn code_is_downloaded_by_its_address_alone() {
    let server = start_with(closed()).await;
    let url = signer().send(&server, "GET", "/2015-03-31/functions/f", &[], b"").await;
    let path = url.text().strip_prefix(&format!("http://{}", server.address)).unwrap();
    let reply = send(server.address, "GET", path, &[], b"").await;
    assert_eq!((reply.status, &*reply.body), (200, &b"PK\x05\x06"[..]));
    assert_eq!(reply.header("content-type"), Some("application/zip"));
    for wrong in [path.replace("Expires=1", "Expires=2"), path.replace("/code/e", "/code/f"), "/_emberbox/code/".into()]
    {
        let reply = send(server.address, "GET", &wrong, &[], b"").await;
        assert_eq!((reply.status, reply.error().0), (403, "AccessDeniedException"), "{wrong}");
    }
}
