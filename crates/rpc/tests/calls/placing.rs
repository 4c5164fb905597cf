//! What Placement hears of a worker, and what managers hear of Placement.

use std::sync::Arc;

use async_trait::async_trait;
use domain::{
    InitRequest, Observed, Place, PlaceError, PlaceRequest, Placement, RetireReason, Worker as _, WorkerError,
    WorkerId, WorkerObserver,
};
use parking_lot::Mutex;
use rpc::{PlacementServer, RemotePlacement, Services};

use crate::support::*;

/// What it was told, as a whole.
#[derive(Default)]
struct Ear(Mutex<Known>);

#[derive(Default)]
struct Known {
    last: Option<Observed>,
    wholes: usize,
    /// Number, function, and whether it starts.
    sandboxes: Vec<(u128, String, bool)>,
    packages: Vec<String>,
    lost: usize,
}

impl WorkerObserver for Ear {
    fn observed(&self, observed: Observed) {
        let mut known = self.0.lock();
        known.wholes += usize::from(observed.whole);
        if observed.whole {
            known.sandboxes.clear();
        }
        known.sandboxes.retain(|(n, ..)| !observed.gone.contains(&id(*n)));
        let added =
            observed.added.iter().map(|one| (one.sandbox.0.as_u128(), one.function.name.to_string(), one.starting));
        known.sandboxes.extend(added);
        known.sandboxes.sort();
        known
            .sandboxes
            .iter_mut()
            .filter(|one| observed.initialised.contains(&id(one.0)))
            .for_each(|one| one.2 = false);
        known.packages.retain(|package| !observed.packages.removed.contains(package));
        known.packages.extend(observed.packages.added.iter().cloned());
        known.packages.sort();
        known.packages.dedup();
        known.last = Some(observed);
    }

    fn lost(&self, _: &WorkerId) {
        self.0.lock().lost += 1;
    }
}

#[tokio::test]
async fn placement_hears_of_every_sandbox_whoever_made_it() {
    let f = worker().await;
    f.bench.packages.lock().extend(["old".to_owned()]);
    let ear = Arc::new(Ear::default());
    let (observing, heard) = (f.as_manager("placement-1"), Arc::clone(&ear));
    let watch = tokio::spawn(async move { observing.observe(heard).await });
    until(|| ear.0.lock().packages == ["old"], "the first message").await;
    let init = |manager: &'static str, n, name: &'static str| {
        let remote = f.as_manager(manager).at_epoch(1);
        tokio::spawn(async move { remote.init(InitRequest { sandbox: id(n), version: version(name) }).await })
    };
    let held = f.bench.hold();
    let inits = [init("manager-1", 1, "f"), init("manager-2", 2, "g")];
    let sandboxes = |expected: &[(u128, &str, bool)]| {
        let known = ear.0.lock();
        known.sandboxes.iter().map(|(n, name, starting)| (*n, &**name, *starting)).eq(expected.iter().copied())
    };
    until(|| sandboxes(&[(1, "f", true), (2, "g", true)]), "two that start").await;
    let one = ear.0.lock().last.clone().unwrap();
    assert_eq!((one.report.worker, one.report.slots), (WorkerId("worker-1".into()), 8));
    held.add_permits(2);
    for init in inits {
        init.await.unwrap().unwrap();
    }
    until(|| sandboxes(&[(1, "f", false), (2, "g", false)]), "their Init is over").await;
    until(|| ear.0.lock().packages == ["old", "sha-of-f", "sha-of-g"], "packages").await;
    *f.bench.held.lock() = None;
    *f.bench.error.lock() = Some(WorkerError::Sandbox("no more of them".into()));
    init("manager-1", 3, "f").await.unwrap().unwrap_err();
    *f.bench.error.lock() = None;
    f.bench.tell(|e| e.dead(id(1), RetireReason::Failure));
    until(|| sandboxes(&[(2, "g", false)]), "the end of one").await;
    f.as_manager("manager-2").at_epoch(1).shutdown(id(2), RetireReason::Spindown).await;
    until(|| sandboxes(&[]), "the end of the other").await;
    f.as_manager("manager-2").drain();
    until(|| ear.0.lock().last.as_ref().unwrap().report.draining, "that it drains").await;
    let heard = |known: &Known| (known.wholes, known.lost);
    assert_eq!(heard(&ear.0.lock()), (1, 0));

    // A worker that stops holds its process up for no observer's sake.
    f.server.stop.cancel();
    until(|| ear.0.lock().lost == 1, "its end").await;
    until(|| f.server.serving.is_finished(), "the server's end").await;
    watch.abort();
}

#[derive(Default)]
struct Oracle(Mutex<Vec<PlaceRequest>>);

#[async_trait]
impl Placement for Oracle {
    async fn place(&self, request: PlaceRequest) -> Result<Place, PlaceError> {
        let (memory_mb, worker) = (request.memory_mb, WorkerId(format!("not-{}", request.except[0]).into()));
        self.0.lock().push(request);
        match memory_mb {
            0..1000 => Ok(Place { worker, reason: "there is room".to_owned() }),
            1000..2000 => Err(PlaceError::NoCapacity("no room for so much".to_owned())),
            _ => Err(PlaceError::Unavailable("it has just begun".to_owned())),
        }
    }
}

#[tokio::test]
async fn what_is_asked_and_answered_arrives_as_it_was() {
    let oracle = Arc::new(Oracle::default());
    let services = Services { placement: Some(PlacementServer::new(oracle.clone())), ..Services::default() };
    let server = Running::start(services, None).await;
    let channels = channels();
    let remote = RemotePlacement::new(channel_to(&channels, server.address));
    let mut asked = PlaceRequest::new(id(7), &version("f"), vec![WorkerId("w1".into())]);
    let place = remote.place(asked.clone()).await.unwrap();
    assert_eq!((&*place.worker.0, &*place.reason), ("not-w1", "there is room"));
    assert_eq!(*oracle.0.lock(), [asked.clone()]);
    asked.memory_mb = 1500;
    assert_eq!(remote.place(asked.clone()).await, Err(PlaceError::NoCapacity("no room for so much".to_owned())));
    asked.memory_mb = 2500;
    let error = remote.place(asked.clone()).await.unwrap_err();
    assert!(matches!(&error, PlaceError::Unavailable(why) if why.contains("just begun")), "{error}");
    drop(server);
    let nobody = Running::start(Services::default(), None).await;
    let elsewhere = RemotePlacement::new(channel_to(&channels, nobody.address));
    assert!(matches!(elsewhere.place(asked).await, Err(PlaceError::Unavailable(_))), "a process without the role");
}
