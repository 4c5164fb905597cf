//! The worker's logs, for the Frontend to read.

use async_trait::async_trait;
use domain::AccountId;
use frontend::ports::{self, LogEvent, LogGroup, LogPage, LogQuery, LogStream, LogsError};
use worker::logs::{Filter, GroupId, LogStore};

/// Reads the logs of the worker in this process.
pub struct Logs(pub LogStore);

#[async_trait]
impl ports::Logs for Logs {
    async fn groups(&self, account: &AccountId, region: &str) -> Result<Vec<String>, LogsError> {
        Ok(self.0.groups(account, region).await.into_iter().map(|group| group.group).collect())
    }

    async fn streams(&self, group: &LogGroup) -> Result<Vec<LogStream>, LogsError> {
        let streams = self.0.streams(&id(group)).await.map_err(failed)?;
        let stream =
            |s: worker::logs::StreamInfo| LogStream { name: s.name, first: s.first, last: s.last, bytes: s.bytes };
        Ok(streams.into_iter().map(stream).collect())
    }

    async fn events(&self, group: &LogGroup, query: LogQuery) -> Result<LogPage, LogsError> {
        let place = |text: Option<String>| text.map(|text| text.parse().map_err(|_| LogsError::Token)).transpose();
        let filter = Filter {
            streams: query.streams,
            stream_prefix: query.stream_prefix,
            start: query.start,
            end: query.end,
            pattern: query.pattern,
            limit: query.limit,
            from: place(query.from)?,
            until: place(query.until)?,
        };
        let page = self.0.events(&id(group), filter).await.map_err(failed)?;
        let event = |e: worker::logs::Event| LogEvent {
            id: e.id.to_string(),
            stream: e.stream,
            timestamp: e.timestamp,
            message: e.message,
        };
        Ok(LogPage {
            events: page.events.into_iter().map(event).collect(),
            next: page.next.to_string(),
            more: page.more,
        })
    }
}

fn id(group: &LogGroup) -> GroupId {
    GroupId { account: group.account.clone(), region: group.region.clone(), group: group.name.clone() }
}

fn failed(error: impl std::fmt::Display) -> LogsError {
    LogsError::Failed(error.to_string())
}
