//! Claims, fences, and the stream of what becomes of a worker's sandboxes.

use std::sync::Arc;

use domain::{InitRequest, RetireReason, Worker, WorkerError, WorkerEvents};
use rpc::{RemoteWorker, Services};
use tokio::task::JoinHandle;

use crate::support::*;

/// Watches until it is dropped.
struct Watch(Arc<Heard>, JoinHandle<()>);

impl Watch {
    fn start(worker: &RemoteWorker, claim: rpc::Claim) -> Self {
        let (heard, worker) = (Arc::new(Heard::default()), worker.clone());
        let events = Arc::clone(&heard) as Arc<dyn WorkerEvents>;
        Self(heard, tokio::spawn(async move { worker.watch(claim, events).await }))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.1.abort();
    }
}

#[tokio::test]
async fn sandboxes_first_and_then_what_becomes_of_them() {
    let f = worker().await;
    f.bench.put(id(1), &version("f"));
    f.bench.put(id(2), &version("g"));
    let remote = f.remote().at_epoch(1);
    assert!(remote.report().draining, "nothing was heard: no place for sandboxes");
    let watch = Watch::start(&remote, claim("manager-1", 1, &["manager-1"]));
    watch.0.wait_for("claimed [1 f Idle, 2 g Idle]").await;
    f.bench.tell(|e| e.answered(id(1)));
    f.bench.tell(|e| e.idle(id(1)));
    f.bench.tell(|e| e.dead(id(2), RetireReason::Failure));
    remote.init(InitRequest { sandbox: id(3), version: version("h") }).await.unwrap();
    f.bench.tell(|e| e.idle(id(3)));
    f.bench.tell(|e| e.idle(id(4)));
    f.bench.tell(|e| e.idle(id(1)));
    f.bench.tell(|e| e.dead(id(1), RetireReason::Timeout));
    watch.0.wait_for("dead 1 Timeout").await;
    let expected = [
        "claimed [1 f Idle, 2 g Idle]",
        "answered 1",
        "idle 1",
        "dead 2 Failure",
        "idle 3",
        "idle 1",
        "dead 1 Timeout",
    ];
    assert_eq!(watch.0.all(), expected, "in their order, without sandboxes that nobody knows");
}

#[tokio::test]
async fn reports_come_at_the_start_and_on_a_change() {
    let f = worker().await;
    f.bench.packages.lock().extend(["old".to_owned(), "older".to_owned()]);
    let remote = f.remote().at_epoch(1);
    let watch = Watch::start(&remote, claim("manager-1", 1, &["manager-1"]));
    until(|| !remote.report().draining, "a report").await;
    assert!(remote.has_package("old") && remote.has_package("older") && !remote.has_package("sha-of-f"));
    remote.init(InitRequest { sandbox: id(1), version: version("f") }).await.unwrap();
    until(|| remote.report().slots_used == 1 && remote.has_package("sha-of-f"), "the new sandbox and its package")
        .await;
    assert_eq!((remote.report().memory_mb, remote.report().memory_used_mb, remote.report().slots), (1024, 128, 8));
    // What nobody tells of is in the next heartbeat.
    *f.bench.draining.lock() = true;
    until(|| remote.report().draining, "the heartbeat").await;
    drop(watch);
}

#[tokio::test]
async fn a_takeover_keeps_the_sandboxes_and_fences_the_old_manager() {
    let f = worker().await;
    let (one, two) = (f.as_manager("manager-1").at_epoch(1), f.as_manager("manager-2").at_epoch(2));
    let first = Watch::start(&one, claim("manager-1", 1, &["manager-1"]));
    first.0.wait_for("claimed []").await;
    one.init(InitRequest { sandbox: id(1), version: version("f") }).await.unwrap();
    assert!(one.invoke(id(1), request("1")).await.is_ok());
    // An Init that is under way is taken over as well.
    let held = f.bench.hold();
    let slow = one.clone();
    let slow = tokio::spawn(async move { slow.init(InitRequest { sandbox: id(2), version: version("f") }).await });
    within(f.bench.began.notified(), "the invocation").await;
    within(f.bench.began.notified(), "the Init").await;

    let second = Watch::start(&two, claim("manager-2", 2, &["manager-2"]));
    second.0.wait_for("claimed [1 f Idle]").await;
    held.add_permits(1000);
    assert!(slow.await.unwrap().is_ok());
    second.0.wait_for("adopted 2 Idle").await;
    for sandbox in [1, 2] {
        let refused = one.invoke(id(sandbox), request("1")).await.unwrap_err();
        assert!(matches!(refused, WorkerError::Gone(s) if s == id(sandbox)) && refused.retryable(), "{refused}");
        assert!(two.invoke(id(sandbox), request("1")).await.is_ok());
    }
    let refused = one.init(InitRequest { sandbox: id(3), version: version("f") }).await.unwrap_err();
    assert!(matches!(refused, WorkerError::Gone(_)), "{refused}");
    one.shutdown(id(1), RetireReason::Spindown).await;
    assert_eq!(f.bench.sandboxes().len(), 2, "not its own to shut down any more");
    two.shutdown(id(1), RetireReason::Spindown).await;
    second.0.wait_for("dead 1 Spindown").await;
}

#[tokio::test]
async fn a_new_claim_takes_the_place_of_the_old_one() {
    let f = worker().await;
    f.bench.put(id(1), &version("f"));
    let remote = f.remote();
    let alone = Watch::start(&remote, claim("manager-1", 1, &["manager-1"]));
    alone.0.wait_for("claimed [1 f Idle]").await;
    // Somebody who wins every function joins: nothing is left.
    let others: Vec<String> = (2..200).map(|i| format!("manager-{i}")).collect();
    let all: Vec<&str> = std::iter::once("manager-1").chain(others.iter().map(String::as_str)).collect();
    let arn = version("f").arn.text();
    assert_ne!(domain::rendezvous::owner(all.iter().copied(), &arn), Some("manager-1"));
    drop(alone);
    let among = Watch::start(&remote, claim("manager-1", 2, &all));
    among.0.wait_for("claimed []").await;
    // One that leaves.
    drop(among);
    let leaving = Watch::start(&remote, claim("manager-1", 3, &["manager-2"]));
    leaving.0.wait_for("claimed []").await;
}

#[tokio::test]
async fn a_stream_that_breaks_is_made_again() {
    let mut f = worker().await;
    f.bench.put(id(1), &version("f"));
    let remote = f.remote();
    let watch = Watch::start(&remote, claim("manager-1", 1, &["manager-1"]));
    watch.0.wait_for("claimed [1 f Idle]").await;
    f.server.stop.cancel();
    watch.0.wait_for("lost worker-1").await;
    assert!(remote.report().draining, "no sandbox is placed where nobody is heard");
    within(&mut f.server.serving, "the end of the server").await.unwrap();
    // A moment later it is there again, with the same hub, and one sandbox more.
    f.bench.put(id(2), &version("f"));
    let services = Services { worker: Some(f.hub.clone()), ..rpc::Services::default() };
    let _again = Running::at(f.server.address, services, None).await;
    watch.0.wait_for("claimed [1 f Idle, 2 f Idle]").await;
    f.bench.tell(|e| e.idle(id(2)));
    watch.0.wait_for("idle 2").await;
}

#[tokio::test]
async fn a_manager_that_does_not_read_is_in_nobodys_way() {
    let f = worker().await;
    f.bench.put(id(1), &version("f"));
    // Opens the stream, and takes one message from it.
    let mut raw = rpc::pb::worker_client::WorkerClient::with_origin(f.channel(), rpc::origin());
    let message = rpc::pb::Claim { manager: "slow".into(), epoch: 1, managers: vec!["slow".into()] };
    let mut stream = raw.watch(message).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    let watch = Watch::start(&f.remote(), claim("manager-1", 1, &["manager-1"]));
    watch.0.wait_for("claimed [1 f Idle]").await;
    // More than the windows of HTTP/2 and the queue hold, as fast as the other manager reads.
    for batch in 1..=30 {
        (0..4_000).for_each(|_| f.bench.tell(|e| e.idle(id(1))));
        until(|| watch.0.count() > batch * 4_000, "the manager that reads").await;
    }
    f.bench.tell(|e| e.dead(id(1), RetireReason::Failure));
    watch.0.wait_for("dead 1 Failure").await;
    assert!(!watch.0.all().contains(&"lost worker-1".to_owned()), "a manager that reads loses nothing");
    let ended = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("a stream never ends well"),
                Err(status) => return status,
            }
        }
    };
    assert_eq!(within(ended, "the end of the slow stream").await.code(), tonic::Code::Aborted);
}
