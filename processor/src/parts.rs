//! Which part of a tenant's limits a processor has. Processors share them without talking, by what they hold of the tenant's
//! partitions: part and partition change hands together.

use std::{
    collections::HashMap,
    num::{NonZeroU32, NonZeroU64},
};

use schemas::{Priority, Tenant};

/// So many of the equal parts of what bounds a tenant over all processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) held: u32,
    pub(crate) all: NonZeroU64,
}

impl Part {
    /// So much of `whole` as the part is, rounded down.
    pub(crate) fn of(self, whole: i128) -> i128 {
        whole * i128::from(self.held) / i128::from(self.all.get())
    }
}

/// Of each tenant's work, how many partitions one processor holds, by priority.
#[derive(Default)]
pub(crate) struct Holdings(HashMap<Tenant, [u32; 3]>);

impl Holdings {
    /// This processor holds one more partition of `tenant`'s jobs of `priority`.
    pub(crate) fn gain(&mut self, tenant: &Tenant, priority: Priority) {
        self.0.entry(tenant.clone()).or_default()[priority as usize] += 1;
    }

    /// This processor holds one partition of `tenant`'s jobs of `priority` less.
    pub(crate) fn lose(&mut self, tenant: &Tenant, priority: Priority) {
        if let Some(held) = self.0.get_mut(tenant) {
            held[priority as usize] -= 1;
            if *held == [0; 3] {
                self.0.remove(tenant);
            }
        }
    }

    /// Those of whom it holds something.
    pub(crate) fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        self.0.keys()
    }

    /// Whether it holds anything of `tenant`.
    pub(crate) fn has(&self, tenant: &Tenant) -> bool {
        self.0.contains_key(tenant)
    }

    /// The part of `tenant`, whose work has so many `partitions` of each priority up to `priority_max`: each stands for one.
    /// What is left of more urgent jobs stands for none. But where a processor holds nothing else of the tenant, it has one
    /// all the same: with none, what it owes would never be paid.
    pub(crate) fn part(&self, tenant: &Tenant, partitions: NonZeroU32, priority_max: Priority) -> Part {
        let held = self.0.get(tenant).copied().unwrap_or_default();
        let of_tenant: u32 = held[..=priority_max as usize].iter().sum();
        let priorities = NonZeroU64::MIN.saturating_add(priority_max as u64);
        Part {
            held: of_tenant.max(self.has(tenant).into()),
            all: NonZeroU64::from(partitions).saturating_mul(priorities),
        }
    }
}

#[cfg(test)]
mod tests {
    use Priority::{High, Low, Normal};

    use super::*;

    #[test]
    fn a_partition_of_any_priority_that_the_tenant_has_stands_for_an_equal_part_and_a_processor_for_one_at_least()
     {
        let (mut holdings, acme) = (Holdings::default(), Tenant::new("acme").unwrap());
        let two = NonZeroU32::new(2).unwrap();
        let of_100 = |holdings: &Holdings, priority_max| holdings.part(&acme, two, priority_max).of(100);
        holdings.gain(&acme, Low);
        holdings.gain(&acme, Normal);
        assert_eq!(of_100(&holdings, Normal), 50);
        assert_eq!(of_100(&holdings, High), 33);
        assert_eq!(
            of_100(&holdings, Low),
            50,
            "the tenant has no normal jobs any more"
        );
        holdings.gain(&acme, Normal);
        holdings.lose(&acme, Low);
        assert_eq!(of_100(&holdings, Low), 50, "only what is left of normal jobs");
        assert_eq!(of_100(&Holdings::default(), Low), 0);
        holdings.lose(&acme, Normal);
        assert!(holdings.has(&acme));
        holdings.lose(&acme, Normal);
        assert!(!holdings.has(&acme) && holdings.tenants().next().is_none());
    }
}
