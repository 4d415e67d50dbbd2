//! Shuffle sharding: which of a pool's shards serve a name.
//!
//! Each name has a few of the shards, chosen by its hash, so that two names seldom have all of theirs in common
//! ([Workload isolation using shuffle-sharding](https://aws.amazon.com/builders-library/workload-isolation-using-shuffle-sharding/)).
//! They are those of the highest weights, and a shard's weight for a name hangs on nothing else: with one shard more or less,
//! a name changes at most one of its own (rendezvous hashing: Thaler and Ravishankar, IEEE/ACM Transactions on Networking 6,
//! 1998). Everybody must come to the same, in every version: the hash is fixed by a test.

use std::{collections::BTreeSet, num::NonZeroU32};

use serde::{Deserialize, Serialize};

/// How a pool's processors are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shards {
    /// How many there are.
    pub count: NonZeroU32,
    /// How many of them serve one tenant.
    pub per_tenant: NonZeroU32,
}

/// One of a pool's shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Which one, from 0.
    pub number: u32,
    /// Of which.
    pub of: Shards,
}

impl Shards {
    /// Those that serve the tenant of this name.
    pub fn serving(self, tenant: &str) -> BTreeSet<u32> {
        let shards = (0..self.count.get()).map(|number| Shard { number, of: self });
        let serving = shards.filter(|shard| shard.serves(tenant));
        serving.map(|shard| shard.number).collect()
    }
}

impl Shard {
    /// Whether it serves the tenant of this name.
    pub fn serves(self, tenant: &str) -> bool {
        let seed = fnv_1a(tenant.as_bytes());
        // Of two that weigh the same, the first.
        let rank = |number| (weight(seed, number), std::cmp::Reverse(number));
        let own = rank(self.number);
        let before = (0..self.of.count.get()).filter(|number| rank(*number) > own);
        before.count() < self.of.per_tenant.get() as usize
    }
}

/// The number at `index` of those that SplitMix64 gives from `seed` on (Steele, Lea and Flood, Fast splittable pseudorandom
/// number generators, 2014).
fn weight(seed: u64, index: u32) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(u64::from(index) + 1));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a of 64 bits, by Fowler, Noll and Vo.
fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn shards(count: u32, per_tenant: u32) -> Shards {
        Shards {
            count: NonZeroU32::new(count).unwrap(),
            per_tenant: NonZeroU32::new(per_tenant).unwrap(),
        }
    }

    /// So many names as like each other as names of tenants may be.
    fn names(many: u32) -> impl Iterator<Item = String> {
        (0..many).map(|number| format!("tenant-{number}"))
    }

    proptest! {
        #[test]
        fn a_tenant_has_as_many_shards_as_each_is_to_have(
            tenant in "[a-z][a-z0-9-]{0,62}",
            (count, per_tenant) in (1..40_u32).prop_flat_map(|count| (Just(count), 1..=count)),
        ) {
            let serving = shards(count, per_tenant).serving(&tenant);
            prop_assert_eq!(serving.len(), per_tenant as usize);
            prop_assert!(serving.iter().all(|number| *number < count));
        }

        #[test]
        fn a_shard_more_takes_the_place_of_one_at_most_of_a_tenants_and_another_for_each_leaves_the_first_ones(
            tenant in "[a-z][a-z0-9-]{0,62}",
            (count, per_tenant) in (2..40_u32).prop_flat_map(|count| (Just(count), 1..count)),
        ) {
            let serving = shards(count, per_tenant).serving(&tenant);
            let with_one_more = shards(count + 1, per_tenant).serving(&tenant);
            let new: Vec<u32> = with_one_more.difference(&serving).copied().collect();
            prop_assert!(new.is_empty() || new == [count], "{serving:?} and {with_one_more:?}");
            prop_assert!(shards(count, per_tenant + 1).serving(&tenant).is_superset(&serving));
        }
    }

    #[test]
    fn a_shard_more_takes_its_part_of_the_tenants_and_no_other_changes_hands() {
        let (before, after) = (shards(8, 2), shards(9, 2));
        let moved = names(9_000).filter(|tenant| before.serving(tenant) != after.serving(tenant));
        let moved = moved.count();
        assert!(
            (1_850..2_150).contains(&moved),
            "{moved} and not about 9,000 · 2/9"
        );
    }

    #[test]
    fn every_shard_has_about_as_many_tenants_as_the_others() {
        for (count, per_tenant) in [(2, 1), (8, 2), (16, 4)] {
            let mut tenants = vec![0; count as usize];
            for name in names(10_000) {
                for number in shards(count, per_tenant).serving(&name) {
                    tenants[number as usize] += 1;
                }
            }
            let even = f64::from(10_000 * per_tenant) / f64::from(count);
            for of_one in &tenants {
                let of_even = f64::from(*of_one) / even;
                assert!(
                    (0.92..1.08).contains(&of_even),
                    "{count}, {per_tenant}: {tenants:?}"
                );
            }
        }
    }

    #[test]
    fn two_tenants_share_all_their_shards_as_seldom_as_if_they_had_drawn_them() {
        for (count, per_tenant, combinations) in [(8, 2, 28.0), (16, 2, 120.0), (10, 3, 120.0)] {
            let mut alike: BTreeMap<BTreeSet<u32>, u64> = BTreeMap::new();
            for name in names(5_000) {
                *alike.entry(shards(count, per_tenant).serving(&name)).or_default() += 1;
            }
            let pairs: u64 = alike.values().map(|many| many * (many - 1)).sum();
            let share = pairs as f64 / (5_000.0 * 4_999.0);
            let of_drawn = share * combinations;
            assert!(
                (0.95..1.1).contains(&of_drawn),
                "{count}, {per_tenant}: 1 in {}",
                1.0 / share
            );
        }
    }

    #[test]
    fn the_choice_is_the_same_in_every_version() {
        assert_eq!(fnv_1a(b"foobar"), 0x8594_4171_f739_67e8, "as published");
        assert_eq!(weight(0, 0), 0xe220_a839_7b1d_cdaf, "as published");
        let serving = ["acme", "globex", "initech"].map(|tenant| shards(8, 2).serving(tenant));
        assert_eq!(
            serving.map(|numbers| numbers.into_iter().collect::<Vec<_>>()),
            [[1, 6], [1, 7], [3, 7]]
        );
    }
}
