//! Questions to a restored directory: the real `chromadb` opens it in Python, counts a collection, searches it for a vector.
//!
//! Chroma writes when it opens, so what is asked is a copy that nothing else uses.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Options;
use super::proof::{ANSWER_MAX, quiet};
use crate::child::{self, Spec};
use crate::durable;
use crate::error::{Failure, Kind};

const SCRIPT: &[u8] = include_bytes!("ask.py");
/// Ids that a search brings.
const NEAREST: u64 = 10;

/// What is asked of one collection.
#[derive(Debug, Clone, PartialEq)]
pub enum Question {
    Count,
    /// The ids nearest to a vector.
    Nearest(Vec<f32>),
    /// The ids nearest to the vector of an id, itself among them.
    NearestTo(String),
}

/// A directory that may be written to, and a Python that has `chromadb`.
pub struct Directory {
    copy: PathBuf,
    scratch: PathBuf,
    python: PathBuf,
}

#[derive(Serialize)]
struct Request<'a> {
    collection: &'a str,
    tenant: &'a str,
    database: &'a str,
    vector: Option<&'a [f32]>,
    id: Option<&'a str>,
    most: u64,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    count: u64,
    #[serde(default)]
    nearest: Vec<String>,
    /// That the question cannot be answered as it is.
    wrong: Option<String>,
    /// That this Python has no `chromadb`.
    missing: Option<String>,
}

fn missing(why: &str) -> anyhow::Error {
    let help = "This says nothing of the backup. Install it (pip install chromadb), or name a Python that has it: [source.chroma] python = \"…\".";
    Failure::new(Kind::Environment, format!("chromadb cannot be asked here: {why}"), help)
}

impl Directory {
    pub fn open(copy: &Path, scratch: &Path, options: &Options) -> Directory {
        let python = options.python.clone().unwrap_or_else(|| PathBuf::from("python3"));
        Directory { copy: copy.to_owned(), scratch: scratch.to_owned(), python }
    }

    /// The number of ids, or the ids that were found, the nearest first. `Kind::Environment`: there is no `chromadb` here.
    pub fn ask(
        &self,
        collection: &str,
        database: Option<&str>,
        question: &Question,
        patience: Duration,
    ) -> Result<Vec<String>> {
        let request = Request {
            collection,
            tenant: "default_tenant",
            database: database.unwrap_or("default_database"),
            vector: if let Question::Nearest(vector) = question { Some(vector) } else { None },
            id: if let Question::NearestTo(id) = question { Some(id) } else { None },
            most: NEAREST,
        };
        let directory = tempfile::Builder::new().prefix("q").tempdir_in(&self.scratch).context("make a directory")?;
        let (script, file) = (directory.path().join("ask.py"), directory.path().join("request.json"));
        durable::publish_new(&script, SCRIPT, 0o600).context("write the script")?;
        durable::publish_new(&file, &serde_json::to_vec(&request)?, 0o600).context("write the request")?;
        let argv: [OsString; 4] = [self.python.clone().into(), script.into(), self.copy.clone().into(), file.into()];
        let said = child::run(&quiet(Spec::new(argv)), patience, ANSWER_MAX).map_err(|e| match e.downcast_ref() {
            Some(io) if std::io::Error::kind(io) == std::io::ErrorKind::NotFound => missing(&format!("{e:#}")),
            _ => e,
        })?;
        let said = String::from_utf8_lossy(&said).into_owned();
        let last = said.lines().next_back().unwrap_or_default();
        let answer: Answer = serde_json::from_str(last).context("read what the script says")?;
        if let Some(what) = answer.missing {
            return Err(missing(&what));
        }
        match (answer.wrong, question) {
            (Some(wrong), _) => anyhow::bail!(wrong),
            (None, Question::Count) => Ok(vec![answer.count.to_string()]),
            (None, _) => Ok(answer.nearest),
        }
    }
}
