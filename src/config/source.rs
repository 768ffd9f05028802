//! One `[[source]]`: what every kind shares, a table of each kind's own, and which keys a kind takes.

use anyhow::{Context, Result};
use jiff::SignedDuration;
use serde::Deserialize;
use std::path::PathBuf;

use crate::error::{Failure, Kind};
use crate::operations::retention::Policy;
use crate::operations::tiers::Tiers;
use crate::repository::layout::SourceName;
use crate::secret::{Secret, Text};
use crate::source::{canary, chroma, command, postgres, redis};
use crate::time::optional_length as duration;

/// One `[[source]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    pub name: SourceName,
    pub kind: SourceKind,
    /// Of what lies on this machine: `chroma`, `files`, `sqlite`.
    pub path: Option<PathBuf>,
    /// Of what a server holds. A password does not belong into it in plain text.
    pub url: Option<Text>,
    pub password: Option<Secret>,
    pub chroma: Option<chroma::Options>,
    pub command: Option<command::Options>,
    pub postgres: Option<postgres::Options>,
    pub redis: Option<redis::Options>,
    /// A heartbeat that is written into the source: `true`, or a table.
    #[serde(default, deserialize_with = "canary::optional")]
    pub canary: Option<canary::Options>,
    /// The agent receives the engine's log as well, all the time: any moment can be reached, and the RPO counts from the end of the log.
    #[serde(default)]
    pub continuous: bool,
    #[serde(default)]
    pub exclude: Vec<String>,
    #[serde(default)]
    pub one_file_system: bool,
    #[serde(default)]
    pub tolerate_changing: Vec<String>,
    /// Data that may be lost at most, as time.
    #[serde(default, deserialize_with = "duration")]
    pub rpo: Option<SignedDuration>,
    /// Time that a restore may take.
    #[serde(default, deserialize_with = "duration")]
    pub rto: Option<SignedDuration>,
    pub retention: Option<Policy>,
    /// Storage classes and locks of the retention's tiers.
    pub tier: Option<Tiers>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    Chroma,
    Command,
    Files,
    Postgres,
    Redis,
    Sqlite,
}

impl SourceKind {
    /// As it is written in the configuration and in commits.
    pub fn name(self) -> &'static str {
        match self {
            SourceKind::Chroma => "chroma",
            SourceKind::Command => "command",
            SourceKind::Files => "files",
            SourceKind::Postgres => "postgres",
            SourceKind::Redis => "redis",
            SourceKind::Sqlite => "sqlite",
        }
    }

    /// Whether its engine has a log for which there is a receiver.
    pub fn has_a_log(self) -> bool {
        matches!(self, SourceKind::Postgres | SourceKind::Redis)
    }
}

impl SourceConfig {
    fn is_logical(&self) -> bool {
        self.postgres.as_ref().is_some_and(|options| options.mode == Some(postgres::Mode::Logical))
    }

    /// That each key given is one of this kind's, and each that the kind needs is given.
    pub(crate) fn validate(&self) -> Result<()> {
        let (name, kind) = (&self.name, self.kind.name());
        let by_path = match self.kind {
            SourceKind::Chroma | SourceKind::Files | SourceKind::Sqlite => true,
            SourceKind::Command | SourceKind::Postgres | SourceKind::Redis => false,
        };
        if let (SourceKind::Redis, Some(Text::Plain(url))) = (self.kind, &self.url) {
            redis::address::Address::without_password(url).with_context(|| format!("source {name}"))?;
        }
        if let (SourceKind::Redis, Some(Text::Plain(url))) =
            (self.kind, self.canary.as_ref().and_then(|c| c.url.as_ref()))
        {
            redis::address::Address::without_password(url).with_context(|| format!("canary of source {name}"))?;
        }
        let by_url = matches!(self.kind, SourceKind::Postgres | SourceKind::Redis);
        let by_command = self.kind == SourceKind::Command;
        let located = self.path.is_some() || self.url.is_some() || self.password.is_some();
        let of_files = !self.exclude.is_empty() || !self.tolerate_changing.is_empty() || self.one_file_system;
        let wrong = [
            (by_path && self.path.is_none(), "needs a path"),
            (by_url && self.url.is_none(), "needs a url: postgres://user@host:5432/database, redis://user@host:6379"),
            (by_url && self.path.is_some(), "is read over a connection: it takes no path"),
            (
                self.kind != SourceKind::Postgres && self.postgres.is_some(),
                "takes no [source.postgres]: that is for kind = \"postgres\"",
            ),
            (self.kind != SourceKind::Redis && self.redis.is_some(), "takes no [source.redis]"),
            (self.kind != SourceKind::Chroma && self.chroma.is_some(), "takes no [source.chroma]"),
            (
                self.continuous && !self.kind.has_a_log(),
                "has no log that could be received: continuous is for kind = \"postgres\" and kind = \"redis\"",
            ),
            (
                self.continuous && self.is_logical(),
                "is dumped (mode = \"logical\"), and the log leads on from physical snapshots only: leave continuous or the mode out",
            ),
            (
                by_path && (self.url.is_some() || self.password.is_some()),
                "is read from a path: it takes no url and no password",
            ),
            (by_command && self.command.is_none(), "needs a table [source.command] with its `dump`"),
            (!by_command && self.command.is_some(), "takes no [source.command]: that is for kind = \"command\""),
            (
                by_command && located,
                "has its programs in [source.command]: it takes no path, no url and no password; give secrets by [source.command.environment]",
            ),
            (
                self.kind != SourceKind::Files && of_files,
                "takes no patterns: exclude, one_file_system and tolerate_changing are for kind = \"files\"",
            ),
        ];
        let wrong = wrong.iter().find(|(wrong, _)| *wrong).map(|(_, what)| *what);
        match wrong.or_else(|| self.canary.as_ref().and_then(|options| canary::wrong(options, kind))) {
            Some(what) => {
                let help = "Nothing was done. Correct the source; `blackstart check` reads it again.";
                Err(Failure::new(Kind::Config, format!("source {name} of kind {kind} {what}"), help))
            }
            None => self
                .command
                .as_ref()
                .map_or(Ok(()), command::Options::validate)
                .with_context(|| format!("source {name}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> String {
        let source: SourceConfig = toml::from_str(text).unwrap();
        format!("{:#}", source.validate().unwrap_err())
    }

    #[test]
    fn each_kind_takes_its_own_keys() {
        let redis = "name = \"a\"\nkind = \"redis\"\n";
        assert!(said(redis).contains("needs a url"));
        assert!(said(&format!("{redis}url = \"redis://h\"\npath = \"p\"")).contains("takes no path"));
        assert!(said(&format!("{redis}url = \"redis://h\"\n[chroma]")).contains("takes no [source.chroma]"));
        let leaked = said(&format!("{redis}url = \"redis://u:hunter2@h\""));
        assert!(leaked.contains("has a password in it") && !leaked.contains("hunter2"), "{leaked}");
        assert!(said("name = \"a\"\nkind = \"files\"\npath = \"p\"\ncontinuous = true").contains("has no log"));
        assert!(said("name = \"a\"\nkind = \"chroma\"\nurl = \"http://h\"").contains("needs a path"));
        assert!(said("name = \"a\"\nkind = \"sqlite\"\npath = \"p\"\n[redis]").contains("takes no [source.redis]"));
    }
}
