//! Groups: sources of one application.

use anyhow::Result;
use serde::Deserialize;

use super::{Config, SourceConfig, SourceKind};
use crate::error::{Failure, Kind};
use crate::repository::group::MEMBERS_MAX;
use crate::repository::layout::{GroupName, SourceName};
use crate::source::postgres::Mode;

/// Members that are read at the same time, since waiting costs their engines something, or would draw their data apart: each needs some 60 MB.
const AT_ONCE_MAX: usize = 4;

/// `[[group]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupConfig {
    pub name: GroupName,
    pub sources: Vec<SourceName>,
}

impl GroupConfig {
    /// What can be told without the sources. `before` are the groups above this one.
    pub(super) fn validate(&self, before: &[GroupConfig]) -> Result<()> {
        let twice = self.sources.iter().enumerate().find(|(i, name)| self.sources[..*i].contains(name));
        let wrong = if before.iter().any(|group| group.name == self.name) {
            "two groups have this name".to_owned()
        } else if self.sources.len() < 2 {
            "it needs two sources at least".into()
        } else if self.sources.len() > MEMBERS_MAX {
            format!("it has {} sources, and {MEMBERS_MAX} are the most", self.sources.len())
        } else if let Some((_, name)) = twice {
            format!("it names {name} twice")
        } else {
            return Ok(());
        };
        Err(self.refuse(&wrong, "Correct [[group]]; `blackstart check` reads it again."))
    }

    fn refuse(&self, wrong: &str, help: &str) -> anyhow::Error {
        Failure::new(Kind::Config, format!("group {}: {wrong}", self.name), format!("Nothing was done. {help}"))
    }
}

impl Config {
    /// The group with this name.
    pub fn named_group(&self, name: &GroupName) -> Result<&GroupConfig> {
        self.group.iter().find(|group| group.name == *name).ok_or_else(|| {
            let known: Vec<String> = self.group.iter().map(|group| group.name.to_string()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let help = format!("Nothing was done. The groups of {}: {known}.", self.file.display());
            Failure::new(Kind::Usage, format!("there is no group {name} in the configuration"), help)
        })
    }

    /// That every group names sources that there are, the jobs' among them, and that they can be read together.
    pub(crate) fn members_are_known(&self) -> Result<()> {
        for group in &self.group {
            let mut at_once = 0;
            for name in &group.sources {
                let Some(source) = self.source.iter().find(|source| source.name == *name) else {
                    let known: Vec<&str> = self.source.iter().map(|source| source.name.as_str()).collect();
                    return Err(
                        group.refuse(&format!("{name} is no source"), &format!("There are: {}.", known.join(", ")))
                    );
                };
                at_once += usize::from(cannot_wait(source));
            }
            if at_once > AT_ONCE_MAX {
                let wrong = format!(
                    "{at_once} of its sources must be read at the same time (physical copies of PostgreSQL, Redis, files, commands), and {AT_ONCE_MAX} are the most"
                );
                return Err(group.refuse(&wrong, "Make two groups of it."));
            }
        }
        Ok(())
    }
}

fn cannot_wait(source: &SourceConfig) -> bool {
    match source.kind {
        SourceKind::Redis | SourceKind::Files | SourceKind::Command => true,
        SourceKind::Postgres => source.postgres.as_ref().and_then(|p| p.mode) != Some(Mode::Logical),
        SourceKind::Sqlite | SourceKind::Chroma => false,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::error::{help_of, kind_of};

    const SOURCES: &str = "repository = \"r\"\n[[source]]\nname = \"a\"\nkind = \"sqlite\"\npath = \"a\"\n[[source]]\nname = \"b\"\nkind = \"files\"\npath = \"b\"\n";

    fn load(groups: &str) -> Result<Config> {
        Config::parse(&format!("{SOURCES}{groups}"), Path::new("/no-such-directory/b.toml"))?.with_jobs()
    }

    fn refused(groups: &str) -> String {
        let error = load(groups).unwrap_err();
        assert_eq!(kind_of(&error), Kind::Config, "{error:#}");
        format!("{error:#} {}", help_of(&error).unwrap_or_default())
    }

    #[test]
    fn a_group_names_sources_that_there_are() {
        let group = |name: &str, sources: &str| format!("[[group]]\nname = \"{name}\"\nsources = [{sources}]\n");
        let config = load(&group("shop", "\"a\", \"b\"")).unwrap();
        assert_eq!(config.named_group(&GroupName::new("shop").unwrap()).unwrap().sources.len(), 2);
        let unknown = config.named_group(&GroupName::new("shoo").unwrap()).unwrap_err();
        assert!(help_of(&unknown).unwrap().contains("shop"));
        let said = refused(&group("shop", "\"a\", \"c\""));
        assert!(said.contains("c is no source") && said.contains("There are: a, b"), "{said}");
        assert!(refused(&group("shop", "\"a\", \"a\"")).contains("a twice"));
        assert!(refused(&group("shop", "")).contains("two sources at least"));
        assert!(refused(&group("Shop", "\"a\", \"b\"")).contains("cannot name"));
        let two = [group("shop", "\"a\", \"b\""), group("shop", "\"b\", \"a\"")].concat();
        assert!(refused(&two).contains("two groups have this name"));
        assert!(refused("[[group]]\nname = \"g\"\nsource = [\"a\"]\n").contains("`sources`"));
    }

    #[test]
    fn no_more_than_memory_allows_are_read_at_once() {
        let source = |n| format!("[[source]]\nname = \"f{n}\"\nkind = \"files\"\npath = \"f\"\n");
        let all: String = (0..5).map(source).collect();
        let group = "[[group]]\nname = \"g\"\nsources = [\"f0\", \"f1\", \"f2\", \"f3\", \"f4\"]\n";
        assert!(refused(&format!("{all}{group}")).contains("5 of its sources must be read at the same time"));
    }
}
