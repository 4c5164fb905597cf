//! How long a connection lives, and who has one.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use domain::{Worker as _, WorkerError, WorkerId};
use futures::FutureExt as _;
use rpc::{Channels, Cordon, Credentials, Member, RemoteStatus, RemoteWorker, Role, Server, Services, StatusServer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::support::*;
use crate::tls::Authority;

/// Behind these credentials.
fn services(bench: &Arc<Bench>) -> Services {
    bench.put(id(1), &version("f"));
    Services { worker: Some(served(bench)), ..Services::default() }
}

fn worker_at(address: SocketAddr, credentials: Credentials) -> RemoteWorker {
    let channels = Channels::new(Some(credentials), clock());
    let channel = channels.channel(&address.to_string(), &Member::new(Role::Worker, "worker-1"));
    RemoteWorker::new(WorkerId("worker-1".into()), channel, "m".into())
}

fn frontend(authority: &Authority) -> Credentials {
    authority.credentials(&[Role::Frontend], "frontend-1")
}

/// The next invocation waits, and nothing of before tells of its beginning.
fn hold(bench: &Bench) -> Arc<tokio::sync::Semaphore> {
    while bench.began.notified().now_or_never().is_some() {}
    bench.hold()
}

/// Of calls that are made again and again, the first that fails.
async fn first_error(worker: &RemoteWorker) -> WorkerError {
    loop {
        if let Err(error) = worker.invoke(id(1), request("1")).await {
            return error;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One end has a certificate that ends soon; an invocation runs then.
async fn outlives(
    frontend: impl Fn(&Authority, Duration) -> Credentials,
    own: impl Fn(&Authority, Duration) -> Credentials,
) {
    let authority = Authority::new();
    let mut life = Duration::from_secs(3);
    loop {
        let bench = Arc::new(Bench::default());
        let server = Running::start(services(&bench), Some(own(&authority, life))).await;
        let worker = worker_at(server.address, frontend(&authority, life));
        let held = hold(&bench);
        let running = tokio::spawn({
            let worker = worker.clone();
            async move { worker.invoke(id(1), request("over the end")).await }
        });
        tokio::select! {
            () = bench.began.notified() => {}
            // A busy host took longer for the handshake than the certificate is good.
            () = tokio::time::sleep(life) => {
                life *= 2;
                continue;
            }
        }
        *bench.held.lock() = None;
        let error = first_error(&worker).await;
        assert!(matches!(&error, WorkerError::Unreachable { .. }), "a new connection is refused: {error}");
        held.add_permits(1);
        assert_eq!(running.await.unwrap().unwrap().payload, "over the end", "what runs may finish");
        return;
    }
}

#[tokio::test]
async fn a_connection_ends_with_its_certificate() {
    let short = |role: Role, id: &'static str| {
        move |authority: &Authority, life| Credentials::new(&authority.tls_for(&[role], id, Some(life))).unwrap()
    };
    let own = |authority: &Authority, _: Duration| authority.credentials(&[Role::Worker], "worker-1");
    outlives(short(Role::Frontend, "frontend-1"), own).await;
    outlives(|authority, _| frontend(authority), short(Role::Worker, "worker-1")).await;
}

/// The way to `to`, which counts the connections.
async fn counted(to: SocketAddr) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counting = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            counting.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    (address, count)
}

#[tokio::test]
async fn a_connection_takes_no_calls_of_one_that_has_left() {
    let authority = Authority::new();
    let bench = Arc::new(Bench::default());
    let (present, members) = watch::channel(Arc::new(HashSet::new()));
    let own = authority.credentials(&[Role::Worker], "worker-1");
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), Some(own)).await.unwrap().with_members(members);
    let server = Running::of(server, services(&bench));
    let (address, connections) = counted(server.address).await;
    let worker = worker_at(address, frontend(&authority));
    worker.invoke(id(1), request("1")).await.unwrap();
    assert_eq!(connections.load(Ordering::SeqCst), 1, "who is not known yet may have joined a moment ago");

    present.send_replace(Arc::new(HashSet::from(["frontend-1".to_owned()])));
    worker.invoke(id(1), request("1")).await.unwrap();
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    let held = hold(&bench);
    let running = tokio::spawn({
        let worker = worker.clone();
        async move { worker.invoke(id(1), request("2")).await }
    });
    bench.began.notified().await;
    *bench.held.lock() = None;
    present.send_replace(Arc::default());
    // The next calls are refused on that connection, and need another one.
    while connections.load(Ordering::SeqCst) < 2 {
        let _ = worker.invoke(id(1), request("3")).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    held.add_permits(1);
    assert_eq!(running.await.unwrap().unwrap().payload, "2", "what runs may finish");
}

#[tokio::test]
async fn who_was_denied_is_cut_off_on_both_sides() {
    let authority = Authority::new();
    let bench = Arc::new(Bench::default());
    let (own, theirs) = (authority.credentials(&[Role::Worker], "worker-1"), frontend(&authority));
    let server = Running::start(services(&bench), Some(own.clone())).await;
    let worker = worker_at(server.address, theirs.clone());
    let other = worker_at(server.address, authority.credentials(&[Role::Frontend], "frontend-2"));
    worker.invoke(id(1), request("1")).await.unwrap();

    let held = hold(&bench);
    let running = tokio::spawn({
        let worker = worker.clone();
        async move { worker.invoke(id(1), request("2")).await }
    });
    bench.began.notified().await;
    *bench.held.lock() = None;
    own.deny(["frontend-1".to_owned()]);
    let error = within(running, "the end of the call").await.unwrap().unwrap_err();
    assert!(matches!(error, WorkerError::Unreachable { .. }), "{error}");
    held.add_permits(1);
    within(worker.invoke(id(1), request("3")), "the refusal").await.unwrap_err();
    within(other.invoke(id(1), request("3")), "the answer").await.unwrap();
    own.deny([]);
    worker.invoke(id(1), request("4")).await.unwrap();

    let held = hold(&bench);
    let running = tokio::spawn({
        let worker = worker.clone();
        async move { worker.invoke(id(1), request("5")).await }
    });
    bench.began.notified().await;
    theirs.deny(["worker-1".to_owned()]);
    within(running, "the end of the call").await.unwrap().unwrap_err();
    held.add_permits(1);
    let error = worker.invoke(id(1), request("6")).await.unwrap_err();
    assert!(error.retryable() && error.to_string().contains("worker worker-1 was denied"), "{error}");
}

#[tokio::test]
async fn handshakes_are_bounded() {
    let authority = Authority::new();
    let bench = Arc::new(Bench::default());
    let own = authority.credentials(&[Role::Worker], "worker-1");
    let server = Running::start(services(&bench), Some(own)).await;
    // Those who say nothing have their places for 5 s, in which a busy host may not get to the question.
    let mut refused = None;
    for _ in 0..20 {
        let mut silent = Vec::new();
        for _ in 0..300 {
            silent.push(TcpStream::connect(server.address).await.unwrap());
        }
        let member = worker_at(server.address, frontend(&authority));
        if let Err(error) = member.invoke(id(1), request("1")).await {
            refused = Some(error);
            break;
        }
    }
    let error = refused.expect("a member meets the bound as well");
    assert!(error.retryable(), "and may go elsewhere: {error}");
    let member = worker_at(server.address, frontend(&authority));
    while member.invoke(id(1), request("1")).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

struct Asked;

#[async_trait]
impl rpc::Report for Asked {
    async fn report(&self, events: bool) -> String {
        format!("{{\"events\":{events}}}")
    }

    fn cordon(&self, _: Cordon) -> Result<(), String> {
        Ok(())
    }
}

#[tokio::test]
async fn the_events_are_for_those_who_take_or_run_them() {
    let authority = Authority::new();
    let services = Services { status: Some(StatusServer::new(Arc::new(Asked))), ..Services::default() };
    let server = Running::start(services, Some(authority.credentials(&[Role::Frontend], "frontend-1"))).await;
    for role in Role::ALL {
        let channels = Channels::new(Some(authority.credentials(&[role], "x")), clock());
        let peer = Member::new(Role::Frontend, "frontend-1");
        let status = RemoteStatus::new(channels.channel(&server.address.to_string(), &peer), Duration::from_secs(60));
        assert_eq!(status.report(false).await.as_deref(), Ok("{\"events\":false}"), "{role}");
        let counted = status.report(true).await;
        if [Role::Frontend, Role::Pollers].contains(&role) {
            assert_eq!(counted.as_deref(), Ok("{\"events\":true}"), "{role}");
        } else {
            assert!(counted.unwrap_err().contains("frontends and pollers only"), "{role}");
        }
    }
}
