//! Requests to one registry, as OCI's distribution specification and Docker's token scheme have them. Whatever it
//! answers is bounded in size and time.

use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt as _;
use reqwest::header::{ACCEPT, AUTHORIZATION, WWW_AUTHENTICATE};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use tokio::sync::Mutex;

use super::failure::Problem;
use super::{Access, Remote};
use crate::oci::blob;

const CONNECT: Duration = Duration::from_secs(10);

/// Between two pieces of an answer.
const READ: Duration = Duration::from_secs(30);

/// For all of a document, with the token that it may take.
const DOCUMENT: Duration = Duration::from_secs(60);

/// Redirects in a row. One, to where the registry keeps its blobs, is usual.
const REDIRECTS: usize = 5;

/// Bytes of a token's answer, and of an error's that are looked at.
const SMALL: u64 = 64 * 1024;

/// Which documents a tag may lead to.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                        application/vnd.docker.distribution.manifest.list.v2+json, \
                        application/vnd.docker.distribution.manifest.v2+json";

/// What goes into `Authorization`.
#[derive(Clone, Debug)]
enum Pass {
    Token(String),
    Password,
}

/// What a registry wants.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

fn challenge(headers: &[String], password: bool) -> Option<Challenge> {
    let all = headers.iter().filter_map(|text| http_auth::parse_challenges(text).ok()).flatten();
    all.into_iter().find_map(|challenge| {
        let parameter = |wanted: &str| {
            let found = challenge.params.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
            found.map(|(_, value)| value.to_unescaped())
        };
        match challenge.scheme.to_ascii_lowercase().as_str() {
            "basic" if password => Some(Challenge::Basic),
            "bearer" => Some(Challenge::Bearer { realm: parameter("realm")?, service: parameter("service") }),
            _ => None,
        }
    })
}

pub(super) struct Http<'a> {
    client: Client,
    base: String,
    plain: bool,
    access: &'a Access,
    repository: &'a str,
    pass: Mutex<Option<Pass>>,
}

impl<'a> Http<'a> {
    pub(super) fn new(remote: &'a Remote, access: &'a Access) -> Result<Self, Problem> {
        let registry = remote.registry();
        let plain = access.plain_http || remote.is_here();
        let base = format!("{}://{registry}/v2/{}", if plain { "http" } else { "https" }, remote.repository());
        let client = Client::builder()
            .connect_timeout(CONNECT)
            .read_timeout(READ)
            .user_agent(concat!("emberbox/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::custom(follow))
            .build()
            .map_err(|error| Problem::client(&error))?;
        Ok(Self { client, base, plain, access, repository: remote.repository(), pass: Mutex::new(None) })
    }

    /// An index or a manifest, by tag or digest.
    pub(super) async fn manifest(&self, reference: &str) -> Result<Vec<u8>, Problem> {
        let url = format!("{}/manifests/{reference}", self.base);
        self.document(self.client.get(&url).header(ACCEPT, ACCEPTED)).await
    }

    /// At most `count` tags of the repository, as JSON.
    pub(super) async fn tags(&self, count: usize) -> Result<Vec<u8>, Problem> {
        let url = format!("{}/tags/list", self.base);
        self.document(self.client.get(&url).query(&[("n", count)])).await
    }

    /// A configuration or a layer, as it comes.
    pub(super) async fn blob(&self, digest: &str) -> Result<Response, Problem> {
        let url = format!("{}/blobs/{digest}", self.base);
        let asked = self.ask(self.client.get(&url));
        tokio::time::timeout(DOCUMENT, asked).await.unwrap_or_else(|_| Err(Problem::slow(DOCUMENT)))
    }

    async fn document(&self, request: RequestBuilder) -> Result<Vec<u8>, Problem> {
        let asked = async { bounded(self.ask(request).await?, blob::DOCUMENT).await };
        tokio::time::timeout(DOCUMENT, asked).await.unwrap_or_else(|_| Err(Problem::slow(DOCUMENT)))
    }

    /// Asks, and once more with credentials if the registry wants them.
    async fn ask(&self, request: RequestBuilder) -> Result<Response, Problem> {
        let before = self.pass.lock().await.clone();
        let again = request.try_clone();
        let first = self.send(request, before.as_ref()).await?;
        // What only a redirect led to does not learn the password, nor who else should.
        if first.status() != StatusCode::UNAUTHORIZED || !self.is_own(first.url()) {
            return answer(first).await;
        }
        let challenges: Vec<String> = (first.headers().get_all(WWW_AUTHENTICATE).iter())
            .filter_map(|value| value.to_str().ok().map(str::to_owned))
            .collect();
        // A request without a body can always be made again.
        let Some((pass, again)) = self.authenticate(&challenges).await?.zip(again) else { return answer(first).await };
        *self.pass.lock().await = Some(pass.clone());
        answer(self.send(again, Some(&pass)).await?).await
    }

    /// Whether it is the registry itself.
    fn is_own(&self, url: &Url) -> bool {
        Url::parse(&self.base).is_ok_and(|base| base.origin() == url.origin())
    }

    async fn send(&self, request: RequestBuilder, pass: Option<&Pass>) -> Result<Response, Problem> {
        // What follows a redirect to another host goes without: reqwest removes it.
        let request = match (pass, &self.access.credentials) {
            (Some(Pass::Token(token)), _) => request.header(AUTHORIZATION, format!("Bearer {token}")),
            (Some(Pass::Password), Some(login)) => request.basic_auth(&login.username, Some(&login.password)),
            _ => request,
        };
        request.send().await.map_err(|error| Problem::transport(&error))
    }

    /// What the first challenge that we can meet gives; none if there is none.
    async fn authenticate(&self, challenges: &[String]) -> Result<Option<Pass>, Problem> {
        match challenge(challenges, self.access.credentials.is_some()) {
            None => Ok(None),
            Some(Challenge::Basic) => Ok(Some(Pass::Password)),
            Some(Challenge::Bearer { realm, service }) => Ok(Some(Pass::Token(self.token(&realm, service).await?))),
        }
    }

    async fn token(&self, realm: &str, service: Option<String>) -> Result<String, Problem> {
        let url: Url = realm.parse().map_err(|_| Problem::other(format!("its realm {realm:?} is no URL")))?;
        // Where it sends our password. One that is spoken to by plain HTTP may send it to itself and to this machine.
        let host = url.host_str().unwrap_or_default().to_owned();
        let own = self.base.split('/').nth(2).is_some_and(|own| own.rsplit_once(':').map_or(own, |(h, _)| h) == host);
        if url.scheme() != "https" && !(self.plain && url.scheme() == "http" && (own || is_loopback(&host))) {
            return Err(Problem::other(format!("it wants a token of {realm:?}, which is no HTTPS")));
        }
        let mut request = self.client.get(url).query(&[("scope", format!("repository:{}:pull", self.repository))]);
        if let Some(service) = service {
            request = request.query(&[("service", service)]);
        }
        if let Some(login) = &self.access.credentials {
            request = request.basic_auth(&login.username, Some(&login.password));
        }
        let response = request.send().await.map_err(|error| Problem::transport(&error))?;
        if !response.status().is_success() {
            return match response.status().as_u16() {
                400 | 401 | 403 => Err(Problem::denied()),
                status => Err(Problem::other(format!("for a token, {host} answers {status}"))),
            };
        }
        let answer: serde_json::Value = serde_json::from_slice(&bounded(response, SMALL).await?).unwrap_or_default();
        let token = ["token", "access_token"].iter().find_map(|name| answer.get(name)?.as_str());
        let plain = |token: &&str| token.bytes().all(|byte| byte.is_ascii_graphic());
        token.filter(plain).map(str::to_owned).ok_or_else(|| Problem::other(format!("{host} gives no token")))
    }
}

fn follow(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let Some(from) = attempt.previous().last() else { return attempt.stop() };
    if attempt.previous().len() > REDIRECTS {
        return attempt.error("it redirects too often");
    }
    match may_lead(from, attempt.url()) {
        true => attempt.follow(),
        false => attempt.error("it redirects to what is no HTTPS"),
    }
}

/// Redirects lead to HTTPS; from plain HTTP also to plain HTTP of the same host or of this machine.
fn may_lead(from: &Url, to: &Url) -> bool {
    match (from.scheme(), to.scheme()) {
        (_, "https") => true,
        ("http", "http") => to.host_str() == from.host_str() || to.host_str().is_some_and(is_loopback),
        _ => false,
    }
}

pub(super) fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A good answer, or what the registry says of it.
async fn answer(response: Response) -> Result<Response, Problem> {
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status();
    let body = bounded(response, SMALL).await.unwrap_or_default();
    Err(Problem::refused(status, &body))
}

async fn bounded(response: Response, limit: u64) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    let mut pieces = response.bytes_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| Problem::transport(&error))?;
        if (bytes.len() + piece.len()) as u64 > limit {
            return Err(Problem::TooLarge(limit));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_redirect_leads_out_of_https() {
        let may = |from: &str, to: &str| may_lead(&from.parse().unwrap(), &to.parse().unwrap());
        assert!(may("https://a/x", "https://cdn.b/y") && may("http://127.0.0.1:5000/x", "https://b/y"));
        assert!(may("http://10.0.0.1:5000/x", "http://10.0.0.1:5001/y") && may("http://a/x", "http://127.0.0.1:1/y"));
        assert!(!may("https://a/x", "http://a/x") && !may("https://a/x", "http://127.0.0.1/x"));
        assert!(!may("http://127.0.0.1:5000/x", "http://169.254.169.254/latest") && !may("https://a/", "ftp://a/"));
    }

    #[test]
    fn only_the_registry_itself_may_ask_for_the_password() {
        let remote = Remote::parse("registry.example.org:444/a").unwrap();
        let access = Access::default();
        let http = Http::new(&remote, &access).unwrap_or_else(|_| panic!("no client"));
        let own = |url: &str| http.is_own(&url.parse().unwrap());
        assert!(own("https://registry.example.org:444/v2/a/blobs/x"));
        for url in
            ["https://registry.example.org/v2/a", "https://cdn.example.org:444/a", "http://registry.example.org:444/"]
        {
            assert!(!own(url), "{url}");
        }
    }

    #[test]
    fn challenges_are_those_of_docker_and_oci() {
        let of = |text: &str, password| challenge(&[text.to_owned()], password);
        let bearer = r#"Bearer realm="https://auth.example.org/token",service="registry",scope="x""#;
        let expected =
            Challenge::Bearer { realm: "https://auth.example.org/token".into(), service: Some("registry".into()) };
        assert_eq!(of(bearer, false), Some(expected));
        assert_eq!(of("Basic realm=\"r\"", true), Some(Challenge::Basic));
        for nothing in ["Basic realm=\"r\"", "Bearer service=\"s\"", "Digest realm=\"r\"", "=", ""] {
            assert_eq!(of(nothing, false), None, "{nothing}");
        }
    }
}
