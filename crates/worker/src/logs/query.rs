//! Reading logs back: what CloudWatch Logs' FilterLogEvents, GetLogEvents and Describe… need.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use domain::AccountId;

use super::{GroupId, LogError, LogStore, segment};

/// A page ends after so many bytes of messages, as in CloudWatch Logs: ten thousand of the longest lines would be gigabytes.
const PAGE_BYTES: usize = 1 << 20;

/// Which events are wanted.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Filter {
    /// Only of these streams; empty: of all.
    pub streams: Vec<String>,
    /// Only of streams whose name begins so.
    pub stream_prefix: Option<String>,
    /// Not before this time, in milliseconds since 1970.
    pub start: Option<u64>,
    /// Before this time.
    pub end: Option<u64>,
    /// Words that must all occur in the message, a `"quoted phrase"` as a whole, one with `-` before it not.
    pub pattern: Option<String>,
    /// At most so many, 10,000 if zero.
    pub limit: usize,
    /// Where an earlier page ended.
    pub from: Option<Position>,
    /// Only what is before this place.
    pub until: Option<Position>,
}

/// One event of a log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// Its place, which is also its id.
    pub id: Position,
    /// Its stream.
    pub stream: String,
    /// Milliseconds since 1970.
    pub timestamp: u64,
    /// Without a trailing newline.
    pub message: String,
}

/// A place in a group's log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Position {
    segment: u64,
    offset: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:020}{:020}", self.segment, self.offset)
    }
}

impl FromStr for Position {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text.len() != 40 || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(());
        }
        let number = |part: &str| part.parse().map_err(|_| ());
        Ok(Self { segment: number(&text[..20])?, offset: number(&text[20..])? })
    }
}

/// Some events, and where to read on.
#[derive(Clone, PartialEq, Debug)]
pub struct Page {
    /// In the order of arrival.
    pub events: Vec<Event>,
    /// Where the next page begins; at the end of the log: where later events will be.
    pub next: Position,
    /// Whether there may be more now.
    pub more: bool,
}

/// A log stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamInfo {
    /// Its name.
    pub name: String,
    /// Time of the first event that is still there.
    pub first: u64,
    /// Time of the last event.
    pub last: u64,
    /// Bytes of its messages.
    pub bytes: u64,
}

impl LogStore {
    /// Events of a group in the order of arrival; none for a group that does not exist.
    pub async fn events(&self, group: &GroupId, filter: Filter) -> Result<Page, LogError> {
        let directory = segment::directory(&self.shared.config.dir, group);
        blocking(move || read(&directory, &filter)).await
    }

    /// All groups of an account and region.
    pub async fn groups(&self, account: &AccountId, region: &str) -> Vec<GroupId> {
        let root = self.shared.config.dir.clone();
        let (account, region) = (account.clone(), region.to_owned());
        let mut groups: Vec<GroupId> = blocking(move || group_directories(&root))
            .await
            .into_iter()
            .map(|(group, _)| group)
            .filter(|g| g.account == account && g.region == region)
            .collect();
        groups.sort();
        groups
    }

    /// Streams of a group by name.
    pub async fn streams(&self, group: &GroupId) -> Result<Vec<StreamInfo>, LogError> {
        let directory = segment::directory(&self.shared.config.dir, group);
        blocking(move || {
            let mut streams: BTreeMap<String, StreamInfo> = BTreeMap::new();
            scan(&directory, Position::default(), |_, timestamp, stream, message| {
                let info = streams.entry(stream.to_owned()).or_insert_with(|| StreamInfo {
                    name: stream.to_owned(),
                    first: timestamp,
                    last: timestamp,
                    bytes: 0,
                });
                info.first = info.first.min(timestamp);
                info.last = info.last.max(timestamp);
                info.bytes += message.len() as u64;
                true
            })?;
            Ok(streams.into_values().collect())
        })
        .await
    }
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn read(directory: &Path, filter: &Filter) -> Result<Page, LogError> {
    let limit = if filter.limit == 0 { 10_000 } else { filter.limit };
    let terms = filter.pattern.as_deref().map(terms).unwrap_or_default();
    let mut events = Vec::new();
    let mut bytes = 0;
    let mut over = false;
    let next = scan(directory, filter.from.unwrap_or_default(), |id, timestamp, stream, message| {
        over = filter.until.is_some_and(|until| id >= until);
        if over {
            return false;
        }
        if events.len() == limit || bytes >= PAGE_BYTES {
            return false;
        }
        let wanted = (filter.streams.is_empty() || filter.streams.iter().any(|s| s == stream))
            && filter.stream_prefix.as_ref().is_none_or(|prefix| stream.starts_with(prefix.as_str()))
            && filter.start.is_none_or(|start| timestamp >= start)
            && filter.end.is_none_or(|end| timestamp < end)
            && terms.iter().all(|term| term.matches(message));
        if wanted {
            bytes += message.len();
            events.push(Event { id, stream: stream.to_owned(), timestamp, message: message.to_owned() });
        }
        true
    })?;
    Ok(Page { events, next: next.at, more: next.stopped && !over })
}

struct Stop {
    at: Position,
    stopped: bool,
}

/// Calls `each` for every whole event from `from` on until it returns `false`.
fn scan(
    directory: &Path,
    from: Position,
    mut each: impl FnMut(Position, u64, &str, &str) -> bool,
) -> Result<Stop, LogError> {
    let mut at = from;
    for number in segment::numbers(directory).into_iter().filter(|n| *n >= from.segment) {
        let path = segment::path(directory, number);
        let file = match File::open(&path) {
            Ok(file) => file,
            // Retention was faster.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(LogError::new("open log segment", path)(error)),
        };
        let mut reader = BufReader::with_capacity(256 << 10, file);
        let mut offset = if number == from.segment { from.offset } else { 0 };
        reader.seek(SeekFrom::Start(offset)).map_err(LogError::new("read log segment", &path))?;
        let mut line = Vec::new();
        loop {
            at = Position { segment: number, offset };
            line.clear();
            let length = reader.read_until(b'\n', &mut line).map_err(LogError::new("read log segment", &path))?;
            // A line without an end is still being written.
            if line.pop() != Some(b'\n') {
                break;
            }
            if let Some((timestamp, stream, message)) = segment::decode(&line)
                && !each(at, timestamp, stream, &message)
            {
                return Ok(Stop { at, stopped: true });
            }
            offset += length as u64;
        }
    }
    Ok(Stop { at, stopped: false })
}

/// Every group of the store with its directory.
pub(super) fn group_directories(root: &Path) -> Vec<(GroupId, PathBuf)> {
    let mut found = Vec::new();
    for account_dir in children(root) {
        let Some(account) = name(&account_dir).and_then(|n| AccountId::parse(&n)) else { continue };
        for region_dir in children(&account_dir) {
            let Some(region) = name(&region_dir) else { continue };
            for directory in children(&region_dir) {
                if let Ok(group) = std::fs::read_to_string(directory.join(segment::NAME_FILE)) {
                    found.push((GroupId { account: account.clone(), region: region.clone(), group }, directory));
                }
            }
        }
    }
    found
}

fn children(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory).map(|d| d.filter_map(Result::ok).map(|e| e.path()).collect()).unwrap_or_default()
}

fn name(path: &Path) -> Option<String> {
    path.file_name()?.to_str().map(str::to_owned)
}

struct Term {
    text: String,
    absent: bool,
}

impl Term {
    fn matches(&self, message: &str) -> bool {
        message.contains(&self.text) != self.absent
    }
}

/// The words of a filter pattern.
fn terms(pattern: &str) -> Vec<Term> {
    let mut terms = Vec::new();
    let mut rest = pattern.trim_start();
    while !rest.is_empty() {
        let absent = rest.starts_with('-') && rest.len() > 1;
        let body = if absent { &rest[1..] } else { rest };
        let (text, tail) = match body.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => body.split_once(char::is_whitespace).unwrap_or((body, "")),
        };
        terms.push(Term { text: text.to_owned(), absent });
        rest = tail.trim_start();
    }
    terms
}
