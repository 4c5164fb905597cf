//! A small AWS client: enough to call Lambda's and CloudWatch Logs' APIs at any endpoint, signed or not.

mod target;
mod transport;

use std::time::SystemTime;

use anyhow::{Context, Result, anyhow};
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri};
use indicatif::ProgressBar;
use lambda_api::{Operation, decode_response, encode_request};

pub use target::{Keys, Service, Surroundings, Target};

use transport::Transport;

/// Talks to one endpoint.
pub struct Client {
    target: Target,
    transport: Transport,
}

/// An answer that is an error of the API.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// e.g. `ResourceNotFoundException`.
    pub code: String,
    /// The server's words.
    pub message: String,
}

/// An operation's output with what the API's model does not cover.
pub struct Answered<T> {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// The output.
    pub output: T,
}

impl Client {
    /// For the options of a client command.
    pub fn new(options: &crate::cli::Target) -> Result<Self> {
        Self::to(Surroundings::real().resolve(options)?)
    }

    /// For a known target.
    pub fn to(target: Target) -> Result<Self> {
        Ok(Self { transport: Transport::new()?, target })
    }

    /// With another endpoint for SQS.
    pub fn with_sqs_endpoint(mut self, url: &str) -> Result<Self> {
        self.target.sqs_endpoint = target::parse_endpoint(url)?;
        Ok(self)
    }

    /// The endpoint of Lambda's API, for messages.
    pub fn endpoint(&self) -> &Uri {
        &self.target.endpoint
    }

    /// Calls an operation of Lambda's API.
    pub async fn call<Op: Operation>(&self, input: &Op::Input) -> Result<Op::Output> {
        Ok(self.call_with::<Op>(input, |_| {}).await?.output)
    }

    /// Calls an operation with further headers, and gives those of the answer.
    pub async fn call_with<Op: Operation>(
        &self,
        input: &Op::Input,
        headers: impl FnOnce(&mut HeaderMap),
    ) -> Result<Answered<Op::Output>> {
        let mut request = encode_request::<Op>(input);
        headers(request.headers_mut());
        let response = self.send(Service::Lambda, request, None).await?;
        decoded::<Op>(response)
    }

    /// Calls an operation of a service that speaks JSON; `target` is `<service>.<operation>`.
    pub async fn call_json(
        &self,
        service: Service,
        version: &str,
        target: &str,
        body: &serde_json::Value,
    ) -> Result<serde_json::Value> {
        let request = Request::post("/")
            .header("content-type", format!("application/x-amz-json-{version}"))
            .header("x-amz-target", target)
            .body(Bytes::from(body.to_string()))
            .context("make the request")?;
        let response = self.send(service, request, None).await?;
        if response.body().is_empty() {
            return Ok(serde_json::Value::Null);
        }
        serde_json::from_slice(response.body()).with_context(|| format!("read the answer of {target}"))
    }

    /// Calls an operation with a large input, whose upload is shown.
    pub async fn upload<Op: Operation>(&self, input: &Op::Input, progress: &ProgressBar) -> Result<Op::Output> {
        let request = encode_request::<Op>(input);
        progress.set_length(request.body().len() as u64);
        let response = self.send(Service::Lambda, request, Some(progress)).await?;
        Ok(decoded::<Op>(response)?.output)
    }

    /// Signs and sends a request whose URI is a path and query, and reads the answer; `progress` follows the upload.
    /// An answer of status 300 and more is an [`ApiError`].
    pub async fn send(
        &self,
        service: Service,
        request: Request<Bytes>,
        progress: Option<&ProgressBar>,
    ) -> Result<Response<Bytes>> {
        let base = match service {
            Service::Lambda => &self.target.endpoint,
            Service::Logs => &self.target.logs_endpoint,
            Service::Sqs => &self.target.sqs_endpoint,
        };
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
        parts.uri =
            format!("{}://{}{path}", base.scheme_str().unwrap_or("http"), base.authority().map_or("", |a| a.as_str()))
                .parse()
                .context("make the request's URL")?;
        let mut request = Request::from_parts(parts, body);
        if let Some(keys) = &self.target.keys {
            self.sign(service, keys, &mut request)?;
        }
        let response = self.transport.send(request, progress).await.map_err(|error| self.explain(base, error))?;
        if response.status().as_u16() >= 300 { Err(api_error(&response).into()) } else { Ok(response) }
    }

    fn sign(&self, service: Service, keys: &Keys, request: &mut Request<Bytes>) -> Result<()> {
        let identity = Credentials::new(&keys.id, &keys.secret, keys.token.clone(), None, "emberbox").into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.target.region)
            .name(service.name())
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .context("sign the request")?
            .into();
        let uri = request.uri().to_string();
        let headers: Vec<(&str, &str)> =
            request.headers().iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?))).collect();
        let signable = SignableRequest::new(
            request.method().as_str(),
            &uri,
            headers.into_iter(),
            SignableBody::Bytes(request.body()),
        )
        .context("sign the request")?;
        let (instructions, _) = sign(signable, &params).context("sign the request")?.into_parts();
        instructions.apply_to_request_http1x(request);
        Ok(())
    }

    fn explain(&self, base: &Uri, error: anyhow::Error) -> anyhow::Error {
        let refused = error.chain().any(|cause| {
            cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
        });
        if refused {
            return anyhow!(
                "nothing listens at {base}: is `emberbox serve` running? (`--endpoint` or AWS_ENDPOINT_URL_LAMBDA names another address)"
            );
        }
        let text = format!("{error:#}");
        let hint = if text.contains("CaUsedAsEndEntity") {
            "\nThe server shows a CA's certificate; it needs one that is not (`openssl req -x509 … -addext basicConstraints=critical,CA:FALSE`)."
        } else if text.contains("UnknownIssuer") {
            "\nIf the certificate is your own, name its PEM file in AWS_CA_BUNDLE."
        } else {
            ""
        };
        anyhow!("call {base}: {text}{hint}")
    }
}

fn decoded<Op: Operation>(response: Response<Bytes>) -> Result<Answered<Op::Output>> {
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let output = decode_response::<Op>(response).with_context(|| format!("read the answer of {}", Op::ID))?;
    Ok(Answered { status, headers, output })
}

/// The error in an answer, in either of the forms of Lambda (header) and CloudWatch Logs (`__type`).
fn api_error(response: &Response<Bytes>) -> ApiError {
    let json: serde_json::Value = serde_json::from_slice(response.body()).unwrap_or_default();
    let text = |keys: &[&str]| keys.iter().find_map(|key| Some(json.get(key)?.as_str()?.to_owned()));
    let header = response.headers().get("x-amzn-errortype").and_then(|v| v.to_str().ok()).map(str::to_owned);
    let code = header.or_else(|| text(&["__type", "code"])).unwrap_or_else(|| format!("HTTP {}", response.status()));
    // `aws.protocols#Name:http://…` → `Name`
    let code = code.split(':').next().unwrap_or_default().rsplit('#').next().unwrap_or_default().to_owned();
    let message = text(&["Message", "message"])
        .unwrap_or_else(|| String::from_utf8_lossy(&response.body()[..response.body().len().min(500)]).into_owned());
    ApiError { status: response.status().as_u16(), code, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_both_protocols() {
        let answer = |header: Option<&str>, body: &str| {
            let mut response = Response::builder().status(404);
            if let Some(header) = header {
                response = response.header("x-amzn-ErrorType", header);
            }
            api_error(&response.body(Bytes::copy_from_slice(body.as_bytes())).unwrap()).to_string()
        };
        assert_eq!(
            answer(Some("ResourceNotFoundException:http://x"), r#"{"Type":"User","Message":"Function not found: f"}"#),
            "ResourceNotFoundException: Function not found: f"
        );
        assert_eq!(answer(None, r#"{"__type":"com.aws#LogsError","message":"no"}"#), "LogsError: no");
        assert_eq!(answer(None, "<html>"), "HTTP 404 Not Found: <html>");
    }
}
