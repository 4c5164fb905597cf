//! What a group of commits does: pure.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::api::{Change, Commit, Op, Precondition, Record};
use crate::error::StoreError;

/// Kind and key of a record.
pub(super) type Name<'a> = (&'a str, &'a str);

/// What is to be written for a group, and what is to be answered once it is.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// One for each commit of the group, in its order.
    pub outcomes: Vec<Result<Commit, StoreError>>,
    /// That of the last commit, or the one before the group if all failed.
    pub revision: u64,
    /// What becomes of each record that the group changes; `None`: it goes.
    pub records: BTreeMap<Name<'a>, Option<(u64, &'a Bytes)>>,
}

/// The records whose versions decide about the group.
pub(super) fn watched(group: &[Vec<Op>]) -> BTreeSet<Name<'_>> {
    let ops = group.iter().flatten().filter(|op| op.precondition != Precondition::None);
    ops.map(|op| (&*op.kind, &*op.key)).collect()
}

/// Decides about each commit of `group`, one after the other. `before` is the last revision there is, and `versions` has
/// those of the records that are [`watched`] and exist.
pub(super) fn plan<'a>(group: &'a [Vec<Op>], before: u64, versions: &BTreeMap<Name<'_>, u64>) -> Plan<'a> {
    let mut plan = Plan { outcomes: Vec::with_capacity(group.len()), revision: before, records: BTreeMap::new() };
    for ops in group {
        let conflict = ops.iter().find(|op| {
            let name = (&*op.kind, &*op.key);
            let stored = || versions.get(&name).copied();
            let version = plan.records.get(&name).map_or_else(stored, |record| record.map(|(version, _)| version));
            !op.precondition.holds(version)
        });
        if let Some(op) = conflict {
            plan.outcomes.push(Err(StoreError::conflict(op)));
            continue;
        }
        plan.revision += 1;
        let version = plan.revision;
        let mut changes = Vec::with_capacity(ops.len());
        for op in ops {
            plan.records.insert((&op.kind, &op.key), op.value.as_ref().map(|value| (version, value)));
            let record = op.value.clone().map(|value| Record { version, value });
            changes.push(Change { kind: op.kind.clone(), key: op.key.clone(), record });
        }
        plan.outcomes.push(Ok(Commit { revision: version, changes }));
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_commit_sees_those_before_it() {
        let group = [
            vec![Op::put("k", "a", "1").when(Precondition::DoesNotExist), Op::put("k", "b", "1")],
            vec![Op::put("k", "a", "2").when(Precondition::DoesNotExist), Op::delete("k", "b")],
            vec![Op::delete("k", "a").when(Precondition::Version(8))],
            vec![Op::put("k", "a", "3").when(Precondition::DoesNotExist)],
            vec![Op::put("k", "c", "4").when(Precondition::Version(5)), Op::put("k", "c", "5")],
        ];
        assert_eq!(watched(&group), BTreeSet::from([("k", "a"), ("k", "c")]));
        let plan = plan(&group, 7, &BTreeMap::from([(("k", "c"), 5)]));
        let revisions: Vec<_> = plan.outcomes.iter().map(|outcome| outcome.as_ref().ok().map(|c| c.revision)).collect();
        assert_eq!(revisions, [Some(8), None, Some(9), Some(10), Some(11)]);
        assert_eq!(plan.revision, 11);
        let left: Vec<_> = plan.records.into_iter().map(|(name, record)| (name.1, record.map(|r| r.0))).collect();
        assert_eq!(left, [("a", Some(10)), ("b", Some(8)), ("c", Some(11))]);
    }
}
