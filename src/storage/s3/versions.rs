//! Versions of a bucket's objects: listing them, reading one, removing one.
//!
//! Servers without versioning answer `ListObjectVersions` in many ways: 501, an empty list, or one version `null` of each object. So
//! the bucket is asked once whether it keeps versions; where it may not be asked, both listings are merged.

use super::{S3, failure, timestamp};
use crate::storage::{Class, Error, Kept, Key, Kind, Result, Storage, VersionId};
use aws_sdk_s3::types::{DeleteMarkerEntry, ObjectVersion};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Whether a bucket keeps versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versioning {
    /// It never did.
    Off,
    /// It does, or did once: then old versions are still there.
    On,
    /// This credential may not ask, or the server does not know the question.
    Unknown,
}

/// For each key its versions, in the order of the listing (newest first), and its markers.
type Rows = BTreeMap<Key, (Vec<Kept>, Vec<Kept>)>;

impl S3 {
    pub(super) async fn versioning(&self) -> Result<Versioning> {
        let ask = || async {
            let request = self.client.get_bucket_versioning().bucket(&self.bucket).send();
            match self.within("list", "versioning", 0, request).await?.map_err(|e| failure("list", "versioning", e)) {
                Ok(found) => Ok(if found.status.is_some() { Versioning::On } else { Versioning::Off }),
                Err(e) if e.kind == Kind::Transient => Err(e),
                // Not allowed, not known, or an answer that is none: listings will tell what there is.
                Err(_) => Ok(Versioning::Unknown),
            }
        };
        self.versioning.get_or_try_init(ask).await.copied()
    }

    pub(super) async fn versions_below(&self, prefix: &str) -> Result<Vec<Kept>> {
        let versioning = self.versioning().await?;
        let mut rows = if versioning == Versioning::Off { Rows::new() } else { self.rows(prefix, versioning).await? };
        if versioning != Versioning::On {
            for object in self.list(prefix).await? {
                rows.entry(object.key.clone()).or_insert_with(|| (vec![Kept::only(object)], Vec::new()));
            }
        }
        Ok(rows.into_values().flat_map(|(versions, markers)| versions.into_iter().rev().chain(markers)).collect())
    }

    async fn rows(&self, prefix: &str, versioning: Versioning) -> Result<Rows> {
        let broken = |why: &'static str| Error::new(Kind::Other, "list", prefix).because(why);
        let (mut rows, mut next) = (Rows::new(), (None::<String>, None::<String>));
        loop {
            let request = self.client.list_object_versions().bucket(&self.bucket);
            let request = request.prefix(format!("{}{prefix}", self.prefix)).max_keys(self.page_size);
            let request = request.set_key_marker(next.0.clone()).set_version_id_marker(next.1.clone()).send();
            let page = match self.within("list", prefix, 0, request).await?.map_err(|e| failure("list", prefix, e)) {
                Ok(page) => page,
                Err(e) if versioning == Versioning::Unknown && matches!(e.kind, Kind::Denied | Kind::Unsupported) => {
                    return Ok(rows);
                }
                Err(e) => return Err(e),
            };
            for row in page.versions.unwrap_or_default() {
                if let Some(kept) = self.version_row(row).map_err(broken)? {
                    rows.entry(kept.key.clone()).or_default().0.push(kept);
                }
            }
            for row in page.delete_markers.unwrap_or_default() {
                if let Some(kept) = self.marker_row(row).map_err(broken)? {
                    rows.entry(kept.key.clone()).or_default().1.push(kept);
                }
            }
            if page.is_truncated != Some(true) {
                return Ok(rows);
            }
            let following = (page.next_key_marker, page.next_version_id_marker);
            if following.0.is_none() || following == next {
                return Err(broken("the server says that more follows, and not where"));
            }
            next = following;
        }
    }

    /// The key below our prefix; `None` for a key that is none of ours.
    fn own_key(&self, name: Option<&str>) -> std::result::Result<Option<Key>, &'static str> {
        let name = name.ok_or("a row without a key")?;
        Ok(name.strip_prefix(&self.prefix).filter(|key| Key::is_valid(key)).map(Key::new))
    }

    fn version_row(&self, row: ObjectVersion) -> std::result::Result<Option<Kept>, &'static str> {
        let Some(key) = self.own_key(row.key.as_deref())? else { return Ok(None) };
        Ok(Some(Kept {
            key,
            id: VersionId(row.version_id.unwrap_or_default()),
            size: row.size.and_then(|n| n.try_into().ok()).ok_or("a row without a size")?,
            modified: row.last_modified.as_ref().and_then(timestamp).ok_or("a row without a time")?,
            class: row.storage_class.map_or(Class::Standard, |class| Class::parse(class.as_str())),
            marker: false,
            current: row.is_latest == Some(true),
        }))
    }

    fn marker_row(&self, row: DeleteMarkerEntry) -> std::result::Result<Option<Kept>, &'static str> {
        let Some(key) = self.own_key(row.key.as_deref())? else { return Ok(None) };
        Ok(Some(Kept {
            key,
            id: VersionId(row.version_id.unwrap_or_default()),
            size: 0,
            modified: row.last_modified.as_ref().and_then(timestamp).ok_or("a row without a time")?,
            class: Class::Standard,
            marker: true,
            current: row.is_latest == Some(true),
        }))
    }

    pub(super) async fn fetch_version(&self, key: &Key, id: &VersionId) -> Result<Bytes> {
        let id = (!id.0.is_empty()).then(|| id.0.clone());
        Ok(self.fetch(key, None, id).await?.1)
    }

    /// Removes `key` in all its versions.
    pub(super) async fn remove_all(&self, key: &Key) -> Result<()> {
        let mut versions = self.versions_below(key.as_str()).await?;
        versions.retain(|kept| kept.key == *key);
        for kept in versions {
            self.remove(key, kept.id).await?;
        }
        Ok(())
    }

    /// Removes one version; on a bucket without versions the object.
    pub(super) async fn remove(&self, key: &Key, id: VersionId) -> Result<()> {
        let id = (!id.0.is_empty()).then_some(id.0);
        let request = self.client.delete_object().bucket(&self.bucket).key(self.object(key)).set_version_id(id).send();
        match self.within("delete", key, 0, request).await?.map_err(|e| failure("delete", key, e)) {
            Err(error) if error.kind != Kind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
