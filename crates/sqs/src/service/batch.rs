//! The operations on up to ten messages. Each entry succeeds or fails by itself.

use std::collections::BTreeSet;

use sqs_api::types::*;
use sqs_api::{ApiError, ErrorCode};

use super::messages::{change, delete, send, sequence_number};
use super::{Caller, SqsService, no_such_queue};
use crate::attributes::MAX_MESSAGE_BYTES;
use crate::message::Draft;

/// Entries that a batch may have.
const MAX_ENTRIES: usize = 10;

impl SqsService {
    pub(super) async fn send_message_batch(
        &self,
        caller: &Caller,
        input: SendMessageBatchRequest,
    ) -> Result<SendMessageBatchResult, ApiError> {
        let key = caller.key(&input.queue_url)?;
        check_ids("SendMessageBatchRequestEntry", input.entries.iter().map(|entry| entry.id.as_str()))?;
        let drafts: Vec<(String, Draft)> =
            input.entries.into_iter().map(|entry| (entry.id.clone(), Draft::from(entry))).collect();
        let size: usize = drafts.iter().map(|(_, draft)| draft.size()).sum();
        if size > MAX_MESSAGE_BYTES {
            return Err(ApiError::new(
                ErrorCode::BatchRequestTooLong,
                format!("Batch requests cannot be longer than {MAX_MESSAGE_BYTES} bytes. You have sent {size} bytes."),
            ));
        }
        let sender = caller.clone();
        self.store
            .apply(true, move |state, connection, now| {
                if state.get(&key).is_none() {
                    return Ok(Err(no_such_queue()));
                }
                let mut result = SendMessageBatchResult::default();
                for (id, draft) in drafts {
                    match send(state, connection, &key, draft, &sender, now)? {
                        Ok((sent, digests, fifo)) => result.successful.push(SendMessageBatchResultEntry {
                            id,
                            message_id: sent.id.to_string(),
                            md5_of_message_body: digests.body,
                            md5_of_message_attributes: digests.attributes,
                            md5_of_message_system_attributes: digests.system,
                            sequence_number: fifo.then(|| sequence_number(sent.seq)),
                        }),
                        Err(error) => result.failed.push(failed(id, error)),
                    }
                }
                Ok(Ok(result))
            })
            .await
    }

    pub(super) async fn delete_message_batch(
        &self,
        caller: &Caller,
        input: DeleteMessageBatchRequest,
    ) -> Result<DeleteMessageBatchResult, ApiError> {
        let key = caller.key(&input.queue_url)?;
        check_ids("DeleteMessageBatchRequestEntry", input.entries.iter().map(|entry| entry.id.as_str()))?;
        self.store
            .apply(true, move |state, connection, now| {
                if state.get(&key).is_none() {
                    return Ok(Err(no_such_queue()));
                }
                let mut result = DeleteMessageBatchResult::default();
                for entry in input.entries {
                    match delete(state, connection, &key, &entry.receipt_handle, now)? {
                        Ok(()) => result.successful.push(DeleteMessageBatchResultEntry { id: entry.id }),
                        Err(error) => result.failed.push(failed(entry.id, error)),
                    }
                }
                Ok(Ok(result))
            })
            .await
    }

    pub(super) async fn change_message_visibility_batch(
        &self,
        caller: &Caller,
        input: ChangeMessageVisibilityBatchRequest,
    ) -> Result<ChangeMessageVisibilityBatchResult, ApiError> {
        let key = caller.key(&input.queue_url)?;
        check_ids("ChangeMessageVisibilityBatchRequestEntry", input.entries.iter().map(|entry| entry.id.as_str()))?;
        self.store
            .apply(false, move |state, connection, now| {
                if state.get(&key).is_none() {
                    return Ok(Err(no_such_queue()));
                }
                let mut result = ChangeMessageVisibilityBatchResult::default();
                for entry in input.entries {
                    match change(state, connection, &key, &entry.receipt_handle, entry.visibility_timeout, now)? {
                        Ok(()) => result.successful.push(ChangeMessageVisibilityBatchResultEntry { id: entry.id }),
                        Err(error) => result.failed.push(failed(entry.id, error)),
                    }
                }
                Ok(Ok(result))
            })
            .await
    }
}

/// Between one and ten entries, each with an id of its own.
fn check_ids<'a>(entry: &str, ids: impl ExactSizeIterator<Item = &'a str>) -> Result<(), ApiError> {
    match ids.len() {
        0 => {
            let message = format!("There should be at least one {entry} in the request.");
            return Err(ApiError::new(ErrorCode::EmptyBatchRequest, message));
        }
        1..=MAX_ENTRIES => {}
        count => {
            let message = format!("Maximum number of entries per request are {MAX_ENTRIES}. You have sent {count}.");
            return Err(ApiError::new(ErrorCode::TooManyEntriesInBatchRequest, message));
        }
    }
    let mut seen = BTreeSet::new();
    for id in ids {
        if !(1..=80).contains(&id.len()) || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            return Err(ApiError::new(
                ErrorCode::InvalidBatchEntryId,
                "A batch entry id can only contain alphanumeric characters, hyphens and underscores. It can be at most 80 \
                 letters long.",
            ));
        }
        if !seen.insert(id) {
            return Err(ApiError::new(ErrorCode::BatchEntryIdsNotDistinct, format!("Id {id} repeated.")));
        }
    }
    Ok(())
}

fn failed(id: String, error: ApiError) -> BatchResultErrorEntry {
    BatchResultErrorEntry {
        id,
        sender_fault: error.code.is_senders_fault(),
        code: error.code.query_name().to_owned(),
        message: Some(error.message),
    }
}
