//! A set of policies: good as a whole, or refused with the place of its first mistake.

use std::{collections::BTreeSet, fmt};

use cedar_policy::{
    AuthorizationError, Authorizer, Decision, Entities, Policy, PolicyId, PolicySet, Request, Schema,
    ValidationMode, Validator,
};
use miette::Diagnostic;
use schemas::{Action, Authority, Principal, Ruling, Submission};

use crate::{DEFAULT, SCHEMA, words::Question};

/// The annotation that names a policy.
const NAME: &str = "id";

/// The policies in force.
pub struct AccessPolicies {
    schema: Schema,
    policies: PolicySet,
    authorizer: Authorizer,
}

/// Why a text is no set of policies.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// From 1; none where it is about the whole.
    line: Option<usize>,
    problem: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.problem),
            None => f.write_str(&self.problem),
        }
    }
}

impl AccessPolicies {
    /// The policies that are in force where nobody has written any.
    pub fn built_in() -> Self {
        Self::read(DEFAULT).expect("the default is held to the schema by a test")
    }

    /// Reads policies, and holds them to the schema: each has a name of its own, and says nothing that cannot be.
    ///
    /// # Errors
    /// The first mistake, with its line.
    pub fn read(text: &str) -> Result<Self, Refused> {
        let (schema, _) = Schema::from_cedarschema_str(SCHEMA).expect("the schema is read by a test");
        let parsed: PolicySet = text
            .parse()
            .map_err(|error: cedar_policy::ParseErrors| refused(text, &error))?;
        if parsed.is_empty() {
            let problem = "it has no policy, so nobody might do anything: start from what `tributary policy show` prints";
            return Err(Refused {
                line: None,
                problem: problem.to_owned(),
            });
        }
        let policies = named(text, &parsed)?;
        let validated = Validator::new(schema.clone()).validate(&policies, ValidationMode::Strict);
        if let Some(error) = validated.validation_errors().next() {
            return Err(refused(text, error));
        }
        if let Some(warning) = validated.validation_warnings().next() {
            return Err(refused(text, warning));
        }
        Ok(Self {
            schema,
            policies,
            authorizer: Authorizer::new(),
        })
    }

    /// How many policies there are.
    pub fn count(&self) -> usize {
        self.policies.num_of_policies()
    }

    /// Whether there is a policy of this name.
    pub fn has(&self, name: &str) -> bool {
        self.policies.policy(&PolicyId::new(name)).is_some()
    }

    /// What the schema has nobody ask is not permitted. A policy that cannot be evaluated refuses: it could be one that
    /// forbids.
    fn rule(&self, question: Question) -> Ruling {
        let Question {
            principal,
            action,
            resource,
            context,
            entities,
        } = question;
        let schema = Some(&self.schema);
        let Ok(request) = Request::new(principal, action, resource, context, schema) else {
            return Ruling {
                is_allowed: false,
                policies: Vec::new(),
            };
        };
        let entities = Entities::from_entities(entities, schema).expect("they are made as the schema says");
        let response = self.authorizer.is_authorized(&request, &self.policies, &entities);
        let failed: BTreeSet<String> = response
            .diagnostics()
            .errors()
            .map(|AuthorizationError::PolicyEvaluationError(error)| error.policy_id().to_string())
            .collect();
        if !failed.is_empty() {
            return Ruling {
                is_allowed: false,
                policies: failed.into_iter().collect(),
            };
        }
        let decided: BTreeSet<String> = response.diagnostics().reason().map(ToString::to_string).collect();
        Ruling {
            is_allowed: response.decision() == Decision::Allow,
            policies: decided.into_iter().collect(),
        }
    }
}

impl Authority for AccessPolicies {
    fn may_submit(&self, principal: &Principal, submission: &Submission) -> Ruling {
        self.rule(Question::of_submission(principal, submission))
    }

    fn may(&self, principal: &Principal, action: Action) -> Ruling {
        self.rule(Question::of_action(principal, action))
    }
}

impl fmt::Debug for AccessPolicies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.policies.policies().map(Policy::id);
        f.debug_list().entries(names).finish()
    }
}

/// The policies under the names that they give themselves.
fn named(text: &str, parsed: &PolicySet) -> Result<PolicySet, Refused> {
    let (mut policies, mut end) = (PolicySet::new(), 0);
    // The parser numbers them in the order of the text.
    for number in 0.. {
        let id = PolicyId::new(format!("policy{number}"));
        let (policy, template) = (parsed.policy(&id), parsed.template(&id));
        let Some(source) = policy
            .map(ToString::to_string)
            .or(template.map(ToString::to_string))
        else {
            break;
        };
        let begin = text[end..].find(&source).map_or(end, |offset| end + offset);
        end = begin
            + if text[begin..].starts_with(&source) {
                source.len()
            } else {
                0
            };
        let refuse = |problem: String| {
            Err(Refused {
                line: Some(line_at(text, begin)),
                problem,
            })
        };
        let Some(policy) = policy else {
            let problem =
                "a policy with a slot (`?principal`, `?resource`) is never in force: name whom it is about";
            return refuse(problem.to_owned());
        };
        let Some(name) = policy.annotation(NAME).filter(|name| !name.is_empty()) else {
            let problem =
                "a policy has no name: write `@id(\"…\")` before it, since decisions are told with it";
            return refuse(problem.to_owned());
        };
        if policies.add(policy.new_id(PolicyId::new(name))).is_err() {
            return refuse(format!(
                "two policies are called `{name}`: each has a name of its own"
            ));
        }
    }
    Ok(policies)
}

fn refused(text: &str, error: &dyn Diagnostic) -> Refused {
    let place = error.labels().and_then(|mut labels| labels.next());
    let help = error.help().map(|help| format!(" ({help})"));
    Refused {
        line: place.map(|place| line_at(text, place.offset())),
        problem: format!("{error}{}", help.unwrap_or_default()),
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use schemas::{Door, ModelName, Priority, Role, Tenant, User};

    use super::*;

    fn tenant(name: &str) -> Tenant {
        Tenant::new(name).unwrap()
    }

    fn job_of(owner: &str) -> Submission {
        Submission {
            tenant: tenant(owner),
            labels: BTreeMap::new(),
            model: ModelName::new("minilm").unwrap(),
            priority: Priority::Normal,
            door: Door::Shared,
            has_token: false,
        }
    }

    fn user(of: Option<&str>, roles: &[Role]) -> Principal {
        Principal::User(User {
            name: "ada".to_owned(),
            tenant: of.map(tenant),
            roles: roles.iter().copied().collect(),
        })
    }

    fn complaint(text: &str) -> String {
        AccessPolicies::read(text).unwrap_err().to_string()
    }

    #[test]
    fn where_nobody_has_written_any_a_tenant_submits_its_own_jobs_and_nobody_elses() {
        let policies = AccessPolicies::built_in();
        let acme = Principal::Tenant(tenant("acme"));
        let own = policies.may_submit(&acme, &job_of("acme"));
        assert_eq!(
            (own.is_allowed, own.decided_by().as_deref()),
            (true, Some("a-tenant-submits-its-own-jobs"))
        );
        let anothers = policies.may_submit(&acme, &job_of("globex"));
        assert_eq!((anothers.is_allowed, anothers.decided_by()), (false, None));
        assert_eq!(anothers.refusal(), "no policy permits it");
    }

    #[test]
    fn where_nobody_has_written_any_each_role_may_do_what_it_is_for() {
        use Action::*;
        let policies = AccessPolicies::built_in();
        for (role, may) in [
            (Role::Submitter, &[PostJobs][..]),
            (Role::Reader, &[ViewTenants, VerifyLake]),
            (Role::Auditor, &[ViewTenants, VerifyLake, VerifyAudit]),
            (Role::Finance, &[ViewTenants, VerifyLake, Simulate]),
            (Role::Operator, &Action::ALL),
        ] {
            for action in Action::ALL {
                let of_house = policies.may(&user(None, &[role]), action).is_allowed;
                let looks = matches!(action, ViewHealth | ViewMetrics);
                assert_eq!(of_house, looks || may.contains(&action), "{role:?} {action:?}");
                let of_tenant = policies.may(&user(Some("acme"), &[role]), action).is_allowed;
                let posts = action == PostJobs && role == Role::Submitter;
                assert_eq!(of_tenant, looks || posts, "{role:?} of a tenant, {action:?}");
            }
            let submits = |of, owner| policies.may_submit(&user(of, &[role]), &job_of(owner)).is_allowed;
            assert_eq!(submits(Some("acme"), "acme"), role == Role::Submitter, "{role:?}");
            assert!(
                !submits(Some("acme"), "globex") && !submits(None, "acme"),
                "{role:?}"
            );
        }
        for action in Action::ALL.into_iter().filter(|action| action.is_route()) {
            assert!(
                policies.may(&Principal::Stranger, action).is_allowed,
                "{action:?}"
            );
            let acme = Principal::Tenant(tenant("acme"));
            assert!(policies.may(&acme, action).is_allowed, "{action:?}");
        }
    }

    #[test]
    fn a_policy_that_forbids_outranks_one_that_permits_and_both_go_by_all_that_the_schema_has() {
        let forbid = r#"@id("gold-only") forbid (principal, action == Action::"submit", resource)
            when { context.model == Model::"minilm" && context.door == Door::"shared" && !context.has_token
                && context.priority == Priority::"high" && resource.hasTag("tier") && resource.getTag("tier") != "gold" };"#;
        let policies = AccessPolicies::read(&format!("{DEFAULT}{forbid}")).unwrap();
        let ruling = |change: &dyn Fn(&mut Submission)| {
            let mut job = job_of("acme");
            job.labels = BTreeMap::from([("tier".to_owned(), "tin".to_owned())]);
            job.priority = Priority::High;
            change(&mut job);
            policies.may_submit(&Principal::Tenant(tenant("acme")), &job)
        };
        let forbidden = ruling(&|_| {});
        assert_eq!(
            (forbidden.is_allowed, forbidden.refusal()),
            (false, "policy `gold-only` forbids it".to_owned())
        );
        assert!(ruling(&|job| job.model = ModelName::new("bge").unwrap()).is_allowed);
        assert!(ruling(&|job| job.door = Door::Tenant(tenant("acme"))).is_allowed);
        assert!(ruling(&|job| job.has_token = true).is_allowed);
        assert!(ruling(&|job| job.priority = Priority::Normal).is_allowed);
        assert!(ruling(&|job| job.labels.clear()).is_allowed);
        assert!(ruling(&|job| drop(job.labels.insert("tier".to_owned(), "gold".to_owned()))).is_allowed);
    }

    #[test]
    fn a_policy_that_cannot_be_evaluated_refuses() {
        let overflows =
            r#"@id("overflows") forbid (principal, action, resource) when { 9223372036854775807 + 1 > 0 };"#;
        let policies = AccessPolicies::read(&format!("{DEFAULT}{overflows}")).unwrap();
        let ruling = policies.may(&Principal::Stranger, Action::ViewHealth);
        assert_eq!(
            (ruling.is_allowed, ruling.policies),
            (false, vec!["overflows".to_owned()])
        );
    }

    #[test]
    fn each_mistake_is_named_with_its_line() {
        for (text, expected) in [
            (
                "",
                "it has no policy, so nobody might do anything: start from what `tributary policy show` prints",
            ),
            (
                r#"permit (principal, action);"#,
                "line 3: this policy is missing the `resource` variable in the scope",
            ),
            (
                r#"permit (principal, action, resource);"#,
                "line 3: a policy has no name",
            ),
            (
                r#"@id("good") permit (principal is User, action, resource);"#,
                "line 3: two policies are called `good`",
            ),
            (
                r#"@id("a") permit (principal in ?principal, action, resource);"#,
                "line 3: a policy with a slot",
            ),
            (
                r#"@id("a") permit (principal in Role::"opreator", action, resource);"#,
                "line 3: for policy `a`: entity `Role::\"opreator\"` is of an enumerated entity type",
            ),
            (
                r#"@id("a") permit (principal, action == Action::"sumbit", resource);"#,
                "line 3: ",
            ),
            (
                r#"@id("a") permit (principal, action == Action::"submit", resource) when { context.modle == Model::"m" };"#,
                "line 3: ",
            ),
            (
                r#"@id("a") permit (principal, action == Action::"submit", resource) when { context.model == "minilm" };"#,
                "line 3: ",
            ),
            (
                r#"@id("a") permit (principal is Stranger, action == Action::"submit", resource);"#,
                "line 3: ",
            ),
        ] {
            let good = "@id(\"good\")\npermit (principal, action, resource);\n";
            let text = match text {
                "" => String::new(),
                text => format!("{good}{text}\n"),
            };
            let complaint = complaint(&text);
            assert!(complaint.starts_with(expected), "{text}: {complaint}");
        }
    }

    fn roles() -> impl Strategy<Value = BTreeSet<Role>> {
        prop::collection::btree_set(prop::sample::select(&Role::ALL[..]), 0..5)
    }

    fn principals() -> impl Strategy<Value = Principal> {
        let user = (any::<String>(), prop::option::of("[a-c]"), roles());
        prop_oneof![
            Just(Principal::Stranger),
            "[a-c]".prop_map(|name| Principal::Tenant(tenant(&name))),
            user.prop_map(|(name, of, roles)| Principal::User(User {
                name,
                tenant: of.map(|of| tenant(&of)),
                roles
            })),
        ]
    }

    proptest! {
        #[test]
        fn whoever_asks_for_whatever_has_an_answer_and_only_who_owns_a_job_has_it_run(
            principal in principals(),
            owner in "[a-c]",
            labels in prop::collection::btree_map(any::<String>(), any::<String>(), 0..3),
            model in "[a-z0-9][a-z0-9._-]{0,5}",
            priority in prop::sample::select(&Priority::ALL[..]),
            is_own in any::<bool>(),
            has_token in any::<bool>(),
            action in prop::sample::select(&Action::ALL[..]),
        ) {
            let policies = AccessPolicies::built_in();
            let owner = tenant(&owner);
            let door = if is_own { Door::Tenant(owner.clone()) } else { Door::Shared };
            let model = ModelName::new(&model).unwrap();
            let submission = Submission { tenant: owner, labels, model, priority, door, has_token };
            let ruling = policies.may_submit(&principal, &submission);
            let owns = match &principal {
                Principal::Tenant(tenant) => *tenant == submission.tenant,
                Principal::User(User { tenant, roles, .. }) => {
                    tenant.as_ref() == Some(&submission.tenant) && roles.contains(&Role::Submitter)
                }
                Principal::Stranger => false,
            };
            prop_assert_eq!(ruling.is_allowed, owns);
            let ruling = policies.may(&principal, action);
            prop_assert_eq!(ruling.is_allowed, !ruling.policies.is_empty(), "the default forbids nothing");
            prop_assert!(ruling.policies.iter().all(|name| policies.has(name)));
        }
    }
}
