//! One event in hand: decide, run, tell.

use std::time::Duration;

use bytes::Bytes;
use event_queue::Lease;

use super::{Inner, Slot};
use crate::event::AsyncEvent;
use crate::lineage;
use crate::pending::{Addressee, DELIVERY_AGE, Pending};
use crate::ports::{Attempt, DeliveryError, EventConfig};
use crate::rules::{self, Condition, Outcome, Progress, Verdict};
use crate::scheduler::Feedback;
use crate::target::Target;

/// An entry that cannot be read is looked at again after this: a newer Emberbox may have written it.
const UNREADABLE: Duration = Duration::from_secs(15 * 60);

impl Inner {
    /// Everything that is due to an event now. `slot` ends with the attempt, before deliveries.
    pub(super) async fn handle(&self, lease: Lease, mut slot: Slot) {
        let mut event = match AsyncEvent::decode(&lease.body) {
            Ok(event) => event,
            Err(error) => {
                self.metrics.unreadable();
                tracing::error!(queue = %lease.queue, event = %lease.event, %error, "an event is kept aside");
                self.leases.release(lease.id, UNREADABLE, None).await;
                return;
            }
        };
        if let Some(pending) = event.pending.take() {
            drop(slot);
            return self.tell(&lease, event, pending).await;
        }
        event.leased_at = Some(self.clock.wall());
        let Some(config) = self.settings.event_config(&event).await else {
            tracing::warn!(function = %event.function, request = %event.request_id, "event dropped: its function is gone");
            self.metrics.dropped(&event.function);
            self.invoker.settled(&event, "dropped: function, version or alias is gone");
            return self.leases.ack(lease.id);
        };
        {
            let mut scheduler = self.scheduler.lock();
            scheduler.bound(&lease.queue, config.settings.reserved_concurrency);
            if let Some(unreserved) = config.unreserved_concurrency {
                scheduler.unreserved(&lease.queue, unreserved);
            }
        }
        let (trace, hops) = lineage::hop(event.trace_header.as_deref().unwrap_or_default(), &event.function);
        if let Some(verdict) = self.refusal(&event, &config, hops) {
            drop(slot);
            return self.conclude(&lease, event, &config, verdict, None).await;
        }
        self.metrics.attempt(&event.function, event.age(self.clock.wall()));
        let sent = AsyncEvent { trace_header: Some(trace), ..event.clone() };
        let began = self.clock.monotonic();
        let attempt = self.invoker.invoke(&sent).await;
        slot.feedback = match attempt.outcome {
            Outcome::Success | Outcome::FunctionError => Feedback::Ran(self.clock.monotonic().saturating_sub(began)),
            Outcome::Throttled | Outcome::SystemError => Feedback::Refused,
        };
        drop(slot);
        let verdict = rules::after(&config.settings, self.progress(&event), attempt.outcome);
        self.conclude(&lease, event, &config, verdict, Some(attempt)).await;
    }

    /// Why there must be no attempt.
    fn refusal(&self, event: &AsyncEvent, config: &EventConfig, hops: u32) -> Option<Verdict> {
        rules::before(&config.settings, self.progress(event)).or_else(|| {
            (lineage::is_loop(hops) && !config.recursion_allowed).then_some(Verdict::Failed {
                condition: Condition::RecursiveInvocation,
                approximate_invoke_count: event.attempts,
            })
        })
    }

    fn progress(&self, event: &AsyncEvent) -> Progress {
        Progress {
            age: event.age(self.clock.wall()),
            attempts: event.attempts,
            throttle_attempts: event.throttle_attempts,
        }
    }

    async fn conclude(
        &self,
        lease: &Lease,
        mut event: AsyncEvent,
        config: &EventConfig,
        verdict: Verdict,
        attempt: Option<Attempt>,
    ) {
        if !self.leases.holds(lease.id) {
            // Whoever has the event now will tell how it ends.
            return;
        }
        let (condition, count) = match verdict {
            Verdict::Retry { delay, attempts, throttle_attempts } => {
                (event.attempts, event.throttle_attempts) = (attempts, throttle_attempts);
                event.retried_at = Some(self.clock.wall());
                self.invoker.settled(&event, &format!("again in {} s", delay.as_secs_f64().ceil()));
                return self.leases.release(lease.id, delay, Some(self.encode(&event))).await;
            }
            Verdict::Done => {
                self.metrics.succeeded(&event.function);
                self.invoker.settled(&event, "succeeded");
                (None, event.attempts.saturating_add(1))
            }
            Verdict::Failed { condition, approximate_invoke_count } => {
                self.metrics.dropped(&event.function);
                tracing::info!(
                    function = %event.function, request = %event.request_id, condition = condition.as_str(),
                    "event given up"
                );
                self.invoker.settled(&event, &format!("given up: {}", condition.as_str()));
                (Some(condition), approximate_invoke_count)
            }
        };
        match Pending::new(config, condition, count, attempt, self.clock.wall()) {
            None => self.leases.ack(lease.id),
            Some(pending) => self.tell(lease, event, pending).await,
        }
    }

    /// Delivers to all targets; writes back to the queue what must be tried later.
    async fn tell(&self, lease: &Lease, mut event: AsyncEvent, mut pending: Pending) {
        if let Some(_running) = self.deliveries.begin(&lease.queue) {
            let mut left = Vec::new();
            for addressee in std::mem::take(&mut pending.targets) {
                if self.deliver_to(&event, &pending, &addressee).await {
                    left.push(addressee);
                }
            }
            pending.targets = left;
        }
        if pending.targets.is_empty() {
            self.invoker.settled(&event, "told to its targets");
            return self.leases.ack(lease.id);
        }
        let delay = pending.delay();
        pending.tries = pending.tries.saturating_add(1);
        event.pending = Some(pending);
        self.leases.release(lease.id, delay, Some(self.encode(&event))).await;
    }

    fn encode(&self, event: &AsyncEvent) -> Bytes {
        event.encode(|content| self.queue.largest_body(content))
    }

    /// Whether it must be tried again.
    async fn deliver_to(&self, event: &AsyncEvent, pending: &Pending, addressee: &Addressee) -> bool {
        let (Addressee::Destination(target) | Addressee::DeadLetter(target)) = addressee;
        let message = pending.message(event, addressee);
        let delivery = self.deliver.deliver(target, event, &message);
        let delivered = match tokio::time::timeout(self.config.delivery_timeout, delivery).await {
            Ok(delivered) => delivered,
            Err(_) => Err(self.late(target)),
        };
        let Err(error) = delivered else {
            if pending.condition.is_some() {
                self.metrics.dead_lettered(&event.function);
            }
            return false;
        };
        match addressee {
            Addressee::Destination(_) => self.metrics.destination_error(&event.function),
            Addressee::DeadLetter(_) => self.metrics.dead_letter_error(&event.function),
        }
        let age = self.clock.wall().duration_since(pending.ended_at).unwrap_or_default();
        let again = error.retryable && age < DELIVERY_AGE;
        if again {
            tracing::warn!(function = %event.function, request = %event.request_id, %error, "delivery will be retried");
        } else {
            self.metrics.undelivered(&event.function);
            tracing::error!(function = %event.function, request = %event.request_id, %error, "delivery given up");
        }
        again
    }

    fn late(&self, target: &Target) -> DeliveryError {
        DeliveryError {
            target: target.to_string(),
            cause: format!("no answer within {:?}", self.config.delivery_timeout),
            retryable: true,
        }
    }
}
