//! The metrics of the process itself; each service has its own.

/// Sets of tenants that came while services ran, by `result` (taken, refused).
pub(crate) const TENANT_SETS: &str = "tributary_tenant_sets_total";
/// Files of keys that came while services ran, by `result` (taken, refused).
pub(crate) const KEY_SETS: &str = "tributary_key_sets_total";
