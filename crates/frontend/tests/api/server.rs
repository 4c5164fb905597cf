//! Listening, TLS, slow clients, metrics and the orderly end.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use frontend::{BindError, Config, Limits, Listener, TlsFiles};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::{PATIENCE, connect, head, reply, send};
use crate::fakes::{config, start, start_with};

#[tokio::test]
async fn refuses_to_be_open_to_everyone() {
    let open = Config { listen: "0.0.0.0:0".parse().unwrap(), ..config() };
    let error = Listener::bind(open).await.err().unwrap();
    assert!(matches!(error, BindError::OpenWithoutCredentials(_)));
    assert!(error.to_string().contains("[[credentials]]"), "{error}");
}

#[tokio::test]
async fn says_which_address_is_taken() {
    let server = start().await;
    let taken = Config { listen: server.address, ..config() };
    let error = Listener::bind(taken).await.err().unwrap();
    assert!(error.to_string().contains(&server.address.to_string()), "{error}");
}

fn tls_file(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/api/tls")).join(name)
}

#[tokio::test]
async fn speaks_http2_over_tls() {
    let tls = TlsFiles { certificate: tls_file("cert.pem"), private_key: tls_file("key.pem") };
    let server = start_with(Config { tls: Some(tls), ..config() }).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(tls_file("cert.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let name = ServerName::try_from("localhost").unwrap();
    let stream = connector.connect(name, connect(server.address).await).await.unwrap();
    let (mut requests, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = |method: &str, path: &str| {
        let uri = format!("https://localhost:{}{path}", server.address.port());
        http::Request::builder().method(method).uri(uri).body(Full::new(Bytes::from_static(b"[2]"))).unwrap()
    };
    let path = "/2015-03-31/functions/echo/invocations";
    let answer = requests.send_request(request("POST", path)).await.unwrap();
    assert_eq!((answer.status(), answer.version()), (http::StatusCode::OK, http::Version::HTTP_2));
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "[2]");
    let answer = requests.send_request(request("GET", "/2015-03-31/functions/f")).await.unwrap();
    let url = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(
        url.starts_with(format!("https://localhost:{}/_emberbox/code/", server.address.port()).as_bytes()),
        "{url:?}"
    );
}

#[tokio::test]
async fn says_what_is_wrong_with_tls_files() {
    let bind = async |certificate: PathBuf, private_key: PathBuf| {
        let config = Config { tls: Some(TlsFiles { certificate, private_key }), ..config() };
        Listener::bind(config).await.err().unwrap().to_string()
    };
    assert!(bind(tls_file("nothing.pem"), tls_file("key.pem")).await.contains("nothing.pem"));
    assert!(bind(tls_file("README.md"), tls_file("key.pem")).await.contains("no PEM certificate in"));
    assert!(bind(tls_file("cert.pem"), tls_file("cert.pem")).await.contains("no PEM private key in"));
}

#[tokio::test]
async fn requests_in_flight_finish_before_the_end() {
    let mut server = start().await;
    let mut busy = connect(server.address).await;
    busy.write_all(&head(server.address, "POST", "/2015-03-31/functions/slow/invocations", &[], 0)).await.unwrap();
    let mut idle = connect(server.address).await;
    idle.write_all(&head(server.address, "GET", "/readyz", &[], 0)).await.unwrap();
    assert_eq!(reply(&mut idle).await.unwrap().status, 200);
    while server.state.invoked.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    server.stop();
    // The idle connection is closed at once, and no new one is taken.
    assert_eq!(tokio::time::timeout(PATIENCE, idle.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
    assert!(!server.task.is_finished());
    server.state.proceed.notify_one();
    assert_eq!(reply(&mut busy).await.unwrap().text(), "{}");
    tokio::time::timeout(PATIENCE, &mut server.task).await.unwrap().unwrap();
    assert_eq!(server.state.finished.load(Ordering::SeqCst), 1);
    assert!(tokio::net::TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn a_load_balancer_has_time_to_notice() {
    let limits = Limits { drain: Duration::from_millis(300), ..Limits::default() };
    let mut server = start_with(Config { limits, ..config() }).await;
    let address = server.address;
    let status = async |path| {
        let mut stream = connect(address).await;
        stream.write_all(&head(address, "GET", path, &[], 0)).await.unwrap();
        reply(&mut stream).await.unwrap().status
    };
    assert_eq!(status("/readyz").await, 200);
    server.stop();
    while status("/readyz").await == 200 {}
    // New connections are taken, and work is done, meanwhile.
    assert_eq!((status("/readyz").await, status("/healthz").await), (503, 200));
    assert_eq!(status("/2015-03-31/functions/f").await, 200);
    tokio::time::timeout(PATIENCE, &mut server.task).await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

/// A proxy that does not ask `/readyz` tries another server only where it gets no connection.
#[tokio::test]
async fn who_connects_before_the_end_is_answered() {
    let limits = Limits { drain: Duration::from_secs(1), ..Limits::default() };
    let mut server = start_with(Config { limits, ..config() }).await;
    let address = server.address;
    let mut kept = connect(address).await;
    kept.write_all(&head(address, "GET", "/healthz", &[], 0)).await.unwrap();
    assert_eq!(reply(&mut kept).await.unwrap().status, 200);
    server.stop();
    let status = async |path| {
        let mut stream = connect(address).await;
        stream.write_all(&head(address, "GET", path, &[], 0)).await.unwrap();
        reply(&mut stream).await.unwrap().status
    };
    while status("/readyz").await == 200 {}
    // An answer ends its connection: nobody sends another request into the end.
    kept.write_all(&head(address, "GET", "/healthz", &[], 0)).await.unwrap();
    assert_eq!(reply(&mut kept).await.unwrap().status, 200);
    assert_eq!(tokio::time::timeout(PATIENCE, kept.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
    let mut last = connect(address).await;
    while let Ok(newer) = tokio::net::TcpStream::connect(address).await {
        last = newer;
    }
    last.write_all(&head(address, "GET", "/healthz", &[], 0)).await.unwrap();
    assert_eq!(reply(&mut last).await.unwrap().status, 200);
    tokio::time::timeout(PATIENCE, &mut server.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_end_does_not_wait_for_ever() {
    let limits = Limits { shutdown: Duration::from_millis(50), ..Limits::default() };
    let mut server = start_with(Config { limits, ..config() }).await;
    let mut busy = connect(server.address).await;
    busy.write_all(&head(server.address, "POST", "/2015-03-31/functions/slow/invocations", &[], 0)).await.unwrap();
    while server.state.invoked.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    server.stop();
    tokio::time::timeout(PATIENCE, &mut server.task).await.unwrap().unwrap();
    assert!(reply(&mut busy).await.is_none());
}

#[tokio::test]
async fn clients_that_stall_are_dropped() {
    let limits =
        Limits { idle: Duration::from_millis(100), body_pause: Duration::from_millis(100), ..Limits::default() };
    let server = start_with(Config { limits, ..config() }).await;
    let invoke = head(server.address, "POST", "/2015-03-31/functions/echo/invocations", &[], 10);
    for begun in [&b""[..], b"PRI * HT", b"GET /", b"GET / HTTP/1.1\r\nhost: loc", &invoke] {
        let mut stream = connect(server.address).await;
        stream.write_all(begun).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("closed").unwrap();
        let text = String::from_utf8_lossy(&answer);
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 4"), "{text}");
    }
    // Nor does it help to send the head a byte at a time.
    let mut stream = connect(server.address).await;
    let dribbles = async {
        for byte in b"GET / HTTP/1.1\r\nhost: localhost\r\nx: ".iter().chain(std::iter::repeat(&b'x')) {
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, dribbles).await.expect("closed");
    // One that waits for its function does not stall.
    let mut slow = connect(server.address).await;
    slow.write_all(&head(server.address, "POST", "/2015-03-31/functions/slow/invocations", &[], 0)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    server.state.proceed.notify_one();
    assert_eq!(reply(&mut slow).await.unwrap().status, 200);
}

#[tokio::test]
async fn connections_beyond_the_cap_wait() {
    let limits = Limits { connections: 1, ..Limits::default() };
    let server = start_with(Config { limits, ..config() }).await;
    let mut first = connect(server.address).await;
    first.write_all(&head(server.address, "GET", "/healthz", &[], 0)).await.unwrap();
    assert_eq!(reply(&mut first).await.unwrap().status, 200);
    let mut second = connect(server.address).await;
    second.write_all(&head(server.address, "GET", "/healthz", &[], 0)).await.unwrap();
    let waits = tokio::time::timeout(Duration::from_millis(100), second.peek(&mut [0; 1])).await;
    assert!(waits.is_err());
    drop(first);
    assert_eq!(reply(&mut second).await.unwrap().status, 200);
}

#[tokio::test]
async fn what_was_done_is_counted() {
    let server = start().await;
    for function in ["echo", "echo", "fails", "throttled", "missing"] {
        let path = format!("/2015-03-31/functions/{function}/invocations");
        send(server.address, "POST", &path, &[], b"{}").await;
    }
    send(server.address, "GET", "/2018-10-31/layers", &[], b"").await;
    send(server.address, "GET", "/nowhere", &[], b"").await;
    let metrics = send(server.address, "GET", "/metrics", &[], b"").await;
    for line in [
        r#"emberbox_requests_total{operation="Invoke",status="200"} 3"#,
        r#"emberbox_requests_total{operation="Invoke",status="429"} 1"#,
        r#"emberbox_requests_total{operation="Invoke",status="404"} 1"#,
        r#"emberbox_requests_total{operation="ListLayers",status="501"} 1"#,
        r#"emberbox_requests_total{operation="Unknown",status="404"} 1"#,
        r#"emberbox_throttles_total{reason="ReservedFunctionConcurrentInvocationLimitExceeded"} 1"#,
        "emberbox_function_errors_total 1",
        "emberbox_invokes_in_flight 0",
        "emberbox_invoke_warm_seconds_count 3",
    ] {
        assert!(metrics.text().lines().any(|l| l == line), "{line} is not in\n{}", metrics.text());
    }
}

#[tokio::test]
async fn queues_are_asked_by_their_target() {
    let server = start().await;
    let headers = [
        ("X-Amz-Target", "AmazonSQS.ListQueues"),
        ("Authorization", "AWS4-HMAC-SHA256 Credential=123456789012/20260101/eu-west-1/sqs/aws4_request, S=x"),
    ];
    let reply = send(server.address, "POST", "/", &headers, b"{}").await;
    let asked = format!("123456789012 eu-west-1 http://{} AmazonSQS.ListQueues 2", server.address);
    assert_eq!((reply.status, reply.text()), (200, asked.as_str()));
    assert!(reply.header("x-amzn-requestid").is_some());
    let metrics = send(server.address, "GET", "/metrics", &[], b"").await;
    assert!(metrics.text().contains(r#"emberbox_requests_total{operation="ListQueues",status="200"} 1"#));
}
