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

/// Why two settings give no names of topics.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTopicNames {
    /// A name breaks Kafka's rule, or leaves no room for a tenant of 63 characters.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// An internal topic would be read as one of jobs.
    #[error(
        "with jobs on `{jobs}` and `{jobs}.<tenant>`, and internal topics called `{prefix}…`, `{internal}` would be both: \
         call the jobs otherwise, such as `jobs`, or let the prefix not begin with `{jobs}.`"
    )]
    Confused {
        /// The shared topic of jobs.
        jobs: TopicName,
        /// What every internal topic's name begins with.
        prefix: String,
        /// What such a name looks like.
        internal: String,
    },
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
    /// [`InvalidTopicNames`] when the two leave no room for a tenant of 63 characters, break Kafka's rule, or let an internal
    /// topic be called as one of jobs.
    pub fn new(jobs: &TopicName, prefix: &str) -> Result<Self, InvalidTopicNames> {
        let longest = "x".repeat(63);
        TopicName::new(&format!("{jobs}.{longest}"))?;
        TopicName::new(&format!("{prefix}work.{longest}.normal.{longest}"))?;
        let names = Self {
            jobs: jobs.clone(),
            prefix: prefix.into(),
        };
        match names.both() {
            None => Ok(names),
            Some(internal) => Err(InvalidTopicNames::Confused {
                jobs: names.jobs,
                prefix: prefix.to_owned(),
                internal,
            }),
        }
    }

    /// What is an internal topic, and one of jobs too.
    fn both(&self) -> Option<String> {
        let doors = self.doors_prefix();
        let is_of_jobs = |topic: &TopicName| {
            let under = topic.as_str().strip_prefix(&doors);
            *topic == self.jobs || under.is_some_and(|segment| !segment.contains('.'))
        };
        let alone = [self.dead_letters(), self.audit(), self.policies()];
        let of_tenants = [self.all_work_prefix(), self.outcomes_prefix()];
        alone
            .into_iter()
            .find(is_of_jobs)
            .map(|topic| topic.to_string())
            .or_else(|| of_tenants.into_iter().find(|prefix| doors.starts_with(prefix)))
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
    use proptest::prelude::*;

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
    fn names_under_which_the_audit_would_be_read_as_jobs_are_refused() {
        let new = |jobs, prefix| TopicNames::new(&TopicName::new(jobs).unwrap(), prefix);
        for (jobs, prefix, internal) in [
            ("tributary", "tributary.", "tributary.dead-letters"),
            ("jobs", "jobs.", "jobs.dead-letters"),
            ("jobs", "jobs.a-", "jobs.a-dead-letters"),
            ("audit", "", "audit"),
            ("work", "", "work."),
            ("t.outcomes.acme", "t.", "t.outcomes."),
        ] {
            let error = new(jobs, prefix).unwrap_err().to_string();
            assert!(error.contains(&format!("`{internal}` would be both")), "{error}");
        }
        for (jobs, prefix) in [
            ("jobs", ""),
            ("tributary.jobs", "tributary."),
            ("jobs", "jobs.internal."),
        ] {
            assert!(new(jobs, prefix).is_ok(), "`{jobs}` and `{prefix}`");
        }
    }

    /// Of the words of which topics' names are made, so that names meet.
    fn words(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<&'static str>> {
        let words = prop::sample::select(vec!["jobs", "work", "outcomes", "audit", "policies", "low", "t"]);
        prop::collection::vec(words, count)
    }

    proptest! {
        #[test]
        fn no_internal_topic_is_a_door_under_names_that_are_accepted(
            jobs in words(1..5), prefix in words(0..4), end in prop::sample::select(vec!["", ".", "-", ".t"]),
            tenant in words(1..2), pool in words(1..2),
        ) {
            let jobs = TopicName::new(&jobs.join(".")).unwrap();
            let prefix = format!("{}{end}", prefix.join("."));
            if let Ok(names) = TopicNames::new(&jobs, &prefix) {
                let (tenant, pool) = (Tenant::new(tenant[0]).unwrap(), Pool::new(pool[0]).unwrap());
                let work = Priority::ALL.map(|priority| names.work(&pool, priority, &tenant));
                let others = [names.outcomes(&tenant), names.dead_letters(), names.audit(), names.policies()];
                for internal in work.iter().chain(&others) {
                    prop_assert_eq!(names.door(internal), None, "`{}`", internal);
                    let segment = internal.as_str().strip_prefix(&names.doors_prefix());
                    prop_assert!(segment.is_none_or(|segment| segment.contains('.')), "`{}`", internal);
                }
                for of_jobs in [names.jobs(), names.jobs_of(&tenant)] {
                    prop_assert_eq!(names.tenant_of_outcomes(&of_jobs), None);
                    prop_assert_eq!(names.owner_of_work(&pool, &of_jobs), None);
                }
            }
        }
    }

    #[test]
    fn a_prefix_that_leaves_no_room_for_a_tenant_is_refused() {
        assert!(TopicNames::new(&TopicName::new("jobs").unwrap(), &"x".repeat(150)).is_err());
        assert!(TopicNames::new(&TopicName::new("jobs").unwrap(), "a/b").is_err());
    }
}
