//! The role `placement`: one process decides where the sandboxes of all managers go.
//!
//! ```text
//!  view ──► one task for each live worker: RemoteWorker::observe ──► Decider
//!  managers ──PlaceRequest──► the decider of their view: all ask the same one, so that what it has placed is known to who places next
//! ```
//!
//! Of several processes with the role the others observe as well, and stand by. While managers' views differ two may decide;
//! then, as whenever reports lag, the worker has the last word. Without an answer a manager decides itself (`worker_manager`).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::placement::{Decider, Standing, Tally};
use async_trait::async_trait;
use domain::{Clock, Observed, Place, PlaceError, PlaceRequest, Placement, WorkerId, WorkerObserver, rendezvous};
use membership::{Member, MemberId, MemberState, Membership, Role, View};
use parking_lot::Mutex;
use rpc::{Channels, RemotePlacement, RemoteWorker};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::super::tasks::Tasks;

/// Whose rendezvous decides which process decides.
const KEY: &str = "placement";
/// How long one that did not answer is not asked: otherwise each cold start waited for it until the view is without it.
const PAUSE: Duration = Duration::from_secs(1);

/// What this process knows of the workers. Cheap to clone.
#[derive(Clone)]
pub struct Deciding(Arc<Inner>);

struct Inner {
    clock: Arc<dyn Clock>,
    decider: Mutex<Decider>,
}

impl Deciding {
    /// Without workers yet.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner { clock, decider: Mutex::default() }))
    }

    /// What it has and did.
    pub fn tally(&self) -> Tally {
        self.0.decider.lock().tally(self.0.clock.monotonic())
    }

    /// Observes the workers of each view, as long as there are views. `me` is this member.
    pub async fn follow(self, mut views: watch::Receiver<View>, channels: Channels, me: Arc<str>, tasks: Tasks) {
        let mut observed: HashMap<WorkerId, Observing> = HashMap::new();
        loop {
            let view = views.borrow_and_update().clone();
            let workers: HashMap<WorkerId, _> =
                view.live(Role::Worker).map(|member| (WorkerId(member.id.as_str().into()), member)).collect();
            observed.retain(|id, observing| {
                let stays = workers
                    .get(id)
                    .is_some_and(|member| member.address == observing.address && member.epoch == observing.joined);
                if !stays {
                    // Under the lock under which the task looks: what it tells from here on comes to nobody.
                    let mut decider = self.0.decider.lock();
                    observing.over.store(true, Ordering::Relaxed);
                    decider.left(id);
                }
                stays
            });
            for (id, member) in workers {
                let standing = match member.state {
                    MemberState::Draining => Standing::Draining,
                    MemberState::Joining | MemberState::Active => Standing::Open,
                };
                self.0.decider.lock().set_standing(&id, standing);
                observed.entry(id.clone()).or_insert_with(|| {
                    let peer = rpc::Member::new(rpc::Role::Worker, member.id.as_str());
                    let channel = channels.channel(&member.address, &peer);
                    let remote = RemoteWorker::new(id, channel, Arc::clone(&me));
                    let over = Arc::new(AtomicBool::new(false));
                    let observer = Arc::new(Observer { deciding: self.clone(), over: Arc::clone(&over) });
                    let task = tasks.spawn("observe a worker", async move { remote.observe(observer).await });
                    Observing { address: member.address.clone(), joined: member.epoch, over, task }
                });
            }
            if views.changed().await.is_err() {
                return;
            }
        }
    }
}

struct Observing {
    address: String,
    /// Of its joining: a worker that came again is another one.
    joined: u64,
    over: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Drop for Observing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Of one worker, while it is in the view.
struct Observer {
    deciding: Deciding,
    over: Arc<AtomicBool>,
}

impl Observer {
    fn tell(&self, tell: impl FnOnce(&mut Decider)) {
        let mut decider = self.deciding.0.decider.lock();
        if !self.over.load(Ordering::Relaxed) {
            tell(&mut decider);
        }
    }
}

impl WorkerObserver for Observer {
    fn observed(&self, observed: Observed) {
        self.tell(|decider| decider.observed(&observed));
    }

    fn lost(&self, worker: &WorkerId) {
        self.tell(|decider| decider.lost(worker));
    }
}

#[async_trait]
impl Placement for Deciding {
    async fn place(&self, request: PlaceRequest) -> Result<Place, PlaceError> {
        let decided = self.0.decider.lock().place(self.0.clock.monotonic(), &request);
        match decided {
            Ok((worker, reason)) => Ok(Place { worker, reason: reason.to_string() }),
            Err(why) => Err(PlaceError::NoCapacity(why.to_string())),
        }
    }
}

/// The member that decides, in this view.
pub fn who(view: &View) -> Option<&Member> {
    let owner = rendezvous::owner(view.active(Role::Placement).map(|member| member.id.as_str()), KEY)?;
    view.member(&MemberId::new(owner))
}

/// A manager's way to who decides.
pub struct WhoDecides {
    membership: Membership,
    channels: Channels,
    own: Option<Deciding>,
    /// Who did not answer, and until when it is not asked.
    silent: Mutex<Option<(MemberId, Instant)>>,
}

impl WhoDecides {
    /// For the manager in this process; `own` needs no network.
    pub fn new(membership: Membership, channels: Channels, own: Option<Deciding>) -> Self {
        Self { membership, channels, own, silent: Mutex::new(None) }
    }
}

#[async_trait]
impl Placement for WhoDecides {
    async fn place(&self, request: PlaceRequest) -> Result<Place, PlaceError> {
        let view = self.membership.view();
        let Some(member) = who(&view) else {
            return Err(PlaceError::Unavailable("no active member has the role placement".to_owned()));
        };
        let by = |place: Place| Place { reason: format!("{}, by {}", place.reason, member.id), ..place };
        if let Some(own) = self.own.as_ref().filter(|_| member.id == *self.membership.id()) {
            return own.place(request).await.map(by);
        }
        let silent = |(id, until): &(MemberId, Instant)| *id == member.id && Instant::now() < *until;
        if self.silent.lock().as_ref().is_some_and(silent) {
            return Err(PlaceError::Unavailable(format!("{} did not answer a moment ago", member.id)));
        }
        let peer = rpc::Member::new(rpc::Role::Placement, member.id.as_str());
        let remote = RemotePlacement::new(self.channels.channel(&member.address, &peer));
        // Whoever gives up while it waits counts as well.
        let unanswered = Unanswered { silent: &self.silent, member: Some(member.id.clone()) };
        let answer = remote.place(request).await;
        if !matches!(answer, Err(PlaceError::Unavailable(_))) {
            unanswered.answered();
        }
        answer.map(by)
    }
}

/// A question; dropped without an answer, its member is not asked for a while.
struct Unanswered<'a> {
    silent: &'a Mutex<Option<(MemberId, Instant)>>,
    member: Option<MemberId>,
}

impl Unanswered<'_> {
    fn answered(mut self) {
        self.member = None;
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        let Some(member) = self.member.take() else { return };
        let mut silent = self.silent.lock();
        if silent.as_ref().is_none_or(|(_, until)| *until <= Instant::now()) {
            tracing::warn!(%member, "placement does not answer; this manager decides itself meanwhile");
        }
        *silent = Some((member, Instant::now() + PAUSE));
    }
}
