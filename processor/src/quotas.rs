//! What bounds tenants over all processors, and the lanes that wait for it.

use std::{collections::BTreeSet, num::NonZeroU32, time::Duration};

use schemas::{Priority, Rate, Tenant};
use tokio::time::Instant;

use crate::{cost::Work, parts::Holdings, rate::Rates, under_way::UnderWay};

/// What bounds a tenant, over all processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quota {
    /// How fast its work may run; none: as fast as its turns come.
    pub(crate) rate: Option<Rate>,
    /// How much of its work may be under way; none: any amount.
    pub(crate) concurrent_work_units_max: Option<NonZeroU32>,
    /// The partitions of the tenant's work of each priority. Each stands for an equal part of both.
    pub(crate) partitions: NonZeroU32,
    /// The most urgent priority that the tenant has. What is left of more urgent jobs has no part of its own where the
    /// processor has any other.
    pub(crate) priority_max: Priority,
}

/// What a lane waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitsFor {
    /// Its rate.
    Rate,
    /// A commit of what is under way of it.
    Commit,
}

/// A wait that is over.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Waited {
    /// Whose lane it was that waited.
    pub(crate) tenant: Tenant,
    pub(crate) waits_for: WaitsFor,
    pub(crate) took: Duration,
}

/// The quotas of one processor's lanes.
#[derive(Default)]
pub(crate) struct Quotas {
    holdings: Holdings,
    rates: Rates,
    under_way: UnderWay,
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
        let tenants: BTreeSet<Tenant> = known.chain(self.under_way.tenants()).cloned().collect();
        for tenant in tenants {
            self.limit(&tenant, quota_of(&tenant), now);
        }
    }

    fn limit(&mut self, tenant: &Tenant, quota: Option<Quota>, now: Instant) {
        let limits = quota.map(|quota| {
            let part = self.holdings.part(tenant, quota.partitions, quota.priority_max);
            let rate = quota.rate.map(|rate| (rate, part));
            // Whoever holds nothing of a tenant has no lane of it to hold back.
            let concurrent = quota
                .concurrent_work_units_max
                .filter(|_| self.holdings.has(tenant));
            (rate, concurrent.map(|work_units_max| (work_units_max, part)))
        });
        let (rate, concurrent) = limits.unwrap_or_default();
        self.rates.limit(tenant, rate, now);
        self.under_way.limit(tenant, concurrent);
    }

    /// The window of this number, which is the last one, takes work of `tenant` as of `now`, worth `estimate` work units, about.
    pub(crate) fn charge(&mut self, window: u64, tenant: &Tenant, estimate: u64, now: Instant) {
        self.rates.charge(tenant, estimate, now);
        self.under_way.charge(window, tenant, estimate);
    }

    /// What the window of this number took of `tenant` is known.
    pub(crate) fn settle(&mut self, window: u64, tenant: &Tenant, work: Work, now: Instant) {
        self.rates.settle(tenant, work.estimate, work.units, now);
        self.under_way.settle(window, tenant, work);
    }

    /// The windows up to this number are committed.
    pub(crate) fn committed(&mut self, window: u64) {
        self.under_way.committed(window);
    }

    /// Whether the lane of `tenant`, which has work, may not run it as of `now`: then it waits, for all that it must, and is to be
    /// asked for again when [`Quotas::release`] tells of it.
    pub(crate) fn hold_back(&mut self, tenant: &Tenant, now: Instant) -> bool {
        let waits_for_rate = self.rates.hold_back(tenant, now);
        self.under_way.hold_back(tenant, now) || waits_for_rate
    }

    /// The lane of `tenant` has no work any more.
    pub(crate) fn forget(&mut self, tenant: &Tenant) {
        self.rates.forget(tenant);
        self.under_way.forget(tenant);
    }

    /// When the next wait for a rate is over.
    pub(crate) fn next_release(&self) -> Option<Instant> {
        self.rates.next_release()
    }

    /// A wait that is over as of `now`. The lane may wait for something else yet.
    pub(crate) fn release(&mut self, now: Instant) -> Option<Waited> {
        let (waits_for, (tenant, took)) = match self.rates.release(now) {
            Some(released) => (WaitsFor::Rate, released),
            None => (WaitsFor::Commit, self.under_way.release(now)?),
        };
        Some(Waited {
            tenant,
            waits_for,
            took,
        })
    }

    /// With how many work units of one priority waiting the lane of `tenant` takes no more of it.
    pub(crate) fn queue_work_max(&self, tenant: &Tenant) -> u64 {
        let by_rate = self.rates.queue_work_max(tenant);
        by_rate.min(self.under_way.queue_work_max(tenant))
    }
}
