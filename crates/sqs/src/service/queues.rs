//! The operations on queues.

use std::collections::BTreeMap;

use sqs_api::types::*;
use sqs_api::{ApiError, ErrorCode};

use super::{Caller, SqsService, no_such_queue, within};
use crate::attributes::{Attributes, unknown};
use crate::message::invalid;
use crate::queue::Millis;
use crate::store::{Entry, FIFO_SUFFIX, QueueKey, State};

/// Tags that a queue may have.
const MAX_TAGS: usize = 50;
/// Entries of a list's page, unless the caller wants fewer.
const PAGE: usize = 1000;

impl SqsService {
    pub(super) async fn create_queue(
        &self,
        caller: &Caller,
        input: CreateQueueRequest,
    ) -> Result<CreateQueueResult, ApiError> {
        check_name(&input.queue_name)?;
        let key = caller.named(&input.queue_name);
        let wanted = input.attributes.unwrap_or_default();
        let tags = input.tags.unwrap_or_default();
        check_tags(&tags)?;
        let attributes = Attributes::new(key.name.ends_with(FIFO_SUFFIX), &wanted)?;
        let url = caller.url(&key);
        self.store
            .apply(true, move |state, connection, now| {
                if let Some(entry) = state.get(&key) {
                    return Ok(match entry.attributes.difference(&normalized(&attributes, &wanted)) {
                        None => Ok(()),
                        Some(name) => Err(ApiError::new(
                            ErrorCode::QueueNameExists,
                            format!(
                                "A queue already exists with the same name and a different value for attribute {name}"
                            ),
                        )),
                    });
                }
                if let Err(error) = check_redrive(state, &key, &attributes) {
                    return Ok(Err(error));
                }
                state.create(connection, key, attributes, tags, now).map(Ok)
            })
            .await?;
        Ok(CreateQueueResult { queue_url: Some(url) })
    }

    pub(super) async fn get_queue_url(
        &self,
        caller: &Caller,
        input: GetQueueUrlRequest,
    ) -> Result<GetQueueUrlResult, ApiError> {
        // Nobody has access to queues of other accounts, and AWS does not tell whether there is one.
        if input.queue_owner_aws_account_id.is_some_and(|owner| owner != caller.account) {
            return Err(no_such_queue());
        }
        let key = caller.named(&input.queue_name);
        let url = caller.url(&key);
        self.with_queue(key, |_| ()).await?;
        Ok(GetQueueUrlResult { queue_url: Some(url) })
    }

    pub(super) async fn get_queue_attributes(
        &self,
        caller: &Caller,
        input: GetQueueAttributesRequest,
    ) -> Result<GetQueueAttributesResult, ApiError> {
        let key = caller.key(&input.queue_url)?;
        let names: Vec<String> =
            input.attribute_names.unwrap_or_default().iter().map(|name| name.as_str().to_owned()).collect();
        if let Some(name) = names.iter().find(|name| !QueueAttributeName::VALUES.contains(&name.as_str())) {
            return Err(unknown(name));
        }
        let all = self
            .store
            .apply(false, move |state, connection, now| {
                Ok(match state.fresh(connection, &key, now)? {
                    Some(entry) => Ok(describe(&key, entry, now)),
                    None => Err(no_such_queue()),
                })
            })
            .await?;
        let everything = names.iter().any(|name| name == "All");
        let wanted: BTreeMap<_, _> = all.into_iter().filter(|(name, _)| everything || names.contains(name)).collect();
        Ok(GetQueueAttributesResult { attributes: (!wanted.is_empty()).then_some(wanted) })
    }

    pub(super) async fn set_queue_attributes(
        &self,
        caller: &Caller,
        input: SetQueueAttributesRequest,
    ) -> Result<SetQueueAttributesResponse, ApiError> {
        let key = caller.key(&input.queue_url)?;
        self.store
            .apply(true, move |state, connection, now| {
                let Some(entry) = state.get(&key) else { return Ok(Err(no_such_queue())) };
                let mut attributes = entry.attributes.clone();
                let checked =
                    attributes.change(&input.attributes).and_then(|()| check_redrive(state, &key, &attributes));
                if let Err(error) = checked {
                    return Ok(Err(error));
                }
                let set = |entry: &mut Entry| {
                    entry.attributes = attributes;
                    entry.modified = now;
                };
                state.update(connection, &key, set).map(Ok)
            })
            .await?;
        Ok(SetQueueAttributesResponse)
    }

    pub(super) async fn list_queues(
        &self,
        caller: &Caller,
        input: ListQueuesRequest,
    ) -> Result<ListQueuesResult, ApiError> {
        let prefix = input.queue_name_prefix.unwrap_or_default();
        let account = caller.clone();
        let names = self
            .store
            .apply(false, move |state, _, _| {
                let names = state.of(&account.account, &account.region).map(|(key, _)| key.name.clone());
                Ok(Ok(names.filter(|name| name.starts_with(&prefix)).collect::<Vec<_>>()))
            })
            .await?;
        let (urls, next_token) = page(caller, names, input.max_results, input.next_token)?;
        Ok(ListQueuesResult { queue_urls: (!urls.is_empty()).then_some(urls), next_token })
    }

    pub(super) async fn list_dead_letter_source_queues(
        &self,
        caller: &Caller,
        input: ListDeadLetterSourceQueuesRequest,
    ) -> Result<ListDeadLetterSourceQueuesResult, ApiError> {
        let key = caller.key(&input.queue_url)?;
        let names = self
            .store
            .apply(false, move |state, _, _| {
                if state.get(&key).is_none() {
                    return Ok(Err(no_such_queue()));
                }
                let arn = key.arn();
                let dies_here = |entry: &Entry| entry.attributes.redrive().is_some_and(|redrive| redrive.target == arn);
                let sources = state.of(&key.account, &key.region).filter(|(_, entry)| dies_here(entry));
                Ok(Ok(sources.map(|(source, _)| source.name.clone()).collect::<Vec<_>>()))
            })
            .await?;
        let (queue_urls, next_token) = page(caller, names, input.max_results, input.next_token)?;
        Ok(ListDeadLetterSourceQueuesResult { queue_urls, next_token })
    }

    pub(super) async fn delete_queue(
        &self,
        caller: &Caller,
        input: DeleteQueueRequest,
    ) -> Result<DeleteQueueResponse, ApiError> {
        let key = caller.key(&input.queue_url)?;
        self.store
            .apply(true, move |state, connection, _| {
                if state.get(&key).is_none() {
                    return Ok(Err(no_such_queue()));
                }
                state.delete_queue(connection, &key).map(Ok)
            })
            .await?;
        Ok(DeleteQueueResponse)
    }

    pub(super) async fn purge_queue(
        &self,
        caller: &Caller,
        input: PurgeQueueRequest,
    ) -> Result<PurgeQueueResponse, ApiError> {
        let key = caller.key(&input.queue_url)?;
        self.store
            .apply(true, move |state, connection, _| {
                if state.get(&key).is_none() {
                    return Ok(Err(no_such_queue()));
                }
                state.purge(connection, &key).map(Ok)
            })
            .await?;
        Ok(PurgeQueueResponse)
    }

    pub(super) async fn tag_queue(
        &self,
        caller: &Caller,
        input: TagQueueRequest,
    ) -> Result<TagQueueResponse, ApiError> {
        check_tags(&input.tags)?;
        self.change_tags(caller.key(&input.queue_url)?, |tags| tags.extend(input.tags)).await?;
        Ok(TagQueueResponse)
    }

    pub(super) async fn untag_queue(
        &self,
        caller: &Caller,
        input: UntagQueueRequest,
    ) -> Result<UntagQueueResponse, ApiError> {
        let keys = input.tag_keys;
        self.change_tags(caller.key(&input.queue_url)?, move |tags| tags.retain(|key, _| !keys.contains(key))).await?;
        Ok(UntagQueueResponse)
    }

    pub(super) async fn list_queue_tags(
        &self,
        caller: &Caller,
        input: ListQueueTagsRequest,
    ) -> Result<ListQueueTagsResult, ApiError> {
        let tags = self.with_queue(caller.key(&input.queue_url)?, |entry| entry.tags.clone()).await?;
        Ok(ListQueueTagsResult { tags: (!tags.is_empty()).then_some(tags) })
    }

    async fn change_tags(
        &self,
        key: QueueKey,
        change: impl FnOnce(&mut BTreeMap<String, String>) + Send + 'static,
    ) -> Result<(), ApiError> {
        self.store
            .apply(true, move |state, connection, _| {
                let Some(entry) = state.get(&key) else { return Ok(Err(no_such_queue())) };
                let mut tags = entry.tags.clone();
                change(&mut tags);
                if tags.len() > MAX_TAGS {
                    return Ok(Err(too_many_tags()));
                }
                state.update(connection, &key, |entry| entry.tags = tags).map(Ok)
            })
            .await
    }

    /// Looks at a queue.
    async fn with_queue<T: Send + 'static>(
        &self,
        key: QueueKey,
        look: impl FnOnce(&Entry) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        self.store.apply(false, move |state, _, _| Ok(state.get(&key).map(look).ok_or_else(no_such_queue))).await
    }
}

/// The wanted attributes in the form in which they are kept.
fn normalized(attributes: &Attributes, wanted: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let all = attributes.all();
    wanted.keys().filter_map(|name| all.get(name).map(|value| (name.clone(), value.clone()))).collect()
}

fn describe(key: &QueueKey, entry: &mut Entry, now: Millis) -> BTreeMap<String, String> {
    let counts = entry.queue.counts(now);
    let mut all = entry.attributes.all();
    for (name, value) in [
        ("ApproximateNumberOfMessages", counts.visible.to_string()),
        ("ApproximateNumberOfMessagesDelayed", counts.delayed.to_string()),
        ("ApproximateNumberOfMessagesNotVisible", counts.in_flight.to_string()),
        ("CreatedTimestamp", (entry.created / 1000).to_string()),
        ("LastModifiedTimestamp", (entry.modified / 1000).to_string()),
        ("QueueArn", key.arn()),
    ] {
        all.insert(name.to_owned(), value);
    }
    all
}

/// Whether the queue may send its dead messages where its redrive policy says.
fn check_redrive(state: &State, key: &QueueKey, attributes: &Attributes) -> Result<(), ApiError> {
    let Some(redrive) = attributes.redrive() else { return Ok(()) };
    let policy = attributes.set().get("RedrivePolicy").map_or("", String::as_str);
    let refused =
        |reason: &str| invalid(format!("Value {policy} for parameter RedrivePolicy is invalid. Reason: {reason}"));
    let target = QueueKey::of_arn(&redrive.target).ok_or_else(|| refused("Invalid value for deadLetterTargetArn."))?;
    if (&target.account, &target.region) != (&key.account, &key.region) {
        return Err(refused("Dead letter target must be of the same account and region."));
    }
    let Some(entry) = state.get(&target) else { return Err(refused("Dead letter target does not exist.")) };
    if entry.attributes.fifo != attributes.fifo {
        return Err(refused("Dead-letter queue must be same type of queue as the source."));
    }
    if !entry.attributes.takes_dead_of(&key.arn()) {
        return Err(refused(&format!(
            "Queue {} is not permitted by the redrive allow policy of the dead-letter queue.",
            key.arn()
        )));
    }
    Ok(())
}

/// One page of queues, and where the next one begins. A token is the last name of the page before.
fn page(
    caller: &Caller,
    names: Vec<String>,
    max_results: Option<i32>,
    token: Option<String>,
) -> Result<(Vec<String>, Option<String>), ApiError> {
    within(max_results, "MaxResults", 1..=1000, "MaxResults must be an integer between 1 and 1000.")?;
    if token.is_some() && max_results.is_none() {
        return Err(invalid("MaxResults is a mandatory parameter when you provide a value for NextToken."));
    }
    let most = max_results.and_then(|most| usize::try_from(most).ok()).unwrap_or(PAGE);
    let mut rest = names.into_iter().filter(|name| token.as_ref().is_none_or(|token| name > token));
    let page: Vec<String> = rest.by_ref().take(most).collect();
    // AWS pages only those who ask for pages.
    let next = page.last().cloned().filter(|_| max_results.is_some() && rest.next().is_some());
    Ok((page.iter().map(|name| caller.url(&caller.named(name))).collect(), next))
}

fn check_name(name: &str) -> Result<(), ApiError> {
    let stem = name.strip_suffix(FIFO_SUFFIX).unwrap_or(name);
    let fine = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
    if name.len() <= 80 && !stem.is_empty() && stem.bytes().all(fine) {
        return Ok(());
    }
    Err(invalid("Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length"))
}

fn check_tags(tags: &BTreeMap<String, String>) -> Result<(), ApiError> {
    if tags.len() > MAX_TAGS {
        return Err(too_many_tags());
    }
    for (key, value) in tags {
        if key.is_empty() || key.chars().count() > 128 || value.chars().count() > 256 {
            return Err(invalid(format!("Tag {key:?} is invalid: keys have 1 to 128 characters, values up to 256.")));
        }
    }
    Ok(())
}

fn too_many_tags() -> ApiError {
    invalid(format!("Too many tags: a queue can have {MAX_TAGS}."))
}
