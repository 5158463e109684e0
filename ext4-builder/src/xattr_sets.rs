//! Sets of extended attributes, each kept once: most files of a system have one of a few, if any.

use std::hash::{BuildHasher, RandomState};

use block::{Error, Result};
use hashbrown::HashTable;

use crate::xattr::{Plan, Xattr};

/// Bytes of names and values of all sets at most: they are kept in memory, and the files of a system have some hundred of them.
const MAX_BYTES: usize = 256 << 20;

/// All sets that nodes have had, by their numbers.
#[derive(Debug)]
pub(crate) struct XattrSets {
    /// Of names and values.
    bytes: usize,
    /// The first is the empty one.
    plans: Vec<Plan>,
    lookup: HashTable<u32>,
    hasher: RandomState,
}

impl Default for XattrSets {
    fn default() -> Self {
        Self {
            bytes: 0,
            plans: vec![Plan::default()],
            lookup: HashTable::new(),
            // As for names: the table's order is never seen.
            hasher: RandomState::new(),
        }
    }
}

impl XattrSets {
    /// Number of the set without attributes.
    pub(crate) const EMPTY: u32 = 0;

    /// The number of a set, which may be a known one.
    ///
    /// # Errors
    /// `Unsupported` when there are too many, or too long ones.
    pub(crate) fn put(&mut self, plan: Plan) -> Result<u32> {
        if plan.set().is_empty() {
            return Ok(Self::EMPTY);
        }
        let (plans, hasher) = (&mut self.plans, &self.hasher);
        let hash = hasher.hash_one(plan.set());
        let is_same = |&other: &u32| plans[other as usize].set() == plan.set();
        if let Some(&known) = self.lookup.find(hash, is_same) {
            return Ok(known);
        }
        let index = u32::try_from(plans.len()).map_err(|_| {
            Error::unsupported("a filesystem cannot hold more than 2^32 sets of extended attributes")
        })?;
        let sizes = plan.set().iter().map(Xattr::bytes);
        self.bytes += sizes.sum::<usize>();
        if self.bytes > MAX_BYTES {
            let message = format!(
                "the extended attributes in this tree take more than {} MiB",
                MAX_BYTES >> 20
            );
            return Err(Error::unsupported(message));
        }
        plans.push(plan);
        self.lookup
            .insert_unique(hash, index, |&other| hasher.hash_one(plans[other as usize].set()));
        Ok(index)
    }

    /// The plans of all sets, in the order of their numbers.
    pub(crate) fn plans(&self) -> &[Plan] {
        &self.plans
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(names: &[&str]) -> Plan {
        let set = names
            .iter()
            .map(|name| Xattr::new(name.as_bytes(), b"value").unwrap().unwrap());
        Plan::new(set.collect(), 96, 4096, false).unwrap()
    }

    #[test]
    fn all_of_them_take_256_mib_at_most() {
        let mut sets = XattrSets {
            bytes: (256 << 20) - 2 * "avalue".len(),
            ..XattrSets::default()
        };
        sets.put(plan(&["user.a"])).unwrap();
        sets.put(plan(&["user.b"])).unwrap();
        // It is there already.
        sets.put(plan(&["user.a"])).unwrap();
        let error = sets.put(plan(&["user.c"])).unwrap_err();
        assert!(error.to_string().contains("more than 256 MiB"), "{error}");
    }

    #[test]
    fn equal_sets_have_one_number() {
        let mut sets = XattrSets::default();
        assert_eq!(sets.put(plan(&[])).unwrap(), XattrSets::EMPTY);
        assert_eq!(sets.put(plan(&["user.a", "user.b"])).unwrap(), 1);
        assert_eq!(sets.put(plan(&["user.a"])).unwrap(), 2);
        assert_eq!(sets.put(plan(&["user.b", "user.a"])).unwrap(), 1);
        assert_eq!(sets.plans().len(), 3);
    }
}
