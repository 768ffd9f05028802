//! S3 and everything that speaks it. Bodies lie in memory, so that requests carry plain headers that every server
//! understands; the SHA-256 of the body is both its checksum on the wire and its integrity, so the payload is not signed again.

use super::bounds::{check_range, check_replaced, check_size};
use super::{
    Class, Details, Error, Haste, Kept, Key, Kind, Lock, Object, Page, Result, Setup, Storage, Terms, Version,
    VersionId,
};
use crate::limits::OBJECT_MAX;
use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::time::Duration;
use tokio::sync::OnceCell;

mod connect;
mod errors;
mod terms;
mod versions;

pub use connect::{Credentials, Options};
use errors::failure;
use versions::Versioning;

/// Bytes per second: below this a transfer is given up and tried again.
const SLOWEST: u64 = 16 << 10;

pub struct S3 {
    client: Client,
    bucket: String,
    /// Empty, or ending in `/`.
    prefix: String,
    page_size: i32,
    request_time: Duration,
    conditional_writes: bool,
    versioning: OnceCell<Versioning>,
}

impl S3 {
    /// Connects; fails where no credentials can be found. Sends nothing to the store yet.
    pub async fn connect(options: Options) -> anyhow::Result<S3> {
        Ok(S3 {
            client: connect::client(&options).await?,
            prefix: if options.prefix.is_empty() { String::new() } else { format!("{}/", options.prefix) },
            bucket: options.bucket,
            page_size: options.page_size,
            request_time: options.request_time,
            conditional_writes: options.conditional_writes,
            versioning: OnceCell::new(),
        })
    }

    /// Bounds a request in time: a server that accepts and then says nothing must not hold a backup for ever. A body of
    /// `bytes` gets the time that the slowest line needs.
    async fn within<T>(
        &self,
        operation: &'static str,
        key: impl fmt::Display,
        bytes: u64,
        request: impl Future<Output = T>,
    ) -> Result<T> {
        let limit = self.request_time + Duration::from_secs(bytes / SLOWEST);
        tokio::time::timeout(limit, request).await.map_err(|_| {
            let cause = format!("no complete answer within {} s", limit.as_secs_f32());
            Error::new(Kind::Transient, operation, key).because(cause)
        })
    }

    fn object(&self, key: &Key) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The current version, or `None` where there is no such object.
    async fn head(&self, operation: &'static str, key: &Key) -> Result<Option<(u64, Version)>> {
        let request = self.client.head_object().bucket(&self.bucket).key(self.object(key)).send();
        match self.within(operation, key, 0, request).await?.map_err(|e| failure(operation, key, e)) {
            Ok(found) => {
                Ok(Some((found.content_length.and_then(|n| n.try_into().ok()).unwrap_or(0), version(found.e_tag))))
            }
            Err(error) if error.kind == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn put(
        &self,
        operation: &'static str,
        key: &Key,
        body: Bytes,
        conditions: Conditions<'_>,
    ) -> Result<Version> {
        let bytes = body.len() as u64;
        let request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.object(key))
            .checksum_sha256(STANDARD.encode(conditions.sha256))
            .set_if_none_match(conditions.if_none_match)
            .set_if_match(conditions.if_match)
            .set_storage_class(terms::class(conditions.on.class))
            .set_object_lock_mode(conditions.on.lock.map(|lock| terms::mode(lock.mode)))
            .set_object_lock_retain_until_date(conditions.on.lock.map(|lock| terms::date(lock.until)))
            .content_length(bytes as i64)
            .body(ByteStream::from(body))
            .customize()
            .disable_payload_signing()
            .send();
        let stored = self.within(operation, key, bytes, request).await?.map_err(|e| failure(operation, key, e))?;
        Ok(version(stored.e_tag))
    }

    async fn fetch(&self, key: &Key, range: Option<String>, id: Option<String>) -> Result<(GetObjectOutput, Bytes)> {
        let request = self.client.get_object().bucket(&self.bucket).key(self.object(key));
        let request = request.set_range(range).set_version_id(id).send();
        let mut found = self.within("get", key, 0, request).await?.map_err(|e| failure("get", key, e))?;
        // A server that announces no length marks the end of the body otherwise, and the HTTP client checks that.
        let announced = found.content_length.and_then(|n| usize::try_from(n).ok());
        let most = announced.unwrap_or(OBJECT_MAX);
        check_size("get", key, most as u64)?;
        let mut stream = std::mem::take(&mut found.body);
        let mut body = BytesMut::with_capacity(announced.unwrap_or(0));
        let receive = async {
            while let Some(piece) = stream.try_next().await? {
                body.extend_from_slice(&piece);
                if body.len() > most {
                    break;
                }
            }
            Ok::<_, aws_sdk_s3::primitives::ByteStreamError>(())
        };
        let received = self.within("get", key, most as u64, receive).await?;
        received.map_err(|e| Error::new(Kind::Transient, "get", key).because(e))?;
        if body.len() > most || announced.is_some_and(|bytes| bytes != body.len()) {
            let cause = format!("{} bytes arrived, {most} were announced or allowed", body.len());
            return Err(Error::new(Kind::Transient, "get", key).because(cause));
        }
        Ok((found, body.freeze()))
    }
}

/// The conditions and the checksum of one PUT.
struct Conditions<'a> {
    sha256: &'a [u8; 32],
    if_none_match: Option<String>,
    if_match: Option<String>,
    on: Terms,
}

#[async_trait]
impl Storage for S3 {
    fn place(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.prefix.trim_end_matches('/'))
    }

    async fn get(&self, key: &Key) -> Result<(Bytes, Version)> {
        let (found, body) = self.fetch(key, None, None).await?;
        Ok((body, version(found.e_tag)))
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        let length = check_range(key, &range)?;
        if length == 0 {
            // HTTP has no way to ask for nothing.
            let (size, _) = self.head("get", key).await?.ok_or_else(|| Error::new(Kind::NotFound, "get", key))?;
            return if range.end <= size { Ok(Bytes::new()) } else { Err(Error::new(Kind::Truncated, "get", key)) };
        }
        let (found, mut body) = self.fetch(key, Some(format!("bytes={}-{}", range.start, range.end - 1)), None).await?;
        if found.content_range.is_none() {
            // The server knows no ranges and sent everything.
            body = body.slice((range.start as usize).min(body.len())..(range.end as usize).min(body.len()));
        }
        if body.len() == length { Ok(body) } else { Err(Error::new(Kind::Truncated, "get", key)) }
    }

    async fn create(&self, key: &Key, body: Bytes, sha256: &[u8; 32]) -> Result<Version> {
        self.create_on(key, body, sha256, Terms::default()).await
    }

    async fn create_on(&self, key: &Key, body: Bytes, sha256: &[u8; 32], on: Terms) -> Result<Version> {
        check_size("create", key, body.len() as u64)?;
        if !self.conditional_writes && self.head("create", key).await?.is_some() {
            return Err(Error::new(Kind::AlreadyExists, "create", key));
        }
        let if_none_match = self.conditional_writes.then(|| "*".to_owned());
        self.put("create", key, body, Conditions { sha256, if_none_match, if_match: None, on }).await
    }

    async fn replace(&self, key: &Key, seen: &Version, body: Bytes) -> Result<Version> {
        check_replaced(key, body.len())?;
        if !self.conditional_writes && self.head("replace", key).await?.is_none_or(|(_, current)| current != *seen) {
            return Err(Error::new(Kind::Conflict, "replace", key));
        }
        let sha256 = Sha256::digest(&body).into();
        let if_match = self.conditional_writes.then(|| seen.0.clone());
        let conditions = Conditions { sha256: &sha256, if_none_match: None, if_match, on: Terms::default() };
        let written = self.put("replace", key, body, conditions).await;
        written.map_err(|error| match error.kind {
            // AWS answers 404 to `If-Match` on a missing key.
            Kind::NotFound => Error { kind: Kind::Conflict, ..error },
            _ => error,
        })
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        let broken = |why: &'static str| Error::new(Kind::Other, "list", prefix).because(why);
        let (mut objects, mut token) = (Vec::new(), None::<String>);
        loop {
            let request = self.client.list_objects_v2().bucket(&self.bucket);
            let request = request.prefix(format!("{}{prefix}", self.prefix)).max_keys(self.page_size);
            let request = request.set_continuation_token(token.clone()).send();
            let page = self.within("list", prefix, 0, request).await?.map_err(|e| failure("list", prefix, e))?;
            for row in page.contents.unwrap_or_default() {
                objects.extend(self.object_row(prefix, row)?);
            }
            if page.is_truncated != Some(true) {
                break;
            }
            if page.next_continuation_token.is_none() || page.next_continuation_token == token {
                return Err(broken("the server says that more follows, and not where"));
            }
            token = page.next_continuation_token;
        }
        // Servers that keep keys in directories list them in that order.
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }

    async fn describe(&self, key: &Key, id: &VersionId) -> Result<Details> {
        self.details(key, id).await
    }

    async fn lock(&self, key: &Key, id: &VersionId, lock: Lock) -> Result<()> {
        self.retain(key, id, lock).await
    }

    async fn mark(&self, key: &Key, class: Class) -> Result<()> {
        self.tag(key, class).await
    }

    async fn thaw(&self, key: &Key, days: u32, haste: Haste) -> Result<()> {
        self.restore_object(key, days, haste).await
    }

    async fn setup(&self) -> Result<Setup> {
        self.bucket_setup().await
    }

    async fn list_versions(&self, prefix: &str) -> Result<Vec<Kept>> {
        self.versions_below(prefix).await
    }

    async fn list_page(&self, prefix: &str, after: &str, most: usize) -> Result<Page> {
        self.page_below(prefix, after, most).await
    }

    async fn get_version(&self, key: &Key, id: &VersionId) -> Result<Bytes> {
        self.fetch_version(key, id).await
    }

    async fn delete_version(&self, key: &Key, id: &VersionId) -> Result<()> {
        self.remove(key, id.clone()).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.remove_all(key).await
    }
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("S3").field(&self.place()).finish()
    }
}

/// A store that gives no ETag gets a version that matches nothing: `replace` then conflicts, which is safe.
fn version(e_tag: Option<String>) -> Version {
    Version(e_tag.unwrap_or_default())
}

fn timestamp(time: &DateTime) -> Option<Timestamp> {
    Timestamp::new(time.secs(), i32::try_from(time.subsec_nanos()).ok()?).ok()
}
