//! What the asynchronous path tells of events whose trace is sampled.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use domain::Clock;
use domain::trace::{Delivered, Moment, Origin, SpanId, Traced, Traces, Trigger, sampled, unix_nanos, with_parent};
use pollers::{AsyncEvent, Deliver, DeliveryError, Message, Target};

/// Where an attempt belongs: under the event's own span, which is the parent in its header. `None` of one that is not sampled.
pub fn attempt(event: &AsyncEvent, now: SystemTime) -> Option<Origin> {
    let (trace, parent) = sampled(event.trace_header.as_deref()?)?;
    let (attempt, taken) = (event.attempt(), event.leased_at.unwrap_or(now));
    // An event whose poller died is attempted once more under the same number.
    let own = format!("attempt {attempt} of {}", event.request_id);
    Some(Origin {
        trace,
        span: parent.unwrap_or(SpanId([0; 8])).child(&own, unix_nanos(taken)),
        parent,
        trigger: Trigger::Event { attempt, waited_since: event.retried_at.unwrap_or(event.accepted_at), taken },
    })
}

/// A moment of this process.
pub fn moment(clock: &dyn Clock) -> Moment {
    Moment { monotonic: clock.monotonic(), wall: clock.wall() }
}

/// Deliveries, of which traces have a span each.
pub struct TracedDelivery {
    /// Sends.
    pub deliver: Arc<dyn Deliver>,
    /// Takes what there is to tell.
    pub traces: Arc<dyn Traces>,
    /// Of the spans.
    pub clock: Arc<dyn Clock>,
}

#[async_trait]
impl Deliver for TracedDelivery {
    async fn deliver(&self, target: &Target, event: &AsyncEvent, message: &Message) -> Result<(), DeliveryError> {
        let header = event.trace_header.as_deref().unwrap_or_default();
        let Some((trace, parent)) = sampled(header) else { return self.deliver.deliver(target, event, message).await };
        let now = moment(&*self.clock);
        let own = format!("deliver {} to {target}", event.request_id);
        let span = parent.unwrap_or(SpanId([0; 8])).child(&own, unix_nanos(now.wall));
        // What comes of the message is under its delivery.
        let sent = AsyncEvent { trace_header: Some(with_parent(header, span)), ..event.clone() };
        let mut told = Told {
            delivery: self,
            delivered: Some(Delivered {
                trace,
                span,
                parent,
                function: event.function.clone(),
                request_id: event.request_id,
                target: target.to_string(),
                dead_letter: matches!(message, Message::DeadLetter { .. }),
                began: now.monotonic,
                ended: Duration::ZERO,
                error: Some("it took too long".to_owned()),
                now,
            }),
        };
        let delivered = self.deliver.deliver(target, &sent, message).await;
        if let Some(told) = &mut told.delivered {
            told.error = delivered.as_ref().err().map(|error| error.cause.clone());
        }
        delivered
    }
}

/// A delivery, which is told when it ends, also when it is dropped unfinished.
struct Told<'a> {
    delivery: &'a TracedDelivery,
    delivered: Option<Delivered>,
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if let Some(delivered) = self.delivered.take() {
            let now = moment(&*self.delivery.clock);
            let delivered = Delivered { ended: now.monotonic, now, ..delivered };
            self.delivery.traces.take(Traced::Delivered(Box::new(delivered)));
        }
    }
}
