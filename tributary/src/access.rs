//! Who may do what with this installation: the access policies in force, and who gives commands.

use std::{path::Path, sync::Arc};

use anyhow::bail;
use authority::AccessPolicies;
use schemas::{Action, AuditEvent, Authority, Operation, Principal, ReasonCode, User};
use topics::Topics;

use crate::{
    audit::{self, Auditor},
    config::{self, AuthoritySection, Config},
    followed_file::{FollowedValue, Subject},
    metric_names,
};

/// The access policies, followed where they stand in a file.
///
/// # Errors
/// Where the file cannot be read or has a mistake.
pub(crate) fn follow(
    section: &AuthoritySection,
    auditor: Auditor,
) -> anyhow::Result<FollowedValue<dyn Authority>> {
    let Some(path) = &section.policies else {
        return Ok(built_in());
    };
    let read = |text: &str| {
        let policies = AccessPolicies::read(text).map_err(|refused| refused.to_string())?;
        let detail = format!("{} policies", policies.count());
        Ok((Arc::new(policies) as Arc<dyn Authority>, detail))
    };
    let subject = Subject {
        file: "policy file of authority.policies",
        values: "access policies",
        operation: Operation::TakeAccessPolicies,
        metric: metric_names::ACCESS_POLICY_SETS,
        read: Box::new(read),
    };
    FollowedValue::open(subject, path, auditor)
}

/// Those that are in force where nobody has written any.
pub(crate) fn built_in() -> FollowedValue<dyn Authority> {
    let policies: Arc<dyn Authority> = Arc::new(AccessPolicies::built_in());
    FollowedValue::fixed(policies)
}

/// The access policies in the file of `path`; the built-in ones where there is none.
pub(crate) fn read(path: Option<&Path>) -> anyhow::Result<AccessPolicies> {
    let Some(path) = path else {
        return Ok(AccessPolicies::built_in());
    };
    let text = config::read("policy file", path)?;
    AccessPolicies::read(&text)
        .map_err(|refused| anyhow::anyhow!("policy file `{}`, {refused}", path.display()))
}

/// Whether whoever gives this command may, and by which policies.
///
/// # Errors
/// Where he may not.
pub(crate) fn permit(config: &Config, action: Action) -> anyhow::Result<Option<String>> {
    ask(config, action)?.map_err(|refused| anyhow::anyhow!(refused.sentence))
}

/// The same for a command that changes something: that he may not is in the audit.
pub(crate) async fn permit_change(
    config: &Config,
    topics: &dyn Topics,
    action: Action,
    operation: Operation,
) -> anyhow::Result<Option<String>> {
    let NotPermitted { sentence, by } = match ask(config, action)? {
        Ok(by) => return Ok(by),
        Err(refused) => refused,
    };
    let event = AuditEvent {
        refused: Some(ReasonCode::NotPermitted.as_str().to_owned()),
        ..audit::of_command(operation, sentence.clone(), by)
    };
    audit::append_at_once(config, topics, event).await?;
    bail!(sentence)
}

struct NotPermitted {
    sentence: String,
    by: Option<String>,
}

fn ask(config: &Config, action: Action) -> anyhow::Result<Result<Option<String>, NotPermitted>> {
    let section = &config.authority;
    let name = audit::user().unwrap_or_default();
    let roles = section.users.get(&name).unwrap_or(&section.command_roles);
    let principal = Principal::User(User {
        roles: roles.clone(),
        name,
        tenant: None,
    });
    let ruling = read(section.policies.as_deref())?.may(&principal, action);
    let by = ruling.decided_by().map(|by| by.to_string());
    if ruling.is_allowed {
        return Ok(Ok(by));
    }
    let sentence = format!(
        "{principal} may not {}: {}. See `tributary policy show`, and authority.users in the configuration",
        action.as_str(),
        ruling.refusal()
    );
    Ok(Err(NotPermitted { sentence, by }))
}
