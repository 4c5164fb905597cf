//! All members at one epoch.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::member::{Member, MemberId, MemberState, Role};

/// Who is in the fleet; cheap to clone. The same epoch is always the same view, in every process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "Plain", into = "Plain")]
pub struct View(Arc<Content>);

#[derive(Debug)]
struct Content {
    epoch: u64,
    /// By id.
    members: Vec<Member>,
    /// Of each role (as in [`Role::ALL`]) the active members' places in `members`: found for every request of a frontend.
    active: [Vec<u32>; Role::ALL.len()],
}

#[derive(Serialize, Deserialize)]
struct Plain {
    epoch: u64,
    members: Vec<Member>,
}

impl From<Plain> for View {
    fn from(plain: Plain) -> Self {
        Self::new(plain.epoch, plain.members)
    }
}

impl From<View> for Plain {
    fn from(view: View) -> Self {
        Self { epoch: view.epoch(), members: view.members().to_vec() }
    }
}

impl PartialEq for View {
    fn eq(&self, other: &Self) -> bool {
        self.epoch() == other.epoch() && self.members() == other.members()
    }
}

impl Eq for View {}

impl Default for View {
    /// Nobody, at epoch 0: what is known before the registry was read.
    fn default() -> Self {
        Self::new(0, Vec::new())
    }
}

impl View {
    /// These members at this epoch.
    pub fn new(epoch: u64, mut members: Vec<Member>) -> Self {
        members.sort_by(|a, b| a.id.cmp(&b.id));
        let active = Role::ALL.map(|role| {
            let places = (0u32..).zip(&members);
            places.filter(|(_, m)| m.state == MemberState::Active && m.is(role)).map(|(place, _)| place).collect()
        });
        Self(Arc::new(Content { epoch, members, active }))
    }

    /// Grows with every change of membership: who came, went, was found dead, or changed its state.
    pub fn epoch(&self) -> u64 {
        self.0.epoch
    }

    /// All of them, by id.
    pub fn members(&self) -> &[Member] {
        &self.0.members
    }

    /// The member of this name.
    pub fn member(&self, id: &MemberId) -> Option<&Member> {
        let found = self.members().binary_search_by(|member| member.id.cmp(id));
        found.ok().map(|place| &self.members()[place])
    }

    /// Who has the role and was not found dead, whatever its state: whoever looks for work in progress must ask those that drain
    /// as well.
    pub fn live(&self, role: Role) -> impl Iterator<Item = &Member> {
        self.members().iter().filter(move |member| member.is(role))
    }

    /// Who takes new work in the role.
    pub fn active(&self, role: Role) -> impl ExactSizeIterator<Item = &Member> {
        self.0.active[role as usize].iter().map(|place| &self.members()[*place as usize])
    }

    /// Who of the active members in the role is responsible for `key`, see [`domain::rendezvous::owner`]; `None` while there is none.
    pub fn owner(&self, role: Role, key: &str) -> Option<&Member> {
        let owner = domain::rendezvous::owner(self.active(role).map(|member| member.id.as_str()), key)?;
        self.active(role).find(|member| member.id.as_str() == owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str, roles: &[Role], state: MemberState) -> Member {
        Member {
            id: MemberId::new(id),
            roles: roles.iter().copied().collect(),
            address: format!("{id}:1"),
            version: "1".into(),
            state,
            epoch: 1,
            labels: Default::default(),
        }
    }

    #[test]
    fn members_are_found_by_role_and_key() {
        let view = View::new(
            7,
            vec![
                member("manager-2", &[Role::WorkerManager, Role::Frontend], MemberState::Active),
                member("manager-1", &[Role::WorkerManager], MemberState::Active),
                member("manager-3", &[Role::WorkerManager], MemberState::Draining),
                member("worker", &[Role::Worker], MemberState::Joining),
            ],
        );
        let ids = |members: Vec<&Member>| members.iter().map(|m| m.id.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(ids(view.live(Role::WorkerManager).collect()), "manager-1 manager-2 manager-3");
        assert_eq!(ids(view.active(Role::WorkerManager).collect()), "manager-1 manager-2");
        assert_eq!(ids(view.active(Role::Frontend).collect()), "manager-2");
        assert_eq!(view.active(Role::Worker).len(), 0);
        assert_eq!(view.owner(Role::Worker, "a"), None);
        for key in ["a", "b", "c", "d"] {
            let owner = domain::rendezvous::owner(["manager-1", "manager-2"], key);
            assert_eq!(view.owner(Role::WorkerManager, key).map(|m| m.id.as_str()), owner);
        }
        assert_eq!(view.member(&MemberId::new("worker")).map(|m| m.state), Some(MemberState::Joining));
        assert_eq!(view.member(&MemberId::new("nobody")), None);
        let json = serde_json::to_string(&view).unwrap();
        assert_eq!(serde_json::from_str::<View>(&json).unwrap(), view);
    }
}
