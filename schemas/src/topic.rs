//! Topics: their names, their ids, and which topic serves which stage.

use std::{fmt, str::FromStr, sync::Arc};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{InvalidName, Pool, Priority, Tenant, names::name};

name!(
    /// A topic's name, by Kafka's rule.
    TopicName,
    "topic",
    is_topic_name,
    "have 1 to 249 characters from [a-zA-Z0-9._-] and be neither `.` nor `..`"
);

fn is_topic_name(name: &str) -> bool {
    (1..=249).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && name != "."
        && name != ".."
}

/// What tells a topic from a later one of the same name: Kafka's topic id. Offsets are only comparable under one id,
/// since a re-created topic starts its offsets again. Shown as Kafka's own tools show it: URL-safe base64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(into = "String")]
pub struct TopicId([u8; 16]);

impl TopicId {
    /// The id with these 16 bytes, most significant first.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes, most significant first.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl FromStr for TopicId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName::new("topic id", text, "be 16 bytes in URL-safe base64");
        // The decoder asks for room for an estimate, which may be more.
        let mut bytes = [0; 18];
        match BASE64_URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) {
            Ok(16) => Ok(Self(bytes[..16].try_into().map_err(|_| invalid())?)),
            _ => Err(invalid()),
        }
    }
}

impl<'de> Deserialize<'de> for TopicId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::text::deserialize(deserializer, "a topic id", Self::from_str)
    }
}

impl From<TopicId> for String {
    fn from(id: TopicId) -> String {
        id.to_string()
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TopicId({self})")
    }
}

/// How a job came in: what its topic says of its tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Door {
    /// The shared topic: each job names its tenant.
    Shared,
    /// A tenant's own topic, whose name is the identity; the broker's ACLs say who may write to it.
    Tenant(Tenant),
}

/// Which topic serves which stage. Jobs arrive on `jobs` and `jobs.<tenant>`; the rest is internal and prefixed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicNames {
    jobs: TopicName,
    prefix: Arc<str>,
}

impl TopicNames {
    /// The names under `jobs`, the shared topic of jobs, and `prefix`, which every internal topic's name begins with.
    ///
    /// # Errors
    /// [`InvalidName`] when the two leave no room for a tenant of 63 characters or break Kafka's rule.
    pub fn new(jobs: &TopicName, prefix: &str) -> Result<Self, InvalidName> {
        let longest = "x".repeat(63);
        TopicName::new(&format!("{jobs}.{longest}"))?;
        TopicName::new(&format!("{prefix}work.{longest}.normal.{longest}"))?;
        Ok(Self {
            jobs: jobs.clone(),
            prefix: prefix.into(),
        })
    }

    /// The shared topic of jobs.
    pub fn jobs(&self) -> TopicName {
        self.jobs.clone()
    }

    /// A tenant's own topic of jobs.
    pub fn jobs_of(&self, tenant: &Tenant) -> TopicName {
        self.checked(&format!("{}{tenant}", self.doors_prefix()))
    }

    /// What the name of every tenant's own topic of jobs begins with.
    pub fn doors_prefix(&self) -> String {
        format!("{}.", self.jobs)
    }

    /// Admitted jobs of `tenant` and `priority` for the processors of `pool`.
    pub fn work(&self, pool: &Pool, priority: Priority, tenant: &Tenant) -> TopicName {
        self.checked(&format!("{}{tenant}", self.work_prefix(pool, priority)))
    }

    /// What the name of every work topic of `pool` and `priority` begins with; the tenant is all that follows.
    pub fn work_prefix(&self, pool: &Pool, priority: Priority) -> String {
        let of_pool = format!("{}{pool}.", self.all_work_prefix());
        match priority {
            Priority::Low => format!("{of_pool}low."),
            Priority::Normal => of_pool,
            Priority::High => format!("{of_pool}high."),
        }
    }

    /// What the name of every work topic begins with.
    pub fn all_work_prefix(&self) -> String {
        format!("{}work.", self.prefix)
    }

    /// Outcomes of `tenant`.
    pub fn outcomes(&self, tenant: &Tenant) -> TopicName {
        self.checked(&format!("{}{tenant}", self.outcomes_prefix()))
    }

    /// What the name of every outcomes topic begins with.
    pub fn outcomes_prefix(&self) -> String {
        format!("{}outcomes.", self.prefix)
    }

    /// Bytes that were no job, untouched.
    pub fn dead_letters(&self) -> TopicName {
        self.checked(&format!("{}dead-letters", self.prefix))
    }

    /// What was done and decided, and by whom.
    pub fn audit(&self) -> TopicName {
        self.checked(&format!("{}audit", self.prefix))
    }

    /// What every tenant may do: one record a set.
    pub fn policies(&self) -> TopicName {
        self.checked(&format!("{}policies", self.prefix))
    }

    /// Which door `topic` is; none where it is not a topic of jobs, or names no possible tenant.
    pub fn door(&self, topic: &TopicName) -> Option<Door> {
        if *topic == self.jobs {
            return Some(Door::Shared);
        }
        let tenant = topic.as_str().strip_prefix(&self.doors_prefix())?;
        Tenant::new(tenant).ok().map(Door::Tenant)
    }

    /// Whose outcomes `topic` holds; none where it is not an outcomes topic.
    pub fn tenant_of_outcomes(&self, topic: &TopicName) -> Option<Tenant> {
        Tenant::new(topic.as_str().strip_prefix(&self.outcomes_prefix())?).ok()
    }

    /// Whose work `topic` holds for `pool`, and how urgent it is; none where it is not such a topic.
    pub fn owner_of_work(&self, pool: &Pool, topic: &TopicName) -> Option<(Tenant, Priority)> {
        Priority::ALL.into_iter().find_map(|priority| {
            let tenant = topic.as_str().strip_prefix(&self.work_prefix(pool, priority))?;
            Some((Tenant::new(tenant).ok()?, priority))
        })
    }

    fn checked(&self, name: &str) -> TopicName {
        TopicName::new(name).expect("the constructor left room for the longest tenant and pool")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> TopicNames {
        TopicNames::new(&TopicName::new("jobs").unwrap(), "tributary.").unwrap()
    }

    #[test]
    fn each_stage_has_its_topic_and_the_tenant_can_be_read_back() {
        let (names, acme, shared) = (names(), Tenant::new("acme").unwrap(), Pool::default());
        let work = names.work(&shared, Priority::Normal, &acme);
        let outcomes = names.outcomes(&acme);
        assert_eq!(work.as_str(), "tributary.work.shared.acme");
        assert_eq!(outcomes.as_str(), "tributary.outcomes.acme");
        assert_eq!(names.dead_letters().as_str(), "tributary.dead-letters");
        assert_eq!(names.tenant_of_outcomes(&outcomes), Some(acme.clone()));
        assert_eq!(names.owner_of_work(&shared, &outcomes), None);
        // A tenant may be called as a priority is.
        for tenant in ["acme", "low", "high"].map(|name| Tenant::new(name).unwrap()) {
            for priority in Priority::ALL {
                let work = names.work(&shared, priority, &tenant);
                assert_eq!(
                    names.owner_of_work(&shared, &work),
                    Some((tenant.clone(), priority))
                );
            }
        }
        let urgent = names.work(&shared, Priority::High, &acme);
        assert_eq!(urgent.as_str(), "tributary.work.shared.high.acme");
        assert_eq!(names.door(&names.jobs()), Some(Door::Shared));
        assert_eq!(names.door(&names.jobs_of(&acme)), Some(Door::Tenant(acme)));
    }

    #[test]
    fn a_topic_that_names_no_possible_tenant_is_no_door() {
        for topic in ["jobs.", "jobs.007", "jobs.a.b", "jobsacme", "other"] {
            assert_eq!(names().door(&TopicName::new(topic).unwrap()), None, "`{topic}`");
        }
    }

    #[test]
    fn a_topic_id_reads_as_kafka_prints_it() {
        let id = TopicId::from_bytes([0xfb, 0xff, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]);
        assert_eq!(id.to_string(), "-_8AAQIDBAUGBwgJCgsMDQ");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("short".parse::<TopicId>().is_err());
    }

    #[test]
    fn a_prefix_that_leaves_no_room_for_a_tenant_is_refused() {
        assert!(TopicNames::new(&TopicName::new("jobs").unwrap(), &"x".repeat(150)).is_err());
        assert!(TopicNames::new(&TopicName::new("jobs").unwrap(), "a/b").is_err());
    }
}
