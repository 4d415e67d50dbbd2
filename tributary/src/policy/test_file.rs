//! What somebody expects of access policies: questions, each with its answer. Pure.

use std::collections::{BTreeMap, BTreeSet};

use authority::AccessPolicies;
use schemas::{
    Action, Authority, Door, ModelName, Principal, Priority, Role, Ruling, Submission, Tenant, User,
};
use serde::Deserialize;
use toml::Spanned;

use crate::config;

/// A test file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TestFile {
    #[serde(default)]
    case: Vec<Spanned<CaseTable>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseTable {
    name: String,
    principal: PrincipalTable,
    /// Of this and the next, one.
    action: Option<Action>,
    submit: Option<SubmissionTable>,
    allowed: bool,
    /// One of those that decide; none: whichever.
    policy: Option<String>,
}

/// With a user, somebody with roles; with a tenant alone, that tenant; with neither, a stranger.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PrincipalTable {
    user: Option<String>,
    tenant: Option<Tenant>,
    #[serde(default)]
    roles: BTreeSet<Role>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubmissionTable {
    tenant: Tenant,
    model: ModelName,
    #[serde(default)]
    priority: Priority,
    #[serde(default)]
    door: DoorWord,
    #[serde(default)]
    has_token: bool,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum DoorWord {
    #[default]
    Shared,
    Own,
}

/// A question, and the answer that is expected.
#[derive(Debug)]
pub(super) struct Case {
    /// Where it stands, from 1.
    line: usize,
    name: String,
    principal: Principal,
    question: Question,
    is_allowed: bool,
    policy: Option<String>,
}

#[derive(Debug)]
enum Question {
    Submit(Submission),
    Act(Action),
}

/// Reads the text of a test file.
///
/// # Errors
/// The first mistake, with its line.
pub(super) fn read(text: &str) -> Result<Vec<Case>, String> {
    let TestFile { case: tables } = toml::from_str(text).map_err(|error| error.to_string())?;
    if tables.is_empty() {
        return Err("it has no case, so it tests nothing: add [[case]]".to_owned());
    }
    let case = |table: Spanned<CaseTable>| {
        let line = config::line_at(text, table.span().start);
        Case::of(line, table.into_inner()).map_err(|problem| format!("line {line}: {problem}"))
    };
    tables.into_iter().map(case).collect()
}

impl Case {
    fn of(line: usize, table: CaseTable) -> Result<Self, String> {
        let question = match (table.action, table.submit) {
            (Some(action), None) => Question::Act(action),
            (None, Some(submission)) => Question::Submit(submission.into()),
            _ => return Err("a case has either `action` or `submit`".to_owned()),
        };
        let PrincipalTable { user, tenant, roles } = table.principal;
        let principal = match (user, tenant) {
            (Some(name), tenant) => Principal::User(User { name, tenant, roles }),
            (None, _) if !roles.is_empty() => {
                return Err("only a `user` has `roles`: name one".to_owned());
            }
            (None, Some(tenant)) => Principal::Tenant(tenant),
            (None, None) => Principal::Stranger,
        };
        Ok(Self {
            line,
            name: table.name,
            principal,
            question,
            is_allowed: table.allowed,
            policy: table.policy,
        })
    }

    /// How `policies` answer otherwise than expected; none where they do not.
    pub(super) fn failure(&self, policies: &AccessPolicies) -> Option<String> {
        let ruling = match &self.question {
            Question::Submit(submission) => policies.may_submit(&self.principal, submission),
            Question::Act(action) => policies.may(&self.principal, *action),
        };
        let is_by = |policy: &String| ruling.policies.contains(policy);
        if ruling.is_allowed == self.is_allowed && self.policy.as_ref().is_none_or(is_by) {
            return None;
        }
        let expected = match self.is_allowed {
            true => "allowed",
            false => "refused",
        };
        let by = self.policy.as_ref();
        let by = by
            .map(|policy| format!(" by policy `{policy}`"))
            .unwrap_or_default();
        Some(format!(
            "{}: {}: expected to be {expected}{by}, and {}",
            self.line,
            self.name,
            answer(&ruling)
        ))
    }
}

fn answer(ruling: &Ruling) -> String {
    match ruling.decided_by() {
        Some(policies) if ruling.is_allowed => format!("is allowed by: {policies}"),
        _ => format!("is refused: {}", ruling.refusal()),
    }
}

impl From<SubmissionTable> for Submission {
    fn from(table: SubmissionTable) -> Self {
        Self {
            door: match table.door {
                DoorWord::Shared => Door::Shared,
                DoorWord::Own => Door::Tenant(table.tenant.clone()),
            },
            tenant: table.tenant,
            labels: table.labels,
            model: table.model,
            priority: table.priority,
            has_token: table.has_token,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_policies_and_the_example_answer_as_their_test_files_say() {
        let example = include_str!("../../../deploy/policies.cedar");
        for (policies, tests) in [
            (
                AccessPolicies::built_in(),
                include_str!("../../../authority/src/default.test.toml"),
            ),
            (
                AccessPolicies::read(example).unwrap(),
                include_str!("../../../deploy/policies.test.toml"),
            ),
        ] {
            let failures: Vec<String> = read(tests)
                .unwrap()
                .iter()
                .filter_map(|case| case.failure(&policies))
                .collect();
            assert!(failures.is_empty(), "{failures:#?}");
        }
    }

    #[test]
    fn an_answer_that_was_not_expected_is_told_with_the_policies_that_decided() {
        let case = |expected: &str| {
            let text = format!(
                "\n[[case]]\nname = 'of another'\nprincipal = {{ tenant = 'acme' }}\nsubmit = {{ tenant = 'acme', model = 'm' }}\n{expected}\n"
            );
            read(&text).unwrap()[0].failure(&AccessPolicies::built_in())
        };
        assert_eq!(case("allowed = true"), None);
        assert_eq!(
            case("allowed = true\npolicy = 'a-tenant-submits-its-own-jobs'"),
            None
        );
        let by = "is allowed by: a-tenant-submits-its-own-jobs";
        assert_eq!(
            case("allowed = false"),
            Some(format!("2: of another: expected to be refused, and {by}"))
        );
        assert_eq!(
            case("allowed = true\npolicy = 'x'"),
            Some(format!(
                "2: of another: expected to be allowed by policy `x`, and {by}"
            ))
        );
    }

    #[test]
    fn each_mistake_in_a_test_file_is_named_with_its_line() {
        let begin = "[[case]]\nname = 'a'\nallowed = true\n";
        for (text, complaint) in [
            ("", "it has no case"),
            ("[[cases]]\n", "line 1"),
            (
                &format!("{begin}principal = {{}}\n"),
                "line 1: a case has either `action` or `submit`",
            ),
            (
                &format!("{begin}principal = {{}}\naction = 'viewHelth'\n"),
                "line 5",
            ),
            (
                &format!(
                    "{begin}principal = {{ tenant = 'acme', roles = ['reader'] }}\naction = 'viewHealth'\n"
                ),
                "line 1: only a `user` has `roles`",
            ),
            (
                &format!(
                    "{begin}principal = {{ user = 'ada', roles = ['raeder'] }}\naction = 'viewHealth'\n"
                ),
                "line 4",
            ),
            (
                &format!("{begin}principal = {{ tenant = '../acme' }}\naction = 'viewHealth'\n"),
                "must match [a-z]",
            ),
        ] {
            let refused = read(text).unwrap_err();
            assert!(refused.contains(complaint), "`{text}`: {refused}");
        }
    }
}
