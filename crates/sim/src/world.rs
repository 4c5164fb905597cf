//! Runs a plan: all hosts a little further, one after the other, again and again.
//!
//! A host's runtime has a paused clock, which goes on only while the host is run, up to the end of the step. No message arrives in the
//! step in which it was sent, so that the order of the hosts within a step does not matter to them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domain::{AssignError, AssignRequest, ConcurrencyLimits, InvokeRequest, LogType, RequestId, Timeline};
use frontend::sync_path::{Failure, Invocation};
use membership::{MemoryRegistry, Role};
use uuid::Uuid;

use crate::clock::{self, HostClock};
use crate::entropy::Rng;
use crate::host::Host;
use crate::log::Log;
use crate::net::Net;
use crate::plan::{Ask, END, Fault, LOAD, Plan, TROUBLE};
use crate::process::{self, Shared, Slot};
use crate::truth::{Answer, Truth};

/// A step, while there is load.
const STEP: Duration = Duration::from_millis(10);
/// And afterwards.
const LONG_STEP: Duration = Duration::from_millis(50);
/// How long an idle sandbox lives.
const IDLE: Duration = Duration::from_secs(4);

pub(crate) struct World {
    plan: Plan,
    rng: Rng,
    log: Log,
    net: Net,
    truth: Truth,
    shared: Shared,
    database: Host,
    database_clock: HostClock,
    /// When the database comes back.
    database_back: Option<Duration>,
    nodes: Vec<Node>,
}

struct Node {
    host: Host,
    slot: Slot,
    /// When it starts again.
    back: Option<Duration>,
    /// Requests whose clients are connected to it.
    clients: Vec<RequestId>,
}

impl World {
    pub fn new(plan: Plan, mut rng: Rng) -> Self {
        let log = Log::default();
        clock::set_world(Duration::ZERO);
        let net = Net::new(rng.split(), log.clone(), STEP);
        let reserved = plan.functions.iter().map(|function| function.reserved).collect();
        let truth = Truth::new(log.clone(), reserved, plan.unreserved, plan.roomy);
        let database = Host::new("db", &net, &log);
        let database_clock = database.context.clock.clone();
        let shared = Shared {
            database: database.context.id,
            registry: Arc::new(MemoryRegistry::new(Arc::new(database_clock.clone()))),
            truth: truth.clone(),
            manager: worker_manager::Config { idle_timeout: IDLE, ..worker_manager::Config::default() },
            size: plan.size,
        };
        let node = |node: &crate::plan::Node| Node {
            host: Host::new(&node.name, &net, &log),
            slot: Slot::default(),
            back: None,
            clients: Vec::new(),
        };
        let nodes = plan.nodes.iter().map(node).collect();
        Self { plan, rng, log, net, truth, shared, database, database_clock, database_back: None, nodes }
    }

    /// Runs it to its end.
    pub fn run(mut self) -> (Log, Truth) {
        self.log.line(format_args!("{:?}", self.plan.nodes));
        self.database.start(std::future::pending());
        (0..self.nodes.len()).for_each(|node| self.start(node));
        let mut faults = std::mem::take(&mut self.plan.faults).into_iter().peekable();
        let mut load = std::mem::take(&mut self.plan.load).into_iter().peekable();
        let (mut troubled, mut mended) = (false, false);
        let mut now = Duration::ZERO;
        while now < END {
            while let Some((_, fault)) = faults.next_if(|(at, _)| *at <= now) {
                if !std::mem::replace(&mut troubled, true) {
                    self.truth.trouble(true);
                }
                self.wrong(now, &fault);
            }
            if now >= TROUBLE.1 && !std::mem::replace(&mut mended, true) {
                self.mend_all();
            }
            self.restart(now);
            while let Some(ask) = load.next_if(|ask| ask.at <= now) {
                self.ask(ask);
            }
            let quiet = now >= LOAD.1 + Duration::from_secs(2);
            let step = if quiet { LONG_STEP } else { STEP };
            self.net.set_least(step);
            now += step;
            self.database.step(now);
            self.nodes.iter().for_each(|node| node.host.step(now));
            clock::set_world(now);
        }
        self.check_end();
        self.nodes.iter_mut().for_each(|node| {
            node.slot.lock().take();
            node.host.kill(true);
        });
        self.database.kill(true);
        (self.log, self.truth)
    }

    fn start(&mut self, node: usize) {
        let rng = self.rng.split();
        let Node { host, slot, .. } = &mut self.nodes[node];
        self.log.line(format_args!("{} starts", host.context.name));
        let roles = self.plan.nodes[node].roles.clone();
        host.start(process::run(host.context.clone(), roles, self.shared.clone(), rng, Arc::clone(slot)));
    }

    fn kill(&mut self, node: usize, silent: bool) {
        let Node { host, slot, clients, .. } = &mut self.nodes[node];
        slot.lock().take();
        host.kill(silent);
        self.truth.worker_died(&host.context.name);
        clients.drain(..).for_each(|request| self.truth.lost(request));
    }

    fn restart(&mut self, now: Duration) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].back.is_some_and(|back| back <= now) {
                self.nodes[node].back = None;
                self.start(node);
            }
        }
        if self.database_back.is_some_and(|back| back <= now) {
            self.database_back = None;
            self.log.line(format_args!("the database is back"));
            self.database.start(std::future::pending());
        }
    }

    fn wrong(&mut self, now: Duration, fault: &Fault) {
        self.log.line(format_args!("{fault:?}"));
        let host = |node: Option<usize>| node.map_or(self.database.context.id, |node| self.nodes[node].host.context.id);
        match *fault {
            Fault::Kill { node, silent, down } => {
                if self.nodes[node].host.runs() {
                    self.kill(node, silent);
                    self.nodes[node].back = Some(now + down);
                }
            }
            Fault::Cut { from, to, both } => {
                let (from, to) = (host(from), host(to));
                self.net.cut(from, to);
                if both {
                    self.net.cut(to, from);
                }
            }
            Fault::Isolate { node, database } => {
                let me = host(Some(node));
                let others = self.nodes.iter().map(|node| node.host.context.id);
                for other in others.chain(database.then_some(self.database.context.id)) {
                    self.net.cut(me, other);
                    self.net.cut(other, me);
                }
            }
            Fault::Mend => self.net.mend(),
            Fault::Outage(down) => {
                if self.database.runs() {
                    self.database.kill(false);
                    self.database_back = Some(now + down);
                }
            }
            Fault::Slow { from, to, factor } => self.net.slow(host(Some(from)), host(Some(to)), factor),
            Fault::Skew { node, millis } => match node {
                Some(node) => self.nodes[node].host.context.clock.set_skew(millis),
                None => self.database_clock.set_skew(millis),
            },
        }
    }

    /// From here on everything has to become as promised.
    fn mend_all(&mut self) {
        self.log.line(format_args!("all trouble ends"));
        self.net.mend();
        self.nodes.iter_mut().for_each(|node| node.back = node.back.map(|_| Duration::ZERO));
        self.database_back = self.database_back.map(|_| Duration::ZERO);
        self.truth.trouble(false);
    }

    /// A client sends a request to a frontend; to another one, if that does not answer, as behind a balancer.
    fn ask(&mut self, ask: Ask) {
        let frontends = self.plan.nodes.iter().enumerate().filter(|(_, node)| node.roles.contains(&Role::Frontend));
        let frontends: Vec<_> = frontends.map(|(at, _)| at).collect();
        let ready = |node: &usize| self.nodes[*node].slot.lock().as_ref().and_then(|parts| parts.sync_path.clone());
        let turns = (0..frontends.len()).map(|turn| frontends[(ask.frontend + turn) % frontends.len()]);
        let Some((node, sync_path)) = turns.filter_map(|node| Some((node, ready(&node)?))).next() else { return };
        let request_id = RequestId(Uuid::new_v4());
        let function = &self.plan.functions[ask.function];
        let limits = ConcurrencyLimits { unreserved: self.plan.unreserved, reserved: function.reserved };
        let invocation = Invocation {
            request: InvokeRequest {
                request_id,
                payload: Bytes::from(ask.millis.to_string()),
                invoked_arn: function.version.arn.to_string(),
                client_context: None,
                trace_id: "Root=1-00000000-000000000000000000000000".to_owned(),
                log_type: LogType::None,
            },
            assign: AssignRequest { version: Arc::clone(&function.version), limits },
            begun: clock::now(),
            before: Timeline::default(),
            show_timeline: false,
            origin: None,
        };
        self.truth.asked(request_id, ask.function);
        self.nodes[node].clients.push(request_id);
        let (truth, log) = (self.truth.clone(), self.log.clone());
        self.nodes[node].host.spawn(async move {
            let answer = match sync_path.run(invocation).await {
                Ok(done) if done.outcome.function_error.is_some() => Answer::FunctionError,
                Ok(_) => Answer::Ok,
                Err(failure) => {
                    log.line(format_args!("failed: {failure:?} ({request_id})"));
                    match failure {
                        Failure::Assign(AssignError::Throttled(_)) => Answer::Throttled,
                        Failure::Assign(AssignError::NoCapacity(_)) => Answer::NoRoom,
                        Failure::Assign(AssignError::NotOwner(_)) => Answer::Unavailable,
                        Failure::Assign(AssignError::Worker(_)) | Failure::Worker(_) => Answer::ServiceError,
                    }
                }
            };
            truth.answered(request_id, answer);
        });
    }

    /// Nothing runs, nothing waits, nothing is left, and everybody knows so.
    fn check_end(&self) {
        for request in self.truth.waiting() {
            self.truth.violation(format_args!("request {request} was never answered"));
        }
        for sandbox in self.truth.sandboxes() {
            self.truth.violation(format_args!("sandbox {sandbox} is left, and nobody wants it"));
        }
        let mut first: Option<membership::View> = None;
        for node in &self.nodes {
            let name = &node.host.context.name;
            let Some(parts) = node.slot.lock().clone() else {
                self.truth.violation(format_args!("{name} has not become a member again"));
                continue;
            };
            let view = parts.membership.view();
            if view.members().len() != self.nodes.len() {
                self.truth.violation(format_args!(
                    "{name} sees {} members of {}",
                    view.members().len(),
                    self.nodes.len()
                ));
            }
            if first.get_or_insert_with(|| view.clone()) != &view {
                self.truth.violation(format_args!("{name} has another view"));
            }
            let Some(manager) = parts.manager else { continue };
            let status = manager.status();
            for function in status.functions.iter().filter(|f| f.in_use + f.starting + f.idle + f.busy + f.waiting > 0)
            {
                self.truth.violation(format_args!("{name} still has {function:?}"));
            }
            for account in status.accounts.iter().filter(|account| account.unreserved_in_use > 0) {
                self.truth.violation(format_args!("{name} still counts {account:?}"));
            }
        }
    }
}
