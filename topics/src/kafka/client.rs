//! What every client of the cluster has in common: its log, and what its errors mean to a stage.

use std::sync::{Arc, Mutex};

use rdkafka::{
    ClientContext, Statistics, config::RDKafkaLogLevel, consumer::ConsumerContext, error::KafkaError,
    message::DeliveryResult, producer::ProducerContext, types::RDKafkaErrorCode,
};

use super::settings::is_secret;
use crate::Error;

/// The last thing that librdkafka complained about, shared by the clients of a cluster: the error that a caller gets
/// says only that time was up.
#[derive(Clone, Default)]
pub(super) struct Complaints(Arc<Mutex<Option<String>>>);

impl Complaints {
    /// `text`, and the last complaint where there is one.
    pub(super) fn explain(&self, text: &str) -> String {
        match &*self.0.lock().expect("no holder of this lock panics") {
            Some(complaint) => format!("{text} (librdkafka: {complaint})"),
            None => text.to_owned(),
        }
    }

    pub(super) fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            // Clients of different kinds are given one set of properties, each ignoring what is the others'.
            _ if facility == "CONFWARN" => tracing::debug!(target: "librdkafka", facility, "{message}"),
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => {
                *self.0.lock().expect("no holder of this lock panics") =
                    Some(without_client(message).to_owned());
                // librdkafka goes on trying: nobody has to act yet.
                tracing::warn!(target: "librdkafka", facility, "{message}");
            }
            RDKafkaLogLevel::Warning => tracing::warn!(target: "librdkafka", facility, "{message}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::info!(target: "librdkafka", facility, "{message}");
            }
            RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", facility, "{message}"),
        }
    }
}

/// librdkafka begins its messages with `[thrd:…]: `.
fn without_client(message: &str) -> &str {
    message
        .strip_prefix("[thrd:")
        .and_then(|rest| rest.split_once("]: "))
        .map_or(message, |(_, rest)| rest)
}

impl ClientContext for Complaints {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Complaints::log(self, level, facility, message);
    }

    fn stats(&self, _: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        // To come to the end of a topic is what whoever reads its last record is after.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::PartitionEOF) {
            tracing::warn!(target: "librdkafka", %error, "{reason}");
        }
    }
}

impl ConsumerContext for Complaints {}

impl ProducerContext for Complaints {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// Why a client could not be made.
pub(super) fn not_created(error: &KafkaError) -> Error {
    match error {
        KafkaError::ClientConfig(_, detail, property, value) => {
            let detail = if is_secret(property) {
                detail.replace(value.as_str(), "***")
            } else {
                detail.clone()
            };
            Error::Invalid {
                what: format!("Kafka property `{property}`"),
                detail,
            }
        }
        other => Error::Invalid {
            what: "Kafka client".to_owned(),
            detail: other.to_string(),
        },
    }
}

/// What a failure of `what` means.
pub(super) fn failed(what: &str, error: &KafkaError) -> Error {
    let fatal = match error {
        KafkaError::Transaction(error) => error.is_fatal(),
        KafkaError::MessageConsumptionFatal(_) => true,
        _ => false,
    };
    let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
    let detail = match error {
        KafkaError::Transaction(error) => error.string(),
        other => other.to_string(),
    };
    classified(what, code, fatal, detail)
}

/// What `code` means where it came of `what`.
pub(super) fn classified(what: &str, code: RDKafkaErrorCode, fatal: bool, detail: String) -> Error {
    use RDKafkaErrorCode as Code;
    let what = what.to_owned();
    match code {
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed => {
            let detail = format!("{detail}: allow it to this client's user in the cluster's ACLs");
            Error::Invalid { what, detail }
        }
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::InconsistentGroupProtocol
        | Code::InvalidGroupId
        | Code::InvalidSessionTimeout
        | Code::InvalidTransactionTimeout
        | Code::InvalidTopic
        | Code::InvalidPartitions
        | Code::InvalidReplicationFactor
        | Code::InvalidConfig
        | Code::InvalidArgument
        | Code::PolicyViolation
        | Code::UnsupportedVersion
        | Code::UnsupportedFeature => Error::Invalid { what, detail },
        Code::ProducerFenced
        | Code::Fenced
        | Code::InvalidProducerEpoch
        | Code::FencedInstanceId
        | Code::PollExceeded
        | Code::Fatal => Error::Fenced { what, detail },
        _ if fatal => Error::Fenced { what, detail },
        _ => Error::Unavailable { what, detail },
    }
}

/// What the failure to append one record of `size_bytes` to `topic` means.
pub(super) fn not_appended(topic: &str, size_bytes: usize, code: RDKafkaErrorCode) -> Error {
    use RDKafkaErrorCode as Code;
    let what = format!("append to `{topic}`");
    match code {
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => {
            let detail = format!(
                "a record of {size_bytes} bytes is too large: raise the topic's `max.message.bytes`, and Kafka property \
                 `message.max.bytes` above it"
            );
            Error::Invalid { what, detail }
        }
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => {
            let detail =
                "the topic or its partition does not exist: create it before appending to it".to_owned();
            Error::Invalid { what, detail }
        }
        Code::QueueFull => {
            let detail = format!(
                "a record of {size_bytes} bytes does not fit into an empty queue: raise Kafka property \
                 `queue.buffering.max.kbytes`"
            );
            Error::Invalid { what, detail }
        }
        Code::InvalidTimestamp => {
            let detail = "its timestamp is too far from the broker's clock: see the topic's \
                          `message.timestamp.before.max.ms` and `message.timestamp.after.max.ms`";
            Error::Invalid {
                what,
                detail: detail.to_owned(),
            }
        }
        code => classified(&what, code, false, code.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_that_librdkafka_does_not_know_is_named() {
        let mut config = rdkafka::ClientConfig::new();
        config.set("bootstrap.server", "kafka:9092");
        let error = config.create_native_config().map(drop).unwrap_err();
        let told = not_created(&error).to_string();
        assert!(
            told.starts_with("Kafka property `bootstrap.server`: ") && told.contains("No such"),
            "{told}"
        );
    }

    #[test]
    fn a_secret_of_the_wrong_form_is_not_in_the_message() {
        let config = (
            rdkafka::types::RDKafkaConfRes::RD_KAFKA_CONF_INVALID,
            "cannot read `hush`",
            "ssl.key.pem",
            "hush",
        );
        let error = KafkaError::ClientConfig(
            config.0,
            config.1.to_owned(),
            config.2.to_owned(),
            config.3.to_owned(),
        );
        assert_eq!(
            not_created(&error).to_string(),
            "Kafka property `ssl.key.pem`: cannot read `***`"
        );
    }

    #[test]
    fn a_complaint_is_told_without_the_thread_it_came_from() {
        let complaints = Complaints::default();
        assert_eq!(complaints.explain("no answer"), "no answer");
        complaints.log(
            RDKafkaLogLevel::Error,
            "FAIL",
            "[thrd:127.0.0.1:1/bootstrap]: Connection refused",
        );
        assert_eq!(
            complaints.explain("no answer"),
            "no answer (librdkafka: Connection refused)"
        );
    }
}
