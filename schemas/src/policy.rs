//! What tenants may do, and what models cost: the values that decisions are made from.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
};

use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

use crate::{ModelName, Pool, Priority, Record, Task, Tenant, TopicNames};

/// The known tenants and what each may do.
pub type Tenants = BTreeMap<Tenant, TenantPolicy>;

/// All tenants, as they cross a topic in one record: a set takes the place of the one before it, and nothing of both is
/// ever in force together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TenantSet(pub Tenants);

impl Record for TenantSet {
    const KIND: &'static str = "tenant set";
    const VERSION: u8 = 1;

    fn size_hint(&self) -> usize {
        200 * self.0.len()
    }
}

/// Everything that admission and billing look at, as of one moment.
#[derive(Debug, Clone)]
pub struct Policies {
    /// Which topic serves which stage.
    pub topics: TopicNames,
    /// The known tenants.
    pub tenants: Tenants,
    /// The known models.
    pub models: BTreeMap<ModelName, ModelTerms>,
    /// The pools that are configured, and the models that their processors have; none, or a pool that is not here, means all.
    pub pools: BTreeMap<Pool, Option<BTreeSet<ModelName>>>,
    /// The most bytes that the texts of a job may have.
    pub input_bytes_max: usize,
    /// ISO 4217, such as `USD`: the currency of every price.
    pub currency: String,
}

/// What one tenant may do. Each field that is left out has its default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TenantPolicy {
    /// Whose processors run the tenant's jobs.
    pub pool: Pool,
    /// How many partitions the tenant's topics have.
    pub partitions: u32,
    /// The models that the tenant may use; none means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub models: Option<BTreeSet<ModelName>>,
    /// The tenant's share of a device, beside the weights of the others that wait for it.
    pub weight: NonZeroU32,
    /// A job that asks for more is as urgent as this. By default all are alike: each priority is a topic more.
    pub priority_max: Priority,
    /// How long the tenant's topics keep a record, in days; none leaves it to the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_days: Option<NonZeroU32>,
    /// How fast the tenant's jobs run at most; none: as fast as its turns come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// How much of the tenant's work may be under way at once, in work units, which are about tokens; none: any amount. What
    /// comes above that waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent_work_units_max: Option<NonZeroU32>,
    /// What the tenant may spend; none: as much as it likes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// How many records of the tenant's work may wait or be under way, each with up to 8 KiB of jobs; none: any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_records_max: Option<NonZeroU32>,
    /// What departs from the usual, and what becomes of it.
    #[serde(skip_serializing_if = "Abuse::is_default")]
    pub abuse: Abuse,
    /// Stand on every outcome of the tenant, in the place of the job's own labels of these names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Default for TenantPolicy {
    fn default() -> Self {
        Self {
            pool: Pool::default(),
            partitions: 1,
            models: None,
            weight: NonZeroU32::MIN,
            priority_max: Priority::Low,
            retention_days: None,
            rate: None,
            concurrent_work_units_max: None,
            budget: None,
            queue_records_max: None,
            abuse: Abuse::default(),
            labels: BTreeMap::new(),
        }
    }
}

impl TenantPolicy {
    /// How urgent the tenant's jobs may be.
    pub fn priorities(&self) -> impl Iterator<Item = Priority> + use<> {
        let most = self.priority_max;
        Priority::ALL
            .into_iter()
            .filter(move |priority| *priority <= most)
    }

    /// Whether jobs of the tenant may be rejected for what it has spent, or has waiting.
    pub fn has_quotas(&self) -> bool {
        self.budget.is_some() || self.queue_records_max.is_some()
    }
}

/// How fast jobs run at most, in work units, which are about tokens. What comes faster waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// So many a second, for as long as it takes.
    pub work_units_per_s: NonZeroU32,
    /// So many at once, after a while without any; none: those of a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_work_units: Option<NonZeroU32>,
}

impl Rate {
    /// How many work units may run at once, after a while without any.
    pub fn burst_work_units(&self) -> NonZeroU32 {
        self.burst_work_units.unwrap_or(self.work_units_per_s)
    }
}

/// What a tenant may spend, in the currency of every price. Of a job that comes when it is spent, nothing runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Budget {
    /// In a UTC day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_day: Option<Decimal>,
    /// In a UTC month.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_month: Option<Decimal>,
}

/// When a tenant's use is told to depart from the usual, and whether what comes above that is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Abuse {
    /// Whether departures are looked for.
    pub detect: bool,
    /// More than so many times the usual departs from it.
    pub times_usual: NonZeroU32,
    /// Whether jobs that come above that are rejected until the interval is over.
    pub throttle: bool,
}

impl Default for Abuse {
    fn default() -> Self {
        Self {
            detect: true,
            times_usual: NonZeroU32::new(3).expect("not zero"),
            throttle: false,
        }
    }
}

impl Abuse {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
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
    /// How many partitions the outcomes topic of `tenant` has; that of an unknown or the reserved tenant has one.
    pub fn partitions_of(&self, tenant: &Tenant) -> u32 {
        self.tenants.get(tenant).map_or(1, |policy| policy.partitions)
    }

    /// Whether the processors of `pool` have `model`.
    pub fn has_model(&self, pool: &Pool, model: &ModelName) -> bool {
        let models = self.pools.get(pool).and_then(Option::as_ref);
        models.is_none_or(|models| models.contains(model))
    }

    /// The weight of `tenant`; that of one that is not known any more is 1.
    pub fn weight_of(&self, tenant: &Tenant) -> NonZeroU32 {
        self.tenants
            .get(tenant)
            .map_or(NonZeroU32::MIN, |policy| policy.weight)
    }
}
