//! A manager's calls, and leases that nobody gets.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use domain::{AssignError, AssignRequest, Step, ThrottleReason, Worker, WorkerError, WorkerManager};
use prost::Message as _;
use rpc::RemoteManager;

use crate::support::*;

async fn world() -> (Fixture, Arc<Desk>, Running) {
    let f = worker().await;
    f.bench.put(id(1), &version("f"));
    let desk = Arc::new(Desk::default());
    *desk.lease.lock() = Some((id(1), Arc::new(f.remote().at_epoch(4))));
    let server = manager(&desk).await;
    (f, desk, server)
}

fn remote(f: &Fixture, server: &Running) -> RemoteManager {
    RemoteManager::new("manager-1".into(), &server.address.to_string(), &f.channels)
}

fn ask() -> AssignRequest {
    AssignRequest { version: version("f"), limits: limits() }
}

#[tokio::test]
async fn a_lease_leads_to_its_worker() {
    let (f, desk, server) = world().await;
    let manager = remote(&f, &server);
    for _ in 0..2 {
        let lease = manager.assign(ask()).await.unwrap();
        assert_eq!((lease.sandbox, lease.cold, lease.worker.id()), (id(1), true, f.bench.id()));
        assert_eq!(lease.timeline.marks[0].step, Step::Assigned);
        let route = lease.worker.route().unwrap();
        assert_eq!((&*route.address, route.epoch), (&*f.server.address.to_string(), 4));
        assert_eq!(lease.worker.invoke(lease.sandbox, request("1")).await.unwrap().payload, "1");
    }
    let asked = desk.asked.lock().clone();
    assert_eq!(asked.len(), 2);
    assert!(asked.iter().all(|a| a.version == version("f") && a.limits == limits()));
    assert!(Arc::ptr_eq(&asked[0].version, &asked[1].version), "the second time by its key");
    assert_eq!(f.channels.open(), 2, "one connection each");

    manager.release(id(1));
    within(desk.changed.notified(), "the release").await;
    assert_eq!(*desk.released.lock(), [id(1)]);
    manager.retire(&version("f").key);
    within(desk.changed.notified(), "the retirement").await;
    assert_eq!(*desk.retired.lock(), [version("f").key.clone()]);
    assert!(manager.assign(ask()).await.is_ok(), "the manager forgot it, and is told again");
}

#[tokio::test]
async fn refusals_arrive_as_they_are() {
    let (f, desk, mut server) = world().await;
    let manager = remote(&f, &server);
    let refusals = || {
        [
            AssignError::Throttled(ThrottleReason::Reserved),
            AssignError::NoCapacity("3 workers are full".into()),
            AssignError::NotOwner("manager-2".into()),
            AssignError::Worker(WorkerError::Image("denied".into())),
        ]
    };
    for (refusal, expected) in refusals().into_iter().zip(refusals()) {
        *desk.refusal.lock() = Some(refusal);
        let got = manager.assign(ask()).await.unwrap_err();
        assert_eq!(format!("{got:?}"), format!("{expected:?}"));
    }
    server.stop.cancel();
    within(&mut server.serving, "the end of the manager").await.unwrap();
    let gone = manager.assign(ask()).await.unwrap_err();
    assert!(matches!(gone, AssignError::NotOwner(_)), "ask another: {gone}");
    let local = Arc::new(Desk::default());
    *local.lease.lock() = Some((id(5), Arc::clone(&f.bench) as Arc<dyn Worker>));
    let server = self::manager(&local).await;
    let error = remote(&f, &server).assign(ask()).await.unwrap_err();
    assert!(error.to_string().contains("worker worker-1 has no address for other processes"), "{error}");
    assert_eq!(*local.released.lock(), [id(5)], "and its lease is not lost");
}

#[tokio::test]
async fn an_assign_that_is_dropped_leaves_no_lease() {
    let (f, desk, server) = world().await;
    let held = Arc::new(tokio::sync::Semaphore::new(0));
    *desk.held.lock() = Some(Arc::clone(&held));
    let manager = remote(&f, &server);
    let asking = tokio::spawn(async move { manager.assign(ask()).await });
    within(desk.began.notified(), "the request").await;
    asking.abort();
    assert!(asking.await.unwrap_err().is_cancelled());
    held.add_permits(1);
    within(desk.changed.notified(), "the release").await;
    assert_eq!(*desk.released.lock(), [id(1)]);
}

/// By hand, with a window of no bytes: the answer is ready and cannot be sent. Then the caller goes away, by a reset or altogether.
#[tokio::test]
async fn a_lease_that_cannot_be_delivered_is_released() {
    for reset in [true, false] {
        let (_f, desk, server) = world().await;
        let tcp = tokio::net::TcpStream::connect(server.address).await.unwrap();
        let (sender, connection) =
            h2::client::Builder::new().initial_window_size(0).handshake::<_, Bytes>(tcp).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut sender = sender.ready().await.unwrap();
        let uri = format!("{}emberbox.v1.WorkerManager/Assign", rpc::origin());
        let request = http::Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
        let (response, mut body) = sender.send_request(request.body(()).unwrap(), false).unwrap();
        let version = version("f");
        let message = rpc::pb::AssignRequest {
            version_key: version.key.to_string(),
            version: serde_json::to_vec(version.as_ref()).unwrap().into(),
            ..Default::default()
        };
        let mut framed = BytesMut::from(&[0u8][..]);
        framed.extend_from_slice(&(message.encoded_len() as u32).to_be_bytes());
        framed.extend_from_slice(&message.encode_to_vec());
        body.send_data(framed.freeze(), true).unwrap();
        let response = within(response, "the head of the answer").await.unwrap();
        assert_eq!((response.status(), desk.asked.lock().len()), (http::StatusCode::OK, 1));
        assert!(desk.released.lock().is_empty());
        if reset {
            body.send_reset(h2::Reason::CANCEL);
        } else {
            connection.abort();
        }
        within(desk.changed.notified(), "the release").await;
        assert_eq!(*desk.released.lock(), [id(1)]);
        assert!(!response.into_body().is_end_stream());
    }
}
