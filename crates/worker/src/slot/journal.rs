//! From a process's output and the machine's lines to the log, by way of the slot's queue.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use domain::Step;
use parking_lot::MutexGuard;

use super::{Core, Slot};
use crate::machine::{Line, Report};
use crate::output::{Drained, Output};
use crate::slot_log::{Entry, SlotLog};

impl Slot {
    pub(super) fn log(&self, core: &mut Core, line: Line) {
        let (now, wall) = (self.now(), self.host.clock.wall());
        let entry = if matches!(line, Line::End(_)) {
            let Core { outputs, queue, .. } = core;
            for output in outputs {
                output.finish_line(|text| queue.push(now, wall, Entry::Text(text)));
            }
            Entry::End { line, answered: Self::end(core, now) }
        } else {
            Entry::System(line)
        };
        core.queue.push(now, wall, entry);
    }

    /// The current invocation is over; how long after it was handed over it had been answered.
    fn end(core: &mut Core, now: Duration) -> Option<Duration> {
        let current = core.current.as_mut()?;
        current.timeline.mark(Step::Frozen, now);
        current.ended = true;
        let (answered, invoked) = (current.timeline.at(Step::Answered), current.timeline.at(Step::Invoked));
        if current.reply.is_none() {
            core.current = None;
        }
        answered.zip(invoked).map(|(to, from)| to.saturating_sub(from))
    }

    /// Reads what the processes wrote so far: before a `next` is acted on, so that their lines come before END.
    pub(super) fn drain(&self, core: &mut Core) {
        self.drain_by(core, |output, line| output.drain(line));
    }

    /// The same before an event of the sandbox's: the reactor may hear of the last words of a process after that.
    pub(super) fn drain_unheard(&self, core: &mut Core) {
        self.drain_by(core, |output, line| output.drain_unheard(line));
    }

    fn drain_by(&self, core: &mut Core, drain: impl Fn(&Output, &mut dyn FnMut(String)) -> Drained) {
        let Core { outputs, queue, .. } = core;
        let (now, wall) = (|| self.now(), || self.host.clock.wall());
        outputs
            .retain(|output| drain(output, &mut |text| queue.push(now(), wall(), Entry::Text(text))) != Drained::End);
    }

    /// Reads one process's output as it comes.
    pub(super) fn drain_output(&self, output: &Arc<Output>) -> Drained {
        let (now, wall) = (self.now(), self.host.clock.wall());
        let mut core = self.core.lock();
        let Core { outputs, queue, .. } = &mut *core;
        let drained = output.drain_ready(|text| queue.push(now, wall, Entry::Text(text)));
        if drained == Drained::End {
            outputs.retain(|other| !Arc::ptr_eq(other, output));
        }
        self.write_log(core);
        drained
    }

    /// Writes the queue without keeping others from the slot meanwhile.
    pub(super) fn write_log(&self, mut core: MutexGuard<'_, Core>) {
        let entries = core.queue.take();
        // Before the core is free, so that two writers keep the order.
        let mut log = self.log.lock();
        drop(core);
        self.write(&mut log, entries);
    }

    /// Writes the queue before anything else happens in the slot.
    pub(super) fn write_log_now(&self, core: &mut Core) {
        let entries = core.queue.take();
        self.write(&mut self.log.lock(), entries);
    }

    fn write(&self, log: &mut SlotLog, entries: Vec<(SystemTime, Entry)>) {
        let mut peak = None;
        for (wall, entry) in entries {
            let line = match entry {
                Entry::Text(text) => {
                    log.line(wall, text);
                    continue;
                }
                Entry::System(line) => {
                    if let Line::InitReport { fault, .. } | Line::RestoreReport { fault: Some(fault), .. } = &line {
                        self.host.metrics.error(fault.error_type());
                    }
                    line
                }
                Entry::End { line, answered } => {
                    if let Line::End(report) = &line {
                        self.over(report, answered);
                    }
                    peak.get_or_insert_with(|| self.sandbox.memory_peak());
                    line
                }
            };
            for text in self.lines.render(&line, wall, peak.unwrap_or(0)) {
                log.line(wall, text);
            }
        }
        log.flush();
    }

    fn over(&self, report: &Report, answered: Option<Duration>) {
        self.host.metrics.invocation(report.duration, report.init, report.error.as_deref());
        tracing::info!(
            target: "timeline",
            request_id = %report.request,
            function = self.version.name,
            version = self.version.version,
            sandbox = %self.id,
            init_us = report.init.map(|d| d.as_micros()),
            answered_us = answered.map(|d| d.as_micros()),
            duration_us = report.duration.as_micros(),
            error = report.error.as_deref(),
            "invocation"
        );
    }
}
