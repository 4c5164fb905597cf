//! Serves SQS on a port of the system's choice, for trying it with boto3 or the AWS CLI: `cargo run -p sqs --example serve -- FILE`.
//! Prints its endpoint. Signatures are not checked: the account is the
//! access key if that has twelve digits, else 000000000000.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use domain::SystemClock;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sqs::SqsService;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: serve FILE")?;
    let service = SqsService::open(path, Arc::new(SystemClock::default())).await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let service = service.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request| answer(service.clone(), request));
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            if let Err(error) = server.serve_connection(TokioIo::new(stream), answer).await {
                eprintln!("{error}");
            }
        });
    }
}

async fn answer(service: SqsService, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let header =
        |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
    let (target, host, authorization) = (header("x-amz-target"), header("host"), header("authorization"));
    let trace = header("x-amzn-trace-id");
    // AWS4-HMAC-SHA256 Credential=<key>/<date>/<region>/sqs/aws4_request, …
    let mut scope = authorization.split_once("Credential=").map_or("", |(_, scope)| scope).split('/');
    let account = scope.next().filter(|key| key.len() == 12).unwrap_or("000000000000");
    let region = scope.nth(1).unwrap_or("us-east-1");
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let response = service.handle(account, region, &format!("http://{host}"), &target, Some(&trace), body).await;
    Ok(response.map(Full::new))
}
