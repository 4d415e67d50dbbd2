//! Which topics a reader reads.

use schemas::TopicName;

/// Which topics a reader reads: those that match one of the patterns, also those created later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// The patterns.
    pub patterns: Vec<TopicPattern>,
}

/// A set of topics, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicPattern {
    /// This topic.
    Exact(TopicName),
    /// Every topic whose name is this prefix and then one segment without a dot.
    Under(String),
}

impl Subscription {
    /// Whether `topic` is one of these.
    pub fn matches(&self, topic: &TopicName) -> bool {
        self.patterns.iter().any(|pattern| match pattern {
            TopicPattern::Exact(name) => name == topic,
            TopicPattern::Under(prefix) => topic
                .as_str()
                .strip_prefix(prefix.as_str())
                .is_some_and(|segment| !segment.is_empty() && !segment.contains('.')),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_takes_one_more_segment_and_no_more() {
        let jobs = TopicName::new("jobs").unwrap();
        let subscription = Subscription {
            patterns: vec![TopicPattern::Exact(jobs), TopicPattern::Under("jobs.".to_owned())],
        };
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
}
