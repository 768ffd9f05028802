//! Names of places: what people write for a repository, and the store that it opens.

use super::local::Local;
use super::retry::{Patience, Retry};
use super::s3::{Options, S3};
use super::{Key, Storage};
use crate::bridge::Store;
use crate::error::{Failure, Kind};
use std::path::PathBuf;
use std::sync::Arc;

/// Where a store is, parsed and not yet opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    Directory(PathBuf),
    S3(Options),
}

impl Location {
    /// Understands a path, `file:///path`, and `s3://bucket/prefix?endpoint=http://host:port&region=…&path_style=true`.
    /// Further parameters: `conditional=false` (see [`Options::conditional_writes`]) and `page_size`. An endpoint implies
    /// `path_style=true`. Values are written as they are, without percent signs. Fails as `Kind::Config`.
    pub fn parse(text: &str) -> anyhow::Result<Location> {
        if let Some(rest) = text.strip_prefix("s3://") {
            return parse_s3(rest).map(Location::S3).map_err(|why| bad(text, &why));
        }
        let path = text.strip_prefix("file://").unwrap_or(text);
        if path.is_empty() || path.contains("://") {
            return Err(bad(text, "it is neither a path nor begins with file:// or s3://"));
        }
        if text.starts_with("file://") && !path.starts_with('/') {
            return Err(bad(text, "file:// takes an absolute path, with three slashes"));
        }
        Ok(Location::Directory(path.into()))
    }

    /// The store at this place, without retries: for `probe`, and for those who add their own.
    pub async fn connect(&self) -> anyhow::Result<Arc<dyn Storage>> {
        Ok(match self {
            Location::Directory(path) => Arc::new(Local::new(path)),
            Location::S3(options) => Arc::new(S3::connect(options.clone()).await?),
        })
    }

    /// The store at this place, with retries. Must run inside the io runtime, see [`Store::open`].
    pub async fn open(&self) -> anyhow::Result<Arc<dyn Storage>> {
        Ok(Arc::new(Retry::new(self.connect().await?, Patience::default())))
    }
}

/// `text` with the endpoint and the region that it leaves to this machine's environment: what is written down for another machine must not.
/// `variable` reads the environment.
pub fn in_full(text: &str, variable: impl Fn(&str) -> Option<String>) -> String {
    let Ok(Location::S3(options)) = Location::parse(text) else { return text.to_owned() };
    let first = |names: [&str; 2]| names.into_iter().find_map(|name| variable(name).filter(|value| !value.is_empty()));
    let endpoint = first(["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]).filter(|_| options.endpoint.is_none());
    let region = first(["AWS_REGION", "AWS_DEFAULT_REGION"]).filter(|_| options.region.is_none());
    let mut full = text.to_owned();
    let mut add = |name: &str, value: &str| {
        full.push(if full.contains('?') { '&' } else { '?' });
        full.push_str(&format!("{name}={value}"));
    };
    if let Some(endpoint) = &endpoint {
        add("endpoint", endpoint);
        // An endpoint in the name would imply the other style than one in the environment.
        if !text.contains("path_style=") {
            add("path_style", "false");
        }
    }
    if let Some(region) = &region {
        add("region", region);
    }
    full
}

impl Store {
    /// Opens a location (see [`Location::parse`]) with retries. Nothing is written; an empty place is no error. The bridge itself knows no kind of
    /// store.
    pub fn open(location: &str) -> anyhow::Result<Store> {
        let location = Location::parse(location)?;
        Store::start(async move { location.open().await })
    }
}

fn parse_s3(text: &str) -> Result<Options, String> {
    let (place, parameters) = text.split_once('?').unwrap_or((text, ""));
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    let prefix = prefix.trim_end_matches('/');
    if bucket.len() < 3 || !Key::is_valid(bucket) {
        return Err(format!("{bucket:?} is not the name of a bucket"));
    }
    if !prefix.is_empty() && !Key::is_valid(prefix) {
        return Err(format!("the prefix {prefix:?} may hold letters, digits, '.', '_', '-' and single slashes only"));
    }
    let mut options = Options { prefix: prefix.into(), ..Options::new(bucket) };
    let mut path_style = None;
    for parameter in parameters.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match name {
            "endpoint" if value.starts_with("http://") || value.starts_with("https://") => {
                options.endpoint = Some(value.into());
            }
            "endpoint" => return Err("endpoint begins with http:// or https://".into()),
            "region" => options.region = Some(value.into()),
            "path_style" => path_style = Some(boolean(name, value)?),
            "conditional" => options.conditional_writes = boolean(name, value)?,
            "page_size" => match value.parse() {
                Ok(rows @ 1..=1000) => options.page_size = rows,
                _ => return Err("page_size is a number from 1 to 1000".into()),
            },
            _ => return Err(format!("there is no parameter {name:?}; known are {KNOWN}")),
        }
    }
    options.path_style = path_style.unwrap_or(options.endpoint.is_some());
    Ok(options)
}

const KNOWN: &str = "endpoint, region, path_style, conditional, page_size";

fn boolean(name: &str, value: &str) -> Result<bool, String> {
    value.parse().map_err(|_| format!("{name} is true or false, not {value:?}"))
}

fn bad(text: &str, why: &str) -> anyhow::Error {
    Failure::new(
        Kind::Config,
        format!("the repository's address {text:?} is wrong: {why}"),
        "Nothing was read or written. Write a directory, or s3://bucket/prefix?endpoint=https://host&region=name.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3(text: &str) -> Options {
        match Location::parse(text) {
            Ok(Location::S3(options)) => options,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(Location::parse("/var/backup").unwrap(), Location::Directory("/var/backup".into()));
        assert_eq!(Location::parse("file:///var/backup").unwrap(), Location::Directory("/var/backup".into()));
        let aws = s3("s3://bucket/some/prefix/");
        assert_eq!((aws.prefix.as_str(), aws.path_style, aws.conditional_writes), ("some/prefix", false, true));
        let own = s3("s3://bucket?endpoint=http://127.0.0.1:8333&region=eu-1&conditional=false&page_size=10");
        assert_eq!(own.endpoint.as_deref(), Some("http://127.0.0.1:8333"));
        assert_eq!((own.region.as_deref(), own.path_style), (Some("eu-1"), true));
        assert_eq!((own.conditional_writes, own.page_size, own.prefix.as_str()), (false, 10, ""));
        for wrong in [
            "",
            "http://host/x",
            "file://relative",
            "s3://",
            "s3://bucket/a//b",
            "s3://bucket/../b",
            "s3://bucket?endpont=http://x",
            "s3://bucket?path_style=maybe",
            "s3://bucket?page_size=0",
        ] {
            let error = Location::parse(wrong).unwrap_err();
            assert_eq!(crate::error::kind_of(&error), Kind::Config, "{wrong}");
        }
    }

    #[test]
    fn what_the_environment_says_is_written_down_where_the_name_does_not() {
        let set = |name: &str| match name {
            "AWS_ENDPOINT_URL" => Some("http://127.0.0.1:9".to_owned()),
            "AWS_DEFAULT_REGION" => Some("eu-1".to_owned()),
            "AWS_REGION" => Some(String::new()),
            _ => None,
        };
        let full = in_full("s3://bucket/a", set);
        assert_eq!(full, "s3://bucket/a?endpoint=http://127.0.0.1:9&path_style=false&region=eu-1");
        assert_eq!(in_full(&full, |_| Some("x".into())), full, "the name goes first");
        assert_eq!(in_full("s3://bucket?page_size=5", |_| None), "s3://bucket?page_size=5");
        assert_eq!(in_full("/mnt/backups", set), "/mnt/backups");
    }
}
