//! How to reach a cluster, and what librdkafka is told beyond that.

use std::{collections::BTreeMap, fmt};

use rdkafka::ClientConfig;

use super::admin::BATCH_BYTES_MAX;
use crate::{Arrivals, Error};

/// How a stage's appends and its progress become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// In one Kafka transaction: both or neither.
    Transactional,
    /// Appends first, acknowledged by all replicas, then progress: a crash between the two appends again. Cheaper, for
    /// readers that drop what they have seen.
    Idempotent,
}

/// A cluster, and how to work with it.
#[derive(Clone)]
pub struct Settings {
    /// [Settings of librdkafka](https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md) for every
    /// client. `bootstrap.servers` is required.
    pub properties: BTreeMap<String, String>,
    /// How appends and progress become one.
    pub delivery: Delivery,
    /// Tells this instance of a service from the others. It must stay the same over restarts: an instance fences
    /// whoever called itself so before. It has no `/`.
    pub instance: String,
    /// How many replicas a created topic has.
    pub replication_factor: u16,
}

/// Properties that are not the user's to set, and why.
const REFUSED: [(&str, &str); 15] = [
    (
        "acks",
        "a record counts as appended when all in-sync replicas have it",
    ),
    (
        "request.required.acks",
        "a record counts as appended when all in-sync replicas have it",
    ),
    (
        "auto.commit.enable",
        "progress is committed together with what was made of it",
    ),
    (
        "enable.auto.commit",
        "progress is committed together with what was made of it",
    ),
    (
        "enable.auto.offset.store",
        "progress is committed together with what was made of it",
    ),
    (
        "auto.offset.reset",
        "a group without progress begins at the first record, or records would be lost",
    ),
    ("delivery.report.only.error", "acknowledgements are counted"),
    (
        "enable.gapless.guarantee",
        "nothing may be appended behind a record that was refused",
    ),
    ("enable.idempotence", "without it a retry would append twice"),
    (
        "enable.partition.eof",
        "the end of a partition is no news to a stage",
    ),
    ("group.id", "every stage has its own group"),
    (
        "group.protocol",
        "a commit is held to the generations of the classic group protocol",
    ),
    ("isolation.level", "only committed records may be read"),
    ("partitioner_cb", "it is a function"),
    ("transactional.id", "it is made of the group and `instance`"),
];

/// Two names of one property, which [`Delivery::Idempotent`] refuses too: a record that was given up is not what
/// `enable.gapless.guarantee` covers, and others may be appended in its place before the stage notices.
const GIVES_UP: [&str; 2] = ["message.timeout.ms", "delivery.timeout.ms"];

/// For every consumer, unless the user says otherwise.
const CONSUMER: [(&str, &str); 11] = [
    ("partition.assignment.strategy", "cooperative-sticky"),
    // A new tenant's topic is seen after this.
    ("topic.metadata.refresh.interval.ms", "2000"),
    // A killed member's partitions wait this long for a new owner.
    ("session.timeout.ms", "10000"),
    // A member learns by its heartbeat that the group rebalances; a handing-over takes two.
    ("heartbeat.interval.ms", "1000"),
    // How often it is looked whether a partition stands still.
    ("statistics.interval.ms", "30000"),
    // What is fetched ahead, bounded in bytes for large records and in number for small ones, whose bookkeeping in
    // librdkafka outweighs them. A full queue is looked at again soon, not after a second.
    ("queued.max.messages.kbytes", "16384"),
    ("queued.min.messages", "20000"),
    ("fetch.queue.backoff.ms", "10"),
    // A partition that is resumed waits for so long where a fetch of others finds nothing: 500 took 6 % off a single tenant's
    // flood.
    ("fetch.wait.max.ms", "100"),
    ("fetch.max.bytes", "8388608"),
    ("receive.message.max.bytes", "134217728"),
];

/// For the consumer of what producers append one by one, beside [`CONSUMER`]. The broker answers when it has so much, or after
/// so long: a fetch for every few records would cost it more than the records do. It is what one partition gives at most
/// (`fetch.message.max.bytes`), or each fetch from a single one would wait in vain.
const CONSUMER_OF_SINGLE: [(&str, &str); 2] = [("fetch.min.bytes", "1048576"), ("fetch.wait.max.ms", "50")];

/// For every producer, unless the user says otherwise.
const PRODUCER: [(&str, &str); 6] = [
    // The topic has the say on how large a record may be; this only keeps librdkafka from deciding.
    ("message.max.bytes", "67108864"),
    ("queue.buffering.max.kbytes", "131072"),
    // What is appended is mostly vectors, which no codec shrinks by much, while the producer, the broker that checks them
    // and the reader all pay for it.
    ("compression.type", "none"),
    ("linger.ms", "2"),
    // As Kafka's own clients do, so that a key has one partition whoever appends.
    ("partitioner", "murmur2_random"),
    // A transaction begins when all is decided, so it is short. One left open by a crash holds readers up this long.
    ("transaction.timeout.ms", "30000"),
];

/// For the producer of a stage, beside [`PRODUCER`]: a commit gathers all of its records into few batches, and then sends
/// what is left at once.
const STAGE_PRODUCER: [(&str, &str); 1] = [("linger.ms", "50")];

impl Settings {
    /// # Errors
    /// [`Error::Invalid`] naming the first property that is missing or not the user's to set.
    pub(super) fn check(&self) -> Result<(), Error> {
        let invalid = |name: &str, detail: String| Error::Invalid {
            what: format!("Kafka property `{name}`"),
            detail,
        };
        for (name, why) in REFUSED {
            if self.properties.contains_key(name) {
                return Err(invalid(name, format!("cannot be set: {why}; remove it")));
            }
        }
        let gives_up = GIVES_UP.iter().find(|name| self.properties.contains_key(**name));
        if let Some(name) = gives_up.filter(|_| self.delivery == Delivery::Idempotent) {
            let detail = "cannot be set with processor.delivery = \"idempotent\": nothing may be appended in the place of a record that was given up; remove it";
            return Err(invalid(name, detail.to_owned()));
        }
        let batch_bytes = self
            .properties
            .get("batch.size")
            .and_then(|bytes| bytes.parse().ok());
        if batch_bytes.is_some_and(|bytes: u64| bytes > u64::from(BATCH_BYTES_MAX)) {
            let detail = format!("is more than {BATCH_BYTES_MAX}, which topics take for sure: leave it out");
            return Err(invalid("batch.size", detail));
        }
        if self.bootstrap_servers().is_empty() {
            let detail = "is missing: give the addresses of some brokers, such as `kafka:9092`".to_owned();
            return Err(invalid("bootstrap.servers", detail));
        }
        let problem = match self.instance.as_str() {
            "" => "is empty: give each instance of a service a stable name of its own",
            name if name.contains('/') => {
                "has a `/`, which ends the group's name in a transactional id: leave it out"
            }
            _ => return Ok(()),
        };
        Err(Error::Invalid {
            what: "Kafka setting `instance`".to_owned(),
            detail: problem.to_owned(),
        })
    }

    pub(super) fn bootstrap_servers(&self) -> &str {
        let named = |name| self.properties.get(name);
        named("bootstrap.servers")
            .or_else(|| named("metadata.broker.list"))
            .map_or("", String::as_str)
    }

    pub(super) fn client(&self) -> ClientConfig {
        self.with_defaults(&[])
    }

    pub(super) fn consumer(&self, group: &str, arrivals: Arrivals) -> ClientConfig {
        let mut config = match arrivals {
            Arrivals::Gathered => self.with_defaults(&CONSUMER),
            Arrivals::Single => self.with_defaults(&[&CONSUMER[..], &CONSUMER_OF_SINGLE].concat()),
        };
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("isolation.level", "read_committed");
        config
    }

    /// A consumer that looks and is no member of its `group`. It is polled only while it looks, and statistics would heap up
    /// between.
    pub(super) fn observer(&self, group: &str) -> ClientConfig {
        let mut config = self.consumer(group, Arrivals::Gathered);
        config.set("statistics.interval.ms", "0");
        config
    }

    pub(super) fn producer(&self) -> ClientConfig {
        self.idempotent(&PRODUCER)
    }

    /// The producer of a stage that reads as `group`. Its transactions end those of its predecessor, which had the same
    /// group and instance.
    pub(super) fn stage_producer(&self, group: &str) -> ClientConfig {
        let mut config = self.idempotent(&[&PRODUCER[..], &STAGE_PRODUCER].concat());
        match self.delivery {
            // An instance's name has no slash, so that no other group and instance come to the same.
            Delivery::Transactional => {
                config.set("transactional.id", format!("{group}/{}", self.instance));
            }
            // Otherwise librdkafka goes on behind a record that the broker refuses. What is missing then and appended later
            // stands behind what came after it, and a reader that drops repetitions takes it for one.
            Delivery::Idempotent => {
                config.set("enable.gapless.guarantee", "true");
            }
        }
        config
    }

    fn idempotent(&self, defaults: &[(&str, &str)]) -> ClientConfig {
        let mut config = self.with_defaults(defaults);
        config.set("enable.idempotence", "true").set("acks", "all");
        config
    }

    fn with_defaults(&self, defaults: &[(&str, &str)]) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("client.id", "tributary");
        for (name, value) in defaults {
            config.set(*name, *value);
        }
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config
    }

    /// The properties, without their secrets.
    fn shown(&self) -> BTreeMap<&str, &str> {
        let shown = self.properties.iter().map(|(name, value)| {
            let value = if is_secret(name) { "***" } else { value.as_str() };
            (name.as_str(), value)
        });
        shown.collect()
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("properties", &self.shown())
            .field("delivery", &self.delivery)
            .field("instance", &self.instance)
            .field("replication_factor", &self.replication_factor)
            .finish()
    }
}

pub(super) fn is_secret(property: &str) -> bool {
    const MARKS: [&str; 7] = [
        "password",
        "passphrase",
        "secret",
        "token",
        "key.pem",
        "sasl.jaas",
        "sasl.oauthbearer.config",
    ];
    let property = property.to_ascii_lowercase();
    // `sasl.oauthbearer.token.endpoint.url` is where a token comes from.
    MARKS.iter().any(|mark| property.contains(mark)) && !property.ends_with(".url")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(properties: &[(&str, &str)]) -> Settings {
        let properties = [("bootstrap.servers", "kafka:9092")].iter().chain(properties);
        Settings {
            properties: properties
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            delivery: Delivery::Transactional,
            instance: "0".to_owned(),
            replication_factor: 3,
        }
    }

    #[test]
    fn what_exactly_once_rests_on_is_not_the_users_to_set() {
        for (name, _) in REFUSED {
            let error = settings(&[(name, "true")]).check().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("Kafka property `{name}`: cannot be set: ")),
                "{error}"
            );
        }
        settings(&[("security.protocol", "SASL_SSL")]).check().unwrap();
    }

    #[test]
    fn without_transactions_a_record_is_not_given_up_when_the_user_says_so() {
        for name in GIVES_UP {
            let transactional = settings(&[(name, "1000")]);
            transactional.check().unwrap();
            let idempotent = Settings {
                delivery: Delivery::Idempotent,
                ..transactional
            };
            let error = idempotent.check().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("Kafka property `{name}`: cannot be set")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_batch_that_topics_would_refuse_is_refused_before_it_is_sent() {
        settings(&[("batch.size", "1048576")]).check().unwrap();
        let error = settings(&[("batch.size", "1048577")]).check().unwrap_err();
        let told = "Kafka property `batch.size`: is more than 1048576";
        assert!(error.to_string().starts_with(told), "{error}");
    }

    #[test]
    fn a_cluster_without_an_address_is_refused() {
        let mut nowhere = settings(&[]);
        nowhere.properties.clear();
        assert!(
            nowhere
                .check()
                .unwrap_err()
                .to_string()
                .contains("bootstrap.servers")
        );
    }

    #[test]
    fn no_two_instances_of_any_groups_fence_each_other() {
        let id = |group: &str, instance: &str| {
            let settings = Settings {
                instance: instance.to_owned(),
                ..settings(&[])
            };
            settings.check().map(|()| {
                let config = settings.stage_producer(group);
                config.get("transactional.id").map(str::to_owned)
            })
        };
        assert_eq!(id("g-a", "0").unwrap().as_deref(), Some("g-a/0"));
        assert_ne!(id("g-a", "b-0").unwrap(), id("g-a-b", "0").unwrap());
        for refused in ["", "b/0", "/"] {
            let error = id("g", refused).unwrap_err().to_string();
            assert!(error.starts_with("Kafka setting `instance`: "), "{error}");
        }
    }

    #[test]
    fn only_what_producers_append_one_by_one_is_waited_for_and_as_long_as_the_user_says() {
        let wait = |settings: &Settings, arrivals| {
            let config = settings.consumer("g", arrivals);
            ["fetch.min.bytes", "fetch.wait.max.ms"].map(|name| config.get(name).map(str::to_owned))
        };
        let ours = settings(&[]);
        assert_eq!(wait(&ours, Arrivals::Gathered), [None, Some("100".to_owned())]);
        assert_eq!(
            wait(&ours, Arrivals::Single),
            ["1048576", "50"].map(|value| Some(value.to_owned()))
        );
        let theirs = settings(&[("fetch.min.bytes", "1"), ("fetch.wait.max.ms", "20")]);
        assert_eq!(
            wait(&theirs, Arrivals::Single),
            ["1", "20"].map(|value| Some(value.to_owned()))
        );
    }

    #[test]
    fn a_client_that_nobody_polls_gathers_no_statistics_whatever_the_user_says() {
        let every = |config: ClientConfig| config.get("statistics.interval.ms").map(str::to_owned);
        let settings = settings(&[("statistics.interval.ms", "1000")]);
        assert_eq!(
            every(settings.consumer("g", Arrivals::Gathered)).as_deref(),
            Some("1000")
        );
        assert_eq!(every(settings.observer("g")).as_deref(), Some("0"));
    }

    #[test]
    fn the_users_properties_win_over_defaults_and_reach_every_client() {
        let settings = settings(&[
            ("session.timeout.ms", "45000"),
            ("compression.type", "zstd"),
            ("ssl.ca.location", "/ca"),
        ]);
        assert_eq!(
            settings
                .consumer("g", Arrivals::Gathered)
                .get("session.timeout.ms"),
            Some("45000")
        );
        assert_eq!(settings.producer().get("compression.type"), Some("zstd"));
        for client in [
            settings.consumer("g", Arrivals::Gathered),
            settings.producer(),
            settings.client(),
        ] {
            assert_eq!(client.get("ssl.ca.location"), Some("/ca"));
        }
    }

    #[test]
    fn secrets_are_never_shown() {
        let names = [
            "sasl.password",
            "sasl.oauthbearer.client.secret",
            "ssl.key.pem",
            "ssl.key.password",
            "ssl.keystore.password",
            "sasl.oauthbearer.assertion.private.key.passphrase",
            "sasl.jaas.config",
        ];
        let settings = settings(&names.map(|name| (name, "hush")));
        assert!(!format!("{settings:?}").contains("hush"), "{settings:?}");
        assert!(format!("{settings:?}").contains("kafka:9092"), "{settings:?}");
        let seen = settings.shown();
        assert!(names.iter().all(|name| seen[name] == "***"), "{seen:?}");
        assert!(!is_secret("sasl.oauthbearer.token.endpoint.url"));
    }
}
