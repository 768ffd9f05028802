//! Storage classes, locks, archives and the setup of a bucket.

use super::versions::Versioning;
use super::{S3, failure, timestamp};
use crate::storage::{
    CLASS_TAG, Class, Details, Error, Haste, Ice, Key, Kind, Lock, LockMode, Result, Rule, Setup, VersionId,
};
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{
    ExpirationStatus, GlacierJobParameters, LifecycleRule, ObjectLockMode, ObjectLockRetention,
    ObjectLockRetentionMode, RestoreRequest, StorageClass, Tag, Tagging, Tier,
};
use jiff::Timestamp;

/// `None` for the class that every server has anyway.
pub fn class(class: Class) -> Option<StorageClass> {
    (class != Class::Standard).then(|| StorageClass::from(class.name()))
}

pub fn mode(mode: LockMode) -> ObjectLockMode {
    match mode {
        LockMode::Governance => ObjectLockMode::Governance,
        LockMode::Compliance => ObjectLockMode::Compliance,
    }
}

pub fn date(at: Timestamp) -> DateTime {
    DateTime::from_secs(at.as_second())
}

/// The lock as a HEAD tells it.
fn lock(found: &HeadObjectOutput) -> Option<Lock> {
    let until = timestamp(found.object_lock_retain_until_date.as_ref()?)?;
    let compliance = found.object_lock_mode == Some(ObjectLockMode::Compliance);
    Some(Lock { mode: if compliance { LockMode::Compliance } else { LockMode::Governance }, until })
}

/// `x-amz-restore`: `ongoing-request="true"`, or `"false"` with the day on which the copy goes.
fn ice(class: Class, restore: Option<&str>) -> Ice {
    match restore {
        _ if !class.is_archive() => Ice::None,
        Some(state) if state.contains("ongoing-request=\"true\"") => Ice::Thawing,
        Some(_) => Ice::Thawed,
        None => Ice::Frozen,
    }
}

fn rule(rule: &LifecycleRule) -> Rule {
    let filter = rule.filter.as_ref();
    let and = filter.and_then(|f| f.and.as_ref());
    let tag = filter.and_then(|f| f.tag.as_ref()).or_else(|| and?.tags.as_ref()?.first());
    let prefix = filter.and_then(|f| f.prefix.as_ref()).or_else(|| and?.prefix.as_ref());
    let moves = rule.transitions.as_ref().and_then(|all| all.first()?.storage_class.as_ref());
    let old = rule.noncurrent_version_expiration.as_ref();
    Rule {
        id: rule.id.clone().unwrap_or_default(),
        prefix: prefix.cloned().unwrap_or_default(),
        tag: tag.map(|tag| (tag.key.clone(), tag.value.clone())),
        class: moves.map(|class| Class::parse(class.as_str())),
        expires: rule.expiration.as_ref().is_some_and(|e| e.days.is_some() || e.date.is_some()),
        old_versions_days: old.map(|old| old.noncurrent_days.unwrap_or(0)),
    }
}

impl S3 {
    pub(super) async fn details(&self, key: &Key, id: &VersionId) -> Result<Details> {
        let id = (!id.0.is_empty()).then(|| id.0.clone());
        let request = self.client.head_object().bucket(&self.bucket).key(self.object(key)).set_version_id(id).send();
        let found = self.within("describe", key, 0, request).await?.map_err(|e| failure("describe", key, e))?;
        let class = found.storage_class.as_ref().map_or(Class::Standard, |class| Class::parse(class.as_str()));
        let size = found.content_length.and_then(|n| n.try_into().ok()).unwrap_or(0);
        Ok(Details { size, class, lock: lock(&found), ice: ice(class, found.restore.as_deref()) })
    }

    pub(super) async fn retain(&self, key: &Key, id: &VersionId, lock: Lock) -> Result<()> {
        let mode = match lock.mode {
            LockMode::Governance => ObjectLockRetentionMode::Governance,
            LockMode::Compliance => ObjectLockRetentionMode::Compliance,
        };
        let retention = ObjectLockRetention::builder().mode(mode).retain_until_date(date(lock.until)).build();
        let request = self.client.put_object_retention().bucket(&self.bucket).key(self.object(key));
        let id = (!id.0.is_empty()).then(|| id.0.clone());
        let request = request.set_version_id(id).retention(retention).send();
        self.within("lock", key, 0, request).await?.map_err(|e| failure("lock", key, e))?;
        Ok(())
    }

    pub(super) async fn tag(&self, key: &Key, class: Class) -> Result<()> {
        let broken = |e| Error::new(Kind::Other, "mark", key).because(e);
        let tag = Tag::builder().key(CLASS_TAG).value(class.name()).build().map_err(broken)?;
        let tags = Tagging::builder().tag_set(tag).build().map_err(broken)?;
        let request = self.client.put_object_tagging().bucket(&self.bucket).key(self.object(key)).tagging(tags).send();
        self.within("mark", key, 0, request).await?.map_err(|e| failure("mark", key, e))?;
        Ok(())
    }

    pub(super) async fn restore_object(&self, key: &Key, days: u32, haste: Haste) -> Result<()> {
        let tier = match haste {
            Haste::Bulk => Tier::Bulk,
            Haste::Standard => Tier::Standard,
            Haste::Expedited => Tier::Expedited,
        };
        let broken = |e| Error::new(Kind::Other, "thaw", key).because(e);
        let job = GlacierJobParameters::builder().tier(tier).build().map_err(broken)?;
        let days = i32::try_from(days).unwrap_or(i32::MAX);
        let wanted = RestoreRequest::builder().days(days).glacier_job_parameters(job).build();
        let request = self.client.restore_object().bucket(&self.bucket).key(self.object(key));
        let request = request.restore_request(wanted).send();
        match self.within("thaw", key, 0, request).await? {
            // 409: it was asked for already.
            Err(e) if e.raw_response().is_some_and(|r| r.status().as_u16() == 409) => Ok(()),
            Err(e) => Err(failure("thaw", key, e)),
            Ok(_) => Ok(()),
        }
    }

    pub(super) async fn bucket_setup(&self) -> Result<Setup> {
        let versioning = match self.versioning().await? {
            Versioning::Off => Some(false),
            Versioning::On => Some(true),
            Versioning::Unknown => None,
        };
        let request = self.client.get_object_lock_configuration().bucket(&self.bucket).send();
        let locks = match self.within("setup", "locks", 0, request).await?.map_err(|e| failure("setup", "locks", e)) {
            Ok(found) => Some(found.object_lock_configuration.is_some()),
            Err(e) if e.kind == Kind::NotFound => Some(false),
            Err(e) if matches!(e.kind, Kind::Denied | Kind::Unsupported) => None,
            Err(e) => return Err(e),
        };
        let request = self.client.get_bucket_lifecycle_configuration().bucket(&self.bucket).send();
        let rules = match self.within("setup", "rules", 0, request).await?.map_err(|e| failure("setup", "rules", e)) {
            Ok(found) => {
                let all = found.rules.unwrap_or_default();
                Some(all.iter().filter(|r| r.status == ExpirationStatus::Enabled).map(rule).collect())
            }
            Err(e) if e.kind == Kind::NotFound => Some(Vec::new()),
            Err(e) if matches!(e.kind, Kind::Denied | Kind::Unsupported) => None,
            Err(e) => return Err(e),
        };
        Ok(Setup { versioning, locks, rules })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ice_as_s3_tells_it() {
        let ended = r#"ongoing-request="false", expiry-date="Fri, 21 Dec 2012 00:00:00 GMT""#;
        assert_eq!(ice(Class::Glacier, None), Ice::Frozen);
        assert_eq!(ice(Class::Glacier, Some(r#"ongoing-request="true""#)), Ice::Thawing);
        assert_eq!(ice(Class::DeepArchive, Some(ended)), Ice::Thawed);
        assert_eq!(ice(Class::GlacierIr, None), Ice::None);
    }
}
