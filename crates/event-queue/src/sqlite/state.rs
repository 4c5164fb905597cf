//! What the writer knows, and how it does a group of requests in one transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use rusqlite::Connection;

use super::statements as sql;
use super::ticket::Ticket;
use super::writer::{Answer, Op, damage};
use crate::api::{Entry, Lease, QueueName};
use crate::rotation::{Number, Rotation};
use crate::time::after;

/// What the writer knows without asking the file. After a failed group it is read anew.
pub(super) struct State {
    /// Makes this run's lease ids differ from those of earlier runs.
    pub epoch: u32,
    pub rotation: Rotation,
    numbers: HashMap<QueueName, Number>,
    names: HashMap<Number, QueueName>,
    next_seq: i64,
    /// Whether commits are synced at present.
    synced: bool,
    /// What this group has added to the queues' counts.
    counts: BTreeMap<Number, i64>,
    /// Queues of which nothing is handed out until then (milliseconds since 1970), as that failed for damage.
    aside: HashMap<Number, i64>,
    /// Whose events are being handed out.
    leasing: Option<Number>,
}

impl State {
    /// `aside` is of the state before.
    pub(super) fn load(
        connection: &Connection,
        epoch: u32,
        aside: HashMap<Number, i64>,
        now: i64,
    ) -> rusqlite::Result<Self> {
        let mut state = Self {
            epoch,
            rotation: Rotation::default(),
            numbers: HashMap::new(),
            names: HashMap::new(),
            next_seq: sql::next_seq(connection)?,
            synced: true,
            counts: BTreeMap::new(),
            aside,
            leasing: None,
        };
        for (number, name) in sql::queues(connection)? {
            state.remember(number, name);
            match sql::next_due(connection, number) {
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

    /// What the next state has to know of this one.
    pub(super) fn take_aside(&mut self) -> HashMap<Number, i64> {
        std::mem::take(&mut self.aside)
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
        self.aside.insert(number, after(now, sql::DAMAGED));
    }

    /// An event of this queue is due at `due`.
    fn note(&mut self, number: Number, due: i64) {
        self.rotation.note(number, self.aside.get(&number).map_or(due, |until| due.max(*until)));
    }

    fn remember(&mut self, number: Number, name: QueueName) {
        self.numbers.insert(name.clone(), number);
        self.names.insert(number, name);
    }

    /// Does all of it or nothing; one answer per request, in their order.
    pub(super) fn transaction(
        &mut self,
        connection: &mut Connection,
        ops: &[Op],
        now: i64,
    ) -> rusqlite::Result<Vec<Answer>> {
        let synced = ops.iter().any(Op::durable);
        if self.synced != synced {
            connection.pragma_update(None, "synchronous", if synced { "FULL" } else { "NORMAL" })?;
            self.synced = synced;
        }
        let transaction = sql::begin(connection)?;
        let answers = ops.iter().map(|op| self.apply(&transaction, op, now)).collect::<rusqlite::Result<Vec<_>>>()?;
        for (queue, change) in std::mem::take(&mut self.counts) {
            sql::count(&transaction, queue, change)?;
        }
        transaction.commit()?;
        Ok(answers)
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
                let due = after(now, *lease);
                for id in leases {
                    if let Some(ticket) = Ticket::read(*id, self.epoch)
                        && sql::set_due(connection, ticket, now, due, true)?
                    {
                        self.note(ticket.queue, due);
                        answer.extended.push(*id);
                    }
                }
            }
            Op::Ack(leases) => {
                for ticket in leases.iter().filter_map(|id| Ticket::read(*id, self.epoch)) {
                    if sql::delete(connection, ticket, now)? {
                        *self.counts.entry(ticket.queue).or_default() -= 1;
                    }
                }
            }
            Op::Release { lease, delay, body } => {
                let due = after(now, *delay);
                if let Some(ticket) = Ticket::read(*lease, self.epoch)
                    && sql::set_due(connection, ticket, now, due, false)?
                {
                    self.note(ticket.queue, due);
                    if let Some(body) = body {
                        sql::set_body(connection, ticket.seq, body)?;
                    }
                }
            }
            Op::Purge { queue, below } => {
                if let Some(number) = self.numbers.get(queue).copied() {
                    let below = below.unwrap_or(self.next_seq);
                    let (purged, more) = sql::purge(connection, number, below)?;
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
        if let Some(due) = sql::insert(connection, number, self.next_seq, entry, now)? {
            self.next_seq += 1;
            self.note(number, due);
            *self.counts.entry(number).or_default() += 1;
        }
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
        let mut leases = Vec::new();
        self.rotation.wake(now);
        while let Some((number, share)) = self.rotation.turn(most - leases.len(), &but) {
            let name = self.names[&number].clone();
            self.leasing = Some(number);
            leases.extend(sql::lease(connection, self.epoch, (number, &name), share, now, lease)?);
            if let Some(due) = sql::next_due(connection, number)? {
                self.note(number, due);
                self.rotation.wake(now);
            }
            self.leasing = None;
        }
        Ok(leases)
    }
}
