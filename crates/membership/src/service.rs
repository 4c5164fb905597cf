//! A member's task, and the handle to it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use uuid::Uuid;

use crate::keeper::{Action, Call, Event, Keeper, Standing};
use crate::member::{Member, MemberId, MemberState};
use crate::registry::{Lease, Registry, RegistryError};
use crate::view::View;

/// How a process keeps its place in the fleet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// After which time without a sign of life the member counts as dead: within one and a half of it, it is out of all views.
    /// 100 ms at least; the same in the whole fleet, or the longest one holds for all. 2 s by default.
    pub ttl: Duration,
    /// How long [`Membership::join`] tries. 30 s by default.
    pub patience: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(2), patience: Duration::from_secs(30) }
    }
}

/// This process's place in the fleet, and its view of the others. Clones are the same place.
///
/// When the last clone is dropped, the member stops beating without leaving, as if the process had died: end with
/// [`Membership::leave`].
#[derive(Clone, Debug)]
pub struct Membership(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    id: MemberId,
    shared: Arc<Shared>,
    wish: watch::Sender<Wish>,
    task: JoinHandle<()>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the task tells.
#[derive(Debug)]
struct Shared {
    view: ArcSwap<View>,
    changes: watch::Sender<View>,
    standing: watch::Sender<Standing>,
    /// Why the last call failed; `None` after one that did not.
    trouble: watch::Sender<Option<RegistryError>>,
}

/// What the task is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Wish {
    state: MemberState,
    leave: bool,
}

impl Membership {
    /// Joins the fleet in the member's state, and returns with the first view that has it.
    ///
    /// # Errors
    /// What the registry said last, if it could not be reached for [`Config::patience`]; at once if trying again is no use.
    pub async fn join(registry: Arc<dyn Registry>, member: Member, config: Config) -> Result<Self, RegistryError> {
        crate::registry::check(&member, config.ttl)?;
        let shared = Arc::new(Shared {
            view: ArcSwap::default(),
            changes: watch::Sender::new(View::default()),
            standing: watch::Sender::new(Standing::Out),
            trouble: watch::Sender::new(None),
        });
        let id = member.id.clone();
        let wish = watch::Sender::new(Wish { state: member.state, leave: false });
        let late = timed_out(&*registry, format!("join the fleet as member {id}"), config.patience);
        let keeper = Keeper::new(id.clone(), member.state, config.ttl);
        let driver = Driver {
            lease: Lease { member: id.clone(), instance: Uuid::new_v4(), epoch: 0 },
            registry,
            member,
            ttl: config.ttl,
            shared: Arc::clone(&shared),
            failing: false,
        };
        let task = tokio::spawn(driver.run(keeper, wish.subscribe()));
        let membership = Self(Arc::new(Handle { id, shared, wish, task }));
        let until = Instant::now() + config.patience;
        let (mut views, mut trouble) = (membership.changes(), membership.0.shared.trouble.subscribe());
        let joined = views.wait_for(|view| view.member(&membership.0.id).is_some());
        let hopeless = trouble.wait_for(|error| error.as_ref().is_some_and(|error| !error.retryable()));
        let outcome = timeout_at(until, async {
            tokio::select! {
                // Who has joined has joined, whatever failed before.
                biased;
                _ = joined => None,
                error = hopeless => error.ok().and_then(|error| error.clone()),
            }
        });
        let error = match outcome.await {
            Ok(None) => return Ok(membership),
            Ok(Some(error)) => error,
            Err(_) => membership.0.shared.trouble.borrow().clone().unwrap_or(late),
        };
        // It may have joined without a view.
        let _ = membership.leave().await;
        Err(error)
    }

    /// The member's name.
    pub fn id(&self) -> &MemberId {
        &self.0.id
    }

    /// Who is in the fleet, as far as this process knows: a read of memory, without a lock.
    pub fn view(&self) -> View {
        View::clone(&self.0.shared.view.load())
    }

    /// The view, and each newer one.
    pub fn changes(&self) -> watch::Receiver<View> {
        self.0.shared.changes.subscribe()
    }

    /// Where this member stands, and each change of that. A process that finds itself [`Standing::Replaced`] is to end.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.0.shared.standing.subscribe()
    }

    /// Why the registry cannot be reached at the moment; `None` if the last call succeeded.
    pub fn trouble(&self) -> Option<RegistryError> {
        self.0.shared.trouble.borrow().clone()
    }

    /// The member takes work from now on. The registry is told as soon as it can be; the view says when it was.
    pub fn activate(&self) {
        self.0.wish.send_modify(|wish| wish.state = MemberState::Active);
    }

    /// The member takes no new work from now on. The registry is told as soon as it can be; the view says when it was.
    pub fn drain(&self) {
        self.0.wish.send_modify(|wish| wish.state = MemberState::Draining);
    }

    /// Leaves, and ends the task: at once where the registry answers, within twice the time to live where it does not.
    ///
    /// # Errors
    /// The registry could not be told: the others find the member dead later.
    pub async fn leave(&self) -> Result<(), RegistryError> {
        self.0.wish.send_modify(|wish| wish.leave = true);
        // An error is the end of the task as well: its runtime stops.
        let _ = self.standing().wait_for(|standing| standing.is_over()).await;
        self.trouble().map_or(Ok(()), Err)
    }
}

fn timed_out(registry: &dyn Registry, operation: String, limit: Duration) -> RegistryError {
    RegistryError::Unavailable {
        operation,
        place: registry.place(),
        cause: format!("no answer within {limit:?}"),
        advice: "look whether it is overloaded, or the network loses what is sent",
    }
}

/// Does what the [`Keeper`] says.
struct Driver {
    registry: Arc<dyn Registry>,
    member: Member,
    ttl: Duration,
    lease: Lease,
    shared: Arc<Shared>,
    failing: bool,
}

type Answer = Pin<Box<dyn Future<Output = Result<Event, RegistryError>> + Send>>;

impl Driver {
    async fn run(mut self, mut keeper: Keeper, mut wish: watch::Receiver<Wish>) {
        let start = Instant::now();
        let mut heard = self.registry.heard();
        let mut answer: Option<Answer> = None;
        let mut event = Event::Time;
        loop {
            for action in keeper.step(start.elapsed(), event) {
                match action {
                    Action::Call(call) => answer = Some(self.call(call, keeper.limit(call))),
                    Action::Publish(view) => {
                        self.shared.view.store(Arc::new(view.clone()));
                        self.shared.changes.send_replace(view);
                    }
                    Action::Stand(standing) => self.stand(standing),
                }
            }
            if keeper.standing().is_over() {
                return;
            }
            let due = keeper.due().map(|due| start + due);
            event = tokio::select! {
                // What was answered comes before what is wished, so that it is judged as what it was asked for.
                biased;
                answered = async { answer.as_mut().expect("checked").await }, if answer.is_some() => {
                    answer = None;
                    self.answered(answered)
                }
                // Both end with their other ends: the handle, which aborts this task, and the registry, which this task has.
                Ok(()) = wish.changed() => {
                    let wish = *wish.borrow_and_update();
                    if wish.leave { Event::Leave } else { Event::Want(wish.state) }
                }
                Ok(()) = heard.changed() => Event::Heard(*heard.borrow_and_update()),
                () = async { sleep_until(due.expect("checked")).await }, if due.is_some() => Event::Time,
                else => return,
            };
        }
    }

    fn call(&self, call: Call, limit: Duration) -> Answer {
        let (registry, lease) = (Arc::clone(&self.registry), self.lease.clone());
        let (member, ttl) = (self.member.clone(), self.ttl);
        Box::pin(async move {
            let answer = async {
                Ok(match call {
                    Call::Join(state) => {
                        let member = Member { state, ..member };
                        Event::Joined(registry.join(&member, lease.instance, ttl).await?.epoch)
                    }
                    Call::Beat => Event::Told(registry.beat(&lease).await?),
                    Call::SetState(state) => Event::Told(registry.set_state(&lease, state).await?),
                    Call::Read => Event::Read(registry.view().await?),
                    Call::Leave => {
                        registry.leave(&lease).await?;
                        Event::Gone
                    }
                })
            };
            match timeout(limit, answer).await {
                Ok(answer) => answer,
                Err(_) => Err(timed_out(&*registry, format!("{} as member {}", call.words(), lease.member), limit)),
            }
        })
    }

    fn answered(&mut self, answer: Result<Event, RegistryError>) -> Event {
        match answer {
            Ok(event) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!(member = %self.lease.member, "the fleet's registry answers again");
                }
                self.shared.trouble.send_replace(None);
                event
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(
                        member = %self.lease.member,
                        "{error}. The last view of the fleet stays in force until the registry answers again"
                    );
                }
                self.shared.trouble.send_replace(Some(error));
                Event::Failed
            }
        }
    }

    fn stand(&mut self, standing: Standing) {
        let member = &self.lease.member;
        match standing {
            Standing::In { epoch } => {
                tracing::info!(%member, epoch, "joined the fleet");
                self.lease.epoch = epoch;
            }
            Standing::Out => tracing::warn!(
                %member,
                "was found dead by the other members, since it gave no sign of life for {:?}: joining again", self.ttl
            ),
            Standing::Replaced => tracing::error!(
                %member,
                "another process joined the fleet under the same name: this one is out; give each process a name of its own"
            ),
            Standing::Left => tracing::info!(%member, "left the fleet"),
        }
        self.shared.standing.send_replace(standing);
    }
}

impl Call {
    fn words(self) -> &'static str {
        match self {
            Self::Join(_) => "join the fleet",
            Self::Beat => "give a sign of life",
            Self::SetState(_) => "change the state",
            Self::Read => "read who is in the fleet",
            Self::Leave => "leave the fleet",
        }
    }
}
