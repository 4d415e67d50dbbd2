//! What a tenant's readers may read of the lake, as an IAM policy for the operator to look at and to attach. Pure.

use anyhow::Context;
use schemas::Tenant;
use serde_json::json;

/// The tables, as folders of the lake.
const TABLES: [&str; 2] = ["results", "costs"];

/// The IAM policy that lets whoever it is attached to list and read what is `tenant`'s in the lake at `url`, and nothing
/// else.
pub(super) fn of_reader(url: &str, tenant: &Tenant) -> anyhow::Result<String> {
    let place = url.strip_prefix("s3://").with_context(|| {
        format!("the lake is `{url}`, which is not on S3: only there a policy of this form means anything")
    })?;
    let place = place.trim_end_matches('/');
    let (bucket, folder) = match place.split_once('/') {
        Some((bucket, folder)) => (bucket, format!("{folder}/")),
        None => (place, String::new()),
    };
    let folders = TABLES.map(|table| format!("{folder}{table}/tenant={tenant}/*"));
    let objects = folders
        .each_ref()
        .map(|folder| format!("arn:aws:s3:::{bucket}/{folder}"));
    let policy = json!({
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "ListOwn",
                "Effect": "Allow",
                "Action": "s3:ListBucket",
                "Resource": format!("arn:aws:s3:::{bucket}"),
                "Condition": { "StringLike": { "s3:prefix": folders } },
            },
            {
                "Sid": "ReadOwn",
                "Effect": "Allow",
                "Action": "s3:GetObject",
                "Resource": objects,
            },
        ],
    });
    Ok(serde_json::to_string_pretty(&policy)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_lists_and_reads_what_is_its_tenants_and_not_what_begins_like_it() {
        let acme = Tenant::new("acme").unwrap();
        for (url, folder) in [("s3://lake", ""), ("s3://lake/", ""), ("s3://lake/a/b/", "a/b/")] {
            let policy: serde_json::Value = serde_json::from_str(&of_reader(url, &acme).unwrap()).unwrap();
            let own = ["results", "costs"].map(|table| format!("{folder}{table}/tenant=acme/*"));
            let list = &policy["Statement"][0];
            assert_eq!(list["Resource"], "arn:aws:s3:::lake");
            assert_eq!(list["Condition"]["StringLike"]["s3:prefix"], json!(own));
            let read = &policy["Statement"][1];
            let objects = own.map(|own| format!("arn:aws:s3:::lake/{own}"));
            assert_eq!(
                (&read["Action"], &read["Resource"]),
                (&json!("s3:GetObject"), &json!(objects))
            );
        }
        assert!(
            of_reader("/data/lake", &acme)
                .unwrap_err()
                .to_string()
                .contains("not on S3")
        );
    }
}
