//! Who a member is: roles and an id, as they stand in its certificate.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What a member may be.
pub const ROLES: [&str; 5] = ["frontend", "worker-manager", "placement", "pollers", "worker"];

/// What all names in a fleet's certificates begin with; the role, a slash and the id follow.
const SCHEME: &str = "emberbox://fleet/";
/// The name in the certificate of a join server. Not a role: no token can ask for it, so that no member can pose as the server that
/// secrets are sent to.
pub(crate) const JOIN_SERVER: &str = "emberbox://fleet/join/server";

/// One of [`ROLES`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Role(&'static str);

/// What a member is or may become.
pub type Roles = BTreeSet<Role>;

impl Role {
    /// As in a certificate and on the command line.
    pub fn as_str(self) -> &'static str {
        self.0
    }
}

impl FromStr for Role {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, InvalidIdentity> {
        ROLES.into_iter().find(|role| *role == text).map(Self).ok_or_else(|| InvalidIdentity::Role(text.to_owned()))
    }
}

impl Serialize for Role {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.0)
    }
}

impl<'de> Deserialize<'de> for Role {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

impl fmt::Debug for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Reads roles with commas between.
///
/// # Errors
/// The first that is none; no role at all.
pub fn parse_roles(text: &str) -> Result<Roles, InvalidIdentity> {
    text.split(',').map(|role| role.trim().parse()).collect()
}

/// Writes roles with commas between.
pub fn show_roles(roles: &Roles) -> String {
    roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(",")
}

/// A member's name, its own in the fleet: 1 to 64 of `A-Z a-z 0-9 . _ -`, the first a letter or digit. It stands in a URI and as
/// a certificate's common name, which X.520 bounds to 64.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemberId(String);

impl MemberId {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for MemberId {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, InvalidIdentity> {
        let fits = (1..=64).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if fits { Ok(Self(text.to_owned())) } else { Err(InvalidIdentity::Id(text.to_owned())) }
    }
}

impl TryFrom<String> for MemberId {
    type Error = InvalidIdentity;

    fn try_from(text: String) -> Result<Self, InvalidIdentity> {
        text.parse()
    }
}

impl From<MemberId> for String {
    fn from(id: MemberId) -> Self {
        id.0
    }
}

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who somebody is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The member.
    pub id: MemberId,
    /// At least one.
    pub roles: Roles,
}

impl Identity {
    /// Whether the member has a role of this name.
    pub fn is(&self, role: &str) -> bool {
        self.roles.iter().any(|own| own.as_str() == role)
    }

    /// The names for the certificate.
    pub(crate) fn uris(&self) -> impl Iterator<Item = String> {
        self.roles.iter().map(|role| format!("{SCHEME}{role}/{}", self.id))
    }
}

/// Why there is no identity.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidIdentity {
    /// Not in [`ROLES`].
    #[error("`{0}` is no role: the roles are {roles}", roles = ROLES.join(", "))]
    Role(String),
    /// See [`MemberId`].
    #[error("`{0}` is no member id: write 1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit")]
    Id(String),
    /// Not X.509.
    #[error("not a certificate: {0}")]
    Certificate(String),
    /// A certificate of something else.
    #[error("the certificate names no member of a fleet: {0}")]
    Member(&'static str),
}

/// Who a certificate is for. It says nothing about whether the certificate is genuine: ask only about one that TLS has verified
/// against the fleet's CA, or that was just verified.
///
/// Roles that this version does not know are passed over, so that a newer member is still understood.
///
/// # Errors
/// It is no certificate, or names no known role, or more than one id.
pub fn identity_of(certificate: &[u8]) -> Result<Identity, InvalidIdentity> {
    let mut id: Option<MemberId> = None;
    let mut roles = Roles::new();
    for uri in uris(certificate)? {
        let Some((role, name)) = uri.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/')) else { continue };
        let Ok(role) = role.parse() else { continue };
        let name = name.parse()?;
        if id.as_ref().is_some_and(|other| *other != name) {
            return Err(InvalidIdentity::Member("it has more than one id"));
        }
        id = Some(name);
        roles.insert(role);
    }
    Ok(Identity { id: id.ok_or(InvalidIdentity::Member("it has no emberbox://fleet/ROLE/ID"))?, roles })
}

/// The URIs among a certificate's names.
pub(crate) fn uris(certificate: &[u8]) -> Result<Vec<String>, InvalidIdentity> {
    let broken = |error: String| InvalidIdentity::Certificate(error);
    let (rest, parsed) = X509Certificate::from_der(certificate).map_err(|e| broken(e.to_string()))?;
    if !rest.is_empty() {
        return Err(broken("bytes follow it".to_owned()));
    }
    let Some(names) = parsed.subject_alternative_name().map_err(|e| broken(e.to_string()))? else {
        return Ok(Vec::new());
    };
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    };
    Ok(names.value.general_names.iter().filter_map(uri).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_and_ids_are_checked() {
        let roles = parse_roles("worker, frontend,worker").unwrap();
        assert_eq!(show_roles(&roles), "frontend,worker");
        for bad in ["", "worker,", "Worker", "join", "worker/x"] {
            assert!(parse_roles(bad).is_err(), "{bad}");
        }
        for good in ["a", "w-1.example_org", &"x".repeat(64)] {
            assert_eq!(good.parse::<MemberId>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", ".", "a/b", "a b", "ä", "a\n", &"x".repeat(65)] {
            assert!(bad.parse::<MemberId>().is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = identity_of(&bytes);
        }
    }
}
