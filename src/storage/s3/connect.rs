//! Where an S3 store is, and the client for it.

use anyhow::Context;
use aws_config::BehaviorVersion;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    Builder, ProvideCredentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use std::fmt;
use std::time::Duration;

use crate::error::{Failure, Kind};

const CONNECT_TIME: Duration = Duration::from_secs(10);
/// A body that has not moved for this long is a dead connection; slow uplinks pause for shorter.
const STALL_TIME: Duration = Duration::from_secs(120);

/// Everything that a connection needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub bucket: String,
    /// Without slashes at either end; empty for the whole bucket.
    pub prefix: String,
    /// For servers other than AWS, such as `http://127.0.0.1:8333`.
    pub endpoint: Option<String>,
    /// `None`: from the usual AWS environment, else `us-east-1`.
    pub region: Option<String>,
    /// `http://endpoint/bucket/key` instead of `http://bucket.endpoint/key`.
    pub path_style: bool,
    /// `None`: from the usual AWS chain (environment, profile, web identity, container, instance).
    pub credentials: Option<Credentials>,
    /// `false` for stores that refuse or ignore `If-None-Match` and `If-Match`: look, then write. Two writers of one key
    /// then overwrite each other, so a source must have one writer (FORMAT.md §3-7).
    pub conditional_writes: bool,
    /// Rows per page of a listing, at most 1000. Smaller only in tests.
    pub page_size: i32,
    /// For one request, bodies not counted; they get a second more for every 16 KiB.
    pub request_time: Duration,
}

impl Options {
    /// The whole of `bucket` on AWS, with everything else as usual.
    pub fn new(bucket: impl Into<String>) -> Options {
        Options {
            bucket: bucket.into(),
            prefix: String::new(),
            endpoint: None,
            region: None,
            path_style: false,
            credentials: None,
            conditional_writes: true,
            page_size: 1000,
            request_time: Duration::from_secs(60),
        }
    }
}

/// A key pair that the configuration names outright.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub access_key: String,
    pub secret_key: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

/// The client, built in a task of its own: the SDK panics where it finds no CA certificates, as in an empty container.
pub async fn client(options: &Options) -> anyhow::Result<Client> {
    tokio::spawn(build(options.clone())).await.context(
        "prepare the connection to S3: most likely this machine has no CA certificates; install ca-certificates, or set \
         SSL_CERT_FILE",
    )?
}

/// Retries are off: `storage::retry` has them, and knows what a repeated write means. Checksums are ours: the SDK's own
/// would be trailers or algorithms that many servers refuse.
async fn build(options: Options) -> anyhow::Result<Client> {
    let mut loader = aws_config::defaults(BehaviorVersion::latest());
    if let Some(region) = &options.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(endpoint) = &options.endpoint {
        loader = loader.endpoint_url(endpoint);
        if endpoint.starts_with("http://") {
            // Without TLS, and so without the system's CA certificates, which may be missing or broken.
            loader = loader.http_client(aws_smithy_http_client::Builder::new().build_http());
        }
    }
    if let Some(Credentials { access_key, secret_key }) = &options.credentials {
        let given = aws_sdk_s3::config::Credentials::new(access_key, secret_key, None, None, "configuration");
        loader = loader.credentials_provider(given);
    }
    let shared = loader.load().await;
    let chain = shared.credentials_provider().context("no source of S3 credentials")?;
    if let Err(error) = chain.provide_credentials().await {
        let help = "Nothing was done. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role.";
        let message = format!("there are no S3 credentials: {:#}", anyhow::Error::new(error));
        return Err(Failure::new(Kind::Failed, message, help));
    }
    let region = shared.region().cloned().unwrap_or_else(|| Region::from_static("us-east-1"));
    let settings = Builder::from(&shared)
        .region(region)
        .force_path_style(options.path_style)
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_TIME).build())
        .stalled_stream_protection(StalledStreamProtectionConfig::enabled().grace_period(STALL_TIME).build())
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    Ok(Client::from_conf(settings.build()))
}
