//! Every call of a worker, there and back.

use std::time::Duration;

use bytes::Bytes;
use domain::{InitRequest, LogType, RetireReason, SnapshotError, Step, Worker, WorkerError};

use crate::support::*;

#[tokio::test]
async fn every_call_of_a_worker() {
    let f = worker().await;
    let remote = f.remote().at_epoch(1);
    let done = remote.init(InitRequest { sandbox: id(1), version: version("f") }).await.unwrap();
    let marks: Vec<_> = done.timeline.marks.iter().map(|m| (m.step, &*m.note)).collect();
    assert_eq!(marks, [(Step::SandboxCreated, ""), (Step::InitDone, "failed: no handler")]);
    assert_eq!(f.bench.sandboxes()[0].version, version("f"));

    let outcome = remote.invoke(id(1), request("{\"a\":1}")).await.unwrap();
    assert_eq!((&*outcome.payload, outcome.function_error), (&b"{\"a\":1}"[..], None));
    assert_eq!(outcome.log_tail.as_deref(), Some(&b"START\nEND\n"[..]));
    assert!(outcome.timeline.at(Step::Invoked).is_some());
    let quiet = domain::InvokeRequest { log_type: LogType::None, ..request("fail") };
    let outcome = remote.invoke(id(1), quiet).await.unwrap();
    assert_eq!((outcome.function_error, outcome.log_tail), (Some("Unhandled"), None));

    assert!(!remote.invoking(id(1)).await);
    let error = remote.snapshot(version("g")).await.unwrap_err();
    assert!(matches!(error, SnapshotError::Init { kind, message } if kind == "Runtime.ExitError" && message == "g"));
    assert_eq!(remote.forget(&version("f").key).await.unwrap_err(), "the disk is read-only");
    remote.shutdown(id(1), RetireReason::Timeout).await;
    assert_eq!(*f.bench.done.lock(), ["forget f:1", "shutdown Timeout"]);
    assert!(matches!(remote.invoke(id(1), request("")).await, Err(WorkerError::Gone(s)) if s == id(1)));
    remote.drain();
    until(|| *f.bench.draining.lock(), "the worker to drain").await;
    assert_eq!(f.channels.open(), 1, "one connection for all of it");
}

#[tokio::test]
async fn errors_arrive_as_they_are() {
    let f = worker().await;
    f.bench.put(id(1), &version("f"));
    let errors = [
        WorkerError::Busy(id(1)),
        WorkerError::Stopping,
        WorkerError::Package("gone".into()),
        WorkerError::RestoreTimeout("10 s".into()),
    ];
    for error in errors {
        *f.bench.error.lock() = Some(error.clone());
        let got = f.remote().invoke(id(1), request("{}")).await.unwrap_err();
        assert_eq!((format!("{got:?}"), got.retryable()), (format!("{error:?}"), error.retryable()));
        let got = f.remote().init(InitRequest { sandbox: id(2), version: version("f") }).await.unwrap_err();
        assert_eq!(format!("{got:?}"), format!("{error:?}"));
    }
}

#[tokio::test]
async fn payloads_of_six_megabytes() {
    let f = worker().await;
    f.bench.put(id(1), &version("f"));
    // Lambda's limit and its headroom for the request's envelope.
    let payload = Bytes::from(vec![b'x'; 6_291_556]);
    let remote = f.remote();
    let big = (0..4).map(|_| remote.invoke(id(1), request(payload.clone())));
    for outcome in futures::future::join_all(big).await {
        assert_eq!(outcome.unwrap().payload, payload);
    }
    let error = remote.invoke(id(1), request(vec![b'x'; rpc::MAX_PAYLOAD + 1])).await.unwrap_err();
    assert!(!error.retryable() && error.to_string().contains("bytes; 7340032 go between roles"), "{error}");
    // Past the client's own check: the message is refused by what receives it.
    let mut raw = rpc::pb::worker_client::WorkerClient::with_origin(f.channel(), rpc::origin());
    let sandbox = Bytes::copy_from_slice(id(1).0.as_bytes());
    let payload = Bytes::from(vec![b'x'; rpc::MAX_MESSAGE]);
    let request_id = sandbox.clone();
    let status =
        raw.invoke(rpc::pb::InvokeRequest { sandbox, request_id, payload, ..Default::default() }).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::OutOfRange, "{status}");
    // The connection has not suffered.
    assert!(remote.invoke(id(1), request("{}")).await.is_ok());
}

#[tokio::test]
async fn many_calls_at_once_share_one_connection() {
    let f = worker().await;
    f.bench.put(id(1), &version("f"));
    let held = f.bench.hold();
    let remote = f.remote();
    let calls: Vec<_> = (0..1000)
        .map(|i| {
            let remote = remote.clone();
            tokio::spawn(async move { remote.invoke(id(1), request(format!("{i}"))).await })
        })
        .collect();
    held.add_permits(1000);
    for (i, call) in calls.into_iter().enumerate() {
        assert_eq!(within(call, "an answer").await.unwrap().unwrap().payload, format!("{i}"));
    }
    assert_eq!(f.channels.open(), 1);
}

#[tokio::test]
async fn an_init_goes_on_without_its_caller() {
    let f = worker().await;
    let held = f.bench.hold();
    let remote = f.remote();
    let init = tokio::spawn(async move { remote.init(InitRequest { sandbox: id(1), version: version("f") }).await });
    within(f.bench.began.notified(), "the Init to begin").await;
    init.abort();
    assert!(init.await.unwrap_err().is_cancelled());
    held.add_permits(1);
    until(|| f.bench.sandboxes().len() == 1, "the sandbox").await;
}

#[tokio::test]
async fn an_answer_is_waited_for_as_long_as_the_function_may_run() {
    let f = worker().await;
    f.bench.put(id(1), &version("f"));
    let held = f.bench.hold();
    let remote = f.remote();
    let call = tokio::spawn(async move { remote.invoke(id(1), request("1")).await });
    within(f.bench.began.notified(), "the invocation").await;
    // Longer than any limit of a connection: pings go there and back all the time.
    tokio::time::sleep(rpc::DEAD_AFTER + Duration::from_secs(1)).await;
    assert!(!call.is_finished());
    assert!(f.remote().invoking(id(1)).await);
    held.add_permits(1);
    assert_eq!(within(call, "the answer").await.unwrap().unwrap().payload, "1");
}
