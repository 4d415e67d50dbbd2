//! Who may do what: who asks, for what, and the answer with its reason. Who knows the answers is an [`Authority`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{Door, ModelName, Priority, Tenant};

/// What somebody is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Sends jobs.
    Submitter,
    /// Looks on.
    Reader,
    /// Runs the pipeline.
    Operator,
    /// Checks what was done.
    Auditor,
    /// Knows what it costs.
    Finance,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Submitter,
        Self::Reader,
        Self::Operator,
        Self::Auditor,
        Self::Finance,
    ];

    /// Its word in policies, in the configuration and in tokens.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Submitter => "submitter",
            Self::Reader => "reader",
            Self::Operator => "operator",
            Self::Auditor => "auditor",
            Self::Finance => "finance",
        }
    }

    /// The role of this word; none where there is no such role.
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == word)
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Principal {
    /// A tenant: by its topic, by a token that says nothing of roles, or, where that is believed, by its word.
    Tenant(Tenant),
    /// Somebody with roles.
    User(User),
    /// Nobody knows.
    Stranger,
}

/// Somebody who has roles: by a token, or because a command was given on a machine where the configuration says so.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct User {
    /// As the token, or the machine, calls him.
    pub name: String,
    /// The tenant that he belongs to; none where he is of the house.
    pub tenant: Option<Tenant>,
    /// What he is for.
    pub roles: BTreeSet<Role>,
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let User { name, tenant, roles } = match self {
            Self::Tenant(tenant) => return write!(f, "tenant `{tenant}`"),
            Self::Stranger => return f.write_str("a stranger"),
            Self::User(user) => user,
        };
        write!(f, "`{}`", name.escape_default())?;
        if let Some(tenant) = tenant {
            write!(f, " of tenant `{tenant}`")?;
        }
        let words: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
        match words.is_empty() {
            true => f.write_str(", without a role,"),
            false => write!(f, ", in the role of {},", words.join(", ")),
        }
    }
}

/// A job that somebody wants to have run: as much of it as bears on whether he may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submission {
    /// Whose it is and who pays.
    pub tenant: Tenant,
    /// The labels of that tenant.
    pub labels: BTreeMap<String, String>,
    /// What it is to run on.
    pub model: ModelName,
    /// How urgent it is, at most as its tenant may.
    pub priority: Priority,
    /// Where it came in.
    pub door: Door,
    /// Whether a token proves who asks.
    pub has_token: bool,
}

/// What is asked of the pipeline as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// `POST /v1/jobs`: to put jobs on the shared topic, whoever may have them run.
    PostJobs,
    /// `GET /health`.
    ViewHealth,
    /// `GET /metrics`, which name tenants and what they spend.
    ViewMetrics,
    /// `tributary tenants plan` and `show`.
    ViewTenants,
    /// `tributary tenants apply`.
    ApplyTenants,
    /// `tributary dead-letters list` and `show`: what somebody sent, whose it may be.
    ViewDeadLetters,
    /// `tributary dead-letters replay`.
    ReplayDeadLetters,
    /// `tributary verify`.
    VerifyLake,
    /// `tributary audit verify`.
    VerifyAudit,
    /// `tributary simulate`, which tells what each tenant paid.
    Simulate,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::PostJobs,
        Self::ViewHealth,
        Self::ViewMetrics,
        Self::ViewTenants,
        Self::ApplyTenants,
        Self::ViewDeadLetters,
        Self::ReplayDeadLetters,
        Self::VerifyLake,
        Self::VerifyAudit,
        Self::Simulate,
    ];

    /// Its word in policies.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PostJobs => "postJobs",
            Self::ViewHealth => "viewHealth",
            Self::ViewMetrics => "viewMetrics",
            Self::ViewTenants => "viewTenants",
            Self::ApplyTenants => "applyTenants",
            Self::ViewDeadLetters => "viewDeadLetters",
            Self::ReplayDeadLetters => "replayDeadLetters",
            Self::VerifyLake => "verifyLake",
            Self::VerifyAudit => "verifyAudit",
            Self::Simulate => "simulate",
        }
    }

    /// Whether it is asked for over HTTP, by whoever comes; otherwise by a command.
    pub fn is_route(self) -> bool {
        matches!(self, Self::PostJobs | Self::ViewHealth | Self::ViewMetrics)
    }
}

/// Whether somebody may, and which policies say so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruling {
    /// Whether he may.
    pub is_allowed: bool,
    /// The names of the policies that decided, in order. Where none permits it, there is none.
    pub policies: Vec<String>,
}

impl Ruling {
    /// The policies as the audit names them.
    pub fn decided_by(&self) -> Option<Arc<str>> {
        (!self.policies.is_empty()).then(|| self.policies.join(", ").into())
    }

    /// Why he may not, as the end of a sentence.
    pub fn refusal(&self) -> String {
        match &self.policies[..] {
            [] => "no policy permits it".to_owned(),
            [policy] => format!("policy `{policy}` forbids it"),
            policies => format!("policies `{}` forbid it", policies.join("`, `")),
        }
    }
}

/// Knows who may do what. The same question has the same answer.
pub trait Authority: fmt::Debug + Send + Sync {
    /// Whether `principal` may have such a job run.
    fn may_submit(&self, principal: &Principal, submission: &Submission) -> Ruling;

    /// Whether `principal` may do this with the pipeline.
    fn may(&self, principal: &Principal, action: Action) -> Ruling;
}
