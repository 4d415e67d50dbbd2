//! Whether whoever sent a job may have it run: asked once of the access policies, and remembered for as long as neither they
//! nor the tenants change.

use std::{cell::RefCell, collections::HashMap, sync::Arc};

use schemas::{
    Authority, Door, ModelName, Principal, Priority, Reason, ReasonCode, Submission, Tenant, TenantPolicy,
    User,
};

/// So many people with tokens are remembered; then all are asked about anew. Who signs tokens can name any number of them.
const USERS_MAX: usize = 10_000;

/// The access policies, and what they were asked before.
#[derive(Debug)]
pub struct Permissions {
    authority: Arc<dyn Authority>,
    answers: RefCell<Answers>,
}

#[derive(Debug, Default)]
struct Answers {
    of_tenants: HashMap<Tenant, Vec<(Asked, Answer)>>,
    of_users: HashMap<User, Vec<(Asked, Answer)>>,
}

/// What is asked for a tenant, by somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) model: ModelName,
    pub(crate) priority: Priority,
    pub(crate) came: Came,
}

/// How a job came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Came {
    /// By the topic of its tenant, not by the shared one.
    pub(crate) by_own_topic: bool,
    /// With a token that proves who sent it.
    pub(crate) with_token: bool,
}

/// Whether a job may run, and by which policies.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// Their names; none where no policy permits it.
    pub(crate) decided_by: Option<Arc<str>>,
    /// Why it may not.
    pub(crate) refusal: Option<Reason<'static>>,
}

impl Permissions {
    /// By the access policies that `authority` knows.
    pub fn of(authority: Arc<dyn Authority>) -> Self {
        Self {
            authority,
            answers: RefCell::default(),
        }
    }

    /// Forgets all answers: the tenants have changed, and answers may hang on their labels.
    pub(crate) fn forget(&mut self) {
        *self.answers.get_mut() = Answers::default();
    }

    /// Whether `user`, or the tenant itself where there is none, may have such a job of `tenant` run.
    pub(crate) fn ask(
        &self,
        user: Option<&User>,
        tenant: &Tenant,
        policy: &TenantPolicy,
        asked: Asked,
    ) -> Answer {
        let mut answers = self.answers.borrow_mut();
        let Answers { of_tenants, of_users } = &mut *answers;
        let known = match user {
            Some(user) => of_users.get(user),
            None => of_tenants.get(tenant),
        };
        let same = known.and_then(|known| known.iter().find(|(before, _)| *before == asked));
        if let Some((_, answer)) = same {
            return answer.clone();
        }
        let answer = self.answer(user, tenant, policy, &asked);
        let known = match user {
            Some(user) => {
                if of_users.len() >= USERS_MAX {
                    of_users.clear();
                }
                of_users.entry(user.clone()).or_default()
            }
            None => of_tenants.entry(tenant.clone()).or_default(),
        };
        known.push((asked, answer.clone()));
        answer
    }

    fn answer(
        &self,
        user: Option<&User>,
        tenant: &Tenant,
        policy: &TenantPolicy,
        Asked {
            model,
            priority,
            came,
        }: &Asked,
    ) -> Answer {
        let principal = user.map_or_else(
            || Principal::Tenant(tenant.clone()),
            |user| Principal::User(user.clone()),
        );
        let submission = Submission {
            tenant: tenant.clone(),
            labels: policy.labels.clone(),
            model: model.clone(),
            priority: *priority,
            door: match came.by_own_topic {
                true => Door::Tenant(tenant.clone()),
                false => Door::Shared,
            },
            has_token: came.with_token,
        };
        let ruling = self.authority.may_submit(&principal, &submission);
        let refusal = (!ruling.is_allowed).then(|| {
            let message = format!(
                "{principal} may not have such a job run on `{model}`: {}",
                ruling.refusal()
            );
            Reason::new(ReasonCode::NotPermitted, message)
        });
        Answer {
            decided_by: ruling.decided_by(),
            refusal,
        }
    }
}
