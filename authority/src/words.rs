//! What is asked, in the words of the schema.

use std::collections::HashSet;

use cedar_policy::{Context, Entity, EntityId, EntityTypeName, EntityUid, RestrictedExpression};
use schemas::{Action, Door, Principal, Priority, Submission, User};

/// A question to the policies, and what they may look at to answer it.
pub(crate) struct Question {
    pub(crate) principal: EntityUid,
    pub(crate) action: EntityUid,
    pub(crate) resource: EntityUid,
    pub(crate) context: Context,
    pub(crate) entities: Vec<Entity>,
}

impl Question {
    pub(crate) fn of_submission(principal: &Principal, submission: &Submission) -> Self {
        let Submission {
            tenant,
            labels,
            model,
            priority,
            door,
            has_token,
        } = submission;
        let resource = uid("Tenant", tenant.as_str());
        let labels = labels
            .iter()
            .map(|(name, value)| (name.clone(), RestrictedExpression::new_string(value.clone())));
        let owner = Entity::new_with_tags(resource.clone(), [], [], labels).expect("a text is a value");
        let priority = match priority {
            Priority::Low => "low",
            Priority::Normal => "normal",
            Priority::High => "high",
        };
        let door = match door {
            Door::Shared => "shared",
            Door::Tenant(_) => "own",
        };
        let context = Context::from_pairs([
            named("model", uid("Model", model.as_str())),
            named("priority", uid("Priority", priority)),
            named("door", uid("Door", door)),
            ("has_token".to_owned(), RestrictedExpression::new_bool(*has_token)),
        ]);
        let principal_uid = uid_of(principal);
        let mut entities = vec![owner];
        if principal_uid != resource {
            entities.push(entity_of(principal, principal_uid.clone()));
        }
        Self {
            principal: principal_uid,
            action: uid("Action", "submit"),
            resource,
            context: context.expect("each is named once"),
            entities,
        }
    }

    pub(crate) fn of_action(principal: &Principal, action: Action) -> Self {
        let principal_uid = uid_of(principal);
        Self {
            principal: principal_uid.clone(),
            action: uid("Action", action.as_str()),
            resource: uid("Pipeline", "this"),
            context: Context::empty(),
            entities: vec![entity_of(principal, principal_uid)],
        }
    }
}

fn uid_of(principal: &Principal) -> EntityUid {
    match principal {
        Principal::Tenant(tenant) => uid("Tenant", tenant.as_str()),
        Principal::User(user) => uid("User", &user.name),
        Principal::Stranger => uid("Stranger", "stranger"),
    }
}

/// A tenant that asks is told without its labels: where it asks for its own jobs they are the owner's.
fn entity_of(principal: &Principal, uid_of_principal: EntityUid) -> Entity {
    let Principal::User(User { tenant, roles, .. }) = principal else {
        return Entity::with_uid(uid_of_principal);
    };
    let tenant = tenant
        .iter()
        .map(|tenant| named("tenant", uid("Tenant", tenant.as_str())));
    let roles: HashSet<EntityUid> = roles.iter().map(|role| uid("Role", role.as_str())).collect();
    Entity::new(uid_of_principal, tenant.collect(), roles).expect("a tenant is a value")
}

fn named(name: &str, value: EntityUid) -> (String, RestrictedExpression) {
    (name.to_owned(), RestrictedExpression::new_entity_uid(value))
}

fn uid(kind: &str, id: &str) -> EntityUid {
    let kind: EntityTypeName = kind.parse().expect("the schema has this type");
    EntityUid::from_type_name_and_id(kind, EntityId::new(id))
}
