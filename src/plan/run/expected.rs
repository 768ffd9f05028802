//! What a plan is made for: a snapshot of another source, or of another version of the engine, is not restored by it.

use anyhow::Result;
use serde_json::Value;

use super::super::Restore;
use super::super::report::StageReport;
use crate::report::Check;
use crate::repository::agefile::Identity;
use crate::repository::sealed::SealedPart;
use crate::repository::snapshot::Snapshot;

/// What a snapshot does not say.
const UNKNOWN: &str = "not known";

/// Adds the checks that the stage asks for; gives why nothing may be restored, where one did not pass.
pub fn compare(
    restore: &Restore,
    snapshot: &Snapshot,
    identities: &[Identity],
    report: &mut StageReport,
) -> Result<Option<String>> {
    if restore.version.is_none() && restore.identity.is_none() {
        return Ok(None);
    }
    let facts = SealedPart::open(snapshot, identities)?.facts;
    let mut wrong = Vec::new();
    if let Some(expected) = &restore.version {
        let found = version(&facts).unwrap_or_else(|| UNKNOWN.to_owned());
        let passed = found == *expected || found.starts_with(&format!("{expected}."));
        if !passed {
            wrong
                .push(format!("wrong version: it was written by version {found}, and the plan is made for {expected}"));
        }
        report.checks.push(Check { passed, ..Check::compare("version", expected, found) });
    }
    if let Some(expected) = &restore.identity {
        let found = identity(&facts).unwrap_or_else(|| UNKNOWN.to_owned());
        if found != *expected {
            wrong.push(format!("wrong source: it is of {found}, and the plan is made for {expected}"));
        }
        report.checks.push(Check::compare("identity", expected, found));
    }
    let what = format!("snapshot {} of {} was not restored: {}", snapshot.seq, snapshot.source, wrong.join("; "));
    Ok((!wrong.is_empty()).then_some(what))
}

/// PostgreSQL has numbers: 150004 is 15.4.
fn version(facts: &Value) -> Option<String> {
    match &facts["version"] {
        Value::String(text) => Some(text.clone()),
        number => number.as_u64().map(|n| format!("{}.{}", n / 10_000, n % 10_000)),
    }
}

fn identity(facts: &Value) -> Option<String> {
    let known =
        ["system", "system_identifier", "application_id"].iter().map(|key| &facts[*key]).find(|v| !v.is_null())?;
    Some(known.as_str().map_or_else(|| known.to_string(), str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn versions_and_identities_as_engines_have_them() {
        assert_eq!(version(&json!({"version": 150_004})).as_deref(), Some("15.4"));
        assert_eq!(version(&json!({"version": "7.0.15"})).as_deref(), Some("7.0.15"));
        assert_eq!(version(&json!({})), None);
        assert_eq!(identity(&json!({"application_id": 7})).as_deref(), Some("7"));
        assert_eq!(identity(&json!({"system": "73"})).as_deref(), Some("73"));
    }
}
