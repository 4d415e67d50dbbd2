//! What bounds tenants over all processors, and the lanes that wait for it.

use std::{collections::BTreeSet, num::NonZeroU32, time::Duration};

use schemas::{Priority, Rate, Tenant};
use tokio::time::Instant;

use crate::{parts::Holdings, rate::Rates};

/// What bounds a tenant, over all processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quota {
    /// How fast its work may run; none: as fast as its turns come.
    pub(crate) rate: Option<Rate>,
    /// The partitions of the tenant's work of each priority. Each stands for an equal part.
    pub(crate) partitions: NonZeroU32,
    /// The most urgent priority that the tenant has. What is left of more urgent jobs has no part of its own.
    pub(crate) priority_max: Priority,
}

/// The quotas of one processor's lanes.
#[derive(Default)]
pub(crate) struct Quotas {
    holdings: Holdings,
    rates: Rates,
}

impl Quotas {
    /// This processor holds one more partition of the jobs of `priority` of `tenant`, who has `quota`.
    pub(crate) fn gain(&mut self, tenant: &Tenant, priority: Priority, quota: Option<Quota>, now: Instant) {
        self.holdings.gain(tenant, priority);
        self.limit(tenant, quota, now);
    }

    /// This processor holds one partition less of the jobs of `priority` of `tenant`, who has `quota`.
    pub(crate) fn lose(&mut self, tenant: &Tenant, priority: Priority, quota: Option<Quota>, now: Instant) {
        self.holdings.lose(tenant, priority);
        self.limit(tenant, quota, now);
    }

    /// Holds every tenant to its quota of now.
    pub(crate) fn relimit(&mut self, quota_of: impl Fn(&Tenant) -> Option<Quota>, now: Instant) {
        let known = self.holdings.tenants().chain(self.rates.tenants());
        let tenants: BTreeSet<Tenant> = known.cloned().collect();
        for tenant in tenants {
            self.limit(&tenant, quota_of(&tenant), now);
        }
    }

    fn limit(&mut self, tenant: &Tenant, quota: Option<Quota>, now: Instant) {
        let rate = quota.and_then(|quota| {
            let part = self.holdings.part(tenant, quota.partitions, quota.priority_max);
            quota.rate.map(|rate| (rate, part))
        });
        self.rates.limit(tenant, rate, now);
    }

    /// Work of `tenant` runs from now on, worth `estimate` work units, about.
    pub(crate) fn charge(&mut self, tenant: &Tenant, estimate: u64, now: Instant) {
        self.rates.charge(tenant, estimate, now);
    }

    /// Work of `tenant` that was charged as `estimate` was `work`, both in work units.
    pub(crate) fn settle(&mut self, tenant: &Tenant, estimate: u64, work: u64, now: Instant) {
        self.rates.settle(tenant, estimate, work, now);
    }

    /// Whether the lane of `tenant`, which has work, may not run it as of `now`: then it waits until [`Quotas::release`].
    pub(crate) fn hold_back(&mut self, tenant: &Tenant, now: Instant) -> bool {
        self.rates.hold_back(tenant, now)
    }

    /// The lane of `tenant` has no work any more.
    pub(crate) fn forget(&mut self, tenant: &Tenant) {
        self.rates.forget(tenant);
    }

    /// When the next lane may go on.
    pub(crate) fn next_release(&self) -> Option<Instant> {
        self.rates.next_release()
    }

    /// A lane that may go on as of `now`, and how long it waited.
    pub(crate) fn release(&mut self, now: Instant) -> Option<(Tenant, Duration)> {
        self.rates.release(now)
    }

    /// With how many work units waiting the lane of `tenant` takes no more.
    pub(crate) fn queue_work_max(&self, tenant: &Tenant) -> u64 {
        self.rates.queue_work_max(tenant)
    }
}
