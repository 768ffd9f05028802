//! What `check` says of a bucket: versions, locks, lifecycle rules, against what the tiers need.

use super::policies::{self, Place};
use crate::config::Config;
use crate::operations::Open;
use crate::storage::location::Location;
use crate::storage::{CLASS_TAG, Class, Rule, Setup};
use anyhow::Result;

/// A finding, from the best to the worst.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remark {
    Well(String),
    Warning(String),
    Wrong(String),
}

/// What there is to say; nothing of a directory.
pub fn remarks(config: &Config, open: &Open) -> Result<Vec<Remark>> {
    let Location::S3(options) = Location::parse(&config.location()?)? else { return Ok(Vec::new()) };
    let place = Place { bucket: &options.bucket, prefix: &options.prefix };
    let tiers = || config.source.iter().filter_map(|source| source.tier.as_ref());
    let mut classes: Vec<Class> = tiers().flat_map(|tiers| tiers.classes()).collect();
    classes.sort();
    classes.dedup();
    Ok(judge(&open.store.setup()?, &place, &classes, tiers().any(|tiers| tiers.locks())))
}

fn judge(setup: &Setup, place: &Place, classes: &[Class], locks: bool) -> Vec<Remark> {
    let mut all = vec![match setup.versioning {
        Some(true) => Remark::Well("the bucket keeps versions: what is deleted or overwritten without the right to delete versions comes back".into()),
        Some(false) => Remark::Warning("the bucket keeps no versions: whoever may delete or overwrite in it destroys snapshots. Turn versioning on".into()),
        None => Remark::Warning("this credential may not see whether the bucket keeps versions (s3:GetBucketVersioning)".into()),
    }];
    all.push(match (setup.locks, locks) {
        (Some(true), _) => Remark::Well("the bucket has Object Lock".into()),
        (Some(false), true) => Remark::Wrong("the tiers ask for locks, and the bucket has no Object Lock: backups will fail. It is turned on for the bucket, with versioning".into()),
        (Some(false), false) => Remark::Well("the bucket has no Object Lock, and no tier asks for it".into()),
        (None, _) => Remark::Warning("this credential may not see whether the bucket has Object Lock (s3:GetBucketObjectLockConfiguration)".into()),
    });
    let Some(rules) = &setup.rules else {
        all.push(Remark::Warning(
            "this credential may not see the lifecycle rules of the bucket (s3:GetLifecycleConfiguration)".into(),
        ));
        return all;
    };
    let touches = |rule: &&Rule| place.prefix.starts_with(&rule.prefix) || rule.prefix.starts_with(place.prefix);
    for rule in rules.iter().filter(touches) {
        let name = &rule.id;
        if rule.expires && rule.tag.is_none() {
            all.push(Remark::Wrong(format!("the lifecycle rule {name:?} deletes objects of the repository: it destroys snapshots. Only `prune` may delete")));
        }
        if rule.class.is_some_and(Class::is_archive) && rule.tag.is_none() && !rule.prefix.contains("packs/") {
            all.push(Remark::Wrong(format!("the lifecycle rule {name:?} archives commits and indexes: nothing could be listed or restored. Limit it to packs/")));
        }
        if let Some(days) = rule.old_versions_days {
            all.push(Remark::Well(format!("the lifecycle rule {name:?} deletes old versions after {days} days: so long one can look through what was deleted")));
        }
    }
    for class in classes {
        let wanted = Some((CLASS_TAG.to_owned(), class.name().to_owned()));
        if !rules.iter().any(|rule| rule.tag == wanted && rule.class == Some(*class)) {
            let rule = policies::lifecycle(place, *class);
            all.push(Remark::Warning(format!(
                "no lifecycle rule moves packs to {class}, so they stay where they are. Add this one: {rule}"
            )));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { bucket: "bucket", prefix: "some/where" };

    fn wrong(setup: &Setup, classes: &[Class], locks: bool) -> Vec<String> {
        let text = |remark| if let Remark::Wrong(text) | Remark::Warning(text) = remark { Some(text) } else { None };
        judge(setup, &PLACE, classes, locks).into_iter().filter_map(text).collect()
    }

    #[test]
    fn a_bucket_is_held_against_the_tiers() {
        let rule = |rule: Rule| Setup { versioning: Some(true), locks: Some(true), rules: Some(vec![rule]) };
        let moves = Rule {
            id: "cold".into(),
            prefix: "some/where/packs/".into(),
            tag: Some((CLASS_TAG.into(), "GLACIER".into())),
            class: Some(Class::Glacier),
            ..Rule::default()
        };
        assert_eq!(wrong(&rule(moves.clone()), &[Class::Glacier], true), [] as [&str; 0]);
        assert!(
            wrong(&rule(moves), &[Class::GlacierIr], true)[0].contains("no lifecycle rule moves packs to GLACIER_IR")
        );
        let kills = Rule { id: "old".into(), expires: true, ..Rule::default() };
        assert!(wrong(&rule(kills), &[], false)[0].contains("destroys snapshots"));
        let elsewhere = Rule { prefix: "other/".into(), expires: true, ..Rule::default() };
        assert_eq!(wrong(&rule(elsewhere), &[], false), [] as [&str; 0]);
        let freezes = Rule { prefix: "some/".into(), class: Some(Class::DeepArchive), ..Rule::default() };
        assert!(wrong(&rule(freezes), &[], false)[0].contains("archives commits"));
        let bare = Setup { versioning: Some(false), locks: Some(false), rules: Some(Vec::new()) };
        assert_eq!(wrong(&bare, &[], true).len(), 2);
        assert_eq!(wrong(&Setup::default(), &[], true).len(), 3);
    }
}
