//! Whether services are well, as `/health` says it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, bail};
use serde::Serialize;

/// The state of every service of this process. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Health {
    services: Arc<Mutex<BTreeMap<&'static str, State>>>,
}

/// The state of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum State {
    /// It is loading or connecting.
    Starting,
    /// It works.
    Running,
    /// It waits for something outside to come back, and goes on by itself.
    Waiting {
        /// For what.
        reason: String,
    },
}

impl Health {
    pub(crate) fn set(&self, service: &'static str, state: State) {
        self.services
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .insert(service, state);
    }

    /// The states by service, and whether all run.
    pub(crate) fn report(&self) -> (BTreeMap<&'static str, State>, bool) {
        let services = self
            .services
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone();
        let well = !services.is_empty() && services.values().all(|state| *state == State::Running);
        (services, well)
    }
}

/// Asks the service at `url` for its health.
pub(crate) fn ask(url: &str) -> anyhow::Result<()> {
    let url = format!("{}/health", url.trim_end_matches('/'));
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(5)))
        .http_status_as_error(false)
        .build()
        .into();
    let mut response = agent
        .get(&url)
        .call()
        .with_context(|| format!("no answer from {url}"))?;
    let body = response.body_mut().read_to_string()?;
    if response.status() != 200 {
        bail!("{url} answers {}: {body}", response.status());
    }
    crate::cli::print(&body)
}
