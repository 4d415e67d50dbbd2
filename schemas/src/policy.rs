//! What tenants may do, and what models cost: the values that decisions are made from.

use std::collections::{BTreeMap, BTreeSet};

use rust_decimal::Decimal;

use crate::{ModelName, Pool, Task, Tenant, TopicName, TopicNames};

/// Everything that admission and billing look at, as of one moment.
#[derive(Debug, Clone)]
pub struct Policies {
    /// Which topic serves which stage.
    pub topics: TopicNames,
    /// The known tenants.
    pub tenants: BTreeMap<Tenant, TenantPolicy>,
    /// The known models.
    pub models: BTreeMap<ModelName, ModelTerms>,
    /// The most bytes that the texts of a job may have.
    pub input_bytes_max: usize,
    /// ISO 4217, such as `USD`: the currency of every price.
    pub currency: String,
}

/// What one tenant may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantPolicy {
    /// Whose processors run the tenant's jobs.
    pub pool: Pool,
    /// How many partitions the tenant's topics have.
    pub partitions: u32,
    /// The models that the tenant may use; none means all.
    pub models: Option<BTreeSet<ModelName>>,
}

/// What one model does, and what it costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelTerms {
    /// What it does.
    pub task: Task,
    /// The price of one second of device time, with at most 9 decimals.
    pub price_per_device_second: Decimal,
}

impl Policies {
    /// The topics that must exist for these tenants: name and number of partitions.
    pub fn internal_topics(&self) -> Vec<(TopicName, u32)> {
        let mut topics = vec![
            (self.topics.dead_letters(), 1),
            (self.topics.outcomes(&Tenant::unclaimed()), 1),
        ];
        for (tenant, policy) in &self.tenants {
            topics.push((self.topics.work(&policy.pool, tenant), policy.partitions));
            topics.push((self.topics.outcomes(tenant), policy.partitions));
        }
        topics
    }

    /// How many partitions the outcomes topic of `tenant` has; that of an unknown or the reserved tenant has one.
    pub fn partitions_of(&self, tenant: &Tenant) -> u32 {
        self.tenants.get(tenant).map_or(1, |policy| policy.partitions)
    }
}
