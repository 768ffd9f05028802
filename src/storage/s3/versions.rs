//! Versions of a bucket's objects: listing them, reading one, removing one.
//!
//! Servers without versioning answer `ListObjectVersions` in many ways: 501, an empty list, or one version `null` of each object. So
//! the bucket is asked once whether it keeps versions; where it may not be asked, both listings are merged.

use super::{S3, failure, timestamp};
use crate::storage::{Class, Error, Kept, Key, Kind, Object, Page, Result, Storage, VersionId};
use aws_sdk_s3::types::{self, DeleteMarkerEntry, ObjectVersion};
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

/// Behind which version of which key a page begins.
#[derive(Default, PartialEq)]
struct Marker {
    key: Option<String>,
    version: Option<String>,
}

/// By key, the oldest version first, then the markers.
fn in_order(rows: Rows) -> Vec<Kept> {
    rows.into_values().flat_map(|(versions, markers)| versions.into_iter().rev().chain(markers)).collect()
}

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
        Ok(in_order(rows))
    }

    /// See [`Storage::list_page`].
    pub(super) async fn page_below(&self, prefix: &str, after: &str, most: usize) -> Result<Page> {
        let versioning = self.versioning().await?;
        let (mut rows, mut ends) = (Rows::new(), Vec::new());
        if versioning != Versioning::Off {
            let mut next = Some(Marker { key: Some(format!("{}{after}", self.prefix)), version: None });
            // The versions of the last key may go on behind the page: it counts where another key, or nothing, follows.
            while let Some(from) = next.take_if(|_| rows.len() < 2) {
                let most = i32::try_from(most + 1).unwrap_or(i32::MAX).min(self.page_size.max(2));
                next = self.add_rows((prefix, versioning), from, most, &mut rows).await?;
            }
            if next.is_some() || rows.len() > most {
                let whole = rows.len() - usize::from(next.is_some());
                while rows.len() > whole.min(most) {
                    rows.pop_last();
                }
                ends.extend(rows.last_key_value().map(|(key, _)| key.to_string()));
            }
        }
        if versioning != Versioning::On {
            let (objects, next) = self.objects_after(prefix, after, most).await?;
            ends.extend(next);
            for object in objects {
                rows.entry(object.key.clone()).or_insert_with(|| (vec![Kept::only(object)], Vec::new()));
            }
        }
        // Where one of two listings has more, nothing is known of what comes behind its end.
        let next = ends.into_iter().min();
        rows.retain(|key, _| key.as_str() > after && next.as_ref().is_none_or(|end| key.as_str() <= end.as_str()));
        Ok(Page { rows: in_order(rows), next })
    }

    /// One page of the plain listing, and behind what the next one begins.
    async fn objects_after(&self, prefix: &str, after: &str, most: usize) -> Result<(Vec<Object>, Option<String>)> {
        let broken = |why: &'static str| Error::new(Kind::Other, "list", prefix).because(why);
        let most = i32::try_from(most).unwrap_or(i32::MAX).min(self.page_size);
        let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(format!("{}{prefix}", self.prefix));
        let request = request.start_after(format!("{}{after}", self.prefix)).max_keys(most).send();
        let page = self.within("list", prefix, 0, request).await?.map_err(|e| failure("list", prefix, e))?;
        let (mut objects, mut last) = (Vec::new(), None);
        for row in page.contents.unwrap_or_default() {
            last = last.max(row.key.as_deref().and_then(|name| name.strip_prefix(&self.prefix)).map(str::to_owned));
            objects.extend(self.object_row(prefix, row)?);
        }
        let next = match page.is_truncated {
            Some(true) => Some(last.ok_or_else(|| broken("the server says that more follows, and not where"))?),
            _ => None,
        };
        Ok((objects, next))
    }

    async fn rows(&self, prefix: &str, versioning: Versioning) -> Result<Rows> {
        let (mut rows, mut next) = (Rows::new(), Some(Marker::default()));
        while let Some(from) = next {
            next = self.add_rows((prefix, versioning), from, self.page_size, &mut rows).await?;
        }
        Ok(rows)
    }

    /// Adds a page of at most `most` rows behind `from`; gives where the next one begins.
    async fn add_rows(
        &self,
        (prefix, versioning): (&str, Versioning),
        from: Marker,
        most: i32,
        rows: &mut Rows,
    ) -> Result<Option<Marker>> {
        let broken = |why: &'static str| Error::new(Kind::Other, "list", prefix).because(why);
        let request = self.client.list_object_versions().bucket(&self.bucket);
        let request = request.prefix(format!("{}{prefix}", self.prefix)).max_keys(most);
        let request = request.set_key_marker(from.key.clone()).set_version_id_marker(from.version.clone()).send();
        let page = match self.within("list", prefix, 0, request).await?.map_err(|e| failure("list", prefix, e)) {
            Ok(page) => page,
            Err(e) if versioning == Versioning::Unknown && matches!(e.kind, Kind::Denied | Kind::Unsupported) => {
                return Ok(None);
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
            return Ok(None);
        }
        let following = Marker { key: page.next_key_marker, version: page.next_version_id_marker };
        if following.key.is_none() || following == from {
            return Err(broken("the server says that more follows, and not where"));
        }
        Ok(Some(following))
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

    /// `None` for a key that is none of ours.
    pub(super) fn object_row(&self, prefix: &str, row: types::Object) -> Result<Option<Object>> {
        let broken = |why: &'static str| Error::new(Kind::Other, "list", prefix).because(why);
        let Some(key) = self.own_key(row.key.as_deref()).map_err(broken)? else { return Ok(None) };
        let size = row.size.and_then(|n| n.try_into().ok()).ok_or_else(|| broken("a row without a size"))?;
        let modified = row.last_modified.as_ref().and_then(timestamp).ok_or_else(|| broken("a row without a time"))?;
        Ok(Some(Object { key, size, modified }))
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
