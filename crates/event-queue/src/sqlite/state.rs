//! What the writer knows, and how it does a group of requests in one transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::Connection;

use super::present::{Held, Present};
use super::statements as sql;
use super::ticket::Ticket;
use super::writer::{Answer, Op, damage};
use crate::api::{Entry, Lease, LeaseId, QueueName};
use crate::rotation::{Number, Rotation};
use crate::time::{after, system_time};

/// What outlives the [`State`] of a failed group.
#[derive(Clone)]
pub(super) struct Lasting {
    /// Makes this run's lease ids differ from those of earlier runs.
    epoch: u32,
    /// Others look at it, for how much there is.
    present: Arc<Mutex<Present>>,
    /// Queues of which nothing is handed out until then (milliseconds since 1970), as that failed for damage.
    aside: HashMap<Number, i64>,
    /// Of the next event. Never that of one before, or a late lease could be taken for one of another event.
    next_seq: i64,
    /// The last event that may be handed out: those after it are not on disk yet.
    shown: i64,
    /// Queues with events after that one, and their last.
    unshown: HashMap<Number, i64>,
}

impl Lasting {
    /// Of a file that was just opened.
    pub(super) fn new(epoch: u32, present: Arc<Mutex<Present>>) -> Self {
        Self { epoch, present, aside: HashMap::new(), next_seq: 0, shown: 0, unshown: HashMap::new() }
    }
}

/// What the writer knows without asking the file. After a failed group it is read anew.
pub(super) struct State {
    lasting: Lasting,
    pub rotation: Rotation,
    numbers: HashMap<QueueName, Number>,
    names: HashMap<Number, QueueName>,
    /// What this group has added to the queues' counts.
    counts: BTreeMap<Number, i64>,
    /// Of a queue's events that may be handed out at once, all up to this number are.
    handed_out: HashMap<Number, i64>,
    /// Whose events are being handed out.
    leasing: Option<Number>,
}

impl State {
    pub(super) fn load(connection: &Connection, mut lasting: Lasting, now: i64) -> rusqlite::Result<Self> {
        let next_seq = sql::next_seq(connection)?;
        if lasting.next_seq == 0 {
            // What a file has that was just opened is on disk.
            lasting.shown = next_seq - 1;
        }
        lasting.next_seq = lasting.next_seq.max(next_seq);
        let mut state = Self {
            lasting,
            rotation: Rotation::default(),
            numbers: HashMap::new(),
            names: HashMap::new(),
            counts: BTreeMap::new(),
            handed_out: HashMap::new(),
            leasing: None,
        };
        for (number, name) in sql::queues(connection)? {
            state.remember(number, name);
            let next = |number| match sql::any_at_once(connection, number)? {
                true => Ok(Some(now)),
                false => sql::next_due(connection, number, 0),
            };
            match next(number) {
                Ok(Some(due)) => state.note(number, due),
                Ok(None) => {}
                Err(error) if damage(&error) => {
                    state.put_aside(number, now, &error);
                    state.note(number, now);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(state)
    }

    /// The last event that was put in.
    pub(super) fn last_seq(&self) -> i64 {
        self.lasting.next_seq - 1
    }

    /// All events up to this one are on disk.
    pub(super) fn show(&mut self, last_seq: i64, now: i64) {
        let Lasting { shown, unshown, .. } = &mut self.lasting;
        if *shown >= last_seq {
            return;
        }
        *shown = last_seq;
        let queues: Vec<_> = unshown.keys().copied().collect();
        unshown.retain(|_, last| *last > last_seq);
        queues.into_iter().for_each(|queue| self.note(queue, now));
    }

    /// Whether a lease is over, and so its event ready.
    pub(super) fn any_over(&self, now: i64) -> bool {
        self.lasting.present.lock().leases.over(now).is_some()
    }

    /// Whether time alone can make something ready.
    pub(super) fn awaits(&self) -> bool {
        self.rotation.next_due().is_some() || !self.lasting.present.lock().leases.is_empty()
    }

    /// For the next state, after a group has failed: what it changed is undone.
    pub(super) fn roll_back(&self) -> Lasting {
        self.lasting.present.lock().leases.roll_back();
        self.lasting.clone()
    }

    /// After a group has failed for damage: whether that was in a queue's events that were to be handed out. Then these
    /// are left alone for a while, so that the others' are not kept back with them.
    pub(super) fn blame(&mut self, now: i64, error: &rusqlite::Error) -> bool {
        let Some(number) = self.leasing.take() else { return false };
        self.put_aside(number, now, error);
        true
    }

    fn put_aside(&mut self, number: Number, now: i64, error: &rusqlite::Error) {
        let queue = self.names.get(&number).map(ToString::to_string);
        tracing::error!(
            queue, %error,
            "the queue's file is damaged where this queue's events are: they are kept, and tried again in an hour. Stop \
             Emberbox, keep a copy of the file with its -wal file, then restore it from a backup or save what is left with \
             `sqlite3 FILE .recover`"
        );
        self.lasting.aside.insert(number, after(now, sql::DAMAGED));
    }

    /// An event of this queue is due at `due`.
    fn note(&mut self, number: Number, due: i64) {
        self.rotation.note(number, self.lasting.aside.get(&number).map_or(due, |until| due.max(*until)));
    }

    fn remember(&mut self, number: Number, name: QueueName) {
        self.numbers.insert(name.clone(), number);
        self.names.insert(number, name);
    }

    /// Does all of it or nothing; one answer per request, in their order. `more` adds requests to the transaction, and says
    /// which event is the last on disk, or that it is time to commit.
    pub(super) fn transaction(
        &mut self,
        connection: &mut Connection,
        ops: &mut Vec<Op>,
        now: i64,
        more: &mut dyn FnMut(&mut Vec<Op>) -> Option<i64>,
    ) -> rusqlite::Result<Vec<Answer>> {
        let transaction = sql::begin(connection)?;
        self.end_leases(&transaction, now)?;
        let mut answers = Vec::with_capacity(ops.len());
        loop {
            for op in &ops[answers.len()..] {
                answers.push(self.apply(&transaction, op, now)?);
            }
            match more(ops) {
                Some(last_seq) => self.show(last_seq, now),
                None => break,
            }
        }
        transaction.commit()?;
        let mut present = self.lasting.present.lock();
        present.leases.commit();
        for (queue, change) in std::mem::take(&mut self.counts) {
            present.count(queue, change);
        }
        Ok(answers)
    }

    /// Those that are over. Only here is it written how often an event was handed out that nobody gave back.
    fn end_leases(&mut self, connection: &Connection, now: i64) -> rusqlite::Result<()> {
        let present = Arc::clone(&self.lasting.present);
        let leases = &mut present.lock().leases;
        while let Some((seq, held)) = leases.over(now) {
            sql::give_back(connection, held.queue, seq, held.deliveries, held.end)?;
            leases.set(seq, None);
            self.note(held.queue, held.end);
        }
        Ok(())
    }

    /// The event's number and its lease, if that is still on.
    fn held(&self, id: LeaseId, now: i64) -> Option<(i64, Held)> {
        let ticket = Ticket::read(id, self.lasting.epoch)?;
        Some((ticket.seq, self.lasting.present.lock().leases.get(ticket, now)?))
    }

    fn apply(&mut self, connection: &Connection, op: &Op, now: i64) -> rusqlite::Result<Answer> {
        let mut answer = Answer::default();
        match op {
            Op::Enqueue(entries) => {
                for entry in entries {
                    self.insert(connection, entry, now)?;
                }
            }
            Op::Lease { but, most, lease } => answer.leases = self.lease(connection, but, *most, *lease, now)?,
            Op::Extend { leases, lease } => {
                let end = after(now, *lease);
                for id in leases {
                    if let Some((seq, held)) = self.held(*id, now) {
                        self.lasting.present.lock().leases.set(seq, Some(Held { end, ..held }));
                        answer.extended.push(*id);
                    }
                }
            }
            Op::Ack(leases) => {
                for id in leases {
                    if let Some((seq, held)) = self.held(*id, now) {
                        sql::delete(connection, held.queue, seq)?;
                        self.lasting.present.lock().leases.set(seq, None);
                        *self.counts.entry(held.queue).or_default() -= 1;
                    }
                }
            }
            Op::Release { lease, delay, body } => {
                if let Some((seq, held)) = self.held(*lease, now) {
                    let due = after(now, *delay);
                    sql::give_back(connection, held.queue, seq, held.deliveries, due)?;
                    if let Some(body) = body {
                        sql::set_body(connection, seq, body)?;
                    }
                    self.lasting.present.lock().leases.set(seq, None);
                    self.note(held.queue, due);
                }
            }
            Op::Purge { queue, below } => {
                if let Some(number) = self.numbers.get(queue).copied() {
                    let below = below.unwrap_or(self.lasting.next_seq);
                    let (purged, more) = sql::purge(connection, number, below)?;
                    let leases = &mut self.lasting.present.lock().leases;
                    leases.of(number).into_iter().filter(|seq| *seq < below).for_each(|seq| leases.set(seq, None));
                    *self.counts.entry(number).or_default() -= purged.cast_signed();
                    answer.purged = purged;
                    answer.purge_on = more.then_some(below);
                }
            }
        }
        Ok(answer)
    }

    fn insert(&mut self, connection: &Connection, entry: &Entry, now: i64) -> rusqlite::Result<()> {
        let number = match self.numbers.get(&entry.queue).copied() {
            Some(number) => number,
            None => {
                let number = sql::number(connection, &entry.queue)?;
                self.remember(number, entry.queue.clone());
                number
            }
        };
        let due = (entry.delay > Duration::ZERO).then(|| after(now, entry.delay));
        let seq = self.lasting.next_seq;
        sql::insert(connection, number, seq, entry, now, due)?;
        if let Some(due) = due {
            self.note(number, due);
        }
        self.lasting.unshown.insert(number, seq);
        self.lasting.next_seq += 1;
        *self.counts.entry(number).or_default() += 1;
        Ok(())
    }

    fn lease(
        &mut self,
        connection: &Connection,
        but: &BTreeSet<QueueName>,
        most: usize,
        lease: Duration,
        now: i64,
    ) -> rusqlite::Result<Vec<Lease>> {
        let but = but.iter().filter_map(|name| self.numbers.get(name).copied()).collect();
        let present = Arc::clone(&self.lasting.present);
        // A lease that ends now would be handed out again by the same call.
        let end = after(now, lease.max(Duration::from_millis(1)));
        let mut answer = Vec::new();
        self.rotation.wake(now);
        while let Some((number, share)) = self.rotation.turn(most - answer.len(), &but) {
            self.leasing = Some(number);
            let above = self.handed_out.get(&number).copied().unwrap_or(0);
            let leases = &mut present.lock().leases;
            let (ready, more) =
                sql::ready(connection, number, above..self.lasting.shown, share, now, |seq| leases.has(seq))?;
            for event in ready {
                let deliveries = event.deliveries.saturating_add(1);
                leases.set(event.seq, Some(Held { queue: number, deliveries, end }));
                if event.at_once {
                    self.handed_out.insert(number, event.seq);
                }
                let ticket = Ticket { queue: number, seq: event.seq, deliveries: deliveries as u16 };
                answer.push(Lease {
                    id: ticket.id(self.lasting.epoch),
                    queue: self.names[&number].clone(),
                    event: event.event,
                    body: event.body,
                    enqueued_at: system_time(event.enqueued_at),
                    deliveries,
                });
            }
            let next = if more { Some(now) } else { sql::next_due(connection, number, now)? };
            if let Some(due) = next {
                self.note(number, due);
                self.rotation.wake(now);
            }
            self.leasing = None;
        }
        Ok(answer)
    }
}
