//! The customers' environment variables: encrypted in the records of functions and versions, plain in memory, never shown.
//!
//! ```text
//!  record in memory ──encode──► every `environment` sealed ──► JSON in the store
//!         ▲                                                         │
//!         └──────── opened, and how it was stored ◄──decode─────────┘
//! ```
//!
//! A sealed environment is a text in the place of JSON's object, so that an older Emberbox, which cannot read it, says so.
//! Kind and key of the record (account, region, function, number of the version) are its context: it opens in no other.

use std::collections::BTreeMap;
use std::fmt;

use secrets::{Context, Keyring, OpenError};
use serde::de::DeserializeOwned;
use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};
use store::{Store, StoreError};

use crate::record::{FUNCTION, FunctionRecord, Settings, VERSION, Version, from_bytes};

/// Environment variables of a customer. [`decode`] leaves only open ones, [`encode`] stores only sealed ones.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub(crate) enum Variables {
    /// In memory, and in records of before there was encryption.
    Open(BTreeMap<String, String>),
    /// In the store.
    Sealed(String),
}

impl Variables {
    /// Names and values.
    pub fn get(&self) -> &BTreeMap<String, String> {
        match self {
            Self::Open(variables) => variables,
            Self::Sealed(_) => unreachable!("whatever is in memory was decoded"),
        }
    }
}

impl Serialize for Variables {
    /// # Errors
    /// For open ones: they must not get anywhere.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Open(_) => Err(S::Error::custom("environment variables are stored encrypted")),
            Self::Sealed(text) => serializer.serialize_str(text),
        }
    }
}

impl fmt::Debug for Variables {
    /// The names alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(variables) => f.debug_set().entries(variables.keys()).finish(),
            Self::Sealed(_) => f.write_str("sealed"),
        }
    }
}

/// How the environments of a record are stored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Sealing {
    /// As they would be stored now, or there are none.
    Current,
    /// With a key that encrypts no more.
    OldKey,
    /// Not encrypted.
    Plain,
}

/// A record that has settings of functions.
pub(crate) trait HasSettings: Clone + Serialize + DeserializeOwned {
    /// All of them.
    fn settings(&mut self) -> impl Iterator<Item = &mut Settings>;
}

impl HasSettings for FunctionRecord {
    fn settings(&mut self) -> impl Iterator<Item = &mut Settings> {
        std::iter::once(&mut self.latest).chain(&mut self.serving).map(|version| &mut version.settings)
    }
}

impl HasSettings for Version {
    fn settings(&mut self) -> impl Iterator<Item = &mut Settings> {
        std::iter::once(&mut self.settings)
    }
}

/// Why a record cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("{0}; it was written by another version of Emberbox, or is damaged")]
    Json(#[from] serde_json::Error),
    #[error("its environment variables: {0}")]
    Secret(#[from] OpenError),
}

/// For the store, with every environment sealed by the first key.
pub(crate) fn encode<R: HasSettings>(keys: &Keyring, kind: &str, key: &str, record: &R) -> Vec<u8> {
    let mut record = record.clone();
    for settings in record.settings() {
        if let Some(variables) = &mut settings.environment {
            let plain = serde_json::to_vec(variables.get()).expect("a map of strings is JSON");
            *variables = Variables::Sealed(keys.seal(&plain, Context { kind, name: key }));
        }
    }
    serde_json::to_vec(&record).expect("records have string keys and finite numbers, and no open environment")
}

/// From the store, with every environment open.
pub(crate) fn decode<R: HasSettings>(
    keys: &Keyring,
    kind: &str,
    key: &str,
    bytes: &[u8],
) -> Result<(R, Sealing), Unreadable> {
    let mut record: R = from_bytes(bytes)?;
    let mut sealing = Sealing::Current;
    for settings in record.settings() {
        let Some(variables) = &mut settings.environment else { continue };
        sealing = sealing.max(match variables {
            Variables::Open(_) => Sealing::Plain,
            Variables::Sealed(text) => {
                let opened = keys.open(text, Context { kind, name: key })?;
                *variables = Variables::Open(serde_json::from_slice(&opened.plain)?);
                if opened.current { Sealing::Current } else { Sealing::OldKey }
            }
        });
    }
    Ok((record, sealing))
}

/// Whether anything in the metadata is encrypted, and by which key: for a start without the file of keys, which must not
/// make a new one then. `None`: nothing is. Reads all records, also those that another version wrote.
pub async fn encrypted_with(store: &dyn Store) -> Result<Option<String>, StoreError> {
    for kind in [FUNCTION, VERSION] {
        let records = store.scan(kind, "").await?.records;
        if let Some(key) = records.iter().find_map(|(_, record)| key_in(&record.value)) {
            return Ok(Some(key));
        }
    }
    Ok(None)
}

/// The key of the first sealed environment in a record of a function or of a version.
fn key_in(bytes: &[u8]) -> Option<String> {
    let record: serde_json::Value = from_bytes(bytes).ok()?;
    let sealed = [&record["latest"], &record["serving"], &record]
        .into_iter()
        .find_map(|version| version["settings"]["environment"].as_str())?;
    secrets::key_of(sealed).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::function::tests::new;
    use crate::function::{Function, Stamp};

    const SECRET: &str = "hunter2";

    fn record() -> FunctionRecord {
        let mut count = 0;
        let mut id = || {
            count += 1;
            format!("id{count}")
        };
        let stamp = &mut Stamp { now: "now", id: &mut id };
        let mut with_secret = new("f");
        let variables = [("PASSWORD".to_owned(), SECRET.to_owned())];
        with_secret.settings.environment = Some(Variables::Open(variables.into()));
        let mut function = Function::create(with_secret, stamp);
        function.settle(&function.record.latest.state_id.clone(), &Ok(()), stamp);
        let code = function.record.latest.code.clone();
        let settings = Settings { memory: 256, ..function.record.latest.settings.clone() };
        function.update(code, settings, stamp);
        assert!(function.record.serving.is_some());
        function.record
    }

    #[test]
    fn every_environment_is_sealed_and_opened_again() {
        let (keys, record) = (Keyring::ephemeral(), record());
        let stored = encode(&keys, FUNCTION, "k", &record);
        let text = String::from_utf8(stored.clone()).unwrap();
        assert!(!text.contains(SECRET) && !text.contains("PASSWORD"), "{text}");
        assert_eq!(text.matches("\"environment\":\"v1:").count(), 2, "latest and serving: {text}");
        let read: (FunctionRecord, Sealing) = decode(&keys, FUNCTION, "k", &stored).unwrap();
        assert_eq!(read, (record, Sealing::Current));
        for (kind, key) in [(FUNCTION, "other"), (VERSION, "k")] {
            let moved = decode::<FunctionRecord>(&keys, kind, key, &stored).unwrap_err();
            assert!(matches!(moved, Unreadable::Secret(OpenError::Tampered)), "{moved}");
        }
    }

    #[test]
    fn records_of_before_are_read() {
        let (keys, record) = (Keyring::ephemeral(), record());
        let text = String::from_utf8(encode(&keys, FUNCTION, "k", &record)).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["latest"]["settings"]["environment"] = serde_json::json!({"PASSWORD": SECRET});
        let read: (FunctionRecord, _) = decode(&keys, FUNCTION, "k", json.to_string().as_bytes()).unwrap();
        assert_eq!(read, (record, Sealing::Plain), "one is enough");
        json["latest"]["settings"]["environment"] = serde_json::Value::Null;
        json["serving"] = serde_json::Value::Null;
        let read: (FunctionRecord, _) = decode(&keys, FUNCTION, "k", json.to_string().as_bytes()).unwrap();
        assert_eq!(read.1, Sealing::Current, "there is nothing to encrypt");
    }

    #[test]
    fn an_open_environment_gets_nowhere() {
        let record = record();
        assert!(serde_json::to_vec(&record).is_err());
        let shown = format!("{record:?}");
        assert!(shown.contains("PASSWORD") && !shown.contains(SECRET), "{shown}");
        let mut json: serde_json::Value =
            serde_json::from_slice(&encode(&Keyring::ephemeral(), FUNCTION, "k", &record)).unwrap();
        json["latest"]["settings"]["environment"] = serde_json::json!({"PASSWORD": [SECRET]});
        let error = decode::<FunctionRecord>(&Keyring::ephemeral(), FUNCTION, "k", json.to_string().as_bytes());
        assert!(!error.unwrap_err().to_string().contains(SECRET));
    }
}
