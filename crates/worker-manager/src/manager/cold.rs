//! A cold start: Placement, room, `Init`.

use domain::{Place, PlaceRequest, SandboxState, SlotPhase};
use futures::future::join_all;

use super::*;

/// How often idle sandboxes are given up for one start. Each time others may take the room that was made.
const ROUNDS: usize = 4;
/// How many workers are asked for one start, if one has no room after all or cannot be reached.
const WORKERS: usize = 3;
/// How long Placement may take for an answer. After that the manager decides itself: cold starts do not depend on another process.
const PLACEMENT_LIMIT: Duration = Duration::from_millis(300);

impl Inner {
    /// Runs whether or not the request still waits: a sandbox that starts for nobody serves the next one.
    pub(super) async fn start(
        self: Arc<Self>,
        function: Arc<Function>,
        first: SandboxId,
        version: Arc<FunctionVersion>,
    ) {
        let mut timeline = Timeline::default();
        timeline.note(Step::Assigned, self.now(), "cold");
        let mut id = first;
        let result = self.clone().init(&function, &mut id, Arc::clone(&version), &mut timeline).await;
        let now = self.now();
        let mut actions = Vec::new();
        let mut pool = function.pool.lock();
        match result {
            Ok(worker) => {
                self.fleet.init_over(id);
                // It may have been claimed for a new view meanwhile, and leases of the one before are refused.
                let worker = self.fleet.worker_of(id).unwrap_or(worker);
                if pool.init_done(now, id, Arc::clone(&worker), &mut actions) {
                    if self.draining.lock().contains(worker.id()) {
                        pool.doom(id, &mut actions);
                    }
                } else if pool.is_closed() && self.partition.load().is_some() {
                    // Another manager has the function by now, or this one once more.
                    drop(pool);
                    self.sandboxes.remove(&id);
                    self.fleet.gone(id);
                    return self.adopt(&worker, SandboxState { sandbox: id, version, phase: SlotPhase::Idle }, false);
                } else {
                    actions.push(Action::Shutdown { sandbox: id });
                }
                self.carry_out(&function, actions, &mut timeline);
                drop(pool);
                // Just now: nobody will hear what becomes of it.
                if self.has_left(worker.id()) {
                    self.dead(id);
                }
            }
            Err(error) => {
                tracing::warn!(sandbox = %id, function = %function.arn, %error, "sandbox did not start");
                if self.sandboxes.get(&id).is_some_and(|owner| !Arc::ptr_eq(&owner, &function)) {
                    // The function came back while it started.
                    drop(pool);
                    return self.dead(id);
                }
                self.sandboxes.remove(&id);
                self.fleet.gone(id);
                if let Some(caller) = pool.init_failed(now, id, &mut actions) {
                    // One that does not listen any more is about to take itself out.
                    let _ = caller.send(Err(error));
                }
                self.carry_out(&function, actions, &mut Timeline::default());
            }
        }
    }

    async fn init(
        self: Arc<Self>,
        function: &Arc<Function>,
        id: &mut SandboxId,
        version: Arc<FunctionVersion>,
        timeline: &mut Timeline,
    ) -> Result<Arc<dyn Worker>> {
        let mut except = HashSet::new();
        loop {
            let sandbox = *id;
            let worker = self.place(sandbox, &version, &except, timeline).await?;
            let begun = tokio::select! {
                biased;
                begun = worker.init(domain::InitRequest { sandbox, version: Arc::clone(&version) }) => begun,
                () = self.left(worker.id()) => Err(WorkerError::Unreachable {
                    worker: worker.id().clone(),
                    cause: "it has left the fleet".to_owned(),
                    unsent: false,
                }),
            };
            match begun {
                Ok(done) => {
                    timeline.append(done.timeline);
                    return Ok(worker);
                }
                Err(error) if error.elsewhere() && except.len() + 1 < WORKERS => {
                    tracing::info!(%sandbox, worker = %worker.id(), %error, "trying another worker");
                    if error.retryable() || matches!(error, WorkerError::Full(_)) {
                        self.fleet.displaced(sandbox);
                    } else {
                        *id = self.begin_anew(function, sandbox);
                    }
                    except.insert(worker.id().clone());
                }
                Err(error @ WorkerError::Full(_)) => return Err(AssignError::NoCapacity(error.to_string())),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// An unreachable worker may have begun a sandbox, and may tell of it: no other one is to have a sandbox of the same name.
    fn begin_anew(&self, function: &Arc<Function>, old: SandboxId) -> SandboxId {
        let mut pool = function.pool.lock();
        // One that the pool has given up needs a name of its own all the same, as it may still be handed over.
        let (new, known) = match pool.rename(old) {
            Some(new) => (new, true),
            None => (SandboxId(Uuid::new_v4()), false),
        };
        if !known && self.sandboxes.get(&old).is_some_and(|owner| !Arc::ptr_eq(&owner, function)) {
            // The function came back while it started, and has taken it over: what is booked is its booking.
            self.fleet.announce(new);
            return new;
        }
        self.fleet.renamed(old, new);
        if known {
            self.sandboxes.remove(&old);
            self.sandboxes.insert(new, Arc::clone(function));
        }
        new
    }

    async fn place(
        self: &Arc<Self>,
        sandbox: SandboxId,
        version: &FunctionVersion,
        except: &HashSet<WorkerId>,
        timeline: &mut Timeline,
    ) -> Result<Arc<dyn Worker>> {
        if let Some((worker, reason)) = self.ask_placement(sandbox, version, except).await {
            timeline.note(Step::Placed, self.now(), format!("{}: {reason}", worker.id()));
            return Ok(worker);
        }
        let mut round = 0;
        loop {
            let why = match self.fleet.place(sandbox, version, except) {
                Ok((worker, reason)) => {
                    timeline.note(Step::Placed, self.now(), format!("{}: {reason}", worker.id()));
                    return Ok(worker);
                }
                Err(why) => why,
            };
            round += 1;
            if round > ROUNDS || !why.could_ever_fit() || !self.make_room(version).await {
                return Err(AssignError::NoCapacity(why.to_string()));
            }
        }
    }

    /// What Placement says, if there is one that answers and this manager can go where it says. That there is no room is not its last
    /// word: this manager may know better, and can make some.
    async fn ask_placement(
        &self,
        sandbox: SandboxId,
        version: &FunctionVersion,
        except: &HashSet<WorkerId>,
    ) -> Option<(Arc<dyn Worker>, String)> {
        let placement = self.placement.get()?;
        let request = PlaceRequest::new(sandbox, version, except.iter().cloned().collect());
        let answer = match tokio::time::timeout(PLACEMENT_LIMIT, placement.place(request)).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("placement did not answer within {PLACEMENT_LIMIT:?}")),
        };
        match answer {
            Ok(Place { worker, reason }) => {
                let booked = self.fleet.book(sandbox, version, &worker);
                if booked.is_none() {
                    tracing::debug!(%sandbox, %worker, "placement named a worker that takes nothing from here");
                }
                Some((booked?, reason))
            }
            Err(why) => {
                tracing::debug!(%sandbox, "the manager finds a place itself: {why}");
                None
            }
        }
    }

    /// Gives up the least recently used idle sandboxes whose room `version` needs. `false` if that is not enough.
    async fn make_room(self: &Arc<Self>, version: &FunctionVersion) -> bool {
        let functions: Vec<_> = self.functions.lock().values().cloned().collect();
        let mut idle = Vec::new();
        for function in functions {
            let pool = function.pool.lock();
            idle.extend(pool.idle_entries().map(|(entry, _)| (entry.since, entry, Arc::clone(&function))));
        }
        idle.sort_by_key(|(since, entry, _)| (*since, entry.sandbox));
        let chosen = self.fleet.make_room(version, idle.iter().map(|(_, entry, _)| entry.sandbox));
        let ends = chosen.iter().filter_map(|id| {
            let (.., function) = idle.iter().find(|(_, entry, _)| entry.sandbox == *id)?;
            self.evict(function, *id)
        });
        let ends: Vec<_> = ends.collect();
        join_all(ends).await;
        // One that was taken meanwhile is no loss: the next round looks again.
        !chosen.is_empty()
    }

    /// Gives up one sandbox, if it is still idle. The future ends when nothing is left of it.
    fn evict(self: &Arc<Self>, function: &Arc<Function>, id: SandboxId) -> Option<impl Future<Output = ()> + use<>> {
        let evicted = function.pool.lock().evict(id);
        evicted.then(|| {
            self.sandboxes.remove(&id);
            Arc::clone(self).shut_down(id)
        })
    }
}
