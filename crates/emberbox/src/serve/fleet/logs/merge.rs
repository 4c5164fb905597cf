//! One log of the logs of all workers.

use std::collections::VecDeque;
use std::sync::Arc;

use frontend::ports::LogStream;
use rpc::pb;

/// A page of one worker's log.
#[derive(Clone, PartialEq, Debug)]
pub struct Page {
    /// Whose.
    pub worker: Arc<str>,
    /// In the order of its log.
    pub events: VecDeque<pb::LogEvent>,
    /// The place behind them.
    pub next: String,
    /// There may be more behind that.
    pub more: bool,
}

/// Some events of all workers.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Merged {
    /// Each with its worker. Those of one worker are in the order of its log, and those of several by their times.
    pub events: Vec<(Arc<str>, pb::LogEvent)>,
    /// Where each worker's log is to be read on.
    pub places: Vec<(Arc<str>, String)>,
    /// There may be more now.
    pub more: bool,
}

/// Merges pages until there are `limit` events or `bytes` of messages, or the end of a page that is not the end of its log: what
/// comes after it there might have to be before what the others have next. What is left over is read again with the next page.
pub fn merge(mut pages: Vec<Page>, limit: usize, bytes: usize) -> Merged {
    let mut merged = Merged::default();
    let mut size = 0;
    while merged.events.len() < limit && size < bytes {
        if pages.iter().any(|page| page.more && page.events.is_empty()) {
            break;
        }
        let time = |page: &Page| page.events.front().map(|event| event.timestamp);
        // The first of several with the same time: in the order of the workers' names.
        let next = pages.iter_mut().filter(|page| !page.events.is_empty()).min_by_key(|page| time(page));
        let Some(page) = next else { break };
        if let Some(event) = page.events.pop_front() {
            size += event.message.len();
            merged.events.push((Arc::clone(&page.worker), event));
        }
    }
    merged.more = pages.iter().any(|page| page.more || !page.events.is_empty());
    let place = |page: Page| (page.worker, page.events.into_iter().next().map_or(page.next, |event| event.place));
    merged.places = pages.into_iter().map(place).collect();
    merged
}

/// All names once, sorted.
pub fn groups(all: impl IntoIterator<Item = Vec<String>>) -> Vec<String> {
    let names: std::collections::BTreeSet<String> = all.into_iter().flatten().collect();
    names.into_iter().collect()
}

/// All streams by name. One that several workers have is one.
pub fn streams(all: impl IntoIterator<Item = Vec<pb::LogStream>>) -> Vec<LogStream> {
    let mut merged: std::collections::BTreeMap<String, LogStream> = std::collections::BTreeMap::new();
    for stream in all.into_iter().flatten() {
        let pb::LogStream { name, first, last, bytes } = stream;
        merged
            .entry(name.clone())
            .and_modify(|stream| {
                stream.first = stream.first.min(first);
                stream.last = stream.last.max(last);
                stream.bytes += bytes;
            })
            .or_insert(LogStream { name, first, last, bytes });
    }
    merged.into_values().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// A worker's log as its times; the place is the number of the event.
    fn page(worker: usize, log: &[u64], from: usize, limit: usize) -> Page {
        let event = |n: usize| pb::LogEvent {
            place: n.to_string(),
            stream: format!("s{worker}"),
            timestamp: log[n],
            message: "x".repeat(10),
        };
        let end = log.len().min(from + limit);
        Page {
            worker: format!("w{worker:03}").into(),
            events: (from..end).map(event).collect(),
            next: end.to_string(),
            more: end < log.len(),
        }
    }

    /// Reads all of the logs, page by page, and counts the pages; `grow` may write in between.
    fn read(
        logs: &mut [Vec<u64>],
        limit: usize,
        mut grow: impl FnMut(usize, &mut [Vec<u64>]),
    ) -> Vec<(usize, String, u64)> {
        let mut places: BTreeMap<Arc<str>, String> = BTreeMap::new();
        let mut read = Vec::new();
        for number in 0.. {
            assert!(number < 10_000, "it goes on for ever");
            let pages = logs.iter().enumerate().map(|(worker, log)| {
                let place = places.get(format!("w{worker:03}").as_str());
                page(worker, log, place.map_or(0, |place| place.parse().unwrap()), limit)
            });
            let merged = merge(pages.collect(), limit, 1 << 20);
            assert!(merged.events.len() <= limit);
            read.extend(
                merged
                    .events
                    .iter()
                    .map(|(worker, event)| (worker[1..].parse().unwrap(), event.place.clone(), event.timestamp)),
            );
            places.extend(merged.places);
            if !merged.more {
                return read;
            }
            grow(number, logs);
        }
        unreachable!("it returns");
    }

    proptest! {
        #[test]
        fn each_event_comes_once_and_in_the_order_of_its_log(
            mut logs in prop::collection::vec(prop::collection::vec(0u64..50, 0..30), 0..6),
            limit in 1usize..20,
        ) {
            let read = read(&mut logs, limit, |_, _| {});
            for (worker, log) in logs.iter().enumerate() {
                let its: Vec<u64> = read.iter().filter(|(of, ..)| *of == worker).map(|(_, _, time)| *time).collect();
                prop_assert_eq!(&its, log);
            }
        }

        #[test]
        fn logs_that_are_sorted_by_time_make_one_that_is(
            mut logs in prop::collection::vec(prop::collection::vec(0u64..50, 0..30), 0..6),
            limit in 1usize..20,
        ) {
            logs.iter_mut().for_each(|log| log.sort_unstable());
            let times: Vec<u64> = read(&mut logs, limit, |_, _| {}).into_iter().map(|(_, _, time)| time).collect();
            let mut all = logs.concat();
            all.sort_unstable();
            prop_assert_eq!(times, all);
        }

        #[test]
        fn what_is_written_in_between_comes_once_as_well(
            mut logs in prop::collection::vec(prop::collection::vec(0u64..50, 1..10), 1..4),
            written in prop::collection::vec((0usize..4, 0u64..50), 0..20),
            limit in 1usize..5,
        ) {
            let read = read(&mut logs, limit, |number, logs| {
                if let Some((worker, time)) = written.get(number) {
                    let worker = worker % logs.len();
                    logs[worker].push(*time);
                }
            });
            for (worker, log) in logs.iter().enumerate() {
                let its: Vec<u64> = read.iter().filter(|(of, ..)| *of == worker).map(|(_, _, time)| *time).collect();
                prop_assert_eq!(&its, log);
            }
        }
    }

    #[test]
    fn a_page_without_events_and_with_more_behind_it_holds_the_others_up() {
        let empty = Page { events: VecDeque::new(), next: "9".into(), more: true, ..page(0, &[], 0, 1) };
        let merged = merge(vec![empty, page(1, &[5], 0, 10)], 10, 100);
        assert_eq!(merged.events, []);
        assert_eq!(merged.places, [("w000".into(), "9".to_owned()), ("w001".into(), "0".to_owned())]);
        assert!(merged.more);
    }

    #[test]
    fn a_page_ends_after_so_many_bytes() {
        let merged = merge(vec![page(0, &[1, 3, 5], 0, 10), page(1, &[2, 4], 0, 10)], 10, 25);
        assert_eq!(merged.events.iter().map(|(_, event)| event.timestamp).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(merged.more);
    }

    #[test]
    fn names_come_once() {
        let all = vec![vec!["b".to_owned(), "c".to_owned()], vec!["a".to_owned(), "b".to_owned()]];
        assert_eq!(groups(all), ["a", "b", "c"]);
        let stream = |name: &str, first, last| pb::LogStream { name: name.into(), first, last, bytes: 10 };
        let merged = streams([vec![stream("b", 5, 6), stream("c", 1, 1)], vec![stream("a", 1, 1), stream("b", 2, 4)]]);
        let b = LogStream { name: "b".into(), first: 2, last: 6, bytes: 20 };
        assert_eq!(merged.iter().map(|stream| stream.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(merged[1], b);
    }
}
