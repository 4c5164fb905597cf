//! A queue service, a function and a control plane in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use domain::{AccountId, Clock, EventSource, EventSourceMapping, FunctionArn, QueueArn};
use event_sources::{
    Attribute, Config, Invocation, InvokeError, Invoker, Mappings, Message, Metrics, QueueSource, Service, SourceError,
};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

pub type Mapping = EventSourceMapping;

pub const QUEUE: &str = "arn:aws:sqs:us-east-1:000000000000:q";
pub const VISIBILITY: Duration = Duration::from_secs(30);

pub fn sqs(queue: &str, maximum_concurrency: Option<u32>) -> EventSource {
    EventSource::Sqs { queue: QueueArn::parse(queue).unwrap(), maximum_concurrency }
}

pub fn mapping(uuid: &str) -> Mapping {
    Mapping {
        uuid: uuid.into(),
        function: FunctionArn { region: "us-east-1".into(), account: AccountId::local(), name: "f".into() },
        qualifier: None,
        source: sqs(QUEUE, None),
        batch_size: 10,
        batching_window: Duration::ZERO,
        filters: vec![],
        report_batch_item_failures: false,
    }
}

pub fn function_error() -> InvokeError {
    InvokeError::Function(Bytes::from_static(br#"{"errorMessage": "x"}"#))
}

pub struct World {
    pub queue: Arc<Queue>,
    pub mappings: Arc<Table>,
    pub invoker: Arc<Function>,
    pub service: Arc<Service>,
}

impl World {
    pub fn new() -> Self {
        Self::named("q")
    }

    pub fn named(queue: &str) -> Self {
        let queue = Arc::new(Queue { name: queue.into(), start: Instant::now(), state: Mutex::default() });
        let (mappings, invoker) = (Arc::new(Table::default()), Arc::new(Function::default()));
        let service = Arc::new(Service::new(
            Config::default(),
            queue.clone(),
            mappings.clone(),
            invoker.clone(),
            Arc::new(TokioClock(Instant::now())),
            Metrics::default(),
        ));
        Self { queue, mappings, invoker, service }
    }

    pub fn serve(&self, mapping: Mapping) {
        self.mappings.set(vec![mapping]);
        let service = self.service.clone();
        tokio::spawn(async move { service.run().await });
    }

    pub async fn until(&self, condition: impl Fn() -> bool) {
        let wait = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20_000), wait).await.expect("the condition should hold in the end");
    }

    pub async fn finish(&self) {
        self.service.stop(Duration::from_secs(100)).await;
    }
}

/// Tokio's time, which tests can pause.
pub struct TokioClock(pub Instant);

impl Clock for TokioClock {
    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.0.elapsed()
    }
}

#[derive(Default)]
pub struct Table {
    mappings: Mutex<Vec<Mapping>>,
    changes: watch::Sender<u64>,
    problems: Mutex<BTreeMap<String, String>>,
}

impl Table {
    pub fn set(&self, mappings: Vec<Mapping>) {
        *self.mappings.lock() = mappings;
        self.changes.send_modify(|n| *n += 1);
    }

    pub fn problem(&self, uuid: &str) -> Option<String> {
        self.problems.lock().get(uuid).cloned()
    }
}

impl Mappings for Table {
    fn served(&self) -> Vec<Mapping> {
        self.mappings.lock().clone()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn report(&self, uuid: &str, problem: Option<String>) {
        let mut problems = self.problems.lock();
        match problem {
            Some(problem) => drop(problems.insert(uuid.into(), problem)),
            None => drop(problems.remove(uuid)),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Call {
    pub number: usize,
    pub event: Value,
    pub bytes: usize,
    pub at: Instant,
}

type Answer = Box<dyn Fn(&Call) -> Result<Value, InvokeError> + Send>;

#[derive(Default)]
pub struct Function {
    calls: Mutex<Vec<Call>>,
    answer: Mutex<Option<Answer>>,
    takes: Mutex<Duration>,
    /// Now, and at most.
    running: Mutex<(usize, usize)>,
}

impl Function {
    pub fn on(&self, answer: impl Fn(&Call) -> Result<Value, InvokeError> + Send + 'static) {
        *self.answer.lock() = Some(Box::new(answer));
    }

    pub fn takes(&self, time: Duration) {
        *self.takes.lock() = time;
    }

    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().clone()
    }

    pub fn peak(&self) -> usize {
        self.running.lock().1
    }

    pub fn bodies(&self) -> Vec<Vec<String>> {
        let of = |call: &Call| {
            call.event["Records"].as_array().unwrap().iter().map(|r| r["body"].as_str().unwrap().to_owned()).collect()
        };
        self.calls.lock().iter().map(of).collect()
    }
}

#[async_trait]
impl Invoker for Function {
    async fn invoke(&self, invocation: Invocation) -> Result<Bytes, InvokeError> {
        let call = {
            let mut calls = self.calls.lock();
            let event = serde_json::from_slice(&invocation.payload).unwrap();
            let call = Call { number: calls.len(), event, bytes: invocation.payload.len(), at: Instant::now() };
            calls.push(call.clone());
            call
        };
        {
            let mut running = self.running.lock();
            running.0 += 1;
            running.1 = running.1.max(running.0);
        }
        let takes = *self.takes.lock();
        tokio::time::sleep(takes).await;
        self.running.lock().0 -= 1;
        let answer = self.answer.lock().as_ref().map_or(Ok(Value::Null), |answer| answer(&call));
        answer.map(|value| value.to_string().into())
    }
}

/// One SQS queue: visibility timeouts, receive counts, FIFO groups, and failures on demand.
pub struct Queue {
    name: String,
    start: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sent: usize,
    messages: BTreeMap<usize, Stored>,
    deleted: Vec<String>,
    broken: Option<String>,
    failures: usize,
    failing_deletes: usize,
}

struct Stored {
    body: String,
    group: Option<String>,
    attributes: BTreeMap<String, Attribute>,
    visible_at: Instant,
    receipts: usize,
}

impl Queue {
    pub fn arn(&self) -> String {
        format!("arn:aws:sqs:us-east-1:000000000000:{}", self.name)
    }

    pub fn send(&self, body: &str) {
        self.send_with(body, None, BTreeMap::new());
    }

    pub fn send_with(&self, body: &str, group: Option<&str>, attributes: BTreeMap<String, Attribute>) {
        let mut state = self.state.lock();
        state.sent += 1;
        let id = state.sent;
        let group = group.map(str::to_owned);
        let stored = Stored { body: body.into(), group, attributes, visible_at: self.start, receipts: 0 };
        state.messages.insert(id, stored);
    }

    pub fn len(&self) -> usize {
        self.state.lock().messages.len()
    }

    pub fn visible(&self) -> usize {
        self.state.lock().messages.values().filter(|m| m.visible_at <= Instant::now()).count()
    }

    /// Bodies, in the order of their deletion.
    pub fn deleted(&self) -> Vec<String> {
        self.state.lock().deleted.clone()
    }

    pub fn fail(&self, code: Option<&str>) {
        self.state.lock().broken = code.map(str::to_owned);
    }

    pub fn failures(&self) -> usize {
        self.state.lock().failures
    }

    pub fn fail_deletes(&self, times: usize) {
        self.state.lock().failing_deletes = times;
    }

    fn error(&self, operation: &'static str, code: Option<String>) -> SourceError {
        SourceError { operation, queue: self.arn(), code, message: "broken".into() }
    }

    fn take(&self, max: usize) -> Result<Vec<Message>, SourceError> {
        let mut state = self.state.lock();
        if let Some(code) = state.broken.clone() {
            state.failures += 1;
            return Err(self.error("ReceiveMessage", Some(code)));
        }
        let now = Instant::now();
        let hidden = state.messages.values().filter(|m| m.visible_at > now).filter_map(|m| m.group.clone());
        let locked: BTreeSet<String> = hidden.collect();
        let mut taken = Vec::new();
        for (id, message) in &mut state.messages {
            let free = message.group.as_ref().is_none_or(|group| !locked.contains(group));
            if message.visible_at > now || !free || taken.len() == max {
                continue;
            }
            message.visible_at = now + VISIBILITY;
            message.receipts += 1;
            let mut attributes: BTreeMap<String, String> =
                [("ApproximateReceiveCount".to_owned(), message.receipts.to_string())].into();
            attributes.extend(message.group.clone().map(|group| ("MessageGroupId".to_owned(), group)));
            taken.push(Message {
                id: format!("id{id}"),
                receipt: format!("{id}/{}", message.receipts),
                body: message.body.clone(),
                attributes,
                message_attributes: message.attributes.clone(),
                ..Message::default()
            });
        }
        Ok(taken)
    }
}

/// The message that a receipt is still good for.
fn current(state: &State, receipt: &str) -> Option<usize> {
    let (id, receipts) = receipt.split_once('/')?;
    let id = id.parse().ok()?;
    let message = state.messages.get(&id)?;
    (message.receipts.to_string() == receipts).then_some(id)
}

#[async_trait]
impl QueueSource for Queue {
    async fn visibility_timeout(&self, _queue: &QueueArn) -> Result<Duration, SourceError> {
        Ok(VISIBILITY)
    }

    async fn receive(&self, queue: &QueueArn, max: usize, wait: Duration) -> Result<Vec<Message>, SourceError> {
        assert!((1..=10).contains(&max) && wait <= Duration::from_secs(20));
        assert_eq!(queue.name, self.name);
        let until = Instant::now() + wait;
        loop {
            let taken = self.take(max)?;
            if !taken.is_empty() || Instant::now() >= until {
                return Ok(taken);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn delete(&self, _queue: &QueueArn, receipts: &[String]) -> Result<Vec<String>, SourceError> {
        assert!((1..=10).contains(&receipts.len()));
        let mut state = self.state.lock();
        if state.failing_deletes > 0 {
            state.failing_deletes -= 1;
            if state.failing_deletes.is_multiple_of(2) {
                return Ok(receipts.to_vec());
            }
            return Err(self.error("DeleteMessage", None));
        }
        for receipt in receipts {
            if let Some(id) = current(&state, receipt)
                && let Some(message) = state.messages.remove(&id)
            {
                state.deleted.push(message.body);
            }
        }
        Ok(vec![])
    }

    async fn change_visibility(
        &self,
        _queue: &QueueArn,
        receipts: &[String],
        timeout: Duration,
    ) -> Result<(), SourceError> {
        let mut state = self.state.lock();
        for receipt in receipts {
            if let Some(id) = current(&state, receipt)
                && let Some(message) = state.messages.get_mut(&id)
            {
                message.visible_at = Instant::now() + timeout;
            }
        }
        Ok(())
    }
}
