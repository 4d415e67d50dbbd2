//! Which topics a reader reads.

use schemas::{Shard, TopicName};

/// Which topics a reader reads: those that match one of the patterns, also those created later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// The patterns.
    pub patterns: Vec<TopicPattern>,
    /// How records come to be there.
    pub arrivals: Arrivals,
}

/// How records come to a topic, which says whether it pays to wait for more of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrivals {
    /// Many at once, as a stage commits them: what is there is read at once.
    Gathered,
    /// One by one, from producers that may be many: what is there is read a little later, with what came meanwhile.
    Single,
}

/// A set of topics, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicPattern {
    /// This topic.
    Exact(TopicName),
    /// Every topic whose name is this prefix and then one segment without a dot.
    Under(String),
    /// Those of [`TopicPattern::Under`] whose last segment names a tenant that the shard serves.
    Sharded(String, Shard),
}

impl Subscription {
    /// To topics that a stage appends to.
    pub fn to(patterns: Vec<TopicPattern>) -> Self {
        Self {
            patterns,
            arrivals: Arrivals::Gathered,
        }
    }

    /// Whether `topic` is one of these.
    pub fn matches(&self, topic: &TopicName) -> bool {
        self.patterns.iter().any(|pattern| match pattern {
            TopicPattern::Exact(name) => name == topic,
            TopicPattern::Under(prefix) => segment_under(prefix, topic).is_some(),
            TopicPattern::Sharded(prefix, shard) => {
                segment_under(prefix, topic).is_some_and(|tenant| shard.serves(tenant))
            }
        })
    }
}

/// What follows `prefix` in the name of `topic`, where that is one segment.
fn segment_under<'a>(prefix: &str, topic: &'a TopicName) -> Option<&'a str> {
    let segment = topic.as_str().strip_prefix(prefix)?;
    (!segment.is_empty() && !segment.contains('.')).then_some(segment)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use schemas::Shards;

    use super::*;

    #[test]
    fn a_prefix_takes_one_more_segment_and_no_more() {
        let jobs = TopicName::new("jobs").unwrap();
        let subscription = Subscription::to(vec![
            TopicPattern::Exact(jobs),
            TopicPattern::Under("jobs.".to_owned()),
        ]);
        for (topic, expected) in [
            ("jobs", true),
            ("jobs.acme", true),
            ("jobs.", false),
            ("jobs.a.b", false),
            ("other", false),
        ] {
            assert_eq!(
                subscription.matches(&TopicName::new(topic).unwrap()),
                expected,
                "`{topic}`"
            );
        }
    }

    #[test]
    fn each_topic_is_read_by_the_shards_of_its_tenant_and_by_no_other() {
        let shards = Shards {
            count: 5.try_into().unwrap(),
            per_tenant: 2.try_into().unwrap(),
        };
        let read_by = |topic: &str| {
            let topic = TopicName::new(topic).unwrap();
            let reads = |number: &u32| {
                let shard = Shard {
                    number: *number,
                    of: shards,
                };
                let patterns = vec![TopicPattern::Sharded("work.".to_owned(), shard)];
                Subscription::to(patterns).matches(&topic)
            };
            (0..5).filter(reads).collect::<BTreeSet<u32>>()
        };
        assert_eq!(read_by("work.acme"), shards.serving("acme"));
        assert_eq!(read_by("work.globex"), shards.serving("globex"));
        for other in ["work.", "work.high.acme", "acme"] {
            assert!(read_by(other).is_empty(), "`{other}`");
        }
    }
}
