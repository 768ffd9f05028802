//! `[[notify]]` in `blackstart.toml`: where notices go. Exactly one of the kinds in each.

use anyhow::Result;
use jiff::SignedDuration;
use serde::Deserialize;
use std::path::PathBuf;

use super::Severity;
use crate::error::{Failure, Kind};
use crate::repository::layout::SourceName;
use crate::secret::{Secret, Text};
use crate::time::Window;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Channel {
    pub name: String,
    /// What is less severe does not go here.
    #[serde(default)]
    pub severity: Severity,
    /// Only about these; empty: about all.
    #[serde(default)]
    pub sources: Vec<SourceName>,
    /// Whether it is told when a problem is over.
    #[serde(default = "yes")]
    pub recovered: bool,
    /// When nothing but what is critical goes here; the rest waits for the end.
    #[serde(default)]
    pub quiet: Vec<Window>,
    pub slack: Option<Slack>,
    pub email: Option<Email>,
    pub pagerduty: Option<PagerDuty>,
    pub webhook: Option<Webhook>,
    pub ping: Option<Ping>,
    pub command: Option<Command>,
}

fn yes() -> bool {
    true
}

/// An incoming webhook of Slack, or of what understands the same (`{"text": …}`).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slack {
    pub url: Text,
    /// PEM certificates to trust instead of the system's.
    pub ca: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Email {
    pub server: String,
    pub port: Option<u16>,
    #[serde(default)]
    pub tls: Tls,
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub from: String,
    pub to: Vec<String>,
    pub ca: Option<PathBuf>,
}

/// How a mail leaves the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tls {
    /// Port 587.
    #[default]
    Starttls,
    /// From the first byte; port 465.
    Implicit,
    /// To a server on this machine only; port 25.
    None,
}

/// PagerDuty's Events API v2.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PagerDuty {
    pub routing_key: Secret,
    pub url: Option<String>,
    pub ca: Option<PathBuf>,
}

/// The notice as JSON, by POST.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    pub url: Text,
    /// Sent as `Authorization: Bearer …`.
    pub token: Option<Secret>,
    pub ca: Option<PathBuf>,
}

/// Pings as healthchecks.io takes them: `/start`, nothing, `/fail`. Silence is what it tells of.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ping {
    /// For each backup run.
    pub backup: Option<Text>,
    /// For each drill.
    pub drill: Option<Text>,
    /// For each look of `watch --notify`: who watches the watcher.
    pub watch: Option<Text>,
    pub ca: Option<PathBuf>,
}

/// A program that gets the notice as JSON on its stdin.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    pub argv: Vec<String>,
    /// How long it may take.
    #[serde(default, deserialize_with = "crate::time::optional_length")]
    pub timeout: Option<SignedDuration>,
}

impl Channel {
    /// The kind of channel, if it takes notices: pings are no notices.
    pub fn kind(&self) -> Option<&'static str> {
        let kinds = [
            (self.slack.is_some(), "slack"),
            (self.email.is_some(), "email"),
            (self.pagerduty.is_some(), "pagerduty"),
            (self.webhook.is_some(), "webhook"),
            (self.command.is_some(), "command"),
        ];
        kinds.into_iter().find_map(|(is, name)| is.then_some(name))
    }

    /// That exactly one kind is given, and that nothing leaves the host in the clear. Fails with `Kind::Config`.
    pub fn validate(&self) -> Result<()> {
        let given = [
            self.slack.is_some(),
            self.email.is_some(),
            self.pagerduty.is_some(),
            self.webhook.is_some(),
            self.ping.is_some(),
            self.command.is_some(),
        ];
        let wrong = |what: String| {
            Err(Failure::new(
                Kind::Config,
                format!("notify {:?} {what}", self.name),
                "Nothing was done. `blackstart notify --test` tries the channels out.",
            ))
        };
        if given.into_iter().filter(|is| *is).count() != 1 {
            return wrong("needs exactly one of slack, email, pagerduty, webhook, ping and command".into());
        }
        let ping = self.ping.as_ref();
        if ping.is_some_and(|ping| ping.backup.is_none() && ping.drill.is_none() && ping.watch.is_none()) {
            return wrong("pings nothing: give `backup`, `drill` or `watch`, an address each".into());
        }
        let urls = [
            self.slack.as_ref().map(|s| &s.url),
            self.webhook.as_ref().map(|w| &w.url),
            ping.and_then(|p| p.backup.as_ref()),
            ping.and_then(|p| p.drill.as_ref()),
            ping.and_then(|p| p.watch.as_ref()),
        ];
        for url in urls.into_iter().flatten() {
            if let Text::Plain(url) = url {
                check_url(url).or_else(|what| wrong(what.into()))?;
            }
        }
        if let Some(url) = self.pagerduty.as_ref().and_then(|p| p.url.as_ref()) {
            check_url(url).or_else(|what| wrong(what.into()))?;
        }
        match &self.email {
            Some(email) if email.to.is_empty() => wrong("has nobody to write to".into()),
            Some(email) if email.tls == Tls::None && !is_loopback(&email.server) => wrong(format!(
                "would send mail to {} in the clear: tls = \"none\" is for this machine only",
                email.server
            )),
            Some(email) if email.user.is_some() != email.password.is_some() => {
                wrong("needs both user and password, or neither".into())
            }
            _ if self.command.as_ref().is_some_and(|c| c.argv.is_empty()) => wrong("names no program".into()),
            _ => Ok(()),
        }
    }
}

/// Each for itself, and that no two have one name. Fails with `Kind::Config`.
pub fn validate(channels: &[Channel]) -> Result<()> {
    for (i, channel) in channels.iter().enumerate() {
        if channels[..i].iter().any(|c| c.name == channel.name) {
            let help = "Nothing was done. Give each a name of its own.";
            return Err(Failure::new(Kind::Config, format!("two [[notify]] are named {:?}", channel.name), help));
        }
        channel.validate()?;
    }
    Ok(())
}

fn is_loopback(host: &str) -> bool {
    matches!(host, "localhost" | "127.0.0.1" | "::1" | "[::1]")
}

/// What leaves the host is encrypted.
pub fn check_url(url: &str) -> Result<(), &'static str> {
    let Some(rest) = url.strip_prefix("http://") else {
        return if url.starts_with("https://") { Ok(()) } else { Err("needs an address that begins with https://") };
    };
    let host = rest.split('/').next().unwrap_or("");
    let host = match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => host,
    };
    if is_loopback(host) {
        Ok(())
    } else {
        Err("would send in the clear: use https:// (http:// is for this machine only)")
    }
}
