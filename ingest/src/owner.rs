//! Whose a job is, and who sent it: by the token where one is demanded, by the topic of a tenant, by the job's word otherwise.

use schemas::{Door, Job, Policies, Reason, ReasonCode, Tenant, User};
use topics::Record;

use crate::{
    decide::{CLAIMED_CHARS_MAX, Received},
    identity::{Bearer, Identity, Refusal},
    permission::Came,
};

/// Whose a job is: the tenant that its outcome belongs to, and who sent it, or why nobody may who sent it so.
pub(crate) struct Owner {
    pub(crate) tenant: Tenant,
    pub(crate) sender: Result<Sender, Reason<'static>>,
}

/// Who sent a job, and how.
pub(crate) struct Sender {
    /// None where it is the tenant itself.
    pub(crate) user: Option<User>,
    pub(crate) came: Came,
}

impl Owner {
    /// Where a token is demanded, it is the identity, and the topic of a tenant must agree with it. Otherwise a tenant's own
    /// topic is, and on the shared one the job's word.
    pub(crate) fn of(
        job: &Job<'_>,
        received: Received<'_>,
        policies: &Policies,
        identity: &Identity,
        now_ms: i64,
    ) -> Self {
        let topic = &received.source.topic.name;
        let Some(door) = policies.topics.door(topic) else {
            let message = format!("topic `{topic}` is not the topic of any possible tenant");
            return Self::unclaimed(ReasonCode::InvalidTenant, message);
        };
        let proven = match proven(&door, received.record, identity, now_ms) {
            Ok(proven) => proven,
            Err(refusal) => return Self::unclaimed(refusal.code(), refusal.to_string()),
        };
        let came = Came {
            by_own_topic: matches!(door, Door::Tenant(_)),
            with_token: proven.is_some(),
        };
        let (tenant, user) = match (door, proven) {
            (Door::Tenant(tenant), Some((proven, _))) if proven != tenant => {
                let message = format!("the job came through `{topic}` and its token is of tenant `{proven}`");
                return Self::unclaimed(ReasonCode::TenantMismatch, message);
            }
            (Door::Tenant(tenant), None) => (tenant, None),
            (Door::Tenant(_) | Door::Shared, Some(proven)) => proven,
            (Door::Shared, None) => return by_its_word(job.tenant.as_deref(), policies, came),
        };
        if !policies.tenants.contains_key(&tenant) {
            return Self::unclaimed(ReasonCode::UnknownTenant, not_configured(&tenant));
        }
        match &job.tenant {
            Some(claimed) if *claimed != tenant.as_str() => {
                let claimed: String = claimed.chars().take(CLAIMED_CHARS_MAX).collect();
                let has = match came.with_token {
                    true => format!("has a token of tenant `{tenant}`"),
                    false => format!("came through `{topic}`"),
                };
                let message = format!("the job {has} and names tenant `{}`", claimed.escape_default());
                Self {
                    tenant,
                    sender: Err(Reason::new(ReasonCode::TenantMismatch, message)),
                }
            }
            _ => Self::known(tenant, Sender { user, came }),
        }
    }

    fn known(tenant: Tenant, sender: Sender) -> Self {
        Self {
            tenant,
            sender: Ok(sender),
        }
    }

    fn unclaimed(code: ReasonCode, message: String) -> Self {
        Self {
            tenant: Tenant::unclaimed(),
            sender: Err(Reason::new(code, message)),
        }
    }
}

/// Whose token `record` has, the tenant and, where the token tells of roles, the one who has them; none where none is
/// demanded. A token must be good when the log took the record, so that a job may wait. A producer's word for that time is not
/// taken: without the log's it must be good now.
fn proven(
    door: &Door,
    record: &Record,
    identity: &Identity,
    now_ms: i64,
) -> Result<Option<(Tenant, Option<User>)>, Refusal> {
    if !identity.demands(door) {
        return Ok(None);
    }
    let as_of_ms = if record.stamped_by_log {
        record.timestamp_ms
    } else {
        now_ms
    };
    identity.prove_tenant(&Bearer::of(record)?, as_of_ms).map(Some)
}

fn by_its_word(claimed: Option<&str>, policies: &Policies, came: Came) -> Owner {
    let Some(claimed) = claimed else {
        let message = "the job names no tenant: set `tenant`, or produce to the tenant's own topic";
        return Owner::unclaimed(ReasonCode::UnknownTenant, message.to_owned());
    };
    match Tenant::new(claimed) {
        Ok(tenant) if policies.tenants.contains_key(&tenant) => {
            Owner::known(tenant, Sender { user: None, came })
        }
        Ok(tenant) => Owner::unclaimed(ReasonCode::UnknownTenant, not_configured(&tenant)),
        Err(invalid) => Owner::unclaimed(ReasonCode::InvalidTenant, invalid.to_string()),
    }
}

pub(crate) fn not_configured(tenant: &Tenant) -> String {
    format!("tenant `{tenant}` is not configured")
}
