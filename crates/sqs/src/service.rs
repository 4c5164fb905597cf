//! From requests to the store and back: names, URLs, and one function per operation.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use domain::Clock;
use http::header::{HeaderName, HeaderValue};
use sqlite_file::FileError;
use sqs_api::{ApiError, ErrorCode, OperationId, decode, encode, operations};
use uuid::Uuid;

use crate::message::invalid;
use crate::store::{QueueKey, Store};

mod batch;
mod messages;
mod queues;

/// An embedded SQS endpoint. Cheap to clone; all clones share one file.
#[derive(Clone)]
pub struct SqsService {
    store: Store,
}

impl std::fmt::Debug for SqsService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqsService").finish_non_exhaustive()
    }
}

/// Who calls, and how.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    account: String,
    region: String,
    base_url: String,
    /// The trace that the request is part of.
    trace_header: Option<String>,
}

impl SqsService {
    /// Opens the file of queues and messages, or makes it (and its folder) if there is none. One process at a time.
    ///
    /// # Errors
    /// [`FileError::Damaged`] if the file is damaged, not Emberbox's, or of a newer version, [`FileError::Unavailable`]
    /// if another process uses it or the disk does not let us; both say what to do.
    pub async fn open(path: impl AsRef<Path>, clock: Arc<dyn Clock>) -> Result<Self, FileError> {
        Ok(Self { store: Store::open(path.as_ref(), clock).await? })
    }

    /// Answers a request of the AWS JSON protocol whose signature was checked: `account` and `region` are those that it
    /// was signed for, `target` is the header `X-Amz-Target`, `base_url` the scheme and authority that the client used,
    /// such as `http://localhost:9001`, `trace_header` the header `X-Amzn-Trace-Id`, if there is one: messages that are sent
    /// keep it, so that a loop through queues is found. A ReceiveMessage may take 20 seconds; dropping the future gives its messages back.
    pub async fn handle(
        &self,
        account: &str,
        region: &str,
        base_url: &str,
        target: &str,
        trace_header: Option<&str>,
        body: Bytes,
    ) -> http::Response<Bytes> {
        let caller = Caller {
            account: account.to_owned(),
            region: region.to_owned(),
            base_url: base_url.trim_end_matches('/').to_owned(),
            trace_header: trace_header.filter(|header| (1..=TRACE_HEADER).contains(&header.len())).map(str::to_owned),
        };
        let answer = match sqs_api::operation(target) {
            Ok(operation) => self.dispatch(operation, &caller, &body).await,
            Err(error) => Err(error),
        };
        let mut response = answer.unwrap_or_else(|error| error.to_response());
        let id = HeaderValue::from_str(&Uuid::new_v4().to_string()).expect("a UUID is a valid header value");
        response.headers_mut().insert(REQUEST_ID, id);
        response
    }

    /// Closes the file. Receives that wait end without messages; all later calls get an error. To be called first when a
    /// server drains its connections, or long polls keep them for 20 seconds.
    pub async fn close(&self) {
        self.store.close().await;
    }

    async fn dispatch(
        &self,
        operation: OperationId,
        caller: &Caller,
        body: &[u8],
    ) -> Result<http::Response<Bytes>, ApiError> {
        macro_rules! serve {
            ($($name:ident => $function:ident;)+) => {
                match operation {
                    $(OperationId::$name => {
                        let input = decode::<operations::$name>(body)?;
                        Ok(encode::<operations::$name>(&self.$function(caller, input).await?))
                    })+
                    OperationId::AddPermission
                    | OperationId::CancelMessageMoveTask
                    | OperationId::ListMessageMoveTasks
                    | OperationId::RemovePermission
                    | OperationId::StartMessageMoveTask => Err(ApiError::new(
                        ErrorCode::NotImplemented,
                        format!("Emberbox's SQS does not have the operation {operation}."),
                    )),
                }
            };
        }
        serve! {
            ChangeMessageVisibility => change_message_visibility;
            ChangeMessageVisibilityBatch => change_message_visibility_batch;
            CreateQueue => create_queue;
            DeleteMessage => delete_message;
            DeleteMessageBatch => delete_message_batch;
            DeleteQueue => delete_queue;
            GetQueueAttributes => get_queue_attributes;
            GetQueueUrl => get_queue_url;
            ListDeadLetterSourceQueues => list_dead_letter_source_queues;
            ListQueueTags => list_queue_tags;
            ListQueues => list_queues;
            PurgeQueue => purge_queue;
            ReceiveMessage => receive_message;
            SendMessage => send_message;
            SendMessageBatch => send_message_batch;
            SetQueueAttributes => set_queue_attributes;
            TagQueue => tag_queue;
            UntagQueue => untag_queue;
        }
    }
}

/// Longest header of a trace that a message keeps, in bytes.
const TRACE_HEADER: usize = 1024;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

impl Caller {
    /// The URL of a queue, for this caller.
    fn url(&self, key: &QueueKey) -> String {
        format!("{}/{}/{}", self.base_url, key.account, key.name)
    }

    /// The queue of a URL. Only its path counts, so that a queue is found by whichever name the host is called.
    fn key(&self, url: &str) -> Result<QueueKey, ApiError> {
        let path = url.split_once("://").map_or(url, |(_, rest)| rest);
        let mut parts = path.trim_end_matches('/').rsplit('/');
        let (name, account) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if account.len() != 12 || !account.bytes().all(|b| b.is_ascii_digit()) || name.is_empty() {
            return Err(ApiError::new(
                ErrorCode::InvalidAddress,
                format!("The address {url} is not valid for this endpoint."),
            ));
        }
        if account != self.account {
            return Err(ApiError::new(
                ErrorCode::AccessDenied,
                format!("Access to the resource {url} is denied: it belongs to another account."),
            ));
        }
        Ok(QueueKey { account: account.to_owned(), region: self.region.clone(), name: name.to_owned() })
    }

    /// The caller's queue of that name.
    fn named(&self, name: &str) -> QueueKey {
        QueueKey { account: self.account.clone(), region: self.region.clone(), name: name.to_owned() }
    }
}

pub(crate) fn no_such_queue() -> ApiError {
    ApiError::new(ErrorCode::QueueDoesNotExist, "The specified queue does not exist.")
}

/// A parameter that must lie within bounds, if it is given.
fn within(
    value: Option<i32>,
    parameter: &str,
    bounds: std::ops::RangeInclusive<i32>,
    reason: &str,
) -> Result<(), ApiError> {
    match value {
        Some(value) if !bounds.contains(&value) => {
            Err(invalid(format!("Value {value} for parameter {parameter} is invalid. Reason: {reason}")))
        }
        _ => Ok(()),
    }
}
