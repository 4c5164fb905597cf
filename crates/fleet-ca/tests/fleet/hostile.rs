//! Clients that send what they should not, too much of it, too slowly or too often.

use std::time::Duration;

use fleet_ca::{MemberKey, Settings, Token, join};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{Fleet, assert_refused, connect, hear, http, options, post, say};

fn request(token: &Token) -> Value {
    let csr = MemberKey::generate().unwrap().csr("w").unwrap();
    json!({ "secret": token.secret, "csr": csr, "id": "w", "roles": ["worker"], "hosts": [] })
}

#[tokio::test]
async fn what_is_no_request_is_refused_and_costs_the_token_nothing() {
    let fleet = Fleet::start().await;
    let other = Fleet::start().await;
    let token = fleet.token("worker", 1).await;
    let good = request(&token);
    let with = |key: &str, value: Value| {
        let mut body = good.clone();
        body[key] = value;
        body.to_string()
    };
    let mut without = good.clone();
    without.as_object_mut().unwrap().remove("csr");
    let bad = [
        (String::new(), "InvalidRequest"),
        ("{".to_owned(), "InvalidRequest"),
        ("[]".to_owned(), "InvalidRequest"),
        (without.to_string(), "InvalidRequest"),
        (with("more", json!(1)), "InvalidRequest"),
        (with("id", json!("../../etc")), "InvalidRequest"),
        (with("roles", json!([])), "InvalidRequest"),
        (with("roles", json!(["join"])), "InvalidRequest"),
        (with("hosts", json!(["*.example.org"])), "InvalidRequest"),
    ];
    assert!(bad.len() < 10, "or the server would not listen any more");
    for (body, code) in &bad {
        assert_refused(&post(fleet.address, "/v1/join", body).await, 400, code);
    }
    // Another server, since this one has heard enough of this address.
    let token = other.token("worker", 1).await;
    let good = request(&token);
    let with = |key: &str, value: Value| {
        let mut body = good.clone();
        body[key] = value;
        body.to_string()
    };
    let hosts: Vec<String> = (0..17).map(|n| format!("10.0.0.{n}")).collect();
    assert_refused(&post(other.address, "/v1/join", &with("hosts", json!(hosts))).await, 400, "InvalidRequest");
    assert_refused(&post(other.address, "/v1/join", &with("csr", json!("no"))).await, 400, "InvalidCsr");
    assert_refused(&post(other.address, "/v1/other", "{}").await, 404, "NotFound");
    let mut stream = connect(other.address, None).await.unwrap();
    let answer = say(&mut stream, b"GET /v1/join HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_refused(&answer, 405, "MethodNotAllowed");
    let mut stream = connect(other.address, None).await.unwrap();
    let answer = say(&mut stream, b"\x16\x03\x01 no HTTP\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 ") || answer.is_empty(), "{answer}");
    let answer = post(other.address, "/v1/join", &good.to_string()).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "its one use was still there: {answer}");
    other.stop().await;
    fleet.stop().await;
}

#[tokio::test]
async fn what_is_too_large_is_not_read() {
    let fleet = Fleet::start().await;
    let mut stream = connect(fleet.address, None).await.unwrap();
    let head = b"POST /v1/join HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000000\r\n\r\n";
    assert_refused(&say(&mut stream, head).await, 413, "TooLarge");
    // Without saying so before.
    let mut stream = connect(fleet.address, None).await.unwrap();
    let head = b"POST /v1/join HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = format!("2000\r\n{}\r\n", " ".repeat(0x2000));
    let body = [head.as_slice(), chunk.as_bytes(), chunk.as_bytes(), b"1\r\n \r\n"].concat();
    assert_refused(&say(&mut stream, &body).await, 413, "TooLarge");
    let mut stream = connect(fleet.address, None).await.unwrap();
    let head = format!("POST /v1/join HTTP/1.1\r\nhost: x\r\nx: {}", "x".repeat(16 << 10));
    let answer = say(&mut stream, head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let token = fleet.token("worker", 1).await;
    join(&token, options("w"), &fleet.member_dir("w")).await.unwrap();
    fleet.stop().await;
}

#[tokio::test]
async fn who_is_slow_is_not_waited_for() {
    let settings = Settings { time_limit: Duration::from_secs(1), connections: 3, ..Settings::default() };
    let fleet = Fleet::with(settings).await;
    let token = fleet.token("worker", 1).await;
    // All places are taken: by one that says nothing, one that stops in the head, and one that stops in the body.
    let silent = TcpStream::connect(fleet.address).await.unwrap();
    let mut head = connect(fleet.address, None).await.unwrap();
    head.write_all(b"POST /v1/join HTTP/1.1\r\nhost").await.unwrap();
    head.flush().await.unwrap();
    let mut body = connect(fleet.address, None).await.unwrap();
    let text = http("/v1/join", &request(&token).to_string());
    body.write_all(&text.as_bytes()[..text.len() - 1]).await.unwrap();
    body.flush().await.unwrap();
    // The newcomer waits for a place, and gets it when the first of them has had its time.
    join(&token, options("w"), &fleet.member_dir("w")).await.unwrap();
    let answer = hear(&mut head).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(hear(&mut body).await, "");
    let mut byte = [0];
    silent.readable().await.unwrap();
    assert!(matches!(silent.try_read(&mut byte), Ok(0) | Err(_)), "closed");
    fleet.stop().await;
}

#[tokio::test]
async fn who_fails_too_often_is_not_listened_to() {
    let fleet = Fleet::start().await;
    let token = fleet.token("worker", 1).await;
    let mut wrong = token.clone();
    for _ in 0..10 {
        wrong.secret = fleet_ca::Secret::new();
        let answer = post(fleet.address, "/v1/join", &request(&wrong).to_string()).await;
        assert_refused(&answer, 403, "TokenUnknown");
    }
    let answer = post(fleet.address, "/v1/join", &request(&token).to_string()).await;
    assert_refused(&answer, 429, "TooManyFailures");
    assert!(answer.contains("retry-after: "), "{answer}");
    let error = join(&token, options("w"), &fleet.member_dir("w")).await.unwrap_err().to_string();
    assert!(error.contains("TooManyFailures") && error.contains("try again in"), "{error}");
    fleet.stop().await;
}

#[tokio::test]
async fn a_stop_lets_a_request_finish() {
    let fleet = Fleet::start().await;
    let token = fleet.token("worker", 1).await;
    let mut stream = connect(fleet.address, None).await.unwrap();
    let text = http("/v1/join", &request(&token).to_string());
    let (first, last) = text.split_at(text.len() - 1);
    stream.write_all(first.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let address = fleet.address;
    let stopping = tokio::spawn(fleet.stop());
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    let answer = say(&mut stream, last.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    stopping.await.unwrap();
}
