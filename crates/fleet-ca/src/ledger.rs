//! What the authority remembers: which secrets may still be used, and who gets no more certificates.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::files::{self, FileError, SECRET, failed};
use crate::identity::{MemberId, Roles, show_roles};
use crate::show_time;
use crate::token::SecretHash;

/// The file of [`FileLedger`], in the CA's directory.
pub const LEDGER: &str = "ledger.json";
/// How long a token that has ended is kept, so that its holder hears that it ended.
const KEPT: Duration = Duration::days(7);

/// A token as it is kept: not its secret.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRecord {
    /// Of its secret.
    pub hash: SecretHash,
    /// What may be asked for with it.
    pub roles: Roles,
    /// When it ends.
    #[serde(with = "time::serde::timestamp")]
    pub expires: OffsetDateTime,
    /// How many may still join with it.
    pub uses_left: u32,
}

/// Where tokens and denials are kept. Several processes may use one.
#[async_trait]
pub trait Ledger: Send + Sync + 'static {
    /// Lets a token be used. Once this has returned it is durable.
    async fn add(&self, token: TokenRecord, now: OffsetDateTime) -> Result<(), LedgerError>;
    /// Takes one use of the token with this hash for these roles, as one step: of two that ask at once for the last use, one gets it.
    /// A request that is refused costs no use.
    async fn redeem(&self, request: Admission, now: OffsetDateTime) -> Result<(), RedeemError>;
    /// This member gets no certificate from now on.
    async fn deny(&self, member: MemberId) -> Result<(), LedgerError>;
    /// Whether it is denied.
    async fn denied(&self, member: &MemberId) -> Result<bool, LedgerError> {
        Ok(self.all_denied().await?.contains(member))
    }
    /// All that are.
    async fn all_denied(&self) -> Result<BTreeSet<MemberId>, LedgerError>;
}

/// Who wants to join as what.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Of the secret that was sent.
    pub hash: SecretHash,
    /// Who.
    pub member: MemberId,
    /// As what.
    pub roles: Roles,
}

/// Why a token does not let somebody in. Shown to the holder, who alone can have the secret.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// No such secret.
    #[error(
        "the token is not one of this fleet, or it ended more than a week ago; make one with `emberbox fleet token`"
    )]
    Unknown,
    /// Too late.
    #[error("the token ended at {at}; make another with `emberbox fleet token`", at = show_time(.0))]
    Expired(OffsetDateTime),
    /// Nothing is left of it.
    #[error(
        "the token was used as often as it may be; if that was not you, find out who joined. Make another with `emberbox fleet token`"
    )]
    UsedUp,
    /// For other roles.
    #[error("the token is for the roles {}, not for {}", show_roles(.allowed), show_roles(.wanted))]
    Roles {
        /// Those that it is for.
        allowed: Roles,
        /// What was asked for.
        wanted: Roles,
    },
    /// See [`Ledger::deny`].
    #[error("the member {0} was denied; join with another id")]
    Denied(MemberId),
}

/// The rules, without a place to keep it: engines load, call and store it.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Book {
    tokens: Vec<TokenRecord>,
    denied: BTreeSet<MemberId>,
}

impl Book {
    /// Adds a token, and forgets those that ended long ago.
    pub fn add(&mut self, token: TokenRecord, now: OffsetDateTime) {
        self.tokens.retain(|old| old.expires + KEPT > now);
        self.tokens.push(token);
    }

    /// Takes one use.
    ///
    /// # Errors
    /// Nothing was taken.
    pub fn redeem(&mut self, request: &Admission, now: OffsetDateTime) -> Result<(), Refusal> {
        // All are looked at, each in constant time: how long it takes tells nothing of which came close.
        let mut found = None;
        for token in &mut self.tokens {
            if token.hash == request.hash {
                found = Some(token);
            }
        }
        let token = found.ok_or(Refusal::Unknown)?;
        if now >= token.expires {
            return Err(Refusal::Expired(token.expires));
        }
        if !request.roles.is_subset(&token.roles) {
            return Err(Refusal::Roles { allowed: token.roles.clone(), wanted: request.roles.clone() });
        }
        if self.denied.contains(&request.member) {
            return Err(Refusal::Denied(request.member.clone()));
        }
        token.uses_left = token.uses_left.checked_sub(1).ok_or(Refusal::UsedUp)?;
        Ok(())
    }
}

/// In memory: for tests, and for fleets on one machine that end with their process.
#[derive(Clone, Default, Debug)]
pub struct MemoryLedger(Arc<Mutex<Book>>);

#[async_trait]
impl Ledger for MemoryLedger {
    async fn add(&self, token: TokenRecord, now: OffsetDateTime) -> Result<(), LedgerError> {
        self.0.lock().add(token, now);
        Ok(())
    }

    async fn redeem(&self, request: Admission, now: OffsetDateTime) -> Result<(), RedeemError> {
        Ok(self.0.lock().redeem(&request, now)?)
    }

    async fn deny(&self, member: MemberId) -> Result<(), LedgerError> {
        self.0.lock().denied.insert(member);
        Ok(())
    }

    async fn all_denied(&self) -> Result<BTreeSet<MemberId>, LedgerError> {
        Ok(self.0.lock().denied.clone())
    }
}

/// A file beside the CA, which several processes of this machine share: each change is made under a lock, and replaces the file whole.
#[derive(Clone, Debug)]
pub struct FileLedger {
    dir: PathBuf,
}

impl FileLedger {
    /// In this directory, which has to be there. The file is made with the first change.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    fn path(&self) -> PathBuf {
        self.dir.join(LEDGER)
    }

    fn read(&self) -> Result<Book, LedgerError> {
        let path = self.path();
        match files::read(&path) {
            Ok(text) => serde_json::from_str(&text).map_err(|error| LedgerError::Broken(path, error.to_string())),
            Err(error) if error.cause.kind() == std::io::ErrorKind::NotFound => Ok(Book::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// Runs a change with nobody else changing anything; what it says is an error is not written.
    async fn change<E: From<LedgerError> + Send + 'static>(
        &self,
        change: impl FnOnce(&mut Book) -> Result<(), E> + Send + 'static,
    ) -> Result<(), E> {
        let ledger = self.clone();
        let work = move || {
            let path = ledger.dir.join("ledger.lock");
            // A file of its own, since the other one is replaced. The kernel lets go of it with the process.
            let lock = File::options().create(true).truncate(false).write(true).open(&path);
            let lock = lock.map_err(failed("open", &path)).map_err(LedgerError::File)?;
            lock.lock().map_err(failed("lock", &path)).map_err(LedgerError::File)?;
            let mut book = ledger.read()?;
            change(&mut book)?;
            let text = serde_json::to_vec_pretty(&book).expect("a ledger is plain data");
            files::replace(&ledger.path(), &text, SECRET).map_err(LedgerError::File)?;
            Ok(())
        };
        tokio::task::spawn_blocking(work).await.expect("writing a ledger does not panic")
    }
}

#[async_trait]
impl Ledger for FileLedger {
    async fn add(&self, token: TokenRecord, now: OffsetDateTime) -> Result<(), LedgerError> {
        self.change(move |book| {
            book.add(token, now);
            Ok(())
        })
        .await
    }

    async fn redeem(&self, request: Admission, now: OffsetDateTime) -> Result<(), RedeemError> {
        self.change(move |book| Ok(book.redeem(&request, now)?)).await
    }

    async fn deny(&self, member: MemberId) -> Result<(), LedgerError> {
        self.change(move |book| {
            book.denied.insert(member);
            Ok(())
        })
        .await
    }

    async fn all_denied(&self) -> Result<BTreeSet<MemberId>, LedgerError> {
        let ledger = self.clone();
        let work = move || Ok(ledger.read()?.denied);
        tokio::task::spawn_blocking(work).await.expect("reading a ledger does not panic")
    }
}

/// The ledger itself failed.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The disk.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not what was written.
    #[error("{path} is damaged: {1}. Remove it: tokens that were not used are lost, and denials must be made again", path = .0.display())]
    Broken(PathBuf, String),
    /// For engines of others.
    #[error("the ledger of tokens: {0}")]
    Other(String),
}

/// Why nobody joined.
#[derive(Debug, thiserror::Error)]
pub enum RedeemError {
    /// The answer is no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// There is no answer.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::parse_roles;
    use crate::token::Secret;

    fn record(secret: &Secret, roles: &str, uses: u32, expires: OffsetDateTime) -> TokenRecord {
        TokenRecord { hash: secret.hash(), roles: parse_roles(roles).unwrap(), expires, uses_left: uses }
    }

    fn request(secret: &Secret, member: &str, roles: &str) -> Admission {
        Admission { hash: secret.hash(), member: member.parse().unwrap(), roles: parse_roles(roles).unwrap() }
    }

    #[test]
    fn a_token_is_good_for_its_roles_its_uses_and_its_time() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let end = now + Duration::hours(1);
        let (one, other) = (Secret::new(), Secret::new());
        let mut book = Book::default();
        book.add(record(&one, "worker,pollers", 2, end), now);
        book.denied.insert("gone".parse().unwrap());
        assert_eq!(book.redeem(&request(&other, "a", "worker"), now), Err(Refusal::Unknown));
        assert!(matches!(book.redeem(&request(&one, "a", "worker,frontend"), now), Err(Refusal::Roles { .. })));
        assert!(matches!(book.redeem(&request(&one, "gone", "worker"), now), Err(Refusal::Denied(_))));
        assert_eq!(book.redeem(&request(&one, "a", "worker"), end), Err(Refusal::Expired(end)));
        assert_eq!(book.redeem(&request(&one, "a", "worker"), end - Duration::seconds(1)), Ok(()));
        assert_eq!(book.redeem(&request(&one, "b", "pollers,worker"), now), Ok(()), "refusals cost nothing");
        assert_eq!(book.redeem(&request(&one, "c", "worker"), now), Err(Refusal::UsedUp));
        book.add(record(&other, "worker", 1, end + Duration::days(30)), end + KEPT - Duration::seconds(1));
        assert_eq!(book.tokens.len(), 2);
        book.add(record(&Secret::new(), "worker", 1, end + Duration::days(30)), end + KEPT);
        assert_eq!(book.tokens.len(), 2, "what ended a week ago is forgotten");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_many_at_once_as_many_get_in_as_there_are_uses() {
        let dir = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        let ledgers: [Arc<dyn Ledger>; 2] = [Arc::new(FileLedger::new(dir.path())), Arc::new(MemoryLedger::default())];
        for ledger in ledgers {
            let secret = Secret::new();
            ledger.add(record(&secret, "worker", 3, now + Duration::hours(1)), now).await.unwrap();
            let tries = (0..16).map(|n| {
                let (ledger, request) = (Arc::clone(&ledger), request(&secret, &format!("w{n}"), "worker"));
                tokio::spawn(async move { ledger.redeem(request, now).await })
            });
            let mut joined = 0;
            for result in tries.collect::<Vec<_>>() {
                match result.await.unwrap() {
                    Ok(()) => joined += 1,
                    Err(RedeemError::Refused(Refusal::UsedUp)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            assert_eq!(joined, 3);
            let member = "w1".parse().unwrap();
            assert!(!ledger.denied(&member).await.unwrap());
            ledger.deny(member.clone()).await.unwrap();
            assert!(ledger.denied(&member).await.unwrap());
            assert_eq!(ledger.all_denied().await.unwrap(), [member].into());
        }
        let text = std::fs::read_to_string(dir.path().join(LEDGER)).unwrap();
        let again: Book = serde_json::from_str(&text).unwrap();
        assert_eq!(again.tokens[0].uses_left, 0);
        std::fs::write(dir.path().join(LEDGER), "{").unwrap();
        let error = FileLedger::new(dir.path()).denied(&"a".parse().unwrap()).await.unwrap_err().to_string();
        assert!(error.contains(LEDGER) && error.contains("Remove it"), "{error}");
    }
}
