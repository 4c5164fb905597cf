//! All queues, in memory and in the file at once: each change is made to both within the writer's transaction.

use std::collections::BTreeMap;

use rusqlite::Connection;
use uuid::Uuid;

use super::statements as sql;
use super::writer::Received;
use crate::attributes::Attributes;
use crate::message::{Checked, Content};
use crate::queue::{DEDUPLICATION, Meta, Millis, Original, Queue, Seq, State as MessageState, Unusable};
use crate::receipt::Receipt;

/// Names a queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct QueueKey {
    pub account: String,
    pub region: String,
    pub name: String,
}

impl QueueKey {
    pub(crate) fn arn(&self) -> String {
        format!("arn:aws:sqs:{}:{}:{}", self.region, self.account, self.name)
    }

    /// The queue of an ARN, if it is one of SQS.
    pub(crate) fn of_arn(arn: &str) -> Option<Self> {
        let parts: Vec<&str> = arn.split(':').collect();
        let ["arn", _, "sqs", region, account, name] = parts[..] else { return None };
        Some(Self { account: account.to_owned(), region: region.to_owned(), name: name.to_owned() })
    }
}

/// A queue.
#[derive(Debug)]
pub(crate) struct Entry {
    pub number: u32,
    pub attributes: Attributes,
    pub tags: BTreeMap<String, String>,
    pub created: Millis,
    pub modified: Millis,
    pub queue: Queue,
}

/// A message that was sent, or that the one sent is a duplicate of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sent {
    pub id: Uuid,
    pub seq: Seq,
}

/// All queues.
#[derive(Debug)]
pub(crate) struct State {
    queues: BTreeMap<QueueKey, Entry>,
    next_seq: Seq,
    /// The next number that the file knows.
    kept_seq: Seq,
}

impl State {
    /// What the file has.
    pub(super) fn load(connection: &Connection) -> rusqlite::Result<Self> {
        let mut loaded: BTreeMap<u32, (QueueKey, Entry)> = BTreeMap::new();
        for row in sql::queues(connection)? {
            let fifo = row.name.ends_with(FIFO_SUFFIX);
            let entry = Entry {
                number: row.number,
                attributes: Attributes::kept(fifo, row.attributes),
                tags: row.tags,
                created: row.created,
                modified: row.modified,
                queue: Queue::new(fifo),
            };
            let key = QueueKey { account: row.account, region: row.region, name: row.name };
            loaded.insert(row.number, (key, entry));
        }
        sql::messages(connection, |number, seq, meta| {
            if let Some((_, entry)) = loaded.get_mut(&number) {
                entry.queue.insert(seq, meta);
            }
        })?;
        sql::originals(connection, |number, key, original| {
            if let Some((_, entry)) = loaded.get_mut(&number) {
                entry.queue.remember(key, original);
            }
        })?;
        let next_seq = sql::next_seq(connection)?;
        Ok(Self { queues: loaded.into_values().collect(), next_seq, kept_seq: next_seq })
    }

    /// Before a commit: keeps what is written once for the whole group.
    pub(super) fn finish(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        if self.kept_seq != self.next_seq {
            sql::set_next_seq(connection, self.next_seq)?;
            self.kept_seq = self.next_seq;
        }
        Ok(())
    }

    /// When the next message of a queue becomes visible by itself.
    pub(super) fn next_due(&self, key: &QueueKey) -> Option<Millis> {
        self.queues.get(key)?.queue.next_due()
    }

    pub(crate) fn get(&self, key: &QueueKey) -> Option<&Entry> {
        self.queues.get(key)
    }

    /// The queues of an account and region, by name.
    pub(crate) fn of(&self, account: &str, region: &str) -> impl Iterator<Item = (&QueueKey, &Entry)> {
        self.queues.iter().filter(move |(key, _)| key.account == account && key.region == region)
    }

    pub(crate) fn create(
        &mut self,
        connection: &Connection,
        key: QueueKey,
        attributes: Attributes,
        tags: BTreeMap<String, String>,
        now: Millis,
    ) -> rusqlite::Result<()> {
        let number = sql::insert_queue(connection, (&key.account, &key.region, &key.name), now)?;
        let queue = Queue::new(attributes.fifo);
        let entry = Entry { number, attributes, tags, created: now, modified: now, queue };
        keep(connection, &entry)?;
        self.queues.insert(key, entry);
        Ok(())
    }

    /// Replaces attributes, tags and the time of the last change.
    pub(crate) fn update(
        &mut self,
        connection: &Connection,
        key: &QueueKey,
        change: impl FnOnce(&mut Entry),
    ) -> rusqlite::Result<()> {
        match self.queues.get_mut(key) {
            Some(entry) => {
                change(entry);
                keep(connection, entry)
            }
            None => Ok(()),
        }
    }

    pub(crate) fn delete_queue(&mut self, connection: &Connection, key: &QueueKey) -> rusqlite::Result<()> {
        match self.queues.remove(key) {
            Some(entry) => sql::delete_queue(connection, entry.number),
            None => Ok(()),
        }
    }

    pub(crate) fn purge(&mut self, connection: &Connection, key: &QueueKey) -> rusqlite::Result<()> {
        match self.queues.get_mut(key) {
            Some(entry) => {
                entry.queue.purge();
                sql::purge(connection, entry.number)
            }
            None => Ok(()),
        }
    }

    /// The queue without what is older than its retention period.
    pub(crate) fn fresh(
        &mut self,
        connection: &Connection,
        key: &QueueKey,
        now: Millis,
    ) -> rusqlite::Result<Option<&mut Entry>> {
        let Some(entry) = self.queues.get_mut(key) else { return Ok(None) };
        for seq in entry.queue.expire(now - entry.attributes.retention()) {
            sql::delete(connection, seq)?;
        }
        Ok(Some(entry))
    }

    /// Deletes everywhere what is older than its queue's retention period.
    pub(super) fn sweep(&mut self, connection: &Connection, now: Millis) -> rusqlite::Result<()> {
        let keys: Vec<QueueKey> = self.queues.keys().cloned().collect();
        keys.iter().try_for_each(|key| self.fresh(connection, key, now).map(drop))
    }

    /// Puts a message into a queue that is there, unless it is a duplicate.
    pub(crate) fn send(
        &mut self,
        connection: &Connection,
        key: &QueueKey,
        message: Checked,
        now: Millis,
    ) -> rusqlite::Result<Option<Sent>> {
        let seq = self.next_seq;
        let Some(entry) = self.queues.get_mut(key) else { return Ok(None) };
        if let Some(original) = message.dedup.as_ref().and_then(|key| entry.queue.original(key, now)) {
            return Ok(Some(Sent { id: original.id, seq: original.seq }));
        }
        let id = Uuid::new_v4();
        let state = match message.delay {
            0 => MessageState::Visible,
            delay => MessageState::Delayed { until: now + delay },
        };
        let group = message.group.map(Into::into);
        let meta = Meta { id, sent: now, group, state, receives: 0, earlier: 0, first_received: None };
        sql::put(connection, entry.number, seq, &meta)?;
        sql::insert_content(connection, seq, &message.content)?;
        if let Some(key) = message.dedup {
            let original = Original { id, seq, until: now + DEDUPLICATION };
            sql::remember(connection, entry.number, &key, &original, now)?;
            entry.queue.remember(key, original);
        }
        entry.queue.insert(seq, meta);
        self.next_seq += 1;
        Ok(Some(Sent { id, seq }))
    }

    /// Hands out messages of a queue; moves those that were received too often to its dead letter queue.
    pub(super) fn receive(
        &mut self,
        connection: &Connection,
        key: &QueueKey,
        (most, visibility): (usize, Option<Millis>),
        now: Millis,
    ) -> rusqlite::Result<Vec<Received>> {
        let redrive = self.queues.get(key).and_then(|entry| entry.attributes.redrive());
        let dead_letters = redrive.and_then(|redrive| {
            let target = QueueKey::of_arn(&redrive.target).filter(|target| target != key)?;
            self.queues.contains_key(&target).then_some((target, redrive.max_receives))
        });
        let Some(entry) = self.fresh(connection, key, now)? else { return Ok(Vec::new()) };
        let visibility = visibility.unwrap_or_else(|| entry.attributes.visibility());
        let taken = entry.queue.receive(now, most, visibility, dead_letters.as_ref().map(|(_, most)| *most));
        let mut received = Vec::with_capacity(taken.received.len());
        for seq in taken.received {
            let Some(meta) = entry.queue.get(seq) else { continue };
            sql::put(connection, entry.number, seq, meta)?;
            let receipt = Receipt { queue: entry.number, seq, receive: meta.all_receives(), id: meta.id };
            received.push(Received { receipt, meta: meta.clone(), content: sql::content(connection, seq)? });
        }
        if let Some((target, _)) = dead_letters {
            for (seq, meta) in taken.dead {
                self.bury(connection, key, &target, seq, meta, now)?;
            }
        }
        Ok(received)
    }

    /// Puts a message that was taken out of `source` into its dead letter queue.
    fn bury(
        &mut self,
        connection: &Connection,
        source: &QueueKey,
        target: &QueueKey,
        seq: Seq,
        meta: Meta,
        now: Millis,
    ) -> rusqlite::Result<()> {
        let Some(entry) = self.queues.get_mut(target) else { return Ok(()) };
        let mut content: Content = sql::content(connection, seq)?;
        content.details.dead_of = Some(source.arn());
        sql::delete(connection, seq)?;
        let new = self.next_seq;
        self.next_seq += 1;
        let meta = Meta {
            state: MessageState::Visible,
            earlier: meta.all_receives(),
            receives: 0,
            // A FIFO queue counts the age anew, a standard queue does not.
            sent: if entry.attributes.fifo { now } else { meta.sent },
            ..meta
        };
        sql::put(connection, entry.number, new, &meta)?;
        sql::insert_content(connection, new, &content)?;
        entry.queue.insert(new, meta);
        Ok(())
    }

    /// Deletes the message of a receipt. A message that is gone, or of a standard queue was received again since, stays as it is.
    ///
    /// # Errors
    /// [`Unusable::NotInFlight`] if the queue is a FIFO queue and the message is visible again or was received again.
    pub(crate) fn delete_message(
        &mut self,
        connection: &Connection,
        key: &QueueKey,
        receipt: &Receipt,
        now: Millis,
    ) -> rusqlite::Result<Result<(), Unusable>> {
        let Some(entry) = self.fresh(connection, key, now)? else { return Ok(Ok(())) };
        entry.queue.counts(now);
        let found = match entry.queue.holder(receipt) {
            Some((seq, meta)) => {
                let in_flight = matches!(meta.state, MessageState::InFlight { .. });
                (in_flight || !entry.attributes.fifo).then_some(seq)
            }
            None if entry.attributes.fifo && entry.queue.contains(receipt) => None,
            None => return Ok(Ok(())),
        };
        let Some(seq) = found else { return Ok(Err(Unusable::NotInFlight)) };
        entry.queue.remove(seq);
        sql::delete(connection, seq).map(Ok)
    }

    /// Changes when the message of a receipt becomes visible.
    pub(crate) fn change_visibility(
        &mut self,
        connection: &Connection,
        key: &QueueKey,
        receipt: &Receipt,
        visibility: Millis,
        now: Millis,
    ) -> rusqlite::Result<Result<(), Unusable>> {
        let Some(entry) = self.fresh(connection, key, now)? else { return Ok(Err(Unusable::Stale)) };
        match entry.queue.change_visibility(receipt, now, visibility) {
            Ok(seq) => {
                if let Some(meta) = entry.queue.get(seq) {
                    sql::put(connection, entry.number, seq, meta)?;
                }
                Ok(Ok(()))
            }
            Err(unusable) => Ok(Err(unusable)),
        }
    }
}

/// What the names of FIFO queues end with.
pub(crate) const FIFO_SUFFIX: &str = ".fifo";

fn keep(connection: &Connection, entry: &Entry) -> rusqlite::Result<()> {
    let json = |map: &BTreeMap<String, String>| serde_json::to_string(map).expect("text always becomes JSON");
    sql::update_queue(connection, entry.number, &json(entry.attributes.set()), &json(&entry.tags), entry.modified)
}
