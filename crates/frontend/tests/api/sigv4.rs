//! What AWS's own signer signs, ours accepts, and nothing else.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign,
};
use aws_sigv4::sign::v4;
use frontend::sigv4::{Claim, SigError, SignedParts};
use http::Request;
use proptest::prelude::*;

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const NOW: u64 = 1_700_000_000;

/// Where and over what a signature is made.
#[derive(Clone, Debug)]
struct Form {
    presigned: bool,
    token: bool,
    unsigned_payload: bool,
    content_sha256: bool,
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

fn signed(mut request: Request<Vec<u8>>, form: &Form) -> Request<Vec<u8>> {
    let token = form.token.then(|| "token/with+chars==".to_owned());
    let identity = Credentials::new("AKIDEXAMPLE", SECRET, token, None, "test").into();
    let mut settings = SigningSettings::default();
    if form.presigned {
        settings.signature_location = SignatureLocation::QueryParams;
        settings.expires_in = Some(Duration::from_secs(900));
    }
    // The signer adds the header that tells of an unsigned payload only together with the checksum.
    if form.content_sha256 || form.unsigned_payload {
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    }
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region("eu-west-1")
        .name("lambda")
        .time(now())
        .settings(settings)
        .build()
        .unwrap()
        .into();
    let body = if form.unsigned_payload { SignableBody::UnsignedPayload } else { SignableBody::Bytes(request.body()) };
    let headers = request.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
    let signable = SignableRequest::new(request.method().as_str(), request.uri().to_string(), headers, body).unwrap();
    let (instructions, _) = sign(signable, &params).unwrap().into_parts();
    instructions.apply_to_request_http1x(&mut request);
    request
}

fn verify(request: Request<Vec<u8>>) -> Result<(), SigError> {
    let (mut parts, body) = request.into_parts();
    if !parts.headers.contains_key("host") {
        let host = parts.uri.authority().unwrap().to_string();
        parts.headers.insert("host", host.parse().unwrap());
    }
    let signed = SignedParts::of(&parts);
    let claim = Claim::parse(&signed)?;
    assert_eq!((&*claim.access_key_id, &*claim.region), ("AKIDEXAMPLE", "eu-west-1"));
    claim.check_scope("lambda")?;
    claim.check_time(now())?;
    claim.verify(&signed, SECRET, &body)
}

fn request() -> impl Strategy<Value = Request<Vec<u8>>> {
    let segment = "[a-zA-Z0-9$_.~ :/%-]{1,12}".prop_map(|s| percent_encode(&s));
    let path = proptest::collection::vec(segment, 0..5).prop_map(|segments| format!("/{}", segments.join("/")));
    let pair = ("[a-zA-Z.-]{1,8}", "[a-zA-Z0-9$_.~ :/%&=+é-]{0,8}");
    let query = proptest::collection::vec(pair, 0..4).prop_map(|pairs| {
        pairs.iter().map(|(name, value)| format!("{name}={}", percent_encode(value))).collect::<Vec<_>>().join("&")
    });
    let method = prop_oneof![Just("GET"), Just("POST"), Just("PUT"), Just("DELETE")];
    let header = "[ -~]{0,20}";
    (method, path, query, header, header, proptest::collection::vec(any::<u8>(), 0..64)).prop_map(
        |(method, path, query, first, second, body)| {
            let query = if query.is_empty() { query } else { format!("?{query}") };
            Request::builder()
                .method(method)
                .uri(format!("http://lambda.example:4566{path}{query}"))
                .header("content-type", "application/json")
                .header("x-amz-meta", first)
                .header("x-amz-other", second)
                .body(body)
                .unwrap()
        },
    )
}

fn form() -> impl Strategy<Value = Form> {
    any::<(bool, bool, bool, bool)>().prop_map(|(presigned, token, unsigned_payload, content_sha256)| Form {
        presigned,
        token,
        unsigned_payload: unsigned_payload && !presigned,
        content_sha256,
    })
}

fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(b).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// Changes one thing that is covered by the signature.
fn mutate(request: &mut Request<Vec<u8>>, which: u8, form: &Form) {
    let uri = request.uri().to_string();
    match which % 6 {
        0 if !form.unsigned_payload => request.body_mut().push(b'x'),
        1 => {
            let separator = if uri.contains('?') { '&' } else { '?' };
            *request.uri_mut() = format!("{uri}{separator}Qualifier=2").parse().unwrap();
        }
        2 => *request.uri_mut() = uri.replacen(":4566/", ":4566/x", 1).parse().unwrap(),
        3 => {
            request.headers_mut().append("x-amz-meta", "more".parse().unwrap());
        }
        4 => {
            request.headers_mut().insert("host", "other.example".parse().unwrap());
        }
        _ => *request.method_mut() = http::Method::PATCH,
    }
}

proptest! {
    #[test]
    fn accepts_what_aws_signs(request in request(), form in form()) {
        prop_assert_eq!(verify(signed(request, &form)), Ok(()));
    }

    #[test]
    fn refuses_what_was_changed(request in request(), form in form(), which: u8) {
        let mut request = signed(request, &form);
        mutate(&mut request, which, &form);
        prop_assert!(matches!(verify(request), Err(SigError::Invalid(_))));
    }

    #[test]
    fn reads_anything_without_panic(authorization in "\\PC{0,80}", query in "\\PC{0,80}", date in "\\PC{0,20}") {
        let mut headers = http::HeaderMap::new();
        for (name, value) in [("authorization", &authorization), ("x-amz-date", &date)] {
            if let Ok(value) = http::HeaderValue::from_bytes(value.as_bytes()) {
                headers.insert(name, value);
            }
        }
        let parts =
            SignedParts { method: &http::Method::GET, path: "/%zz/../..", query: &query, headers: &headers, authority: None };
        if let Ok(claim) = Claim::parse(&parts) {
            let _ = claim.check_scope("lambda");
            let _ = claim.check_time(now());
            prop_assert!(claim.verify(&parts, SECRET, b"").is_err());
        }
    }
}
