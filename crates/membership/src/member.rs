//! What is known of one member.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Bytes that an id may have.
const MAX_ID: usize = 255;
/// Bytes that address and version may have.
const MAX_TEXT: usize = 1024;
/// Bytes that all labels may have: every reader has every member's.
const MAX_LABELS: usize = 4096;

/// What a process does in the fleet; a process may have several.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Serves the public API.
    Frontend,
    /// Knows the sandboxes of its share of the functions.
    WorkerManager,
    /// Decides where new sandboxes go.
    Placement,
    /// Takes events from the queue.
    Pollers,
    /// Has sandboxes.
    Worker,
}

impl Role {
    /// All of them, as `emberbox serve` without `--roles` has.
    pub const ALL: [Self; 5] = [Self::Frontend, Self::WorkerManager, Self::Placement, Self::Pollers, Self::Worker];

    /// As in `--roles`, e.g. `worker-manager`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Frontend => "frontend",
            Self::WorkerManager => "worker-manager",
            Self::Placement => "placement",
            Self::Pollers => "pollers",
            Self::Worker => "worker",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A name that is no role's.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no role {0:?}; the roles are frontend, worker-manager, placement, pollers and worker")]
pub struct UnknownRole(String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(name: &str) -> Result<Self, UnknownRole> {
        Self::ALL.into_iter().find(|role| role.as_str() == name).ok_or_else(|| UnknownRole(name.to_owned()))
    }
}

/// Whether new work goes to a member.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberState {
    /// It is there, and not ready yet.
    Joining,
    /// It takes work.
    Active,
    /// It finishes what it has, and takes nothing new.
    Draining,
}

impl MemberState {
    /// As in JSON and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Active => "active",
            Self::Draining => "draining",
        }
    }

    /// What another version of Emberbox has written. Of a state that this one does not know it knows only that it is not
    /// "active", so that it must not send it new work.
    #[cfg(feature = "postgres")]
    pub(crate) fn read(name: &str) -> Self {
        [Self::Joining, Self::Active].into_iter().find(|state| state.as_str() == name).unwrap_or(Self::Draining)
    }
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A member's name, given by whoever starts it: stable while it lives, and no other's (e.g. host name and something random).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberId(Arc<str>);

impl MemberId {
    /// As given; [`Member::check`] says whether it can be used.
    pub fn new(id: impl Into<Arc<str>>) -> Self {
        Self(id.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// One process of the fleet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub id: MemberId,
    /// What it does. Roles of a newer Emberbox that this one does not know are left out.
    pub roles: BTreeSet<Role>,
    /// Where the other roles reach it: `host:port`.
    pub address: String,
    /// Emberbox's version that it runs.
    pub version: String,
    /// Whether it takes work.
    pub state: MemberState,
    /// The epoch of the view in which it appeared: a member that joins again has a higher one. Given by the registry; 0 before.
    pub epoch: u64,
    /// What operators or roles say about it, e.g. its zone.
    pub labels: BTreeMap<String, String>,
}

impl Member {
    /// Whether it has the role.
    pub fn is(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// What every engine asks of a member that joins; otherwise what is wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        let plain = |text: &str| !text.chars().any(char::is_control);
        let labels = self.labels.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
        if self.id.0.is_empty() || self.id.0.len() > MAX_ID || !plain(&self.id.0) {
            Err(format!("its id must have 1 to {MAX_ID} bytes and no control characters"))
        } else if self.roles.is_empty() {
            Err("it has no role".to_owned())
        } else if self.address.len() > MAX_TEXT || !self.address.contains(':') || !plain(&self.address) {
            Err(format!("its address {:?} is not host:port", self.address))
        } else if self.version.len() > MAX_TEXT || !plain(&self.version) {
            Err("its version is no version".to_owned())
        } else if labels > MAX_LABELS || self.labels.iter().any(|(key, value)| !plain(key) || !plain(value)) {
            Err(format!("its labels must have {MAX_LABELS} bytes at most and no control characters"))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_read_as_they_are_written() {
        for role in Role::ALL {
            assert_eq!(role.to_string().parse(), Ok(role));
            assert_eq!(serde_json::to_string(&role).unwrap(), format!("\"{role}\""));
        }
        let error = "manager".parse::<Role>().unwrap_err().to_string();
        assert!(error.contains("\"manager\"") && error.contains("worker-manager"), "{error}");
    }

    #[test]
    fn what_cannot_join_is_said() {
        let member = Member {
            id: MemberId::new("a"),
            roles: [Role::Worker].into(),
            address: "a:1".into(),
            version: "1".into(),
            state: MemberState::Active,
            epoch: 0,
            labels: BTreeMap::new(),
        };
        assert_eq!(member.check(), Ok(()));
        let wrong = |change: fn(&mut Member)| {
            let mut member = member.clone();
            change(&mut member);
            member.check().unwrap_err()
        };
        assert!(wrong(|m| m.id = MemberId::new("")).contains("id"));
        assert!(wrong(|m| m.id = MemberId::new("a\0")).contains("id"));
        assert!(wrong(|m| m.roles.clear()).contains("no role"));
        assert!(wrong(|m| m.address = "a".into()).contains("host:port"));
        assert!(wrong(|m| drop(m.labels.insert("k".into(), "v".repeat(MAX_LABELS)))).contains("labels"));
    }
}
