//! Who answers the questions of checks: the files of a copy, an engine that is started on it, or in a real run what the plan has started.

use anyhow::{Context, Result};
use jiff::Timestamp;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use super::files;
use crate::config::{SourceConfig, SourceKind};
use crate::error::{Failure, Kind};
use crate::net::Roots;
use crate::operations::ask::{Engine, Restored};
use crate::plan::Variables;
use crate::repository::layout::SourceName;
use crate::secret::Text;
use crate::source::postgres;
use crate::source::redis::address::Address as RedisAddress;

/// A restored copy.
#[derive(Debug, Clone)]
pub struct Copy {
    pub path: PathBuf,
    pub data_time: Timestamp,
    /// As in its commit, or in the configuration.
    pub kind: String,
    pub who: Who,
}

/// Who answers questions about a copy.
#[derive(Debug, Clone)]
pub enum Who {
    /// Its files.
    Files,
    /// The engine of its kind, on the copy.
    Engine(Box<Restored>),
    /// What runs at the source's address, or at that of the check: a copy in its place is not for us to start an engine on.
    Running(Box<Live>),
}

#[derive(Debug, Clone)]
pub struct Live {
    pub source: SourceConfig,
    /// The configuration's directory.
    pub base: PathBuf,
    pub scratch: PathBuf,
}

/// The engines of one stage's checks: each is started for the first check that asks it.
#[derive(Default)]
pub struct Engines(RefCell<BTreeMap<Asked, Rc<Engine>>>);

/// A source, and the address at which a check wants it asked.
type Asked = (SourceName, Option<String>);

impl Engines {
    /// The engine of a copy; `at` counts in a real run alone.
    pub fn of(&self, source: &SourceName, copy: &Copy, at: Option<&Text>, variables: &Variables) -> Result<Rc<Engine>> {
        let plain = match at {
            Some(Text::Plain(text)) => Some(variables.fill(text)?),
            Some(Text::Secret(secret)) => Some(secret.to_string()),
            None => None,
        };
        let key = (source.clone(), plain.clone());
        if let Some(engine) = self.0.borrow().get(&key) {
            return Ok(Rc::clone(engine));
        }
        let engine = match &copy.who {
            Who::Files => {
                anyhow::bail!("the copy of {source} is of kind {}, which has no engine to ask", copy.kind);
            }
            Who::Engine(restored) => {
                Engine::start(restored).with_context(|| format!("start {} on the copy", copy.kind))?
            }
            Who::Running(live) => {
                let at = match (at, plain) {
                    (Some(Text::Plain(_)), Some(filled)) => Some(Text::Plain(filled)),
                    _ => at.cloned(),
                };
                live.reach(copy, at.as_ref())?
            }
        };
        let engine = Rc::new(engine);
        self.0.borrow_mut().insert(key, Rc::clone(&engine));
        Ok(engine)
    }

    /// Stops what was started.
    pub fn stop(self) -> Result<()> {
        for engine in self.0.into_inner().into_values() {
            Rc::into_inner(engine).map_or(Ok(()), Engine::stop)?;
        }
        Ok(())
    }
}

impl Live {
    fn reach(&self, copy: &Copy, at: Option<&Text>) -> Result<Engine> {
        let SourceConfig { name, password, .. } = &self.source;
        let url = at.or(self.source.url.as_ref()).with_context(|| format!("{name} has no url: say `at` in the check"));
        match self.source.kind {
            SourceKind::Postgres => {
                let address = postgres::address(url?, password.as_ref(), &self.base)?;
                Ok(Engine::PostgresAt(Box::new(address)))
            }
            SourceKind::Redis => {
                let options = self.source.redis.clone().unwrap_or_default().below(&self.base);
                let mut address = RedisAddress::parse(&url?.read(&self.base)?)?;
                address.password = password.as_ref().map(|p| p.read(&self.base)).transpose()?.or(address.password);
                Ok(Engine::RedisAt(Box::new(address), options.ca.map_or(Roots::System, Roots::File)))
            }
            SourceKind::Chroma => {
                // Chroma writes when it opens: what is asked is another copy.
                let aside = tempfile::Builder::new().prefix("chroma").tempdir_in(&self.scratch)?.keep().join("copy");
                files::copy_tree(&copy.path, &aside)?;
                let settings = crate::source::Settings {
                    base: self.base.clone(),
                    chroma: self.source.chroma.clone(),
                    ..Default::default()
                };
                let restored = Restored {
                    kind: copy.kind.clone(),
                    copy: aside,
                    scratch: self.scratch.clone(),
                    facts: serde_json::Value::Null,
                    settings,
                };
                Engine::start(&restored)
            }
            kind => {
                let message = format!("{name} is of kind {}, which has no engine to ask", kind.name());
                Err(Failure::new(Kind::Usage, message, "Ask a `file` of it, or use `command`."))
            }
        }
    }
}
