//! An embedded Amazon SQS endpoint: a user on a laptop needs a queue.
//!
//! - [`SqsService::open`]`(path, clock)` opens the file of queues and messages.
//! - [`SqsService::handle`]`(account, region, base_url, target, body)` answers one request of the AWS JSON 1.0 protocol, as
//!   `http::Response<Bytes>` with all of its headers. The caller has checked the signature and routes here whatever has
//!   an `X-Amz-Target` of `AmazonSQS.…`, on any path.
//! - [`SqsService::close`]`()` closes the file.
//!
//! Queues belong to an account and a region; their URLs are `<base_url>/<account>/<name>`, of which only the path counts when
//! they come back. The operations on permissions and on message move tasks answer 501 and name themselves.
//!
//! Parts: `queue` decides (pure), `store` keeps (SQLite, one thread, commits grouped), `message` and `attributes` check,
//! `service` has the operations; the wire model is the crate `sqs-api`.
//!
//! # Why not `event-queue`
//! Its contract is that of an internal queue: it leases across all queues with fairness and without order, ends all
//! leases when the file is opened, and knows events only as bytes. SQS needs the order of message groups, receipt
//! handles and timeouts that outlive a restart, a timeout per message, duplicates by id for five minutes, counts by
//! state, retention, and moves between queues by receive count. Little but the grouping of commits would be shared.
//!
//! # Where it differs from AWS
//! - A receive finds every visible message, a queue is there at once, and counts are exact.
//! - PurgeQueue, and CreateQueue after DeleteQueue, need no 60 seconds in between.
//! - `Policy` and the attributes of encryption are kept and shown, and do nothing: access ends at the account, and
//!   encryption at rest is the disk's.
//! - `ReceiveRequestAttemptId` is accepted and not used: a receive whose answer is lost is repeated after the timeout.
//! - A standard queue's `MessageGroupId` is kept and shown, and does not make it fair.
#![forbid(unsafe_code)]

mod attributes;
mod message;
mod queue;
mod receipt;
mod service;
mod store;

pub use service::SqsService;
pub use sqlite_file::FileError;
