//! Least-privilege policies for who works with a repository on S3, as IAM takes them, and the bucket policy that makes create-only a law.
//!
//! Everything in a repository is ciphertext or public, so reading is given freely; what tells the roles apart is who may write and delete. A host
//! writes only where its own sources lie: what it must not forge, it cannot even put there. `probe/` is for all; listing is, too, since `status`,
//! `verify` and `watch` look at the whole repository, so that names, sizes and times of other sources can be seen.

use serde_json::{Value, json};

use crate::storage::{CLASS_TAG, Class};

/// What a bucket policy or an IAM policy names.
pub struct Place<'a> {
    pub bucket: &'a str,
    /// Empty, or without slashes at either end.
    pub prefix: &'a str,
}

/// What a host works on, by name: its policy lets it write nowhere else. Empty: everything.
#[derive(Debug, Clone, Default)]
pub struct Own {
    pub sources: Vec<String>,
    pub plans: Vec<String>,
    pub groups: Vec<String>,
}

impl Own {
    /// Areas below which it writes.
    fn writes(&self) -> Vec<String> {
        let of_each = |names: &[String], areas: &[&str], end: &str| -> Vec<String> {
            areas.iter().flat_map(|area| names.iter().map(move |name| format!("{area}/{name}{end}"))).collect()
        };
        let any = ["*".to_owned()];
        let sources = if self.sources.is_empty() { &any[..] } else { &self.sources };
        let areas = ["packs", "index", "snapshots", "wal", "drills"];
        let mut all = of_each(sources, &areas, if self.sources.is_empty() { "" } else { "/*" });
        all.extend(of_each(sources, &["leases"], ""));
        if self.sources.is_empty() {
            all.push("groups/*".into());
        } else {
            all.extend(of_each(&self.plans, &["drills"], "/*"));
            all.extend(of_each(&self.groups, &["groups"], "/*"));
        }
        all.push("probe/*".into());
        all
    }

    /// Of these, what locks are extended on.
    fn locked(&self) -> Vec<String> {
        let all = self.writes().into_iter();
        all.filter(|area| LOCKED.iter().any(|locked| area.starts_with(locked.trim_end_matches('*')))).collect()
    }
}

/// Areas that are written once.
const WRITTEN_ONCE: [&str; 10] = [
    "packs/*",
    "index/*",
    "snapshots/*",
    "wal/*",
    "trust/*",
    "drills/*",
    "groups/*",
    "repository.json",
    "README.txt",
    "recover*.py",
];
/// Areas with locks.
const LOCKED: [&str; 3] = ["packs/*", "index/*", "snapshots/*"];

impl Place<'_> {
    fn bucket_arn(&self) -> String {
        format!("arn:aws:s3:::{}", self.bucket)
    }

    /// Objects below the prefix.
    fn arn(&self, area: &str) -> String {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        format!("arn:aws:s3:::{}/{}{slash}{area}", self.bucket, self.prefix)
    }

    fn arns(&self, areas: &[impl AsRef<str>]) -> Vec<String> {
        areas.iter().map(|area| self.arn(area.as_ref())).collect()
    }

    fn looks(&self) -> Vec<Value> {
        let mut list = allow(&["s3:ListBucket", "s3:ListBucketVersions"], vec![self.bucket_arn()]);
        if !self.prefix.is_empty() {
            list["Condition"] = json!({"StringLike": {"s3:prefix": [format!("{}/*", self.prefix)]}});
        }
        let setup = ["s3:GetBucketVersioning", "s3:GetBucketObjectLockConfiguration", "s3:GetLifecycleConfiguration"];
        vec![list, allow(&setup, vec![self.bucket_arn()])]
    }

    fn reads(&self, areas: &[&str]) -> Value {
        allow(&["s3:GetObject", "s3:GetObjectVersion", "s3:GetObjectRetention"], self.arns(areas))
    }
}

fn allow(actions: &[&str], resources: Vec<String>) -> Value {
    json!({"Effect": "Allow", "Action": actions, "Resource": resources})
}

fn policy(statements: Vec<Value>) -> Value {
    json!({"Version": "2012-10-17", "Statement": statements})
}

/// A host: writes snapshots of its own sources, extends locks on them, never deletes.
pub fn agent(place: &Place, own: &Own) -> Value {
    let mut all = place.looks();
    all.push(place.reads(&["*"]));
    all.push(allow(&["s3:PutObject"], place.arns(&own.writes())));
    all.push(allow(&["s3:PutObjectRetention"], place.arns(&own.locked())));
    policy(all)
}

/// Who prunes: deletes versions, but never past a lock; writes prune records, and no data.
pub fn keeper(place: &Place) -> Value {
    let mut all = place.looks();
    all.push(place.reads(&["*"]));
    all.push(allow(&["s3:PutObject"], place.arns(&["snapshots/*", "leases/*", "probe/*"])));
    all.push(allow(&["s3:DeleteObject", "s3:DeleteObjectVersion"], place.arns(&["*"])));
    all.push(allow(&["s3:PutObjectRetention"], place.arns(&LOCKED)));
    all.push(allow(&["s3:PutObjectTagging"], place.arns(&["packs/*"])));
    policy(all)
}

/// Who restores, and thaws for that: changes nothing.
pub fn restorer(place: &Place) -> Value {
    let mut all = place.looks();
    all.push(place.reads(&["*"]));
    all.push(allow(&["s3:RestoreObject"], place.arns(&["packs/*"])));
    policy(all)
}

/// Who watches: sees commits, drill reports and how far logs reach; of the data, not even ciphertext but for that of the logs.
pub fn watcher(place: &Place) -> Value {
    let mut all = place.looks();
    let areas = [
        "repository.json",
        "README.txt",
        "recover*.py",
        "trust/*",
        "snapshots/*",
        "wal/*",
        "drills/*",
        "groups/*",
        "index/*",
    ];
    all.push(place.reads(&areas));
    policy(all)
}

/// For the bucket itself: nobody overwrites what is written once, with whatever credential. AWS has evaluated the condition since
/// November 2024; servers that do not know it refuse every write under this policy.
pub fn create_only(place: &Place) -> Value {
    policy(vec![json!({
        "Sid": "BlackstartCreateOnly",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:PutObject",
        "Resource": place.arns(&WRITTEN_ONCE),
        "Condition": {"Null": {"s3:if-none-match": "true"}, "Bool": {"s3:ObjectCreationOperation": "true"}},
    })])
}

/// The lifecycle rule that moves packs marked for `class`.
pub fn lifecycle(place: &Place, class: Class) -> Value {
    // S3 takes nothing younger into STANDARD_IA. For the rest any day will do, but servers differ on 0.
    let days = if class == Class::StandardIa { 30 } else { 1 };
    let slash = if place.prefix.is_empty() { "" } else { "/" };
    json!({
        "ID": format!("blackstart-to-{class}"),
        "Status": "Enabled",
        "Filter": {"And": {"Prefix": format!("{}{slash}packs/", place.prefix), "Tags": [{"Key": CLASS_TAG, "Value": class.name()}]}},
        "Transitions": [{"Days": days, "StorageClass": class.name()}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_writes_only_where_its_own_sources_lie() {
        let place = Place { bucket: "b", prefix: "p" };
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let written = |own: &Own| -> Vec<String> {
            let policy = agent(&place, own);
            let statements = policy["Statement"].as_array().unwrap().iter();
            let writes = statements.filter(|s| s["Action"][0].as_str().unwrap().starts_with("s3:Put"));
            let resources = writes.flat_map(|s| s["Resource"].as_array().unwrap().clone());
            resources.map(|r| r.as_str().unwrap().trim_start_matches("arn:aws:s3:::b/p/").to_owned()).collect()
        };
        let own = Own { sources: names(&["app"]), plans: names(&["plan.all"]), groups: names(&["shop"]) };
        assert_eq!(
            written(&own),
            [
                "packs/app/*",
                "index/app/*",
                "snapshots/app/*",
                "wal/app/*",
                "drills/app/*",
                "leases/app",
                "drills/plan.all/*",
                "groups/shop/*",
                "probe/*",
                "packs/app/*",
                "index/app/*",
                "snapshots/app/*"
            ]
        );
        let any = written(&Own::default());
        assert!(["packs/*", "leases/*", "groups/*"].iter().all(|area| any.contains(&(*area).to_owned())), "{any:?}");
    }
}
