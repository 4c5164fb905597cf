//! Places in the logs of a fleet, as clients get and give them back.
//!
//! A page's place has one for each worker; a place in a worker's log is that worker's own text. An event's id has the place of the
//! event, and says which worker has it: it is the same whatever the event was found by.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use frontend::ports::LogsError;

/// Bytes that a token may have; more than any that [`Place::token`] makes of names of usual length.
const MAX_TOKEN: usize = 768 << 10;
/// Workers that a token has places of. Beyond it, those that have left go first; whoever comes back then is read from its beginning.
const MAX_WORKERS: usize = 4096;

/// By worker. One without is read from its beginning.
pub type Places = BTreeMap<Arc<str>, String>;

/// Where to read on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// Behind a page.
    Page(Places),
    /// At an event: of this worker, at this place.
    Event(Arc<str>, String),
}

impl Place {
    /// What [`Self::token`] or [`event_id`] made; anything else is no place.
    pub fn parse(text: &str) -> Result<Self, LogsError> {
        if text.len() > MAX_TOKEN {
            return Err(LogsError::Token);
        }
        // Neither a worker's place nor base64 has this character.
        if let Some((place, worker)) = text.split_once('@') {
            return match place.is_empty() || worker.is_empty() {
                true => Err(LogsError::Token),
                false => Ok(Self::Event(worker.into(), place.to_owned())),
            };
        }
        let json = BASE64.decode(text).map_err(|_| LogsError::Token)?;
        serde_json::from_slice(&json).map(Self::Page).map_err(|_| LogsError::Token)
    }

    /// Of the places behind a page. `live` are the workers that there are now.
    pub fn token(mut places: Places, live: &BTreeSet<Arc<str>>) -> String {
        let mut beyond = places.len().saturating_sub(MAX_WORKERS);
        places.retain(|worker, _| {
            let goes = beyond > 0 && !live.contains(worker);
            beyond -= usize::from(goes);
            !goes
        });
        BASE64.encode(serde_json::to_vec(&places).expect("texts always become JSON"))
    }

    /// Where this worker's log is to be read from.
    pub fn from(&self, worker: &str) -> Option<String> {
        match self {
            Self::Page(places) => places.get(worker).cloned(),
            Self::Event(of, place) => (**of == *worker).then(|| place.clone()),
        }
    }

    /// Up to where this worker's log is to be read: nothing of a worker that a page has no place of. An event's place bounds its own
    /// worker alone, which is enough, since it is used for one stream and a stream is on one worker.
    pub fn until(&self, worker: &str) -> Until {
        match self {
            Self::Page(places) => places.get(worker).map_or(Until::Nothing, |place| Until::Place(place.clone())),
            Self::Event(of, place) if **of == *worker => Until::Place(place.clone()),
            Self::Event(..) => Until::End,
        }
    }
}

/// See [`Place::until`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Until {
    /// There is nothing before the place.
    Nothing,
    /// Up to here.
    Place(String),
    /// All of it.
    End,
}

/// See [`Place::Event`].
pub fn event_id(worker: &str, place: &str) -> String {
    format!("{place}@{worker}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn places_come_back(places in prop::collection::btree_map("[^\0]{1,20}", "[0-9]{40}", 0..20)) {
            let places: Places = places.into_iter().map(|(worker, place)| (worker.into(), place)).collect();
            let token = Place::token(places.clone(), &BTreeSet::new());
            prop_assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            prop_assert_eq!(Place::parse(&token), Ok(Place::Page(places.clone())));
            for (worker, place) in &places {
                let id = event_id(worker, place);
                prop_assert_eq!(Place::parse(&id), Ok(Place::Event(Arc::clone(worker), place.clone())));
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".*") {
            let _ = Place::parse(&text);
        }
    }

    #[test]
    fn what_is_no_place_is_refused() {
        let token = Place::token([("a".into(), "1".to_owned())].into(), &BTreeSet::new());
        for wrong in ["", "x", "@", "@a", "1@", &token[1..], "W10", &"e".repeat(MAX_TOKEN + 1)] {
            assert_eq!(Place::parse(wrong), Err(LogsError::Token), "{wrong:.20}");
        }
    }

    #[test]
    fn a_token_is_bounded_and_keeps_the_live() {
        let places = |n: usize| (0..n).map(|n| (format!("w{n:05}").into(), "0".repeat(40))).collect::<Places>();
        let live: BTreeSet<Arc<str>> = (0..10).map(|n| format!("w{n:05}").into()).collect();
        let token = Place::token(places(MAX_WORKERS + 100), &live);
        assert!(token.len() < MAX_TOKEN);
        let Ok(Place::Page(kept)) = Place::parse(&token) else { panic!("it is a page's place") };
        assert_eq!(kept.len(), MAX_WORKERS);
        assert!(live.iter().all(|worker| kept.contains_key(worker)));
    }

    #[test]
    fn a_page_bounds_all_workers_and_an_event_its_own() {
        let page = Place::Page([("a".into(), "7".to_owned())].into());
        assert_eq!((page.from("a"), page.from("b")), (Some("7".to_owned()), None));
        assert_eq!((page.until("a"), page.until("b")), (Until::Place("7".to_owned()), Until::Nothing));
        let event = Place::Event("a".into(), "7".to_owned());
        assert_eq!((event.from("a"), event.from("b")), (Some("7".to_owned()), None));
        assert_eq!((event.until("a"), event.until("b")), (Until::Place("7".to_owned()), Until::End));
    }
}
