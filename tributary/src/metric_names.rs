//! The metrics of the process itself; each service has its own.

/// Sets of tenants that came while services ran, by `result` (taken, refused).
pub(crate) const TENANT_SETS: &str = "tributary_tenant_sets_total";
/// Files of access policies that came while services ran, by `result` (taken, refused).
pub(crate) const ACCESS_POLICY_SETS: &str = "tributary_access_policy_sets_total";
/// Files of keys that came while services ran, by `result` (taken, refused).
pub(crate) const KEY_SETS: &str = "tributary_key_sets_total";

/// Has every counter there from the start, at zero, but those of tenants: from a series that begins with its first event
/// `increase` hides that one.
pub(crate) fn register() {
    for sets in [TENANT_SETS, ACCESS_POLICY_SETS, KEY_SETS] {
        for result in ["taken", "refused"] {
            metrics::counter!(sets, "result" => result).increment(0);
        }
    }
}
