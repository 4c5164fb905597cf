//! A manager's side of the fleet: which functions are its own, and the claims on the workers.
//!
//! ```text
//!  view ──► Manager::set_partition
//!       └─► one task for each live worker: RemoteWorker::watch(claim of this view) ──► Manager::claimed, adopted, idle, …
//! ```

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use domain::{
    PackageChanges, RetireReason, SandboxId, SandboxState, SlotEvents, Worker, WorkerEvents, WorkerId, WorkerReport,
};
use membership::{Member, MemberState, Role, View};
use rpc::{Channels, Claim, RemoteWorker};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use worker_manager::{Manager, Partition};

use super::super::tasks::Tasks;

/// Follows the views for one manager.
pub struct Workers {
    me: Arc<str>,
    manager: Manager,
    channels: Channels,
    tasks: Tasks,
    watched: BTreeMap<WorkerId, Watched>,
}

struct Watched {
    address: String,
    /// Of its joining: a worker that came again is another one.
    joined: u64,
    remote: RemoteWorker,
    task: JoinHandle<()>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Workers {
    /// For the manager with this id.
    pub fn new(me: Arc<str>, manager: Manager, channels: Channels, tasks: Tasks) -> Self {
        Self { me, manager, channels, tasks, watched: BTreeMap::new() }
    }

    /// Runs as long as there are views.
    pub async fn run(mut self, mut views: watch::Receiver<View>) {
        let mut suspects = self.manager.suspects();
        let mut view = views.borrow_and_update().clone();
        self.follow(&view);
        loop {
            tokio::select! {
                // A new view claims all workers anew, suspects among them.
                biased;
                changed = views.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    view = views.borrow_and_update().clone();
                    self.follow(&view);
                }
                suspect = suspects.recv() => match suspect {
                    Ok(worker) => self.claim_anew(&worker, &view),
                    Err(broadcast::error::RecvError::Lagged(_)) => self.follow(&view),
                    Err(broadcast::error::RecvError::Closed) => return,
                },
            }
        }
    }

    fn follow(&mut self, view: &View) {
        let workers: BTreeMap<WorkerId, &Member> =
            view.live(Role::Worker).map(|member| (WorkerId(member.id.as_str().into()), member)).collect();
        let claim = self.claim(view);
        let partition = Partition { epoch: claim.epoch, managers: claim.managers.clone(), me: Arc::clone(&self.me) };
        // Before any claim of it can be answered.
        let ids: HashSet<WorkerId> = workers.keys().cloned().collect();
        self.manager.set_partition(partition, &ids);
        let draining = |member: &&&Member| member.state == MemberState::Draining;
        let draining = workers.values().filter(draining).map(|member| WorkerId(member.id.as_str().into()));
        self.manager.drain_workers(draining.collect());
        self.watched.retain(|id, watched| {
            workers.get(id).is_some_and(|member| member.address == watched.address && member.epoch == watched.joined)
        });
        for (id, member) in workers {
            let remote = match self.watched.remove(&id) {
                Some(watched) => watched.remote.clone(),
                None => {
                    let peer = rpc::Member::new(rpc::Role::Worker, member.id.as_str());
                    RemoteWorker::new(id.clone(), self.channels.channel(&member.address, &peer), Arc::clone(&self.me))
                }
            };
            self.watch(id, member, remote, claim.clone());
        }
    }

    /// Nothing of it is leased until its answer.
    fn claim_anew(&mut self, worker: &WorkerId, view: &View) {
        let Some(watched) = self.watched.remove(worker) else { return };
        let member = view.live(Role::Worker).find(|member| member.id.as_str() == &*worker.0);
        let Some(member) = member else { return };
        self.watch(worker.clone(), member, watched.remote.clone(), self.claim(view));
    }

    fn claim(&self, view: &View) -> Claim {
        let managers = view.active(Role::WorkerManager).map(|member| member.id.as_str().into()).collect();
        Claim { manager: Arc::clone(&self.me), epoch: view.epoch(), managers }
    }

    fn watch(&mut self, id: WorkerId, member: &Member, remote: RemoteWorker, claim: Claim) {
        let epoch = claim.epoch;
        let worker: Arc<dyn Worker> = Arc::new(remote.at_epoch(epoch));
        let told = Arc::new(Told { manager: self.manager.clone(), worker, epoch });
        let watching = remote.clone();
        let task = self.tasks.spawn("watch a worker", async move { watching.watch(claim, told).await });
        let (address, joined) = (member.address.clone(), member.epoch);
        self.watched.insert(id, Watched { address, joined, remote, task });
    }
}

/// What a worker tells of one claim, for the manager.
struct Told {
    manager: Manager,
    worker: Arc<dyn Worker>,
    epoch: u64,
}

impl SlotEvents for Told {
    fn answered(&self, sandbox: SandboxId) {
        self.manager.answered(sandbox);
    }

    fn idle(&self, sandbox: SandboxId) {
        self.manager.idle(sandbox);
    }

    fn dead(&self, sandbox: SandboxId, reason: RetireReason) {
        self.manager.dead(sandbox, reason);
    }
}

impl WorkerEvents for Told {
    fn claimed(&self, _: &WorkerId, sandboxes: Vec<SandboxState>) {
        self.manager.claimed(Arc::clone(&self.worker), self.epoch, sandboxes);
    }

    fn adopted(&self, _: &WorkerId, sandbox: SandboxState) {
        self.manager.adopted(&self.worker, sandbox);
    }

    fn reported(&self, report: WorkerReport, packages: PackageChanges) {
        self.manager.reported(report, &packages);
    }

    fn lost(&self, worker: &WorkerId) {
        self.manager.lost(worker);
    }
}
