//! Who is at the other end of a connection.

use std::fmt;
use std::sync::Arc;

/// What a member of the fleet may be.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Role {
    /// Takes requests.
    Frontend,
    /// Decides which sandbox serves a request.
    WorkerManager,
    /// Decides where a new sandbox goes.
    Placement,
    /// Takes events.
    Pollers,
    /// Has sandboxes.
    Worker,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Frontend, Self::WorkerManager, Self::Placement, Self::Pollers, Self::Worker];

    /// As in certificates and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Frontend => "frontend",
            Self::WorkerManager => "worker-manager",
            Self::Placement => "placement",
            Self::Pollers => "pollers",
            Self::Worker => "worker",
        }
    }

    /// The inverse of [`Self::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One role of one process. A process with several has several names in its certificate.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Member {
    /// What it is.
    pub role: Role,
    /// Which of them, as in the membership.
    pub id: Arc<str>,
}

impl Member {
    /// A member by its role and id.
    pub fn new(role: Role, id: impl Into<Arc<str>>) -> Self {
        Self { role, id: id.into() }
    }

    /// Its name in a certificate: `emberbox://fleet/<role>/<id>`.
    pub fn uri(&self) -> String {
        format!("emberbox://fleet/{}/{}", self.role, self.id)
    }

    /// The inverse of [`Self::uri`]; `None` of names of other kinds, and of roles that this version does not know.
    pub fn parse(uri: &str) -> Option<Self> {
        let (role, id) = uri.strip_prefix("emberbox://fleet/")?.split_once('/')?;
        let valid = !id.is_empty() && !id.contains('/');
        Some(Self::new(Role::parse(role)?, id)).filter(|_| valid)
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.id)
    }
}

/// Whose connection it is.
#[derive(Clone, Debug)]
pub(crate) enum Peer {
    /// A process of this machine, without TLS: whoever can connect is trusted.
    Local,
    /// What its certificate says.
    Members(Arc<[Member]>),
}

impl Peer {
    /// Whether it is one of `roles`.
    pub(crate) fn is_one_of(&self, roles: &[Role]) -> bool {
        match self {
            Self::Local => true,
            Self::Members(members) => members.iter().any(|member| roles.contains(&member.role)),
        }
    }

    /// Whether it has one of these ids, in any role.
    pub(crate) fn is_among(&self, ids: impl Fn(&str) -> bool) -> bool {
        match self {
            Self::Local => false,
            Self::Members(members) => members.iter().any(|member| ids(&member.id)),
        }
    }

    /// Whether it is this member.
    pub(crate) fn is(&self, role: Role, id: &str) -> bool {
        match self {
            Self::Local => true,
            Self::Members(members) => members.iter().any(|member| member.role == role && *member.id == *id),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("a local process"),
            Self::Members(members) => {
                let names: Vec<String> = members.iter().map(Member::to_string).collect();
                f.write_str(&names.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_certificates() {
        let member = Member::new(Role::WorkerManager, "manager-1");
        assert_eq!(member.uri(), "emberbox://fleet/worker-manager/manager-1");
        assert_eq!(Member::parse(&member.uri()), Some(member));
        for other in
            ["https://example.org/", "emberbox://fleet/worker", "emberbox://fleet/worker/", "emberbox://fleet/king/a"]
        {
            assert_eq!(Member::parse(other), None, "{other}");
        }
        assert_eq!(Member::parse("emberbox://fleet/worker/a/b"), None);
    }
}
