//! What this process tells the audit beside what ingest decides, and `tributary audit verify`.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use schemas::{
    Action, Actor, AuditEvent, AuditEvents, Operation, ReasonCode, Record as _, TopicName, TopicNames,
};
use tokio_util::sync::CancellationToken;
use topics::{Append, Appender as _, Topics};

use crate::{
    access,
    cli::{AuditCommand, print},
    config::Config,
    followed_file::looks,
    renewed::RenewedAppender,
    shutdown::or_given_up,
};

/// So many events are told one by one of a second. What is refused at the door costs its sender nothing, so the audit must
/// not grow by it: the rest is counted.
const EVENTS_TOLD_MAX: usize = 32;
/// How long the last events are waited for at the end: the client of a log that is away gives up after minutes.
const LAST_EVENTS_LIMIT: Duration = Duration::from_secs(10);
/// What the source of requests is called that came from several addresses and are counted together.
const SEVERAL: &str = "several";
/// What a set is called that was not taken.
pub(crate) const REFUSED: &str = "refused";

/// Verifies the audit and prints the report.
pub(crate) async fn run(config: &Config, command: &AuditCommand) -> anyhow::Result<ExitCode> {
    access::permit(config, Action::VerifyAudit)?;
    let AuditCommand::Verify { lake, noted } = command;
    let url = lake.as_ref().unwrap_or(&config.sink.url);
    let report = sink::verify_audit(url, &config.sink.options, noted).await?;
    print(&report.to_string())?;
    Ok(if report.is_sound() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Takes what happens in this process, and has it appended by [`Auditor::run`]. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Auditor {
    /// None where nothing is audited.
    told: Option<Arc<Mutex<Told>>>,
    service: String,
}

/// What was told since the last time that it was appended.
#[derive(Debug, Default)]
struct Told {
    events: Vec<AuditEvent>,
    /// Those that were too many, of each operation that was refused for the same reason by the same policies.
    rest: BTreeMap<(Operation, Option<String>, Option<String>), AuditEvent>,
}

impl Auditor {
    /// For the service of this name.
    pub(crate) fn of(service: String) -> Self {
        Self {
            told: Some(Arc::default()),
            service,
        }
    }

    /// Something that this service did, or refused, by itself.
    pub(crate) fn tell(&self, operation: Operation, source: &str, refused: Option<&str>, detail: String) {
        self.take(AuditEvent {
            refused: refused.map(str::to_owned),
            ..event(operation, Actor::Service(self.service.clone()), source, detail)
        });
    }

    /// A request from `source` that was refused.
    pub(crate) fn tell_of_request(&self, source: &str, request: RefusedRequest) {
        let RefusedRequest {
            operation,
            actor,
            code,
            detail,
            policy,
        } = request;
        self.take(AuditEvent {
            refused: Some(code.as_str().to_owned()),
            policy,
            ..event(operation, actor, source, detail)
        });
    }

    fn take(&self, event: AuditEvent) {
        if let Some(told) = &self.told {
            told.lock().unwrap_or_else(PoisonError::into_inner).take(event);
        }
    }

    fn told(&self) -> Vec<AuditEvent> {
        let told = self.told.as_ref();
        let told = told.map(|told| std::mem::take(&mut *told.lock().unwrap_or_else(PoisonError::into_inner)));
        told.map(Told::into_events).unwrap_or_default()
    }

    /// Appends what was told, each second, until `shutdown`. What cannot be appended is tried again: rather twice than not. But
    /// the end of the process does not wait long for a log that is away.
    pub(crate) async fn run(
        self,
        topics: Arc<dyn Topics>,
        names: TopicNames,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let appending = self.keep_appending(topics, names, &shutdown);
        if or_given_up(appending, &shutdown, LAST_EVENTS_LIMIT).await != Some(true) {
            tracing::warn!("ended with events that could not be audited");
        }
        Ok(())
    }

    /// Whether all that was told is there at the end.
    async fn keep_appending(
        &self,
        topics: Arc<dyn Topics>,
        names: TopicNames,
        shutdown: &CancellationToken,
    ) -> bool {
        let (mut looks, mut events, mut appender) = (looks(), Vec::new(), None);
        loop {
            let is_over = shutdown.run_until_cancelled(looks.tick()).await.is_none();
            if is_over || events.is_empty() {
                events.extend(self.told());
            }
            if !events.is_empty() {
                match append(&mut appender, &topics, &names, &events).await {
                    Ok(()) => events.clear(),
                    Err(error) => {
                        tracing::warn!(%error, events = events.len(), "events cannot be audited yet");
                    }
                }
            }
            if is_over {
                return events.is_empty() && self.told().is_empty();
            }
        }
    }
}

/// A request over HTTP that was refused as a whole.
pub(crate) struct RefusedRequest {
    pub(crate) operation: Operation,
    pub(crate) actor: Actor,
    pub(crate) code: ReasonCode,
    pub(crate) detail: String,
    /// The access policies that forbid it.
    pub(crate) policy: Option<String>,
}

impl Told {
    fn take(&mut self, event: AuditEvent) {
        if self.events.len() < EVENTS_TOLD_MAX {
            self.events.push(event);
            return;
        }
        let class = (event.operation, event.refused.clone(), event.policy.clone());
        match self.rest.get_mut(&class) {
            Some(same) => {
                same.count += event.count;
                if same.actor != event.actor {
                    same.actor = Actor::Unknown;
                }
                if same.source != event.source {
                    same.source = SEVERAL.to_owned();
                }
            }
            None => drop(self.rest.insert(
                class,
                AuditEvent {
                    detail: None,
                    ..event
                },
            )),
        }
    }

    fn into_events(self) -> Vec<AuditEvent> {
        self.events.into_iter().chain(self.rest.into_values()).collect()
    }
}

async fn append(
    appender: &mut Option<RenewedAppender>,
    topics: &Arc<dyn Topics>,
    names: &TopicNames,
    events: &[AuditEvent],
) -> Result<(), topics::Error> {
    let appender = match appender {
        Some(appender) => appender,
        None => {
            topics.ensure(&[ingest::Service::audit_spec(names)]).await?;
            appender.insert(RenewedAppender::open(Arc::clone(topics)).await?)
        }
    };
    let appends = appends(&names.audit(), events.to_vec());
    let appended = appender.append(appends).await;
    appended.into_iter().try_for_each(|appended| appended.map(drop))
}

/// What puts `events` on the topic of the audit.
pub(crate) fn appends(topic: &TopicName, events: Vec<AuditEvent>) -> Vec<Append> {
    let append = |record: AuditEvents| Append {
        topic: topic.clone(),
        partition: Some(0),
        timestamp_ms: chrono::Utc::now().timestamp_millis(),
        key: None,
        value: Some(record.encode().into()),
        headers: Vec::new(),
    };
    AuditEvents::pack(events).into_iter().map(append).collect()
}

/// The name that the machine gives to whoever gives a command: its word, and no proof.
pub(crate) fn user() -> Option<String> {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
    user.ok()
}

/// What somebody did with a command of this machine, as `policy` lets him.
pub(crate) fn of_command(operation: Operation, detail: String, policy: Option<String>) -> AuditEvent {
    let actor = user().map_or(Actor::Unknown, Actor::User);
    AuditEvent {
        policy,
        ..event(operation, actor, "command", detail)
    }
}

/// What puts what a command did on the topic of the audit; nothing where nothing is audited.
pub(crate) fn appends_of_command(config: &Config, event: AuditEvent) -> Vec<Append> {
    if !config.audit.enabled {
        return Vec::new();
    }
    appends(&config.topics.names().audit(), vec![event])
}

/// Puts `event` on the topic of the audit by itself, where something is audited.
pub(crate) async fn append_at_once(
    config: &Config,
    topics: &dyn Topics,
    event: AuditEvent,
) -> anyhow::Result<()> {
    let appends = appends_of_command(config, event);
    if appends.is_empty() {
        return Ok(());
    }
    topics
        .ensure(&[ingest::Service::audit_spec(&config.topics.names())])
        .await?;
    for appended in topics.appender().await?.append(appends).await {
        appended?;
    }
    Ok(())
}

fn event(operation: Operation, actor: Actor, source: &str, detail: String) -> AuditEvent {
    AuditEvent {
        time_ms: chrono::Utc::now().timestamp_millis(),
        operation,
        tenant: None,
        actor,
        source: source.to_owned(),
        count: 1,
        refused: None,
        detail: Some(detail),
        policy: None,
        model: None,
        origins: None,
        finding: None,
    }
}

#[cfg(test)]
mod tests {
    use schemas::TopicName;
    use topics::local::LocalTopics;

    use super::*;
    use crate::renewed::tests::Ending;

    #[test]
    fn of_many_events_in_a_second_some_are_told_and_the_others_are_counted() {
        let auditor = Auditor::of("ingest-0".to_owned());
        for number in 0..1_000 {
            let (code, policy) = match number % 3 {
                0 => (ReasonCode::TokenMissing, None),
                1 => (ReasonCode::NotPermitted, None),
                _ => (ReasonCode::NotPermitted, Some("known-people-only".to_owned())),
            };
            let request = RefusedRequest {
                operation: Operation::RequestJobs,
                actor: Actor::User(number.to_string()),
                code,
                detail: number.to_string(),
                policy,
            };
            // Who sends no token always comes from one place.
            let address = if number % 3 == 0 { 0 } else { number };
            auditor.tell_of_request(&format!("2001:db8::{address:x}"), request);
        }
        let events = auditor.told();
        let (told, rest) = events.split_at(EVENTS_TOLD_MAX);
        assert!(told.iter().all(|event| event.actor != Actor::Unknown));
        assert!(rest.iter().all(|event| event.actor == Actor::Unknown));
        let sources = rest
            .iter()
            .map(|event| (event.refused.as_deref(), event.source.as_str()));
        assert_eq!(
            sources.collect::<Vec<_>>(),
            [
                (Some("not_permitted"), SEVERAL),
                (Some("not_permitted"), SEVERAL),
                (Some("token_missing"), "2001:db8::0"),
            ]
        );
        assert_eq!(events.iter().map(|event| event.count).sum::<u64>(), 1_000);
        assert!(auditor.told().is_empty(), "they are told once");
    }

    #[tokio::test]
    async fn what_was_told_before_the_end_is_appended_though_nobody_has_made_the_topic() {
        let topics: Arc<dyn Topics> = Arc::new(LocalTopics::in_memory());
        let names = TopicNames::new(&TopicName::new("jobs").unwrap(), "tributary.").unwrap();
        let (auditor, shutdown) = (Auditor::of("ingest-0".to_owned()), CancellationToken::new());
        auditor.tell(
            Operation::TakeKeys,
            "keys.json",
            Some(REFUSED),
            "no key".to_owned(),
        );
        shutdown.cancel();
        auditor
            .run(Arc::clone(&topics), names.clone(), shutdown)
            .await
            .unwrap();
        let last = topics.last(&names.audit()).await.unwrap().unwrap();
        let AuditEvents(events) = AuditEvents::decode(last.value.as_deref().unwrap()).unwrap();
        assert_eq!(
            (events[0].operation, events[0].refused.as_deref()),
            (Operation::TakeKeys, Some(REFUSED))
        );
    }

    #[tokio::test]
    async fn what_could_not_be_appended_at_the_end_is_not_passed_over() {
        let topics: Arc<dyn Topics> = Ending::first(1);
        let names = TopicNames::new(&TopicName::new("jobs").unwrap(), "tributary.").unwrap();
        let (auditor, shutdown) = (Auditor::of("ingest-0".to_owned()), CancellationToken::new());
        shutdown.cancel();
        let all = auditor.keep_appending(Arc::clone(&topics), names.clone(), &shutdown);
        assert!(all.await, "nothing was told");
        auditor.tell(Operation::TakeKeys, "keys.json", None, String::new());
        let all = auditor.keep_appending(topics, names, &shutdown);
        assert!(!all.await, "the appender was at its end");
    }
}
