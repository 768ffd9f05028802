//! The proof of a restored directory: the offline verifier, then the real `chromadb` in Python, twice, each time in a process of its own.
//!
//! Where no Python here can import `chromadb`, the offline verifier is all there is: it proves that every vector is there and the index sound,
//! not that Chroma starts. The check then says that the engine did not run.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::verify::{Copy, Found};
use super::{Facts, Options};
use crate::child::{self, Spec};
use crate::durable;
use crate::report::Check;

const SCRIPT: &[u8] = include_bytes!("prove.py");
/// Collections that are opened, ids that are looked up in each, and the share of them that a search must find.
const COLLECTIONS: usize = 50;
const SAMPLE: usize = 20;
const FOUND_LEAST: f64 = 0.8;
/// How long one run of Python may take: it loads every index that it is asked for.
const RUN: Duration = Duration::from_secs(1800);
const IMPORT: Duration = Duration::from_secs(120);
pub(super) const ANSWER_MAX: u64 = 16 << 20;

#[derive(Serialize)]
struct Wanted<'a> {
    name: &'a str,
    tenant: &'a str,
    database: &'a str,
    sample: Vec<(String, Vec<f32>)>,
}

#[derive(Deserialize)]
struct Answer {
    version: String,
    collections: Vec<Seen>,
}

#[derive(Deserialize)]
struct Seen {
    id: String,
    count: u64,
    fetched: u64,
    found: u64,
    wrong: Option<String>,
}

/// Proves the copy in `copy`, and changes it: Chroma writes when it opens. `scratch` is a directory beside it.
pub fn prove(copy: &Path, scratch: &Path, facts: &serde_json::Value, options: &Options) -> Result<Vec<Check>> {
    let facts = Facts::deserialize(facts).context("read the facts that the snapshot holds of its directory")?;
    let verifier = Copy::open(copy)?;
    let (mut checks, found) = verifier.verify()?;
    let sum = |all: &[Found]| all.iter().map(|c| c.count).sum::<u64>();
    let told = |all: &[Found]| format!("{} ids in {} collections", sum(all), all.len());
    checks.push(Check::compare("ids and collections", told(&facts.collections), told(&found)));
    if checks.iter().any(|c| !c.passed) {
        return Ok(checks);
    }
    let python = match find_python(options.python.as_deref()) {
        Ok(python) => python,
        Err(why) => {
            checks.push(Check::not_run("chromadb itself", why));
            return Ok(checks);
        }
    };
    let asked: Vec<&Found> = found.iter().take(COLLECTIONS).collect();
    let request = write_request(&verifier, &asked, scratch)?;
    drop(verifier);
    for run in ["opened by chromadb", "opened again"] {
        match ask(&python, copy, &request, scratch) {
            Ok(answer) => checks.extend(compare(run, &asked, &request, &answer)),
            Err(e) => {
                checks.push(Check::compare(run, "answers", format!("{e:#}")));
                break;
            }
        }
    }
    Ok(checks)
}

/// What to do with a restored directory.
pub fn advice() -> Vec<String> {
    vec![
        "Point PersistentClient or `chroma run --path` at the directory. A newer Chroma than before changes it when it opens it: keep a copy until it has proven itself."
            .to_owned(),
    ]
}

struct Request {
    file: PathBuf,
    /// Ids looked up in each collection.
    sampled: Vec<u64>,
}

fn write_request(verifier: &Copy, asked: &[&Found], scratch: &Path) -> Result<Request> {
    let mut wanted = Vec::new();
    for found in asked {
        let sample = verifier.sample(found, SAMPLE)?;
        wanted.push(Wanted { name: &found.name, tenant: &found.tenant, database: &found.database, sample });
    }
    let file = scratch.join("request.json");
    durable::publish_new(&file, &serde_json::to_vec(&wanted)?, 0o600).context("write the request")?;
    durable::publish_new(&scratch.join("prove.py"), SCRIPT, 0o600).context("write the script")?;
    Ok(Request { file, sampled: wanted.iter().map(|w| w.sample.len() as u64).collect() })
}

/// A Python that can import `chromadb`; why there is none, otherwise.
fn find_python(named: Option<&Path>) -> Result<PathBuf, String> {
    let python = named.map_or_else(|| PathBuf::from("python3"), Path::to_owned);
    let spec = Spec::new([python.as_os_str(), "-c".as_ref(), "import chromadb".as_ref()]);
    match child::run(&quiet(spec), IMPORT, ANSWER_MAX) {
        Ok(_) => Ok(python),
        Err(_) if named.is_none() => {
            Err("python3 here has no chromadb; name one that has: [source.chroma] python = \"…\"".to_owned())
        }
        Err(e) => Err(format!("{e:#}").lines().next_back().unwrap_or_default().trim().to_owned()),
    }
}

fn ask(python: &Path, copy: &Path, request: &Request, scratch: &Path) -> Result<Answer> {
    let argv: [OsString; 4] =
        [python.into(), scratch.join("prove.py").into(), copy.into(), request.file.clone().into()];
    let said = child::run(&quiet(Spec::new(argv)), RUN, ANSWER_MAX)?;
    let said = String::from_utf8_lossy(&said).into_owned();
    serde_json::from_str(said.lines().next_back().unwrap_or_default()).context("read what the script says")
}

/// Nothing is sent anywhere, and nothing compiled is left behind.
pub(super) fn quiet(spec: Spec) -> Spec {
    let set =
        [("ANONYMIZED_TELEMETRY", "False"), ("PYTHONDONTWRITEBYTECODE", "1"), ("CHROMA_OTEL_COLLECTION_ENDPOINT", "")];
    Spec { set: set.map(|(name, value)| (name.into(), value.into())).to_vec(), cut_off: true, ..spec }
}

fn compare(run: &str, asked: &[&Found], request: &Request, answer: &Answer) -> Vec<Check> {
    let mut checks = Vec::new();
    for ((found, sampled), seen) in asked.iter().zip(&request.sampled).zip(&answer.collections) {
        let name = format!("{} {run} {}", found.name, answer.version);
        let expected = format!("{} with {} ids", found.id, found.count);
        checks.push(Check::compare(&name, expected, format!("{} with {} ids", seen.id, seen.count)));
        if *sampled == 0 {
            continue;
        }
        let fetched = seen.wrong.clone().unwrap_or_else(|| format!("{} vectors as in the files", seen.fetched));
        checks.push(Check::compare(format!("{name}: by id"), format!("{sampled} vectors as in the files"), fetched));
        checks.push(Check {
            name: format!("{name}: by search"),
            expected: format!("at least {:.0} % of {sampled} vectors find themselves", FOUND_LEAST * 100.0),
            actual: seen.found.to_string(),
            passed: seen.found as f64 >= FOUND_LEAST * *sampled as f64,
        });
    }
    let opened = answer.collections.len();
    if opened != asked.len() {
        checks.push(Check::compare(run, format!("{} collections", asked.len()), format!("{opened} collections")));
    }
    checks
}
