//! The four operations. Limits and defaults are CloudWatch Logs'.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::Refusal;
use crate::auth::Identity;
use crate::ports::{LogEvent, LogGroup, LogQuery, Logs};

/// Most events of one answer.
const EVENTS: usize = 10_000;
/// Most bytes of their messages that are kept on the way to the end of a log.
const TAIL_BYTES: usize = 1 << 20;
/// Most groups or streams of one answer.
const DESCRIBED: usize = 50;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct FilterRequest {
    log_group_name: Option<String>,
    log_group_identifier: Option<String>,
    log_stream_names: Vec<String>,
    log_stream_name_prefix: Option<String>,
    start_time: Option<i64>,
    end_time: Option<i64>,
    filter_pattern: Option<String>,
    next_token: Option<String>,
    limit: Option<i64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FilterResponse {
    events: Vec<FilteredEvent>,
    searched_log_streams: [(); 0],
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FilteredEvent {
    log_stream_name: String,
    timestamp: u64,
    message: String,
    ingestion_time: u64,
    event_id: String,
}

pub(super) async fn filter_log_events(
    logs: &dyn Logs,
    caller: &Identity,
    request: Result<FilterRequest, Refusal>,
) -> Result<FilterResponse, Refusal> {
    let request = request?;
    let group = group(logs, caller, request.log_group_name, request.log_group_identifier).await?;
    if !request.log_stream_names.is_empty() && request.log_stream_name_prefix.is_some() {
        return Err(Refusal::parameter("logStreamNames and logStreamNamePrefix cannot be used together."));
    }
    let query = LogQuery {
        streams: request.log_stream_names,
        stream_prefix: request.log_stream_name_prefix,
        start: time(request.start_time),
        // Here, unlike in GetLogEvents, events at the end time are included.
        end: time(request.end_time).map(|end| end.saturating_add(1)),
        pattern: request.filter_pattern.filter(|pattern| !pattern.is_empty()),
        limit: limit(request.limit, EVENTS)?,
        from: request.next_token,
        until: None,
    };
    let page = logs.events(&group, query).await?;
    let events = page.events.into_iter().map(|event| FilteredEvent {
        log_stream_name: event.stream,
        timestamp: event.timestamp,
        message: event.message,
        ingestion_time: event.timestamp,
        event_id: event.id,
    });
    Ok(FilterResponse {
        events: events.collect(),
        searched_log_streams: [],
        next_token: page.more.then_some(page.next),
    })
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct GetRequest {
    log_group_name: Option<String>,
    log_group_identifier: Option<String>,
    log_stream_name: Option<String>,
    start_time: Option<i64>,
    end_time: Option<i64>,
    next_token: Option<String>,
    limit: Option<i64>,
    start_from_head: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GetResponse {
    events: Vec<OutputEvent>,
    next_forward_token: String,
    next_backward_token: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OutputEvent {
    timestamp: u64,
    message: String,
    ingestion_time: u64,
}

/// Tokens are `f/<place>` and `b/<place>`: the events from a place on, or those before it. As on AWS, an answer at the
/// end of a stream repeats the token that led to it.
pub(super) async fn get_log_events(
    logs: &dyn Logs,
    caller: &Identity,
    request: Result<GetRequest, Refusal>,
) -> Result<GetResponse, Refusal> {
    let request = request?;
    let group = group(logs, caller, request.log_group_name, request.log_group_identifier).await?;
    let stream = request.log_stream_name.ok_or_else(|| Refusal::parameter("logStreamName is missing."))?;
    if !logs.streams(&group).await?.iter().any(|s| s.name == stream) {
        return Err(Refusal::new("ResourceNotFoundException", "The specified log stream does not exist."));
    }
    let limit = limit(request.limit, EVENTS)?;
    let mut query = LogQuery {
        streams: vec![stream],
        start: time(request.start_time),
        end: time(request.end_time),
        limit,
        ..LogQuery::default()
    };
    let token = request.next_token.as_deref();
    let (events, next) = match token.map(|token| token.split_once('/')) {
        Some(Some(("f", place))) => {
            query.from = Some(place.to_owned());
            head(logs, &group, query).await?
        }
        Some(Some(("b", place))) => tail(logs, &group, query, Some(place)).await?,
        Some(_) => return Err(crate::ports::LogsError::Token.into()),
        None if request.start_from_head => head(logs, &group, query).await?,
        None => tail(logs, &group, query, None).await?,
    };
    let first = events.first().map_or_else(|| next.clone(), |event| event.id.clone());
    let output = events.into_iter().map(|event| OutputEvent {
        timestamp: event.timestamp,
        message: event.message,
        ingestion_time: event.timestamp,
    });
    Ok(GetResponse {
        events: output.collect(),
        next_forward_token: format!("f/{next}"),
        next_backward_token: format!("b/{first}"),
    })
}

/// The first events, and where the next ones are.
async fn head(logs: &dyn Logs, group: &LogGroup, query: LogQuery) -> Result<(Vec<LogEvent>, String), Refusal> {
    let page = logs.events(group, query).await?;
    Ok((page.events, page.next))
}

/// The last events, or the last before a place, and where those after them are.
async fn tail(
    logs: &dyn Logs,
    group: &LogGroup,
    mut query: LogQuery,
    before: Option<&str>,
) -> Result<(Vec<LogEvent>, String), Refusal> {
    let keep = query.limit;
    query.limit = EVENTS;
    query.until = before.map(str::to_owned);
    let mut last: VecDeque<LogEvent> = VecDeque::new();
    let mut bytes = 0;
    loop {
        let page = logs.events(group, query.clone()).await?;
        for event in page.events {
            bytes += event.message.len();
            last.push_back(event);
            while last.len() > keep || (bytes > TAIL_BYTES && last.len() > 1) {
                bytes -= last.pop_front().map_or(0, |event| event.message.len());
            }
        }
        if !page.more {
            return Ok((last.into(), query.until.unwrap_or(page.next)));
        }
        query.from = Some(page.next);
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct GroupsRequest {
    log_group_name_prefix: Option<String>,
    log_group_name_pattern: Option<String>,
    next_token: Option<String>,
    limit: Option<i64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GroupsResponse {
    log_groups: Vec<Group>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    log_group_name: String,
    arn: String,
    log_group_arn: String,
    metric_filter_count: u32,
    log_group_class: &'static str,
}

pub(super) async fn describe_log_groups(
    logs: &dyn Logs,
    caller: &Identity,
    request: Result<GroupsRequest, Refusal>,
) -> Result<GroupsResponse, Refusal> {
    let request = request?;
    if request.log_group_name_prefix.is_some() && request.log_group_name_pattern.is_some() {
        return Err(Refusal::parameter("logGroupNamePrefix and logGroupNamePattern cannot be used together."));
    }
    let limit = limit(request.limit, DESCRIBED)?;
    let mut names = logs.groups(&caller.account, &caller.region).await?;
    names.retain(|name| {
        request.log_group_name_prefix.as_ref().is_none_or(|prefix| name.starts_with(prefix.as_str()))
            && request.log_group_name_pattern.as_ref().is_none_or(|pattern| name.contains(pattern.as_str()))
            // The token is the last name of the page before: groups that come and go do not disturb the order.
            && request.next_token.as_ref().is_none_or(|last| name > last)
    });
    let more = names.len() > limit;
    names.truncate(limit);
    let next_token = names.last().filter(|_| more).cloned();
    let groups = names.into_iter().map(|name| {
        let arn = arn(caller, &name);
        Group {
            arn: format!("{arn}:*"),
            log_group_arn: arn,
            log_group_name: name,
            metric_filter_count: 0,
            log_group_class: "STANDARD",
        }
    });
    Ok(GroupsResponse { log_groups: groups.collect(), next_token })
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct StreamsRequest {
    log_group_name: Option<String>,
    log_group_identifier: Option<String>,
    log_stream_name_prefix: Option<String>,
    order_by: Option<String>,
    descending: bool,
    next_token: Option<String>,
    limit: Option<i64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StreamsResponse {
    log_streams: Vec<Stream>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Stream {
    log_stream_name: String,
    creation_time: u64,
    first_event_timestamp: u64,
    last_event_timestamp: u64,
    last_ingestion_time: u64,
    arn: String,
    stored_bytes: u64,
}

pub(super) async fn describe_log_streams(
    logs: &dyn Logs,
    caller: &Identity,
    request: Result<StreamsRequest, Refusal>,
) -> Result<StreamsResponse, Refusal> {
    let request = request?;
    let group = group(logs, caller, request.log_group_name, request.log_group_identifier).await?;
    let limit = limit(request.limit, DESCRIBED)?;
    let by_time = match request.order_by.as_deref() {
        None | Some("LogStreamName") => false,
        Some("LastEventTime") => true,
        Some(_) => return Err(Refusal::parameter("orderBy must be LogStreamName or LastEventTime.")),
    };
    let prefix = request.log_stream_name_prefix.unwrap_or_default();
    if by_time && !prefix.is_empty() {
        return Err(Refusal::parameter("Cannot order by LastEventTime with a logStreamNamePrefix."));
    }
    let skip =
        request.next_token.map_or(Ok(0), |token| token.parse::<usize>()).map_err(|_| crate::ports::LogsError::Token)?;
    let mut streams = logs.streams(&group).await?;
    streams.retain(|stream| stream.name.starts_with(&prefix));
    if by_time {
        streams.sort_by_key(|stream| stream.last);
    }
    if request.descending {
        streams.reverse();
    }
    let end = skip.saturating_add(limit);
    let next_token = (streams.len() > end).then(|| end.to_string());
    let arn = arn(caller, &group.name);
    let page = streams.into_iter().skip(skip).take(limit).map(|stream| Stream {
        arn: format!("{arn}:log-stream:{}", stream.name),
        log_stream_name: stream.name,
        creation_time: stream.first,
        first_event_timestamp: stream.first,
        last_event_timestamp: stream.last,
        last_ingestion_time: stream.last,
        stored_bytes: stream.bytes,
    });
    Ok(StreamsResponse { log_streams: page.collect(), next_token })
}

/// The group that a request names by `logGroupName`, or by `logGroupIdentifier` (a name or an ARN).
async fn group(
    logs: &dyn Logs,
    caller: &Identity,
    name: Option<String>,
    identifier: Option<String>,
) -> Result<LogGroup, Refusal> {
    let name = match (name, identifier) {
        (Some(_), Some(_)) => {
            return Err(Refusal::parameter("LogGroup name and identifier cannot be used together."));
        }
        (Some(name), None) => name,
        (None, Some(identifier)) => match identifier.split_once(":log-group:") {
            Some((_, name)) => name.trim_end_matches(":*").to_owned(),
            None => identifier,
        },
        (None, None) => return Err(Refusal::parameter("LogGroup name or identifier is missing.")),
    };
    let group = LogGroup { account: caller.account.clone(), region: caller.region.to_string(), name };
    if logs.groups(&group.account, &group.region).await?.contains(&group.name) {
        Ok(group)
    } else {
        Err(Refusal::new("ResourceNotFoundException", "The specified log group does not exist."))
    }
}

fn arn(caller: &Identity, group: &str) -> String {
    format!("arn:aws:logs:{}:{}:log-group:{group}", caller.region, caller.account)
}

/// Milliseconds since 1970.
fn time(value: Option<i64>) -> Option<u64> {
    value.map(|ms| u64::try_from(ms).unwrap_or(0))
}

fn limit(value: Option<i64>, most: usize) -> Result<usize, Refusal> {
    match value {
        None => Ok(most),
        Some(value) => usize::try_from(value).ok().filter(|n| (1..=most).contains(n)).ok_or_else(|| {
            Refusal::parameter(format!(
                "1 validation error detected: Value '{value}' at 'limit' failed to satisfy constraint: Member must have \
                 value between 1 and {most}"
            ))
        }),
    }
}
