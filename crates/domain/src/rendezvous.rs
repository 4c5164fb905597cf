//! Which of several equal members is responsible for a key, decided by each reader alone.
//!
//! Rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998): every member has a
//! score for the key, and the highest wins. Members that come or go move only the keys that they win or had.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

/// The member that `key` belongs to; `None` of nobody. The same in every process and every version of Emberbox: their views of
/// who is there may differ, their answers for one view never.
pub fn owner<'a>(members: impl IntoIterator<Item = &'a str>, key: &str) -> Option<&'a str> {
    members.into_iter().max_by_key(|member| (score(member, key), *member))
}

fn score(member: &str, key: &str) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(member.as_bytes());
    // In no name: so that ("a", "bc") is not ("ab", "c").
    hasher.write(&[0xff]);
    hasher.write(key.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const MEMBERS: [&str; 5] = ["manager-1", "manager-2", "manager-3", "manager-4", "manager-5"];

    fn keys() -> impl Iterator<Item = String> {
        (0..10_000).map(|i| format!("arn:aws:lambda:us-east-1:000000000000:function:f{i}"))
    }

    #[test]
    fn members_have_even_shares() {
        let mut shares: HashMap<&str, usize> = HashMap::new();
        keys().for_each(|key| *shares.entry(owner(MEMBERS, &key).unwrap()).or_default() += 1);
        assert!(shares.len() == 5 && shares.values().all(|n| (1800..=2200).contains(n)), "{shares:?}");
    }

    #[test]
    fn who_goes_moves_only_its_own_keys() {
        for key in keys() {
            let before = owner(MEMBERS, &key).unwrap();
            let after = owner(MEMBERS.into_iter().filter(|m| *m != "manager-3"), &key).unwrap();
            assert!(before == after || before == "manager-3", "{key}");
        }
    }

    #[test]
    fn the_answer_is_that_of_every_version() {
        // Two processes of different versions must agree, or a function has two managers.
        let owners: Vec<_> = ["a", "b", "c", "d"].map(|key| owner(MEMBERS, key).unwrap()).into();
        assert_eq!(owners, ["manager-1", "manager-2", "manager-1", "manager-4"]);
        assert_eq!(owner([], "a"), None);
    }
}
