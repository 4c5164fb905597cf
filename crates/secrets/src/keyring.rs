//! Keys, and what is done with them. Pure but for the random numbers, which are the cryptographic library's own.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;

/// What a sealed value begins with. Another form gets another number.
const FORM: &str = "v1";

/// Bytes of a key.
pub(crate) const KEY_LEN: usize = 32;

/// Names a key, in sealed values and in messages, without telling anything about it: a part of its hash.
type KeyId = String;

struct Key {
    id: KeyId,
    key: RandomizedNonceKey,
}

/// The keys that a process has: the first encrypts, all decrypt.
///
/// With random nonces of 96 bits, a key should seal at most 2^32 values (NIST SP 800-38D): a thousand changes of functions a
/// second for seven weeks, without a pause.
pub struct Keyring {
    keys: Vec<Key>,
    /// Where they are from, for messages.
    source: String,
}

impl fmt::Debug for Keyring {
    /// Without the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<_> = self.keys.iter().map(|key| &key.id).collect();
        f.debug_struct("Keyring").field("source", &self.source).field("ids", &ids).finish_non_exhaustive()
    }
}

/// Where a value belongs: it opens nowhere else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Context<'a> {
    /// Kind of the record.
    pub kind: &'a str,
    /// Key of the record, or what else tells whose value it is. Not the secret's key.
    pub name: &'a str,
}

/// A value as it was before it was sealed.
#[derive(Clone, PartialEq, Eq)]
pub struct Opened {
    /// The value.
    pub plain: Vec<u8>,
    /// It was sealed with the key that would seal it now.
    pub current: bool,
}

/// Why a sealed value cannot be read. It is still there.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// It is not what [`Keyring::seal`] makes.
    #[error("the encrypted value is damaged, or was written by another version of Emberbox")]
    Form,
    /// The key is missing.
    #[error(
        "it is encrypted with the key {id}, which is not in {source_name} (which has {known}). Put that key back as a line of the file, \
         from a backup or from another server of the fleet, and start again; nothing was changed"
    )]
    UnknownKey {
        /// That it was sealed with.
        id: String,
        /// The key file.
        source_name: String,
        /// The keys that are there.
        known: String,
    },
    /// Key or context are others, or the value was changed.
    #[error(
        "the encrypted value does not fit its record: it was changed, or moved here from another record, in the metadata. \
         Restore the metadata from a backup"
    )]
    Tampered,
}

impl Keyring {
    /// At least one key, of which the first encrypts. `source` is named in messages.
    pub(crate) fn new(keys: &[[u8; KEY_LEN]], source: impl Into<String>) -> Self {
        let key = |bytes: &[u8; KEY_LEN]| Key {
            id: id(bytes),
            key: RandomizedNonceKey::new(&AES_256_GCM, bytes).expect("a key of this length is a key"),
        };
        assert!(!keys.is_empty(), "a keyring has a key");
        Self { keys: keys.iter().map(key).collect(), source: source.into() }
    }

    /// A keyring with one new key that is kept nowhere: for tests, and for metadata that end with the process.
    pub fn ephemeral() -> Self {
        Self::new(&[random_key()], "the memory of this process")
    }

    /// Name of the key that encrypts.
    pub fn current(&self) -> &str {
        &self.keys[0].id
    }

    /// Names of all keys, that of the one that encrypts first.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|key| key.id.as_str())
    }

    /// Encrypts a value. The same one never comes out the same twice.
    pub fn seal(&self, plain: &[u8], context: Context<'_>) -> String {
        let Key { id, key } = &self.keys[0];
        let mut sealed = plain.to_vec();
        let nonce = key.seal_in_place_append_tag(associated(context), &mut sealed);
        let nonce = nonce.expect("the library has random numbers, and the value is shorter than 64 GiB");
        let sealed = [&nonce.as_ref()[..], &sealed].concat();
        format!("{FORM}:{id}:{}", BASE64.encode(sealed))
    }

    /// Decrypts what [`Self::seal`] made for this context.
    pub fn open(&self, sealed: &str, context: Context<'_>) -> Result<Opened, OpenError> {
        let (id, body) = parse(sealed).ok_or(OpenError::Form)?;
        let body = BASE64.decode(body).map_err(|_| OpenError::Form)?;
        let Some(position) = self.keys.iter().position(|key| key.id == id) else {
            let known: Vec<_> = self.ids().collect();
            return Err(OpenError::UnknownKey {
                id: id.to_owned(),
                source_name: self.source.clone(),
                known: known.join(", "),
            });
        };
        let (nonce, ciphertext) = body.split_at_checked(NONCE_LEN).ok_or(OpenError::Form)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| OpenError::Form)?;
        let mut plain = ciphertext.to_vec();
        let opened = self.keys[position].key.open_in_place(nonce, associated(context), &mut plain);
        let length = opened.map_err(|_| OpenError::Tampered)?.len();
        plain.truncate(length);
        Ok(Opened { plain, current: position == 0 })
    }
}

/// The name of the key that a sealed value needs.
pub fn key_of(sealed: &str) -> Option<&str> {
    parse(sealed).map(|(id, _)| id)
}

/// Key and body.
fn parse(sealed: &str) -> Option<(&str, &str)> {
    sealed.strip_prefix(FORM)?.strip_prefix(':')?.split_once(':')
}

/// Neither part holds a zero byte, so no two contexts look alike.
fn associated(context: Context<'_>) -> Aad<Vec<u8>> {
    Aad::from(format!("emberbox {FORM}\0{}\0{}", context.kind, context.name).into_bytes())
}

fn id(key: &[u8; KEY_LEN]) -> KeyId {
    let hash = digest(&SHA256, &[b"emberbox key id\0".as_slice(), key].concat());
    hex::encode(&hash.as_ref()[..6])
}

pub(crate) fn random_key() -> [u8; KEY_LEN] {
    let mut key = [0; KEY_LEN];
    aws_lc_rs::rand::fill(&mut key).expect("the library has random numbers");
    key
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HERE: Context<'_> = Context { kind: "function", name: "000000000000/r/f" };

    fn keyring(keys: &[u8]) -> Keyring {
        let keys: Vec<_> = keys.iter().map(|n| [*n; KEY_LEN]).collect();
        Keyring::new(&keys, "/data/secrets.key")
    }

    proptest! {
        #[test]
        fn whatever_is_sealed_comes_back(plain: Vec<u8>, kind in "[^\0]*", name in "[^\0]*") {
            let keys = keyring(&[1]);
            let context = Context { kind: &kind, name: &name };
            let sealed = keys.seal(&plain, context);
            prop_assert_eq!(keys.open(&sealed, context).unwrap().plain, plain);
        }

        #[test]
        fn what_was_changed_does_not_open(plain: [u8; 20], at: prop::sample::Index, to in "[ -~]") {
            let keys = keyring(&[1]);
            let sealed = keys.seal(&plain, HERE);
            let mut changed = sealed.clone();
            let at = at.index(sealed.len());
            changed.replace_range(at..=at, &to);
            prop_assume!(changed != sealed);
            match keys.open(&changed, HERE) {
                Err(_) => {}
                // The last digit of unpadded base64 has bits that mean nothing.
                Ok(opened) => prop_assert_eq!(opened.plain.as_slice(), plain),
            }
        }

        #[test]
        fn no_text_does_harm(text: String) {
            let keys = keyring(&[1]);
            let near = format!("v1:{}:{text}", keys.current());
            prop_assert!(keys.open(&text, HERE).is_err() && keys.open(&near, HERE).is_err());
        }
    }

    #[test]
    fn the_form_is_fixed() {
        // Sealed by another implementation (Python's cryptography), with the nonce 0 to 11: what was stored once must open for ever.
        let keys = keyring(&[1, 2]);
        assert_eq!(keys.current(), "fc7a75c22321");
        assert_eq!(
            keys.open("v1:fc7a75c22321:AAECAwQFBgcICQoLwITUBBrcN1uDK9Q1+GItRKrUJ+KJWDKF/g", HERE).unwrap().plain,
            b"{\"A\":\"1\"}"
        );
    }

    #[test]
    fn no_two_sealed_values_are_the_same() {
        let keys = keyring(&[1]);
        assert_ne!(keys.seal(b"x", HERE), keys.seal(b"x", HERE));
        assert_ne!(Keyring::ephemeral().current(), Keyring::ephemeral().current());
    }

    #[test]
    fn a_value_opens_nowhere_else() {
        let keys = keyring(&[1]);
        let sealed = keys.seal(b"x", HERE);
        for context in [
            Context { kind: "version", ..HERE },
            Context { name: "000000000000/r/g", ..HERE },
            Context { kind: "function\0", name: "000000000000/r/f" },
            Context { kind: "", name: "" },
        ] {
            assert_eq!(keys.open(&sealed, context).err(), Some(OpenError::Tampered), "{context:?}");
        }
    }

    #[test]
    fn keys_are_rotated_by_their_order() {
        let sealed = keyring(&[1]).seal(b"x", HERE);
        let rotated = keyring(&[2, 1]);
        let opened = rotated.open(&sealed, HERE).unwrap();
        assert_eq!((opened.plain.as_slice(), opened.current), (&b"x"[..], false));
        let again = rotated.seal(&opened.plain, HERE);
        assert!(keyring(&[2]).open(&again, HERE).unwrap().current);

        let error = keyring(&[2]).open(&sealed, HERE).err().unwrap();
        assert_eq!(
            error.to_string(),
            format!(
                "it is encrypted with the key {}, which is not in /data/secrets.key (which has {}). Put that key back as a \
                 line of the file, from a backup or from another server of the fleet, and start again; nothing was changed",
                keyring(&[1]).current(),
                keyring(&[2]).current()
            )
        );
        assert_eq!(key_of(&sealed), Some(keyring(&[1]).current()));
        assert_eq!(key_of("plain"), None);
    }

    #[test]
    fn keys_are_not_shown() {
        let shown = format!("{:?}", keyring(&[7]));
        assert!(shown.contains(keyring(&[7]).current()) && !shown.contains("7, 7"), "{shown}");
    }
}
