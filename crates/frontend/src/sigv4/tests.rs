use std::time::UNIX_EPOCH;

use super::*;

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
/// 2015-08-30T12:36:00Z, the moment of AWS's published examples.
const AT: u64 = 1_440_938_160;

fn at(offset: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(AT.checked_add_signed(offset).unwrap())
}

struct Example {
    method: Method,
    path: &'static str,
    query: String,
    headers: HeaderMap,
}

impl Example {
    fn new(method: Method, path: &'static str, query: &str, headers: &[(&'static str, &str)]) -> Self {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        Self { method, path, query: query.into(), headers: map }
    }

    /// `example.amazonaws.com` at the published moment, with this Authorization.
    fn signed(method: Method, path: &'static str, query: &str, signed: &str, signature: &str) -> Self {
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders={signed}, \
             Signature={signature}"
        );
        Self::new(
            method,
            path,
            query,
            &[("host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z"), ("authorization", &authorization)],
        )
    }

    fn parts(&self) -> SignedParts<'_> {
        SignedParts {
            method: &self.method,
            path: self.path,
            query: &self.query,
            headers: &self.headers,
            authority: None,
        }
    }

    fn check(&self, now: SystemTime) -> Result<(), SigError> {
        let parts = self.parts();
        let claim = Claim::parse(&parts)?;
        claim.check_scope("service")?;
        claim.check_time(now)?;
        claim.verify(&parts, SECRET, b"")
    }
}

const VANILLA: &str = "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31";

fn vanilla() -> Example {
    Example::signed(Method::GET, "/", "", "host;x-amz-date", VANILLA)
}

#[test]
fn accepts_the_published_examples() {
    vanilla().check(at(0)).unwrap();
    for (method, path, query, signature) in [
        (Method::POST, "/", "", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
        (
            Method::GET,
            "/",
            "Param2=value2&Param1=value1",
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        ),
        (Method::GET, "/example/..", "", VANILLA),
        (Method::GET, "//", "", VANILLA),
    ] {
        let example = Example::signed(method, path, query, "host;x-amz-date", signature);
        example.check(at(0)).unwrap_or_else(|e| panic!("{path}?{query}: {e}"));
    }
}

#[test]
fn the_clock_may_be_five_minutes_off() {
    vanilla().check(at(299)).unwrap();
    vanilla().check(at(-299)).unwrap();
    assert_eq!(
        vanilla().check(at(301)).unwrap_err().to_string(),
        "Signature expired: 20150830T123600Z is now earlier than 20150830T123601Z (20150830T124101Z - 5 min.)"
    );
    assert_eq!(
        vanilla().check(at(-301)).unwrap_err().to_string(),
        "Signature not yet current: 20150830T123600Z is still later than 20150830T123559Z (20150830T123059Z + 5 min.)"
    );
}

#[test]
fn says_what_is_wrong_with_the_scope() {
    let parts = vanilla();
    let claim = Claim::parse(&parts.parts()).unwrap();
    assert_eq!(
        claim.check_scope("lambda").unwrap_err().to_string(),
        "Credential should be scoped to correct service: 'lambda'. "
    );
    let other_day = Claim { scope_date: "20150831".into(), region: "mars".into(), ..claim };
    let message = other_day.check_scope("service").unwrap_err().to_string();
    assert!(message.contains("valid region"), "{message}");
    assert!(message.contains("'20150831' != '20150830', from '20150830T123600Z'"), "{message}");
}

#[test]
fn refuses_what_is_missing_or_malformed() {
    let check = |headers: &[(&'static str, &str)]| {
        let mut all = vec![("host", "h"), ("x-amz-date", "20150830T123600Z")];
        all.extend_from_slice(headers);
        Example::new(Method::GET, "/", "", &all).check(at(0)).unwrap_err()
    };
    assert_eq!(check(&[]), SigError::Missing);
    assert_eq!(check(&[("authorization", "Bearer x")]), SigError::Missing);
    for authorization in [
        "AWS4-HMAC-SHA1 Credential=a/b/c/d/e, SignedHeaders=host, Signature=0",
        "AWS4-HMAC-SHA256",
        "AWS4-HMAC-SHA256 Credential=a/b/c, SignedHeaders=host, Signature=0",
        "AWS4-HMAC-SHA256 SignedHeaders=host, Signature=0",
        "AWS4-HMAC-SHA256 Credential=a/b/c/d/e, Signature",
    ] {
        let error = check(&[("authorization", authorization)]);
        assert!(matches!(error, SigError::Incomplete(_)), "{authorization}: {error:?}");
    }
    let unsigned_host = "AWS4-HMAC-SHA256 Credential=a/b/c/d/e, SignedHeaders=x-amz-date, Signature=0";
    assert_eq!(
        check(&[("authorization", unsigned_host)]).to_string(),
        "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization."
    );
    let absent = "AWS4-HMAC-SHA256 Credential=a/b/c/d/e, SignedHeaders=host;x-not-there, Signature=0";
    assert_eq!(check(&[("authorization", absent)]), SigError::mismatch());
}

#[test]
fn a_presigned_request_lives_a_week_at_most() {
    let query = |expires: &str| {
        format!(
            "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20150830%2Fus-east-1%2Fservice%2Faws4_request\
             &X-Amz-Date=20150830T123600Z&X-Amz-Expires={expires}&X-Amz-SignedHeaders=host&X-Amz-Signature=00"
        )
    };
    for (expires, fits) in [("604800", true), ("604801", false), ("-1", false), ("x", false), ("", false)] {
        let example = Example::new(Method::GET, "/", &query(expires), &[("host", "h")]);
        assert_eq!(Claim::parse(&example.parts()).is_ok(), fits, "{expires}");
    }
}

#[test]
fn knows_a_region() {
    for region in ["us-east-1", "ap-southeast-2", "us-gov-west-1", "us-isob-east-1"] {
        assert!(is_region(region), "{region}");
    }
    for region in ["", "us", "us-1", "east-1-us", "US-EAST-1", "us--1", "us-east-", "us-east-123", "-us-east-1"] {
        assert!(!is_region(region), "{region}");
    }
}
