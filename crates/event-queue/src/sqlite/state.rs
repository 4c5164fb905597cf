//! What the writer knows, and how it does a group of requests in one transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use rusqlite::Connection;

use super::statements as sql;
use super::ticket::Ticket;
use super::writer::{Answer, Op};
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
}

impl State {
    pub(super) fn load(connection: &Connection, epoch: u32) -> rusqlite::Result<Self> {
        let mut state = Self {
            epoch,
            rotation: Rotation::default(),
            numbers: HashMap::new(),
            names: HashMap::new(),
            next_seq: sql::next_seq(connection)?,
            synced: true,
            counts: BTreeMap::new(),
        };
        for (number, name) in sql::queues(connection)? {
            state.remember(number, name);
            if let Some(due) = sql::next_due(connection, number)? {
                state.rotation.note(number, due);
            }
        }
        Ok(state)
    }

    fn remember(&mut self, number: Number, name: QueueName) {
        self.numbers.insert(name.clone(), number);
        self.names.insert(number, name);
    }

    /// Does all of it or nothing; one answer per request, in their order.
    pub(super) fn transaction(
        &mut self,
        connection: &mut Connection,
        ops: Vec<Op>,
        now: i64,
    ) -> rusqlite::Result<Vec<Answer>> {
        let synced = ops.iter().any(Op::durable);
        if self.synced != synced {
            connection.pragma_update(None, "synchronous", if synced { "FULL" } else { "NORMAL" })?;
            self.synced = synced;
        }
        let transaction = sql::begin(connection)?;
        let answers =
            ops.into_iter().map(|op| self.apply(&transaction, op, now)).collect::<rusqlite::Result<Vec<_>>>()?;
        for (queue, change) in std::mem::take(&mut self.counts) {
            sql::count(&transaction, queue, change)?;
        }
        transaction.commit()?;
        Ok(answers)
    }

    fn apply(&mut self, connection: &Connection, op: Op, now: i64) -> rusqlite::Result<Answer> {
        let mut answer = Answer::default();
        match op {
            Op::Enqueue(entries) => {
                for entry in &entries {
                    self.insert(connection, entry, now)?;
                }
            }
            Op::Lease { but, most, lease } => answer.leases = self.lease(connection, &but, most, lease, now)?,
            Op::Extend { leases, lease } => {
                let due = after(now, lease);
                for id in leases {
                    if let Some(ticket) = Ticket::read(id, self.epoch)
                        && sql::set_due(connection, ticket, now, due, true)?
                    {
                        self.rotation.note(ticket.queue, due);
                        answer.extended.push(id);
                    }
                }
            }
            Op::Ack(leases) => {
                for ticket in leases.into_iter().filter_map(|id| Ticket::read(id, self.epoch)) {
                    if sql::delete(connection, ticket, now)? {
                        *self.counts.entry(ticket.queue).or_default() -= 1;
                    }
                }
            }
            Op::Release { lease, delay, body } => {
                let due = after(now, delay);
                if let Some(ticket) = Ticket::read(lease, self.epoch)
                    && sql::set_due(connection, ticket, now, due, false)?
                {
                    self.rotation.note(ticket.queue, due);
                    if let Some(body) = body {
                        sql::set_body(connection, ticket.seq, &body)?;
                    }
                }
            }
            Op::Purge { queue, below } => {
                if let Some(number) = self.numbers.get(&queue).copied() {
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
            self.rotation.note(number, due);
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
            leases.extend(sql::lease(connection, self.epoch, (number, &name), share, now, lease)?);
            if let Some(due) = sql::next_due(connection, number)? {
                self.rotation.note(number, due);
                self.rotation.wake(now);
            }
        }
        Ok(leases)
    }
}
