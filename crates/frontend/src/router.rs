//! Which Worker Manager a request goes to, in a fleet that has several.
//!
//! ```text
//!  view of the fleet ──► Managers ──rendezvous hashing of the function's ARN──► its manager ──assign──► lease
//!                                          ▲                                        │
//!                                          └── wait for the next view ◄── not mine, or no answer
//! ```
//!
//! Frontends and managers learn of a change one after the other. Meanwhile a manager may be asked that is not responsible any
//! more, or that is dead: nothing has run then, so the request waits for the next view, or a moment, and asks again. Who has been
//! asked and is gone from the view before it has answered is not waited for: behind a cut network that would take until its
//! connection is found dead.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use domain::{
    AssignError, AssignRequest, FunctionArn, Lease, SandboxId, VersionKey, WorkerError, WorkerId, WorkerManager,
    rendezvous,
};
use tokio::sync::watch;
use tokio::time::Instant;

/// How long a request looks for its manager: longer than it takes to find a dead one and to take its functions over (3 s).
const PATIENCE: Duration = Duration::from_secs(6);
/// How soon it asks again while the view stays the same.
const AGAIN: Duration = Duration::from_millis(25);

/// The managers that live.
#[derive(Clone, Default)]
pub struct Managers {
    /// Of the view of the fleet.
    pub epoch: u64,
    /// Those that take requests, by their ids.
    pub managers: Vec<(Arc<str>, Arc<dyn WorkerManager>)>,
    /// Those that take no more, and still answer what they were asked.
    pub finishing: Vec<Arc<str>>,
}

impl Managers {
    fn owner(&self, function: &FunctionArn) -> Option<&(Arc<str>, Arc<dyn WorkerManager>)> {
        let ids = self.managers.iter().map(|(id, _)| &**id);
        let owner = rendezvous::owner(ids, &function.text())?;
        self.managers.iter().find(|(id, _)| **id == *owner)
    }

    fn has(&self, manager: &str) -> bool {
        self.managers.iter().map(|(id, _)| id).chain(&self.finishing).any(|id| **id == *manager)
    }
}

/// All managers of a fleet, as one.
#[derive(Clone)]
pub struct Router {
    view: watch::Receiver<Managers>,
}

impl Router {
    /// Follows the views.
    pub fn new(view: watch::Receiver<Managers>) -> Self {
        Self { view }
    }

    fn each(&self, tell: impl Fn(&dyn WorkerManager)) {
        self.view.borrow().managers.iter().for_each(|(_, manager)| tell(manager.as_ref()));
    }

    /// Returns when this manager is out of the fleet.
    async fn gone(&self, manager: &str) {
        if self.view.clone().wait_for(|view| !view.has(manager)).await.is_err() {
            // The sender went with the server: nobody says any more who is there.
            std::future::pending().await
        }
    }
}

#[async_trait]
impl WorkerManager for Router {
    async fn assign(&self, request: AssignRequest) -> Result<Lease, AssignError> {
        let until = Instant::now() + PATIENCE;
        let mut view = self.view.clone();
        loop {
            let owner = view.borrow_and_update().owner(&request.version.arn).cloned();
            let refused = match owner {
                None => {
                    AssignError::NotOwner("none lives; start one with `emberbox serve --roles worker-manager`".into())
                }
                // An assignment that nobody hears of is taken back by its manager.
                Some((id, manager)) => tokio::select! {
                    biased;
                    answer = manager.assign(request.clone()) => match answer {
                        Err(error @ (AssignError::NotOwner(_) | AssignError::Worker(WorkerError::Unreachable { .. }))) => {
                            error
                        }
                        // The manager stops, and will be out of the view.
                        Err(error @ AssignError::Worker(WorkerError::Stopping)) => error,
                        answer => return answer,
                    },
                    () = self.gone(&id) => AssignError::NotOwner(format!("{id}, which was asked, has left the fleet")),
                },
            };
            if Instant::now() + AGAIN > until {
                // Not an error that is worth another sandbox: there is none to be had.
                return Err(AssignError::NotOwner(refused.to_string()));
            }
            if let Ok(Err(_)) = tokio::time::timeout(AGAIN, view.changed()).await {
                // The sender went with the server.
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    fn release(&self, sandbox: SandboxId) {
        // Others do not know it.
        self.each(|manager| manager.release(sandbox));
    }

    fn retire(&self, version: &VersionKey) {
        self.each(|manager| manager.retire(version));
    }

    fn unreachable(&self, worker: &WorkerId) {
        self.each(|manager| manager.unreachable(worker));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use domain::{AccountId, ConcurrencyLimits};

    use super::*;

    enum Kind {
        Serves,
        Dead,
        /// Its network is cut.
        Silent,
        NotOwner,
    }

    struct Fake(Kind, AtomicU32);

    impl Fake {
        fn new(kind: Kind) -> Arc<Self> {
            Arc::new(Self(kind, AtomicU32::new(0)))
        }
    }

    #[async_trait]
    impl WorkerManager for Fake {
        async fn assign(&self, _: AssignRequest) -> Result<Lease, AssignError> {
            self.1.fetch_add(1, Ordering::SeqCst);
            Err(match self.0 {
                Kind::Silent => std::future::pending().await,
                // As good as a lease: an answer.
                Kind::Serves => AssignError::NoCapacity("served".into()),
                Kind::NotOwner => AssignError::NotOwner("m9".into()),
                Kind::Dead => WorkerError::Unreachable {
                    worker: WorkerId("m0".into()),
                    cause: "connection refused".into(),
                    unsent: true,
                }
                .into(),
            })
        }

        fn release(&self, _: SandboxId) {}

        fn retire(&self, _: &VersionKey) {
            self.1.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn view(managers: &[&Arc<Fake>]) -> Managers {
        let managers = managers.iter().enumerate();
        Managers {
            epoch: 1,
            managers: managers.map(|(i, fake)| (format!("m{i}").into(), Arc::clone(fake) as _)).collect(),
            finishing: Vec::new(),
        }
    }

    fn request(name: &str) -> AssignRequest {
        let account = AccountId::local();
        let arn = FunctionArn { region: "us-east-1".into(), account: account.clone(), name: name.into() };
        let version = serde_json::json!({
            "key": name, "account": account, "region": "us-east-1", "name": name, "version": "$LATEST", "arn": arn,
            "runtime": "provided.al2023", "handler": "", "code": { "sha256": "", "size": 0 }, "image_config": {
                "entry_point": null, "command": null, "working_directory": null },
            "layers": [], "memory_mb": 128, "timeout": { "secs": 3, "nanos": 0 }, "ephemeral_mb": 512, "environment": {},
            "logging": { "format": "Text", "application_level": null, "system_level": null, "group": "g" },
            "tracing_active": false,
        });
        let version = Arc::new(serde_json::from_value(version).unwrap());
        AssignRequest { version, limits: ConcurrencyLimits { unreserved: 1, reserved: None } }
    }

    fn served(answer: Result<Lease, AssignError>) -> bool {
        matches!(answer, Err(AssignError::NoCapacity(_)))
    }

    #[tokio::test(start_paused = true)]
    async fn each_function_has_one_manager() {
        let fakes = [Kind::Serves, Kind::Serves, Kind::Serves].map(Fake::new);
        let (_sender, receiver) = watch::channel(view(&fakes.each_ref()));
        let router = Router::new(receiver);
        for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
            let before: Vec<_> = fakes.iter().map(|fake| fake.1.load(Ordering::SeqCst)).collect();
            for _ in 0..5 {
                assert!(served(router.assign(request(name)).await));
            }
            let more = fakes.iter().zip(before).filter(|(fake, before)| fake.1.load(Ordering::SeqCst) == before + 5);
            assert_eq!(more.count(), 1);
        }
        assert!(fakes.iter().all(|fake| fake.1.load(Ordering::SeqCst) > 0), "and each manager has functions");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_finds_the_manager_that_takes_over() {
        for kind in [Kind::Dead, Kind::NotOwner] {
            let (sender, receiver) = watch::channel(view(&[&Fake::new(kind)]));
            let router = Router::new(receiver);
            let waiting = tokio::spawn(async move { router.assign(request("f")).await });
            tokio::time::sleep(Duration::from_secs(3)).await;
            assert!(!waiting.is_finished());
            let began = Instant::now();
            sender.send(view(&[&Fake::new(Kind::Serves)])).unwrap();
            assert!(served(waiting.await.unwrap()));
            assert!(began.elapsed() <= AGAIN);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_gone_is_not_waited_for_and_who_finishes_is() {
        let silent = Fake::new(Kind::Silent);
        let (sender, receiver) = watch::channel(view(&[&silent]));
        let router = Router::new(receiver);
        let waiting = tokio::spawn(async move { router.assign(request("f")).await });
        let mut heir = view(&[&Fake::new(Kind::Serves)]);
        heir.managers[0].0 = "m1".into();
        heir.finishing = vec!["m0".into()];
        tokio::time::sleep(Duration::from_secs(1)).await;
        sender.send_replace(heir.clone());
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished());
        heir.finishing.clear();
        let began = Instant::now();
        sender.send_replace(heir);
        assert!(served(waiting.await.unwrap()));
        assert!(began.elapsed() <= AGAIN && silent.1.load(Ordering::SeqCst) == 1);
    }

    #[tokio::test(start_paused = true)]
    async fn it_does_not_look_for_ever() {
        for managers in [Managers::default(), view(&[&Fake::new(Kind::Dead)])] {
            let (_sender, receiver) = watch::channel(managers);
            let began = Instant::now();
            let answer = Router::new(receiver).assign(request("f")).await;
            assert!(answer.is_err() && !served(answer));
            assert!((PATIENCE - AGAIN..=PATIENCE).contains(&began.elapsed()));
        }
    }

    #[tokio::test]
    async fn everybody_hears_of_a_version_that_is_replaced() {
        let fakes = [Kind::Serves, Kind::Serves].map(Fake::new);
        let (_sender, receiver) = watch::channel(view(&fakes.each_ref()));
        Router::new(receiver).retire(&VersionKey("v".into()));
        assert!(fakes.iter().all(|fake| fake.1.load(Ordering::SeqCst) == 1));
    }
}
