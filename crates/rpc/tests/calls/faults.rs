//! What a caller learns when the other side dies, stops, or never was there.

use std::time::Duration;

use domain::{InitRequest, Worker, WorkerError};
use rpc::RemoteWorker;
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::support::*;

fn unsent(error: &WorkerError) -> bool {
    match error {
        WorkerError::Unreachable { unsent, .. } => *unsent,
        other => panic!("unreachable, not {other:?}"),
    }
}

#[tokio::test]
async fn nobody_listens() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let channels = channels();
    let remote = RemoteWorker::new(domain::WorkerId("worker-1".into()), channel_to(&channels, closed), "m".into());
    let error = remote.invoke(id(1), request("1")).await.unwrap_err();
    assert!(unsent(&error) && error.retryable(), "{error}");
    assert!(
        error.to_string().contains(&format!("connect to worker worker-1 at {closed}: Connection refused")),
        "{error}"
    );
    assert!(remote.invoking(id(1)).await, "who cannot be asked may be at work");
    let all = (0..100).map(|_| remote.invoke(id(1), request("1")));
    let began = Instant::now();
    let errors = futures::future::join_all(all).await;
    assert!(errors.iter().all(|error| unsent(error.as_ref().unwrap_err())));
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_worker_is_killed_with_an_invocation() {
    let f = worker().await;
    f.bench.put(id(1), &version("f"));
    f.bench.hold();
    let relay = Relay::start(f.server.address).await;
    let remote =
        RemoteWorker::new(domain::WorkerId("worker-1".into()), channel_to(&f.channels, relay.address), "m".into());
    let call = tokio::spawn({
        let remote = remote.clone();
        async move { remote.invoke(id(1), request("1")).await }
    });
    within(f.bench.began.notified(), "the invocation").await;
    // As the kernel does for a process that is killed: its sockets are closed.
    relay.kill();
    let error = within(call, "the error").await.unwrap().unwrap_err();
    assert!(!unsent(&error) && !error.retryable(), "the function may have run: {error}");
    // The next one finds that nobody is there.
    let error = remote.invoke(id(1), request("1")).await.unwrap_err();
    assert!(unsent(&error), "{error}");
}

#[tokio::test]
async fn a_peer_that_never_answers() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let accepting = tokio::spawn(async move { silent.accept().await });
    let channels = channels();
    let remote = RemoteWorker::new(domain::WorkerId("worker-1".into()), channel_to(&channels, address), "m".into());
    let began = Instant::now();
    let error = within(remote.invoke(id(1), request("1")), "the error").await.unwrap_err();
    assert!(!unsent(&error), "somebody has the bytes: {error}");
    assert!(began.elapsed() < rpc::DEAD_AFTER + Duration::from_secs(4), "{:?}", began.elapsed());
    drop(accepting);
}

#[tokio::test]
async fn a_peer_that_falls_silent() {
    let f = worker().await;
    f.bench.put(id(1), &version("f"));
    let relay = Relay::start(f.server.address).await;
    let remote =
        RemoteWorker::new(domain::WorkerId("worker-1".into()), channel_to(&f.channels, relay.address), "m".into());
    assert!(remote.invoke(id(1), request("1")).await.is_ok());
    f.bench.hold();
    let call = tokio::spawn({
        let remote = remote.clone();
        async move { remote.invoke(id(1), request("1")).await }
    });
    within(f.bench.began.notified(), "the first").await;
    within(f.bench.began.notified(), "the invocation").await;
    // As a cable that is pulled: nothing goes either way, and nothing is closed.
    relay.cut();
    let error = within(call, "the error").await.unwrap().unwrap_err();
    assert!(!unsent(&error), "{error}");
}

#[tokio::test]
async fn a_server_that_stops_answers_what_runs_and_refuses_the_rest() {
    let mut f = worker().await;
    f.bench.put(id(1), &version("f"));
    let held = f.bench.hold();
    let remote = f.remote();
    let call = tokio::spawn({
        let remote = remote.clone();
        async move { remote.invoke(id(1), request("1")).await }
    });
    within(f.bench.began.notified(), "the invocation").await;
    f.server.stop.cancel();
    // On the connection that goes away, and on a new one: both are certain.
    for _ in 0..20 {
        let refused = remote.init(InitRequest { sandbox: id(2), version: version("f") });
        match tokio::time::timeout(Duration::from_millis(20), refused).await {
            Ok(result) => assert!(unsent(&result.unwrap_err())),
            // It was taken before the server heard that it is to stop, and is held.
            Err(_) => tokio::task::yield_now().await,
        }
    }
    held.add_permits(1000);
    assert_eq!(within(call, "the answer").await.unwrap().unwrap().payload, "1");
    within(&mut f.server.serving, "the end").await.unwrap();
    assert!(unsent(&remote.invoke(id(1), request("1")).await.unwrap_err()));
}

/// Under load, a server that stops and one that takes its place: no call is in doubt.
#[tokio::test]
async fn a_restart_leaves_no_call_in_doubt() {
    let f = worker().await;
    f.bench.put(id(1), &version("f"));
    let remote = f.remote();
    let stop = tokio_util::sync::CancellationToken::new();
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let (remote, stop) = (remote.clone(), stop.clone());
            tokio::spawn(async move {
                let (mut answered, mut refused) = (0u32, 0u32);
                while !stop.is_cancelled() {
                    match remote.invoke(id(1), request("1")).await {
                        Ok(_) => answered += 1,
                        Err(error) => {
                            assert!(unsent(&error), "{error}");
                            refused += 1;
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                    }
                }
                (answered, refused)
            })
        })
        .collect();
    let mut server = f.server;
    let address = server.address;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(30)).await;
        server.stop.cancel();
        within(&mut server.serving, "the end").await.unwrap();
        let services = rpc::Services { worker: Some(f.hub.clone()), ..rpc::Services::default() };
        server = Running::at(address, services, None).await;
    }
    stop.cancel();
    let mut all = (0, 0);
    for caller in callers {
        let (answered, refused) = within(caller, "a caller").await.unwrap();
        all = (all.0 + answered, all.1 + refused);
    }
    println!("{} answered, {} refused and certain, 0 in doubt", all.0, all.1);
    assert!(all.0 > 0);
}

#[tokio::test]
async fn connections_are_closed_with_the_last_channel() {
    let f = worker().await;
    f.bench.put(id(1), &version("f"));
    f.remote().invoke(id(1), request("1")).await.unwrap();
    assert_eq!(f.channels.open(), 1);
    let mut server = f.server;
    drop(f.channels);
    server.stop.cancel();
    within(&mut server.serving, "a server without connections").await.unwrap();
}

#[tokio::test]
async fn other_machines_are_not_reached_in_plain_text() {
    // RFC 5737: nobody's address.
    let channels = channels();
    let channel = channels.channel("192.0.2.1:7000", &rpc::Member::new(rpc::Role::Worker, "worker-1"));
    let remote = RemoteWorker::new(domain::WorkerId("worker-1".into()), channel, "m".into());
    let error = remote.invoke(id(1), request("1")).await.unwrap_err();
    assert!(unsent(&error) && error.to_string().contains("emberbox fleet join"), "{error}");
    let error = rpc::Server::bind("0.0.0.0:0".parse().unwrap(), None).await.err().unwrap();
    assert!(error.to_string().contains("emberbox fleet join"), "{error}");
}
