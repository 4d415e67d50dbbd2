#![no_main]
//! Any text where a name should be: what is taken for a name is safe in a path and in a topic, and reads back from both.

use schemas::{JobId, ModelName, Pool, Priority, Tenant, TopicId, TopicName};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let names = fuzz::names();
    if let Ok(tenant) = Tenant::new(text) {
        assert!(
            text.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        );
        assert_eq!(
            names.tenant_of_outcomes(&names.outcomes(&tenant)),
            Some(tenant.clone())
        );
        for priority in Priority::ALL {
            let work = names.work(&Pool::default(), priority, &tenant);
            assert_eq!(
                names.owner_of_work(&Pool::default(), &work),
                Some((tenant.clone(), priority))
            );
        }
    }
    if let Ok(topic) = TopicName::new(text) {
        assert!(!text.is_empty() && text != "." && text != ".." && !text.contains('/'));
        let _ = (names.door(&topic), names.tenant_of_outcomes(&topic));
    }
    if let Ok(id) = text.parse::<TopicId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    let _ = (JobId::new(text), ModelName::new(text));
});
